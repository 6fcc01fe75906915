//! Connections whose clients repeat their SYN, counted at the destination: a whole worker, in memory.

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::Destination;

use crate::workers::{ACK, Flow, RST, SYN, Workers, random};

const SYN_ACK: u8 = SYN | ACK;

/// A packet of the flow with this sequence number.
fn numbered(mut frame: Vec<u8>, sequence: u32) -> Vec<u8> {
    frame[38..42].copy_from_slice(&sequence.to_be_bytes());
    frame
}

/// Unanswered connections of all destinations.
fn unanswered(workers: &Workers) -> u32 {
    workers.destinations().map(|destination| destination.live.unanswered()).sum()
}

#[test]
fn a_connection_counts_once_when_its_client_repeats_the_syn_and_an_established_one_sets_the_count_back() {
    for flow in [Flow::direct, Flow::nat] {
        let mut workers = Workers::new(4096, 1);
        // Three servers take turns, so each has three of the nine clients.
        for (number, counted) in (0..9).zip(1..) {
            for repeated in [0, 1, 1] {
                let syn = numbered(flow(1, number).request(SYN), 7000 + number);
                workers.worker(0).packet(syn);
                assert_eq!(unanswered(&workers), counted - 1 + repeated, "client {number}");
            }
        }
        for number in 9..12 {
            workers.worker(0).packet(flow(1, number).request(SYN));
            workers.worker(0).packet(flow(1, number).request(ACK));
        }
        assert_eq!(unanswered(&workers), 0);
    }
}

#[test]
fn clients_in_the_network_of_their_nat_servers_count_apart_and_hide_nothing_of_the_others() {
    let mut workers = Workers::new(4096, 1);
    // 192.0.2.50, at different ports.
    let neighbour = |number: u32| Flow::nat(182, 2 << 16 | 50 << 8 | number);
    let neighbours = |workers: &Workers| -> Vec<_> {
        workers.destinations().filter_map(|of| of.live.unanswered_neighbours(Millis(0))).collect()
    };
    let is_unanswered = |flow: Flow, workers: &mut Workers| {
        for _ in 0..2 {
            workers.worker(0).packet(numbered(flow.request(SYN), 7000));
        }
    };
    // Three servers take turns.
    (0..9).for_each(|number| is_unanswered(neighbour(number), &mut workers));
    let all = vec![(3, "192.0.2.50".parse().unwrap()); 3];
    assert_eq!((unanswered(&workers), neighbours(&workers)), (0, all.clone()));
    (0..3).for_each(|number| is_unanswered(Flow::nat(1, number), &mut workers));
    assert_eq!((unanswered(&workers), neighbours(&workers)), (3, all.clone()));
    let establishes = |flow: Flow, workers: &mut Workers| {
        for flags in [SYN, ACK] {
            workers.worker(0).packet(flow.request(flags));
        }
    };
    (3..6).for_each(|number| establishes(Flow::nat(1, number), &mut workers));
    assert_eq!((unanswered(&workers), neighbours(&workers)), (0, all));
    (9..12).for_each(|number| establishes(neighbour(number), &mut workers));
    assert_eq!(neighbours(&workers), []);
}

#[test]
fn a_repeated_syn_counts_for_nothing_once_the_server_has_answered() {
    let mut workers = Workers::new(4096, 1);
    // Three servers take turns, and the replies are the first one's.
    for number in 0..3 {
        let flow = Flow::nat(1, number);
        workers.worker(0).packet(flow.request(SYN));
        workers.worker(0).packet(numbered(flow.reply(SYN_ACK), 9000));
        workers.worker(0).packet(flow.request(SYN));
    }
    assert_eq!(unanswered(&workers), 2);
}

#[test]
fn a_connection_that_the_server_refuses_counts_and_is_known_as_refused_until_one_is_established() {
    let mut workers = Workers::new(4096, 1);
    workers.set_clock(1);
    // Three servers take turns, and the replies are the first one's.
    let refused = |workers: &Workers| {
        let of = |destination: &Destination| destination.live.refuses();
        workers.destinations().filter(|destination| of(destination)).count()
    };
    for (number, reply) in [(0, SYN_ACK), (3, RST | ACK)] {
        assert_eq!((unanswered(&workers), refused(&workers)), (0, 0));
        for number in number..number + 3 {
            workers.worker(0).packet(Flow::nat(1, number).request(SYN));
        }
        workers.worker(0).packet(Flow::nat(1, number).reply(reply));
    }
    assert_eq!((unanswered(&workers), refused(&workers)), (1, 1));
    for number in 6..9 {
        workers.worker(0).packet(Flow::nat(1, number).request(SYN));
        workers.worker(0).packet(Flow::nat(1, number).request(ACK));
    }
    assert_eq!((unanswered(&workers), refused(&workers)), (0, 0));
}

#[test]
fn a_flood_of_random_syns_from_few_addresses_counts_for_nothing_under_direct_routing() {
    let mut workers = Workers::new(65_536, 1);
    let mut random = random(1);
    for _ in 0..4000 {
        // 16,384 endpoints, so most come again while their connection is half open.
        let syn = || numbered(Flow::direct(1, (random() % 16_384) as u32).request(SYN), random() as u32);
        let burst: Vec<_> = std::iter::repeat_with(syn).take(60).collect();
        workers.worker(0).burst(&burst);
    }
    assert_eq!(unanswered(&workers), 0);
}
