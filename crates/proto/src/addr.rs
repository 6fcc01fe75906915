//! Addresses, protocols, endpoints and networks.
//!
//! All are plain values. Addresses are `std::net` types, so every crate prints and parses them alike. Serde represents
//! protocols, endpoints and networks by their printed form.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The error for text that is not six colon-separated hexadecimal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six hexadecimal bytes like 02:00:00:00:01:01")]
pub struct NotAMacAddr;

impl FromStr for MacAddr {
    type Err = NotAMacAddr;

    fn from_str(text: &str) -> Result<Self, NotAMacAddr> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(NotAMacAddr)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMacAddr)?;
        }
        if parts.next().is_some() { Err(NotAMacAddr) } else { Ok(Self(bytes)) }
    }
}

/// IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The length of a network header without options or extension headers, in bytes (RFC 791 §3.1, RFC 8200 §3).
    pub const fn header_len(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// EtherType of a frame that carries a packet of this family (RFC 894, RFC 2464 §3).
    pub const fn ethertype(self) -> u16 {
        match self {
            Self::V4 => 0x0800,
            Self::V6 => 0x86dd,
        }
    }

    /// The family of the packet in a frame with this EtherType, or `None` if the EtherType is not IP.
    pub fn of_ethertype(ethertype: u16) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.ethertype() == ethertype)
    }

    /// The protocol number that announces a packet of this family inside another packet (RFC 2003, RFC 2473).
    pub fn protocol(self) -> Protocol {
        match self {
            Self::V4 => Protocol::IPIP,
            Self::V6 => Protocol::IPV6,
        }
    }

    /// The family of the packet that this protocol number announces, or `None` for another protocol.
    pub fn of_protocol(protocol: Protocol) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|family| family.protocol() == protocol)
    }
}

/// Whether an address can belong to a single host on a network: it is not unspecified, multicast, broadcast or
/// loopback. A network's directed broadcast address looks like a host address and is accepted.
///
/// Source: RFC 1122 §3.2.1.3, RFC 4291 §2.
pub fn is_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => {
            let unspecified = addr.octets()[0] == 0;
            !(unspecified || addr.is_loopback() || addr.is_multicast() || addr.is_broadcast())
        }
        IpAddr::V6(addr) => {
            let mapped = addr.to_ipv4_mapped().is_some();
            !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || mapped)
        }
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Placeholder in the templates of firewall marks, printed as `IP`.
    pub const IP: Self = Self(0);
    /// ICMP (RFC 792).
    pub const ICMP: Self = Self(1);
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: Self = Self(4);
    /// TCP (RFC 9293).
    pub const TCP: Self = Self(6);
    /// UDP (RFC 768).
    pub const UDP: Self = Self(17);
    /// GRE (RFC 2784).
    pub const GRE: Self = Self(47);
    /// IPv6 in IP (RFC 2473, RFC 4213).
    pub const IPV6: Self = Self(41);
    /// ESP (RFC 4303).
    pub const ESP: Self = Self(50);
    /// AH (RFC 4302).
    pub const AH: Self = Self(51);
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: Self = Self(58);
    /// SCTP (RFC 9260).
    pub const SCTP: Self = Self(132);
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IP => f.pad("IP"),
            Self::ICMP => f.pad("ICMP"),
            Self::TCP => f.pad("TCP"),
            Self::UDP => f.pad("UDP"),
            Self::SCTP => f.pad("SCTP"),
            Self(other) => f.pad(&other.to_string()),
        }
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        [Self::IP, Self::ICMP, Self::TCP, Self::UDP, Self::SCTP]
            .into_iter()
            .find(|protocol| protocol.to_string() == text)
            .or_else(|| text.parse().ok().map(Self))
            .ok_or_else(|| D::Error::custom(format_args!("{text:?} is no protocol")))
    }
}

/// An address with a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// The address.
    pub addr: IpAddr,
    /// The port; 0 in a service or template means every port.
    pub port: u16,
}

impl Endpoint {
    /// An endpoint of this address and port.
    pub fn new(addr: impl Into<IpAddr>, port: u16) -> Self {
        Self { addr: addr.into(), port }
    }

