//! The next state and deadline of a connection, and its destination's count of active connections.
//!
//! Runs once for each packet of a connection. The state changes by compare-and-swap, so exactly one worker makes each
//! change to the counts. A connection that the XDP program forwards is taken back before its state changes here
//! (`conn/offloaded.rs`). `conn/tcp.rs` and `conn/sctp.rs` define the states.

use xvs_proto::{Packet, Plain, Protocol, sctp, tcp::Flags as Control};

use super::context::Context;
use super::deferred::Deferred;
use super::flows::Flows;
use super::handshake::is_beside_its_destination;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::{self, Judgement, TcpState};
use crate::conn::{
    ConnId, Connection, Direction, Flags, Packets, RecordState, Seen, Settled, TableWorker, Then,
};
use crate::new_connection::eviction::is_half_open;
use crate::snapshot::{Activity, Change, Destination, DestinationId, Snapshot};

/// The effect of a packet on the state of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    tcp: Control,
    sctp: Option<sctp::Event>,
}

impl From<&Packet> for Event {
    fn from(packet: &Packet) -> Self {
        Self { tcp: packet.tcp_flags, sctp: packet.sctp_event }
    }
}

impl From<&Plain> for Event {
    fn from(plain: &Plain) -> Self {
        Self { tcp: plain.flags, sctp: None }
    }
}

/// Advances the state and deadline of a connection on a packet, and moves the connection between active and inactive in
/// its destination's counts. The state alone determines whether the connection is active, so the worker that made the
/// transition moves it.
#[inline]
pub(crate) fn advance(
    flows: &mut Flows,
    id: ConnId,
    event: impl Into<Event>,
    direction: Direction,
    destination: Option<&Destination>,
    cx: Context<'_>,
) {
    let event = event.into();
    let table = &mut flows.table;
    let Context { now, snapshot, .. } = cx;
    let settings = &snapshot.settings;
    let connection = table.connection(id);
    let protocol = connection.protocol();
    let moved = match protocol {
        Protocol::UDP => table.transition(id, |state| (state, now + settings.udp)),
        Protocol::SCTP => {
            let seen = seen(&connection, direction);
            table.transition(id, |state| {
                let after = SctpState::of(state).after(event.sctp, seen);
                (after as u8, now + after.timeout())
            })
        }
        _ => {
            let seen = seen(&connection, direction);
            let judgement = if settings.secure_tcp { Judgement::Secure } else { Judgement::Ordinary };
            table.transition(id, |state| {
                let after = TcpState::of(state).after(event.tcp, seen, judgement);
                (after as u8, now + tcp::timeout(after, settings.tcp_established, settings.tcp_fin_wait))
            })
        }
    };
    let Some((before, after)) = moved else { return };
    let proven = match protocol {
        Protocol::UDP => direction == Direction::Outbound,
        Protocol::SCTP => before != after && SctpState::of(after) == SctpState::Established,
        _ => before != after && TcpState::of(after) == TcpState::Established,
    };
    note(table, &mut flows.deferred, id, (before, after), proven, destination, snapshot);
    if let Some(destination) = destination
        && protocol == Protocol::TCP
        && direction == Direction::Outbound
        && is_refused(before, after)
    {
        destination.live.count_refused(now);
    }
}

/// Records a change of a connection's state from `before` to `after`, also at its destination. `proven`: the change
/// shows that the client receives replies.
#[inline]
fn note(
    table: &TableWorker,
    deferred: &mut Deferred,
    id: ConnId,
    (before, after): (u8, u8),
    proven: bool,
    destination: Option<&Destination>,
    snapshot: &Snapshot,
) {
    let connection = table.connection(id);
    let protocol = connection.protocol();
    if proven && let Some(template) = connection.controller() {
        table.assure(template);
    }
    // Without a destination nothing counts the connection, as in IPVS (recording
    // `sync-unbound-master-sends-active-close`).
    let Some(Destination { live, .. }) = destination else { return };
    let to = Activity::of(protocol, after);
    let has_moved = match connection.flags().contains(Flags::SYNC) {
        false => Activity::of(protocol, before) != to,
        true => before != after && connection.count_as(to == Activity::Inactive),
    };
    if has_moved {
        deferred.change(DestinationId(connection.dest_ref()), live, Change::MoveTo(to), snapshot);
    }
    if proven && protocol == Protocol::TCP {
        live.answered();
        if live.has_neighbours() && is_beside_its_destination(&connection, snapshot) {
            live.neighbour_answered();
        }
    }
}

