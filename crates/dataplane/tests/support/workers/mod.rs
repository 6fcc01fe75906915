//! Workers on one table, each with a port in memory and a clock, and services with and without persistence.

pub(crate) mod flood;
pub(crate) mod frames;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::burst::Context;
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::capture::filter::Filter;
use xvs_dataplane::capture::{Capture, Reader};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::{
    CallIds, Direction, Flags, Inserted, NewConnection, Spare, Table, TableConfig, TableReader, Timers,
};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::egress::{Egress, Path, Unresolved};
use xvs_dataplane::forward::Identification;
use xvs_dataplane::general_path::reassembly::Reassembly;
use xvs_dataplane::general_path::reassembly::handoff::Handoff;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::Port as _;
use xvs_dataplane::port::memory::{Bytes, MemoryPort};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::sync_backup::{Inbox, Received, SyncBackup, Trust};
use xvs_dataplane::snapshot::{
    Activity, ClientMask, Destination, DestinationId, DestinationLive, Encapsulation, Member, Persistence,
    PersistenceScope, Service, ServiceLive, Snapshot, Tunnel,
};
use xvs_dataplane::verdict::Verdict;
use xvs_proto::LinkId;
use xvs_proto::network::Network;
use xvs_proto::sync::{Entry, method};
use xvs_proto::{Endpoint, FlowKey, MacAddr, Protocol};
use xvs_sched::scheduler::{self, Setup};
use xvs_sched::{ForwardingMethod, Load, ServiceKey, SynProxy, Weight};

use self::frames::{checksum, frame};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN_ACK: u8 = 0x11;
pub(crate) const RST: u8 = 0x04;

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
/// The virtual address of services in IPv6.
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x80);
pub(crate) const SERVERS: u8 = 3;

/// A client's flow to one of the services.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    client: Ipv4Addr,
    port: u16,
    service: (Protocol, u16),
}

/// Services, with the timeout of their persistence in seconds. Port 0 stands for every port without a service of its
/// own. The last two are for SIP; the second of them schedules each packet.
const SERVICES: [((Protocol, u16), ForwardingMethod, Option<u32>); 10] = [
    ((Protocol::TCP, 80), ForwardingMethod::DirectRouting, None),
    ((Protocol::TCP, 443), ForwardingMethod::Nat, None),
    ((Protocol::UDP, 53), ForwardingMethod::Nat, None),
    ((Protocol::TCP, 8080), ForwardingMethod::Nat, Some(30)),
    ((Protocol::TCP, 0), ForwardingMethod::DirectRouting, Some(70)),
    ((Protocol::UDP, 5353), ForwardingMethod::Nat, Some(400)),
    ((Protocol::UDP, 5300), ForwardingMethod::DirectRouting, None),
    ((Protocol::UDP, 5301), ForwardingMethod::Tunnel, None),
    ((Protocol::UDP, SIP), ForwardingMethod::Nat, Some(360)),
    ((Protocol::UDP, SIP_ONE_PACKET), ForwardingMethod::Nat, Some(360)),
];
/// Services in IPv6, without persistence.
const SERVICES6: [((Protocol, u16), ForwardingMethod, Option<u32>); 4] = [
    ((Protocol::UDP, 53), ForwardingMethod::Nat, None),
    ((Protocol::UDP, 5300), ForwardingMethod::DirectRouting, None),
    ((Protocol::UDP, 5301), ForwardingMethod::Tunnel, None),
    ((Protocol::TCP, 80), ForwardingMethod::DirectRouting, None),
];
/// The ports of the services that distinguish SIP calls.
pub(crate) const SIP: u16 = 5060;
pub(crate) const SIP_ONE_PACKET: u16 = 5061;
/// The number of calls that they can distinguish.
pub(crate) const CALLS: usize = 32_768;
/// The services to which clients send.
const TARGETS: [(Protocol, u16); 7] = [
    SERVICES[0].0,
    SERVICES[1].0,
    SERVICES[2].0,
    SERVICES[3].0,
    (Protocol::TCP, 9000),
    (Protocol::TCP, 9001),
    SERVICES[5].0,
];

