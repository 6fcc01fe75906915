//! The connection synchronization daemons.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Which half of connection synchronization a daemon does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncRole {
    /// Tells others of its connections.
    Master,
    /// Takes over what it is told.
    Backup,
}

impl SyncRole {
    /// The word that commands and listings use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Backup => "backup",
        }
    }
}

/// A synchronization daemon as it is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDaemon {
    /// Which half.
    pub role: SyncRole,
    /// The interface it multicasts on.
    pub interface: String,
    /// Whom it listens to; 0: everyone.
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
