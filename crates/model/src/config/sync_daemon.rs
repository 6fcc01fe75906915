//! The connection synchronization daemons.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The role of a daemon in connection synchronization.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncRole {
    /// It sends its connections to others.
    Master,
    /// It receives and stores connections of others.
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
pub struct SyncDaemon {
    /// Its role.
    pub role: SyncRole,
    /// The interface that it multicasts on.
    pub interface: String,
    /// Its sync ID: a backup accepts messages with this ID alone; 0: with any ID.
    pub sync_id: u8,
    /// The longest message, in bytes of UDP payload.
    pub max_len_bytes: u16,
    /// The multicast group.
    pub group: IpAddr,
    /// The UDP port.
    pub port: u16,
    /// The time to live of its packets.
    pub ttl: u8,
}
