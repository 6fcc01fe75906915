//! The SYN proxy (services with `syn_proxy`, and clients above their rate; NAT and FULLNAT): the director answers a
//! client's SYN with a cookie, and begins a connection only when the client has acknowledged the cookie.
//!
//! Runs for packets without a connection to a service with the proxy, for packets of a connection whose destination has
//! not answered, and for each segment of such a connection afterwards. Cost for other packets: a check of their flags,
//! or of one integer in the snapshot.
//!
//! 1. The SYN becomes a SYN+ACK with the cookie as its number and a window of 0, so the client sends no data. Nothing
//!    is stored or scheduled.
//! 2. The client's ACK becomes a SYN to the destination that is chosen now, with the client's own sequence number and
//!    the options that the cookie keeps. The connection is stored ([`Flags::HANDSHAKE`]). Packets of the client end
//!    here until the destination answers.
//! 3. The destination's SYN+ACK becomes the ACK that completes its handshake, and passes the stages of a client's
//!    packet, so a PROXY header is in it. The client gets an ACK that opens its window. A destination's reset is passed
//!    on to the client. A silent destination gets the SYN again after 1 and 3 seconds; after 7 seconds the client is
//!    reset. A destination that still has a former connection of the same ends acknowledges that one, and gets a reset
//!    for it before the next SYN.
//! 4. From then on ([`Flags::SYN_PROXY`]) the destination's sequence numbers and timestamps are shifted to those that
//!    the client knows, and back. The director had to announce a window scale before it knew the destination's, so
//!    windows are shifted, too. The client's own numbers stay.
//!
//! The packets to the destination are written as if the client had sent them, and pass through the stages of a client's
//! packets. The balance, the counters and a PROXY header therefore need no special case.
//!
//! If the client's ACK is lost, its window probes serve as well. There is no ECN and no Fast Open through the proxy.
//!
//! Source: RFC 4987 §3.6, RFC 7323 (scales, timestamps), RFC 9293 §3.8.6.1 (probes of a window).

mod cookie;

use std::time::Duration;

use xvs_proto::network::RouteKey;
use xvs_proto::{Family, FlowKey, LinkId, Packet, Protocol, tcp};
use xvs_sched::{ClientAddress, ClientLimit, SynProxy};
use xvs_xdp::Frame;

use self::cookie::Offered;
use super::tcp_originate::{Answer, ETHERNET_MTU, as_received, largest_segment, tell, write};
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::burst::state;
use crate::clock::Millis;
use crate::conn::tcp::TcpState;
use crate::conn::{Awaited, Complete, ConnId, Connection, Flags, Numbers, TIMER_TICK, TableWorker};
use crate::egress::{Egress, Path};
use crate::forward::{self, Ends};
use crate::new_connection::connect::{Begun, connect_complete};
use crate::new_connection::limit;
use crate::new_connection::service::{Marked, behind_proxy};
use crate::snapshot::Service;
use crate::verdict::{DropReason, Verdict};

/// The result for a packet that the SYN proxy has processed.
pub(crate) enum Step {
    /// It gets this verdict.
    Decided(Verdict),
    /// The frame now contains a packet on this connection to the destination, as if its client had sent it.
    Written(ConnId, Written),
}

/// A packet that was written into a frame.
pub(crate) struct Written {
    packet: Packet,
    hash: u64,
}

impl Written {
    /// The packet in its frame, which was received on `link`.
    pub(crate) fn packet<'a>(&'a self, frame: &'a mut Frame, link: LinkId) -> FramedPacket<'a> {
        FramedPacket { frame, link, packet: &self.packet, hash: self.hash, is_reassembled: false }
    }
}

/// The content of a client's acknowledgement of a cookie.
#[derive(Debug, Clone, Copy)]
struct Proof {
    /// The number of the client's SYN.
    sequence: u32,
    awaited: Awaited,
}

/// Whether a packet without a connection may be for a service with the SYN proxy.
#[inline]
pub(crate) fn may_take(packet: &Packet, cx: Context<'_>) -> bool {
    cx.snapshot.services.any_proxied() && packet.flow.protocol == Protocol::TCP
}

/// Processes a packet for which [`may_take`] is true, or a packet from the destination of connection `id`, which is
/// awaited. `None` if the packet is processed like any other.
pub(crate) fn take(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: Option<ConnId>,
    cx: Context<'_>,
) -> Option<Step> {
    match id {
        Some(id) => take_answer(flows, p, id, cx),
        None => take_segment(flows, p, cx),
    }
}

