//! Limits on each client of a service (its simultaneous connections, its new connections per second), and on all its
//! clients together (their SYNs per second).
//!
//! Runs for each new connection to a service with a limit, before the scheduler. A refused packet is dropped and
//! counted; the client repeats it. With [`Above::SynProxy`] a SYN above the rate is answered with a cookie instead
//! (`general_path/syn_proxy`), and a client that acknowledges the cookie connects without the rate. Established
//! connections are not affected. A connection that the scheduler or the table then refuses still counts against its
//! client's rate.
//!
//! The `drop_packet` defence ([`Defence`]) drops a share of all packets that could begin a connection, whatever their
//! client.
//!
//! The limit on SYNs is checked before the look-up of a connection. Cost: a check of the flags of a packet on the
//! general path; for a SYN, while there are such limits, two look-ups. `snapshot/clients.rs` stores the clients; the
//! XDP program also checks SYNs (`snapshot/syn_limits.rs`).

use xvs_proto::{Packet, tcp};
use xvs_sched::{Above, ClientLimit};

use super::service::Marked;
use crate::burst::context::{Context, FramedPacket};
use crate::conn::{Connection, Flags};
use crate::snapshot::clients::Refusal;
use crate::snapshot::syn_limits::SynLimits;
use crate::snapshot::{Settings, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// The drop reason for a SYN that exceeds its service's limit, if the worker decides on it rather than the XDP program.
/// Counts the SYN.
#[inline]
pub(crate) fn refuses_syn(p: &FramedPacket<'_>, cx: Context<'_>) -> Option<DropReason> {
    // The XDP program has the same mask.
    const MASK: u8 = tcp::Flags::SYN.0 | tcp::Flags::ACK.0 | tcp::Flags::RST.0;
    let is_syn = p.packet.tcp_flags.0 & MASK == tcp::Flags::SYN.0;
    let limits = cx.snapshot.syn_limits.as_deref().filter(|_| is_syn)?;
    is_above(limits, p, cx).then_some(DropReason::SynRate)
}

fn is_above(limits: &SynLimits, p: &FramedPacket<'_>, cx: Context<'_>) -> bool {
    cx.snapshot
        .service_of(p.link, p.packet)
        // Not data connections of FTP.
        .filter(|service| [0, p.packet.flow.dest.port].contains(&service.port()))
        .and_then(|service| limits.get(&service.key))
        .filter(|limit| !limit.is_in_program() || p.link.is_own() || p.is_reassembled)
        .is_some_and(|limit| !limit.take(cx.now))
}

/// Whether a client's SYN is answered with a cookie, because the client exceeds its rate. The SYN then counts as
/// refused.
pub(crate) fn is_proxied(packet: &Packet, marked: Marked<'_>, cx: Context<'_>) -> bool {
    let Marked { service, .. } = marked;
    service.client_limit.filter(|limit| limit.above == Above::SynProxy).is_some_and(|limit| {
        cx.snapshot.clients.is_above(service.key, packet.flow.source.addr, limit, cx.now)
    })
}

/// Counts a client's new connection, if there is a limit. Returns the connection's flag.
///
/// # Errors
///
/// The verdict on a packet whose client may not connect now.
pub(crate) fn admit(
    packet: &Packet,
    marked: Marked<'_>,
    limit: Option<ClientLimit>,
    cx: Context<'_>,
) -> Result<Flags, Verdict> {
    let Some(limit) = limit else { return Ok(Flags::NONE) };
    match cx.snapshot.clients.admit(marked.service.key, packet.flow.source.addr, limit, cx.now) {
        Ok(true) => Ok(Flags::LIMITED),
        Ok(false) => Ok(Flags::NONE),
        Err(Refusal::Connections) => Err(Verdict::Drop(DropReason::ClientConnections)),
        Err(Refusal::Rate) => Err(Verdict::Drop(DropReason::ClientRate)),
    }
}

/// Removes a connection that was admitted with these flags, but not created, from its client's count.
pub(crate) fn withdraw(flags: Flags, packet: &Packet, marked: Marked<'_>, cx: Context<'_>) {
    if flags.contains(Flags::LIMITED) {
        cx.snapshot.clients.release(marked.service.key, packet.flow.source.addr);
    }
}

/// Removes a connection that has left the table from its client's count.
pub(crate) fn count_out(connection: &Connection<'_>, snapshot: &Snapshot) {
    if connection.flags().is_limited()
        && let Some(destination) = snapshot.destinations.of(connection)
    {
        snapshot.clients.release(destination.key, connection.client().addr);
    }
}

/// Counts down the packets of one worker that could begin a connection.
#[derive(Debug, Default)]
pub(crate) struct Defence {
    remaining: u32,
}

impl Defence {
    /// Drops the first packet, and then every n-th, where n is the setting's rate at the last drop; 0 drops none and
    /// leaves the count unchanged.
    ///
    /// Source: the recordings `drop-packet-*`.
    ///
    /// # Errors
    ///
    /// The verdict on a packet that is dropped.
    pub(crate) fn admit(&mut self, settings: &Settings) -> Result<(), Verdict> {
        let rate = settings.drop_packet_rate;
        if rate == 0 {
            return Ok(());
        }
        if self.remaining > 1 {
            self.remaining -= 1;
            return Ok(());
        }
        self.remaining = rate;
        Err(Verdict::Drop(DropReason::Defence))
    }
}