impl Flow {
    /// The flow with this number in a group of flows, to the service with direct routing.
    pub(crate) fn direct(group: u8, number: u32) -> Self {
        Self::to(SERVICES[0].0, group, number)
    }

    /// As [`Self::direct`], to the TCP service by NAT.
    pub(crate) fn nat(group: u8, number: u32) -> Self {
        Self::to(SERVICES[1].0, group, number)
    }

    /// As [`Self::direct`], to the UDP service.
    pub(crate) fn udp(group: u8, number: u32) -> Self {
        Self::to(SERVICES[2].0, group, number)
    }

    /// As [`Self::direct`], to the persistent TCP service.
    pub(crate) fn persistent(group: u8, number: u32) -> Self {
        Self::to(SERVICES[3].0, group, number)
    }

    /// As [`Self::direct`], to the service that the number selects.
    pub(crate) fn any(group: u8, number: u32) -> Self {
        let targets = TARGETS.len() as u32;
        Self::to(TARGETS[(number % targets) as usize], group, number / targets)
    }

    /// As [`Self::direct`], to the service at this SIP port.
    pub(crate) fn sip(port: u16, group: u8, number: u32) -> Self {
        Self::to((Protocol::UDP, port), group, number)
    }

    /// The same client at its next port.
    pub(crate) fn with_another_port(&self) -> Self {
        Self { port: self.port + 1, ..*self }
    }

    fn to(service: (Protocol, u16), group: u8, number: u32) -> Self {
        // Not port 20, which is for FTP data and begins no connection.
        let [a, b, c, d] = number.to_be_bytes();
        Self { client: Ipv4Addr::new(10 + group, a, b, c), port: 1024 + u16::from(d), service }
    }

    /// A frame from the client.
    pub(crate) fn request(&self, flags: u8) -> Vec<u8> {
        frame(self.service.0, (self.client, self.port), (VIP, self.service.1), flags)
    }

    /// A message of a SIP call from the client.
    pub(crate) fn call(&self, call: u32) -> Vec<u8> {
        let mut frame = self.request(0);
        let message = format!("INVITE sip:b@h SIP/2.0\r\nCall-ID: {call}@h\r\n\r\n");
        let lengths = [(16, 28 + message.len() as u16), (38, 8 + message.len() as u16)];
        lengths.iter().for_each(|&(at, length)| frame[at..at + 2].copy_from_slice(&length.to_be_bytes()));
        frame[24..26].fill(0);
        let checksum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame.extend(message.into_bytes());
        frame
    }

    /// A frame from the first server to the client.
    pub(crate) fn reply(&self, flags: u8) -> Vec<u8> {
        frame(self.service.0, (server(0), self.service.1), (self.client, self.port), flags)
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            protocol: self.service.0,
            source: Endpoint::new(self.client, self.port),
            dest: Endpoint::new(VIP, self.service.1),
        }
    }
}

/// One worker.
pub(crate) struct Worker {
    pipeline: Pipeline,
    port: MemoryPort,
    counters: Arc<WorkerCounters>,
    snapshot: Arc<Snapshot>,
    now: Millis,
}

impl Worker {
    /// Processes one frame.
    pub(crate) fn packet(&mut self, frame: Vec<u8>) -> Verdict {
        self.burst(&[frame])[0]
    }

    /// Processes a burst of frames, at most 64.
    pub(crate) fn burst(&mut self, frames: &[Vec<u8>]) -> Vec<Verdict> {
        for frame in frames {
            assert!(self.port.inject(LinkId(0), frame));
        }
        assert_eq!(self.pipeline.run(Context::new(&self.snapshot, self.now), &mut self.port), frames.len());
        self.pipeline.flows.quiescent();
        drop((self.port.take_transmitted(), self.port.take_passed()));
        assert_eq!((self.port.census().out, self.counters.balance()), (0, 0));
        self.pipeline.transmitter.verdicts().to_vec()
    }

