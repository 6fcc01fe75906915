//! The fast path: plain packets of connections whose state does not change.
//!
//! Runs for most packets. A connection is steady if the packet changes only its deadline and its counts: a segment with
//! ACK, but without SYN, FIN and RST, on an established TCP connection, or any UDP datagram. A packet that does not
//! meet all conditions takes the general path (`pipeline.rs`), which decides everything again; the fast path therefore
//! changes nothing before all conditions are met. Cost: the cache lines of the entry, the route and the destination's
//! counters, all prefetched, and with tunnels those of the prepared headers. The counters over all services are summed
//! and written once for each burst.

use xvs_proto::ipv4::Ipv4;
use xvs_proto::{LinkId, Plain, ethernet, tcp};
use xvs_sched::ForwardingMethod;
use xvs_xdp::Frame;

use super::context::Context;
use super::flows::Flows;
use super::{handshake, state};
use crate::clock::Millis;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Flags, Life};
use crate::counters::{Stats, StatsValues};
use crate::egress::Path;
use crate::forward::{Ends, Identification, send_plain};
use crate::offload::begin::begin as begin_offload;
use crate::snapshot::{DestinationId, Route};
use crate::sync::announce::Announcer;

/// The relevant control bits: a segment of a steady connection has only ACK among them.
const DECISIVE: u8 = tcp::Flags::SYN.0 | tcp::Flags::FIN.0 | tcp::Flags::RST.0 | tcp::Flags::ACK.0;
/// A plain packet in its frame, and the hash of its connection's key.
pub(super) struct PlainPacket<'a> {
    pub(super) plain: &'a Plain,
    pub(super) frame: &'a mut Frame,
    /// The link by which it was received.
    pub(super) link: LinkId,
    pub(super) hash: u64,
}

/// The fast path of one burst.
pub(super) struct FastPath<'a> {
    cx: Context<'a>,
    /// The deadlines that packets in this burst give to connections.
    tcp_expires: Millis,
    udp_expires: Millis,
    /// Whether any link is in a VRF.
    has_vrfs: bool,
    total: StatsValues,
    announcer: Option<Announcer<'a>>,
    /// Whether there is a log of connections.
    is_logged: bool,
}

impl<'a> FastPath<'a> {
    pub(super) fn begin(flows: &Flows, cx: Context<'a>) -> Self {
        let settings = &cx.snapshot.settings;
        Self {
            cx,
            tcp_expires: cx.now + settings.tcp_established,
            udp_expires: cx.now + settings.udp,
            has_vrfs: !cx.snapshot.egress.vrfs().is_empty(),
            total: StatsValues::default(),
            announcer: Announcer::of(cx.snapshot, flows.worker, cx.now),
            is_logged: flows.table.table().log().is_some(),
        }
    }

    /// Forwards a packet of a connection. Returns the link by which it leaves; `None` if the packet needs the general
    /// path: then only link padding has changed.
    #[inline]
    pub(super) fn forward(
        &mut self,
        flows: &mut Flows,
        p: PlainPacket<'_>,
        id: ConnId,
        direction: Direction,
    ) -> Option<LinkId> {
        let PlainPacket { plain, link: from, .. } = p;
        let connection = flows.table.connection(id);
        let life = connection.life();
        let dest = DestinationId(connection.dest_ref());
        let destinations = &self.cx.snapshot.destinations;
        let route = if self.has_vrfs { self.route_in_vrf(from, dest) } else { destinations.route(dest) }?;
        if !is_steady(plain, &connection, life) {
            return None;
        }
        let is_inbound = direction == Direction::Inbound;
        let rewritten = match direction {
            Direction::Inbound => self.request(&mut flows.ids, p, &connection, route),
            Direction::Outbound => self.reply(&mut flows.ids, p, &connection),
        };
        let Some(link) = rewritten else {
            if is_inbound && !plain.is_tcp() {
                self.offload_without_checksum(flows, id, from);
            }
            return None;
        };
        if !is_inbound && !plain.is_tcp() && connection.awaits_reply() {
            handshake::datagram(flows, &connection, self.cx);
        }
        let is_offered = is_inbound && is_offload_due(flows, connection.count_in_packet());
        let announcer =
            self.announcer.as_ref().filter(|announcer| is_inbound && announcer.concerns(&connection));
        count(&mut self.total, route.stats.of_worker(flows.worker), direction, plain.len);
        if self.is_logged {
            flows.tally(id, direction, plain.len.into(), self.cx.now);
        }
        let expires = if plain.is_tcp() { self.tcp_expires } else { self.udp_expires };
        if !life.keeps(expires) {
            let destination = self.cx.snapshot.destinations.of(&connection);
            state::advance(flows, id, plain, direction, destination, self.cx);
        }
        if let Some(announcer) = announcer {
            announcer.packet(&flows.table, id);
        }
        if is_offered {
            // Without room, a later packet tries it again.
            let _ = begin_offload(flows, id, from, self.cx);
        }
        Some(link)
    }

