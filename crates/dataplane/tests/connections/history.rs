//! Random histories of the connection table, compared with a plain map, and of two threads at once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::driver::*;
use proptest::prelude::*;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{ConnId, Direction, Inserted, NewConnection, Removal};
use xvs_proto::{Endpoint, FlowKey};

/// A step of a random history. There are few keys, so that steps often have the same one.
#[derive(Debug, Clone, Copy)]
enum Step {
    Insert { worker: usize, key: u16, seconds: u64 },
    Remove { worker: usize, key: u16 },
    Refresh { worker: usize, key: u16, state: u8, seconds: u64 },
    Advance { millis: u64 },
    Quiesce { worker: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, key) = (0..2_usize, 0..24_u16);
    let seconds = prop_oneof![1..20_u64, 50..400_u64];
    prop_oneof![
        4 => (worker.clone(), key.clone(), seconds.clone())
            .prop_map(|(worker, key, seconds)| Step::Insert { worker, key, seconds }),
        2 => (worker.clone(), key.clone()).prop_map(|(worker, key)| Step::Remove { worker, key }),
        4 => (worker.clone(), key, 1..4_u8, seconds)
            .prop_map(|(worker, key, state, seconds)| Step::Refresh { worker, key, state, seconds }),
        2 => (0..30_000_u64).prop_map(|millis| Step::Advance { millis }),
        2 => worker.prop_map(|worker| Step::Quiesce { worker }),
    ]
}

