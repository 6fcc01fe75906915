//! The hash functions with which schedulers place clients, addresses and destinations.
//!
//! `dh`, `sh` and `mh` hash as the kernel does, so a client gets the server that it would get through IPVS. These
//! hashes have no secret key: a client that chooses its address can choose its bucket, but gains only a server that
//! others share. Cost: a multiplication, or a SipHash of four bytes. `lblc` and `lblcr`, whose buckets contain few
//! addresses, hash with a secret (`memory.rs`).

use std::net::IpAddr;

use siphasher::sip::SipHasher13;
use xvs_proto::Endpoint;

/// An address as one integer in host order: the exclusive or of the four 32-bit words of an IPv6 address.
pub(crate) fn folded(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(v4) => u32::from(v4),
        IpAddr::V6(v6) => {
            let [a, b] = [(u128::from(v6) >> 64) as u64, u128::from(v6) as u64];
            ((a ^ b) >> 32) as u32 ^ (a ^ b) as u32
        }
    }
}

/// One of 2^`bits` buckets. Source: ipvs-behaviour, section 5.2 (`hash32`).
pub(crate) fn bucket(value: u32, bits: u32) -> usize {
    (value.wrapping_mul(0x61c8_8647) >> (32 - bits)) as usize
}

/// SipHash-1-3 with a key that consists of the same 64 bits twice.
pub(crate) fn sip(key: u64, bytes: &[u8]) -> u64 {
    SipHasher13::new_with_keys(key, key).hash(bytes)
}

/// A number that identifies an endpoint and is never 0. It is unique for IPv4, and for IPv6 except for hash collisions.
pub(crate) fn identity(endpoint: Endpoint) -> u64 {
    let port = u64::from(endpoint.port);
    match endpoint.addr {
        IpAddr::V4(v4) => 1 << 48 | u64::from(u32::from(v4)) << 16 | port,
        IpAddr::V6(v6) => 1 << 63 | sip(port, &v6.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_kernel() {
        let of = |text: &str, port| bucket(folded(text.parse().unwrap()).wrapping_add(port), 8);
        let clients = ["192.168.1.1", "192.168.1.2", "192.168.1.10", "10.1.2.3"];
        assert_eq!(clients.map(|client| of(client, 0)), [136, 234, 248, 2]);
        assert_eq!(clients.map(|client| of(client, 1024)), [170, 12, 27, 36]);
    }

    #[test]
    fn an_ipv6_address_is_folded_word_by_word() {
        assert_eq!(folded("1:2:30:40:500:600:7000:8000".parse().unwrap()), 0x7531_8642);
    }

    #[test]
    fn endpoints_that_differ_in_family_address_or_port_differ() {
        let endpoints =
            ["192.0.2.1:80", "192.0.2.1:81", "192.0.2.2:80", "[::c000:201]:80", "[::c000:201]:81"];
        let mut all = endpoints.map(|text| {
            let socket: std::net::SocketAddr = text.parse().unwrap();
            identity(Endpoint::new(socket.ip(), socket.port()))
        });
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]) && all[0] > 0);
    }
}
