//! Firewall marks: changes to a mark, and the conditions in mark rules.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use crate::{Family, LinkId, Packet, Prefix, Protocol};

/// A change to a mark. It can represent iptables' `--set-mark`, `--set-xmark`, `--and-mark`, `--or-mark` and
/// `--xor-mark`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The bits that keep their value; all others become 0.
    pub keep: u32,
    /// Bits that are inverted after that.
    pub flip: u32,
}

impl Change {
    /// Leaves every mark as it is.
    pub const NONE: Self = Self { keep: u32::MAX, flip: 0 };

    /// iptables' `--set-mark VALUE/MASK`: clears the bits in the mask, then sets the bits in the value.
    pub fn set_mark(value: u32, mask: u32) -> Self {
        Self { keep: !(value | mask), flip: value }
    }

    /// iptables' `--set-xmark VALUE/MASK`: clears the bits in the mask, then inverts the bits in the value.
    pub fn set_xmark(value: u32, mask: u32) -> Self {
        Self { keep: !mask, flip: value }
    }

    /// This change, after which the bits outside `bits` are cleared.
    #[must_use]
    pub fn and(self, bits: u32) -> Self {
        Self { keep: self.keep & bits, flip: self.flip & bits }
    }

    /// This change, after which the bits in `bits` are set.
    #[must_use]
    pub fn or(self, bits: u32) -> Self {
        let cleared = self.and(!bits);
        Self { flip: cleared.flip | bits, ..cleared }
    }

    /// This change, after which the bits in `bits` are inverted.
    #[must_use]
    pub fn xor(self, bits: u32) -> Self {
        Self { flip: self.flip ^ bits, ..self }
    }

    /// The mark after the change.
    pub fn apply(self, mark: u32) -> u32 {
        mark & self.keep ^ self.flip
    }

    /// Whether the change can result in `mark`.
    pub fn may_give(self, mark: u32) -> bool {
        (mark ^ self.flip) & !self.keep == 0
    }
}

/// A test, or its opposite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The test.
    pub test: Test,
    /// The required result of the test.
    pub expected: Expected,
}

/// The required result of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The packet passes the test.
    Yes,
    /// The packet fails the test.
    No,
}

/// A condition on a packet. A test with a list matches if any entry matches; an empty list never matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// The packet belongs to this family.
    Family(Family),
    /// The source is in one of these networks.
    Source(Vec<Prefix>),
    /// The destination is in one of these networks.
    Dest(Vec<Prefix>),
    /// The protocol is one of these.
    Protocol(Vec<Protocol>),
    /// The source port is in one of these ranges.
    SourcePort(Vec<RangeInclusive<u16>>),
    /// The destination port is in one of these ranges.
    DestPort(Vec<RangeInclusive<u16>>),
    /// The source or destination port is in one of these ranges.
    EitherPort(Vec<RangeInclusive<u16>>),
    /// The packet was received on one of these links.
    Link(Vec<LinkId>),
    /// Marked with this value by earlier rules.
    Mark {
        /// The value of the bits in the mask.
        value: u32,
        /// The bits that are compared.
        mask: u32,
    },
}

impl Test {
    /// The same test with sorted lists, as `within` and `among` require.
    pub fn sorted(self) -> Self {
        match self {
            Self::Source(networks) => Self::Source(merged(networks)),
            Self::Dest(networks) => Self::Dest(merged(networks)),
            Self::SourcePort(ranges) => Self::SourcePort(merged_ports(ranges)),
            Self::DestPort(ranges) => Self::DestPort(merged_ports(ranges)),
            Self::EitherPort(ranges) => Self::EitherPort(merged_ports(ranges)),
            other => other,
        }
    }

    /// The number of entries in the test's list; 0 for a test without a list.
    pub fn entries(&self) -> usize {
        match self {
            Self::Source(networks) | Self::Dest(networks) => networks.len(),
            Self::SourcePort(ranges) | Self::DestPort(ranges) | Self::EitherPort(ranges) => ranges.len(),
            Self::Protocol(protocols) => protocols.len(),
            Self::Link(links) => links.len(),
            Self::Family(_) | Self::Mark { .. } => 0,
        }
    }
}

/// The shortest sorted list of networks that covers the same addresses.
pub fn merged(mut networks: Vec<Prefix>) -> Vec<Prefix> {
    networks.sort_unstable();
    let mut merged: Vec<Prefix> = Vec::new();
    for network in networks {
        // Among networks that begin at the same address, the largest comes first.
        if merged.last().is_some_and(|last| last.contains(network.addr())) {
            continue;
        }
        merged.push(network);
        while let [.., first, second] = merged[..]
            && let Some(both) = joined(first, second)
        {
            merged.truncate(merged.len() - 2);
            merged.push(both);
        }
    }
    merged
}

