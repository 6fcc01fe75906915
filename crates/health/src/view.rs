//! The view of the checks, which outlives the process: the last state of each check, real server and virtual server.
//!
//! A virtual server begins with it in a new process, like with its own state after a reload. Plain data.
//! `restart/kept_health.rs` in xvsd stores it.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use xvs_model::health_checks::check::Probe;
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::agent::AgentWeight;

/// The view of all checks in keepalived.conf.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct View {
    /// The virtual servers, by their identities.
    pub(crate) virtual_servers: BTreeMap<String, VirtualServerView>,
}

impl View {
    /// The services that the earlier process served.
    pub fn services(&self) -> Vec<ServiceKey> {
        self.virtual_servers.values().flat_map(|one| one.services.clone()).collect()
    }
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualServerView {
    /// The services of the virtual server.
    #[serde(default)]
    pub(crate) services: Vec<ServiceKey>,
    pub(crate) has_quorum: bool,
    pub(crate) real_servers: Vec<RealServerView>,
}

/// A real server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RealServerView {
    pub(crate) endpoint: Endpoint,
    pub(crate) is_up: bool,
    /// Whether its last notice reported it down.
    pub(crate) is_reported_down: bool,
    /// The checks, by [`probe_id`].
    pub(crate) checks: Vec<(u64, CheckView)>,
}

/// The result of a check after rise and fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Whether the check is up.
    pub is_up: bool,
    /// The number that the check adds to the real server's weight; 0 while the check is down.
    pub weight_change: i64,
    /// The share that an agent grants of the weight that the file and all checks give.
    #[serde(default)]
    pub agent: AgentWeight,
}

/// A check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    #[serde(flatten)]
    pub(crate) result: CheckResult,
    /// Whether any probe has passed or failed.
    pub(crate) has_run: bool,
    pub(crate) has_failed: bool,
}

/// The [identity](Probe::identity) of a probe as a number, the same in every process.
pub(crate) fn probe_id(probe: &Probe) -> u64 {
    let mut hasher = SipHasher13::new();
    probe.identity().hash(&mut hasher);
    hasher.finish()
}
