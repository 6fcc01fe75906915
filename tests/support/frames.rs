//! Frames for tests, written by `etherparse`, which shares no code with our own encoders.
//!
//! Used by the tests of the lab, for injected and for expected frames: an expected frame is the injected one with
//! the fields that a rule changes. Not here: what the director does with them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use etherparse::{
    EtherType, Ethernet2Header, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpDscp, IpEcn,
    IpFragOffset, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader,
};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// FIN of TCP.
pub const FIN: u8 = 0x01;
/// SYN of TCP.
pub const SYN: u8 = 0x02;
/// RST of TCP.
pub const RST: u8 = 0x04;
/// ACK of TCP.
pub const ACK: u8 = 0x10;

/// The transport of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these control bits.
    Tcp(u8),
    /// UDP with its checksum.
    Udp,
    /// UDP without checksum.
    UdpUnsummed,
    /// SCTP; its chunks are the data.
    Sctp,
}

/// An IPv4 or IPv6 packet with ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its source.
    pub source: SocketAddr,
    /// Its destination.
    pub dest: SocketAddr,
    /// Its transport.
    pub transport: Transport,
    /// Its data.
    pub data: Vec<u8>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// Identification of an IPv4 packet.
    pub id: u16,
    /// Whether routers may not fragment an IPv4 packet.
    pub dont_fragment: bool,
}

impl Datagram {
    /// A packet without data, with the initial time to live, that may be fragmented.
    pub fn new(transport: Transport, source: SocketAddr, dest: SocketAddr) -> Self {
        let data = Vec::new();
        Self { source, dest, transport, data, ttl: 64, tos: 0, id: 0x1234, dont_fragment: false }
    }

    /// The packet with this many bytes of data.
    #[must_use]
    pub fn carrying(self, bytes: usize) -> Self {
        Self { data: (0..bytes).map(|at| at as u8 ^ 0xa5).collect(), ..self }
    }

    /// The packet, from its network header on.
    ///
    /// # Panics
    /// If it is longer than its protocol allows, or its addresses are of two families.
    pub fn packet(&self) -> Vec<u8> {
        let (protocol, segment) = self.segment();
        match (self.source.ip(), self.dest.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (ttl, tos, id, dont_fragment) = (self.ttl, self.tos, self.id, self.dont_fragment);
                Ipv4 { ttl, tos, id, dont_fragment }.packet(protocol, from, to, &segment)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                Ipv6 { hop_limit: self.ttl, traffic_class: self.tos }.packet(protocol, from, to, &segment)
            }
            _ => panic!("one family: {self:?}"),
        }
    }

    /// The packet's content, from its transport header on, and its protocol.
    fn segment(&self) -> (IpNumber, Vec<u8>) {
        let (source, dest) = (self.source.port(), self.dest.port());
        let (protocol, mut segment) = match self.transport {
            Transport::Tcp(flags) => {
                let mut header = TcpHeader::new(source, dest, 1000, 64240);
                (header.fin, header.syn) = (flags & FIN != 0, flags & SYN != 0);
                (header.rst, header.ack) = (flags & RST != 0, flags & ACK != 0);
                header.checksum = match (self.source.ip(), self.dest.ip()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => {
                        header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &self.data)
                    }
                    (from, to) => header.calc_checksum_ipv6_raw(v6(from), v6(to), &self.data),
                }
                .expect("short enough");
                (IpNumber::TCP, header.to_bytes().to_vec())
            }
            Transport::Udp | Transport::UdpUnsummed => {
                let length = self.data.len();
                let mut header =
                    UdpHeader::without_ipv4_checksum(source, dest, length).expect("short enough");
                if self.transport == Transport::Udp {
                    header.checksum = match (self.source.ip(), self.dest.ip()) {
                        (IpAddr::V4(from), IpAddr::V4(to)) => {
                            header.calc_checksum_ipv4_raw(from.octets(), to.octets(), &self.data)
                        }
                        (from, to) => header.calc_checksum_ipv6_raw(v6(from), v6(to), &self.data),
                    }
                    .expect("short enough");
                }
                (IpNumber::UDP, header.to_bytes().to_vec())
            }
            Transport::Sctp => (IpNumber::SCTP, sctp_header(source, dest, &self.data)),
        };
        segment.extend(&self.data);
        (protocol, segment)
    }

    /// The packet in a frame.
    pub fn frame(&self, from: Mac, to: Mac) -> Vec<u8> {
        let kind = if self.dest.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        ethernet(from, to, kind, &self.packet())
    }
}

