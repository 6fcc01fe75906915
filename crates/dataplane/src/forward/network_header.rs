//! Network headers that the director writes completely: of translated packets, around tunnelled packets, and of its own
//! packets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::{Protocol, ipv4, ipv6};

/// The addresses of a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Addresses {
    /// The source and destination for IPv4.
    V4(Ipv4Addr, Ipv4Addr),
    /// The source and destination for IPv6.
    V6(Ipv6Addr, Ipv6Addr),
}

impl Addresses {
    /// The addresses, if source and destination belong to one family.
    pub(crate) fn of(source: IpAddr, dest: IpAddr) -> Option<Self> {
        match (source, dest) {
            (IpAddr::V4(source), IpAddr::V4(dest)) => Some(Self::V4(source, dest)),
            (IpAddr::V6(source), IpAddr::V6(dest)) => Some(Self::V6(source, dest)),
            _ => None,
        }
    }

    /// Source and destination.
    pub(super) fn ends(self) -> (IpAddr, IpAddr) {
        match self {
            Self::V4(source, dest) => (source.into(), dest.into()),
            Self::V6(source, dest) => (source.into(), dest.into()),
        }
    }
}

/// The variable fields of a network header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) tos: u8,
    pub(crate) ttl: u8,
    pub(crate) protocol: Protocol,
    pub(crate) payload_len: u16,
    /// The identification of an IPv4 packet that may be fragmented; `None` if it may not.
    pub(crate) id: Option<u16>,
}

impl Fields {
    pub(crate) fn emit(self, addresses: Addresses, bytes: &mut [u8]) {
        let Self { tos, ttl, protocol, payload_len, id } = self;
        match addresses {
            Addresses::V4(source, dest) => ipv4::Header {
                tos,
                payload_len,
                id: id.unwrap_or(0),
                dont_fragment: id.is_none(),
                ttl,
                protocol,
                source,
                dest,
            }
            .emit(bytes),
            Addresses::V6(source, dest) => ipv6::Header {
                traffic_class: tos,
                payload_len,
                next_header: protocol,
                hop_limit: ttl,
                source,
                dest,
            }
            .emit(bytes),
        }
    }
}
