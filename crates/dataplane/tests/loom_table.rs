//! Models of the connection table: a few steps of two workers, interleaved in every order that loom explores with a
//! bounded number of preemptions, under the memory model of C++. Evidence, not proof: loom does not try one of the
//! orders by itself.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvs-dataplane --release --target-dir target/loom --test loom_table`
//!
//! Buckets have two slots and batches one entry here, so that a model ends. Where it is not obvious that a model
//! reaches the case that it is about, the model counts the case, because a model that never reaches it shows nothing.

#![cfg(loom)]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use loom::thread;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::log::Ending;
use xvs_dataplane::conn::{
    ConnId, Direction, Flags, Inserted, NewConnection, Removal, Spare, Table, TableConfig, TableWorker,
};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::{Activity, DestinationLive};
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::{ForwardingMethod, Load};

fn connection(port: u16, method: ForwardingMethod) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: Endpoint::new(Ipv4Addr::new(192, 0, 2, 10), port),
        virtual_endpoint: Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 80),
        dest: Endpoint::new(Ipv4Addr::new(203, 0, 113, 11), 8080),
        local: None,
        method,
        flags: Flags::NONE,
        state: 1,
        expires: Millis(60_000),
        spare: Spare::NONE,
        dest_ref: 0,
        mark: 0,
        controller: None,
    }
}

fn direct(port: u16) -> NewConnection {
    connection(port, ForwardingMethod::DirectRouting)
}

fn local(port: u16) -> Endpoint {
    Endpoint::new(Ipv4Addr::new(203, 0, 113, 1), port)
}

fn inbound(new: &NewConnection) -> FlowKey {
    FlowKey { protocol: new.protocol, source: new.client, dest: new.virtual_endpoint }
}

fn find(worker: &TableWorker, flow: FlowKey) -> Option<(ConnId, Direction)> {
    worker.find(&flow, worker.hash(&flow))
}

fn workers() -> (Arc<Table>, TableWorker, TableWorker) {
    let config = TableConfig { capacity: 1, workers: 2, memory: Memory::OnDemand };
    let table = Table::create(config).expect("a tiny table");
    let (one, other) = (table.handle(0).expect("a handle"), table.handle(1).expect("a handle"));
    (table, one, other)
}

/// Runs a model in every order that loom explores.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    explore_with(PREEMPTIONS, model);
}

fn explore_with(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// The one entry of two insertions of one key, and the connection that it holds. Counts the cases in which it is the
/// second connection.
fn settled(
    outcome: (Inserted, Inserted),
    [first, second]: [NewConnection; 2],
    races: &AtomicUsize,
) -> (ConnId, NewConnection) {
    match outcome {
        (Inserted::New(a), Inserted::Existing(b)) if a == b => (a, first),
        (Inserted::Existing(a), Inserted::New(b)) if a == b => {
            races.fetch_add(1, Relaxed);
            (b, second)
        }
        other => panic!("two for one key, or none: {other:?}"),
    }
}

/// Two workers insert one connection with different destinations: both must get the same entry, and the loser's reply
/// key must be gone.
fn insert_at_once(method: ForwardingMethod) {
    static RACES: AtomicUsize = AtomicUsize::new(0);
    explore(move || {
        let (table, mut one, mut other) = workers();
        let first = connection(1, method);
        let second = NewConnection { dest: Endpoint::new(Ipv4Addr::new(203, 0, 113, 12), 8080), ..first };
        let thread = thread::spawn(move || (other.insert(&second), other));
        let mine = one.insert(&first);
        let (theirs, _other) = thread.join().expect("no panic");
        let (id, winner) = settled((mine, theirs), [first, second], &RACES);
        assert_eq!(find(&one, inbound(&first)), Some((id, Direction::Inbound)));
        assert_eq!(one.connection(id).dest(), winner.dest);
        for new in [first, second] {
            let reply = FlowKey { protocol: new.protocol, source: new.dest, dest: new.client };
            let answers = method == ForwardingMethod::Nat && new == winner;
            assert_eq!(find(&one, reply), answers.then_some((id, Direction::Outbound)));
        }
        assert_eq!(table.live(), 1);
    });
    assert!(RACES.load(Relaxed) > 0, "the other worker never won");
}

#[test]
fn two_insertions_of_one_key_end_with_one_entry() {
    insert_at_once(ForwardingMethod::DirectRouting);
}

#[test]
fn two_nat_insertions_of_one_key_end_with_one_entry_and_one_reply_key() {
    insert_at_once(ForwardingMethod::Nat);
}

#[test]
fn of_two_connections_with_one_local_endpoint_one_is_inserted_and_one_is_refused() {
    static RACES: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (table, mut one, mut other) = workers();
        let [first, second] = [1, 2].map(|port| NewConnection { local: Some(local(60_000)), ..direct(port) });
        let thread = thread::spawn(move || other.insert(&second));
        let mine = one.insert(&first);
        let (id, winner) = match (mine, thread.join().expect("no panic")) {
            (Inserted::New(id), Inserted::LocalTaken) => (id, first),
            (Inserted::LocalTaken, Inserted::New(id)) => {
                RACES.fetch_add(1, Relaxed);
                (id, second)
            }
            other => panic!("two for one endpoint, or none: {other:?}"),
        };
        let reply = FlowKey { source: first.dest, dest: local(60_000), ..inbound(&first) };
        assert_eq!(find(&one, reply), Some((id, Direction::Outbound)));
        assert_eq!(find(&one, inbound(&winner)), Some((id, Direction::Inbound)));
        assert_eq!(table.live(), 1);
    });
    assert!(RACES.load(Relaxed) > 0, "the other worker never won");
}