    /// The route of packets from this link if links are in VRFs.
    #[inline(never)]
    fn route_in_vrf(&self, from: LinkId, dest: DestinationId) -> Option<&'a Route> {
        let snapshot = self.cx.snapshot;
        snapshot.destinations.route_in(snapshot.egress.vrf(from), dest)
    }

    /// Rewrites a client's packet.
    #[inline]
    fn request(
        &self,
        ids: &mut Identification,
        p: PlainPacket<'_>,
        connection: &Connection<'_>,
        route: &Route,
    ) -> Option<LinkId> {
        let PlainPacket { plain, frame, hash, .. } = p;
        if self.cx.snapshot.settings.requests_stay || u32::from(plain.len) > route.mtu {
            return None;
        }
        let is_done = match connection.method() {
            ForwardingMethod::DirectRouting => {
                fit(frame, plain);
                plain.readdress(frame.bytes_mut(), &route.addresses);
                true
            }
            ForwardingMethod::Tunnel => {
                let template = &route.tunnel.as_deref()?[plain.family as usize];
                fit(frame, plain);
                template.send(frame, plain, hash, self.cx.snapshot.settings.pmtu_disc, self.cx.now, ids)
            }
            ForwardingMethod::Local => false,
            _ if plain.is_tcp() && may_be_proven(connection) => false,
            ForwardingMethod::FullNat if connection.is_translated() => {
                let local = connection.local()?;
                send_plain(frame, plain, local, connection.dest(), &route.addresses, route.mtu, ids)
            }
            method => {
                fit(frame, plain);
                let is_done =
                    connection.masquerade(plain, frame.bytes_mut(), Direction::Inbound, &route.addresses);
                if is_done && method == ForwardingMethod::FullNat && !plain.dont_fragment {
                    // As `forward/fullnat.rs` explains; IPv6 has no such packets.
                    Ipv4::edit(&mut frame.bytes_mut()[ethernet::HEADER_LEN..]).set_id(ids.take());
                }
                is_done
            }
        };
        is_done.then_some(route.link)
    }

    /// Rewrites a reply.
    #[inline]
    fn reply(
        &self,
        ids: &mut Identification,
        p: PlainPacket<'_>,
        connection: &Connection<'_>,
    ) -> Option<LinkId> {
        let PlainPacket { plain, frame, hash, link } = p;
        // The first reply is recorded in the flag, and a UDP reply at the template.
        if connection.flags().contains(Flags::NO_OUTPUT)
            || !plain.is_tcp() && connection.controller().is_some()
            || !connection.method().masquerades()
        {
            return None;
        }
        let client = connection.client().addr;
        let Path::To(hop) = Path::find_by(&self.cx.snapshot.egress, client, hash, || {
            self.cx.snapshot.unmarked_key_to_client(link, &Ends::of(connection))
        })?
        else {
            return None;
        };
        if u32::from(plain.len) > hop.mtu {
            return None;
        }
        let is_done = match connection.is_translated() {
            true => {
                let source = connection.virtual_endpoint();
                send_plain(frame, plain, source, connection.client(), &hop.addresses(), hop.mtu, ids)
            }
            false => {
                fit(frame, plain);
                connection.masquerade(plain, frame.bytes_mut(), Direction::Outbound, &hop.addresses())
            }
        };
        is_done.then_some(hop.link)
    }

    /// Offloads, if it is due, the connection of a client's datagram that the general path will forward: the datagram
    /// may have no checksum, and the XDP program forwards such datagrams.
    fn offload_without_checksum(&self, flows: &mut Flows, id: ConnId, from: LinkId) {
        if is_offload_due(flows, flows.table.connection(id).in_packets().wrapping_add(1)) {
            let _ = begin_offload(flows, id, from, self.cx);
        }
    }

    /// Writes the counts that were added up.
    pub(super) fn end(self, flows: &Flows) {
        flows.count_total(&self.total);
    }
}

/// Whether a packet leaves the state of its connection unchanged.
#[inline]
fn is_steady(plain: &Plain, connection: &Connection<'_>, life: Life) -> bool {
    life.is_live()
        && !connection.flags().intersects(Flags::UNUSUAL)
        && (!plain.is_tcp()
            || plain.flags.0 & DECISIVE == tcp::Flags::ACK.0
                && current_state(connection, life) == TcpState::Established as u8)
}

/// The state of a connection, whose record may be more recent than its entry.
#[inline]
fn current_state(connection: &Connection<'_>, life: Life) -> u8 {
    if life.is_offloaded() { connection.state() } else { life.state() }
}

/// Whether a client's packet may be the proof for which `burst/handshake.rs` waits.
#[inline]
fn may_be_proven(connection: &Connection<'_>) -> bool {
    !connection.flags().contains(Flags::PROVEN) && connection.destination_sequence() != 0
}

/// Removes link padding.
#[inline]
fn fit(frame: &mut Frame, plain: &Plain) {
    let shorter = frame.resize(ethernet::HEADER_LEN + usize::from(plain.len));
    debug_assert!(shorter, "the packet was read inside the frame");
}

/// Counts a packet at its destination and in the total over all services.
#[inline]
fn count(total: &mut StatsValues, stats: &Stats, direction: Direction, len: u16) {
    match direction {
        Direction::Inbound => {
            stats.count_in(len.into());
            total.in_packets += 1;
            total.in_bytes += u64::from(len);
        }
        Direction::Outbound => {
            stats.count_out(len.into());
            total.out_packets += 1;
            total.out_bytes += u64::from(len);
        }
    }
}

/// Whether a connection is offloaded with this packet of its client.
#[inline]
fn is_offload_due(flows: &Flows, packets: u32) -> bool {
    flows.offloader.as_ref().is_some_and(|offloader| offloader.is_due(packets))
}
