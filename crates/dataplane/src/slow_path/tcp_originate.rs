//! TCP packets that the director itself makes: resets and probes.
//!
//! Not here: their link header, which depends on how they are forwarded.

use std::net::IpAddr;

use xvs_proto::{Endpoint, Protocol, ipv4, ipv6};
use xvs_xdp::Frame;

use crate::port::Port;

/// A new frame that contains an IP packet with a TCP segment, from the first to the second of `ends`. `write` writes
/// the segment of this length in bytes. `None` if no frame is free.
pub(crate) fn tcp_frame(
    port: &mut impl Port,
    ends: (Endpoint, Endpoint),
    segment_len: usize,
    write: impl FnOnce(&mut [u8]),
) -> Option<Frame> {
    let (source, dest) = ends;
    let network_len = match dest.addr {
        IpAddr::V4(_) => ipv4::HEADER_LEN,
        IpAddr::V6(_) => ipv6::HEADER_LEN,
    };
    let mut frame = port.allocate()?;
    let fits = frame.resize(network_len + segment_len);
    debug_assert!(fits, "two headers fit every frame");
    let (network, segment) = frame.bytes_mut().split_at_mut(network_len);
    write(segment);
    let payload_len = segment_len as u16;
    match (source.addr, dest.addr) {
        (IpAddr::V4(source), IpAddr::V4(dest)) => ipv4::Header {
            tos: 0,
            payload_len,
            id: 0,
            dont_fragment: true,
            ttl: HOPS,
            protocol: Protocol::TCP,
            source,
            dest,
        }
        .emit(network),
        (IpAddr::V6(source), IpAddr::V6(dest)) => ipv6::Header {
            traffic_class: 0,
            payload_len,
            next_header: Protocol::TCP,
            hop_limit: HOPS,
            source,
            dest,
        }
        .emit(network),
        _ => debug_assert!(false, "a packet's ends are of one family"),
    }
    Some(frame)
}

/// The time to live.
const HOPS: u8 = 64;