/// Answers a SYN without a connection, or checks the cookie in another segment. `None` if the packet is processed like
/// any other.
#[inline(never)]
fn take_segment(flows: &mut Flows, p: &mut FramedPacket<'_>, cx: Context<'_>) -> Option<Step> {
    let packet = p.packet;
    let flags = packet.tcp_flags;
    if flags.has(tcp::Flags::RST) {
        return None;
    }
    let marked = behind_proxy(packet, p.link, cx.snapshot)?;
    let service = marked.service;
    let is_active = match service.syn_proxy {
        SynProxy::On => true,
        SynProxy::Auto => cx.snapshot.settings.memory_short,
        SynProxy::Off => false,
    };
    let segment = p.transport();
    let secret = flows.table.table().secret();
    if flags.0 & (tcp::Flags::SYN.0 | tcp::Flags::ACK.0 | tcp::Flags::FIN.0) == tcp::Flags::SYN.0 {
        return match service.has_available() && (is_active || limit::is_proxied(packet, marked, cx)) {
            true if tcp::is_summed(segment, &packet.flow) => {
                let sequence = p.tcp_number(tcp::field::SEQUENCE.start);
                let offered = Offered::by(&tcp::Options::of(segment));
                let cookie = cookie::make(secret, &packet.flow, sequence, offered, cx.now);
                flows.counters.syn_cookies_sent.add(1);
                Some(Step::Decided(answer(p, service, sequence, cookie, cx)))
            }
            true => Some(Step::Decided(Verdict::Drop(DropReason::BadCookie))),
            // The client gets an ICMP error if no real server accepts connections.
            false => None,
        };
    }
    match proof(secret, segment, packet, cx.now).filter(|_| tcp::is_summed(segment, &packet.flow)) {
        Some(proof) => {
            flows.counters.syn_cookies_accepted.add(1);
            Some(begin(flows, p, marked, &proof, cx))
        }
        None if is_active => Some(Step::Decided(Verdict::Drop(DropReason::BadCookie))),
        None => None,
    }
}

/// Turns a client's SYN into the director's SYN+ACK.
fn answer(
    p: &mut FramedPacket<'_>,
    service: &Service,
    sequence: u32,
    cookie: u32,
    cx: Context<'_>,
) -> Verdict {
    let FlowKey { source: client, dest: service_end, .. } = p.packet.flow;
    let vrf = cx.snapshot.egress.vrf(p.link);
    let key = RouteKey { dest: client.addr, source: service_end.addr, mark: 0, vrf };
    let path = Path::find(&cx.snapshot.egress, key, p.hash);
    let Some(hop) = path.hop() else { return Verdict::Drop(DropReason::NoRoute) };
    // A PROXY header precedes the client's first data, and this segment may be as long as the client's largest.
    let proxy_header = match service.client_address {
        ClientAddress::Proxy => xvs_proto::proxy::header_len(client.family()) as u16,
        _ => 0,
    };
    let offered = Offered::in_cookie(cookie);
    // The longest header that the connection may have at its destination, which is not chosen yet.
    let family = if service.concerns(Family::V6) { Family::V6 } else { client.family() };
    let mtu = hop.mtu.min(ETHERNET_MTU.into()) as u16;
    let header = tcp::Header {
        sequence: cookie,
        acknowledgement: sequence.wrapping_add(1),
        flags: SYN_ACK,
        window: 0,
        options: tcp::Options {
            mss: Some(largest_segment(family, mtu).saturating_sub(proxy_header)),
            window_scale: offered.window_scale.map(|_| SCALE),
            sack: offered.sack,
            timestamps: tcp::Options::of(p.transport())
                .timestamps
                .map(|[theirs, _]| [cx.now.0 as u32, theirs]),
        },
    };
    p.frame.shrink_front(p.packet.network);
    write(p.frame, (service_end, client), &header);
    forward::made(p.frame, path)
}

/// The proof in a segment. A window probe has the sequence number before that of the first data byte.
fn proof(secret: &xvs_proto::HashSecret, segment: &[u8], packet: &Packet, now: Millis) -> Option<Proof> {
    if !packet.tcp_flags.has(tcp::Flags::ACK) || packet.tcp_flags.has(tcp::Flags::SYN) {
        return None;
    }
    let cookie = tcp::number(segment, tcp::field::ACKNOWLEDGEMENT.start).wrapping_sub(1);
    let number = tcp::number(segment, tcp::field::SEQUENCE.start);
    let sequence = [number.wrapping_sub(1), number]
        .into_iter()
        .find(|sequence| cookie::is_valid(secret, &packet.flow, *sequence, cookie, now))?;
    let awaited = Awaited {
        cookie,
        timestamps: tcp::Options::of(segment).timestamps.map(|[theirs, ours]| [ours, theirs]),
        window: tcp::word(segment, tcp::field::WINDOW.start),
        tries: 1,
    };
    Some(Proof { sequence, awaited })
}

