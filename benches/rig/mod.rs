//! A worker without a kernel: one UDP service, eight real servers, clients as many as asked for.
//!
//! For the benches and for `tests/allocation.rs`. The worker is the data plane's own; only its port is of this file,
//! because `MemoryPort` keeps a copy of every frame. [`Loop`] writes each packet into a frame of its pool and takes
//! the frame back when it leaves, so that what is measured is the pipeline. Promise: a packet of flow N is the same
//! whenever it comes; nothing here allocates after [`worker`]. Cost: the port's own, which the benches measure alone
//! to take it off.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::{Table, TableConfig};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::Egress;
use xvs_dataplane::egress::model::Network;
use xvs_dataplane::exchange::Exchange;
use xvs_dataplane::flow::Flows;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::fragments::Fragments;
use xvs_dataplane::local::LocalAddresses;
use xvs_dataplane::outcome::{Outcome, Unresolved};
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::{BURST, LinkId, Port, Received, Woken};
use xvs_dataplane::shm::{Census, Frame, FrameLayout, FramePool, Memory};
use xvs_dataplane::snapshot::{
    Destination, DestinationId, DestinationLive, Encapsulation, Member, Path, Service, ServiceLive, Snapshot,
    Tunnel,
};
use xvs_dataplane::worker::Worker;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::{Endpoint, MacAddr, Protocol, ethernet, tcp, udp};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight, scheduler, scheduler::Setup};

/// The virtual endpoint.
pub(crate) const VIRTUAL: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 100), 53);
/// Where the clients' packets come in.
pub(crate) const WAN: LinkId = LinkId(0);
/// Where the servers' replies come in.
pub(crate) const LAN: LinkId = LinkId(1);

const WAN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const LAN_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const ROUTER: (Ipv4Addr, MacAddr) = (Ipv4Addr::new(198, 51, 100, 254), MacAddr([2, 0, 0, 0, 1, 0]));
pub(crate) const SERVERS: u8 = 8;
/// A 64-byte Ethernet frame without its check sequence.
const FRAME_BYTES: usize = 60;
/// RFC 768; the ports stand where TCP has them.
const UDP_LENGTH: Range<usize> = 4..6;

/// What a packet is and to whom: those of a client, or a real server's replies to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the client to the virtual endpoint.
    Requests,
    /// From the real server that `rr` gave the client, if the flows began in their order.
    Replies,
}

/// In which order flows send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// One after the other, from the first.
    Turns,
    /// Drawn at random, all alike.
    Drawn,
    /// Those of [`Loop::list`], from the last.
    Listed,
}

/// Makes the worker of a director with this method, a table for `connections`, and a port that has nothing to give
/// yet.
///
/// # Panics
/// If the machine has no memory for the table.
pub(crate) fn worker(
    method: ForwardingMethod,
    connections: usize,
    memory: Memory,
    clock: Clock,
) -> Worker<Loop> {
    let config = TableConfig { capacity: connections, workers: 1, memory };
    let table = Table::create(config).expect("memory for the table");
    let counters = Arc::new(WorkerCounters::default());
    let total = Arc::new(ServiceLive::new(1));
    let seat = table.handle(0).expect("its only worker");
    let unresolved = Arc::new(Unresolved::new(1));
    let ids = |half| Identification::numbered(*table.secret(), half);
    let flows = Flows::new(0, seat, counters.clone(), total, unresolved.clone(), ids(0));
    let fragments = Fragments::new(0, Arc::new(Exchange::new(1)), *table.secret());
    let stop = Arc::new(AtomicBool::new(false));
    Worker {
        pipeline: Pipeline::new(flows, Outcome::new(counters, unresolved, ids(1)), fragments),
        port: Loop::new(stop.clone()),
        snapshot: Arc::new(Arc::new(snapshot(method)).into()),
        clock: Arc::new(clock),
        stop,
    }
}

