//! Look-up of a packet's connection, and whether that connection continues.
//!
//! Runs once for each packet of a flow. If a client's packet belongs to a connection that is over, or whose destination
//! was removed, it may begin a new connection that replaces the old one. Cost: one cache line of the index and one of
//! the connection, both prefetched.
//!
//! Source: ipvs-behaviour, sections 2.2 and 3.6.

use xvs_proto::{Family, Packet, Protocol};

use super::context::{Context, FramedPacket};
use super::flows::Flows;
use super::state;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Flags, Removal};
use crate::general_path::ftp;
use crate::new_connection::eviction::ended;
use crate::new_connection::limit;
use crate::new_connection::service::is_first;
use crate::snapshot::{ConnReuse, Snapshot};

/// The result of a look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A packet from the client of this connection.
    Request(ConnId),
    /// A packet to the client of this connection.
    Reply(ConnId),
    /// A packet from the client of this connection, whose destination was removed.
    NoDestination(ConnId),
    /// There is no connection, or the packet has just ended it.
    Nothing,
    /// A packet for the kernel: a client's (`backup_only`), or a reply from the virtual address.
    Kernel,
}

/// The effect of a client's packet on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It continues.
    Keep,
    /// The connection ends, and the packet is treated as if there had been none.
    Replace,
    /// The connection's destination was removed: the packet is dropped, and the timeout is not extended.
    NoDestination,
}

/// Finds the connection of a packet, and ends it if the packet begins a new one.
#[inline]
pub(crate) fn find(flows: &mut Flows, p: &FramedPacket<'_>, cx: Context<'_>) -> Found {
    let packet = p.packet;
    let found = flows.table.find(&packet.connection_key(), p.hash);
    if let Some((id, direction)) = found {
        state::take_back(flows, id, packet, direction, cx.snapshot);
    }
    match found {
        Some((id, Direction::Outbound)) => reply(&flows.table.connection(id), id, packet, cx),
        _ if cx.snapshot.settings.requests_stay => Found::Kernel,
        Some((id, Direction::Inbound)) => match standing(&flows.table.connection(id), packet, cx.snapshot) {
            Standing::Keep => Found::Request(id),
            Standing::Replace if replace(flows, id, cx) => Found::Nothing,
            Standing::Replace => Found::Request(id),
            Standing::NoDestination => Found::NoDestination(id),
        },
        None => ftp::expected(flows, packet, cx).map_or(Found::Nothing, Found::Request),
    }
}

/// A reply. If its connection does not masquerade, its source is the virtual address: the kernel drops such an IPv4
/// packet from the wire, and routes an IPv6 one.
#[inline]
fn reply(connection: &Connection<'_>, id: ConnId, packet: &Packet, cx: Context<'_>) -> Found {
    if connection.method().masquerades()
        || packet.family() == Family::V6
        || cx.snapshot.settings.forward_shared
    {
        return Found::Reply(id);
    }
    if let Some(destination) = cx.snapshot.destinations.of(connection) {
        destination.live.note_returned(cx.now);
    }
    Found::Kernel
}

#[inline]
fn standing(connection: &Connection<'_>, packet: &Packet, snapshot: &Snapshot) -> Standing {
    let settings = &snapshot.settings;
    let destination = snapshot.destinations.available_for(connection);
    if is_first(packet) {
        let drained = destination.is_some_and(|destination| destination.weight.is_quiescent());
        // The sender of an unsigned message must not choose where a client's new connection goes.
        let is_over = is_over(connection, settings.conn_reuse_mode) || connection.is_unseen();
        if is_over || drained && settings.expire_nodest_conn || connection.flags().contains(Flags::RESET) {
            return Standing::Replace;
        }
    }
    let moves_on = packet.flow.protocol == Protocol::UDP && settings.udp_nodest_reschedule;
    match destination {
        Some(_) => Standing::Keep,
        None if connection.is_bypass() => Standing::Keep,
        None if connection.flags().contains(Flags::RESET) => Standing::NoDestination,
        None if connection.is_unbound() => Standing::Keep,
        None if settings.expire_nodest_conn || moves_on => Standing::Replace,
        None => Standing::NoDestination,
    }
}

/// Whether a connection has ended as far as the director can see, so that a first packet begins a new one. A connection
/// that a template controls continues.
///
/// Source: ipvs-behaviour, section 3.6; for CLOSE, the kernel's recording `tcp-nat-server-refuses`, step 9.
fn is_over(connection: &Connection<'_>, reuse: ConnReuse) -> bool {
    // With the SYN proxy, a handshake that passed through would have other numbers and windows than the last one.
    let is_proxied = connection.flags().contains(Flags::SYN_PROXY);
    if connection.controller().is_some() && !is_proxied {
        return false;
    }
    match connection.protocol() {
        Protocol::SCTP => reuse.closed() && SctpState::of(connection.state()) == SctpState::Closed,
        _ => match TcpState::of(connection.state()) {
            TcpState::TimeWait | TcpState::Close => is_proxied || reuse.closed(),
            TcpState::FinWait => reuse.half_seen() && connection.flags().contains(Flags::NO_OUTPUT),
            _ => false,
        },
    }
}

/// Removes a connection from the table before its timeout. Returns `false` if it controls others and has to stay.
fn replace(flows: &mut Flows, id: ConnId, cx: Context<'_>) -> bool {
    let removal = flows.table.remove(id);
    if let Removal::Done(state) = removal {
        let connection = flows.table.connection(id);
        limit::count_out(&connection, cx.snapshot);
        if let Some(destination) = cx.snapshot.destinations.of(&connection) {
            flows.replaced.keep(&destination.live, ended(&connection, state), cx.now);
        }
    }
    removal != Removal::Controls
}