/// Creates a connection for a client that has acknowledged a cookie. Its destination gets a SYN.
fn begin<'s>(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    marked: Marked<'s>,
    proof: &Proof,
    cx: Context<'s>,
) -> Step {
    let limit = marked.service.client_limit.map(ClientLimit::of_proven);
    // No other thread can find the connection yet.
    let complete: Complete<'_> = Some(&|connection| {
        debug_assert!(connection.method().masquerades(), "other methods are refused with the proxy");
        let _ = connection.set_flags(Flags::PROVEN);
        connection.set_first_sequence(proof.sequence.wrapping_add(1));
        connection.await_answer(proof.awaited);
    });
    let id = match connect_complete(flows, p, marked, limit, complete, cx) {
        Ok(Begun::Connection(id)) => id,
        // The client repeats the packet, which then finds the connection. A one-packet connection is UDP.
        Ok(Begun::Existing(_) | Begun::OnePacket(..)) => return Step::Decided(Verdict::Consumed),
        Err(verdict) => {
            refuse(flows, p, proof, cx);
            return Step::Decided(verdict);
        }
    };
    p.frame.shrink_front(p.packet.network);
    match syn(flows, p.frame, id) {
        Some(written) => Step::Written(id, written),
        None => Step::Decided(Verdict::Consumed),
    }
}

/// Resets a client that has acknowledged a cookie, but gets no connection.
fn refuse(flows: &mut Flows, p: &FramedPacket<'_>, proof: &Proof, cx: Context<'_>) {
    let FlowKey { source: client, dest: service_end, .. } = p.packet.flow;
    let header = tcp::ResetNumbers::Expected(proof.awaited.cookie.wrapping_add(1)).into();
    let vrf = cx.snapshot.egress.vrf(p.link);
    tell(&mut flows.answers, Answer::to_client(client, service_end, header, vrf));
}

/// Writes the client's SYN of a connection into the frame, as if it had been received. `None` if the frame has no room,
/// or the destination has answered.
pub(crate) fn syn(flows: &Flows, frame: &mut Frame, id: ConnId) -> Option<Written> {
    let connection = flows.table.connection(id);
    let awaited = connection.awaited()?;
    let offered = Offered::in_cookie(awaited.cookie);
    let header = tcp::Header {
        sequence: connection.first_sequence().wrapping_sub(1),
        acknowledgement: 0,
        flags: tcp::Flags::SYN,
        window: shifted(awaited.window, offered.window_scale.unwrap_or(0) as i8),
        options: tcp::Options {
            mss: Some(offered.mss),
            window_scale: offered.window_scale,
            sack: offered.sack,
            timestamps: awaited.timestamps.map(|[_, theirs]| [theirs, 0]),
        },
    };
    let ends = Ends::of(&connection);
    write(frame, (ends.client, ends.virtual_endpoint), &header);
    let packet = as_received(frame, ends.client.family())?;
    Some(Written { hash: flows.table.hash(&packet.flow), packet })
}

/// Whether a connection waits for its destination's answer. Its client repeats its packets until its window is open.
pub(crate) fn is_awaited(flows: &Flows, id: ConnId) -> bool {
    flows.table.connection(id).flags().contains(Flags::HANDSHAKE)
}

/// Sets the deadline of a connection after a SYN to its destination.
pub(crate) fn wait(table: &mut TableWorker, id: ConnId, now: Millis) {
    if let Some(awaited) = table.connection(id).awaited() {
        let waits_doubled = awaited.tries.clamp(1, TRIES) - 1;
        extend(table, id, now + FIRST_WAIT * (1 << waits_doubled), now);
    }
}

