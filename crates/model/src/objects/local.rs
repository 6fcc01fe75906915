//! Local addresses, the source addresses that real servers behind FULLNAT see, and their use.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Protocol};

use crate::config::refusal::CommandError;
use crate::objects::noun::{Noun, Services};

/// A source address of FULLNAT with the range of its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LocalAddress {
    /// The local address: a source address of FULLNAT.
    pub addr: IpAddr,
    /// The first port that connections may use.
    pub first_port: u16,
    /// The last port that connections may use.
    pub last_port: u16,
    /// Whether it is that of another director: connections synchronized from there go on, and new ones do not use it.
    #[serde(default)]
    pub standby: bool,
}

impl LocalAddress {
    /// The default ports: above the privileged ones, below those of Linux's own connections (`ip_local_port_range`).
    pub const PORTS: RangeInclusive<u16> = 1024..=32_767;

    /// The ports.
    pub fn ports(&self) -> RangeInclusive<u16> {
        self.first_port..=self.last_port
    }

    /// Why it cannot be a local address; `None`: it can be one.
    pub fn fault(&self) -> Option<String> {
        let unicast = match self.addr {
            IpAddr::V4(addr) => !(addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast()),
            IpAddr::V6(addr) => {
                !(addr.is_unspecified() || addr.is_multicast() || addr.is_unicast_link_local())
            }
        };
        if !unicast || self.addr.is_loopback() {
            return Some(format!("real servers cannot reply to {}", self.addr));
        }
        let ports = self.ports();
        let sound = *ports.start() > 0 && !ports.is_empty();
        (!sound).then(|| {
            format!(
                "{}-{} is not a range of ports: give the lowest and the highest, from 1 on",
                self.first_port, self.last_port
            )
        })
    }
}

/// The arguments of `xvs laddr add`.
impl fmt::Display for LocalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} --ports {}-{}", self.addr, self.first_port, self.last_port)?;
        if self.standby { f.write_str(" --standby") } else { Ok(()) }
    }
}

impl Noun for LocalAddress {
    type Key = IpAddr;
    type All = Vec<Self>;
    const IS_REPLACED: bool = true;

    fn key(&self) -> IpAddr {
        self.addr
    }

    fn check_add(&self, all: &Vec<Self>, _: &dyn Services) -> Result<(), CommandError> {
        if let Some(there) = all.iter().find(|known| known.addr == self.addr) {
            let Self { addr, first_port, last_port, standby } = *there;
            return Err(CommandError::LocalExists { addr, first_port, last_port, standby });
        }
        if let Some(why) = self.fault() {
            return Err(CommandError::invalid(why));
        }
        if all.len() >= LOCALS_MAX {
            let why = format!(
                "there are {LOCALS_MAX} local addresses already, the largest number; delete one first"
            );
            return Err(CommandError::invalid(why));
        }
        Ok(())
    }

    fn check_delete(addr: &IpAddr, all: &Vec<Self>) -> Result<(), CommandError> {
        let is_there = all.iter().any(|known| known.addr == *addr);
        if is_there { Ok(()) } else { Err(CommandError::NoSuchLocal(*addr)) }
    }

    fn add(&self, all: &mut Vec<Self>) {
        all.push(*self);
    }

    fn delete(addr: &IpAddr, all: &mut Vec<Self>) {
        all.retain(|known| known.addr != *addr);
    }

    fn each(all: &Vec<Self>) -> impl Iterator<Item = Self> {
        all.iter().copied()
    }

    fn added(&self) -> String {
        format!("laddr add {self}")
    }

    fn deleted(addr: &IpAddr) -> String {
        format!("laddr delete {addr}")
    }
}

/// The largest number of local addresses. Steering can hold twice as many, for those that are being replaced.
pub(crate) const LOCALS_MAX: usize = 1024;

/// The connections of FULLNAT, by local address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LocalReport {
    /// The local addresses, in the order of the commands.
    pub addresses: Vec<LocalRow>,
    /// Connections that were refused since xvsd started because no port was free.
    pub exhausted: u64,
}

/// The use of one local address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LocalRow {
    /// The address and its ports.
    #[serde(flatten)]
    pub local: LocalAddress,
    /// Connections that use one of its ports.
    pub connections: u64,
    /// The destination towards which most of its ports are used (a port serves once for each destination); `None`: none
    /// is used.
    pub busiest: Option<Busiest>,
}

/// A destination towards which ports of a local address are used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Busiest {
    /// Ports that are used towards that destination.
    pub ports: u64,
    /// The endpoint of the real server.
    pub dest: Endpoint,
    /// The transport protocol.
    pub protocol: Protocol,
}

#[cfg(test)]
mod tests {
    use crate::objects::local::*;

    #[test]
    fn addresses_that_servers_cannot_reply_to_and_wrong_port_ranges_are_refused() {
        let local = |addr: &str, first_port, last_port| LocalAddress {
            addr: addr.parse().unwrap(),
            first_port,
            last_port,
            standby: false,
        };
        for good in [local("192.0.2.1", 1, 65535), local("2001:db8::1", 5000, 5000)] {
            assert_eq!(good.fault(), None);
        }
        for bad in [
            local("0.0.0.0", 1024, 2048),
            local("127.0.0.1", 1024, 2048),
            local("224.0.0.1", 1024, 2048),
            local("fe80::1", 1024, 2048),
            local("192.0.2.1", 0, 2048),
            local("192.0.2.1", 2048, 1024),
        ] {
            assert!(bad.fault().is_some(), "{bad}");
        }
    }
}
