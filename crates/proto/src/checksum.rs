//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Runs when a header is rewritten (a few words change) or originated (the whole header is summed). An incremental
//! update costs a few additions. It gives the same result as recomputation for every field value except the two
//! representations of zero, which RFC 1624 §3 explains and the tests cover.

use std::net::{IpAddr, Ipv4Addr};

/// A ones'-complement sum in progress: 16-bit big-endian words, with carries not yet folded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes as big-endian words; a trailing odd byte is padded with zero (RFC 1071 §1).
    ///
    /// Only the last slice added to a sum may have an odd length.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut words = bytes.chunks_exact(4);
        for word in &mut words {
            self.0 += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
        }
        let mut rest = [0; 4];
        rest[..words.remainder().len()].copy_from_slice(words.remainder());
        self.0 += u64::from(u32::from_be_bytes(rest));
        self
    }

    /// Adds one word.
    pub fn word(mut self, word: u16) -> Self {
        self.0 += u64::from(word);
        self
    }

    /// Adds an IPv4 address.
    pub fn ipv4(mut self, addr: Ipv4Addr) -> Self {
        self.0 += u64::from(u32::from(addr));
        self
    }

    /// Adds an address of either family.
    pub fn addr(mut self, addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(v4) => self.ipv4(v4),
            IpAddr::V6(v6) => {
                let bits = u128::from(v6);
                for shift in [0, 32, 64, 96] {
                    self.0 += u64::from((bits >> shift) as u32);
                }
                self
            }
        }
    }

    /// The checksum field: the complement of the folded sum.
    pub fn checksum(self) -> u16 {
        !self.folded()
    }

    /// The sum, folded to 16 bits.
    pub(crate) fn folded(self) -> u16 {
        folded(self.0)
    }
}

/// Folds a sum to 16 bits by adding its carries. It has no branches, because the processor cannot predict carries.
#[inline]
pub(crate) fn folded(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The change in a packet's sum that a rewrite causes: the old words subtracted, the new words added.
///
/// One value updates every checksum that covers the rewritten words.
///
/// ```
/// use xvs_proto::checksum::Delta;
///
/// // The example of RFC 1624 §4: in a header with checksum dd2f, the word 5555 becomes 3285.
/// assert_eq!(Delta::default().word(0x5555, 0x3285).applied(0xdd2f), 0x0000);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Delta(Sum);

impl Delta {
    /// Replaces one word.
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0.word(!old).word(new))
    }

    /// Replaces an IPv4 address.
    pub fn ipv4(self, old: Ipv4Addr, new: Ipv4Addr) -> Self {
        Self(self.0.ipv4(Ipv4Addr::from(!u32::from(old))).ipv4(new))
    }

    /// Replaces an address with another of the same family.
    pub fn addr(self, old: IpAddr, new: IpAddr) -> Self {
        let complement = match old {
            IpAddr::V4(v4) => IpAddr::V4((!u32::from(v4)).into()),
            IpAddr::V6(v6) => IpAddr::V6((!u128::from(v6)).into()),
        };
        Self(self.0.addr(complement).addr(new))
    }

    /// The change in the sum, folded to 16 bits.
    pub fn folded(self) -> u16 {
        self.0.folded()
    }

    /// The checksum field after the change, given the field before it.
    ///
    /// The caller applies UDP's own rules: a received field of 0 means "no checksum" and requires full computation
    /// instead of an update; a result of 0 is stored as 0xffff.
    ///
    /// Source: RFC 1624 §3 (eqn. 3); RFC 768.
    pub fn applied(self, field: u16) -> u16 {
        self.0.word(!field).checksum()
    }
}

/// The bytes that a tunnel header's checksum covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Nothing: the field is absent or 0.
    None,
    /// The header and everything after it.
    Whole,
}