    /// The family of the endpoint's address.
    pub fn family(self) -> Family {
        Family::of(self.addr)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::new(self.addr, self.port), f)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let socket: SocketAddr =
            text.parse().map_err(|_| D::Error::custom(format_args!("{text:?} is no ADDRESS:PORT")))?;
        Ok(Self::new(socket.ip(), socket.port()))
    }
}

/// A network: an address and a prefix length.
///
/// ```
/// use xvs_proto::Prefix;
///
/// let network: Prefix = "192.0.2.77/24".parse()?;
/// assert_eq!(network.to_string(), "192.0.2.0/24");
/// assert!(network.contains("192.0.2.200".parse().unwrap()));
/// assert!(!network.contains("192.0.3.1".parse().unwrap()));
/// # Ok::<(), xvs_proto::addr::NotAPrefix>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The network that consists of the first `len` bits of `addr`; host bits are cleared.
    ///
    /// `None` if `len` exceeds the family's 32 or 128 bits.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
            }
            IpAddr::V6(v6) if len <= 128 => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
            }
            _ => return None,
        };
        Some(Self { addr, len })
    }

    /// The network that contains only this address.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: if addr.is_ipv4() { 32 } else { 128 } }
    }

    /// The network address, host bits zero.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// The prefix length, in bits.
    #[allow(
        clippy::len_without_is_empty,
        reason = "a prefix of no bits is the whole family, not an empty one"
    )]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether the network contains every address of its family.
    pub fn is_default(self) -> bool {
        self.len == 0
    }

    /// Whether the network contains `addr`; always false for an address of the other family.
    pub fn contains(self, addr: IpAddr) -> bool {
        Self::new(addr, self.len) == Some(self)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(|_| D::Error::custom(format_args!("{text:?} is no network")))
    }
}

/// The error for text that is neither `ADDRESS/LENGTH` nor `ADDRESS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a network is an address with a prefix length like 10.0.0.0/24")]
pub struct NotAPrefix;

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let Some((addr, len)) = text.split_once('/') else {
            return text.parse().map(Self::host).map_err(|_| NotAPrefix);
        };
        let addr = addr.parse().map_err(|_| NotAPrefix)?;
        Self::new(addr, len.parse().map_err(|_| NotAPrefix)?).ok_or(NotAPrefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unspecified_multicast_broadcast_and_loopback_addresses_are_not_hosts() {
        let none = "0.0.0.0 0.255.1.1 127.0.0.1 127.9.9.9 224.0.0.1 239.255.255.255 255.255.255.255 \
                    :: ::1 ff02::1 ::ffff:192.0.2.1";
        let some = "1.0.0.1 10.0.0.255 169.254.1.1 223.255.255.255 240.0.0.1 2001:db8::1 fe80::1 fd00::1";
        assert!(none.split(' ').all(|addr| !is_host(addr.parse().unwrap())));
        assert!(some.split(' ').all(|addr| is_host(addr.parse().unwrap())));
    }

    #[test]
    fn a_mac_address_is_parsed_from_its_printed_form_and_no_other() {
        let mac = MacAddr([2, 0, 0, 0, 0x1, 0xfe]);
        assert_eq!(mac.to_string(), "02:00:00:00:01:fe");
        assert_eq!("02:00:00:00:01:fe".parse(), Ok(mac));
        for bad in
            ["", "02:00", "02:00:00:00:01:fe:00", "2:0:0:0:1:fe", "02:00:00:00:01:zz", "02-00-00-00-01-fe"]
        {
            assert_eq!(bad.parse::<MacAddr>(), Err(NotAMacAddr), "{bad}");
        }
    }

    #[test]
    fn a_prefix_clears_host_bits_and_contains_only_its_own_family() {
        let net: Prefix = "192.0.2.77/24".parse().unwrap();
        assert_eq!(net.to_string(), "192.0.2.0/24");
        assert!(net.contains("192.0.2.255".parse().unwrap()));
        assert!(!net.contains("192.0.3.0".parse().unwrap()));
        assert!(!net.contains("::ffff:192.0.2.1".parse().unwrap()));
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.is_default() && all.contains("203.0.113.9".parse().unwrap()));
        assert!("192.0.2.0/33".parse::<Prefix>().is_err());
        assert!("2001:db8::/129".parse::<Prefix>().is_err());
        assert_eq!("2001:db8::1/32".parse::<Prefix>().unwrap().to_string(), "2001:db8::/32");
    }
}
