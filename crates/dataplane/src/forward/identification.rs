//! IP identifications for packets whose headers the director writes.

use std::net::{IpAddr, Ipv4Addr};

use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};

/// The identifications that a worker gives to packets: to its own outer headers, to packets that it fragments, and to
/// packets from a local address that a router may fragment.
///
/// Each pair of IPv6 hosts has a separate starting point. A receiver therefore cannot predict the identifications that
/// other receivers get, nor forge the beginning of their fragments (RFC 7739 §5.3, with one counter for all).
#[derive(Debug)]
pub struct Identification {
    pub(super) last: u32,
    pub(super) secret: HashSecret,
}

impl Identification {
    /// The sequence with this number. Sequences with the same secret have distant starting points, so that packets of
    /// one are not mistaken for fragments of another. The starting points are unpredictable without the secret.
    pub fn numbered(secret: HashSecret, number: usize) -> Self {
        let unspecified = Ipv4Addr::UNSPECIFIED.into();
        let last =
            between(unspecified, unspecified, &secret).wrapping_add((number as u32).wrapping_mul(APART));
        Self { last, secret }
    }

    /// A seed for the worker's other random numbers that need not be secret: both kinds are visible on the network.
    pub fn seed(&self) -> u64 {
        let unspecified = Endpoint::new(Ipv4Addr::UNSPECIFIED, 0);
        FlowKey { protocol: Protocol::IP, source: unspecified, dest: unspecified }
            .hash(&self.secret)
            .rotate_left(32)
            .wrapping_add(u64::from(self.last))
    }

    /// The next identification of an IPv4 header.
    pub fn take(&mut self) -> u16 {
        self.last = self.last.wrapping_add(1);
        self.last as u16
    }

    /// The next identification of an IPv6 packet's fragments.
    pub fn take_between(&mut self, source: IpAddr, dest: IpAddr) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.last.wrapping_add(between(source, dest, &self.secret))
    }
}

/// Near the golden section of 32 bits and of 16 bits. The first n multiples, for any n up to 512, are at least a fourth
/// of an even share (2^32/n, 2^16/n) apart.
const APART: u32 = 0x9e37_903f;

fn between(source: IpAddr, dest: IpAddr, secret: &HashSecret) -> u32 {
    FlowKey { protocol: Protocol::IP, source: Endpoint::new(source, 0), dest: Endpoint::new(dest, 0) }
        .hash(secret) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequences_of_512_workers_have_distant_starting_points() {
        const MANY: usize = 512;
        let secret = HashSecret([3, 5, 7]);
        let begins: Vec<_> = (0..MANY).map(|number| Identification::numbered(secret, number).last).collect();
        for (number, one) in begins.iter().enumerate() {
            let share = |all: u32| all / (number as u32 + 1) / 4;
            for other in &begins[..number] {
                let apart = one.wrapping_sub(*other);
                assert!(apart.min(apart.wrapping_neg()) > share(u32::MAX), "{number}");
                let apart = apart as u16;
                assert!(u32::from(apart.min(apart.wrapping_neg())) > share(u16::MAX.into()), "{number}");
            }
        }
    }
}
