//! Virtual services: their options.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Family};
use xvs_sched::ClientAddress;

use crate::destination::Destination;

/// A virtual service as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// How it treats its connections.
    pub options: ServiceOptions,
    /// In IPVS's order: the one added last comes first; an edit keeps the place.
    pub destinations: Vec<Destination>,
}

impl Service {
    /// One of its destinations.
    pub fn destination(&self, endpoint: Endpoint) -> Option<&Destination> {
        self.destinations.iter().find(|dest| dest.endpoint == endpoint)
    }
}

/// What can be said of a service beside its key; an edit replaces all of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceOptions {
    /// The scheduler's name; `none` schedules nothing.
    pub scheduler: String,
    /// Bits whose meaning the scheduler defines.
    pub flags: SchedulerFlags,
    /// How long a client stays with its destination; `None`: the service is not persistent.
    pub persistence_timeout_seconds: Option<u32>,
    /// Which clients persistence takes for one.
    pub netmask: Netmask,
    /// The persistence engine's name.
    pub persistence_engine: Option<String>,
    /// Whether each UDP packet is scheduled for itself.
    pub one_packet: bool,
    /// How real servers behind FULLNAT learn who their clients are.
    #[serde(default)]
    pub client_address: ClientAddress,
}

impl ServiceOptions {
    /// What `ipvsadm` assumes for all that is not said, for a service of this family.
    pub fn of(family: Family) -> Self {
        Self {
            scheduler: DEFAULT_SCHEDULER.to_owned(),
            flags: SchedulerFlags::default(),
            persistence_timeout_seconds: None,
            netmask: Netmask::host(family),
            persistence_engine: None,
            one_packet: false,
            client_address: ClientAddress::Hidden,
        }
    }
}

/// The three flags of a scheduler; bit 0 is flag 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SchedulerFlags(pub u8);

/// Which part of a client's address persistence looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Netmask {
    /// Bits of an IPv4 address; they need not be contiguous.
    V4(Ipv4Addr),
    /// Leading bits of an IPv6 address, 1 to 128.
    V6(u8),
}

impl Netmask {
    /// Each client for itself.
    pub fn host(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }
}

/// The scheduler of a service for which none was named.
pub const DEFAULT_SCHEDULER: &str = "wlc";