    /// Processes frames, perhaps none, and returns the frames that left: to the wire, and to the kernel.
    pub(crate) fn pass(&mut self, frames: &[Vec<u8>]) -> [Vec<Bytes>; 2] {
        for frame in frames {
            assert!(self.port.inject(LinkId(0), frame));
        }
        self.pipeline.run(Context::new(&self.snapshot, self.now), &mut self.port);
        self.pipeline.flows.quiescent();
        assert_eq!(self.counters.balance(), 0);
        assert_eq!(u64::from(self.port.census().out), self.counters.held.value());
        [self.port.take_transmitted(), self.port.take_passed()]
    }

    /// Lets time pass for this worker.
    pub(crate) fn advance(&mut self, by: Duration) {
        self.now = self.now + by;
        self.expire();
    }

    /// Parks, as a worker does before it sleeps.
    pub(crate) fn park(&mut self) {
        self.pipeline.flows.table().park();
    }

    /// Leaves the table, as a worker does when it ends.
    pub(crate) fn leave(&mut self) {
        self.pipeline.flows.leave();
    }

    /// Inserts a half-open `cache_bypass` connection, which no destination counts. `false` if there is no room.
    pub(crate) fn bypass(&mut self, flow: &Flow) -> bool {
        let FlowKey { protocol, source, dest } = flow.key();
        let inserted = self.pipeline.flows.table().insert(&NewConnection {
            protocol,
            client: source,
            virtual_endpoint: dest,
            dest: Endpoint::new(Ipv4Addr::UNSPECIFIED, 0),
            local: None,
            method: ForwardingMethod::DirectRouting,
            flags: Flags::NONE,
            state: TcpState::SynRecv as u8,
            expires: self.now + Duration::from_secs(60),
            spare: Spare::NONE,
            dest_ref: u32::MAX,
            mark: 7,
            controller: None,
        });
        matches!(inserted, Inserted::New(_))
    }

    fn expire(&mut self) {
        while self.pipeline.flows.expire(&self.snapshot, self.now) == Timers::Behind {
            self.pipeline.flows.quiescent();
        }
        self.pipeline.flows.quiescent();
    }
}

/// All workers, and their shared state.
pub(crate) struct Workers {
    table: Arc<Table>,
    reader: TableReader,
    snapshot: Arc<Snapshot>,
    workers: Vec<Worker>,
}

impl Workers {
    pub(crate) fn new(capacity: usize, count: usize) -> Self {
        let table = Table::create(TableConfig { capacity, workers: count, memory: Memory::OnDemand });
        let table = table.expect("a small table");
        let snapshot = Arc::new(snapshot(count));
        let total = SharedStats::new(count);
        let handoff = Arc::new(Handoff::new(count));
        let worker = |number| {
            let counters = Arc::new(WorkerCounters::default());
            let handle = table.handle(number).expect("a handle for each worker");
            let unresolved = Arc::new(Unresolved::new(1));
            let ids = |half| Identification::numbered(*table.secret(), 2 * number + half);
            let mut port = MemoryPort::with_links(2);
            if number == 1 {
                // Its packets are in several buffers, of which the first has some of the headers.
                port.set_first_part(|_| 44);
            }
            let flows = Flows::new(number, handle, counters.clone(), total.clone(), ids(0));
            Worker {
                pipeline: Pipeline::new(
                    flows,
                    Transmitter::new(counters.clone(), unresolved, ids(1)),
                    Reassembly::new(number, handoff.clone(), *table.secret()),
                ),
                port,
                counters,
                snapshot: snapshot.clone(),
                now: Millis(0),
            }
        };
        let workers = (0..count).map(worker).collect();
        let reader = table.reader().expect("a handle for a reader");
        Self { table, reader, snapshot, workers }
    }

    pub(crate) fn worker(&mut self, number: usize) -> &mut Worker {
        &mut self.workers[number]
    }

    pub(crate) fn workers(&mut self) -> &mut [Worker] {
        &mut self.workers
    }

    pub(crate) fn table(&self) -> &Table {
        &self.table
    }

