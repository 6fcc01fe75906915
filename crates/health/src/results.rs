//! All that is watched, where its manager writes and reports are read.
//!
//! The manager is the one writer. Who asks for a report delays it for as long as it takes to copy how servers stand; what is
//! shown of them is put into words after that. Not here: what follows from an answer (`manager.rs`, `virtual_server.rs`).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xvs_model::health::{HealthReport, RealServerHealth, SorryServerHealth, VirtualServerHealth, Weights};

use crate::environment::DesiredServices;
use crate::runner::Running;
use crate::virtual_server::VirtualServerState;

/// All that is watched.
#[derive(Default)]
pub(super) struct SharedResults(Mutex<Results>);

/// The same for who has the lock.
#[derive(Default)]
pub(super) struct Results {
    /// The file, and what became of reading it; times in milliseconds since 1970.
    pub(super) file: PathBuf,
    pub(super) read_at_millis: u64,
    pub(super) reads: u64,
    pub(super) refusals: u64,
    /// Why it was not taken when it was last read.
    pub(super) refused: Option<String>,
    /// What is left out or assumed of it.
    pub(super) faults: Vec<String>,
    /// The virtual servers, in its order.
    pub(super) virtual_servers: Vec<VirtualServerResults>,
}

/// A virtual server.
#[derive(Clone)]
pub(super) struct VirtualServerResults {
    pub(super) state: VirtualServerState,
    /// Since when it has its quorum or has not, in milliseconds since 1970.
    pub(super) since_millis: u64,
    pub(super) servers: Vec<RealServerResults>,
}

/// A real server.
#[derive(Clone)]
pub(super) struct RealServerResults {
    /// Since when it is up or down, in milliseconds since 1970.
    pub(super) since_millis: u64,
    pub(super) checks: Vec<Running>,
}

impl SharedResults {
    /// A panic elsewhere leaves it whole.
    pub(super) fn lock(&self) -> MutexGuard<'_, Results> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it, but for what the control thread and workers know: drift, and the weights by which packets are scheduled.
    pub(super) fn report(&self) -> HealthReport {
        let results = self.lock();
        let groups = results.virtual_servers.clone();
        let report = HealthReport {
            file: results.file.display().to_string(),
            read_at_millis: results.read_at_millis,
            refused: results.refused.clone(),
            reads: results.reads,
            refusals: results.refusals,
            faults: results.faults.len(),
            first_faults: results.faults.iter().take(FAULTS_TOLD).cloned().collect(),
            drift: Vec::new(),
            virtual_servers: Vec::new(),
        };
        drop(results);
        HealthReport { virtual_servers: groups.iter().map(VirtualServerResults::report).collect(), ..report }
    }
}

impl Results {
    /// It was read, and is not to be used.
    pub(super) fn refuse(&mut self, why: &str) {
        self.refusals += 1;
        self.refused = Some(why.to_owned());
    }

    /// What the services of these virtual servers are to be.
    pub(super) fn desired_services(&self, groups: &BTreeSet<usize>) -> DesiredServices {
        let tables = groups.iter().flat_map(|number| self.virtual_servers[*number].state.desired_services());
        tables.map(|(key, service)| (key, Some(service))).collect()
    }
}

/// So many of a file's faults are told one by one.
const FAULTS_TOLD: usize = 5;

impl VirtualServerResults {
    fn report(&self) -> VirtualServerHealth {
        let file = self.state.virtual_server();
        let servers = file.real_servers.iter().zip(&self.servers).enumerate();
        let real_servers = servers.map(|(number, (server, seen))| RealServerHealth {
            endpoint: server.endpoint.to_string(),
            is_up: self.state.is_up(number),
            since_millis: seen.since_millis,
            weights: Weights {
                operator: server.options.weight.0,
                health: self.state.weight(number).map(|weight| weight.0),
                feedback: None,
                in_force: None,
            },
            checks: seen.checks.iter().map(|running| running.watched.row()).collect(),
        });
        VirtualServerHealth {
            name: file.name.clone(),
            services: file.services.iter().map(|(key, _)| key.to_string()).collect(),
            is_well: self.state.has_quorum(),
            since_millis: self.since_millis,
            live_weight: self.state.live_weight(),
            quorum: file.quorum,
            hysteresis: file.hysteresis,
            sorry_server: file.sorry_server.as_ref().map(|sorry| SorryServerHealth {
                endpoint: sorry.endpoint.to_string(),
                serves: self.state.uses_sorry_server(),
            }),
            real_servers: real_servers.collect(),
        }
    }
}
