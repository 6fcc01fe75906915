//! The packet that a question concerns, described or given as a frame, and the interface that receives it.
//!
//! A described packet has no options and correct checksums. Its link-layer sender is the next hop towards its source.

use std::net::IpAddr;

use xvs_dataplane::egress::{Egress, LinkInfo, RouteTo};
use xvs_dataplane::explain::FRAME_BYTES;
use xvs_model::config::refusal::CommandError;
use xvs_model::hexadecimal;
use xvs_model::report::explain::{Proto, Question};
use xvs_proto::LinkId;
use xvs_proto::network::{RouteKey, Table};
use xvs_proto::{Endpoint, MacAddr, Protocol, checksum, ethernet, ipv4, ipv6, sctp, tcp, udp};

/// The key of the route look-up for a reply to a packet in a VRF, or in none.
fn back(from: Endpoint, to: Endpoint, vrf: Option<Table>) -> RouteKey {
    RouteKey { dest: from.addr, source: to.addr, mark: 0, vrf }
}

/// The interface towards a source, and its link address. Packets from this machine to itself arrive on `lo`. If several
/// VRFs have a route, it is the interface in the VRF that has the packet's destination.
fn by_source(from: Endpoint, to: Endpoint, egress: &Egress) -> Result<(LinkId, MacAddr), CommandError> {
    [egress.vrf_of_address(to.addr), None]
        .into_iter()
        .chain(egress.vrfs().iter().copied().map(Some))
        .find_map(|vrf| match egress.route(back(from, to, vrf), 0) {
            RouteTo::Via { link, .. } => egress.link(link).map(|info| (link, info.mac)),
            RouteTo::Local => Some((LinkId::LOOPBACK, UNKNOWN_MAC)),
            RouteTo::Unreachable | RouteTo::NoRoute => None,
        })
        .ok_or_else(|| {
            invalid(&format!(
                "{} is reached by no attached interface; name the interface that the packet comes in by",
                from.addr
            ))
        })
}