/// Takes a connection back from the XDP program if a packet may change more than its deadline, or if the program no
/// longer forwards it. From then on only its entry determines its state.
#[inline]
pub(crate) fn take_back(
    flows: &mut Flows,
    id: ConnId,
    packet: &Packet,
    direction: Direction,
    snapshot: &Snapshot,
) {
    let connection = flows.table.connection(id);
    if connection.life().is_offloaded() && !keeps(&connection, packet.tcp_flags, direction) {
        settle(&mut flows.table, &mut flows.deferred, id, Packets::AsCounted, Then::TakeBack, snapshot);
    }
}

/// Whether a packet changes only the deadline of an offloaded connection.
fn keeps(connection: &Connection<'_>, flags: Control, direction: Direction) -> bool {
    let is_steady = connection.protocol() != Protocol::TCP
        || flags.0 & (Control::SYN.0 | Control::FIN.0 | Control::RST.0 | Control::ACK.0) == Control::ACK.0
            && connection.state() == TcpState::Established as u8;
    let is_noted = direction == Direction::Inbound || !connection.flags().contains(Flags::NO_OUTPUT);
    is_steady && is_noted && connection.is_forwarded()
}

/// Applies the state in a connection's record; see [`TableWorker::settle`].
// Not inlined: most packets have no record.
#[inline(never)]
pub(crate) fn settle(
    table: &mut TableWorker,
    deferred: &mut Deferred,
    id: ConnId,
    packets: Packets,
    then: Then,
    snapshot: &Snapshot,
) {
    if let Some(settled) = table.settle(id, packets, then) {
        note_settled(table, deferred, id, settled, snapshot);
    }
}

/// Records the changes that a record contained.
pub(crate) fn note_settled(
    table: &TableWorker,
    deferred: &mut Deferred,
    id: ConnId,
    settled: Settled,
    snapshot: &Snapshot,
) {
    let Settled { before, after, record } = settled;
    if record.tcp().is_none() {
        return;
    }
    let connection = table.connection(id);
    if record.has(RecordState::PROVEN) {
        let _ = connection.set_flags(Flags::PROVEN);
    }
    if let Some(number) = record.awaited() {
        connection.set_destination_sequence(number);
    }
    let proven =
        record.has(RecordState::WAS_ESTABLISHED) && is_half_open(Protocol::TCP, before) && before != after;
    let destination = snapshot.destinations.of(&connection);
    note(table, deferred, id, (before, after), proven, destination, snapshot);
}

/// Whether the destination has answered the client's SYN with a reset.
#[inline]
fn is_refused(before: u8, after: u8) -> bool {
    TcpState::of(before) == TcpState::SynRecv && TcpState::of(after) == TcpState::Close
}

/// Counts a reply at its destination, and advances its connection. A connection to a removed destination stays
/// unchanged.
pub(crate) fn advance_on_reply(
    flows: &mut Flows,
    id: ConnId,
    packet: &Packet,
    destination: Option<&Destination>,
    cx: Context<'_>,
) {
    match destination {
        Some(destination) => flows.count_reply(destination, packet),
        None if flows.table.connection(id).is_unbound() => {}
        None => return,
    }
    flows.tally(id, Direction::Outbound, packet.length(), cx.now);
    advance(flows, id, packet, Direction::Outbound, destination, cx);
}

/// The direction of a packet, and whether the director sees both directions. A reply shows that it does.
#[inline]
fn seen(connection: &Connection<'_>, direction: Direction) -> Seen {
    let unseen = connection.flags().contains(Flags::NO_OUTPUT);
    match direction {
        Direction::Outbound => {
            // Most connections do not have the flag; then nothing is written.
            if unseen {
                let _ = connection.clear_flags(Flags::NO_OUTPUT);
            }
            Seen::Output
        }
        Direction::Inbound if unseen => Seen::InputOnly,
        Direction::Inbound => Seen::Input,
    }
}