    /// Sets the clock of all workers and processes their timers.
    pub(crate) fn set_clock(&mut self, now: u64) {
        self.set_clock_without_timers(now);
        for worker in &mut self.workers {
            worker.pipeline.flows.table().unpark();
            worker.expire();
        }
    }

    pub(crate) fn set_clock_without_timers(&mut self, now: u64) {
        self.workers.iter_mut().for_each(|worker| worker.now = Millis(now));
    }

    /// Captures all packets from now on.
    pub(crate) fn capture(&mut self) -> Reader {
        let (capture, reader) = Capture::new(Filter::default(), self.workers.len(), 512, 4096);
        let snapshot = Snapshot { captures: [capture].into(), ..Snapshot::clone(&self.snapshot) };
        let snapshot = Arc::new(snapshot);
        self.workers.iter_mut().for_each(|worker| worker.snapshot = snapshot.clone());
        reader
    }

    /// Lets another director announce these flows, to the TCP service by NAT, to the first worker as established.
    pub(crate) fn tell(&mut self, trust: Trust, flows: impl Iterator<Item = Flow>) {
        let inbox = Arc::new(Inbox::new(1, trust));
        let backup = SyncBackup { packets: 3, inbox: inbox.clone() };
        let snapshot =
            Arc::new(Snapshot { sync_backup: Some(Arc::new(backup)), ..Snapshot::clone(&self.snapshot) });
        let service =
            self.snapshot.services.find(&service_key(VIP.into(), SERVICES[1].0)).expect("it is there");
        let server = self.snapshot.destinations.find(service.members[0].id).expect("it is there");
        let Worker { pipeline, now, .. } = &mut self.workers[0];
        for flow in flows {
            let FlowKey { protocol, source, dest } = flow.key();
            let entry = Entry {
                protocol,
                flags: method::MASQUERADING,
                state: TcpState::Established as u8,
                client: source,
                virtual_endpoint: dest,
                dest: server.endpoint,
                mark: 0,
                timeout_seconds: 900,
                remaining_millis: None,
                call_id: None,
                local: None,
                client_address: None,
                reply_shift: None,
                numbers: None,
            };
            assert_eq!(inbox.put(Received::of(&entry), 0), Some(0));
            pipeline.flows.receive_synchronized(&snapshot, *now);
            pipeline.flows.quiescent();
        }
        self.workers.iter_mut().for_each(|worker| worker.snapshot = snapshot.clone());
    }

    /// Removes the servers that have a bit in `gone` from the configuration of all workers.
    pub(crate) fn take_away(&mut self, gone: u8) {
        let mut snapshot = Snapshot::clone(&self.snapshot);
        snapshot.settings.expire_nodest_conn = gone & 1 == 1;
        for (service, (name, ..)) in SERVICES.iter().enumerate() {
            let key = service_key(VIP.into(), *name);
            let full = self.snapshot.services.find(&key).expect("it was configured");
            let there = |id: DestinationId| gone >> (id.0 % u32::from(SERVERS)) & 1 == 0;
            let members: Box<[_]> = full.members.iter().filter(|member| there(member.id)).cloned().collect();
            let service = named(key, SERVICES[service].2, members, full.live.clone());
            snapshot.services.insert(Arc::new(service));
            for id in full.members.iter().map(|member| member.id) {
                let known = snapshot.destinations.find(id).expect("a member is known").clone();
                snapshot.destinations.set(id, Some(Destination { available: there(id), ..known }));
            }
        }
        let snapshot = Arc::new(snapshot);
        self.workers.iter_mut().for_each(|worker| worker.snapshot = snapshot.clone());
    }

    /// Lets the TCP service by NAT answer each SYN with a cookie.
    pub(crate) fn set_syn_proxy(&mut self) {
        let mut snapshot = Snapshot::clone(&self.snapshot);
        let key = service_key(VIP.into(), SERVICES[1].0);
        let plain = self.snapshot.services.find(&key).expect("it was configured");
        let service = named(key, SERVICES[1].2, plain.members.clone(), plain.live.clone());
        snapshot.services.insert(Arc::new(Service { syn_proxy: SynProxy::On, ..service }));
        let snapshot = Arc::new(snapshot);
        self.workers.iter_mut().for_each(|worker| worker.snapshot = snapshot.clone());
    }