/// The transport header, followed by this many zero bytes.
fn segment(proto: Proto, flags: tcp::Flags, from: Endpoint, to: Endpoint, length: u16) -> Vec<u8> {
    let header = match proto {
        Proto::Tcp => tcp::HEADER_LEN,
        Proto::Udp => udp::HEADER_LEN,
        Proto::Sctp => sctp::HEADER_LEN + INIT.len(),
    };
    let mut segment = vec![0; header + usize::from(length)];
    segment[tcp::field::SOURCE].copy_from_slice(&from.port.to_be_bytes());
    segment[tcp::field::DEST].copy_from_slice(&to.port.to_be_bytes());
    match proto {
        Proto::Tcp => {
            segment[tcp::field::DATA_OFFSET] = (tcp::HEADER_LEN as u8 / 4) << 4;
            segment[tcp::field::FLAGS] = flags.0;
            let sum = checksum::transport(from.addr, to.addr, Protocol::TCP.0, &segment);
            segment[tcp::field::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        }
        Proto::Udp => {
            udp::emit(&mut segment, from.port, to.port);
            // A checksum field of 0 means that there is none (RFC 768).
            let sum = match checksum::transport(from.addr, to.addr, Protocol::UDP.0, &segment) {
                0 => u16::MAX,
                sum => sum,
            };
            segment[udp::field::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        }
        Proto::Sctp => {
            segment[sctp::HEADER_LEN..sctp::HEADER_LEN + INIT.len()].copy_from_slice(&INIT);
            sctp::write_checksum(&mut segment);
        }
    }
    segment
}

/// The IP packet that contains a segment.
fn packet(proto: Proto, from: IpAddr, to: IpAddr, ttl: u8, segment: &[u8]) -> Result<Vec<u8>, CommandError> {
    let payload_len = u16::try_from(segment.len()).map_err(|_| invalid("the packet is too long"))?;
    let protocol = number(proto);
    let mut header = match (from, to) {
        (IpAddr::V4(source), IpAddr::V4(dest)) => {
            if payload_len > u16::MAX - ipv4::HEADER_LEN as u16 {
                return Err(invalid("the packet is too long"));
            }
            let mut header = vec![0; ipv4::HEADER_LEN];
            ipv4::Header { tos: 0, payload_len, id: 0, dont_fragment: true, ttl, protocol, source, dest }
                .emit(&mut header);
            header
        }
        (IpAddr::V6(source), IpAddr::V6(dest)) => {
            let mut header = vec![0; ipv6::HEADER_LEN];
            let next_header = protocol;
            ipv6::Header { traffic_class: 0, payload_len, next_header, hop_limit: ttl, source, dest }
                .emit(&mut header);
            header
        }
        _ => return Err(invalid(&format!("{from} and {to} are of different families"))),
    };
    header.extend(segment);
    Ok(header)
}

/// TCP flags by their names.
fn flags(text: &str) -> Result<tcp::Flags, CommandError> {
    let mut bits = 0;
    for word in text.split([',', ' ']).filter(|word| !word.is_empty() && *word != "none") {
        let Some((_, flag)) = FLAGS.iter().find(|(name, _)| name.eq_ignore_ascii_case(word)) else {
            let why = format!("{word} is no flag of TCP; those are syn, ack, fin, rst, psh and none");
            return Err(invalid(&why));
        };
        bits |= flag.0;
    }
    Ok(tcp::Flags(bits))
}

/// The names of TCP flags.
pub(super) const FLAGS: [(&str, tcp::Flags); 5] = [
    ("syn", tcp::Flags::SYN),
    ("ack", tcp::Flags::ACK),
    ("fin", tcp::Flags::FIN),
    ("rst", tcp::Flags::RST),
    ("psh", tcp::Flags::PSH),
];

fn invalid(why: &str) -> CommandError {
    CommandError::invalid(format!("xvs explain: {why}"))
}

/// Sender's link address if the neighbour's is unknown.
const UNKNOWN_MAC: MacAddr = MacAddr([0; 6]);
/// The first chunk of an association (RFC 9260 §3.3.2): initiate tag 1, window 65,536, one stream in each direction,
/// TSN 1.
const INIT: [u8; 20] = [1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];

/// The frame, and the interface that receives it.
///
/// # Errors
/// The reason why the question is refused.
pub(super) fn frame(question: &Question, egress: &Egress) -> Result<(LinkId, Vec<u8>), CommandError> {
    let described = [question.proto.is_some(), question.from.is_some(), question.to.is_some()];
    let (link, mut frame) = match (&question.frame, question.proto, question.from, question.to) {
        (Some(_), ..)
            if described.contains(&true) || question.flags.is_some() || question.length.is_some() =>
        {
            return Err(invalid("a frame has its own protocol, endpoints and flags; leave them out"));
        }
        (Some(hex), ..) => given_frame(question, hex, egress)?,
        (None, Some(proto), Some(from), Some(to)) => described_frame(question, proto, from, to, egress)?,
        _ => return Err(invalid("a protocol, from and to are needed, or a frame")),
    };
    if frame.len() > FRAME_BYTES {
        return Err(invalid(&format!("a frame of {} bytes; {FRAME_BYTES} are possible", frame.len())));
    }
    // Frames on a VLAN are tagged, and received by the interface below.
    let Some((below, vlan)) = egress.tag(link) else { return Ok((link, frame)) };
    if frame.len() < ethernet::HEADER_LEN {
        return Err(invalid("a frame of a VLAN has an Ethernet header"));
    }
    frame.splice(0..0, [0; ethernet::TAG_LEN]);
    ethernet::push_tag(&mut frame, vlan);
    Ok((below, frame))
}

/// A frame given in hexadecimal.
fn given_frame(question: &Question, hex: &str, egress: &Egress) -> Result<(LinkId, Vec<u8>), CommandError> {
    let frame =
        hexadecimal::decode(hex).ok_or_else(|| invalid("a frame is an even number of hexadecimal digits"))?;
    let link = match named_interface(question, egress)? {
        Some((link, _)) => link,
        None => {
            let to = ethernet::parse(&frame).ok().map(|_| ethernet::dest(&frame));
            egress.links().find(|(_, info)| Some(info.mac) == to).map(|(link, _)| link).ok_or_else(|| {
                invalid("no interface has the frame's destination address; name the interface that it comes in by")
            })?
        }
    };
    Ok((link, frame))
}

/// The frame of a described packet.
fn described_frame(
    question: &Question,
    proto: Proto,
    from: Endpoint,
    to: Endpoint,
    egress: &Egress,
) -> Result<(LinkId, Vec<u8>), CommandError> {
    if question.flags.is_some() && proto != Proto::Tcp {
        return Err(invalid("only TCP has flags"));
    }
    let flags = flags(question.flags.as_deref().unwrap_or("syn"))?;
    let (link, mac) = match named_interface(question, egress)? {
        Some((link, info)) => (link, info.mac),
        None => by_source(from, to, egress)?,
    };
    let neighbour = match egress.route(back(from, to, egress.vrf(link)), 0) {
        RouteTo::Via { link: by, next_hop } if by == link => egress.neighbour(by, next_hop),
        _ => None,
    };
    let segment = segment(proto, flags, from, to, question.length.unwrap_or(0));
    let packet = packet(proto, from.addr, to.addr, question.ttl.unwrap_or(64), &segment)?;
    let mut frame = vec![0; ethernet::HEADER_LEN];
    let ethertype = if from.addr.is_ipv4() { ethernet::TYPE_IPV4 } else { ethernet::TYPE_IPV6 };
    ethernet::emit(&mut frame, neighbour.unwrap_or(UNKNOWN_MAC), mac, ethertype);
    frame.extend(packet);
    Ok((link, frame))
}

/// The interface named in the question.
fn named_interface<'e>(
    question: &Question,
    egress: &'e Egress,
) -> Result<Option<(LinkId, &'e LinkInfo)>, CommandError> {
    let Some(name) = &question.interface else { return Ok(None) };
    match egress.links().find(|(_, info)| info.name == *name) {
        Some(found) => Ok(Some(found)),
        None => {
            let known: Vec<_> = egress.links().map(|(_, info)| info.name.as_str()).collect();
            Err(invalid(&format!("no interface {name} is attached; those that are: {}", known.join(", "))))
        }
    }
}

fn number(proto: Proto) -> Protocol {
    match proto {
        Proto::Tcp => Protocol::TCP,
        Proto::Udp => Protocol::UDP,
        Proto::Sctp => Protocol::SCTP,
    }
}
