//! Look-up: the connection that a packet belongs to, and whether it goes on.
//!
//! Runs once for each packet of a flow. A client's packet may meet a connection that is over, or whose destination was
//! removed: then the packet may begin a new one in its place. Cost: one line of the index and one of the connection; both
//! were prefetched.
//!
//! Source: ipvs-behaviour, sections 2.2 and 3.6.

use xvs_proto::{Packet, Protocol};

use super::context::Context;
use super::flows::Flows;
use super::framed_packet::FramedPacket;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Flags, Removal};
use crate::new_connection::service::is_first;
use crate::snapshot::{Activity, ConnReuse, Snapshot};

/// What a packet meets in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It is a client's packet of this connection.
    Request(ConnId),
    /// It is a packet to the client of this connection.
    Reply(ConnId),
    /// It is a client's packet of this connection, whose destination was removed.
    NoDestination(ConnId),
    /// No connection, or one that has ended with it.
    Nothing,
    /// What clients send is left to the kernel (`backup_only`).
    Kernel,
}

/// Whether a connection goes on with a client's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It takes the packet.
    Keep,
    /// It ends, and the packet is treated as if it had met none.
    Replace,
    /// Its destination was removed: the packet is dropped, and the time left is not extended.
    NoDestination,
}

/// Finds the connection of a packet, and ends it if the packet is to begin a new one.
#[inline]
pub(crate) fn find(flows: &mut Flows, p: &FramedPacket<'_>, at: Context<'_>) -> Found {
    let packet = p.packet;
    match flows.table.find(&packet.connection_key(), p.hash) {
        Some((id, Direction::Outbound)) => Found::Reply(id),
        _ if at.snapshot.settings.requests_stay => Found::Kernel,
        Some((id, Direction::Inbound)) => match standing(&flows.table.connection(id), packet, at.snapshot) {
            Standing::Keep => Found::Request(id),
            Standing::Replace if replace(flows, id, at) => Found::Nothing,
            Standing::Replace => Found::Request(id),
            Standing::NoDestination => Found::NoDestination(id),
        },
        None => Found::Nothing,
    }
}

#[inline]
fn standing(connection: &Connection<'_>, packet: &Packet, snapshot: &Snapshot) -> Standing {
    let settings = &snapshot.settings;
    let destination = snapshot.destinations.available_for(connection);
    if is_first(packet) {
        let drained = destination.is_some_and(|destination| destination.weight.is_quiescent());
        let is_over = is_over(connection, settings.conn_reuse_mode);
        if is_over || drained && settings.expire_nodest_conn || connection.flags().contains(Flags::RESET) {
            return Standing::Replace;
        }
    }
    let moves_on = packet.flow.protocol == Protocol::UDP && settings.udp_nodest_reschedule;
    match destination {
        Some(_) => Standing::Keep,
        None if connection.is_bypass() => Standing::Keep,
        None if connection.flags().contains(Flags::RESET) => Standing::NoDestination,
        None if settings.expire_nodest_conn || moves_on => Standing::Replace,
        None => Standing::NoDestination,
    }
}

/// Whether a connection has ended as far as can be seen, so that a first packet begins a new one. One that a template
/// controls goes on.
///
/// Source: ipvs-behaviour, section 3.6; of CLOSE, the kernel's recording `tcp-nat-server-refuses`, step 9.
fn is_over(connection: &Connection<'_>, reuse: ConnReuse) -> bool {
    if connection.controller().is_some() {
        return false;
    }
    match connection.protocol() {
        Protocol::SCTP => reuse.closed() && SctpState::of(connection.state()) == SctpState::Closed,
        _ => match TcpState::of(connection.state()) {
            TcpState::TimeWait | TcpState::Close => reuse.closed(),
            TcpState::FinWait => reuse.half_seen() && connection.flags().contains(Flags::NO_OUTPUT),
            _ => false,
        },
    }
}

/// Takes a connection out of the table before its time. `false` if it controls others and has to stay.
fn replace(flows: &mut Flows, id: ConnId, at: Context<'_>) -> bool {
    let removal = flows.table.remove(id);
    if let Removal::Done(state) = removal {
        let connection = flows.table.connection(id);
        if let Some(destination) = at.snapshot.destinations.of(&connection) {
            let activity = Activity::of(connection.protocol(), state);
            flows.replaced.keep(&destination.live, activity, at.now);
        }
    }
    removal != Removal::Controls
}
