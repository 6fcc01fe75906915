//! The view that other threads have of the fleet, and the queue of their requests to it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::request::FleetRequest;
use xvs_model::report::fleet::FleetReport;
use xvs_model::report::warning::{Warning, WarningKind, texts};

use crate::lock::lock;

/// A request of an operator.
pub(crate) struct Order {
    pub(crate) request: FleetRequest,
    /// The requester stops waiting for the reply at this time.
    pub(crate) until: Instant,
    /// The channel for the reply: the revision that was written.
    pub(crate) reply: crossbeam::channel::Sender<Result<u64, CommandError>>,
}

/// The longest wait for the reply: that of several requests to an etcd that does not answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// If the thread has not queried etcd for this time, it must have ended.
const ENDED: Duration = Duration::from_secs(120);

/// Why a thread that has ended changes nothing.
const ENDING: &str = "nothing follows the rules in etcd: xvsd is ending, or see its log and restart it";

/// The fleet as other threads see it. The thread `xvs-fleet` is the one writer.
pub(crate) struct FleetView {
    state: Mutex<State>,
    orders: Sender<Order>,
}

/// The thread's findings.
pub(crate) struct State {
    /// The report without warnings.
    pub(crate) report: FleetReport,
    pub(crate) warnings: Vec<Warning>,
    /// When the thread queried etcd last, or was started.
    pub(crate) looked: Instant,
}

impl State {
    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = self.warnings.clone();
        if self.looked.elapsed() > ENDED {
            let text =
                "the thread xvs-fleet follows the rules in etcd no more; see the log of xvsd, and restart it";
            warnings.push(Warning::new(WarningKind::FleetThreadEnded, "", text));
        }
        warnings
    }
}

impl FleetView {
    pub(crate) fn new(report: FleetReport, orders: Sender<Order>) -> Self {
        Self { state: Mutex::new(State { report, warnings: Vec::new(), looked: Instant::now() }), orders }
    }

    /// This director's information about its fleet.
    pub(crate) fn report(&self) -> FleetReport {
        let state = self.state();
        FleetReport { warnings: texts(&state.warnings()), ..state.report.clone() }
    }

    /// The warnings about the rules in etcd.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        self.state().warnings()
    }

    /// Requests a change of the rules in etcd. Returns their revision.
    ///
    /// # Errors
    ///
    /// The reason why they are not changed, or that etcd has not responded.
    pub(crate) fn request(&self, request: FleetRequest) -> Result<u64, CommandError> {
        let (reply, answer) = bounded(1);
        let order = Order { request, until: Instant::now() + PATIENCE, reply };
        self.orders.try_send(order).map_err(|error| match error {
            TrySendError::Full(_) => CommandError::failed("others change the rules in etcd; try again"),
            TrySendError::Closed(_) => CommandError::failed(ENDING),
        })?;
        answer.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                let silent = self.state().report.silent.as_ref().map(|silent| format!(": {}", silent.why));
                CommandError::failed(format_args!(
                    "etcd does not answer{}; `xvs fleet` shows whether it has the change",
                    silent.unwrap_or_default()
                ))
            }
            RecvTimeoutError::Disconnected => CommandError::failed(ENDING),
        })?
    }

    /// The thread's findings.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::channel;
    use xvs_model::protocol::request::Verdict;
    use xvs_model::report::warning::texts;

    use super::*;

    #[test]
    fn a_request_that_the_thread_cannot_take_says_whether_others_are_before_it_or_it_has_ended() {
        let (orders, queue) = channel(1);
        let view = FleetView::new(FleetReport::default(), orders);
        let request = || FleetRequest::Confirm(Verdict::Keep);
        let refusal = || view.request(request()).unwrap_err().to_string();
        let waits = Order { request: request(), until: Instant::now(), reply: bounded(1).0 };
        assert!(view.orders.try_send(waits).is_ok());
        assert!(refusal().contains("others change the rules"), "{}", refusal());
        drop(queue);
        assert!(refusal().contains("nothing follows the rules in etcd"), "{}", refusal());
        assert_eq!(texts(&view.warnings()), [""; 0], "it has just been started");
    }
}
