//! Whether the director moves: the one judgement that `xvs healthy` and systemd's watchdog go by.
//!
//! Made on the thread of who asks. The control thread has to answer a question that comes by its queue, that of the health
//! checks to carry out a task; each worker is called, and has to end a turn of its loop, which a sleeping one does only
//! if it wakes. All share one deadline. Costs every worker one turn, and the packet path nothing: what is looked at is
//! counted anyway. Not here: whether what it works on is well, such as its interfaces (`status.rs`).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use tokio::runtime::Handle;
use xvs_dataplane::counters::WorkerCounters;
use xvs_model::request::Request;

/// How long it is waited between two looks at workers that have not moved yet.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Succeeds as soon as all have moved.
///
/// # Errors
/// Who has not when `patience` is over, as a sentence.
pub(crate) fn check(daemon: &crate::control::thread::Handle, patience: Duration) -> Result<(), String> {
    let until = Instant::now() + patience;
    let shared = daemon.shared();
    let before: Vec<_> = shared.workers().iter().map(|worker| worker.turns()).collect();
    shared.wakers.iter().for_each(|waker| waker.wake());
    let turns = shared.health_thread.get().map(next_turn);
    let mut failures = Vec::new();
    if daemon.request_until(Request::Timeouts, until).is_none() {
        failures.push("the control thread does not answer".to_owned());
    }
    if turns.is_some_and(|turned| turned.recv_deadline(until).is_err()) {
        failures.push("the health checks do not move".to_owned());
    }
    failures.extend(
        stalled(shared.workers(), &before, until).map(|worker| format!("worker {worker} does not move")),
    );
    if failures.is_empty() { Ok(()) } else { Err(format!("{}, for {patience:?}", failures.join(", "))) }
}

/// Hears of the next turn of a runtime's thread.
fn next_turn(runtime: &Handle) -> Receiver<()> {
    let (done, turned) = bounded(1);
    runtime.spawn(async move { done.send(()) });
    turned
}

/// The workers that have not ended a turn since `before` was read when the time is over.
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
    fn a_worker_that_ends_no_turn_is_named_and_one_that_does_is_not_waited_for() {
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
    fn a_thread_of_checks_is_heard_of_if_it_has_a_turn() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let turned = next_turn(runtime.handle());
        assert!(turned.try_recv().is_err(), "nobody runs it");
        runtime.block_on(tokio::task::yield_now());
        assert_eq!(turned.try_recv(), Ok(()));
    }
}
