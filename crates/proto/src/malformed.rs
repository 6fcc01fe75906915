//! Reasons why a frame or packet is malformed.
//!
//! [`crate::packet::parse`] and the views return them. Each value is also a drop reason in the data plane, so each has
//! a sentence for the operator.

/// A header that contradicts itself or the frame that contains it, by layer and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// The frame is shorter than an Ethernet header, or ends inside a VLAN tag.
    EthernetTooShort,
    /// The frame has more than two VLAN tags.
    VlanTooDeep,
    /// The frame ends before the IPv4 header does, or before the total length that the header gives.
    Ipv4TooShort,
    /// The version field is not 4.
    Ipv4Version,
    /// The header length field is below five words, or above the total length.
    Ipv4HeaderLength,
    /// The IPv4 header checksum is wrong.
    Ipv4Checksum,
    /// The frame ends before the IPv6 header does, or before the payload length that the header gives.
    Ipv6TooShort,
    /// The version field is not 6.
    Ipv6Version,
    /// The length of the packet is in a jumbo option.
    Ipv6Jumbogram,
    /// The packet ends inside an extension header.
    Ipv6ExtensionTooShort,
    /// There are more extension headers than are skipped, or two fragment headers.
    Ipv6Extensions,
    /// The packet ends before the TCP header does.
    TcpTooShort,
    /// The packet ends before the UDP header does.
    UdpTooShort,
    /// The packet ends before the SCTP common header does.
    SctpTooShort,
    /// The packet ends before the header of its first SCTP chunk does.
    SctpNoChunk,
    /// The packet ends before the ICMP header does.
    IcmpTooShort,
}

impl Malformed {
    /// Every value, in the order of the layers.
    pub const ALL: [Self; 16] = [
        Self::EthernetTooShort,
        Self::VlanTooDeep,
        Self::Ipv4TooShort,
        Self::Ipv4Version,
        Self::Ipv4HeaderLength,
        Self::Ipv4Checksum,
        Self::Ipv6TooShort,
        Self::Ipv6Version,
        Self::Ipv6Jumbogram,
        Self::Ipv6ExtensionTooShort,
        Self::Ipv6Extensions,
        Self::TcpTooShort,
        Self::UdpTooShort,
        Self::SctpTooShort,
        Self::SctpNoChunk,
        Self::IcmpTooShort,
    ];

    /// The name of the reason's counter, such as `ipv4_checksum`.
    pub fn name(self) -> &'static str {
        match self {
            Self::EthernetTooShort => "ethernet_too_short",
            Self::VlanTooDeep => "vlan_too_deep",
            Self::Ipv4TooShort => "ipv4_too_short",
            Self::Ipv4Version => "ipv4_version",
            Self::Ipv4HeaderLength => "ipv4_header_length",
            Self::Ipv4Checksum => "ipv4_checksum",
            Self::Ipv6TooShort => "ipv6_too_short",
            Self::Ipv6Version => "ipv6_version",
            Self::Ipv6Jumbogram => "ipv6_jumbogram",
            Self::Ipv6ExtensionTooShort => "ipv6_extension_too_short",
            Self::Ipv6Extensions => "ipv6_extensions",
            Self::TcpTooShort => "tcp_too_short",
            Self::UdpTooShort => "udp_too_short",
            Self::SctpTooShort => "sctp_too_short",
            Self::SctpNoChunk => "sctp_no_chunk",
            Self::IcmpTooShort => "icmp_too_short",
        }
    }

    /// The sentence that an operator reads.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::EthernetTooShort => "the frame ends inside its Ethernet header",
            Self::VlanTooDeep => "the frame carries more than two VLAN tags",
            Self::Ipv4TooShort => "the frame ends before the IPv4 packet it announces",
            Self::Ipv4Version => "the Ethernet type says IPv4 and the version field does not",
            Self::Ipv4HeaderLength => "the IPv4 header length is impossible",
            Self::Ipv4Checksum => "the IPv4 header checksum is wrong",
            Self::Ipv6TooShort => "the frame ends before the IPv6 packet it announces",
            Self::Ipv6Version => "the Ethernet type says IPv6 and the version field does not",
            Self::Ipv6Jumbogram => "the packet is an IPv6 jumbogram, which no Ethernet frame holds",
            Self::Ipv6ExtensionTooShort => "the packet ends inside an IPv6 extension header",
            Self::Ipv6Extensions => {
                "the packet has more than six IPv6 extension headers, or two fragment headers"
            }
            Self::TcpTooShort => "the packet ends inside its TCP header",
            Self::UdpTooShort => "the packet ends inside its UDP header",
            Self::SctpTooShort => "the packet ends inside its SCTP common header",
            Self::SctpNoChunk => "the packet would begin a connection and holds no SCTP chunk",
            Self::IcmpTooShort => "the packet ends inside its ICMP header",
        }
    }
}
