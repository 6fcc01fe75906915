//! The section `[limits]` of xvs.toml.

use serde::{Deserialize, Serialize};
use xvs_dataplane::snapshot::clients::ClientSettings;

/// The section `[limits]`: the clients of services with limits (`xvs limit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most clients that are known at once, from 1024 to 16777216.
    pub clients: usize,
    /// The length of an IPv4 network that counts as one client, from 8 to 32.
    pub ipv4_prefix: u8,
    /// The length of an IPv6 network that counts as one client, from 16 to 128.
    pub ipv6_prefix: u8,
}

impl Default for Limits {
    fn default() -> Self {
        let ClientSettings { clients, lengths: [ipv4_prefix, ipv6_prefix] } = ClientSettings::default();
        Self { clients, ipv4_prefix, ipv6_prefix }
    }
}

impl From<Limits> for ClientSettings {
    fn from(Limits { clients, ipv4_prefix, ipv6_prefix }: Limits) -> Self {
        Self { clients, lengths: [ipv4_prefix, ipv6_prefix] }
    }
}
