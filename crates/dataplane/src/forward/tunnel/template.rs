//! Prepared outer headers, for plain packets that fit into a tunnel whole.
//!
//! Created with the snapshot, by the function that writes the headers of any packet. A packet then costs one copy, and
//! the few fields that differ from packet to packet. Checksums over the packet cannot be prepared.

use std::sync::Arc;

use xvs_proto::checksum::{Coverage, Sum};
use xvs_proto::{Endpoint, Family, HashSecret, Plain, ethernet, ipv4, ipv6, udp};
use xvs_xdp::Frame;

use super::{
    Addresses, Carried, Encapsulation, Hop, Identification, Outer, PathMtu, Tunnel, encapsulate, header_len,
    least_mtu, outer_tos, source_port,
};
use crate::clock::Millis;

/// Maximum length of a link header and outer headers in bytes: IPv6, UDP and GUE.
const MOST: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + udp::HEADER_LEN + xvs_proto::gue::HEADER_LEN;

/// The link header and outer headers for packets in one family to one destination.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: [u8; MOST],
    len: usize,
    /// The family of the outer header.
    family: Family,
    /// The sum of an outer IPv4 header's constant fields.
    sum: Sum,
    has_udp: bool,
    /// The largest outer packet that the link takes, in bytes.
    largest: u32,
    path_mtu: Arc<PathMtu>,
}

/// The outer header fields that all packets in a flow have in common.
#[derive(Debug, Clone)]
pub(crate) struct FlowHeaders {
    /// The headers, without a link header. Fields that differ from packet to packet are 0.
    pub(crate) bytes: [u8; MOST - ethernet::HEADER_LEN],
    pub(crate) len: usize,
    /// The family of the outer header.
    pub(crate) family: Family,
    /// The sum of an outer IPv4 header.
    pub(crate) sum: u16,
    pub(crate) has_udp: bool,
    /// The largest packet that fits into the tunnel whole, in bytes.
    pub(crate) room: u32,
}

impl Template {
    /// The templates for IPv4 and IPv6 packets. `None` if there is no valid source, the headers have a checksum over
    /// the packet, or the link's MTU is too small.
    pub(crate) fn pair(
        tunnel: Tunnel,
        dest: Endpoint,
        hop: Hop,
        path_mtu: &Arc<PathMtu>,
    ) -> Option<Arc<[Self; 2]>> {
        let addresses = tunnel.addresses(dest)?;
        let covers_packet = match tunnel.encapsulation {
            Encapsulation::Ip => false,
            Encapsulation::Gre(coverage) | Encapsulation::Gue { coverage, .. } => coverage == Coverage::Whole,
        };
        let overhead = header_len(dest, tunnel.encapsulation);
        if covers_packet || hop.mtu < least_mtu(dest.family()) + overhead as u32 {
            return None;
        }
        let families = [Family::V4, Family::V6];
        Some(Arc::new(families.map(|family| Self::of(family, tunnel, addresses, dest, hop, path_mtu))))
    }

    /// The template for packets in this family.
    fn of(
        family: Family,
        tunnel: Tunnel,
        addresses: Addresses,
        dest: Endpoint,
        hop: Hop,
        path_mtu: &Arc<PathMtu>,
    ) -> Self {
        let mut bytes = [0; MOST];
        ethernet::emit(&mut bytes, hop.source_mac, hop.dest_mac, dest.family().ethertype());
        let overhead = header_len(dest, tunnel.encapsulation);
        let len = ethernet::HEADER_LEN + overhead;
        let headers = &mut bytes[ethernet::HEADER_LEN..len];
        let carried = Carried { family, tos: 0, ttl: 0, dont_fragment: false };
        let outer = Outer {
            tunnel,
            pmtu_disc: false,
            path_mtu,
            now: Millis(0),
            flow_hash: 0,
            ids: &mut Identification::numbered(HashSecret([0; 3]), 0),
        };
        encapsulate(headers, carried, addresses, overhead, outer);
        if dest.family() == Family::V4 {
            for field in [ipv4::field::TOTAL_LEN, ipv4::field::ID, ipv4::field::CHECKSUM] {
                headers[field].fill(0);
            }
        }
        Self {
            sum: Sum::default().bytes(&headers[..ipv4::HEADER_LEN]),
            bytes,
            len,
            family: dest.family(),
            has_udp: matches!(tunnel.encapsulation, Encapsulation::Gue { .. }),
            largest: hop.mtu.min(u16::MAX.into()),
            path_mtu: path_mtu.clone(),
        }
    }

