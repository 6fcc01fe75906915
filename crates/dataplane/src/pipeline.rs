//! Every stage that a packet may meet, in order. No other file knows this order.
//!
//! Runs on a worker for every burst. Allocates nothing, waits for nothing, and leaves each frame in exactly one place.
//! [`process`] is the path of one packet from its look-up to its verdict; what it calls from `slow_path` returns at once for
//! packets that it does not concern.

use xvs_proto::LinkId;
use xvs_proto::{Family, Packet};
use xvs_xdp::Frame;

use crate::burst::classify::Class;
use crate::burst::dispatch::Ending;
use crate::burst::flows::Flows;
use crate::burst::lookup::{self, Found};
use crate::burst::transmit::Outcome;
use crate::burst::{Burst, Context, Step, forward, state};
use crate::capture::watched::{Watch, Watched};
use crate::clock::Millis;
use crate::conn::{ConnId, Direction};
use crate::egress::Path;
use crate::forward::{Ends, decrement_ttl, is_refused};
use crate::new_connection::insert::{self, Begun};
use crate::new_connection::service::{self, Marked};
use crate::new_connection::{bypass, persistence, schedule};
use crate::port::Port;
use crate::port::tagged::Tagged;
use crate::slow_path::reassembly::Fragments;
use crate::slow_path::{bypass as no_destination, client_address, mss, reset};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// A worker's stages with what they remember from burst to burst.
pub struct Pipeline {
    /// The connections.
    pub flows: Flows,
    /// Where frames go, and what is counted of them.
    pub outcome: Outcome,
    /// Fragments that wait.
    pub fragments: Fragments,
    burst: Burst,
}

impl Pipeline {
    /// Stages of one worker.
    pub fn new(flows: Flows, outcome: Outcome, fragments: Fragments) -> Self {
        Self { flows, outcome, fragments, burst: Burst::new() }
    }

    /// Takes a burst from the port through all stages. Returns how many frames it was. [`Flows::quiescent`] is due when
    /// the snapshot has been left.
    pub fn run(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) -> usize {
        let (at, mut port) = (Context { snapshot, now }, Tagged::new(port, &snapshot.egress));
        if snapshot.captures.is_empty() {
            return self.stages(at, &mut port);
        }
        let worker = self.flows.worker();
        self.stages(at, &mut Watched::new(&mut port, snapshot, worker))
    }

    fn stages(&mut self, at: Context<'_>, port: &mut impl Watch) -> usize {
        let Self { flows, outcome, fragments, burst } = self;
        let copies = burst.receive(fragments, port);
        port.arrived(burst.frames(), copies, flows);
        let frames = burst.frames().len();
        outcome.begin(frames - copies, copies);
        burst.classify(flows, at.snapshot);
        burst.prefetch(flows);
        burst.decide(|frame, link, packet, hash| process(flows, frame, link, packet, hash, at));
        let mut ending = Ending { fragments, flows, outcome, at };
        ending.give_up(port);
        for (received, Step { class, hash, verdict }) in burst.drain() {
            match class {
                Class::Decided(verdict) => ending.decided(received, *verdict, port),
                Class::Flow(packet) => ending.packet(received, packet, *hash, *verdict, port),
                Class::Fragment(packet) => ending.fragment(received, packet, process, port),
                Class::Error(packet) => ending.error(received, packet, connect, port),
            }
        }
        ending.reset(port);
        port.flush();
        port.ended(flows);
        frames
    }
}

/// A packet, whole: look-up, then what its connection is for.
fn process(
    flows: &mut Flows,
    frame: &mut Frame,
    link: LinkId,
    packet: &Packet,
    hash: u64,
    at: Context<'_>,
) -> Verdict {
    match lookup::find(flows, packet, hash, at) {
        Found::Request(id) => request(flows, frame, packet, id, at),
        Found::Reply(id) => reply(flows, frame, packet, id, hash, at),
        Found::Nothing => begin(flows, frame, link, packet, at),
        Found::NoDestination(id) => {
            reset::apply(&mut flows.resets, frame, packet, &flows.table.connection(id));
            Verdict::Drop(DropReason::DestinationUnavailable)
        }
        Found::Kernel => Verdict::PassToKernel,
    }
}