#[test]
fn two_insertions_of_one_connection_with_different_local_endpoints_leave_one_endpoint_free() {
    static RACES: AtomicUsize = AtomicUsize::new(0);
    // Four keys that only one entry may have: with one more preemption it takes minutes.
    explore_with(PREEMPTIONS - 1, || {
        let (table, mut one, mut other) = workers();
        let [first, second] =
            [60_000, 60_001].map(|port| NewConnection { local: Some(local(port)), ..direct(1) });
        let thread = thread::spawn(move || (other.insert(&second), other));
        let mine = one.insert(&first);
        let (theirs, _other) = thread.join().expect("no panic");
        let (id, winner) = settled((mine, theirs), [first, second], &RACES);
        for new in [first, second] {
            let reply = FlowKey { source: new.dest, dest: new.local.expect("given above"), ..inbound(&new) };
            assert_eq!(find(&one, reply), (new == winner).then_some((id, Direction::Outbound)));
        }
        assert_eq!(table.live(), 1);
    });
    assert!(RACES.load(Relaxed) > 0, "the other worker never won");
}

#[test]
fn two_insertions_of_one_key_that_take_different_slots_end_with_one_entry() {
    static RACES: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (table, mut one, mut other) = workers();
        // A connection in the slot that a new one would take first, until the other worker removes it.
        let bucket = |new: &NewConnection| one.hash(&inbound(new)) >> 63;
        let before = (2..).map(direct).find(|new| bucket(new) == bucket(&direct(1))).expect("half of all");
        let Inserted::New(id) = one.insert(&before) else { panic!("there is room") };
        let thread = thread::spawn(move || {
            assert!(matches!(other.remove(id), Removal::Done(_)));
            other.insert(&direct(1))
        });
        match (one.insert(&direct(1)), thread.join().expect("no panic")) {
            (Inserted::New(a), Inserted::Existing(b)) if a == b => {}
            (Inserted::Existing(a), Inserted::New(b)) if a == b => {
                RACES.fetch_add(1, Relaxed);
            }
            other => panic!("two for one key, or none: {other:?}"),
        }
        assert_eq!(table.live(), 1);
    });
    assert!(RACES.load(Relaxed) > 0, "the other worker never won");
}