/// Lets everything that was offered pass: what [`Worker::run`] does, but for the sleep and for loading the snapshot
/// only once.
pub(crate) fn forward(worker: &mut Worker<Loop>) {
    let Worker { pipeline, port, snapshot, clock, .. } = worker;
    let snapshot = snapshot.load();
    while port.is_open() {
        let now = clock.now();
        pipeline.flows().expire(&snapshot, now);
        pipeline.run(&snapshot, port, now);
        pipeline.flows().quiescent();
    }
}

fn snapshot(method: ForwardingMethod) -> Snapshot {
    let mut snapshot = Snapshot::empty();
    snapshot.egress = Arc::new(Egress::build(&network()));
    // More ports than any bench has connections.
    let locals = (1..=8).map(|last| (IpAddr::from([192, 0, 2, 100 + last]), 1024..=u16::MAX));
    snapshot.locals = Arc::new(LocalAddresses::new(locals));
    let service = Arc::new(ServiceLive::new(1));
    let members = (0..SERVERS).map(|number| {
        let id = DestinationId(u32::from(number));
        let live = Arc::new(DestinationLive::new(1));
        let destination = Destination {
            available: true,
            endpoint: Endpoint::new(server(number), VIRTUAL.1),
            method,
            weight: Weight(1),
            path: Path::find(&snapshot.egress, server(number).into(), 0),
            path_mtu: Arc::default(),
            tunnel: Tunnel {
                source: snapshot.egress.source_for(server(number).into(), LAN),
                encapsulation: Encapsulation::Ip,
            },
            live: live.clone(),
            service: service.clone(),
        };
        snapshot.destinations.set(id, Some(destination));
        let (endpoint, weight) = (Endpoint::new(server(number), VIRTUAL.1), Weight(1));
        Member { id, endpoint, method, weight, own_weight: weight, live }
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
        key: ServiceKey::udp(Endpoint::new(VIRTUAL.0, VIRTUAL.1)),
        members,
        scheduler: scheduler::build("rr", &setup).expect("rr is a scheduler"),
        one_packet: false,
        client_address: Default::default(),
        persistence: None,
        place: Arc::default(),
        live: service,
    }));
    snapshot
}

fn network() -> Network {
    let mut network = Network::default();
    let addr = |a, b, c, d| IpAddr::V4(Ipv4Addr::new(a, b, c, d));
    let wan = [(addr(198, 51, 100, 1), 24), (VIRTUAL.0.into(), 32)];
    network.add_link("wan", WAN_MAC, &wan, 1500).expect("a new name");
    network.add_link("lan", LAN_MAC, &[(addr(192, 0, 2, 1), 24)], 1500).expect("a new name");
    let everywhere = "0.0.0.0/0".parse().expect("a prefix");
    network.add_route(everywhere, Some(ROUTER.0.into()), "wan").expect("wan is there");
    network.add_neighbour(ROUTER.0.into(), ROUTER.1, "wan").expect("wan is there");
    for number in 0..SERVERS {
        let mac = MacAddr([2, 0, 0, 0, 2, number]);
        network.add_neighbour(server(number).into(), mac, "lan").expect("lan is there");
    }
    network
}

fn server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 11 + number)
}

/// The client's end of a flow.
pub(crate) fn client(flow: u32) -> (Ipv4Addr, u16) {
    (Ipv4Addr::from(0x0a00_0000 + (flow >> 14)), 1024 + (flow & 0x3fff) as u16)
}

/// A port whose packets come from nowhere and go there.
pub(crate) struct Loop {
    pool: FramePool,
    templates: [[u8; FRAME_BYTES]; 2],
    side: Side,
    order: Order,
    flows: u32,
    /// Packets still to come.
    left: u64,
    turn: u32,
    random: u64,
    listed: Vec<u32>,
    sent: u64,
    stop: Arc<AtomicBool>,
}

