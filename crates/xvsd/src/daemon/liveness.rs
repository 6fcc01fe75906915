//! Liveness: whether every thread of the director makes progress, for `xvs healthy` and systemd's watchdog.
//!
//! Runs on the calling thread. The control thread has to answer a request from its queue, the thread of the health
//! checks has to run a task, and each worker has to complete an iteration of its loop; sleeping workers are woken. All
//! share one deadline. Cost: one iteration of each worker, which counts its iterations anyway.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use thiserror::Error;
use tokio::runtime::Handle;
use xvs_dataplane::counters::WorkerCounters;
use xvs_model::protocol::question::ControlRequest;

use crate::restart::handing_over::HandingOver;

/// Interval of looking at workers that have not ended a turn yet.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Returns as soon as every thread has made progress.
///
/// # Errors
///
/// A message that names the threads without progress within `patience`.
pub(crate) fn check(daemon: &crate::handle::Handle, patience: Duration) -> Result<(), Stalled> {
    let until = Instant::now() + patience;
    let shared = daemon.shared();
    let before: Vec<_> = shared.workers().iter().map(|worker| worker.turns()).collect();
    shared.wakers.iter().for_each(|waker| waker.wake());
    let turns = shared.checks.get().map(|checks| next_turn(checks.runtime()));
    let mut failures = Vec::new();
    if !hands_over(&shared.handing_over, until)
        && daemon.request_until(ControlRequest::Timeouts, until).is_none()
        // Since a moment.
        && shared.handing_over.successor().is_none()
    {
        failures.push("the control thread does not answer".to_owned());
    }
    if turns.is_some_and(|turned| turned.recv_deadline(until).is_err()) {
        failures.push("the health checks make no progress".to_owned());
    }
    failures.extend(
        stalled(shared.workers(), &before, until).map(|worker| format!("worker {worker} makes no progress")),
    );
    if failures.is_empty() { Ok(()) } else { Err(Stalled { failures, patience }) }
}

/// Threads that make no progress, a clause for each.
#[derive(Debug, Error)]
#[error("{} within {patience:?}", failures.join(", "))]
pub(crate) struct Stalled {
    failures: Vec<String>,
    patience: Duration,
}

/// Whether the control thread waits for a successor, and looks at it again before `until`.
fn hands_over(handing_over: &HandingOver, until: Instant) -> bool {
    let before = handing_over.turns();
    while handing_over.successor().is_some() && Instant::now() < until {
        if handing_over.turns() != before {
            return true;
        }
        thread::sleep(POLL_INTERVAL);
    }
    false
}

/// Receives a message when the runtime's thread has run a task.
fn next_turn(runtime: &Handle) -> Receiver<()> {
    let (done, turned) = bounded(1);
    runtime.spawn(async move { done.send(()) });
    turned
}

/// The workers that have not ended a turn between the reading of `before` and `until`.
fn stalled(workers: &[Arc<WorkerCounters>], before: &[u64], until: Instant) -> impl Iterator<Item = usize> {
    let mut stalled: Vec<_> = (0..workers.len()).collect();
    loop {
        stalled.retain(|&worker| workers[worker].turns() == before[worker]);
        if stalled.is_empty() || Instant::now() >= until {
            return stalled.into_iter();
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use crate::daemon::liveness::*;

    #[test]
    fn workers_that_end_no_turn_are_named_and_others_are_not_waited_for() {
        let workers: Vec<Arc<WorkerCounters>> = vec![Arc::default(), Arc::default(), Arc::default()];
        let before = [0, 0, 0];
        workers[0].count_poll(0);
        workers[2].count_poll(7);
        let now = Instant::now();
        assert_eq!(stalled(&workers, &before, now).collect::<Vec<_>>(), [1]);
        workers[1].count_poll(64);
        let never = now + Duration::from_secs(3600);
        assert_eq!(stalled(&workers, &before, never).count(), 0);
    }

    #[test]
    fn a_hand_over_counts_as_progress_while_the_control_thread_looks_at_the_successor_and_only_then() {
        let handing_over = HandingOver::default();
        let never = Instant::now() + Duration::from_secs(3600);
        assert!(!hands_over(&handing_over, never), "there is none");
        handing_over.begin(7);
        assert!(!hands_over(&handing_over, Instant::now()), "the control thread hangs");
        thread::scope(|scope| {
            let seen = scope.spawn(|| hands_over(&handing_over, never));
            while !seen.is_finished() {
                handing_over.count_turn();
            }
            assert!(seen.join().unwrap());
        });
        handing_over.end();
        assert!(!hands_over(&handing_over, never), "it has ended");
    }

    #[test]
    fn the_thread_of_health_checks_answers_once_it_runs_a_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let turned = next_turn(runtime.handle());
        assert!(turned.try_recv().is_err(), "the runtime does not run yet");
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(turned.try_recv(), Ok(()));
    }
}