/// The checksum of a transport segment and the pseudo-header for these addresses. The checksum field inside `segment`
/// is included in the sum: set it to 0 to compute a checksum, or leave the received value to verify one (the result is
/// then 0).
///
/// One sum serves both families, because their pseudo-headers contain the same values at different offsets.
///
/// Source: RFC 9293 §3.1; RFC 768; RFC 8200 §8.1.
///
/// ```
/// use xvs_proto::checksum::transport;
/// use xvs_proto::{Protocol, udp};
///
/// let (source, dest) = ("192.0.2.1".parse().unwrap(), "198.51.100.2".parse().unwrap());
/// let mut datagram = *b"\x12\x34\0\x35\0\x0a\0\0hi";
/// let checksum = transport(source, dest, Protocol::UDP.0, &datagram);
/// datagram[udp::field::CHECKSUM].copy_from_slice(&checksum.to_be_bytes());
/// assert_eq!(transport(source, dest, Protocol::UDP.0, &datagram), 0, "the checksum is correct");
/// ```
pub fn transport(source: IpAddr, dest: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    pseudo_header(source, dest, protocol, segment.len()).bytes(segment).checksum()
}

/// The sum of the pseudo-header for a transport segment of `length` bytes.
pub(crate) fn pseudo_header(source: IpAddr, dest: IpAddr, protocol: u8, length: usize) -> Sum {
    let length = u32::try_from(length).expect("a segment is below 64 KiB");
    Sum::default()
        .addr(source)
        .addr(dest)
        .word(u16::from(protocol))
        .word((length >> 16) as u16)
        .word(length as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §3: 0001 f203 f4f5 f6f7 sum to ddf2.
    #[test]
    fn the_example_of_rfc_1071_sums_as_printed_there() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::default().bytes(&bytes).checksum(), !0xddf2);
    }

    /// RFC 1624 §4: checksum dd2f, word 5555 becomes 3285; the new field is 0000.
    #[test]
    fn the_example_of_rfc_1624_gives_plus_zero() {
        assert_eq!(Delta::default().word(0x5555, 0x3285).applied(0xdd2f), 0x0000);
    }

    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn a_segments_checksum_is_the_one_that_another_implementation_computes() {
        let udp = etherparse::UdpHeader { source_port: 1000, destination_port: 53, length: 13, checksum: 0 };
        let segment = [&udp.to_bytes()[..], b"hello"].concat();
        let (v4, v6) = ([192, 0, 2, 10], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xab, 0xcd, 0, 1]);
        let want = udp.calc_checksum_ipv4_raw(v4, [198, 51, 100, 1], b"hello").unwrap();
        assert_eq!(transport(v4.into(), [198, 51, 100, 1].into(), 17, &segment), want);
        let want = udp.calc_checksum_ipv6_raw(v6, [0xfd; 16], b"hello").unwrap();
        assert_eq!(transport(v6.into(), [0xfd; 16].into(), 17, &segment), want);
    }

    proptest! {
        #[test]
        fn replacing_an_address_equals_recomputing(source: [u8; 16], old: [u8; 16], new: [u8; 16], data: [u8; 9]) {
            let (source, old, new) = (source.into(), old.into(), new.into());
            let before = transport(source, old, 17, &data);
            prop_assert_eq!(Delta::default().addr(old, new).applied(before), transport(source, new, 17, &data));
        }

        #[test]
        fn a_sum_of_any_length_equals_the_word_by_word_sum(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).checksum(), reference(&bytes));
        }

        #[test]
        fn updating_equals_recomputing(
            mut bytes in prop::collection::vec(any::<u8>(), 2..64),
            at in any::<prop::sample::Index>(),
            new in any::<u16>(),
        ) {
            if bytes.len() % 2 == 1 { bytes.pop(); }
            // A non-zero word prevents negative zero, which only all-zero data has.
            bytes.extend([0x12, 0x34]);
            let before = reference(&bytes);
            let at = at.index(bytes.len() / 2 - 1) * 2;
            let old = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            bytes[at..at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assert_eq!(Delta::default().word(old, new).applied(before), reference(&bytes));
        }
    }
}