impl Loop {
    fn new(stop: Arc<AtomicBool>) -> Self {
        let layout = FrameLayout { frame_size_bytes: 2048, headroom_bytes: 256, frames: 2 * BURST as u32 };
        Self {
            pool: FramePool::in_memory(layout),
            templates: [Side::Requests, Side::Replies].map(template),
            side: Side::Requests,
            order: Order::Turns,
            flows: 1,
            left: 0,
            turn: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            listed: Vec::new(),
            sent: 0,
            stop,
        }
    }

    /// Lets `packets` more come in, of so many flows; the first flow has the first turn.
    pub(crate) fn offer(&mut self, side: Side, order: Order, flows: u32, packets: u64) {
        (self.side, self.order, self.flows, self.left, self.turn) = (side, order, flows, packets, 0);
    }

    /// Lets a packet of each of these flows come in.
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

    /// The number of the flow that has its turn.
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
                (((self.random >> 32) * u64::from(self.flows)) >> 32) as u32
            }
        }
    }

    fn fill(&self, frame: &mut Frame, flow: u32) {
        let fits = frame.resize(FRAME_BYTES);
        debug_assert!(fits, "a frame holds 2 KiB");
        let bytes = frame.bytes_mut();
        let (addr, port) = client(flow);
        bytes.copy_from_slice(&self.templates[self.side as usize]);
        let mut header = Ipv4::edit(&mut bytes[ethernet::HEADER_LEN..]);
        let port_field = match self.side {
            Side::Requests => {
                header.set_source(addr);
                tcp::field::SOURCE
            }
            Side::Replies => {
                header.set_source(server(flow as u8 % SERVERS));
                header.set_dest(addr);
                tcp::field::DEST
            }
        };
        let segment = &mut bytes[ethernet::HEADER_LEN + ipv4::HEADER_LEN..];
        segment[port_field].copy_from_slice(&port.to_be_bytes());
    }
}

impl Port for Loop {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let link = if self.side == Side::Requests { WAN } else { LAN };
        while burst.len() < BURST && self.left > 0 {
            let mut frame = self.pool.take().expect("more frames than a burst has");
            let flow = self.next_flow();
            self.fill(&mut frame, flow);
            self.left -= 1;
            burst.push(Received { link, frame });
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

    /// Nothing will come: ends the worker.
    fn wait(&mut self, _: Option<Duration>) -> Woken {
        self.stop.store(true, Ordering::Relaxed);
        Woken::TimedOut
    }

    fn census(&self) -> Census {
        self.pool.census()
    }
}

/// A packet whose client is still to be written into it. Its UDP checksum is wrong but there: the director updates
/// what it finds, and one of 0 would be computed in full.
fn template(side: Side) -> [u8; FRAME_BYTES] {
    let mut bytes = [0; FRAME_BYTES];
    let (to, from) = match side {
        Side::Requests => (WAN_MAC, ROUTER.1),
        Side::Replies => (LAN_MAC, MacAddr([2, 0, 0, 0, 2, 0])),
    };
    ethernet::emit(&mut bytes, from, to, ethernet::TYPE_IPV4);
    let payload = (FRAME_BYTES - ethernet::HEADER_LEN - ipv4::HEADER_LEN) as u16;
    let header = ipv4::Header {
        tos: 0,
        payload_len: payload,
        id: 1,
        dont_fragment: true,
        ttl: 64,
        protocol: Protocol::UDP,
        source: Ipv4Addr::UNSPECIFIED,
        dest: VIRTUAL.0,
    };
    header.emit(&mut bytes[ethernet::HEADER_LEN..]);
    let segment = &mut bytes[ethernet::HEADER_LEN + ipv4::HEADER_LEN..];
    segment[tcp::field::SOURCE].copy_from_slice(&VIRTUAL.1.to_be_bytes());
    segment[tcp::field::DEST].copy_from_slice(&VIRTUAL.1.to_be_bytes());
    segment[UDP_LENGTH].copy_from_slice(&payload.to_be_bytes());
    segment[udp::field::CHECKSUM].copy_from_slice(&[0xa5, 0xa5]);
    bytes
}
