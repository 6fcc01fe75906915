//! Workers without a kernel: UDP or TCP services, real servers, any number of clients, with every method and family.
//!
//! For the benches and for `tests/worker/allocation.rs`. The worker is the data plane's; only its port is defined here,
//! because `MemoryPort` keeps a copy of every frame. [`Loop`] writes each packet into a frame of its pool and takes the
//! sent frame back, so the pipeline alone is measured. Promise: all packets of a flow are equal; nothing here allocates
//! after [`worker`]. Cost: the port, which the benches measure alone to subtract it.

pub(crate) mod floor;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xvs_dataplane::burst::Context;
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::{Table, TableConfig};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::egress::{Egress, Path, Unresolved};
use xvs_dataplane::forward::Identification;
use xvs_dataplane::general_path::fragmentation::Fragmentation;
use xvs_dataplane::general_path::reassembly::Reassembly;
use xvs_dataplane::general_path::reassembly::handoff::Handoff;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::memory::MemoryPort;
use xvs_dataplane::port::{Port, Received, Woken};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_dataplane::snapshot::{
    Destination, DestinationId, DestinationLive, Encapsulation, Member, Service, ServiceLive, Snapshot,
    Tunnel,
};
use xvs_dataplane::worker::Worker;
use xvs_proto::LinkId;
use xvs_proto::checksum::Coverage;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6::{self, Ipv6};
use xvs_proto::network::Network;
use xvs_proto::{Endpoint, Family, FlowKey, HashSecret, MacAddr, Protocol, ethernet, udp};
use xvs_sched::scheduler::{self, Setup};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};
use xvs_xdp::{BURST, Census, Frame, FrameLayout, FramePool};

/// The virtual endpoint, in IPv4.
const VIRTUAL: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 100), 53);
/// The link of the clients' packets.
pub(crate) const WAN: LinkId = LinkId(0);
/// The link of the servers' replies.
pub(crate) const LAN: LinkId = LinkId(1);

const WAN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const LAN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const ROUTER: (Ipv4Addr, MacAddr) = (Ipv4Addr::new(198, 51, 100, 254), MacAddr([2, 0, 0, 0, 1, 0]));
pub(crate) const SERVERS: u8 = 8;
/// Length of a UDP datagram with its header: over IPv4 an Ethernet frame of 64 bytes, frame check sequence included.
const DATAGRAM_BYTES: usize = 26;

/// A forwarding method with its encapsulation, the address family, the protocol and the number of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variant {
    pub(crate) method: ForwardingMethod,
    /// In a tunnel.
    pub(crate) encapsulation: Encapsulation,
    /// The family of all addresses.
    pub(crate) family: Family,
    /// Whether real servers and local addresses are of the other family (FULLNAT).
    pub(crate) translated: bool,
    /// UDP or TCP.
    pub(crate) protocol: Protocol,
    /// The services, at one address; flow n belongs to number n modulo this.
    pub(crate) services: u16,
    /// The real servers of an only service.
    pub(crate) servers: u8,
}

