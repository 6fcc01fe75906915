//! The verdict on a packet: the only ends of the pipeline, and the reasons of a drop.
//!
//! Each reason has a counter, a name that programs read and a sentence that operators read. A new reason needs a line
//! in each of the tables below; the compiler finds missing ones.

use xvs_proto::LinkId;
use xvs_proto::{Malformed, icmp};

use crate::egress::UnresolvedHop;

/// The verdict on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was edited and leaves through this link. By the machine's own end of a link it goes to the kernel.
    Transmit(LinkId),
    /// As [`Self::Transmit`], but in fragments, because the packet is larger than the path MTU.
    Fragment {
        /// The link.
        link: LinkId,
        /// The path MTU, in bytes.
        mtu: u32,
    },
    /// It is a fragment and waits for the others of its datagram.
    Held,
    /// It was edited, and waits for the link address of its next hop.
    Waiting(UnresolvedHop),
    /// It goes to the kernel, as if xvs were not there.
    PassToKernel,
    /// It has served its purpose and goes no further.
    Consumed,
    /// It is dropped.
    Drop(DropReason),
}

impl Verdict {
    /// The name that programs read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transmit(link) if link.is_own() => "pass",
            Self::Transmit(_) | Self::Fragment { .. } => "transmit",
            Self::Held | Self::Waiting(_) => "held",
            Self::PassToKernel => "pass",
            Self::Consumed => "consumed",
            Self::Drop(_) => "drop",
        }
    }
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The frame is malformed.
    Malformed(Malformed),
    /// The service has no destination that takes new connections.
    NoDestination,
    /// The connection's destination was removed.
    DestinationUnavailable,
    /// The destination is an address of this machine, and the packet cannot be delivered locally as it is.
    DestinationLocal,
    /// There is no route.
    NoRoute,
    /// The link address of the next hop was not known in time, or too many packets wait for it.
    NoNeighbour,
    /// The time to live has run out.
    TtlExpired,
    /// The packet is larger than the path MTU to its destination and must not be fragmented.
    TooBig {
        /// The largest packet that would pass, in bytes.
        mtu: u16,
    },
    /// The packet had to be fragmented, and could not be.
    NeedsFragmenting,
    /// The other fragments of the datagram did not arrive in time.
    FragmentTimeout,
    /// Too many fragments wait: the datagram of this one was the oldest, or has too many fragments itself.
    FragmentCrowded,
    /// The fragment and others of its datagram contradict each other.
    FragmentConflict,
    /// The fragment repeats bytes that arrived before.
    FragmentRepeated,
    /// The length of the fragment is impossible, or makes its datagram too long.
    FragmentLength,
    /// The path MTU leaves too little room inside a tunnel.
    PathTooNarrow,
    /// The packet became larger than its frame.
    NoHeadroom,
    /// The connection table has no room.
    TableFull,
    /// A packet that `drop_packet` sacrifices.
    Defence,
    /// Its client has as many connections of the service as it may have.
    ClientConnections,
    /// Its client has begun too many connections of the service in too short a time.
    ClientRate,
    /// Its service has got too many SYNs in too short a time.
    SynRate,
    /// A real server sent it without a request of the client.
    Unsolicited,
    /// An ICMP error whose checksum is wrong.
    IcmpChecksum,
    /// An ICMPv6 error that arrived in fragments.
    IcmpFragment,
    /// The service distinguishes SIP calls, and the packet has no Call-ID.
    NoCallId,
    /// There is no room for another SIP call.
    CallsFull,
    /// There is no local address of the destination's family (FULLNAT).
    NoLocalAddress,
    /// All local ports that were tried are taken towards the destination (FULLNAT).
    NoLocalPort,
    /// It is AH or ESP, whose replies could not be assigned to a connection (FULLNAT).
    FullNatPortless,
    /// Its source is in a deny list.
    Denied,
    /// Its source is not in an allow list.
    NotAllowed,
    /// The link's transmit ring is full, or the link is down.
    TransmitRefused,
    /// The kernel did not take the packet.
    KernelRefused,
    /// Its service answers SYNs by cookies, and it has no right one.
    BadCookie,
    /// It came in by a member that its bond does not use now, or that has left it.
    InactiveMember,
}

impl DropReason {
    /// The number of counters for reasons.
    pub const COUNT: usize = Self::OTHERS.len() + Malformed::ALL.len();

