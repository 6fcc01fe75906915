//! Flow keys: a protocol, two endpoints and their keyed hash.

use std::net::IpAddr;

use crate::addr::{Endpoint, Protocol};

/// The protocol and the endpoints in a packet's headers.
///
/// ```
/// use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};
///
/// let client = Endpoint::new([192, 0, 2, 1], 40000);
/// let server = Endpoint::new([198, 51, 100, 2], 443);
/// let flow = FlowKey { protocol: Protocol::TCP, source: client, dest: server };
/// assert_eq!(flow.reversed().dest, client);
///
/// // Both directions of a connection have one hash.
/// let secret = HashSecret([0x9e37_79b9, 0x7f4a_7c15, 0xf39c_c060]);
/// assert_eq!(flow.hash(&secret), flow.reversed().hash(&secret));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The sender of the packet.
    pub source: Endpoint,
    /// The receiver of the packet.
    pub dest: Endpoint,
}

/// The secret key of the flow hash; it prevents a sender from choosing flows whose hashes collide.
#[derive(Debug, Clone, Copy)]
pub struct HashSecret(pub [u64; 3]);

impl FlowKey {
    /// The key of the flow in the opposite direction.
    pub fn reversed(self) -> Self {
        Self { source: self.dest, dest: self.source, ..self }
    }

    /// A keyed hash that is the same for a flow and its reverse, so that one table slot serves both directions.
    ///
    /// The hash multiplies and folds, like rapidhash and wyhash. Unlike a CRC it is not linear, so the secret protects
    /// it.
    #[inline]
    pub fn hash(&self, secret: &HashSecret) -> u64 {
        secret.mix(secret.word(self.source), secret.word(self.dest), self.protocol)
    }
}

impl HashSecret {
    /// The hash of two endpoints that [`Self::word`] has encoded.
    #[inline]
    pub fn mix(&self, a: u64, b: u64, protocol: Protocol) -> u64 {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        let mixed = fold(low ^ self.0[0], high ^ self.0[1]);
        fold(mixed ^ u64::from(protocol.0), self.0[2])
    }

    /// Encodes an endpoint for [`Self::mix`].
    #[inline]
    pub fn word(&self, endpoint: Endpoint) -> u64 {
        match endpoint.addr {
            IpAddr::V4(addr) => u64::from(u32::from(addr)) << 16 | u64::from(endpoint.port),
            IpAddr::V6(addr) => self.word_v6(u128::from(addr), endpoint.port),
        }
    }

    /// Like [`Self::word`], for the bits of an IPv6 address.
    #[inline]
    pub fn word_v6(&self, bits: u128, port: u16) -> u64 {
        fold(bits as u64 ^ self.0[0], (bits >> 64) as u64 ^ self.0[1]) ^ u64::from(port)
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    const SECRET: HashSecret =
        HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]);

    fn flow(client: u32, port: u16) -> FlowKey {
        FlowKey {
            protocol: Protocol::TCP,
            source: Endpoint::new(Ipv4Addr::from(client), port),
            dest: Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 80),
        }
    }

    #[test]
    fn a_flow_and_its_reverse_share_a_hash_and_the_protocol_changes_it() {
        let tcp = flow(0xc000_020a, 1000);
        let udp = FlowKey { protocol: Protocol::UDP, ..tcp };
        assert_eq!(tcp.hash(&SECRET), tcp.reversed().hash(&SECRET));
        assert_ne!(tcp.hash(&SECRET), udp.hash(&SECRET));
    }

    #[test]
    fn clients_that_differ_in_one_bit_spread_over_low_and_high_bits() {
        let hashes: Vec<u64> = (0..256)
            .flat_map(|a| (0..256).map(move |p| flow(0xc000_0200 + a, p as u16).hash(&SECRET)))
            .collect();
        for shift in [0, 16, 32, 48] {
            let seen: HashSet<u16> = hashes.iter().map(|hash| (hash >> shift) as u16).collect();
            // 65,536 balls in 65,536 bins fill 63.2 % of them when placed at random.
            assert!((39_000..44_000).contains(&seen.len()), "bits {shift}..: {} of 65536", seen.len());
        }
    }
}