/// A packet of no connection: its mark and service, a new connection, and then it is that one's first packet.
fn begin(flows: &mut Flows, frame: &mut Frame, link: LinkId, packet: &Packet, at: Context<'_>) -> Verdict {
    let begun = service::find(packet, link, at.snapshot).and_then(|marked| {
        connect(flows, frame, packet, marked, at)
            .or_else(|verdict| bypass::begin(flows, packet, marked, verdict, at))
    });
    match begun {
        Ok(Begun::Connection(id)) => request(flows, frame, packet, id, at),
        Ok(Begun::OnePacket(ends, id)) => match at.snapshot.destinations.find(id) {
            Some(destination) => {
                flows.count(destination, |stats| stats.count_in(packet.length()));
                forward::request(flows, frame, packet, &ends, destination, at)
            }
            None => Verdict::Drop(DropReason::DestinationUnavailable),
        },
        Err(verdict) => {
            if verdict == Verdict::Drop(DropReason::Unasked) {
                // The kernel's forwarding has taken one off when IPVS tells the sender.
                decrement_ttl(frame, packet);
            }
            verdict
        }
    }
}

/// A new connection of a service: defence, persistence or scheduling, insertion (which evicts when the table is full).
fn connect<'s>(
    flows: &mut Flows,
    frame: &Frame,
    packet: &Packet,
    marked: Marked<'s>,
    at: Context<'s>,
) -> Result<Begun, Verdict> {
    flows.defence.admit(at.snapshot.settings.drop_packet_rate)?;
    service::refuse_ftp_data(packet, at.snapshot)?;
    let request = schedule::request(packet, at.now, flows.dice.draw());
    let chosen = match &marked.service.persistence {
        None => schedule::choose(packet, marked.service, &request),
        Some(kept) => persistence::choose(flows, frame, packet, marked.service, kept, &request, at),
    };
    insert::enter(flows, packet, chosen?, marked, at)
}

/// A client's packet of a connection: counted, its state advanced, and sent to the destination.
fn request(flows: &mut Flows, frame: &mut Frame, packet: &Packet, id: ConnId, at: Context<'_>) -> Verdict {
    let connection = flows.table.connection(id);
    let Some(destination) = at.snapshot.destinations.available_for(&connection) else {
        return no_destination::request(flows, frame, packet, id, at);
    };
    let ends = Ends::of(&connection);
    connection.count_in_packet();
    flows.count(destination, |stats| stats.count_in(packet.length()));
    let packet = reset::apply(&mut flows.resets, frame, packet, &connection);
    state::advance(flows, id, &packet, Direction::Inbound, Some(&destination.live), at);
    mss::clamp_request(frame, &packet, &ends, destination, at);
    let connection = flows.table.connection(id);
    let packet = client_address::add(frame, &packet, &connection, destination, at.now, &flows.counters);
    forward::request(flows, frame, &packet, &ends, destination, at)
}

/// A packet to the client of a connection: sent, and then counted and its state advanced, unless a router would refuse it.
fn reply(
    flows: &mut Flows,
    frame: &mut Frame,
    packet: &Packet,
    id: ConnId,
    hash: u64,
    at: Context<'_>,
) -> Verdict {
    let connection = flows.table.connection(id);
    if !connection.method().masquerades() && packet.family() == Family::V4 {
        // From the virtual address itself: the kernel refuses that from the wire in IPv4, and routes it in IPv6.
        return Verdict::PassToKernel;
    }
    let (ends, destination) = (Ends::of(&connection), at.snapshot.destinations.of(&connection));
    let packet = reset::apply(&mut flows.resets, frame, packet, &connection);
    let path = Path::find(&at.snapshot.egress, ends.client.addr, hash);
    mss::clamp_reply(frame, &packet, &ends, destination, path, at);
    client_address::remove(frame, &packet, &connection);
    let verdict = forward::reply(flows, frame, &packet, &ends, path);
    if let Some(destination) = destination.filter(|_| !is_refused(verdict)) {
        if destination.available {
            flows.count(destination, |stats| stats.count_out(packet.length()));
        }
        state::advance(flows, id, &packet, Direction::Outbound, Some(&destination.live), at);
    }
    verdict
}