/// Whether a connection whose deadline has passed continues, because its destination gets another SYN. After the last
/// SYN the client is reset instead.
pub(crate) fn outlasts(
    table: &mut TableWorker,
    id: ConnId,
    again: &mut Vec<ConnId>,
    answers: &mut Vec<Answer>,
    egress: &Egress,
    now: Millis,
) -> bool {
    let connection = table.connection(id);
    let Some(awaited) = connection.awaited() else { return false };
    if connection.expires() > now {
        return true;
    }
    if awaited.tries >= TRIES {
        if answers.len() < answers.capacity() {
            let Ends { client, virtual_endpoint, .. } = Ends::of(&connection);
            let header = tcp::ResetNumbers::Expected(awaited.cookie.wrapping_add(1)).into();
            let vrf = egress.vrf_of_address(virtual_endpoint.addr);
            tell(answers, Answer::to_client(client, virtual_endpoint, header, vrf));
            return false;
        }
    } else if again.len() < again.capacity() {
        connection.count_try(awaited);
        again.push(id);
    }
    // If too many are due, this one's packet is sent after a later burst.
    extend(table, id, now + TIMER_TICK, now);
    true
}

/// Sets the deadline of a waiting connection. If another worker has just ended the wait, the connection has a minute,
/// until its next packet sets the correct deadline.
fn extend(table: &mut TableWorker, id: ConnId, deadline: Millis, now: Millis) {
    table.transition(id, |state| match TcpState::of(state) {
        TcpState::None | TcpState::SynRecv | TcpState::SynAck => (state, deadline),
        _ => (state, now + COMPLETED),
    });
}