    /// Prepends the headers to a plain packet. Returns `false` and changes nothing unless the packet fits the path
    /// whole.
    #[inline]
    pub(crate) fn send(
        &self,
        frame: &mut Frame,
        plain: &Plain,
        flow_hash: u64,
        pmtu_disc: bool,
        now: Millis,
        ids: &mut Identification,
    ) -> bool {
        let overhead = self.len - ethernet::HEADER_LEN;
        let total = usize::from(plain.len) + overhead;
        if total > self.largest.min(self.path_mtu.at(now)) as usize || frame.headroom() < overhead {
            return false;
        }
        plain.decrement_ttl(frame.bytes_mut());
        let (inner_tos, ttl) = plain.tos_and_ttl(frame.bytes());
        let tos = outer_tos(inner_tos);
        let grown = frame.grow_front(overhead);
        debug_assert!(grown, "there is room");
        let bytes = frame.bytes_mut();
        self.copy(bytes);
        let header = &mut bytes[ethernet::HEADER_LEN..];
        let network_len = match self.family {
            Family::V4 => {
                let carried = Carried { family: plain.family, tos, ttl, dont_fragment: plain.dont_fragment };
                let (id, flags) = match carried.identification(pmtu_disc, ids) {
                    Some(id) => (id, 0),
                    None => (0, ipv4::DONT_FRAGMENT),
                };
                let checksum = [tos.into(), total as u16, id, flags, u16::from(ttl) << 8]
                    .into_iter()
                    .fold(self.sum, Sum::word)
                    .checksum();
                header[ipv4::field::TOS] = tos;
                header[ipv4::field::TOTAL_LEN].copy_from_slice(&(total as u16).to_be_bytes());
                header[ipv4::field::ID].copy_from_slice(&id.to_be_bytes());
                header[ipv4::field::FLAGS_OFFSET].copy_from_slice(&flags.to_be_bytes());
                header[ipv4::field::TTL] = ttl;
                header[ipv4::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
                ipv4::HEADER_LEN
            }
            Family::V6 => {
                header[0] |= tos >> 4;
                header[1] |= tos << 4;
                let payload = (total - ipv6::HEADER_LEN) as u16;
                header[ipv6::field::PAYLOAD_LEN].copy_from_slice(&payload.to_be_bytes());
                header[ipv6::field::HOP_LIMIT] = ttl;
                ipv6::HEADER_LEN
            }
        };
        if self.has_udp {
            let datagram = &mut header[network_len..];
            datagram[udp::field::SOURCE].copy_from_slice(&source_port(flow_hash).to_be_bytes());
            let len = (total - network_len) as u16;
            datagram[udp::field::LENGTH].copy_from_slice(&len.to_be_bytes());
        }
        true
    }

    /// The outer headers for a flow's packets in this family, for the XDP program. `None` if they need identifications,
    /// or the path accepts no packets.
    pub(crate) fn of_flow(
        &self,
        family: Family,
        flow_hash: u64,
        pmtu_disc: bool,
        now: Millis,
    ) -> Option<FlowHeaders> {
        if self.family == Family::V4 && (family == Family::V6 || !pmtu_disc) {
            return None;
        }
        let overhead = self.len - ethernet::HEADER_LEN;
        let mut bytes = [0; MOST - ethernet::HEADER_LEN];
        bytes[..overhead].copy_from_slice(&self.bytes[ethernet::HEADER_LEN..self.len]);
        if self.has_udp {
            let source = &mut bytes[self.family.header_len()..][udp::field::SOURCE];
            source.copy_from_slice(&source_port(flow_hash).to_be_bytes());
        }
        Some(FlowHeaders {
            bytes,
            len: overhead,
            family: self.family,
            sum: !self.sum.checksum(),
            has_udp: self.has_udp,
            room: self.largest.min(self.path_mtu.at(now)).checked_sub(overhead as u32)?,
        })
    }

    /// Copies the headers. The length is constant, so no function call is needed.
    #[inline]
    fn copy(&self, bytes: &mut [u8]) {
        const V4: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;
        const V6: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN;
        match self.len {
            V4 => bytes[..V4].copy_from_slice(&self.bytes[..V4]),
            V6 => bytes[..V6].copy_from_slice(&self.bytes[..V6]),
            len => bytes[..len].copy_from_slice(&self.bytes[..len]),
        }
    }
}