/// Fields of an IPv4 header that do not follow from the packet's content.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    /// Time to live.
    pub ttl: u8,
    /// Type of service.
    pub tos: u8,
    /// Identification.
    pub id: u16,
    /// Whether routers may not fragment it.
    pub dont_fragment: bool,
}

impl Ipv4 {
    /// A packet that carries `payload`.
    ///
    /// # Panics
    /// If it is longer than IPv4 allows.
    pub fn packet(self, protocol: IpNumber, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).expect("short enough");
        let mut header =
            Ipv4Header::new(length, self.ttl, protocol, from.octets(), to.octets()).expect("short enough");
        header.dscp = IpDscp::try_new(self.tos >> 2).expect("six bits");
        header.ecn = IpEcn::try_new(self.tos & 3).expect("two bits");
        header.identification = self.id;
        header.dont_fragment = self.dont_fragment;
        header.fragment_offset = IpFragOffset::ZERO;
        header.header_checksum = header.calc_header_checksum();
        let mut packet = header.to_bytes().to_vec();
        packet.extend(payload);
        packet
    }
}

/// Fields of an IPv6 header that do not follow from the packet's content.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6 {
    /// Hop limit.
    pub hop_limit: u8,
    /// Traffic class.
    pub traffic_class: u8,
}

impl Ipv6 {
    /// A packet that carries `payload`, with the flow label 0.
    ///
    /// # Panics
    /// If it is longer than IPv6 allows.
    pub fn packet(self, protocol: IpNumber, from: Ipv6Addr, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let header = Ipv6Header {
            traffic_class: self.traffic_class,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(payload.len()).expect("short enough"),
            next_header: protocol,
            hop_limit: self.hop_limit,
            source: from.octets(),
            destination: to.octets(),
        };
        [&header.to_bytes()[..], payload].concat()
    }
}

/// An ICMP error: type, code, and the last four bytes of its header.
#[derive(Clone, Copy, Debug)]
pub struct Complaint(pub u8, pub u8, pub [u8; 4]);

impl Complaint {
    /// No socket has the port.
    pub const PORT_UNREACHABLE: Self = Self(3, 3, [0; 4]);
    /// There is no route to the host.
    pub const HOST_UNREACHABLE: Self = Self(3, 1, [0; 4]);
    /// The time to live expired in transit.
    pub const TIME_EXCEEDED: Self = Self(11, 0, [0; 4]);

    /// The packet is longer than `mtu` bytes and may not be fragmented (RFC 1191 section 4).
    pub fn fragmentation_needed(mtu: u16) -> Self {
        let [high, low] = mtu.to_be_bytes();
        Self(3, 4, [0, 0, high, low])
    }

    /// The error that Linux sends from `source` about `offending`: at most 576 bytes, time to live 64.
    pub fn about(self, offending: &[u8], source: Ipv4Addr, id: u16) -> Vec<u8> {
        let Self(type_u8, code_u8, bytes5to8) = self;
        let quote = &offending[..offending.len().min(576 - 28)];
        let mut message =
            Icmpv4Header::with_checksum(Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 }, quote)
                .to_bytes()
                .to_vec();
        message.extend(quote);
        let sender: [u8; 4] = offending[12..16].try_into().expect("four bytes");
        let header = Ipv4 { ttl: 64, tos: offending[1] & 0x1e | 0xc0, id, dont_fragment: false };
        header.packet(IpNumber::ICMP, source, sender.into(), &message)
    }
}

/// An ICMPv6 error: type, code, and the last four bytes of its header (RFC 4443).
#[derive(Clone, Copy, Debug)]
pub struct Complaint6(pub u8, pub u8, pub u32);