impl Variant {
    /// Every method that sends packets, in both families.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        use ForwardingMethod::{DirectRouting, FullNat, Nat, Tunnel};
        let plain = [DirectRouting, Nat, FullNat].map(Self::from);
        let gue = Encapsulation::Gue { port: 6080, coverage: Coverage::None };
        let tunnels = [Encapsulation::Ip, Encapsulation::Gre(Coverage::None), gue];
        let tunnels = tunnels.map(|encapsulation| Self { encapsulation, ..Self::from(Tunnel) });
        let of = |family| move |variant| Self { family, ..variant };
        let ways = plain.into_iter().chain(tunnels);
        let translated =
            [Family::V4, Family::V6].map(|family| Self { family, translated: true, ..FullNat.into() });
        ways.clone().map(of(Family::V4)).chain(ways.map(of(Family::V6))).chain(translated)
    }

    /// The same with the family of real servers.
    fn inside(self) -> Self {
        match (self.translated, self.family) {
            (false, _) => self,
            (true, Family::V4) => Self { family: Family::V6, ..self },
            (true, Family::V6) => Self { family: Family::V4, ..self },
        }
    }

    /// One of the benches' addresses, which are alike in both families.
    fn addr(self, v4: Ipv4Addr) -> IpAddr {
        match self.family {
            Family::V4 => v4.into(),
            Family::V6 => Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(v4.to_bits())).into(),
        }
    }

    /// The prefix length of a network that has the prefix length `v4` in IPv4.
    fn prefix_len(self, v4: u8) -> u8 {
        if self.family == Family::V4 { v4 } else { 96 + v4 }
    }

    pub(crate) fn server(self, number: u8, service: u16) -> Endpoint {
        Endpoint::new(self.inside().addr(Ipv4Addr::new(192, 0, 2, 11 + number)), VIRTUAL.1 + service)
    }

    /// The number of real servers of each service.
    fn servers(self) -> u8 {
        if self.services == 1 { self.servers } else { 5 }
    }

    /// The virtual port of a flow's service.
    fn port(self, flow: u32) -> u16 {
        VIRTUAL.1 + (flow % u32::from(self.services)) as u16
    }

    /// The client's end of a flow.
    pub(crate) fn client(self, flow: u32) -> Endpoint {
        let addr = Ipv4Addr::from(0x0a00_0000 + (flow >> 14));
        Endpoint::new(self.addr(addr), 1024 + (flow & 0x3fff) as u16)
    }

    /// The key of a flow's requests.
    pub(crate) fn flow_key(self, flow: u32) -> FlowKey {
        let dest = Endpoint::new(self.addr(VIRTUAL.0), self.port(flow));
        FlowKey { protocol: self.protocol, source: self.client(flow), dest }
    }
}

impl From<ForwardingMethod> for Variant {
    fn from(method: ForwardingMethod) -> Self {
        let (family, protocol) = (Family::V4, Protocol::UDP);
        Self {
            method,
            encapsulation: Encapsulation::Ip,
            family,
            translated: false,
            protocol,
            services: 1,
            servers: SERVERS,
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.method, self.encapsulation) {
            (ForwardingMethod::DirectRouting, _) => "DR",
            (ForwardingMethod::Nat, _) => "NAT",
            (ForwardingMethod::FullNat, _) => "FULLNAT",
            (ForwardingMethod::Local, _) => "local",
            (ForwardingMethod::Tunnel, Encapsulation::Ip) => "IPIP",
            (ForwardingMethod::Tunnel, Encapsulation::Gre(_)) => "GRE",
            (ForwardingMethod::Tunnel, Encapsulation::Gue { .. }) => "GUE",
        })?;
        f.write_str(if self.family == Family::V6 { " IPv6" } else { "" })?;
        f.write_str(match (self.translated, self.family) {
            (false, _) => "",
            (true, Family::V4) => " to IPv6",
            (true, Family::V6) => " to IPv4",
        })?;
        f.write_str(if self.protocol == Protocol::TCP { " TCP" } else { "" })?;
        f.write_str(if self.servers == 1 { ", one real server" } else { "" })?;
        if self.services > 1 { write!(f, ", {} services", self.services) } else { Ok(()) }
    }
}

/// The kind of packets: a client's requests, or a real server's replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the client to the virtual endpoint.
    Requests,
    /// From the real server that `rr` gave the client, if the flows began in their order.
    Replies,
    /// Requests, each in two fragments that arrive in order.
    Fragments,
    /// First packets of clients: a SYN over TCP.
    First,
}

/// The order in which flows send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other, from the first.
    Turns,
    /// Random, with equal probability.
    Drawn,
    /// The flows of [`Loop::list`], from the last on.
    Listed,
}

