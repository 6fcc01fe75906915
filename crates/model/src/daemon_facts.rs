//! The daemon's view of the machine, which `xvs doctor` compares with the machine itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The daemon's interfaces, workers, table and settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DaemonFacts {
    /// Its version.
    pub version: String,
    /// The interfaces that it has attached.
    pub interfaces: Vec<AttachedFacts>,
    /// How many workers it has.
    pub workers: usize,
    /// The pages of its table.
    pub pages: String,
    /// `mss_clamp` as it is set.
    pub mss_clamp: String,
    /// The largest packet, in bytes, on the route to each real server behind a tunnel, as learnt from routers.
    pub path_mtus: BTreeMap<IpAddr, u32>,
    /// The warnings of `xvs status`.
    pub warnings: Vec<String>,
}

/// An attached interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
