//! The end of connections: deadlines, the workers' timers, and a clock that jumps.

use std::collections::HashSet;

use crate::driver::*;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{NewConnection, Removal, Timers};

#[test]
fn a_connection_expires_at_its_deadline_and_a_refreshed_one_within_a_second_of_it() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let untouched = insert(&mut worker, &direct(1));
    let refreshed = insert(&mut worker, &direct(2));
    assert_eq!(expire(&mut worker, 30_300), []);
    worker.transition(refreshed, |_| (1, Millis(90_200)));
    assert_eq!(worker.connection(refreshed).expires(), Millis(90_200), "after a pause");
    worker.transition(refreshed, |_| (1, Millis(90_300)));
    assert_eq!(expire(&mut worker, 59_999), []);
    assert_eq!(expire(&mut worker, 60_000), [untouched]);
    assert_eq!(expire(&mut worker, 90_299), []);
    assert_eq!(worker.connection(refreshed).expires(), Millis(91_000));
    assert_eq!(expire(&mut worker, 91_000), [refreshed]);
    assert_eq!((table.live(), worker.next_timer()), (0, None));
}

#[test]
fn a_change_of_state_keeps_time_exactly_and_brings_the_deadline_forward_on_any_worker() {
    let table = table(100, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    let id = insert(&mut one, &direct(1));
    assert_eq!(expire(&mut other, 20_000), []);
    other.transition(id, |_| (4, Millis(30_250)));
    assert_eq!(other.next_timer(), Some(Millis(30_250)));
    assert_eq!(expire(&mut other, 30_249), []);
    assert_eq!(expire(&mut other, 30_250), [id]);
    assert_eq!(expire(&mut one, 100_000), [], "the first link is invalid");
}

#[test]
fn a_deadline_far_beyond_the_wheel_is_kept() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let id = insert(&mut worker, &NewConnection { expires: Millis(900_000), ..direct(1) });
    for second in 1..900 {
        assert_eq!(expire(&mut worker, second * 1000), []);
    }
    assert_eq!(expire(&mut worker, 900_000), [id]);
}

#[test]
fn a_connection_that_the_callback_leaves_alone_is_due_again() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let id = insert(&mut worker, &direct(1));
    let mut due = 0;
    assert_eq!(worker.advance_timers(Millis(60_000), |_, _| due += 1), Timers::Current);
    assert_eq!((due, worker.next_timer()), (1, Some(Millis(60_125))));
    assert_eq!(
        worker.advance_timers(Millis(60_125), |worker, id| {
            worker.transition(id, |_| (1, Millis(120_125)));
        }),
        Timers::Current
    );
    assert_eq!(expire(&mut worker, 120_124), []);
    assert_eq!(expire(&mut worker, 120_125), [id]);
}

#[test]
fn when_the_clock_jumps_ahead_connections_end_early_by_at_most_the_jump_and_none_is_forgotten() {
    for jump in [1, 59, 61, 899, 86_400, 1_000_000_000] {
        let table = table(100, 1);
        let mut worker = table.handle(0).unwrap();
        assert_eq!(expire(&mut worker, 1_000_000), []);
        let deadlines = [3, 60, 900, 1_000_000].map(|seconds| 1_000_000 + seconds * 1000);
        let ids = [0, 1, 2, 3].map(|port| {
            let new = NewConnection { expires: Millis(deadlines[port]), ..direct(port as u16) };
            insert(&mut worker, &new)
        });
        let mut now = 1_000_000 + jump * 1000;
        let mut ended = expire(&mut worker, now);
        for (id, deadline) in ids.into_iter().zip(deadlines) {
            if deadline <= now {
                assert!(ended.contains(&id), "{deadline} is past at {now}");
                continue;
            }
            assert!(!ended.contains(&id), "{deadline} is in the future at {now}");
            now = deadline;
            ended.extend(expire(&mut worker, now));
            assert!(ended.contains(&id), "{deadline} is now");
        }
        assert_eq!((table.live(), worker.next_timer()), (0, None));
    }
}

#[test]
fn when_the_clock_jumps_back_connections_keep_their_deadlines_and_new_ones_end_once_it_has_caught_up() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let before = insert(&mut worker, &NewConnection { expires: Millis(160_000), ..direct(1) });
    let refreshed = insert(&mut worker, &NewConnection { expires: Millis(160_000), ..direct(2) });
    assert_eq!(expire(&mut worker, 100_000), []);
    assert_eq!(expire(&mut worker, 20_000), []);
    worker.transition(refreshed, |_| (1, Millis(80_000)));
    let short = insert(&mut worker, &NewConnection { expires: Millis(23_000), ..direct(3) });
    let long = insert(&mut worker, &NewConnection { expires: Millis(920_000), ..direct(4) });
    assert_eq!(expire(&mut worker, 22_999), []);
    let late = expire(&mut worker, 100_125);
    assert_eq!(late.iter().collect::<HashSet<_>>(), HashSet::from([&refreshed, &short]));
    assert_eq!(expire(&mut worker, 159_999), []);
    assert_eq!(expire(&mut worker, 160_000), [before]);
    assert_eq!(expire(&mut worker, 919_999), []);
    assert_eq!(expire(&mut worker, 920_000), [long]);
}

#[test]
fn an_old_link_of_another_worker_does_not_end_the_entrys_new_connection() {
    for (later, whose) in [(60_000, "one's or the other's"), (61_000, "the other's")] {
        let table = table(100, 2);
        let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
        let id = insert(&mut one, &direct(1));
        assert!(matches!(other.remove(id), Removal::Done(_)));
        for _ in 0..2 {
            other.quiescent();
            one.quiescent();
        }
        let new = NewConnection { expires: Millis(later), ..direct(2) };
        assert_eq!(insert(&mut other, &new), id, "the entry is taken again");
        assert_eq!([expire(&mut one, later - 1), expire(&mut other, later - 1)].concat(), []);
        assert_eq!([expire(&mut one, later), expire(&mut other, later)].concat(), [id], "{whose}");
        assert_eq!(
            (expire(&mut one, later + 125), one.next_timer(), other.next_timer()),
            (vec![], None, None)
        );
    }
}

#[test]
fn timers_of_a_handle_outlast_its_owner() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    assert!(table.handle(0).is_none(), "taken");
    let id = insert(&mut worker, &direct(1));
    drop(worker);
    let mut worker = table.handle(0).unwrap();
    assert_eq!(expire(&mut worker, 60_000), [id]);
    assert!(table.handle(1).is_none(), "there is no such worker");
}