/// Makes the only worker of a director with this method, a table for `connections`, a clock that is moved by hand, and
/// a port without packets.
///
/// # Panics
/// If the machine has no memory for the table.
pub(crate) fn worker(variant: impl Into<Variant>, connections: usize, memory: Memory) -> Worker<Loop> {
    workers(variant.into(), connections, memory, 1).remove(0)
}

/// The same with several workers. All but the first are parked.
pub(crate) fn workers(
    variant: Variant,
    connections: usize,
    memory: Memory,
    count: usize,
) -> Vec<Worker<Loop>> {
    let table = Table::create(TableConfig { capacity: connections, workers: count, memory })
        .expect("memory for the table");
    let total = SharedStats::new(count);
    let handoff = Arc::new(Handoff::new(count));
    let snapshot = Arc::new(Arc::new(snapshot(variant, count)).into());
    let clock = Arc::new(Clock::by_hand());
    let worker = |number| {
        let mut handle = table.handle(number).expect("a handle for each worker");
        if number > 0 {
            handle.park();
        }
        let counters = Arc::new(WorkerCounters::default());
        let unresolved = Arc::new(Unresolved::new(1));
        let ids = |half| Identification::numbered(*table.secret(), 2 * number + half);
        let flows = Flows::new(number, handle, counters.clone(), total.clone(), ids(0));
        let reassembly = Reassembly::new(number, handoff.clone(), *table.secret());
        let stop = Arc::new(AtomicBool::new(false));
        Worker {
            pipeline: Pipeline::new(flows, Transmitter::new(counters, unresolved, ids(1)), reassembly),
            port: Loop::new(variant, stop.clone()),
            snapshot: Arc::clone(&snapshot),
            clock: clock.clone(),
            hold: None,
            stop,
        }
    };
    (0..count).map(worker).collect()
}

/// Processes all offered packets, as [`Worker::run`] does, but without sleep, and loads the snapshot only once.
pub(crate) fn forward(worker: &mut Worker<Loop>) {
    let Worker { pipeline, port, snapshot, clock, .. } = worker;
    let snapshot = snapshot.load();
    while port.is_open() {
        let cx = Context::at(&snapshot, clock.elapsed());
        pipeline.flows.expire(&snapshot, cx.now);
        pipeline.run(cx, port);
        pipeline.flows.quiescent();
    }
}

fn snapshot(variant: Variant, workers: usize) -> Snapshot {
    let mut snapshot = Snapshot { egress: Arc::new(Egress::build(&network(variant))), ..Snapshot::default() };
    // More ports than any bench has connections.
    let inside = variant.inside();
    let locals = (1..=8).map(|last| (inside.addr(Ipv4Addr::new(192, 0, 2, 100 + last)), 1024..=u16::MAX));
    snapshot.locals = Arc::new(LocalAddresses::new(locals, []));
    for number in 0..variant.services {
        add_service(&mut snapshot, variant, number, workers);
    }
    snapshot
}

fn add_service(snapshot: &mut Snapshot, variant: Variant, number: u16, workers: usize) {
    let Variant { method, encapsulation, .. } = variant;
    let service = Arc::<ServiceLive>::default();
    let first = u32::from(number) * u32::from(variant.servers());
    let FlowKey { protocol, dest, .. } = variant.flow_key(number.into());
    let key = if protocol == Protocol::TCP { ServiceKey::tcp(dest) } else { ServiceKey::udp(dest) };
    let members = (0..variant.servers()).map(|server| {
        let id = DestinationId(first + u32::from(server));
        let live = Arc::new(DestinationLive::new(workers));
        let endpoint = variant.server(server, number);
        let destination = Destination {
            available: true,
            key,
            endpoint,
            method,
            weight: Weight(1),
            path: Path::find(&snapshot.egress, endpoint.addr, 0),
            path_mtu: Arc::default(),
            in_vrfs: Arc::default(),
            tunnel: Tunnel { source: snapshot.egress.source_for(endpoint.addr, LAN), encapsulation },
            live: live.clone(),
            service: service.clone(),
        };
        snapshot.destinations.set(id, Some(destination));
        let weight = Weight(1);
        Member { id, endpoint, method, weight, own_weight: weight, slow_start: None, live }
    });
    let members: Box<[_]> = members.collect();
    let destinations: Vec<_> = members
        .iter()
        .map(|&Member { endpoint, weight, .. }| xvs_sched::Destination {
            endpoint,
            weight,
            last_weight: weight,
        })
        .collect();
    let setup = Setup { destinations: &destinations, ..Setup::default() };
    snapshot.services.insert(Arc::new(Service {
        key,
        rule: "".into(),
        is_starting: false,
        members,
        scheduler: scheduler::build("rr", &setup).expect("rr is a scheduler"),
        one_packet: false,
        client_address: Default::default(),
        client_limit: None,
        syn_proxy: Default::default(),
        persistence: None,
        quic: None,
        place: Arc::default(),
        live: service,
    }));
}

