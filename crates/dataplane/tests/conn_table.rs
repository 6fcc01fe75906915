//! What the pipeline may expect of the connection table, by its public interface.

#![cfg(not(loom))]

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{
    ConnId, Connection, Direction, Flags, Inserted, NewConnection, Removal, Table, TableConfig, TableCounts,
    TableWorker, Timers,
};
use xvs_dataplane::shm::Memory;
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 11);
const LOCAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn table(capacity: usize, workers: usize) -> Arc<Table> {
    Table::create(TableConfig { capacity, workers, memory: Memory::OnDemand }).expect("a small table")
}

fn connection(port: u16, method: ForwardingMethod) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: Endpoint::new(CLIENT, port),
        virtual_endpoint: Endpoint::new(VIP, 80),
        dest: Endpoint::new(SERVER, 8080),
        local: None,
        method,
        flags: Flags::NONE,
        state: 1,
        expires: Millis(60_000),
        service: 7,
        dest_ref: 8,
        mark: 9,
        controller: None,
    }
}

fn direct(port: u16) -> NewConnection {
    connection(port, ForwardingMethod::DirectRouting)
}

fn nat(port: u16) -> NewConnection {
    connection(port, ForwardingMethod::Nat)
}

/// The same over IPv6.
fn six(new: NewConnection) -> NewConnection {
    let six = |endpoint: Endpoint| match endpoint.addr {
        IpAddr::V4(addr) => {
            let [a, b, c, d] = addr.octets().map(u16::from);
            Endpoint::new(Ipv6Addr::new(0x2001, 0xdb8, a << 8 | b, 0, 0x8000, 0, c, d), endpoint.port)
        }
        IpAddr::V6(_) => endpoint,
    };
    NewConnection {
        client: six(new.client),
        virtual_endpoint: six(new.virtual_endpoint),
        dest: six(new.dest),
        local: new.local.map(six),
        ..new
    }
}

/// With an endpoint of the director's own towards the real server.
fn full_nat(port: u16, local: u16) -> NewConnection {
    NewConnection { local: Some(Endpoint::new(LOCAL, local)), ..nat(port) }
}

/// A tunnel to a real server of the other family.
fn mixed(port: u16, inner: fn(NewConnection) -> NewConnection) -> NewConnection {
    let outer = inner(direct(port)).client.addr.is_ipv4();
    let (four, new) = (connection(port, ForwardingMethod::Tunnel), six(direct(port)));
    let dest = if outer { new.dest } else { four.dest };
    NewConnection { dest, ..inner(four) }
}

fn inbound(new: &NewConnection) -> FlowKey {
    FlowKey { protocol: new.protocol, source: new.client, dest: new.virtual_endpoint }
}

fn reply(new: &NewConnection) -> FlowKey {
    let nat = new.method == ForwardingMethod::Nat;
    let source = if nat { new.dest } else { new.virtual_endpoint };
    FlowKey { protocol: new.protocol, source, dest: new.local.unwrap_or(new.client) }
}

fn find(worker: &TableWorker, flow: FlowKey) -> Option<(ConnId, Direction)> {
    worker.find(&flow, worker.hash(&flow))
}

fn insert(worker: &mut TableWorker, new: &NewConnection) -> ConnId {
    match worker.insert(new) {
        Inserted::New(id) => id,
        other => panic!("{other:?} for {new:?}"),
    }
}

/// Ids that came due up to `now`, with a quiescent point after each call; what came due is removed.
fn expire(worker: &mut TableWorker, now: u64) -> Vec<ConnId> {
    let mut expired = Vec::new();
    while worker.advance_timers(Millis(now), |worker, id| {
        expired.push(id);
        assert!(matches!(worker.remove(id), Removal::Done(_)));
    }) == Timers::Behind
    {
        worker.quiescent();
    }
    worker.quiescent();
    expired
}

