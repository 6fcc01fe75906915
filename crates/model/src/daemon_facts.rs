//! The daemon's view of the machine, which `xvs doctor` compares with the machine itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::status::InterfaceStatus;

/// The daemon's interfaces, workers, table and settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DaemonFacts {
    /// Its version.
    pub version: String,
    /// The interfaces that it has attached.
    pub interfaces: Vec<InterfaceStatus>,
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

impl DaemonFacts {
    /// An interface that it has attached.
    pub fn interface(&self, name: &str) -> Option<&InterfaceStatus> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}
