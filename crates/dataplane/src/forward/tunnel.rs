//! Tunnelling: the packet travels whole inside another, addressed to the destination, alone (IP in IP) or behind a
//! GRE header or behind UDP and GUE headers.
//!
//! The outer header takes its type of service, time to live and don't-fragment bit from the inner one, as IPVS
//! does; its identification is 0 where fragmentation is forbidden (RFC 6864). Where the packet must not be fragmented
//! its sender is told of the path less the tunnel's own headers; else the outer packet is as long as it comes to be.

use std::net::IpAddr;
use std::ops::Range;

use xvs_proto::checksum::{Coverage, Delta};
use xvs_proto::{Packet, Protocol, ethernet, gre, gue, ipv4, udp};

use super::{Ends, Outer, check_size, check_ttl, decrement_ttl, strip};
use crate::shm::Frame;
use crate::snapshot::{Encapsulation, Hop};
use crate::verdict::DropReason;

/// The least path that a tunnel can use, in bytes beside its own headers (RFC 791: every link takes 68).
const LEAST_MTU: u32 = 68;

/// The ports that GUE packets come from, one a flow: those that Linux gives to sockets (kernel
/// `Documentation/networking/ip-sysctl.rst`, `ip_local_port_range`).
const SOURCE_PORTS: Range<u16> = 32768..60999;

pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
    outer: Outer<'_>,
) -> Result<(), DropReason> {
    let (Some(IpAddr::V4(source)), IpAddr::V4(dest)) = (outer.tunnel.source, ends.dest.addr) else {
        // The director has no address of the destination's family.
        return Err(DropReason::NoRoute);
    };
    let encapsulation = outer.tunnel.encapsulation;
    let overhead = ipv4::HEADER_LEN + encapsulation.header_len();
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    if hop.mtu < LEAST_MTU + overhead as u32 {
        return Err(DropReason::PathTooNarrow);
    }
    if outer.pmtu_disc {
        match check_size(packet, hop.mtu, overhead as u32) {
            // What the path does not take whole is fragmented with its outer header.
            Err(DropReason::NeedsFragmenting) => {}
            checked => checked?,
        }
    }
    strip(frame, packet);
    if !frame.grow_front(overhead) {
        return Err(DropReason::NoHeadroom);
    }
    let dont_fragment = packet.dont_fragment && outer.pmtu_disc;
    let header = ipv4::Header {
        tos: outer_tos(packet.tos),
        payload_len: (frame.len() - ipv4::HEADER_LEN) as u16,
        id: if dont_fragment { 0 } else { outer.ids.take() },
        dont_fragment,
        ttl: packet.ttl - 1,
        protocol: encapsulation.protocol(),
        source,
        dest,
    };
    let (network, payload) = frame.bytes_mut().split_at_mut(ipv4::HEADER_LEN);
    header.emit(network);
    match encapsulation {
        Encapsulation::Ip => {}
        Encapsulation::Gre(coverage) => gre::emit(payload, ethernet::TYPE_IPV4, coverage),
        Encapsulation::Gue { port, coverage } => {
            gue::emit(&mut payload[udp::HEADER_LEN..], Protocol::IPIP);
            udp::emit(payload, source_port(outer.flow_hash), port);
            if coverage == Coverage::Whole {
                // There is none yet, so it is computed.
                udp::update_checksum(payload, Delta::default(), source.into(), dest.into());
            }
        }
    }
    if frame.len() > hop.mtu as usize { Err(DropReason::NeedsFragmenting) } else { Ok(()) }
}

impl Encapsulation {
    /// Bytes between the outer network header and the packet.
    fn header_len(self) -> usize {
        match self {
            Self::Ip => 0,
            Self::Gre(coverage) => gre::header_len(coverage),
            Self::Gue { .. } => udp::HEADER_LEN + gue::HEADER_LEN,
        }
    }

    /// What the outer network header announces.
    fn protocol(self) -> Protocol {
        match self {
            Self::Ip => Protocol::IPIP,
            Self::Gre(_) => Protocol::GRE,
            Self::Gue { .. } => Protocol::UDP,
        }
    }
}

/// The port that shows a flow to routers and receive queues.
fn source_port(flow_hash: u64) -> u16 {
    let span = u64::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
    SOURCE_PORTS.start + ((flow_hash >> 32) * span >> 32) as u16
}

/// DSCP and ECN are copied, except that congestion experienced inside starts anew outside (RFC 3168 §9.1).
fn outer_tos(inner: u8) -> u8 {
    const ECN: u8 = 0b11;
    const ECT_0: u8 = 0b10;
    if inner & ECN == ECN { inner & !ECN | ECT_0 } else { inner }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn congestion_experienced_inside_is_capable_transport_outside() {
        assert_eq!(outer_tos(0xb8 | 0b11), 0xb8 | 0b10);
        for tos in [0xb8, 0xb8 | 0b01, 0xb8 | 0b10, 0] {
            assert_eq!(outer_tos(tos), tos);
        }
    }

    #[test]
    fn every_flow_has_a_port_that_linux_gives_to_sockets() {
        assert_eq!(source_port(0), 32768);
        assert_eq!(source_port(u64::MAX), 60998);
        assert_eq!(source_port(1 << 63), 32768 + (60999 - 32768) / 2);
    }
}
