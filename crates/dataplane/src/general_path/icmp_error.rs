//! Received ICMP errors: the connection that each concerns, and how it is forwarded.
//!
//! Runs for each destination unreachable, source quench and time exceeded, and for every ICMPv6 error. The packet that
//! the error quotes identifies the connection. An error about a reply goes to the destination that sent the reply, by
//! the connection's method. An error about a masqueraded request goes to the client. An error about a tunnel's own
//! packet is replaced with an error about the inner packet for its client, and may lower the path MTU to the
//! destination. No state changes and no timeout is extended. An error that concerns no connection goes to the kernel.
//! Cost: one look-up; two if the quoted packet may belong to a tunnel. `forward/icmp.rs` rewrites errors.
//!
//! Source: ipvs-behaviour, section 2.5; for tunnels of and in IPv6, which IPVS does not recognise, RFC 2473 §8.

use xvs_proto::udp::HEADER_LEN as UDP_HEADER_LEN;
use xvs_proto::{Family, FlowKey, Fragment, LinkId, Packet, Protocol, ftp, gre, gue, icmp, quoted};
use xvs_sched::{ForwardingMethod, SynProxy};
use xvs_xdp::Frame;

use super::icmp_originate::{ErrorSource, IcmpError};
use super::{client_address, no_destination, syn_proxy};
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Numbers};
use crate::forward::{self, Ends};
use crate::new_connection::connect::{Begun, connect};
use crate::new_connection::service::{Marked, is_valid_source};
use crate::offload::Offloader;
use crate::snapshot::{Destination, DestinationId, Encapsulation};
use crate::verdict::{DropReason, Verdict};

/// How an ICMP error is treated.
#[derive(Debug)]
pub enum ErrorAction {
    /// The error's frame gets this verdict.
    Verdict(Verdict),
    /// The error is not forwarded; the client gets another error instead.
    Relay(Relay),
}

/// The error that a client gets instead of one about a tunnel.
#[derive(Debug)]
pub struct Relay {
    /// The quoted bytes of the client's packet inside the tunnel, by their positions in the frame.
    pub about: Packet,
    /// The error to report about it.
    pub error: icmp::Error,
}

impl Relay {
    /// The ICMP error to the client. `frame` and `link` are those of the received error.
    pub fn icmp_error<'a>(&'a self, frame: &'a Frame, link: LinkId) -> IcmpError<'a> {
        IcmpError { packet: &self.about, frame, link, error: self.error, source: ErrorSource::Receiver }
    }
}

/// Finds the connection that an ICMP error concerns, and edits the error's frame for forwarding.
pub(crate) fn process(flows: &mut Flows, p: &mut FramedPacket<'_>, cx: Context<'_>) -> ErrorAction {
    let family = p.packet.family();
    let Some(quote) = quoted(p.frame.bytes(), p.packet.transport + icmp::HEADER_LEN..p.packet.end, family)
        // A later fragment has no ports, so it identifies no connection.
        .filter(|quote| quote.fragment != Fragment::Later)
    else {
        return ErrorAction::Verdict(Verdict::PassToKernel);
    };
    let answers = quote.connection_key().reversed();
    let found = match cx.snapshot.services.any_of(family) {
        true => flows.table.find(&answers, flows.table.hash(&answers)),
        false => None,
    };
    ErrorAction::Verdict(match found {
        Some((id, Direction::Outbound)) => about_request(flows, p, &quote, id, cx),
        _ if cx.snapshot.settings.requests_stay => Verdict::PassToKernel,
        Some((id, Direction::Inbound)) => about_reply(flows, p, &quote, id, cx),
        None => match about_tunnel(flows, p, &quote, cx) {
            Some(action) => return action,
            None => schedule(flows, p, &quote, cx),
        },
    })
}