fn network(variant: Variant) -> Network {
    let mut network = Network::default();
    let addr = |v4: [u8; 4], len| (variant.addr(v4.into()), variant.prefix_len(len));
    let wan = [addr([198, 51, 100, 1], 24), addr(VIRTUAL.0.octets(), 32)];
    network.add_link("wan", WAN_MAC, &wan, 1500).expect("a new name");
    let inside = variant.inside();
    let lan = (inside.addr([192, 0, 2, 1].into()), inside.prefix_len(24));
    network.add_link("lan", LAN_MAC, &[lan], 1500).expect("a new name");
    let (router, everywhere) =
        (variant.addr(ROUTER.0), if variant.family == Family::V4 { "0.0.0.0/0" } else { "::/0" });
    network.add_route(everywhere.parse().expect("a prefix"), Some(router), "wan").expect("wan is there");
    network.add_neighbour(router, ROUTER.1, "wan").expect("wan is there");
    for number in 0..SERVERS {
        let mac = MacAddr([2, 0, 0, 0, 2, number]);
        network.add_neighbour(variant.server(number, 0).addr, mac, "lan").expect("lan is there");
    }
    // Of effect only for a worker with an offload.
    network.links.iter_mut().for_each(|link| (link.offloads, link.takes_redirected) = (true, true));
    network
}

/// Indexes of fragments among a port's templates.
const FIRST: usize = Side::Fragments as usize;
const LAST: usize = Side::First as usize + 1;

/// A function that changes a burst.
pub(crate) type Remake = Box<dyn FnMut(&mut [Received]) + Send>;

/// A port that generates packets and discards what is sent.
pub(crate) struct Loop {
    variant: Variant,
    pool: FramePool,
    /// Templates by [`Side`], and the last fragment.
    templates: [Vec<u8>; 5],
    side: Side,
    /// The flow whose last fragment is still to come.
    pub(crate) begun: Option<u32>,
    order: Order,
    /// The number of the first flow, from which the others are counted.
    pub(crate) first: u32,
    flows: u32,
    /// Packets still to come.
    left: u64,
    turn: u32,
    random: u64,
    listed: Vec<u32>,
    sent: u64,
    stop: Arc<AtomicBool>,
    /// Called for each burst with frames, before the worker receives it.
    pub(crate) received: Option<Remake>,
    /// Called while the worker sleeps.
    pub(crate) sleeps: Option<Box<dyn FnMut() + Send>>,
}

impl Loop {
    fn new(variant: Variant, stop: Arc<AtomicBool>) -> Self {
        let layout = FrameLayout { frame_size_bytes: 2048, headroom_bytes: 256, frames: 2 * BURST as u32 };
        let [requests, replies, fragments, opening] =
            [Side::Requests, Side::Replies, Side::Fragments, Side::First].map(|side| template(variant, side));
        let [first, last] = parts(&fragments);
        Self {
            variant,
            pool: FramePool::in_memory(layout),
            templates: [requests, replies, first, opening, last],
            side: Side::Requests,
            begun: None,
            order: Order::Turns,
            first: 0,
            flows: 1,
            left: 0,
            turn: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            listed: Vec::new(),
            sent: 0,
            stop,
            received: None,
            sleeps: None,
        }
    }