#[test]
fn an_entry_that_a_worker_has_found_is_not_reused_before_its_quiescent_point() {
    static FOUND_THEN_REMOVED: AtomicUsize = AtomicUsize::new(0);
    static REUSED: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (_table, mut one, mut other) = workers();
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        let thread = thread::spawn(move || {
            if let Some((found, direction)) = find(&other, inbound(&direct(1))) {
                let seen = other.connection(found);
                assert_eq!((found, direction), (id, Direction::Inbound));
                assert_eq!((seen.client().port, seen.dest().port), (1, 8080), "reused while it was held");
                FOUND_THEN_REMOVED.fetch_add(usize::from(seen.expires() == Millis(0)), Relaxed);
            }
            other.quiescent();
            other
        });
        assert!(matches!(one.remove(id), Removal::Done(_)));
        one.quiescent();
        // Loom does not try to run the other thread here by itself.
        thread::yield_now();
        one.quiescent();
        let Inserted::New(again) = one.insert(&direct(2)) else { panic!("there is room") };
        REUSED.fetch_add(usize::from(again == id), Relaxed);
        let other = thread.join().expect("no panic");
        assert_eq!(find(&other, inbound(&direct(1))), None);
        assert_eq!(find(&other, inbound(&direct(2))), Some((again, Direction::Inbound)));
    });
    assert!(FOUND_THEN_REMOVED.load(Relaxed) > 0 && REUSED.load(Relaxed) > 0);
}

#[test]
fn a_worker_that_unparks_finds_no_entry_that_is_reused_without_it() {
    static REUSED: AtomicUsize = AtomicUsize::new(0);
    static FOUND: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (_table, mut one, mut other) = workers();
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        other.park();
        let thread = thread::spawn(move || {
            other.unpark();
            if let Some((found, _)) = find(&other, inbound(&direct(1))) {
                FOUND.fetch_add(1, Relaxed);
                assert_eq!(other.connection(found).client().port, 1, "reused while it was held");
            }
            other.park();
        });
        assert!(matches!(one.remove(id), Removal::Done(_)));
        one.quiescent();
        let Inserted::New(again) = one.insert(&direct(2)) else { panic!("there is room") };
        REUSED.fetch_add(usize::from(again == id), Relaxed);
        thread.join().expect("no panic");
    });
    assert!(FOUND.load(Relaxed) > 0 && REUSED.load(Relaxed) > 0);
}

#[test]
fn only_one_of_two_removals_is_reported_as_done() {
    explore(|| {
        let (table, mut one, mut other) = workers();
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        let thread = thread::spawn(move || {
            let removal = other.remove(id);
            other.quiescent();
            removal
        });
        let mine = one.remove(id);
        one.quiescent();
        let theirs = thread.join().expect("no panic");
        assert!(matches!(
            (mine, theirs),
            (Removal::Done(_), Removal::NotLive) | (Removal::NotLive, Removal::Done(_))
        ));
        assert_eq!(table.live(), 0);
    });
}

#[test]
fn a_conditional_removal_precedes_a_packets_transition_or_finds_its_condition_false() {
    static REMOVED: AtomicUsize = AtomicUsize::new(0);
    static KEPT: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (table, mut one, mut other) = workers();
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        let thread = thread::spawn(move || other.transition(id, |state| (state + 1, Millis(120_000))));
        let removal = one.remove_if(id, Ending::Expired, |state, _| state == 1);
        match (removal, thread.join().expect("no panic")) {
            (Removal::Done(1), None) => {
                REMOVED.fetch_add(1, Relaxed);
                assert_eq!((find(&one, inbound(&direct(1))), table.live()), (None, 0));
            }
            (Removal::Kept, Some((1, 2))) => {
                KEPT.fetch_add(1, Relaxed);
                assert!(find(&one, inbound(&direct(1))).is_some());
                assert_eq!(one.remove(id), Removal::Done(2), "it can be removed later");
            }
            other => panic!("both, or neither: {other:?}"),
        }
    });
    assert!(REMOVED.load(Relaxed) > 0 && KEPT.load(Relaxed) > 0);
}