/// An error about a packet from the virtual endpoint to the client.
fn about_reply(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    quote: &Packet,
    id: ConnId,
    cx: Context<'_>,
) -> Verdict {
    let connection = flows.table.connection(id);
    let ends = Ends::of(&connection);
    if !ends.method.masquerades() {
        connection.count_in_packet();
    }
    if connection.is_bypass() {
        return no_destination::bypass(flows, &mut p.with(Some(&fragmentable(p.packet))), cx);
    }
    // As in IPVS, a removed destination gets the error, too.
    let destination = cx.snapshot.destination(p.link, DestinationId(connection.dest_ref()));
    to_destination(flows, p, quote, (&ends, connection.numbers()), destination, cx)
}

/// Sends an error to a destination by its connection's method, and translates the number that it quotes.
fn to_destination(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    quote: &Packet,
    (ends, numbers): (&Ends, Option<Numbers>),
    destination: Option<&Destination>,
    cx: Context<'_>,
) -> Verdict {
    let Some(destination) = destination else {
        return Verdict::Drop(DropReason::DestinationUnavailable);
    };
    if ends.method.masquerades() && !forward::icmp::is_summed(p.frame, p.packet) {
        return Verdict::Drop(DropReason::IcmpChecksum);
    }
    if let Some(numbers) = numbers {
        syn_proxy::quoted(p.frame, quote, numbers);
    }
    if destination.available {
        flows.count_request(destination, p.packet);
    }
    let fragmentable = fragmentable(p.packet);
    match ends.method {
        ForwardingMethod::Nat | ForwardingMethod::FullNat => {
            let path = destination.path;
            forward::icmp::request(p.frame, p.link, &fragmentable, quote, ends, path, &mut flows.ids)
        }
        // A tunnel copies the don't-fragment bit of the packet into its outer header.
        ForwardingMethod::Tunnel => flows.forward(p, ends, destination, cx),
        _ => flows.forward(&mut p.with(Some(&fragmentable)), ends, destination, cx),
    }
}

/// An error about a packet from the client to the destination. If the method does not masquerade, the quoted packet is
/// as the client sent it, and the kernel routes the error to the client.
fn about_request(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    quote: &Packet,
    id: ConnId,
    cx: Context<'_>,
) -> Verdict {
    let packet = p.packet;
    let connection = flows.table.connection(id);
    let ends = Ends::of(&connection);
    let destination = cx.snapshot.destinations.available_for(&connection);
    let sender = ends.local.unwrap_or(ends.client).addr;
    if !ends.method.masquerades() || packet.flow.dest.addr != sender {
        // The kernel routes it; an ICMPv6 error from the virtual address counts as a reply.
        if packet.family() == Family::V6
            && packet.flow.source.addr == ends.virtual_endpoint.addr
            && let Some(destination) = destination
        {
            flows.count_reply(destination, packet);
        }
        return Verdict::PassToKernel;
    }
    if !forward::icmp::is_summed(p.frame, packet) {
        return Verdict::Drop(DropReason::IcmpChecksum);
    }
    match (Report::read(p.frame.bytes(), packet), destination) {
        (Report::TooBig { mtu }, Some(destination)) if client_address::lengthens(&connection) => {
            learn(flows, destination, mtu, &ends, cx);
        }
        (Report::Other { .. }, Some(destination)) => count_rejected(&connection, destination, cx),
        _ => {}
    }
    client_address::quoted(p.frame, quote, &connection);
    let path = cx.snapshot.path_to_client(p.link, packet, &ends, flows.table.hash(&quote.flow));
    let verdict = forward::icmp::reply(p.frame, packet, quote, &ends, path, &mut flows.ids);
    if !forward::is_refused(verdict)
        && let Some(destination) = destination
    {
        flows.count_reply(destination, packet);
    }
    verdict
}

/// Counts a TCP connection whose first packet caused an error, unless the error concerns its length.
fn count_rejected(connection: &Connection<'_>, destination: &Destination, cx: Context<'_>) {
    if connection.protocol() == Protocol::TCP
        && TcpState::of(connection.state()) == TcpState::SynRecv
        && connection.in_packets() == 1
    {
        destination.live.count_rejected(cx.now);
    }
}

