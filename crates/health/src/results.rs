//! The results of all checks, shared by the manager and by readers of reports.
//!
//! The manager is the only writer. A reader holds the lock only while it copies the state of the servers; it builds the
//! report after that.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xvs_model::report::health::{
    CheckState, HealthReport, RealServerHealth, SorryServerHealth, VirtualServerHealth, Weights,
};

use xvs_sched::Weight;

use crate::check_ref::CheckRef;
use crate::environment::DesiredServices;
use crate::runner::RunningCheck;
use crate::view::CheckResult;
use crate::virtual_server::{Notice, Status, VirtualServerState};

/// The results, behind a lock.
#[derive(Default)]
pub(super) struct SharedResults(Mutex<Results>);

/// The results of all checks of a configuration file.
#[derive(Default)]
pub(super) struct Results {
    pub(super) file: PathBuf,
    /// When the configuration in force was loaded, in milliseconds since 1970.
    pub(super) read_at_millis: u64,
    /// How often a configuration was loaded.
    pub(super) reads: u64,
    /// How often the file was refused.
    pub(super) refusals: u64,
    /// The reason why the last read of the file was refused; `None` if it was loaded.
    pub(super) refused: Option<String>,
    /// The faults of the configuration in force.
    pub(super) faults: Vec<String>,
    /// The virtual servers, in the order of the file.
    pub(super) virtual_servers: Vec<VirtualServerResults>,
}

/// A virtual server with its real servers.
#[derive(Clone)]
pub(super) struct VirtualServerResults {
    pub(super) state: VirtualServerState,
    /// When the quorum was last gained or lost, in milliseconds since 1970.
    pub(super) since_millis: u64,
    pub(super) servers: Vec<RealServerResults>,
}

/// A real server with its checks.
#[derive(Clone)]
pub(super) struct RealServerResults {
    /// When the status of the real server last changed, in milliseconds since 1970.
    pub(super) since_millis: u64,
    pub(super) checks: Vec<RunningCheck>,
}

/// The state of a real server and its virtual server that results can change.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ServerState {
    is_up: bool,
    has_quorum: bool,
    /// The server's weight in the services.
    weight: Option<Weight>,
}

impl VirtualServerResults {
    /// Applies check results of this date, in milliseconds since 1970, and adds their notices with the reasons. Returns
    /// whether the services may have changed.
    pub(super) fn apply(
        &mut self,
        changes: &[(CheckRef, CheckResult)],
        at_millis: u64,
        notices: &mut Vec<(Option<String>, Notice)>,
    ) -> bool {
        let before: Vec<_> = changes.iter().map(|(check, _)| self.server_state(check.server_index)).collect();
        let results = changes.iter().map(|(check, result)| (check.server_index, check.check_index, *result));
        for notice in self.state.apply(results) {
            notices.push((self.reason(&notice), notice));
        }
        changes.iter().zip(before).fold(false, |changed, ((check, _), before)| {
            self.note(check.server_index, before, at_millis) || changed
        })
    }

    fn server_state(&self, server: usize) -> ServerState {
        ServerState {
            is_up: self.state.is_up(server),
            has_quorum: self.state.has_quorum(),
            weight: self.state.weight(server),
        }
    }

    /// Records the time of a change of a real server and of the quorum. Returns whether anything differs from `before`.
    fn note(&mut self, server: usize, before: ServerState, at_millis: u64) -> bool {
        let now = self.server_state(server);
        if now.is_up != before.is_up {
            self.servers[server].since_millis = at_millis;
        }
        if now.has_quorum != before.has_quorum {
            self.since_millis = at_millis;
        }
        now != before
    }

    /// The reason why a real server is down: its first check that is down, and that check's last error.
    fn reason(&self, notice: &Notice) -> Option<String> {
        let server = &self.servers[notice.server.filter(|_| notice.status == Status::Down)?];
        let failed = server
            .checks
            .iter()
            .map(|running| running.record.row())
            .find(|row| row.state == CheckState::Down)?;
        Some(format!("{}: {}", failed.probe, failed.last_error?.what))
    }
}

impl SharedResults {
    /// A panic in another thread leaves the results consistent, so poisoning is ignored.
    pub(super) fn lock(&self) -> MutexGuard<'_, Results> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The report, without the data that the control thread and the workers add: drift and the weights in force.
    pub(super) fn report(&self) -> HealthReport {
        let results = self.lock();
        let virtual_servers = results.virtual_servers.clone();
        let mut report = HealthReport {
            file: results.file.display().to_string(),
            read_at_millis: results.read_at_millis,
            refused: results.refused.clone(),
            reads: results.reads,
            refusals: results.refusals,
            faults: results.faults.len(),
            first_faults: results.faults.iter().take(FAULTS_SHOWN).cloned().collect(),
            drift: Vec::new(),
            virtual_servers: Vec::new(),
        };
        drop(results);
        report.virtual_servers = virtual_servers.iter().map(VirtualServerResults::report).collect();
        report
    }
}

impl Results {
    /// Records that the file was read and refused.
    pub(super) fn refuse(&mut self, why: &str) {
        self.refusals += 1;
        self.refused = Some(why.to_owned());
    }

    /// The services that the virtual servers with these indices want.
    pub(super) fn desired_services(&self, indices: &BTreeSet<usize>) -> DesiredServices {
        indices
            .iter()
            .flat_map(|index| self.virtual_servers[*index].state.desired_services())
            .map(|(key, service)| (key, Some(service)))
            .collect()
    }
}

/// The number of a file's faults that a report shows.
const FAULTS_SHOWN: usize = 5;

impl VirtualServerResults {
    fn report(&self) -> VirtualServerHealth {
        let config = self.state.virtual_server();
        let servers = config.real_servers.iter().zip(&self.servers).enumerate();
        let real_servers = servers.map(|(index, (server, results))| RealServerHealth {
            endpoint: server.endpoint.to_string(),
            is_up: self.state.is_up(index),
            since_millis: results.since_millis,
            weights: Weights {
                operator: server.options.weight.0,
                health: self.state.weight(index).map(|weight| weight.0),
                feedback: None,
                in_force: None,
                slow_start_percent: None,
                disabled: self.state.is_disabled(index),
            },
            unanswered: 0,
            checks: results.checks.iter().map(|running| running.record.row()).collect(),
        });
        VirtualServerHealth {
            name: config.name.clone(),
            services: config.services.iter().map(|(key, _)| key.to_string()).collect(),
            is_well: self.state.has_quorum(),
            since_millis: self.since_millis,
            live_weight: self.state.live_weight(),
            quorum: config.quorum,
            hysteresis: config.hysteresis,
            sorry_server: config.sorry_server.as_ref().map(|sorry| SorryServerHealth {
                endpoint: sorry.endpoint.to_string(),
                serves: self.state.uses_sorry_server(),
            }),
            real_servers: real_servers.collect(),
        }
    }
}
