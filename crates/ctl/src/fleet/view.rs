//! What other threads see of the fleet, and the queue of their requests to it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use tokio::sync::mpsc::Sender;
use xvs_model::config::command::CommandError;
use xvs_model::protocol::request::FleetRequest;
use xvs_model::report::fleet::FleetReport;

/// A request, and where its reply goes: the revision that it has written.
pub(crate) type Order = (FleetRequest, crossbeam::channel::Sender<Result<u64, CommandError>>);

/// The longest wait for the reply: that of several requests to an etcd that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// After this time without a look at etcd the thread must have ended.
const ENDED: Duration = Duration::from_secs(120);

/// The fleet as other threads see it. The thread `xvs-fleet` is the one writer.
pub(crate) struct FleetView {
    state: Mutex<State>,
    orders: Sender<Order>,
}

/// What the thread has found.
#[derive(Default)]
pub(super) struct State {
    pub(super) report: FleetReport,
    pub(super) warnings: Vec<String>,
    /// When it looked last; `None`: it has just been started.
    pub(super) looked: Option<Instant>,
}

impl FleetView {
    pub(super) fn new(report: FleetReport, orders: Sender<Order>) -> Self {
        Self { state: Mutex::new(State { report, ..State::default() }), orders }
    }

    /// What this director knows of its fleet.
    pub(crate) fn report(&self) -> FleetReport {
        self.state().report.clone()
    }

    /// Sentences for the operator.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let state = self.state();
        let has_ended = state.looked.is_some_and(|looked| looked.elapsed() > ENDED);
        let ended =
            "the thread xvs-fleet follows the rules in etcd no more; see the log of xvsd, and restart it";
        state.warnings.iter().cloned().chain(has_ended.then(|| ended.to_owned())).collect()
    }

    /// Has the rules in etcd changed. Returns their revision.
    ///
    /// # Errors
    /// Why they are not changed, or that etcd has not answered.
    pub(crate) fn request(&self, request: FleetRequest) -> Result<u64, CommandError> {
        let failed = |why: &str| CommandError::Failed { why: format!("xvs: {why}") };
        let (reply, answer) = bounded(1);
        self.orders
            .try_send((request, reply))
            .map_err(|_| failed("others change the rules in etcd; try again"))?;
        answer.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                failed("etcd has not answered; `xvs fleet` shows whether it has the rules")
            }
            RecvTimeoutError::Disconnected => failed("the daemon is ending"),
        })?
    }

    /// Ignores poisoning: no panic leaves it inconsistent.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
