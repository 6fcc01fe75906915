//! What became of a packet: the only ways out of the pipeline, and the reasons of a drop.
//!
//! Each reason has a counter, a name that programs read and a sentence that operators read. Adding one takes a
//! line in each of the tables below; the compiler finds what was forgotten.

use xvs_proto::{Malformed, icmp};
use xvs_xdp::LinkId;

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is edited and leaves by this link.
    Transmit(LinkId),
    /// As [`Self::Transmit`], in fragments, because it is larger than its way takes.
    Fragment {
        /// The link.
        link: LinkId,
        /// The largest packet that the way takes, in bytes.
        mtu: u32,
    },
    /// It is a fragment and waits for the rest of its datagram.
    Held,
    /// The kernel gets it as if it had come in without us.
    PassToKernel,
    /// It has done what it was for, and goes no further.
    Consumed,
    /// It goes nowhere.
    Drop(DropReason),
}

impl Verdict {
    /// The name that programs read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transmit(_) | Self::Fragment { .. } => "transmit",
            Self::Held => "held",
            Self::PassToKernel => "pass",
            Self::Consumed => "consumed",
            Self::Drop(_) => "drop",
        }
    }
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The frame contradicts itself.
    Malformed(Malformed),
    /// The service has no destination that takes new connections.
    NoDestination,
    /// The connection's destination was removed.
    DestinationUnavailable,
    /// The destination is an address of this machine, and the packet cannot be delivered here as it is.
    DestinationLocal,
    /// There is no route.
    NoRoute,
    /// The next hop's link address is not known yet.
    NoNeighbour,
    /// The time to live has run out.
    TtlExpired,
    /// The packet is larger than the way to its destination takes and must not be fragmented.
    TooBig {
        /// The largest packet that would have passed, in bytes.
        mtu: u16,
    },
    /// The packet would have to be fragmented, and cannot be.
    NeedsFragmenting,
    /// The rest of the fragment's datagram did not come in time.
    FragmentTimeout,
    /// Too many fragments wait: this one's datagram was the oldest, or has too many itself.
    FragmentCrowded,
    /// The fragment and others of its datagram contradict each other.
    FragmentConflict,
    /// The fragment has come before.
    FragmentRepeated,
    /// The fragment's length cannot be, or makes its datagram too long.
    FragmentLength,
    /// The path leaves too little room beside a tunnel's own headers.
    PathTooNarrow,
    /// The packet grew beyond its frame.
    NoHeadroom,
    /// The connection table has no room.
    TableFull,
    /// One of those that `drop_packet` sacrifices.
    Defence,
    /// A real server sent it without having been asked.
    Unsolicited,
    /// An ICMP error whose checksum is wrong.
    IcmpChecksum,
    /// An ICMPv6 error in fragments.
    IcmpFragment,
    /// The service tells SIP calls apart, and the packet has no Call-ID.
    NoCallId,
    /// There is no room for another SIP call.
    CallsFull,
    /// There is no local address of the destination's family (FULLNAT).
    NoLocalAddress,
    /// Of the local ports that were tried all are taken towards the destination (FULLNAT).
    NoLocalPort,
    /// It is AH or ESP, whose answer would not find its connection (FULLNAT).
    FullNatPortless,
    /// The link's transmit ring is full, or the link is down.
    TransmitRefused,
    /// The kernel did not take the packet back.
    KernelRefused,
}

impl DropReason {
    /// How many counters the reasons need.
    pub const COUNT: usize = Self::OTHERS.len() + Malformed::ALL.len();

    const OTHERS: [Self; 27] = [
        Self::NoDestination,
        Self::DestinationUnavailable,
        Self::DestinationLocal,
        Self::NoRoute,
        Self::NoNeighbour,
        Self::TtlExpired,
        Self::TooBig { mtu: 0 },
        Self::NeedsFragmenting,
        Self::FragmentTimeout,
        Self::NoHeadroom,
        Self::TableFull,
        Self::TransmitRefused,
        Self::KernelRefused,
        Self::Defence,
        Self::Unsolicited,
        Self::FragmentCrowded,
        Self::FragmentConflict,
        Self::FragmentRepeated,
        Self::FragmentLength,
        Self::PathTooNarrow,
        Self::NoCallId,
        Self::CallsFull,
        Self::IcmpChecksum,
        Self::IcmpFragment,
        Self::NoLocalAddress,
        Self::NoLocalPort,
        Self::FullNatPortless,
    ];

    /// Every reason, in the order of [`Self::index`].
    pub fn all() -> impl Iterator<Item = Self> {
        Self::OTHERS.into_iter().chain(Malformed::ALL.into_iter().map(Self::Malformed))
    }