#[test]
fn a_connection_says_what_it_was_inserted_with() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    for method in [
        ForwardingMethod::Nat,
        ForwardingMethod::Local,
        ForwardingMethod::Tunnel,
        ForwardingMethod::DirectRouting,
    ] {
        let plain =
            NewConnection { flags: Flags::SYNC | Flags::INACTIVE, ..connection(method as u16 + 1, method) };
        let full = NewConnection { flags: Flags::INACTIVE, ..full_nat(method as u16 + 11, 60_000) };
        let template = NewConnection { flags: Flags::TEMPLATE, ..connection(method as u16 + 21, method) };
        let tunnels = [|new| new, six].map(|family| mixed(method as u16 + 31, family));
        for new in [plain, six(plain), full, six(full), template, six(template)].into_iter().chain(tunnels) {
            let id = insert(&mut worker, &new);
            let seen = worker.connection(id);
            assert_eq!(read(&seen), new);
            assert_eq!((seen.in_packets(), seen.controlled()), (0, 0));
            // The entry's next connection, of whatever kind, has nothing of it.
            assert!(matches!(worker.remove(id), Removal::Done(_)));
            worker.quiescent();
        }
    }
    assert_eq!((table.live(), table.counts().inserted), (0, 32));
    assert!(table.extent() <= 64, "the first entries were used again");
}

fn read(seen: &Connection<'_>) -> NewConnection {
    NewConnection {
        protocol: seen.protocol(),
        client: seen.client(),
        virtual_endpoint: seen.virtual_endpoint(),
        dest: seen.dest(),
        local: seen.local(),
        method: seen.method(),
        flags: seen.flags(),
        state: seen.state(),
        expires: seen.expires(),
        service: seen.service(),
        dest_ref: seen.dest_ref(),
        mark: seen.mark(),
        controller: seen.controller(),
    }
}

#[test]
fn connections_of_all_families_are_found_both_ways_and_by_nothing_else() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let all = [
        direct(1),
        nat(2),
        six(direct(1)),
        six(nat(2)),
        mixed(3, |new| new),
        mixed(4, six),
        full_nat(5, 60_000),
        six(full_nat(5, 60_000)),
    ];
    let ids = all.map(|new| insert(&mut worker, &new));
    for (new, id) in all.iter().zip(ids) {
        assert_eq!(find(&worker, inbound(new)), Some((id, Direction::Inbound)), "{new:?}");
        assert_eq!(find(&worker, reply(new)), Some((id, Direction::Outbound)), "{new:?}");
        let udp = FlowKey { protocol: Protocol::UDP, ..inbound(new) };
        let other_port = FlowKey { dest: Endpoint { port: 81, ..new.virtual_endpoint }, ..inbound(new) };
        let other_client = FlowKey { source: Endpoint { port: 9, ..new.client }, ..inbound(new) };
        let direct_reply = FlowKey { source: new.virtual_endpoint, dest: new.client, ..inbound(new) };
        let wrong = if direct_reply == reply(new) { reply(&nat(9)) } else { direct_reply };
        for flow in [udp, other_port, other_client, wrong] {
            assert_eq!(find(&worker, flow), None, "{new:?}");
        }
    }
    for (new, id) in all.iter().zip(ids) {
        assert!(matches!(worker.remove(id), Removal::Done(_)));
        assert_eq!((find(&worker, inbound(new)), find(&worker, reply(new))), (None, None));
    }
}

