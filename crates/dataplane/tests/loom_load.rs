//! Models of a destination's thresholds: workers add and remove connections while an operator changes thresholds,
//! interleaved in every order that loom explores with a bounded number of preemptions. In every order the final
//! overload flag must agree with the final thresholds and connections.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvs-dataplane --release --target-dir target/loom --test loom_load`

#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use xvs_dataplane::snapshot::Activity::Inactive;
use xvs_dataplane::snapshot::Change::{Begin, End};
use xvs_dataplane::snapshot::{Change, DestinationLive};

const PREEMPTIONS: usize = 3;

/// A destination with this number of connections and these thresholds.
fn destination(connections: usize, upper: u32, lower: u32) -> Arc<DestinationLive> {
    let live = Arc::new(DestinationLive::new(2));
    live.set_thresholds(upper, lower);
    for _ in 0..connections {
        bind(&live);
    }
    live
}

fn bind(live: &DestinationLive) {
    live.increment(Inactive);
    live.check_limit();
}

/// A burst of this worker with these changes.
fn burst(live: &DestinationLive, worker: usize, changes: &[Change]) {
    let mut is_due = false;
    for change in changes {
        is_due |= live.defer(worker, *change);
        live.check_limit();
    }
    if is_due {
        live.add_deferred(worker);
    }
}

/// Runs both at the same time. Returns whether the destination is overloaded afterwards.
fn overloaded_after(
    live: &Arc<DestinationLive>,
    worker: impl FnOnce(&DestinationLive) + Send + 'static,
    operator: impl FnOnce(&DestinationLive),
) -> bool {
    let theirs = live.clone();
    let worker = thread::spawn(move || worker(&theirs));
    operator(live);
    worker.join().expect("no panic");
    live.is_overloaded()
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn thresholds_that_are_set_while_a_connection_is_added_are_applied_by_one_of_the_two() {
    explore(|| {
        let live = destination(1, 0, 0);
        assert!(overloaded_after(&live, bind, |live| live.set_thresholds(2, 0)));
    });
}

#[test]
fn a_worker_that_has_applied_old_thresholds_checks_again() {
    explore(|| {
        let live = destination(1, 2, 2);
        assert!(!overloaded_after(&live, bind, |live| live.set_thresholds(4, 4)));
    });
    explore(|| {
        let live = destination(4, 4, 4);
        assert!(overloaded_after(&live, |live| live.decrement(Inactive), |live| live.set_thresholds(3, 3)));
    });
}

#[test]
fn a_concurrent_removal_and_addition_both_count() {
    explore(|| {
        let live = destination(2, 2, 2);
        let other = live.clone();
        let third = thread::spawn(move || other.decrement(Inactive));
        assert!(overloaded_after(&live, bind, |live| live.set_thresholds(2, 1)));
        third.join().expect("no panic");
        assert_eq!(live.load().inactive, 2);
    });
}

#[test]
fn thresholds_that_are_set_during_a_burst_are_applied_to_its_connections() {
    explore(|| {
        let live = destination(1, 0, 0);
        let worker = |live: &DestinationLive| burst(live, 0, &[Begin(Inactive), Begin(Inactive)]);
        assert!(overloaded_after(&live, worker, |live| live.set_thresholds(3, 0)));
    });
    explore(|| {
        let live = destination(4, 0, 0);
        let worker = |live: &DestinationLive| burst(live, 0, &[End(Inactive), End(Inactive)]);
        assert!(!overloaded_after(&live, worker, |live| live.set_thresholds(4, 3)));
    });
}

#[test]
fn thresholds_that_are_removed_during_a_burst_leave_no_overload() {
    explore(|| {
        let live = destination(1, 2, 2);
        let worker = |live: &DestinationLive| burst(live, 0, &[Begin(Inactive), Begin(Inactive)]);
        assert!(!overloaded_after(&live, worker, |live| live.set_thresholds(0, 0)));
        assert_eq!(live.load().inactive, 3);
    });
}

#[test]
fn bursts_of_two_workers_both_count_for_thresholds_that_are_set_meanwhile() {
    explore(|| {
        let live = destination(1, 0, 0);
        let other = live.clone();
        let third = thread::spawn(move || burst(&other, 1, &[Begin(Inactive)]));
        let worker = |live: &DestinationLive| burst(live, 0, &[Begin(Inactive)]);
        overloaded_after(&live, worker, |live| live.set_thresholds(3, 3));
        third.join().expect("no panic");
        assert!(live.is_overloaded());
        assert_eq!(live.load().inactive, 3);
    });
}