    const OTHERS: [Self; 34] = [
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
        Self::InactiveMember,
        Self::ClientConnections,
        Self::ClientRate,
        Self::Denied,
        Self::NotAllowed,
        Self::BadCookie,
        Self::SynRate,
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
            Self::InactiveMember => 27,
            Self::ClientConnections => 28,
            Self::ClientRate => 29,
            Self::Denied => 30,
            Self::NotAllowed => 31,
            Self::BadCookie => 32,
            Self::SynRate => 33,
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
            Self::ClientConnections => "client_connections",
            Self::ClientRate => "client_rate",
            Self::SynRate => "syn_rate",
            Self::Unsolicited => "unasked",
            Self::PathTooNarrow => "path_too_narrow",
            Self::NoCallId => "no_call_id",
            Self::CallsFull => "calls_full",
            Self::IcmpChecksum => "icmp_checksum",
            Self::IcmpFragment => "icmp_fragment",
            Self::NoLocalAddress => "no_local_address",
            Self::NoLocalPort => "no_local_port",
            Self::FullNatPortless => "fullnat_portless",
            Self::InactiveMember => "inactive_member",
            Self::Denied => "denied",
            Self::NotAllowed => "not_allowed",
            Self::BadCookie => "bad_cookie",
            Self::Malformed(malformed) => malformed.name(),
        }
    }

    /// The sentence that operators read.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::NoDestination => {
                "the service has no real server with a weight above 0 that is not overloaded; the client got an \
                 ICMP error"
            }
            Self::DestinationUnavailable => {
                "the connection's real server was removed; add it back, or wait until the client connects anew"
            }
            Self::DestinationLocal => {
                "the real server is this machine itself, at a loopback address or by FULLNAT, or the packet's \
                 address is not here"
            }
            Self::NoRoute => {
                "the kernel has no route to the next hop over an attached interface; see `ip route`"
            }
            Self::NoNeighbour => {
                "the next hop has not answered ARP or neighbour discovery within a second, or too many packets wait \
                 for it; see `ip neigh`"
            }
            Self::TtlExpired => "the packet's time to live expired here; the sender got an ICMP error",
            Self::TooBig { .. } => {
                "the packet is larger than the path to its destination allows; the sender got the MTU in an \
                 ICMP error"
            }
            Self::NeedsFragmenting => {
                "the packet had to be fragmented, but its path MTU is too small or no frame is free"
            }
            Self::FragmentTimeout => {
                "the other fragments of the datagram did not arrive in time; if the first had, the sender got \
                 an ICMP error"
            }
            Self::FragmentCrowded => {
                "too many fragments wait for others, so the oldest datagram was dropped; or one datagram has too many"
            }
            Self::FragmentConflict => "fragments of one datagram overlap or contradict each other",
            Self::FragmentRepeated => "the fragment had arrived before",
            Self::FragmentLength => "the fragment is empty, not a multiple of 8 bytes, or ends beyond 65,535",
            Self::NoHeadroom => "the frame has no room for the outer header",
            Self::TableFull => "the connection table is full; raise `conn_table_size` in xvs.toml",
            Self::TransmitRefused => "the interface is down or its transmit ring is full",
            Self::KernelRefused => "the kernel did not take the packet back through the TAP",
            Self::Defence => "`drop_packet` drops one in so many packets that would begin a connection",
            Self::ClientConnections => {
                "the client has as many connections of the service as its limit allows; see `xvs limit list`"
            }
            Self::ClientRate => {
                "the client has begun more connections of the service than its limit allows; see `xvs limit list`"
            }
            Self::SynRate => {
                "the service gets more SYNs than its limit (`--syn-rate`) allows; see `xvs limit list`"
            }
            Self::Unsolicited => {
                "a real server sent it without a client's request; it got an ICMP error (`nat_icmp_send`)"
            }
            Self::PathTooNarrow => {
                "the path to the real server leaves a tunnel less than 68 bytes (IPv6: 1280); raise its MTU"
            }
            Self::NoCallId => {
                "the service distinguishes SIP calls (`--pe sip`), and the packet has no readable Call-ID"
            }
            Self::CallsFull => {
                "the maximum number of answered SIP calls is remembered; raise `sip_calls` in xvs.toml, or use \
                 a shorter -p"
            }
            Self::IcmpChecksum => "an ICMP error about a connection has a wrong checksum",
            Self::IcmpFragment => "an ICMPv6 error arrived in fragments, which no router sends",
            Self::NoLocalAddress => {
                "FULLNAT has no local address of the real server's family; `xvs laddr add` gives it one"
            }
            Self::NoLocalPort => {
                "all local ports that were tried are taken towards the real server; add an address by `xvs laddr add`"
            }
            Self::FullNatPortless => {
                "AH and ESP have no ports, so FULLNAT could not assign their replies; use NAT, or UDP 4500 (RFC 3948)"
            }
            Self::Denied => "its source is in a deny list; `xvs deny list` shows the lists",
            Self::NotAllowed => {
                "its service has an allow list, and its source is not in it; `xvs allow list` shows the lists"
            }
            Self::BadCookie => {
                "the service answers SYNs by cookies (`--syn-proxy`): the packet acknowledges none, one of more than two \
                 minutes ago, or a forged one"
            }
            Self::InactiveMember => {
                "it came in by a member that its bond does not use now, or that has left the bond"
            }
            Self::Malformed(malformed) => malformed.sentence(),
        }
    }

    /// The ICMP error for the sender of a packet that is dropped for this reason, if there is one.
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
