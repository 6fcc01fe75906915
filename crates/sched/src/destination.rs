//! A destination: a real server of one service.

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;

/// A destination, as a scheduler's constructor receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// The identity of the destination within the service.
    pub endpoint: Endpoint,
    /// The weight.
    pub weight: Weight,
    /// The last weight above 0 since the destination was added; 0 if there was none.
    pub last_weight: Weight,
}

/// The share of connections that a destination takes, relative to the others. A destination with weight 0 is quiescent:
/// it keeps its connections and takes no new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Weight(pub u32);

impl Weight {
    /// The greatest weight that IPVS accepts.
    pub const MAX: Self = Self(i32::MAX as u32);

    /// Whether a destination with this weight takes no new connections.
    pub fn is_quiescent(self) -> bool {
        self.0 == 0
    }
}

/// How a packet reaches its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ForwardingMethod {
    /// The packets' destination is rewritten, and replies return through the director (`-m`, listed as `Masq`).
    Nat,
    /// The director itself gets them (listed as `Local`).
    Local,
    /// Packets are encapsulated in other packets (`-i`, listed as `Tunnel`).
    Tunnel,
    /// Only the link address changes (`-g`, listed as `Route`).
    DirectRouting,
    /// NAT that also rewrites the source, to an endpoint of the director, so that replies return whatever routes the
    /// real server has (`--fullnat`, listed as `FullNat`; not in IPVS).
    FullNat,
}

/// How the director passes the client's address to a TCP destination with [`ForwardingMethod::FullNat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClientAddress {
    /// They do not.
    #[default]
    Hidden,
    /// In a PROXY protocol header, version 2, before the client's first byte, or before each datagram.
    Proxy,
    /// In a TCP option of the client's first segments, as the kernel module `toa` reads it.
    Toa,
}

impl ClientAddress {
    /// The name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Proxy => "proxy",
            Self::Toa => "toa",
        }
    }
}

/// When the director itself answers the SYNs of a TCP service, with cookies.
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

    /// The name in commands.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::On => "on",
        }
    }
}

impl ForwardingMethod {
    /// Whether packets are rewritten to the destination's endpoint, so that its replies have to pass through the
    /// director.
    pub fn masquerades(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat)
    }

    /// The name in listings.
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
