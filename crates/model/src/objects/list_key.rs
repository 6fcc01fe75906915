//! Names of access lists.

use std::fmt;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

/// What a list does with the packets of its networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ListKind {
    /// They are dropped.
    Deny,
    /// All others are dropped.
    Allow,
}

impl ListKind {
    /// The subcommand of `xvs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// The name of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ListKey {
    /// What the list does with packets from its networks.
    pub kind: ListKind,
    /// The service that it concerns; `None`: all services.
    pub service: Option<ServiceKey>,
}

impl fmt::Display for ListKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.service {
            Some(service) => write!(f, "{} list of {service}", self.kind.name()),
            None => write!(f, "{} list of all services", self.kind.name()),
        }
    }
}
