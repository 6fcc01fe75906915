//! Models of a destination's thresholds: workers that bind and end connections while an operator edits, interleaved
//! in all ways that loom thinks of with at most so many preemptions. Whatever the order, the answer that is left must
//! be that of the thresholds and connections that are left.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvs-dataplane --release --target-dir target/loom --test loom_load`

#![cfg(loom)]

use std::sync::Arc;

use loom::thread;
use xvs_dataplane::snapshot::Activity::Inactive;
use xvs_dataplane::snapshot::DestinationLive;

const PREEMPTIONS: usize = 3;

/// A destination with so many connections and these thresholds.
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

/// Runs these at once, and tells whether the destination is overloaded then.
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
fn thresholds_that_come_while_the_last_connection_is_bound_are_judged_by_one_of_the_two() {
    explore(|| {
        let live = destination(1, 0, 0);
        assert!(overloaded_after(&live, bind, |live| live.set_thresholds(2, 0)));
    });
}

#[test]
fn a_worker_that_judges_by_thresholds_of_a_moment_ago_judges_again() {
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
fn of_a_connection_that_ends_and_one_that_is_bound_both_count() {
    explore(|| {
        let live = destination(2, 2, 2);
        let other = live.clone();
        let third = thread::spawn(move || other.decrement(Inactive));
        assert!(overloaded_after(&live, bind, |live| live.set_thresholds(2, 1)));
        third.join().expect("no panic");
        assert_eq!(live.load().inactive, 2);
    });
}
