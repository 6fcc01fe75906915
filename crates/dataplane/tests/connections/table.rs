//! The connection table by its public interface. Not here: timers (`timers.rs`).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::driver::*;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{
    Connection, Direction, Flags, Inserted, NewConnection, Removal, Table, TableConfig, TableCounts,
};
use xvs_dataplane::shm::Memory;
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

#[test]
fn a_connection_has_the_values_that_it_was_inserted_with() {
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
            // The next connection in this entry, of whatever kind, inherits nothing.
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
        spare: seen.spare(),
        dest_ref: seen.dest_ref(),
        mark: seen.mark(),
        controller: seen.controller(),
    }
}

#[test]
fn connections_of_all_families_are_found_by_requests_and_replies_and_no_other_flow() {
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
    // An IPv4 address differs from the IPv6 address that it is mapped to.
    let mapped = |addr: Ipv4Addr, port| Endpoint::new(addr.to_ipv6_mapped(), port);
    let four = nat(1);
    let id = insert(&mut worker, &four);
    let six = FlowKey { source: mapped(CLIENT, 1), dest: mapped(VIP, 80), protocol: Protocol::TCP };
    assert_eq!(find(&worker, six), None);
    assert_eq!(find(&worker, inbound(&four)), Some((id, Direction::Inbound)));
}

#[test]
fn a_local_endpoint_serves_one_connection_to_a_real_server_at_a_time() {
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
        // To another real server, or by another protocol, it is another flow.
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
fn a_nat_connection_whose_dest_is_the_virtual_endpoint_is_found_by_both_keys_until_removed() {
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
fn the_newest_connection_with_equal_replies_is_found_and_after_its_removal_the_other() {
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
        "also after a refused insertion"
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
fn packets_do_not_find_templates() {
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
fn a_controller_cannot_be_removed_while_it_controls_and_once_removed_admits_no_more() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let template = insert(&mut worker, &NewConnection { flags: Flags::TEMPLATE, ..nat(0) });
    assert!(worker.connection(template).add_controlled());
    let id = insert(&mut worker, &NewConnection { controller: Some(template), ..nat(1) });
    assert_eq!(worker.connection(id).controller(), Some(template));
    assert_eq!(worker.remove(template), Removal::Controls);
    assert!(matches!(worker.remove(id), Removal::Done(_)));
    assert!(matches!(worker.remove(template), Removal::Done(_)));
    assert!(!worker.connection(template).add_controlled());
    assert_eq!(table.live(), 0);
}

#[test]
fn a_removed_connection_is_not_found_but_readable_and_is_removed_once() {
    let table = table(100, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    let new = nat(1);
    let id = insert(&mut one, &new);
    let generation = one.connection(id).generation();
    assert!(one.recall(id, generation).is_some());
    assert!(matches!((one.remove(id), other.remove(id)), (Removal::Done(_), Removal::NotLive)));
    assert_eq!((find(&one, inbound(&new)), find(&other, reply(&new))), (None, None));
    assert_eq!(other.connection(id).dest(), new.dest);
    other.transition(id, |_| (3, Millis(90_000)));
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
    assert_ne!(insert(first, &direct(2)), id, "the third worker may still read it");
    assert_eq!(first.in_limbo(), 1);
    third.park();
    first.quiescent();
    assert_eq!(first.in_limbo(), 0);
    third.unpark();
    assert_eq!(insert(first, &direct(3)), id);
}

#[test]
fn one_worker_can_fill_the_whole_table_and_then_insertions_are_refused() {
    let table = table(500, 2);
    let (mut one, mut other) = (table.handle(0).unwrap(), table.handle(1).unwrap());
    // Entries that the other worker has removed must be usable, in whichever stock they are.
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
fn a_flag_transition_is_reported_to_one_caller() {
    let table = table(100, 1);
    let mut worker = table.handle(0).unwrap();
    let id = insert(&mut worker, &direct(1));
    let connection = worker.connection(id);
    assert!(connection.set_flags(Flags::INACTIVE) && !connection.set_flags(Flags::INACTIVE));
    assert!(connection.clear_flags(Flags::INACTIVE) && !connection.clear_flags(Flags::INACTIVE));
    assert_eq!((connection.count_in_packet(), connection.count_in_packet()), (1, 2));
}

#[test]
fn a_reader_visits_every_connection_in_slices_and_may_remove_some() {
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
    // After a quiescent point of the worker, the next walk of the reader frees the entries.
    worker.quiescent();
    reader.for_each(0..0, |_| {});
    (2000..2500).for_each(|port| {
        insert(&mut worker, &nat(port));
    });
    assert!(table.extent() < 1600, "fresh memory is not touched while removed entries can be reused");
}

#[test]
fn an_impossible_size_is_refused() {
    for capacity in [0, usize::MAX, u32::MAX as usize] {
        let config = TableConfig { capacity, workers: 1, memory: Memory::OnDemand };
        assert_eq!(Table::create(config).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
    }
}