/// Records a path MTU. The headers of offloaded tunnels were computed from the former one.
fn learn(flows: &Flows, destination: &Destination, mtu: u32, ends: &Ends, cx: Context<'_>) {
    if destination.path_mtu.learn(mtu, ends.dest.addr, cx.now) {
        flows.offloader.iter().for_each(Offloader::end_all);
    }
}

/// An error about the outer packet of a tunnel; `None` if it is about another packet.
fn about_tunnel(flows: &Flows, p: &FramedPacket<'_>, outer: &Packet, cx: Context<'_>) -> Option<ErrorAction> {
    let FramedPacket { frame, packet, .. } = p;
    let (about, encapsulation) = inner_packet(frame.bytes(), outer)?;
    if !cx.snapshot.services.any_of(about.family()) {
        return None;
    }
    let (id, Direction::Inbound) = flows.table.find(&about.flow, flows.table.hash(&about.flow))? else {
        return None;
    };
    let connection = flows.table.connection(id);
    let ends = Ends::of(&connection);
    let destination = cx.snapshot.destinations.of(&connection)?;
    let tunnel = destination.tunnel;
    // The VRF of the requests is not known here.
    let mut sources =
        [tunnel].into_iter().chain(destination.in_vrfs.iter().map(|of| of.tunnel)).map(|of| of.source);
    // An attacker who guesses a connection does not know the director's source address for the tunnel.
    if ends.method != ForwardingMethod::Tunnel
        || ends.dest.addr != outer.flow.dest.addr
        || !sources.any(|source| source == Some(outer.flow.source.addr))
        || !encapsulation.is(tunnel.encapsulation)
    {
        return None;
    }
    if !forward::icmp::is_summed(frame, packet) {
        return Some(ErrorAction::Verdict(Verdict::Drop(DropReason::IcmpChecksum)));
    }
    let report = Report::read(frame.bytes(), packet);
    if matches!(report, Report::Other { .. }) {
        count_rejected(&connection, destination, cx);
    }
    let error = match report {
        Report::TooBig { mtu } => {
            learn(flows, destination, mtu, &ends, cx);
            if about.family() == Family::V4 && !about.dont_fragment {
                // From now on the director fragments the client's packets.
                return Some(ErrorAction::Verdict(Verdict::Consumed));
            }
            let link_mtu = destination.best_path().hop().map_or(u32::MAX, |hop| hop.mtu);
            let path_mtu = destination.path_mtu.at(cx.now);
            let room = forward::room(&ends, tunnel, link_mtu, path_mtu, about.family());
            icmp::Error::FragmentationNeeded { mtu: u16::try_from(room).unwrap_or(u16::MAX) }
        }
        // The client cannot solve a parameter problem of the director's own header.
        Report::Other { type_and_code: [4, _], .. } if packet.family() == Family::V6 => return None,
        Report::Other { type_and_code, rest } if packet.family() == about.family() => {
            icmp::Error::Reported { type_and_code, rest }
        }
        Report::Other { .. } => icmp::Error::HostUnreachable,
    };
    Some(ErrorAction::Relay(Relay { about, error }))
}

/// Counts an error that was sent to a client instead of one about a tunnel. As in IPVS, the bytes of the quoted packet
/// and those of the message are both counted.
pub(crate) fn count_relay(flows: &Flows, relay: &Relay, bytes: usize, cx: Context<'_>) {
    let connection = flows.find_request(&relay.about, flows.table.hash(&relay.about.connection_key()));
    for bytes in [relay.about.length(), bytes] {
        flows.count_icmp_error(connection, bytes, cx.snapshot);
    }
}