    /// Offers `packets` more packets of this number of flows; the first flow begins.
    pub(crate) fn offer(&mut self, side: Side, order: Order, flows: u32, packets: u64) {
        (self.side, self.order, self.flows, self.left, self.turn) = (side, order, flows, packets, 0);
    }

    /// Offers a packet of each of these flows.
    pub(crate) fn list(&mut self, flows: Vec<u32>) {
        (self.side, self.order, self.left) = (Side::Requests, Order::Listed, flows.len() as u64);
        self.listed = flows;
    }

    /// Whether more packets are to come.
    pub(crate) fn is_open(&self) -> bool {
        self.left > 0
    }

    /// Packets that were sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The number of the next flow.
    pub(crate) fn next_flow(&mut self) -> u32 {
        match self.order {
            Order::Turns => {
                let flow = self.turn;
                self.turn = if flow + 1 == self.flows { 0 } else { flow + 1 };
                flow
            }
            Order::Listed => self.listed.pop().expect("no more is offered than was listed"),
            Order::Drawn => {
                // xorshift64 (Marsaglia, 2003).
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.first + (((self.random >> 32) * u64::from(self.flows)) >> 32) as u32
            }
        }
    }

    fn fill(&mut self, frame: &mut Frame) {
        let (number, flow) = match (self.side, self.begun.take()) {
            (Side::Fragments, Some(flow)) => (LAST, flow),
            (side, _) => (side as usize, self.next_flow()),
        };
        self.begun = (number == FIRST).then_some(flow);
        let template = &self.templates[number];
        let fits = frame.resize(template.len());
        debug_assert!(fits, "a frame holds 2 KiB");
        let bytes = frame.bytes_mut();
        bytes.copy_from_slice(template);
        let client = self.variant.client(flow);
        let network = &mut bytes[ethernet::HEADER_LEN..];
        let server = self.variant.server(flow as u8 % SERVERS, 0);
        match (self.side == Side::Replies, client.addr, server.addr) {
            (false, IpAddr::V4(client), _) => Ipv4::edit(network).set_source(client),
            (false, IpAddr::V6(client), _) => Ipv6::edit(network).set_source(client),
            (true, IpAddr::V4(client), IpAddr::V4(server)) => {
                let mut header = Ipv4::edit(network);
                header.set_source(server);
                header.set_dest(client);
            }
            (true, IpAddr::V6(client), IpAddr::V6(server)) => {
                let mut header = Ipv6::edit(network);
                header.set_source(server);
                header.set_dest(client);
            }
            _ => unreachable!("addresses are of one family"),
        }
        let mut transport = ethernet::HEADER_LEN + network_len(self.variant);
        match number {
            LAST => return,
            FIRST if self.variant.family == Family::V6 => transport += ipv6::FRAGMENT_HEADER_LEN,
            _ => {}
        }
        // TCP has its ports where UDP has them.
        let (own, other) = match self.side {
            Side::Replies => (udp::field::DEST, udp::field::SOURCE),
            _ => (udp::field::SOURCE, udp::field::DEST),
        };
        bytes[transport..][own].copy_from_slice(&client.port.to_be_bytes());
        bytes[transport..][other].copy_from_slice(&self.variant.port(flow).to_be_bytes());
    }
}

fn network_len(variant: Variant) -> usize {
    if variant.family == Family::V4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN }
}

