//! The keys by which the XDP program finds the record of a packet.

use std::net::IpAddr;

use xvs_proto::FlowKey;

/// A key of the map of a family (`struct xvs_flow_v4`, `struct xvs_flow_v6` in `bpf/maps.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    V4([u8; V4]),
    V6([u8; V6]),
}

pub(super) const V4: usize = 16;
pub(super) const V6: usize = 40;

/// The keys of requests and of replies, as far as those are forwarded.
pub(super) type FlowKeys = [Option<Key>; 2];

impl Key {
    /// The key of packets with these endpoints. `None`: they are of two families.
    pub(super) fn of(flow: &FlowKey) -> Option<Self> {
        match (flow.source.addr, flow.dest.addr) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Some(Self::V4(bytes(flow, from.octets(), to.octets()))),
            (IpAddr::V6(from), IpAddr::V6(to)) => Some(Self::V6(bytes(flow, from.octets(), to.octets()))),
            _ => None,
        }
    }
}

fn bytes<const A: usize, const K: usize>(flow: &FlowKey, source: [u8; A], dest: [u8; A]) -> [u8; K] {
    let mut key = [0; K];
    key[..A].copy_from_slice(&source);
    key[A..2 * A].copy_from_slice(&dest);
    key[2 * A..2 * A + 2].copy_from_slice(&flow.source.port.to_be_bytes());
    key[2 * A + 2..2 * A + 4].copy_from_slice(&flow.dest.port.to_be_bytes());
    key[2 * A + 4..].copy_from_slice(&u32::from(flow.protocol.0).to_ne_bytes());
    key
}