/// An error about a packet that belongs to no connection: begins a connection if configured (`schedule_icmp`). Several
/// directors whose schedulers hash therefore send the error to the same destination as the client's packets.
fn schedule(flows: &mut Flows, p: &mut FramedPacket<'_>, quote: &Packet, cx: Context<'_>) -> Verdict {
    let FramedPacket { link, packet, .. } = *p;
    let snapshot = cx.snapshot;
    let request = Packet { flow: quote.flow.reversed(), ..*quote };
    let FlowKey { source: client, dest, .. } = request.flow;
    if !snapshot.settings.schedule_icmp
        || link.is_own()
        || !request.has_ports()
        || !snapshot.services.any_of(packet.family())
        || client.port == ftp::DATA_PORT
        || !is_valid_source(client.addr, dest.addr, link, snapshot)
    {
        return Verdict::PassToKernel;
    }
    let mark = snapshot.marks.of(link, packet);
    let Some(service) = snapshot.services.for_packet(mark, request.flow.protocol, dest) else {
        return Verdict::PassToKernel;
    };
    // Nothing proves that this client exists.
    if request.flow.protocol == Protocol::TCP && service.syn_proxy != SynProxy::Off {
        return Verdict::PassToKernel;
    }
    match connect(flows, &p.with(Some(&request)), Marked { service, mark }, cx) {
        Ok(Begun::Connection(id) | Begun::Existing(id)) => about_reply(flows, p, quote, id, cx),
        Ok(Begun::OnePacket(ends, id)) => {
            to_destination(flows, p, quote, (&ends, None), snapshot.destination(link, id), cx)
        }
        Err(verdict) => verdict,
    }
}

/// The packet without its don't-fragment bit: its size must not cause another error.
fn fragmentable(packet: &Packet) -> Packet {
    Packet { dont_fragment: false, ..*packet }
}

/// The content of an ICMP error.
enum Report {
    /// The packet is larger than this path MTU, in bytes.
    TooBig { mtu: u32 },
    /// Another error: its type, code and remaining header in the format of its family.
    Other { type_and_code: [u8; 2], rest: [u8; 4] },
}

impl Report {
    fn read(frame: &[u8], packet: &Packet) -> Self {
        let header = &frame[packet.transport..];
        let rest = [header[4], header[5], header[6], header[7]];
        match (packet.family(), [header[0], header[1]]) {
            (Family::V4, [3, 4]) => Self::TooBig { mtu: u16::from_be_bytes([rest[2], rest[3]]).into() },
            (Family::V6, [2, _]) => Self::TooBig { mtu: u32::from_be_bytes(rest) },
            (_, type_and_code) => Self::Other { type_and_code, rest },
        }
    }
}

/// The encapsulation in a quoted packet.
enum QuotedEncapsulation {
    Ip,
    Gre,
    Gue { port: u16 },
}

impl QuotedEncapsulation {
    fn is(&self, encapsulation: Encapsulation) -> bool {
        match (self, encapsulation) {
            (Self::Ip, Encapsulation::Ip) | (Self::Gre, Encapsulation::Gre(_)) => true,
            (Self::Gue { port }, Encapsulation::Gue { port: to, .. }) => *port == to,
            _ => false,
        }
    }
}

/// The inner packet of a quoted packet that may be a tunnel's, if enough of it is quoted.
fn inner_packet(frame: &[u8], outer: &Packet) -> Option<(Packet, QuotedEncapsulation)> {
    let behind = &frame[outer.transport..outer.end];
    let (header_len, family, encapsulation) = match outer.flow.protocol {
        Protocol::GRE => {
            let (ethertype, len) = gre::read(behind)?;
            (len, Family::of_ethertype(ethertype)?, QuotedEncapsulation::Gre)
        }
        Protocol::UDP => {
            let family = Family::of_protocol(gue::read(behind.get(UDP_HEADER_LEN..)?)?)?;
            let encapsulation = QuotedEncapsulation::Gue { port: outer.flow.dest.port };
            (UDP_HEADER_LEN + gue::HEADER_LEN, family, encapsulation)
        }
        protocol => (0, Family::of_protocol(protocol)?, QuotedEncapsulation::Ip),
    };
    let packet = quoted(frame, outer.transport + header_len..outer.end, family)?;
    (packet.fragment != Fragment::Later).then_some((packet, encapsulation))
}
