//! The key of a virtual service.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Family, Protocol};

/// The key of a virtual service: the properties that select its packets.
///
/// ```
/// use xvs_proto::{Endpoint, Family};
/// use xvs_sched::ServiceKey;
///
/// let key: ServiceKey = "TCP 198.51.100.2:80".parse()?;
/// assert_eq!(key, ServiceKey::tcp(Endpoint::new([198, 51, 100, 2], 80)));
/// assert_eq!("FWM 7 IPv6".parse(), Ok(ServiceKey::Mark { mark: 7, family: Family::V6 }));
/// assert!("TCP 198.51.100.2".parse::<ServiceKey>().is_err(), "the port is missing");
/// # Ok::<(), xvs_sched::service::NotAService>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ServiceKey {
    /// A service for an endpoint: packets of one protocol to it.
    Address {
        /// The protocol: `TCP`, `UDP` or `SCTP`.
        protocol: Protocol,
        /// The virtual endpoint; port 0: every port.
        endpoint: Endpoint,
    },
    /// A service for a firewall mark: packets of one family with the mark.
    Mark {
        /// The firewall mark; never 0.
        mark: u32,
        /// The address family; one mark can have a service for each family.
        family: Family,
    },
}

impl ServiceKey {
    /// The key of a TCP service at a virtual endpoint.
    pub fn tcp(endpoint: Endpoint) -> Self {
        Self::Address { protocol: Protocol::TCP, endpoint }
    }

    /// The key of a UDP service at a virtual endpoint.
    pub fn udp(endpoint: Endpoint) -> Self {
        Self::Address { protocol: Protocol::UDP, endpoint }
    }

    /// The family of the service's packets.
    pub fn family(self) -> Family {
        match self {
            Self::Address { endpoint, .. } => endpoint.family(),
            Self::Mark { family, .. } => family,
        }
    }
}

/// Limits on a service's use by each client, and on the SYNs from all clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClientLimit {
    /// Connections that each client may have at once; 0 means no limit.
    pub connections: u32,
    /// Connections per second that each client may begin; 0 means no limit.
    pub rate: u32,
    /// Connections that each client may begin at once after a pause; 0 means as many as `rate`.
    pub burst: u32,
    /// The action for a client's SYN above `rate`.
    #[serde(default)]
    pub above: Above,
    /// SYNs per second from all clients together; 0 means no limit.
    #[serde(default)]
    pub syn_rate: u32,
    /// SYNs from all clients that may arrive at once after a pause; 0 means as many as `syn_rate`.
    #[serde(default)]
    pub syn_burst: u32,
}

/// The limit on the SYNs that a service gets from all clients together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SynRate {
    /// SYNs a second; never 0.
    pub rate: u32,
    /// SYNs that may arrive at once after a pause; 0 means as many as `rate`.
    pub burst: u32,
}

/// The action for a client's SYN above its rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Above {
    /// It is dropped.
    #[default]
    Drop,
    /// The director answers it with a cookie, and a client that returns the cookie connects without the limit on the
    /// rate.
    SynProxy,
}

impl Above {
    /// All, in the order in which they are explained.
    pub const ALL: [Self; 2] = [Self::Drop, Self::SynProxy];

    /// The name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::SynProxy => "syn-proxy",
        }
    }
}

impl ClientLimit {
    /// Whether it limits single clients.
    pub fn is_of_clients(self) -> bool {
        self.connections > 0 || self.rate > 0
    }

    /// The limit on the SYNs from all clients; `None` if there is none.
    pub fn of_syns(self) -> Option<SynRate> {
        (self.syn_rate > 0).then_some(SynRate { rate: self.syn_rate, burst: self.syn_burst })
    }

    /// The limit for a client that has returned a cookie.
    pub fn of_proven(self) -> Self {
        match self.above {
            Above::Drop => self,
            Above::SynProxy => Self { rate: 0, ..self },
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, endpoint } => write!(f, "{protocol} {endpoint}"),
            Self::Mark { mark, family: Family::V4 } => write!(f, "FWM {mark}"),
            Self::Mark { mark, family: Family::V6 } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// A text that is not a service's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotAService;

impl fmt::Display for NotAService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a service is like TCP 192.0.2.1:80, UDP [2001:db8::1]:53, FWM 7 or FWM 7 IPv6")
    }
}

impl std::error::Error for NotAService {}

/// Parses the printed form, in either case.
impl FromStr for ServiceKey {
    type Err = NotAService;

    fn from_str(text: &str) -> Result<Self, NotAService> {
        let words: Vec<_> = text.split_whitespace().map(str::to_ascii_uppercase).collect();
        let (kind, name, family) = match &words[..] {
            [kind, name] => (kind, name, Family::V4),
            [kind, name, v6] if kind == "FWM" && v6 == "IPV6" => (kind, name, Family::V6),
            _ => return Err(NotAService),
        };
        if kind == "FWM" {
            // ipvsadm lists marks as signed numbers.
            let mark = name.parse().or_else(|_| name.parse().map(i32::cast_unsigned));
            return Ok(Self::Mark { mark: mark.ok().filter(|mark| *mark != 0).ok_or(NotAService)?, family });
        }
        let protocol = [Protocol::TCP, Protocol::UDP, Protocol::SCTP]
            .into_iter()
            .find(|known| known.to_string() == *kind)
            .ok_or(NotAService)?;
        let socket: SocketAddr = name.parse().map_err(|_| NotAService)?;
        Ok(Self::Address { protocol, endpoint: Endpoint::new(socket.ip(), socket.port()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_parsed_from_its_printed_form_and_no_other() {
        for text in ["TCP 192.0.2.1:80", "UDP [2001:db8::1]:53", "SCTP 192.0.2.1:0", "FWM 7", "FWM 7 IPv6"] {
            assert_eq!(text.parse::<ServiceKey>().unwrap().to_string(), text);
        }
        let highest = ServiceKey::Mark { mark: u32::MAX, family: Family::V4 };
        assert_eq!(
            ["FWM 4294967295", "FWM -1"].map(str::parse),
            [Ok(highest); 2],
            "as ipvsadm lists it, too"
        );
        assert_eq!("tcp   192.0.2.1:80".parse(), Ok(ServiceKey::tcp(Endpoint::new([192, 0, 2, 1], 80))));
        for text in [
            "",
            "TCP",
            "TCP 192.0.2.1",
            "ICMP 192.0.2.1:1",
            "FWM 0",
            "FWM x",
            "FWM -0",
            "FWM -2147483649",
            "TCP 192.0.2.1:80 IPv6",
        ] {
            assert_eq!(text.parse::<ServiceKey>(), Err(NotAService), "{text}");
        }
    }
}