impl Port for Loop {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let link = if self.side == Side::Replies { LAN } else { WAN };
        while burst.len() < BURST && self.left > 0 {
            let mut frame = self.pool.take().expect("more frames than a burst has");
            self.fill(&mut frame);
            self.left -= 1;
            burst.push(Received { link, frame });
        }
        if let (Some(received), false) = (&mut self.received, burst.is_empty()) {
            received(burst);
        }
    }

    fn transmit(&mut self, _: LinkId, frame: Frame) -> Result<(), Frame> {
        self.sent += 1;
        self.pool.put(frame);
        Ok(())
    }

    fn pass_to_kernel(&mut self, _: LinkId, frame: Frame) -> Result<(), Frame> {
        Err(frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn recycle(&mut self, frame: Frame) {
        self.pool.put(frame);
    }

    fn flush(&mut self) {}

    /// No packet will arrive: ends the worker.
    fn wait(&mut self, _: Option<Duration>) -> Woken {
        if let Some(sleeps) = &mut self.sleeps {
            sleeps();
        }
        self.stop.store(true, Ordering::Relaxed);
        Woken::TimedOut
    }

    fn census(&self) -> Census {
        self.pool.census()
    }
}

/// A packet without its client's address. Its UDP checksum is wrong but not 0: the director updates the given one, and
/// would compute one of 0 in full.
fn template(variant: Variant, side: Side) -> Vec<u8> {
    let datagram = if side == Side::Fragments { 2 * DATAGRAM_BYTES } else { DATAGRAM_BYTES };
    let mut bytes = vec![0; ethernet::HEADER_LEN + network_len(variant) + datagram];
    let (to, from) = match side {
        Side::Replies => (LAN_MAC, MacAddr([2, 0, 0, 0, 2, 0])),
        _ => (WAN_MAC, ROUTER.1),
    };
    let (payload_len, protocol, dont_fragment) = (datagram as u16, variant.protocol, side != Side::Fragments);
    let (link, network) = bytes.split_at_mut(ethernet::HEADER_LEN);
    match variant.addr(VIRTUAL.0) {
        IpAddr::V4(dest) => {
            ethernet::emit(link, from, to, ethernet::TYPE_IPV4);
            let (source, tos, id, ttl) = (Ipv4Addr::UNSPECIFIED, 0, 1, 64);
            ipv4::Header { tos, payload_len, id, dont_fragment, ttl, protocol, source, dest }.emit(network);
        }
        IpAddr::V6(dest) => {
            ethernet::emit(link, from, to, ethernet::TYPE_IPV6);
            let (source, traffic_class, hop_limit) = (Ipv6Addr::UNSPECIFIED, 0, 64);
            ipv6::Header { traffic_class, payload_len, next_header: protocol, hop_limit, source, dest }
                .emit(network);
        }
    }
    let segment = &mut network[network_len(variant)..];
    if protocol == Protocol::TCP {
        // RFC 9293 3.1: five words of header; SYN or ACK; a checksum.
        segment[12] = 5 << 4;
        segment[13] = if side == Side::First { 0x02 } else { 0x10 };
        segment[16..18].copy_from_slice(&[0xa5, 0xa5]);
    } else {
        udp::emit(segment, VIRTUAL.1, VIRTUAL.1);
        segment[udp::field::CHECKSUM].copy_from_slice(&[0xa5, 0xa5]);
    }
    bytes
}

/// A packet in two fragments.
fn parts(whole: &[u8]) -> [Vec<u8>; 2] {
    let mut port = MemoryPort::with_links(1);
    let mut ids = Identification::numbered(HashSecret([3, 5, 7]), 0);
    let mut frame = port.allocate_packet(whole.len()).expect("a port of its own");
    frame.write(|at, part| part.copy_from_slice(&whole[at..][..part.len()]));
    let cut =
        Fragmentation::of(&frame, whole.len() - ethernet::HEADER_LEN - 1, &mut ids).expect("there is room");
    [0, 1].map(|number| {
        let piece = cut.copy(&frame, number, &mut port).expect("a port of its own");
        let bytes = piece.bytes().to_vec();
        port.recycle(piece);
        bytes
    })
}
