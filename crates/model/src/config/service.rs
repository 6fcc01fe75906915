//! Virtual services and their options.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ClientAddress, ServiceKey, SynProxy};

use crate::config::destination::Destination;
use crate::config::refusal::CommandError;

/// A virtual service of the desired state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The options.
    pub options: ServiceOptions,
    /// The destinations in IPVS's order: the one added last comes first; an edit keeps the position.
    pub destinations: Vec<Destination>,
}

impl Service {
    /// The destination with this endpoint.
    pub fn destination(&self, endpoint: Endpoint) -> Option<&Destination> {
        self.destinations.iter().find(|dest| dest.endpoint == endpoint)
    }
}

/// The options of a service; an edit replaces all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ServiceOptions {
    /// The name of the scheduler; with `none` no connection is scheduled.
    pub scheduler: String,
    /// The flags of the scheduler, as bits; bit 0 is `flag-1`.
    pub flags: SchedulerFlags,
    /// How long a client stays with its real server; `None`: the service is not persistent.
    pub persistence_timeout_seconds: Option<u32>,
    /// The part of a client's address that persistence compares.
    pub netmask: Netmask,
    /// The name of the persistence engine; `None`: there is none.
    pub persistence_engine: Option<String>,
    /// Whether each UDP packet is scheduled on its own.
    pub one_packet: bool,
    /// How real servers behind FULLNAT learn the client's address.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// When the director answers SYNs itself, by cookies.
    #[serde(default)]
    pub syn_proxy: SynProxy,
    /// How long a real server that takes connections again gets less than its share of the new ones, 1 to 86400;
    /// `None`: it gets its share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_seconds: Option<u32>,
}

impl ServiceOptions {
    /// The defaults of `ipvsadm` for a service of this family.
    pub fn of(family: Family) -> Self {
        Self {
            scheduler: DEFAULT_SCHEDULER.to_owned(),
            flags: SchedulerFlags::default(),
            persistence_timeout_seconds: None,
            netmask: Netmask::host(family),
            persistence_engine: None,
            one_packet: false,
            client_address: ClientAddress::Hidden,
            syn_proxy: SynProxy::Off,
            slow_start_seconds: None,
        }
    }

    /// The options that ipvsadm has, too.
    pub fn of_ipvsadm(&self) -> Self {
        let (client_address, syn_proxy, slow_start_seconds) = Default::default();
        Self { client_address, syn_proxy, slow_start_seconds, ..self.clone() }
    }
}

/// The three flags of a scheduler; bit 0 is flag 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SchedulerFlags(pub u8);

/// The part of a client's address that persistence compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Netmask {
    /// The mask of IPv4 addresses; its bits need not be contiguous.
    V4(Ipv4Addr),
    /// The number of leading bits of IPv6 addresses, 1 to 128.
    V6(u8),
}

impl Netmask {
    /// The whole address: each client on its own.
    pub fn host(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4(Ipv4Addr::BROADCAST),
            Family::V6 => Self::V6(128),
        }
    }
}

/// The scheduler of a service without `-s`.
pub const DEFAULT_SCHEDULER: &str = "wlc";

/// Refuses a key that no service can have.
///
/// # Errors
/// The protocol has no services, or the mark is 0.
pub(crate) fn check_key(key: &ServiceKey) -> Result<(), CommandError> {
    match *key {
        ServiceKey::Address { protocol: Protocol::TCP | Protocol::UDP | Protocol::SCTP, .. } => Ok(()),
        ServiceKey::Address { protocol, .. } => Err(CommandError::ProtocolNotSupported(protocol)),
        ServiceKey::Mark { mark: 0, .. } => Err(CommandError::invalid("a firewall mark is never 0")),
        ServiceKey::Mark { .. } => Ok(()),
    }
}