#[test]
fn addresses_that_differ_in_any_bit_are_different_clients() {
    let table = table(500, 1);
    let mut worker = table.handle(0).unwrap();
    let client = |bit: u32| {
        let IpAddr::V6(addr) = six(direct(1)).client.addr else { panic!("it is IPv6") };
        let addr = Ipv6Addr::from(u128::from(addr) ^ 1 << bit);
        NewConnection { client: Endpoint::new(addr, 1), ..six(nat(1)) }
    };
    let ids: Vec<_> = (0..128).map(|bit| insert(&mut worker, &client(bit))).collect();
    for (bit, &id) in (0..128).zip(&ids) {
        assert_eq!(find(&worker, inbound(&client(bit))), Some((id, Direction::Inbound)));
        assert_eq!(find(&worker, reply(&client(bit))), Some((id, Direction::Outbound)));
    }
    // An IPv4 address is not the IPv6 address that is written with it.
    let mapped = |addr: Ipv4Addr, port| Endpoint::new(addr.to_ipv6_mapped(), port);
    let four = nat(1);
    let id = insert(&mut worker, &four);
    let six = FlowKey { source: mapped(CLIENT, 1), dest: mapped(VIP, 80), protocol: Protocol::TCP };
    assert_eq!(find(&worker, six), None);
    assert_eq!(find(&worker, inbound(&four)), Some((id, Direction::Inbound)));
}

#[test]
fn an_endpoint_of_the_directors_own_serves_one_connection_to_a_real_server_at_a_time() {
    for family in [|new| new, six] {
        let table = table(100, 2);
        let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
        let first = family(full_nat(1, 60_000));
        let id = insert(&mut one, &first);
        assert_eq!(other.insert(&family(full_nat(2, 60_000))), Inserted::LocalTaken);
        assert_eq!(find(&other, inbound(&family(full_nat(2, 60_000)))), None);
        assert_eq!(find(&other, reply(&first)), Some((id, Direction::Outbound)));
        assert_eq!(other.insert(&first), Inserted::Existing(id), "it is the connection itself");
        assert_eq!(other.insert(&family(full_nat(1, 60_001))), Inserted::Existing(id));
        assert_eq!(find(&other, reply(&family(full_nat(1, 60_001)))), None, "the other port is free again");
        insert(&mut other, &family(full_nat(2, 60_001)));
        // At another real server, or by another protocol, it is another conversation.
        let elsewhere = Endpoint { port: 8081, ..first.dest };
        insert(&mut other, &NewConnection { dest: elsewhere, ..family(full_nat(3, 60_000)) });
        insert(&mut other, &NewConnection { protocol: Protocol::UDP, ..family(full_nat(3, 60_000)) });
        assert_eq!(table.counts().full, 0);
        assert!(matches!(other.remove(id), Removal::Done(_)));
        let id = insert(&mut one, &family(full_nat(4, 60_000)));
        assert_eq!(find(&one, reply(&first)), Some((id, Direction::Outbound)));
    }
}

#[test]
fn replies_come_from_the_dest_for_nat_and_from_the_virtual_endpoint_otherwise() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    for (new, wrong) in [(nat(1), direct(1)), (direct(2), nat(2))] {
        let id = insert(&mut worker, &new);
        assert_eq!(find(&worker, inbound(&new)), Some((id, Direction::Inbound)));
        assert_eq!(find(&worker, reply(&new)), Some((id, Direction::Outbound)));
        assert_eq!(find(&worker, reply(&wrong)), None);
        assert_eq!(
            find(&worker, reply(&new).reversed()).map(|found| found.1),
            match new.method {
                ForwardingMethod::Nat => None,
                _ => Some(Direction::Inbound),
            }
        );
        let udp = FlowKey { protocol: Protocol::UDP, ..inbound(&new) };
        assert_eq!(find(&worker, udp), None);
    }
}

#[test]
fn a_nat_connection_whose_dest_is_the_virtual_endpoint_itself_is_found_both_ways_and_removed_whole() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let new = NewConnection { dest: Endpoint::new(VIP, 80), ..nat(1) };
    let id = insert(&mut worker, &new);
    assert_eq!(find(&worker, inbound(&new)), Some((id, Direction::Inbound)));
    assert_eq!(find(&worker, reply(&new)), Some((id, Direction::Outbound)));
    assert!(matches!(worker.remove(id), Removal::Done(_)));
    assert_eq!((find(&worker, inbound(&new)), find(&worker, reply(&new))), (None, None));
}