#[test]
fn each_transition_is_reported_to_one_caller_and_the_counts_agree_with_the_table() {
    static LATE: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (table, mut one, mut other) = workers();
        let live = Arc::new(DestinationLive::new(2));
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        live.increment(activity(1));
        let counts = live.clone();
        let thread = thread::spawn(move || {
            let moved = [advance(&mut other, id, &counts), advance(&mut other, id, &counts)];
            moved.into_iter().flatten().collect::<Vec<_>>()
        });
        let mut moved: Vec<_> = advance(&mut one, id, &live).into_iter().collect();
        let state = one.connection(id).state();
        let Removal::Done(last) = one.remove(id) else { panic!("no other worker removes it") };
        live.decrement(activity(last));
        moved.extend(thread.join().expect("no panic"));
        moved.sort_unstable();
        LATE.fetch_add(usize::from(state != last), Relaxed);
        let each: Vec<_> = (1..last).map(|state| (state, state + 1)).collect();
        assert_eq!(moved, each, "a transition was lost or reported twice");
        assert_eq!((live.load(), table.live()), (Load { active: 0, inactive: 0 }, 0));
    });
    assert!(LATE.load(Relaxed) > 0, "no packet came between the last read and the removal");
}

/// Connections are active in even states.
fn activity(state: u8) -> Activity {
    if state.is_multiple_of(2) { Activity::Active } else { Activity::Inactive }
}

/// A packet that increments the state, counted as `burst/state.rs` does.
fn advance(worker: &mut TableWorker, id: ConnId, live: &DestinationLive) -> Option<(u8, u8)> {
    let moved = worker.transition(id, |state| (state + 1, Millis(60_000)));
    if let Some((before, after)) = moved {
        live.increment(activity(after));
        live.decrement(activity(before));
    }
    moved
}

#[test]
fn a_controller_that_counts_a_connection_is_not_removed() {
    explore(|| {
        let (_table, mut one, other) = workers();
        let template = NewConnection { flags: Flags::TEMPLATE, ..direct(0) };
        let Inserted::New(id) = one.insert(&template) else { panic!("there is room") };
        let thread = thread::spawn(move || other.connection(id).add_controlled());
        let removal = one.remove(id);
        let shared = thread.join().expect("no panic");
        assert!(if shared { removal == Removal::Controls } else { matches!(removal, Removal::Done(_)) });
    });
}

#[test]
fn concurrent_detaching_and_removal_of_a_template_never_remove_its_successor() {
    explore(|| {
        let (_table, mut one, mut other) = workers();
        let template = NewConnection { flags: Flags::TEMPLATE, ..direct(0) };
        let Inserted::New(id) = one.insert(&template) else { panic!("there is room") };
        let thread = thread::spawn(move || {
            other.detach(id);
            other.insert(&template)
        });
        let removal = one.remove(id);
        let inserted = thread.join().expect("no panic");
        let Inserted::New(young) = inserted else { panic!("{inserted:?}") };
        assert!(matches!(removal, Removal::Done(_)));
        let flow = inbound(&template);
        assert_eq!(one.find_template(&flow, one.hash(&flow)), Some(young));
    });
}

#[test]
fn a_deadline_brought_forward_while_its_link_is_put_back_is_kept() {
    static PUT_BACK: AtomicUsize = AtomicUsize::new(0);
    explore(|| {
        let (_table, mut one, mut other) = workers();
        let Inserted::New(id) = one.insert(&direct(1)) else { panic!("there is room") };
        one.transition(id, |_| (2, Millis(300_000)));
        let thread = thread::spawn(move || {
            other.transition(id, |_| (3, Millis(61_000)));
            other
        });
        one.advance_timers(Millis(60_000), |_, _| panic!("it expires a second later at the earliest"));
        let other = thread.join().expect("no panic");
        PUT_BACK.fetch_add(usize::from(other.next_timer().is_none()), Relaxed);
        let due = [one.next_timer(), other.next_timer()].into_iter().flatten().min();
        assert_eq!(due, Some(Millis(61_000)), "no worker processes it in time");
    });
    assert!(PUT_BACK.load(Relaxed) > 0, "the first worker never saw the earlier deadline");
}

/// Bounds the time: two insertions with reply keys have 7,098 runs with three preemptions and 142,999 with five.
const PREEMPTIONS: usize = 4;