    /// The destinations of all services.
    pub(crate) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.snapshot.destinations.iter()
    }

    /// The sum of a counter over the workers.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let all = self.workers.iter().flat_map(|worker| worker.counters.all());
        all.filter(|(of, _)| of == name).map(|(_, value)| value).sum()
    }

    /// The state of a flow's connection, if it has one.
    pub(crate) fn state(&mut self, flow: &Flow) -> Option<u8> {
        let table = self.workers[0].pipeline.flows.table();
        let (id, direction) = table.find(&flow.key(), table.hash(&flow.key()))?;
        assert_eq!(direction, Direction::Inbound);
        Some(table.connection(id).state())
    }

    /// Asserts that every destination and every template counts what the table contains, and that all templates have
    /// different identities.
    pub(crate) fn assert_counts(&mut self) {
        let mut held = vec![(Load { active: 0, inactive: 0 }, 0); self.snapshot.destinations.iter().count()];
        let (mut identities, mut controlled) = (HashSet::new(), HashMap::new());
        self.reader.for_each(0..u32::MAX, |connection| {
            let (load, templates) = &mut held[connection.dest_ref() as usize];
            if let Some(controller) = connection.controller() {
                *controlled.entry(controller).or_insert(0) += 1;
            }
            if connection.is_template() {
                let identity = (connection.protocol(), connection.client(), connection.virtual_endpoint());
                assert!(connection.is_detached() || identities.insert(identity), "{identity:?} has two");
                *templates += 1;
                return;
            }
            let tcp = connection.protocol() == Protocol::TCP;
            match tcp && TcpState::of(connection.state()).is_active() {
                true => load.active += 1,
                false => load.inactive += 1,
            }
        });
        self.reader.for_each(0..u32::MAX, |connection| {
            assert_eq!(connection.controlled(), controlled.remove(&connection.id()).unwrap_or(0));
        });
        assert_eq!(controlled.len(), 0, "a connection's template was removed before it");
        let counted: Vec<_> =
            self.snapshot.destinations.iter().map(|dest| (dest.live.load(), dest.live.templates())).collect();
        assert_eq!(counted, held);
        let sum: u32 = held.iter().map(|(load, templates)| load.active + load.inactive + templates).sum();
        assert_eq!(self.table.live(), sum as usize);
    }

    /// Asserts that nothing is left when all timeouts are over, and that no count is negative, which would be shown as
    /// zero.
    pub(crate) fn assert_ends_empty(&mut self) {
        // A template ends after its connections.
        [100_000_000, 200_000_000].into_iter().for_each(|now| self.set_clock(now));
        assert_eq!(self.table.live(), 0);
        for destination in self.snapshot.destinations.iter() {
            destination.live.increment(Activity::Active);
            destination.live.increment(Activity::Inactive);
            destination.live.increment(Activity::Template);
            let load = destination.live.load();
            assert_eq!((load, destination.live.templates()), (Load { active: 1, inactive: 1 }, 1));
        }
    }
}

/// Random numbers, the same for the same seed: splitmix64 (Steele, Lea, Flood 2014).
pub(crate) fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }
}

fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 11 + number)
}

fn server6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 11 + u16::from(number))
}