#[test]
fn of_connections_with_equal_replies_the_newest_answers_and_after_it_the_other() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let old = nat(1);
    let new = NewConnection { virtual_endpoint: Endpoint::new(VIP, 443), ..old };
    let (old_id, new_id) = (insert(&mut worker, &old), insert(&mut worker, &new));
    assert_eq!(find(&worker, reply(&old)), Some((new_id, Direction::Outbound)));
    assert_eq!(find(&worker, inbound(&old)), Some((old_id, Direction::Inbound)));
    assert_eq!(worker.insert(&new), Inserted::Existing(new_id));
    assert_eq!(
        find(&worker, reply(&old)),
        Some((new_id, Direction::Outbound)),
        "also after a vain insertion"
    );
    assert!(matches!(worker.remove(new_id), Removal::Done(_)));
    assert_eq!(find(&worker, reply(&old)), Some((old_id, Direction::Outbound)));
}

#[test]
fn a_second_insertion_finds_the_first_and_leaves_no_trace() {
    let table = table(100, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    let id = insert(&mut one, &nat(1));
    let late = NewConnection { dest: Endpoint::new(SERVER, 9090), dest_ref: 99, ..nat(1) };
    assert_eq!(other.insert(&late), Inserted::Existing(id));
    assert_eq!(other.connection(id).dest_ref(), 8);
    assert_eq!(find(&one, reply(&late)), None, "the loser's reply key is withdrawn");
    assert_eq!(table.counts(), TableCounts { inserted: 1, removed: 0, full: 0 });
}

#[test]
fn templates_and_packets_do_not_find_each_other() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let (plain, template) = (nat(0), NewConnection { flags: Flags::TEMPLATE, ..nat(0) });
    let flow = inbound(&template);
    let hash = worker.hash(&flow);
    let template_id = insert(&mut worker, &template);
    assert_eq!((find(&worker, flow), find(&worker, reply(&plain))), (None, None));
    let id = insert(&mut worker, &plain);
    assert_eq!(worker.find_template(&flow, hash), Some(template_id));
    assert_eq!(find(&worker, flow), Some((id, Direction::Inbound)));
    assert_eq!(find(&worker, reply(&plain)), Some((id, Direction::Outbound)));
}

#[test]
fn a_controller_stays_until_it_controls_nothing_and_then_takes_no_more() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let template = insert(&mut worker, &NewConnection { flags: Flags::TEMPLATE, ..nat(0) });
    assert!(worker.connection(template).add_controlled());
    let id = insert(&mut worker, &NewConnection { controller: Some(template), ..nat(1) });
    assert_eq!(worker.connection(id).controller(), Some(template));
    assert_eq!(worker.remove(template), Removal::Controls);
    assert!(matches!(worker.remove(id), Removal::Done(_)));
    worker.connection(template).drop_controlled();
    assert!(matches!(worker.remove(template), Removal::Done(_)));
    assert!(!worker.connection(template).add_controlled());
    assert_eq!(table.live(), 0);
}

