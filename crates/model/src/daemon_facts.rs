//! What `xvs doctor` compares with the machine.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What a running daemon tells of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DaemonFacts {
    /// Its version.
    pub version: String,
    /// The interfaces that it has attached.
    pub interfaces: Vec<AttachedFacts>,
    /// How many workers it has.
    pub workers: usize,
    /// What pages its table has.
    pub pages: String,
    /// `mss_clamp` as it is set.
    pub mss_clamp: String,
    /// What routers told of the way to real servers behind tunnels: the largest packet in bytes.
    pub path_mtus: BTreeMap<IpAddr, u32>,
    /// The warnings of `xvs status`.
    pub warnings: Vec<String>,
}

/// An attached interface.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AttachedFacts {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
    /// Why not native.
    pub why_not_native: Option<String>,
    /// Its receive queues when it was attached.
    pub queues: u32,
}

impl DaemonFacts {
    /// An interface that it has attached.
    pub fn interface(&self, name: &str) -> Option<&AttachedFacts> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}