fn snapshot(workers: usize) -> Snapshot {
    let mut snapshot = Snapshot {
        egress: Arc::new(Egress::build(&network())),
        call_ids: Arc::new(CallIds::new(CALLS, workers)),
        ..Snapshot::default()
    };
    let all = SERVICES.map(|service| (IpAddr::from(VIP), service)).into_iter();
    for (vip, (name, method, seconds)) in all.chain(SERVICES6.map(|service| (VIP6.into(), service))) {
        let port = name.1;
        let server =
            |number| if vip.is_ipv4() { IpAddr::from(server(number)) } else { server6(number).into() };
        let service = Arc::<ServiceLive>::default();
        let first = snapshot.destinations.iter().count() as u32;
        let members = (0..SERVERS).map(|number| {
            let id = DestinationId(first + u32::from(number));
            let live = Arc::new(DestinationLive::new(workers));
            let destination = Destination {
                available: true,
                key: service_key(vip, name),
                endpoint: Endpoint::new(server(number), port),
                method,
                weight: Weight(1),
                path: Path::find(&snapshot.egress, server(number), 0),
                path_mtu: Arc::default(),
                in_vrfs: Arc::default(),
                tunnel: Tunnel {
                    source: snapshot.egress.source_for(server(number), LinkId(1)),
                    encapsulation: Encapsulation::Ip,
                },
                live: live.clone(),
                service: service.clone(),
            };
            snapshot.destinations.set(id, Some(destination));
            let (endpoint, weight) = (Endpoint::new(server(number), port), Weight(1));
            Member { id, endpoint, method, weight, own_weight: weight, slow_start: None, live }
        });
        let members = members.collect();
        snapshot.services.insert(Arc::new(named(service_key(vip, name), seconds, members, service)));
    }
    snapshot
}

fn service_key(vip: IpAddr, (protocol, port): (Protocol, u16)) -> ServiceKey {
    ServiceKey::Address { protocol, endpoint: Endpoint::new(vip, port) }
}

fn named(key: ServiceKey, seconds: Option<u32>, members: Box<[Member]>, live: Arc<ServiceLive>) -> Service {
    let listed = |&Member { endpoint, weight, .. }: &Member| xvs_sched::Destination {
        endpoint,
        weight,
        last_weight: weight,
    };
    let destinations: Vec<_> = members.iter().map(listed).collect();
    let setup = Setup { destinations: &destinations, ..Setup::default() };
    let mask = ClientMask::V4(Ipv4Addr::new(255, 255, 255, 0));
    let port = if let ServiceKey::Address { endpoint, .. } = key { endpoint.port } else { 0 };
    let scope =
        if matches!(port, SIP | SIP_ONE_PACKET) { PersistenceScope::Call } else { PersistenceScope::Client };
    let persistent = |timeout_seconds| Persistence { timeout_seconds, mask, scope };
    Service {
        key,
        rule: "".into(),
        is_starting: false,
        members,
        scheduler: scheduler::build("rr", &setup).expect("rr is a scheduler"),
        one_packet: port == SIP_ONE_PACKET,
        client_address: Default::default(),
        client_limit: None,
        syn_proxy: Default::default(),
        persistence: seconds.map(persistent),
        quic: None,
        place: Arc::default(),
        live,
    }
}

fn network() -> Network {
    let mut network = Network::default();
    let addr = |d| IpAddr::V4(Ipv4Addr::new(203, 0, 113, d));
    let addr6 = |net, last| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, last));
    let wan = [(addr(1), 24), (addr6(3, 1), 64)];
    network.add_link("wan", MacAddr([2, 0, 0, 0, 0, 1]), &wan, 1500).expect("a new name");
    let lan = [(Ipv4Addr::new(192, 0, 2, 1).into(), 24), (addr6(2, 1), 64)];
    network.add_link("lan", MacAddr([2, 0, 0, 0, 0, 2]), &lan, 1500).expect("a new name");
    for (everywhere, router) in [("0.0.0.0/0", addr(254)), ("::/0", addr6(3, 254))] {
        let everywhere = everywhere.parse().expect("a prefix");
        network.add_route(everywhere, Some(router), "wan").expect("wan is there");
        network.add_neighbour(router, MacAddr([2, 0, 0, 0, 0, 3]), "wan").expect("wan is there");
    }
    for number in 0..SERVERS {
        let mac = MacAddr([2, 0, 0, 0, 1, number]);
        network.add_neighbour(server(number).into(), mac, "lan").expect("lan is there");
        network.add_neighbour(server6(number).into(), mac, "lan").expect("lan is there");
    }
    network
}
