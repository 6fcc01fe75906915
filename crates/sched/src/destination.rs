//! A destination: a real server of one service.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;

/// A destination, as input of a scheduler's constructor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Its identity within the service.
    pub endpoint: Endpoint,
    /// Its weight.
    pub weight: Weight,
    /// The last weight above 0 since it was added; 0 if there was none.
    pub last_weight: Weight,
}

/// The number of connections that a destination takes relative to the others. Weight 0 is quiescent: the destination
/// keeps its connections and takes no new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Weight(pub u32);

impl Weight {
    /// The greatest weight that IPVS takes.
    pub const MAX: Self = Self(i32::MAX as u32);

    /// Whether a destination of this weight takes no new connections.
    pub fn is_quiescent(self) -> bool {
        self.0 == 0
    }
}

/// How a packet reaches its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ForwardingMethod {
    /// The destination of packets is rewritten, and replies come back through the director (`-m`, listed `Masq`).
    Nat,
    /// The director itself gets them (listed `Local`).
    Local,
    /// They travel inside other packets (`-i`, listed `Tunnel`).
    Tunnel,
    /// Only the link address changes (`-g`, listed `Route`).
    DirectRouting,
    /// NAT that also rewrites the source, to an endpoint of the director, so that replies come back whatever routes the
    /// real server has (`--fullnat`, listed `FullNat`; not in IPVS).
    FullNat,
}

/// How the director passes the client's address to a TCP destination behind [`ForwardingMethod::FullNat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClientAddress {
    /// They do not.
    #[default]
    Hidden,
    /// By a PROXY protocol header, version 2, before the client's first byte, or before each datagram.
    Proxy,
    /// By a TCP option in the client's first segments, as the kernel module `toa` reads it.
    Toa,
}

impl ClientAddress {
    /// The word for it in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Proxy => "proxy",
            Self::Toa => "toa",
        }
    }
}

/// When the director answers the SYNs of a TCP service itself, by cookies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SynProxy {
    /// Never.
    #[default]
    Off,
    /// While memory or the connection table is short.
    Auto,
    /// Always.
    On,
}

impl SynProxy {
    /// All, in the order in which they are explained.
    pub const ALL: [Self; 3] = [Self::Off, Self::Auto, Self::On];

    /// The word for it in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::On => "on",
        }
    }
}

impl ForwardingMethod {
    /// Whether packets are rewritten to the destination's endpoint, so that its replies have to pass the director.
    pub fn masquerades(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// The word for it in listings.
    pub fn listed(self) -> &'static str {
        match self {
            Self::Nat => "Masq",
            Self::Local => "Local",
            Self::Tunnel => "Tunnel",
            Self::DirectRouting => "Route",
            Self::FullNat => "FullNat",
        }
    }
}
