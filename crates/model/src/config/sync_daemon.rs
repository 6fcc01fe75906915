//! The connection synchronization daemons.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The role of a daemon in connection synchronization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SyncRole {
    /// It sends its connections to other directors.
    Master,
    /// It receives and stores connections of other directors.
    Backup,
}

impl SyncRole {
    /// Its name in commands and listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// A synchronization daemon of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SyncDaemon {
    /// The daemon's role.
    pub role: SyncRole,
    /// The interface that it multicasts on.
    pub interface: String,
    /// Its sync ID; 0 of a backup: it accepts every one.
    pub sync_id: u8,
    /// The longest message, in bytes of UDP payload.
    pub max_len_bytes: u16,
    /// The multicast group.
    pub group: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// The time to live of its packets, in hops.
    pub ttl: u8,
}

impl SyncDaemon {
    /// This daemon as it runs: with the nearest permitted length. Source: ipvs-behaviour, section 12.1.
    pub fn admitted(&self) -> Self {
        let headers = if self.group.is_ipv4() { 28 } else { 48 };
        let least = match self.role {
            SyncRole::Master => 1,
            SyncRole::Backup => 1024,
        };
        Self { max_len_bytes: self.max_len_bytes.clamp(least, u16::MAX - headers), ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_not_permitted_becomes_the_nearest_one() {
        let run = |role, group: &str, max_len_bytes| {
            let (interface, group) = ("eth0".to_owned(), group.parse().unwrap());
            let daemon = SyncDaemon { role, interface, sync_id: 0, max_len_bytes, group, port: 8848, ttl: 1 };
            daemon.admitted().max_len_bytes
        };
        assert_eq!(run(SyncRole::Backup, "224.0.0.81", 100), 1024);
        assert_eq!(run(SyncRole::Master, "224.0.0.81", 100), 100);
        assert_eq!(run(SyncRole::Master, "224.0.0.81", 65_507), 65_507);
        assert_eq!(run(SyncRole::Master, "ff02::1", 65_507), 65_487);
    }
}