#[test]
fn a_removed_connection_is_found_no_more_stays_readable_and_is_removed_once() {
    let table = table(100, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    let new = nat(1);
    let id = insert(&mut one, &new);
    let generation = one.connection(id).generation();
    assert!(one.recall(id, generation).is_some());
    assert!(matches!((one.remove(id), other.remove(id)), (Removal::Done(_), Removal::NotOurs)));
    assert_eq!((find(&one, inbound(&new)), find(&other, reply(&new))), (None, None));
    assert_eq!(other.connection(id).dest(), new.dest);
    other.refresh(id, 3, Millis(90_000));
    assert_eq!((other.connection(id).state(), other.connection(id).expires()), (0, Millis(0)));
    assert!(other.recall(id, generation).is_none());
    let again = insert(&mut other, &new);
    assert_eq!(find(&one, inbound(&new)), Some((again, Direction::Inbound)));
}

#[test]
fn an_entry_is_reused_only_after_every_worker_was_quiescent_or_parked() {
    let table = table(100, 3);
    let mut workers: Vec<_> = (0..3).map(|worker| table.handle(worker).unwrap()).collect();
    let [first, second, third] = &mut workers[..] else { unreachable!() };
    let id = insert(first, &direct(1));
    assert!(matches!(first.remove(id), Removal::Done(_)));
    first.quiescent();
    second.quiescent();
    first.quiescent();
    assert_ne!(insert(first, &direct(2)), id, "the third worker may still look at it");
    assert_eq!(first.in_limbo(), 1);
    third.park();
    first.quiescent();
    assert_eq!(first.in_limbo(), 0);
    third.unpark();
    assert_eq!(insert(first, &direct(3)), id);
}

#[test]
fn a_table_holds_what_it_was_made_for_whoever_inserts_and_then_refuses() {
    let table = table(500, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    // What was removed must not be missing afterwards, wherever it lies.
    for port in 0..400 {
        let id = insert(&mut other, &nat(port));
        assert!(matches!(other.remove(id), Removal::Done(_)));
    }
    for _ in 0..3 {
        one.quiescent();
        other.quiescent();
    }
    let inserted = (0..5000).take_while(|&port| matches!(one.insert(&nat(port)), Inserted::New(_))).count();
    assert!(inserted >= 500, "{inserted}");
    assert!(inserted < 5000);
    assert_eq!(table.counts().full, 1);
    assert_eq!(table.live(), inserted);
}

#[test]
fn a_connection_expires_at_its_deadline_and_a_refreshed_one_within_a_second_after() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let untouched = insert(&mut worker, &direct(1));
    let refreshed = insert(&mut worker, &direct(2));
    assert_eq!(expire(&mut worker, 30_300), []);
    worker.refresh(refreshed, 1, Millis(90_300));
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
    other.refresh(id, 4, Millis(30_250));
    assert_eq!(other.next_timer(), Some(Millis(30_250)));
    assert_eq!(expire(&mut other, 30_249), []);
    assert_eq!(expire(&mut other, 30_250), [id]);
    assert_eq!(expire(&mut one, 100_000), [], "the first link has died");
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
fn what_the_callback_neither_removes_nor_refreshes_is_due_again() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let id = insert(&mut worker, &direct(1));
    let mut due = 0;
    assert_eq!(worker.advance_timers(Millis(60_000), |_, _| due += 1), Timers::Current);
    assert_eq!((due, worker.next_timer()), (1, Some(Millis(60_125))));
    assert_eq!(
        worker.advance_timers(Millis(60_125), |worker, id| {
            worker.refresh(id, 1, Millis(120_125));
        }),
        Timers::Current
    );
    assert_eq!(expire(&mut worker, 120_999), []);
    assert_eq!(expire(&mut worker, 121_000), [id]);
}

#[test]
fn when_the_clock_jumps_ahead_no_connection_ends_early_by_more_than_that_or_is_forgotten() {
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
            assert!(!ended.contains(&id), "{deadline} is to come at {now}");
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
    worker.refresh(refreshed, 1, Millis(80_000));
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
fn a_link_that_another_worker_has_left_behind_does_not_end_who_has_the_entry_now() {
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
fn timers_of_a_seat_outlast_who_sits_there() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    assert!(table.handle(0).is_none(), "taken");
    let id = insert(&mut worker, &direct(1));
    drop(worker);
    let mut worker = table.handle(0).unwrap();
    assert_eq!(expire(&mut worker, 60_000), [id]);
    assert!(table.handle(1).is_none(), "there is no such worker");
}

#[test]
fn a_flag_transition_is_won_by_one_caller() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let id = insert(&mut worker, &direct(1));
    let connection = worker.connection(id);
    assert!(connection.set_flags(Flags::INACTIVE) && !connection.set_flags(Flags::INACTIVE));
    assert!(connection.clear_flags(Flags::INACTIVE) && !connection.clear_flags(Flags::INACTIVE));
    assert_eq!((connection.count_in_packet(), connection.count_in_packet()), (1, 2));
}

#[test]
fn a_reader_meets_every_connection_in_slices_and_may_remove_some() {
    let table = table(1000, 1);
    let mut worker = table.handle(0).unwrap();
    (0..1000).for_each(|port| {
        insert(&mut worker, &nat(port));
    });
    let mut reader = table.reader().unwrap();
    let mut ports = HashSet::new();
    for start in (0..table.extent()).step_by(100) {
        reader.for_each(start..start + 100, |connection| {
            assert!(ports.insert(connection.client().port));
        });
    }
    assert_eq!(ports.len(), 1000);
    reader.visit(0..u32::MAX, |reader, id| {
        if reader.connection(id).client().port % 2 == 0 {
            assert!(matches!(reader.remove(id), Removal::Done(_)));
        }
    });
    assert_eq!(table.live(), 500);
    assert_eq!(find(&worker, inbound(&nat(2))), None);
    assert!(find(&worker, inbound(&nat(3))).is_some());
    // The worker passes a quiescent point, the reader collects at its next walk, and the room is there again.
    worker.quiescent();
    reader.for_each(0..0, |_| {});
    (2000..2500).for_each(|port| {
        insert(&mut worker, &nat(port));
    });
    assert!(table.extent() < 1600, "memory is not touched while removed entries are to be had");
}

#[test]
fn a_size_that_cannot_be_is_refused() {
    for capacity in [0, usize::MAX, u32::MAX as usize] {
        let config = TableConfig { capacity, workers: 1, memory: Memory::OnDemand };
        assert_eq!(Table::create(config).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}

/// A step of a random history over few keys, so that they meet.
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

/// Two keys in a row are one client at two services; of six such clients two are masqueraded, to one destination port
/// by both services, so that their replies are equal, and one is seen by both under one endpoint of the director's.
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
        // By identity: the id, when the last refresh wanted it to expire, and since when it is in that state.
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
                        workers[worker].refresh(*id, state, Millis(*wanted));
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
                            let (_, wanted) = model.remove(&gone.expect("it was there")).expect("found above");
                            prop_assert!(wanted <= now, "early by {}", wanted - now);
                        }
                    }
                    // A deadline may be a second late by rounding and a tick by the wheel.
                    prop_assert!(model.values().all(|&(_, wanted)| wanted + 1125 > now));
                }
                Step::Quiesce { worker } => workers[worker].quiescent(),
            }
            prop_assert_eq!(table.live(), model.len());
            for key in 0..24 {
                let new = keyed(key);
                let known = model.get(&inbound(&new)).map(|&(id, _)| (id, Direction::Inbound));
                prop_assert_eq!(find(&workers[0], inbound(&new)), known);
                // Of equal reply keys one that is there answers; without any, nobody does.
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
fn two_threads_that_insert_find_and_remove_the_same_connections_agree_on_each() {
    const KEYS: u16 = 64;
    const ROUNDS: u64 = 30_000;
    let table = table(256, 2);
    let created = AtomicU64::new(0);
    let removed = AtomicU64::new(0);
    let run = |number: usize| {
        let mut worker = table.handle(number).unwrap();
        let mut dice = 0x2545_f491_4f6c_dd1d_u64 + number as u64;
        for round in 0..ROUNDS {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17;
            let new = keyed((dice % u64::from(KEYS)) as u16);
            let id = match worker.insert(&new) {
                Inserted::New(id) => {
                    created.fetch_add(1, Ordering::Relaxed);
                    id
                }
                Inserted::Existing(id) => id,
                // What this thread has removed waits for the other, which does not run at the moment.
                Inserted::Full => {
                    worker.quiescent();
                    thread::yield_now();
                    continue;
                }
                // By the same client's connection to the other service.
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
            worker.refresh(id, (dice >> 32) as u8, Millis(dice % 100_000));
            if dice & 1 << 40 != 0 && matches!(worker.remove(id), Removal::Done(_)) {
                removed.fetch_add(1, Ordering::Relaxed);
            }
            worker.advance_timers(Millis(round / 100), |_, _| {});
            match dice >> 60 {
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
