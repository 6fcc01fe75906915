//! Verdicts: the only outcomes of the pipeline for a packet, and the reasons for drops.
//!
//! Each reason has a counter, a name for programs and a sentence for operators: a line of one table.

use xvs_proto::{LinkId, Malformed, icmp};

use crate::egress::UnresolvedHop;

/// The verdict on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The packet was edited and leaves on this link. On the machine's own end of a link it goes to the kernel.
    Transmit(LinkId),
    /// Like [`Self::Transmit`], but in fragments, because the packet exceeds the path MTU.
    Fragment {
        /// The link.
        link: LinkId,
        /// The path MTU, in bytes.
        mtu: u32,
    },
    /// The packet is a fragment and waits for the other fragments of its datagram.
    Held,
    /// The packet was edited, and waits for the link address of its next hop.
    Waiting(UnresolvedHop),
    /// The packet goes to the kernel, as if there were no xvs.
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

/// The reasons: the variant, the name for programs, and the sentence for operators of each.
macro_rules! drop_reasons {
    ($($reason:ident $({ $mtu:ident })? $name:literal $sentence:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum DropReason {
            $(
                #[doc = $sentence]
                $reason $({
                    /// The largest packet that would pass, in bytes.
                    $mtu: u16,
                })?,
            )*
            /// The frame is malformed.
            Malformed(Malformed),
        }

        enum Place {
            $($reason,)*
            Malformed,
        }

        impl DropReason {
            /// The number of counters for reasons.
            pub const COUNT: usize = Place::Malformed as usize + Malformed::ALL.len();

            /// Every reason, in the order of [`Self::index`].
            pub fn all() -> impl Iterator<Item = Self> {
                let others = [$(Self::$reason { $($mtu: 0)? }),*];
                others.into_iter().chain(Malformed::ALL.into_iter().map(Self::Malformed))
            }

            /// The index of the reason's counter.
            pub fn index(self) -> usize {
                match self {
                    $(Self::$reason { .. } => Place::$reason as usize,)*
                    Self::Malformed(malformed) => Place::Malformed as usize + malformed as usize,
                }
            }

            /// The name that programs read.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$reason { .. } => $name,)*
                    Self::Malformed(malformed) => malformed.name(),
                }
            }

            /// The sentence that operators read.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$reason { .. } => $sentence,)*
                    Self::Malformed(malformed) => malformed.sentence(),
                }
            }
        }
    };
}

drop_reasons! {
    NoDestination "no_destination"
        "each real server that the scheduler may choose for the client has weight 0 or is overloaded, or there is none; \
         the client got an ICMP error";
    DestinationUnavailable "destination_unavailable"
        "the connection's real server was removed; add it back, or wait until the client connects anew";
    DestinationLocal "destination_local"
        "the real server is this machine itself, at a loopback address or by FULLNAT, or the packet's address is not \
         here";
    NoRoute "no_route"
        "the kernel has no route to the next hop over an attached interface; see `ip route`";
    NoNeighbour "no_neighbour"
        "the next hop has not answered ARP or neighbour discovery within a second, or too many packets wait for it; \
         see `ip neigh`";
    TtlExpired "ttl_expired"
        "the packet's time to live expired here; the sender got an ICMP error";
    TooBig { mtu } "too_big"
        "the packet is larger than the path to its destination allows; the sender got the MTU in an ICMP error";
    NeedsFragmenting "needs_fragmenting"
        "the packet had to be fragmented, but its path MTU is too small or no frame is free";
    FragmentTimeout "fragment_timeout"
        "the other fragments of the datagram did not arrive in time; if the first had, the sender got an ICMP error";
    NoHeadroom "no_headroom"
        "the frame has no room for the outer header";
    TableFull "table_full"
        "the connection table is full; raise `conn_table_size` in xvs.toml";
    TransmitRefused "transmit_refused"
        "the interface is down or its transmit ring is full";
    KernelRefused "kernel_refused"
        "the kernel did not take the packet back through the TAP";
    Defence "defence"
        "`drop_packet` drops one in so many packets that would begin a connection";
    Unsolicited "unasked"
        "a real server sent it without a client's request; it got an ICMP error (`nat_icmp_send`)";
    FragmentCrowded "fragment_crowded"
        "too many fragments wait for others, so the oldest datagram was dropped; or one datagram has too many";
    FragmentConflict "fragment_conflict"
        "fragments of one datagram overlap or contradict each other";
    FragmentRepeated "fragment_repeated"
        "the fragment had arrived before";
    FragmentLength "fragment_length"
        "the fragment is empty, not a multiple of 8 bytes, or ends beyond 65,535";
    PathTooNarrow "path_too_narrow"
        "the path to the real server leaves a tunnel less than 68 bytes (IPv6: 1280); raise its MTU";
    NoCallId "no_call_id"
        "the service distinguishes SIP calls (`--pe sip`), and the packet has no readable Call-ID";
    CallsFull "calls_full"
        "the maximum number of answered SIP calls is remembered; raise `sip_calls` in xvs.toml, or use a shorter -p";
    IcmpChecksum "icmp_checksum"
        "an ICMP error about a connection has a wrong checksum";
    IcmpFragment "icmp_fragment"
        "an ICMPv6 error arrived in fragments, which no router sends";
    NoLocalAddress "no_local_address"
        "FULLNAT has no local address of the real server's family; `xvs laddr add` gives it one";
    NoLocalPort "no_local_port"
        "all local ports that were tried are taken towards the real server; add an address by `xvs laddr add`";
    FullNatPortless "fullnat_portless"
        "AH and ESP have no ports, so FULLNAT could not assign their replies; use NAT, or UDP 4500 (RFC 3948)";
    Untranslatable "untranslatable"
        "the other family of IP has no form for it: a link-local client, a routing header of IPv6, or an ICMP error (FULLNAT \
         between families)";
    SourceRoute "source_route"
        "it has a source route, which IPv6 has not (FULLNAT between families); its sender got an ICMP error";
    InactiveMember "inactive_member"
        "it came in by a member that its bond does not use now, or that has left the bond";
    ClientConnections "client_connections"
        "the client has as many connections of the service as its limit allows; see `xvs limit list`";
    ClientRate "client_rate"
        "the client has begun more connections of the service than its limit allows; see `xvs limit list`";
    Denied "denied"
        "its source is in a deny list; `xvs deny list` shows the lists";
    NotAllowed "not_allowed"
        "its service has an allow list, and its source is not in it; `xvs allow list` shows the lists";
    BadCookie "bad_cookie"
        "the service answers SYNs by cookies (`--syn-proxy`): the packet acknowledges none, one of more than two \
         minutes ago, or a forged one";
    SynRate "syn_rate"
        "the service gets more SYNs than its limit (`--syn-rate`) allows; see `xvs limit list`";
}

impl DropReason {
    /// The reason with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::all().find(|reason| reason.name() == name)
    }

    /// The ICMP error for the sender of a packet that is dropped for this reason, if there is one.
    pub fn icmp_error(self) -> Option<icmp::Error> {
        match self {
            Self::NoDestination | Self::Unsolicited => Some(icmp::Error::PortUnreachable),
            Self::NoRoute => Some(icmp::Error::HostUnreachable),
            Self::TtlExpired => Some(icmp::Error::TimeExceeded),
            Self::FragmentTimeout => Some(icmp::Error::ReassemblyTimeExceeded),
            Self::SourceRoute => Some(icmp::Error::Reported { type_and_code: [3, 5], rest: [0; 4] }),
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