/// Reads a packet from the destination of a connection that waits for its answer. `None` if it goes on to the client,
/// with numbers that the client knows: the destination refuses.
fn take_answer(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Option<Step> {
    const IGNORED: Option<Step> = Some(Step::Decided(Verdict::Consumed));
    let packet = p.packet;
    let connection = flows.table.connection(id);
    let Some(awaited) = connection.awaited() else { return IGNORED };
    let segment = p.transport();
    let first = connection.first_sequence();
    if !packet.tcp_flags.has(tcp::Flags::ACK) || !tcp::is_summed(segment, &packet.flow) {
        return IGNORED;
    }
    let vrf = cx.snapshot.egress.vrf(p.link);
    if tcp::number(segment, tcp::field::ACKNOWLEDGEMENT.start) != first {
        // It acknowledges a former connection, unrelated to the SYN that the destination got (RFC 9293 §3.10.7.3,
        // "first check the ACK bit").
        if let Some(numbers) = tcp::reset_numbers(segment) {
            let FlowKey { source, dest, .. } = packet.flow;
            let key = RouteKey::from(source.addr).of_vrf(vrf);
            tell(&mut flows.answers, Answer { ends: (dest, source), header: numbers.into(), key });
        }
        return IGNORED;
    }
    let theirs = tcp::number(segment, tcp::field::SEQUENCE.start);
    if packet.tcp_flags.has(tcp::Flags::RST) {
        let sequence = awaited.cookie.wrapping_add(1).wrapping_sub(theirs);
        connection.complete(Numbers { sequence, ..Numbers::default() });
        return None;
    }
    if !packet.tcp_flags.has(tcp::Flags::SYN) {
        return IGNORED;
    }
    let offered = Offered::in_cookie(awaited.cookie);
    let options = tcp::Options::of(segment);
    let window = tcp::word(segment, tcp::field::WINDOW.start);
    let timestamps = awaited.timestamps.zip(options.timestamps);
    let numbers = Numbers {
        sequence: awaited.cookie.wrapping_sub(theirs),
        timestamp: timestamps.map_or(0, |([ours, _], [theirs, _])| ours.wrapping_sub(theirs)),
        to_client: offered.window_scale.map_or(0, |_| options.window_scale.unwrap_or(0) as i8 - SCALE as i8),
        to_server: match options.window_scale {
            Some(_) => 0,
            None => offered.window_scale.unwrap_or(0),
        },
    };
    if !connection.complete(numbers) {
        return IGNORED;
    }
    let Ends { client, virtual_endpoint, .. } = Ends::of(&connection);
    let next = awaited.cookie.wrapping_add(1);
    let opening = tcp::Header {
        sequence: next,
        acknowledgement: first,
        flags: tcp::Flags::ACK,
        // The window of a SYN is not scaled.
        window: offered.window_scale.map_or(window, |_| window >> SCALE),
        options: tcp::Options { timestamps: awaited.timestamps, ..tcp::Options::default() },
    };
    tell(&mut flows.answers, Answer::to_client(client, virtual_endpoint, opening, vrf));
    // In the client's numbers: it is translated like the client's other segments.
    let acknowledgement = tcp::Header {
        sequence: first,
        acknowledgement: next,
        flags: tcp::Flags::ACK,
        window: awaited.window,
        options: tcp::Options {
            timestamps: awaited.timestamps.map(|[ours, theirs]| [theirs, ours]),
            ..tcp::Options::default()
        },
    };
    p.frame.shrink_front(packet.network);
    write(p.frame, (client, virtual_endpoint), &acknowledgement);
    let Some(written) = as_received(p.frame, client.family()) else { return IGNORED };
    let destination = cx.snapshot.destinations.of(&connection);
    state::advance_on_reply(flows, id, packet, destination, cx);
    Some(Step::Written(id, Written { packet: written, hash: p.hash }))
}

/// Translates a client's segment, which is not rewritten yet, to the destination's numbers.
#[inline]
pub(crate) fn to_server(p: &mut FramedPacket<'_>, connection: &Connection<'_>) {
    if let Some(numbers) = connection.numbers() {
        translate_request(p, numbers);
    }
}

// Not inlined, like the next function, to keep the path of other packets short.
#[inline(never)]
fn translate_request(p: &mut FramedPacket<'_>, numbers: Numbers) {
    let flags = p.packet.tcp_flags;
    let segment = p.transport_mut();
    if flags.has(tcp::Flags::ACK) {
        tcp::map_acknowledged(segment, |number| number.wrapping_sub(numbers.sequence));
    }
    if let Some([_, echoed]) = tcp::timestamps(segment) {
        let theirs = tcp::number(segment, echoed);
        tcp::set_number(segment, echoed, theirs.wrapping_sub(numbers.timestamp));
    }
    if !flags.has(tcp::Flags::SYN) {
        shift_window(segment, numbers.to_server as i8);
    }
}

/// Translates a destination's segment, which is not rewritten yet, to the client's numbers.
#[inline]
pub(crate) fn to_client(p: &mut FramedPacket<'_>, connection: &Connection<'_>) {
    if let Some(numbers) = connection.numbers() {
        translate_reply(p, numbers);
    }
}

#[inline(never)]
fn translate_reply(p: &mut FramedPacket<'_>, numbers: Numbers) {
    let flags = p.packet.tcp_flags;
    let segment = p.transport_mut();
    let sequence = tcp::number(segment, tcp::field::SEQUENCE.start);
    tcp::set_number(segment, tcp::field::SEQUENCE.start, sequence.wrapping_add(numbers.sequence));
    if let Some([own, _]) = tcp::timestamps(segment) {
        let theirs = tcp::number(segment, own);
        tcp::set_number(segment, own, theirs.wrapping_add(numbers.timestamp));
    }
    if !flags.has(tcp::Flags::SYN) {
        shift_window(segment, numbers.to_client);
    }
}

/// Restores the destination's own number in a translated segment that is not sent: an ICMP error quotes it.
pub(crate) fn restore(p: &mut FramedPacket<'_>, connection: &Connection<'_>) {
    if let Some(numbers) = connection.numbers() {
        let sequence = p.tcp_number(tcp::field::SEQUENCE.start).wrapping_sub(numbers.sequence);
        tcp::set_number(p.transport_mut(), tcp::field::SEQUENCE.start, sequence);
    }
}

/// Replaces the sequence number in a reply that an error quotes with the destination's own number.
pub(crate) fn quoted(frame: &mut Frame, quote: &Packet, numbers: Numbers) {
    tcp::map_quoted(&mut frame.bytes_mut()[quote.transport..quote.end], |number| {
        number.wrapping_sub(numbers.sequence)
    });
}

fn shift_window(segment: &mut [u8], by: i8) {
    if by != 0 {
        let window = tcp::word(segment, tcp::field::WINDOW.start);
        tcp::set_word(segment, tcp::field::WINDOW.start, shifted(window, by));
    }
}

/// A window in another unit; the largest one if it does not fit.
fn shifted(window: u16, by: i8) -> u16 {
    match by {
        by if by < 0 => window.checked_shr(by.unsigned_abs().into()).unwrap_or(0),
        by => u16::try_from(u64::from(window) << by).unwrap_or(u16::MAX),
    }
}

const SYN_ACK: tcp::Flags = tcp::Flags(tcp::Flags::SYN.0 | tcp::Flags::ACK.0);
/// The window scale that the director announces, the usual one of a real server.
const SCALE: u8 = 7;
/// The number of SYNs that a destination gets.
const TRIES: u8 = 3;
/// The timeout of a connection that another worker has completed at the same time.
const COMPLETED: Duration = Duration::from_secs(60);
/// The time between the first two SYNs; it then doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
