//! Tunnelling: the packet travels whole inside another, addressed to the destination (IPIP, RFC 2003).
//!
//! The outer header takes its type of service, time to live and don't-fragment bit from the inner one, as IPVS
//! does; its identification is 0 where fragmentation is forbidden (RFC 6864).

use std::net::IpAddr;

use xvs_proto::{Packet, Protocol, ipv4};

use super::{Ends, Identification, admit_request, overhead, strip, v4};
use crate::shm::Frame;
use crate::snapshot::Hop;
use crate::verdict::DropReason;

/// The least path that a tunnel can use, in bytes beside its own headers (RFC 791: every link takes 68).
const LEAST_MTU: u32 = 68;

pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    hop: Hop,
    ids: &mut Identification,
) -> Result<(), DropReason> {
    let overhead = overhead(ends.method);
    let (Some(IpAddr::V4(source)), Some(dest)) = (ends.source, v4(ends.dest)) else {
        // The director has no IPv4 address at all.
        return Err(DropReason::NoRoute);
    };
    if hop.mtu < LEAST_MTU + overhead {
        return Err(DropReason::NeedsFragmenting);
    }
    admit_request(frame, packet, hop.mtu, overhead)?;
    strip(frame, packet);
    let outer = ipv4::Header {
        tos: outer_tos(packet.tos),
        payload_len: packet.length() as u16,
        id: if packet.dont_fragment { 0 } else { ids.take() },
        dont_fragment: packet.dont_fragment,
        ttl: packet.ttl - 1,
        protocol: Protocol::IPIP,
        source,
        dest,
    };
    if !frame.grow_front(ipv4::HEADER_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    outer.emit(frame.bytes_mut());
    Ok(())
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
}