impl Complaint6 {
    /// No socket has the port.
    pub const PORT_UNREACHABLE: Self = Self(1, 4, 0);
    /// There is no route to the address.
    pub const ADDRESS_UNREACHABLE: Self = Self(1, 3, 0);
    /// The hop limit expired in transit.
    pub const TIME_EXCEEDED: Self = Self(3, 0, 0);

    /// The packet is longer than `mtu` bytes.
    pub fn packet_too_big(mtu: u32) -> Self {
        Self(2, 0, mtu)
    }

    /// The error that Linux sends from `source` about `offending`: at most 1280 bytes, hop limit 64.
    ///
    /// # Panics
    /// If `offending` is shorter than an IPv6 header.
    pub fn about(self, offending: &[u8], source: Ipv6Addr) -> Vec<u8> {
        let Self(type_u8, code_u8, rest) = self;
        let quote = &offending[..offending.len().min(1280 - 48)];
        let sender: [u8; 16] = offending[8..24].try_into().expect("sixteen bytes");
        let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8: rest.to_be_bytes() };
        let header = Icmpv6Header::with_checksum(kind, source.octets(), sender, quote).expect("short enough");
        let message = [&header.to_bytes()[..], quote].concat();
        Ipv6 { hop_limit: 64, traffic_class: 0 }.packet(IpNumber::IPV6_ICMP, source, sender.into(), &message)
    }
}

fn v6(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V6(addr) => addr.octets(),
        IpAddr::V4(_) => panic!("an IPv6 address, not {addr}"),
    }
}

/// A common header of SCTP with verification tag 7 and the checksum over these chunks (RFC 9260 section 3.1).
fn sctp_header(source: u16, dest: u16, chunks: &[u8]) -> Vec<u8> {
    let before = [&source.to_be_bytes()[..], &dest.to_be_bytes(), &[0, 0, 0, 7]].concat();
    let sum = crc32c(&[&before[..], &[0; 4], chunks].concat());
    [&before[..], &sum.to_le_bytes()].concat()
}

/// Whether an SCTP packet's checksum is that of its bytes.
///
/// # Panics
/// If the packet is shorter than the common header.
pub fn sctp_checksum_is_right(packet: &[u8]) -> bool {
    crc32c(&[&packet[..8], &[0; 4], &packet[12..]].concat()).to_le_bytes() == packet[8..12]
}

/// CRC32c bit by bit, from the polynomial in RFC 9260 appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |sum: u32| sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
    let byte = |sum: u32, byte: &u8| (0..8).fold(sum ^ u32::from(*byte), |sum, _| bit(sum));
    !bytes.iter().fold(!0, byte)
}

/// A frame around `payload`.
pub fn ethernet(from: Mac, to: Mac, ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let mut frame = Ethernet2Header { source: from, destination: to, ether_type }.to_bytes().to_vec();
    frame.extend(payload);
    frame
}

/// The identification of the IPv4 packet in an untagged frame; a test cannot predict it where the director chooses it.
pub fn id(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[18], frame[19]])
}

/// The two fragments of an IPv4 packet in an untagged frame, the first with `first` bytes, a multiple of 8.
pub fn fragments(frame: &[u8], first: usize) -> [Vec<u8>; 2] {
    let (headers, payload) = frame.split_at(14 + 20);
    [(&payload[..first], 0x2000), (&payload[first..], first as u16 / 8)].map(|(part, offset_and_flags)| {
        let mut frame = [headers, part].concat();
        frame[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&u16::to_be_bytes(offset_and_flags));
        resum(&mut frame);
        frame
    })
}

/// Updates the IPv4 header checksum of an untagged frame after a test has edited the header. A frame without a whole
/// header stays as it is.
pub fn resum(frame: &mut [u8]) {
    if frame.len() < 34 {
        return;
    }
    frame[24..26].fill(0);
    let end = (14 + usize::from(frame[14] & 0xf) * 4).min(frame.len());
    let sum: u32 =
        frame[14..end.max(34)].chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// Bytes in the lab's hexadecimal notation.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of the lab's hexadecimal notation.
///
/// # Panics
/// If the text is malformed.
pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex")).collect()
}