    /// The reason of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|reason| reason.name() == name)
    }

    /// Its place among the counters.
    pub fn index(self) -> usize {
        match self {
            Self::NoDestination => 0,
            Self::DestinationUnavailable => 1,
            Self::DestinationLocal => 2,
            Self::NoRoute => 3,
            Self::NoNeighbour => 4,
            Self::TtlExpired => 5,
            Self::TooBig { .. } => 6,
            Self::NeedsFragmenting => 7,
            Self::FragmentTimeout => 8,
            Self::NoHeadroom => 9,
            Self::TableFull => 10,
            Self::TransmitRefused => 11,
            Self::KernelRefused => 12,
            Self::Defence => 13,
            Self::Unsolicited => 14,
            Self::FragmentCrowded => 15,
            Self::FragmentConflict => 16,
            Self::FragmentRepeated => 17,
            Self::FragmentLength => 18,
            Self::PathTooNarrow => 19,
            Self::NoCallId => 20,
            Self::CallsFull => 21,
            Self::IcmpChecksum => 22,
            Self::IcmpFragment => 23,
            Self::NoLocalAddress => 24,
            Self::NoLocalPort => 25,
            Self::FullNatPortless => 26,
            Self::Malformed(malformed) => Self::OTHERS.len() + malformed as usize,
        }
    }

    /// The name that programs read.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoDestination => "no_destination",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DestinationLocal => "destination_local",
            Self::NoRoute => "no_route",
            Self::NoNeighbour => "no_neighbour",
            Self::TtlExpired => "ttl_expired",
            Self::TooBig { .. } => "too_big",
            Self::NeedsFragmenting => "needs_fragmenting",
            Self::FragmentTimeout => "fragment_timeout",
            Self::FragmentCrowded => "fragment_crowded",
            Self::FragmentConflict => "fragment_conflict",
            Self::FragmentRepeated => "fragment_repeated",
            Self::FragmentLength => "fragment_length",
            Self::NoHeadroom => "no_headroom",
            Self::TableFull => "table_full",
            Self::TransmitRefused => "transmit_refused",
            Self::KernelRefused => "kernel_refused",
            Self::Defence => "defence",
            Self::Unsolicited => "unasked",
            Self::PathTooNarrow => "path_too_narrow",
            Self::NoCallId => "no_call_id",
            Self::CallsFull => "calls_full",
            Self::IcmpChecksum => "icmp_checksum",
            Self::IcmpFragment => "icmp_fragment",
            Self::NoLocalAddress => "no_local_address",
            Self::NoLocalPort => "no_local_port",
            Self::FullNatPortless => "fullnat_portless",
            Self::Malformed(malformed) => malformed.name(),
        }
    }

    /// The sentence that operators read.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NoDestination => {
                "the service has no real server with a weight above 0 that is not overloaded; the client was told"
            }
            Self::DestinationUnavailable => {
                "the connection's real server was removed; add it back, or wait until the client starts anew"
            }
            Self::DestinationLocal => {
                "the real server is this machine itself, but NAT would have to rewrite the packet, or its address is not here"
            }
            Self::NoRoute => {
                "the kernel has no route to the next hop over an attached interface; see `ip route`"
            }
            Self::NoNeighbour => {
                "the next hop has not answered ARP or neighbour discovery yet; see `ip neigh`"
            }
            Self::TtlExpired => "the packet's time to live ran out here; the sender was told",
            Self::TooBig { .. } => {
                "the packet does not fit the way to its destination; the sender was told the size"
            }
            Self::NeedsFragmenting => {
                "the packet would have to be fragmented, and its way is too narrow or no frame is free"
            }
            Self::FragmentTimeout => {
                "the other fragments of the datagram did not come in time; the sender was told if the first had come"
            }
            Self::FragmentCrowded => {
                "too many fragments wait for others, so the oldest datagram went; or one datagram has too many"
            }
            Self::FragmentConflict => "fragments of one datagram overlap or contradict each other",
            Self::FragmentRepeated => "the fragment had come before",
            Self::FragmentLength => "the fragment is empty, not a multiple of 8 bytes, or ends beyond 65,535",
            Self::NoHeadroom => "the frame has no room for the outer header",
            Self::TableFull => "the connection table is full; raise `conn_table_size` in xvs.toml",
            Self::TransmitRefused => "the interface is down or its transmit ring is full",
            Self::KernelRefused => "the kernel did not take the packet back through the TAP",
            Self::Defence => "`drop_packet` sacrifices one of so many packets that would begin a connection",
            Self::Unsolicited => {
                "a real server sent it without having been asked; it was told (`nat_icmp_send`)"
            }
            Self::PathTooNarrow => {
                "the way to the real server leaves a tunnel less than 68 bytes (IPv6: 1280); raise its MTU"
            }
            Self::NoCallId => {
                "the service tells SIP calls apart (`--pe sip`), and the packet has no Call-ID that can be read"
            }
            Self::CallsFull => {
                "as many answered SIP calls as can be told apart are remembered; raise `sip_calls` in xvs.toml, or take a shorter -p"
            }
            Self::IcmpChecksum => "an ICMP error about a connection has a wrong checksum",
            Self::IcmpFragment => "an ICMPv6 error came in fragments, as no router sends one",
            Self::NoLocalAddress => {
                "FULLNAT has no local address of the real server's family; `xvs laddr add` gives it one"
            }
            Self::NoLocalPort => {
                "the local ports that were tried are all taken towards the real server; add one by `xvs laddr add`"
            }
            Self::FullNatPortless => {
                "AH and ESP have no ports, so FULLNAT could not tell whose an answer is; use NAT, or UDP 4500 (RFC 3948)"
            }
            Self::Malformed(malformed) => malformed.sentence(),
        }
    }

    /// What the sender is told about it, if anything.
    pub fn icmp_error(self) -> Option<icmp::Error> {
        match self {
            Self::NoDestination | Self::Unsolicited => Some(icmp::Error::PortUnreachable),
            Self::NoRoute => Some(icmp::Error::HostUnreachable),
            Self::TtlExpired => Some(icmp::Error::TimeExceeded),
            Self::FragmentTimeout => Some(icmp::Error::ReassemblyTimeExceeded),
            Self::TooBig { mtu } => Some(icmp::Error::FragmentationNeeded { mtu }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_its_own_name() {
        let indexes: Vec<_> = DropReason::all().map(DropReason::index).collect();
        assert_eq!(indexes, (0..DropReason::COUNT).collect::<Vec<_>>());
        let mut names: Vec<_> = DropReason::all().map(DropReason::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