/// Two successive keys are one client at two services. Of six such clients, two are masqueraded to one destination port
/// by both services, so that their reply flows are equal, and one has one local endpoint of the director for both.
fn keyed(key: u16) -> NewConnection {
    let client = key / 2;
    let new = match client % 6 {
        0 => nat(client),
        1 => direct(client),
        2 => six(nat(client)),
        3 => six(direct(client)),
        4 => mixed(client, |new| new),
        _ if client % 12 == 5 => full_nat(client, 60_000),
        _ => six(full_nat(client, 60_000)),
    };
    NewConnection { virtual_endpoint: Endpoint { port: 80 + key % 2, ..new.virtual_endpoint }, ..new }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn any_history_agrees_with_a_plain_map(steps in prop::collection::vec(step(), 1..200)) {
        let table = table(64, 2);
        let mut workers = [table.handle(0).unwrap(), table.handle(1).unwrap()];
        // By identity: the id, and the expiry that the last refresh requested.
        let mut model: HashMap<FlowKey, (ConnId, u64)> = HashMap::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Insert { worker, key, seconds } => {
                    let new = NewConnection { expires: Millis(now + seconds * 1000), ..keyed(key) };
                    match (workers[worker].insert(&new), model.get(&inbound(&new))) {
                        (Inserted::Existing(id), Some(&(known, _))) => prop_assert_eq!(id, known),
                        (Inserted::LocalTaken, None) => {
                            prop_assert!(new.local.is_some() && model.contains_key(&inbound(&keyed(key ^ 1))));
                        }
                        (Inserted::New(id), None) => {
                            prop_assert!(new.local.is_none() || !model.contains_key(&inbound(&keyed(key ^ 1))));
                            prop_assert!(model.values().all(|&(other, _)| other != id));
                            model.insert(inbound(&new), (id, new.expires.0));
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                Step::Remove { worker, key } => {
                    if let Some((id, _)) = model.remove(&inbound(&keyed(key))) {
                        prop_assert!(matches!(workers[worker].remove(id), Removal::Done(_)));
                    }
                }
                Step::Refresh { worker, key, state, seconds } => {
                    if let Some((id, wanted)) = model.get_mut(&inbound(&keyed(key))) {
                        *wanted = now + seconds * 1000;
                        workers[worker].transition(*id, |_| (state, Millis(*wanted)));
                        let kept = workers[worker].connection(*id).expires().0;
                        prop_assert!((*wanted..*wanted + 1000).contains(&kept));
                        prop_assert_eq!(workers[worker].connection(*id).state(), state);
                    }
                }
                Step::Advance { millis } => {
                    now += millis;
                    for worker in &mut workers {
                        for id in expire(worker, now) {
                            let gone = model.iter().find(|(_, value)| value.0 == id).map(|(key, _)| *key);
                            let (_, wanted) = model.remove(&gone.expect("it was in the model")).expect("found above");
                            prop_assert!(wanted <= now, "early by {}", wanted - now);
                        }
                    }
                    // A deadline may be missed by a second because of rounding, and by a tick of the wheel.
                    prop_assert!(model.values().all(|&(_, wanted)| wanted + 1125 > now));
                }
                Step::Quiesce { worker } => workers[worker].quiescent(),
            }
            prop_assert_eq!(table.live(), model.len());
            for key in 0..24 {
                let new = keyed(key);
                let known = model.get(&inbound(&new)).map(|&(id, _)| (id, Direction::Inbound));
                prop_assert_eq!(find(&workers[0], inbound(&new)), known);
                // Of the connections with this reply flow, any may be found; without any, none.
                let same_reply = |other: &u16| reply(&keyed(*other)) == reply(&new);
                let answering: HashSet<ConnId> = (0..24).filter(same_reply)
                    .filter_map(|other| model.get(&inbound(&keyed(other)))).map(|&(id, _)| id).collect();
                match find(&workers[1], reply(&new)) {
                    Some((id, Direction::Outbound)) => prop_assert!(answering.contains(&id)),
                    None => prop_assert!(answering.is_empty()),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
        }
    }
}

#[test]
fn threads_that_insert_find_and_remove_the_same_connections_agree_on_each() {
    const KEYS: u16 = 64;
    const ROUNDS: u64 = 30_000;
    let table = table(256, 2);
    let created = AtomicU64::new(0);
    let removed = AtomicU64::new(0);
    let run = |number: usize| {
        let mut worker = table.handle(number).unwrap();
        let mut random = 0x2545_f491_4f6c_dd1d_u64 + number as u64;
        for round in 0..ROUNDS {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let new = keyed((random % u64::from(KEYS)) as u16);
            let id = match worker.insert(&new) {
                Inserted::New(id) => {
                    created.fetch_add(1, Ordering::Relaxed);
                    id
                }
                Inserted::Existing(id) => id,
                // Entries that this thread has removed wait for the other thread, which does not run at the moment.
                Inserted::Full => {
                    worker.quiescent();
                    thread::yield_now();
                    continue;
                }
                // The connection of the same client to the other service has it.
                Inserted::LocalTaken => {
                    assert!(new.local.is_some());
                    continue;
                }
            };
            let seen = worker.connection(id);
            assert_eq!((seen.client(), seen.virtual_endpoint()), (new.client, new.virtual_endpoint));
            if let Some((id, direction)) = find(&worker, inbound(&new)) {
                assert_eq!(direction, Direction::Inbound);
                assert_eq!(worker.connection(id).client(), new.client);
            }
            worker.transition(id, |_| ((random >> 32) as u8, Millis(random % 100_000)));
            if random & 1 << 40 != 0 && matches!(worker.remove(id), Removal::Done(_)) {
                removed.fetch_add(1, Ordering::Relaxed);
            }
            worker.advance_timers(Millis(round / 100), |_, _| {});
            match random >> 60 {
                0 => {
                    worker.park();
                    worker.unpark();
                }
                _ => worker.quiescent(),
            }
        }
        worker.park();
    };
    thread::scope(|scope| {
        scope.spawn(|| run(0));
        scope.spawn(|| run(1));
    });
    let left = created.into_inner() - removed.into_inner();
    assert_eq!(table.live() as u64, left);
    let mut keys = HashSet::new();
    let mut reader = table.reader().unwrap();
    reader.for_each(0..u32::MAX, |connection| {
        assert!(keys.insert((connection.client(), connection.virtual_endpoint())), "two entries of one key");
    });
    assert_eq!(keys.len() as u64, left);
    let worker = table.handle(0).unwrap();
    for key in 0..KEYS {
        let new = keyed(key);
        let there = keys.contains(&(new.client, new.virtual_endpoint));
        assert_eq!(find(&worker, inbound(&new)).is_some(), there);
        let answers = (0..KEYS).map(keyed).any(|other| {
            reply(&other) == reply(&new) && keys.contains(&(other.client, other.virtual_endpoint))
        });
        assert_eq!(find(&worker, reply(&new)).is_some(), answers, "no reply key is left behind or lost");
    }
}