/// The network of which these are the halves.
fn joined(first: Prefix, second: Prefix) -> Option<Prefix> {
    let both = Prefix::new(first.addr(), first.len().checked_sub(1)?)?;
    (first.len() == second.len() && both.contains(second.addr())).then_some(both)
}

/// The shortest sorted list of ranges that covers the same ports.
fn merged_ports(mut ranges: Vec<RangeInclusive<u16>>) -> Vec<RangeInclusive<u16>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u16>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                *last = *last.start()..=*range.end().max(last.end());
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Whether a merged list of networks contains an address.
fn within(networks: &[Prefix], addr: IpAddr) -> bool {
    let behind = networks.partition_point(|network| network.addr() <= addr);
    networks[..behind].last().is_some_and(|network| network.contains(addr))
}

/// Whether a merged list of ranges contains a port.
fn among(ranges: &[RangeInclusive<u16>], port: u16) -> bool {
    let behind = ranges.partition_point(|range| *range.start() <= port);
    ranges[..behind].last().is_some_and(|range| range.contains(&port))
}

impl Condition {
    /// Whether the test matches a packet with this mark that was received on `link`. The test must be [`Test::sorted`].
    pub fn holds(&self, link: LinkId, packet: &Packet, mark: u32) -> bool {
        let flow = &packet.flow;
        let fits = match &self.test {
            Test::Family(family) => flow.dest.family() == *family,
            Test::Source(networks) => within(networks, flow.source.addr),
            Test::Dest(networks) => within(networks, flow.dest.addr),
            Test::Protocol(protocols) => protocols.contains(&flow.protocol),
            Test::SourcePort(ranges) => among(ranges, flow.source.port),
            Test::DestPort(ranges) => among(ranges, flow.dest.port),
            Test::EitherPort(ranges) => among(ranges, flow.source.port) || among(ranges, flow.dest.port),
            Test::Link(links) => links.contains(&link),
            Test::Mark { value, mask } => mark & mask == *value,
        };
        fits == (self.expected == Expected::Yes)
    }

    /// Whether the test may match a packet of which only the destination is known.
    pub fn may_hold_to(&self, dest: IpAddr) -> bool {
        match (&self.test, self.expected) {
            (Test::Dest(networks), Expected::Yes) => within(networks, dest),
            (Test::Family(family), Expected::Yes) => *family == Family::of(dest),
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The definitions of iptables-extensions(8).
        #[test]
        fn changes_are_those_of_iptables_options(mark: u32, value: u32, mask: u32) {
            prop_assert_eq!(Change::set_mark(value, mask).apply(mark), mark & !mask | value);
            prop_assert_eq!(Change::set_xmark(value, mask).apply(mark), (mark & !mask) ^ value);
            let set = Change::set_xmark(value, mask);
            prop_assert_eq!(set.and(mark).apply(mark), set.apply(mark) & mark);
            prop_assert_eq!(set.or(mark).apply(mark), set.apply(mark) | mark);
            prop_assert_eq!(set.xor(mask).apply(mark), set.apply(mark) ^ mask);
            prop_assert_eq!(Change::NONE.apply(mark), mark);
            prop_assert!(set.may_give(set.apply(mark)));
            prop_assert_eq!(Change::set_mark(value, u32::MAX).may_give(mark), mark == value);
        }

        #[test]
        fn merged_networks_and_ports_contain_the_same_values_in_the_fewest_entries(
            networks in prop::collection::vec((0..64u8, 26..=32u8, any::<bool>()), 0..12),
            ranges in prop::collection::vec((0..32u16, 0..32u16), 0..8),
        ) {
            let addr = |last: u8, six: bool| match six {
                true => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
                false => IpAddr::from([0, 0, 0, last]),
            };
            let network = |(last, len, six)| Prefix::new(addr(last, six), if six { len + 96 } else { len }).unwrap();
            let networks: Vec<_> = networks.into_iter().map(network).collect();
            let fewest = merged(networks.clone());
            for (last, six) in (0..70).flat_map(|last| [(last, false), (last, true)]) {
                let addr = addr(last, six);
                prop_assert_eq!(within(&fewest, addr), networks.iter().any(|one| one.contains(addr)), "{}", addr);
            }
            prop_assert!(fewest.windows(2).all(|two| joined(two[0], two[1]).is_none()));

            let high = |port| if port > 16 { port + (u16::MAX - 32) } else { port };
            let ranges: Vec<_> = ranges.into_iter().map(|(first, last)| high(first)..=high(last)).collect();
            let fewest = merged_ports(ranges.clone());
            for port in (0..40).chain(u16::MAX - 40..=u16::MAX) {
                prop_assert_eq!(among(&fewest, port), ranges.iter().any(|one| one.contains(&port)), "{}", port);
            }
            prop_assert!(fewest.windows(2).all(|two| two[0].end() + 1 < *two[1].start()));
        }
    }
}
