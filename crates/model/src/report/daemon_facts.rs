//! The daemon's view of the machine, which `xvs doctor` compares with the machine itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::report::status::InterfaceStatus;

/// The daemon's interfaces, workers, table and settings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct DaemonFacts {
    /// The version.
    pub version: String,
    /// The interfaces that it has attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// The number of workers.
    pub workers: usize,
    /// The pages of the connection table's memory.
    pub pages: String,
    /// The setting `mss_clamp`.
    pub mss_clamp: String,
    /// The path MTU to each real server behind a tunnel, in bytes, as learnt from ICMP errors of routers.
    pub path_mtus: BTreeMap<IpAddr, u32>,
    /// The warnings of `xvs status`.
    pub warnings: Vec<String>,
}

impl DaemonFacts {
    /// The attached interface of this name.
    pub fn interface(&self, name: &str) -> Option<&InterfaceStatus> {
        self.interfaces.iter().find(|interface| interface.name == name)
    }
}
