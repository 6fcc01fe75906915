//! A full table, and counts that stay exact whichever worker ends a connection: whole workers on one table, in memory.

// Shared with tests that need more of it.
#[allow(dead_code)]
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::new_connection::eviction::is_half_open;
use xvs_dataplane::snapshot::sync_backup::Trust;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_proto::Protocol;

use crate::workers::flood::{flooded, is_sent, prove};
use crate::workers::frames::frame6;
use crate::workers::{
    ACK, CALLS, FIN_ACK, Flow, RST, SERVERS, SIP, SIP_ONE_PACKET, SYN, Worker, Workers, random,
};

/// The longest time for which a destination still counts a connection that a new one has replaced, in milliseconds.
const LEAVING: u64 = 10;

#[test]
fn during_a_flood_of_syns_established_connections_last_and_clients_connect() {
    let (_, lasting) = flooded(1, 1 << 12, 40_000, &[]);
    assert!(lasting >= 900, "{lasting} of 1000 clients connected and stayed");
}

#[test]
fn during_a_flood_that_two_workers_receive_clients_connect() {
    let (_, lasting) = flooded(2, 1 << 12, 40_000, &[]);
    assert!(lasting >= 900, "{lasting} of 1000 clients connected and stayed");
}

#[test]
fn under_direct_routing_connections_with_more_packets_than_those_of_a_flood_last_and_clients_connect() {
    // A client that falls silent after four packets has as many as the flood, and is evicted with it.
    let (connected, _) = flooded(1, 1 << 12, 40_000, &[ACK; 3]);
    assert!(connected >= 900, "{connected} of 1000 clients connected");
}

#[test]
fn during_a_flood_over_ipv6_used_connections_last_and_clients_connect() {
    let mut workers = Workers::new(1 << 12, 1);
    let mut random = random(6);
    let send = |workers: &mut Workers, client, flags: &[u8]| {
        flags.iter().all(|flags| is_sent(workers.worker(0).packet(frame6(client, *flags))))
    };
    for client in 0..500 {
        assert!(send(&mut workers, client, &[SYN, ACK, ACK, ACK, ACK, ACK, ACK, ACK, ACK]));
    }
    let mut connected = 0;
    for number in 0..15_000_u128 {
        workers.set_clock(number as u64);
        // From one /64, so a mask of prefixes would not help.
        send(&mut workers, 1 << 64 | u128::from(random()), &[SYN, ACK]);
        if number % 30 == 29 {
            let client = 2 << 64 | number;
            connected += usize::from(send(&mut workers, client, &[SYN, ACK, ACK, ACK]));
        }
    }
    assert!(workers.counter("evicted") > 10_000);
    assert!(connected >= 450, "{connected} of 500 clients connected");
    for client in 0..500 {
        assert!(send(&mut workers, client, &[ACK]), "client {client} was evicted");
    }
}

#[test]
fn templates_that_strangers_have_assured_give_way_to_new_clients() {
    let mut workers = Workers::new(2048, 1);
    // Each from a network of its own, so with a template of its own, which lasts for 30 s.
    let from = |number: u32| Flow::persistent(1, number << 16);
    for number in 0..4000 {
        workers.set_clock(u64::from(number) * 5);
        for flags in [SYN, ACK] {
            workers.worker(0).packet(from(number).request(flags));
        }
    }
    assert!(workers.counter("drop_table_full") < 400, "{}", workers.counter("drop_table_full"));
    for number in 4000..4100 {
        assert!(is_sent(workers.worker(0).packet(from(number).request(SYN))), "{number}");
    }
    workers.assert_counts();
}

/// A TCP frame with this sequence number and acknowledgement.
fn numbered(mut frame: Vec<u8>, sequence: u32, acknowledgement: u32) -> Vec<u8> {
    frame[38..42].copy_from_slice(&sequence.to_be_bytes());
    frame[42..46].copy_from_slice(&acknowledgement.to_be_bytes());
    frame
}

#[test]
fn under_nat_the_number_of_the_servers_syn_proves_a_client_and_a_guess_does_not() {
    let mut workers = Workers::new(2048, 1);
    let first = u32::MAX - 3;
    // What a client acknowledges: the SYN, a few bytes behind it after an ACK that was lost, another number, too much.
    let acknowledged = [(1, true), (1000, true), (0, false), (1 << 17, false)];
    let mut clients = Vec::new();
    for number in 0..400 {
        let flow = Flow::nat(1, number);
        assert!(is_sent(workers.worker(0).packet(flow.request(SYN))));
        // Half of the connections are another server's.
        if is_sent(workers.worker(0).packet(numbered(flow.reply(SYN | ACK), first, 0))) {
            let (bytes, is_proven) = acknowledged[clients.len() % acknowledged.len()];
            let frame = numbered(flow.request(ACK), 1, first.wrapping_add(bytes));
            assert!(is_sent(workers.worker(0).packet(frame)));
            clients.push((flow, is_proven));
        }
    }
    assert!(clients.len() > 100, "{}", clients.len());
    for second in 2..12 {
        workers.set_clock(second * 1000);
        for number in 0..2000 {
            let flow = Flow::direct(2, second as u32 * 2000 + number);
            for flags in [SYN, ACK] {
                workers.worker(0).packet(flow.request(flags));
            }
        }
    }
    for (flow, is_proven) in clients {
        let expected = is_proven.then_some(TcpState::Established as u8);
        assert_eq!(workers.state(&flow), expected, "{:?}", flow.request(0));
    }
    workers.assert_counts();
}

#[test]
fn when_all_are_proven_a_new_connection_is_refused_and_counted() {
    let mut workers = Workers::new(256, 1);
    let mut verdicts = (0..1000).map(|number| (number, prove(&mut workers, &Flow::nat(1, number))));
    let (inside, refused) = verdicts.find(|(_, verdict)| !is_sent(*verdict)).expect("the table is full");
    assert_eq!(refused, Verdict::Drop(DropReason::TableFull));
    assert!(inside >= 256, "{inside}");
    assert_eq!((workers.counter("evicted"), workers.counter("drop_table_full")), (0, 1));
    for number in 0..inside {
        assert_eq!(workers.state(&Flow::nat(1, number)), Some(TcpState::Established as u8));
    }
    workers.assert_counts();
}

#[test]
fn what_others_tell_shuts_out_no_client_and_displaces_none_that_is_proven() {
    let mut workers = Workers::new(1 << 12, 1);
    let established = Some(TcpState::Established as u8);
    assert!((0..500).all(|number| is_sent(prove(&mut workers, &Flow::nat(1, number)))));
    workers.set_clock(5000);
    // More than the table has room for, all established for 15 minutes.
    workers.tell(Trust::Signed, (0..10_000).map(|number| Flow::nat(2, number)));
    let live = workers.table().live();
    assert!((3500..=3584).contains(&live), "{live}: seven eighths");
    // Three times as many as there is room for. With 3,000, one run in twenty has a client whose buckets hold proven
    // ones alone: the reserves of so small a table fill its buckets beyond their design.
    assert!((0..1500).all(|number| is_sent(prove(&mut workers, &Flow::nat(3, number)))), "all connect");
    assert!((0..500).all(|number| workers.state(&Flow::nat(1, number)) == established));
    assert!((0..1500).all(|number| workers.state(&Flow::nat(3, number)) == established));
    assert_eq!(workers.counter("drop_table_full"), 0);
}

#[test]
fn four_packets_of_a_client_prove_a_connection_that_another_director_has_told() {
    let mut workers = Workers::new(256, 1);
    let told = Flow::nat(1, 0);
    workers.tell(Trust::Signed, [Flow::nat(1, 0)].into_iter());
    (0..4).for_each(|_| assert!(is_sent(workers.worker(0).packet(told.request(ACK)))));
    let all = (0..2000).take_while(|number| is_sent(prove(&mut workers, &Flow::nat(2, *number))));
    assert!(all.count() < 2000, "the table is full");
    assert_eq!(workers.state(&told), Some(TcpState::Established as u8));
    assert_eq!(workers.counter("evicted"), 0);
}

#[test]
fn an_expired_connection_is_evicted_before_its_timer_is_processed() {
    let mut workers = Workers::new(2048, 1);
    // A few more than its entries: one worker and four readers keep 192 each.
    for number in 0..2048 + 5 * 192 + 4 {
        prove(&mut workers, &Flow::direct(1, number));
    }
    workers.set_clock_without_timers(901_000);
    let before = workers.counter("evicted");
    // The first one may find the reserve used up; it restores it.
    let sent =
        (0..10).filter(|&number| is_sent(workers.worker(0).packet(Flow::direct(2, number).request(SYN))));
    assert!(sent.count() >= 9);
    let evicted = workers.counter("evicted") - before;
    assert!((10..=20).contains(&evicted), "{evicted}");
    workers.assert_counts();
}

#[test]
fn only_udp_connections_with_a_single_datagram_are_evicted() {
    let mut workers = Workers::new(2048, 1);
    for number in 0..1000 {
        let flow = Flow::udp(1, number);
        assert!(is_sent(workers.worker(0).packet(flow.request(0))));
        assert!(is_sent(workers.worker(0).packet(flow.request(0))));
    }
    for number in 0..5000 {
        let verdict = workers.worker(0).packet(Flow::udp(2, number).request(0));
        assert!(is_sent(verdict), "{number}: {verdict:?}");
    }
    assert!(workers.counter("evicted") > 0);
    for number in 0..1000 {
        assert!(workers.state(&Flow::udp(1, number)).is_some());
    }
    workers.assert_counts();
}

#[test]
fn unassured_templates_are_evicted_and_assured_ones_stay() {
    let mut workers = Workers::new(2048, 1);
    for number in 0..200 {
        let flow = Flow::persistent(1, number);
        assert!(is_sent(workers.worker(0).packet(flow.request(SYN))));
        assert!(is_sent(workers.worker(0).packet(flow.request(ACK))));
    }
    for number in 0..5000 {
        let verdict = workers.worker(0).packet(Flow::persistent(2, number << 16).request(SYN));
        assert!(is_sent(verdict), "{number}: {verdict:?}");
    }
    assert!(workers.counter("evicted") > 0);
    for number in 0..200 {
        assert_eq!(workers.state(&Flow::persistent(1, number)), Some(TcpState::Established as u8));
    }
    workers.assert_counts();
}

#[test]
fn a_half_open_connection_without_a_destination_is_evicted_too() {
    let mut workers = Workers::new(2048, 1);
    let inside = (0..).take_while(|&number| workers.worker(0).bypass(&Flow::direct(1, number))).count();
    for number in 0..inside as u32 {
        let flow = Flow::direct(2, number);
        let verdict = workers.worker(0).packet(flow.request(SYN));
        // The first ones may find the reserve used up; they restore it.
        assert!(number < 10 || is_sent(verdict), "{number}: {verdict:?}");
        workers.worker(0).packet(flow.request(ACK));
    }
    assert!(workers.counter("evicted") as usize >= inside - 10);
    workers.set_clock(60_000);
    workers.assert_counts();
}

/// Sends this many first messages of SIP calls that are not continued.
fn flood_with_calls(workers: &mut Workers, port: u16, calls: u32) {
    for burst in 0..calls / 64 {
        let frames: Vec<_> = (0..64)
            .map(|frame| burst * 64 + frame)
            .map(|number| Flow::sip(port, 2, number << 8).call(number))
            .collect();
        for verdict in workers.worker(0).burst(&frames) {
            assert!(is_sent(verdict), "{burst}: {verdict:?}");
        }
    }
}

#[test]
fn during_a_flood_of_sip_messages_answered_calls_last_and_new_ones_begin() {
    let mut workers = Workers::new(1 << 18, 1);
    // Servers are chosen in turn, so the first server answers every third call.
    let calls: Vec<_> = (0..300).map(|number| Flow::sip(SIP, 1, number << 8)).collect();
    let mut answered = Vec::new();
    for (number, flow) in calls.iter().enumerate() {
        let sent = workers.worker(0).packet(flow.call(number as u32));
        assert!(is_sent(sent));
        if is_sent(workers.worker(0).packet(flow.reply(0))) {
            answered.push((number as u32, *flow));
        }
    }
    assert_eq!(answered.len(), 100);
    flood_with_calls(&mut workers, SIP, 2 * CALLS as u32);
    assert!(workers.counter("evicted") > CALLS as u64, "{}", workers.counter("evicted"));
    workers.assert_counts();
    // Another message of the call, from another port, reaches the server that has answered.
    for (number, flow) in answered {
        let again = flow.with_another_port();
        assert!(is_sent(workers.worker(0).packet(again.call(number))));
        assert!(is_sent(workers.worker(0).packet(again.reply(0))), "call {number} has moved");
    }
    workers.assert_counts();
    workers.assert_ends_empty();
}

#[test]
fn all_calls_of_a_proxy_are_found_again() {
    const CLIENTS_CALLS: u32 = 32_000;
    let mut workers = Workers::new(1 << 17, 1);
    let proxy = Flow::sip(SIP_ONE_PACKET, 1, 0);
    for call in 0..CLIENTS_CALLS {
        let verdict = workers.worker(0).packet(proxy.call(call));
        assert!(is_sent(verdict), "{call}: {verdict:?}");
    }
    for call in 0..CLIENTS_CALLS {
        assert!(is_sent(workers.worker(0).packet(proxy.call(call))));
    }
    assert_eq!((workers.table().live(), workers.counter("evicted")), (CLIENTS_CALLS as usize, 0));
    workers.assert_counts();
}

#[test]
fn calls_with_one_packet_scheduling_are_evicted_for_newer_ones() {
    let mut workers = Workers::new(1 << 17, 1);
    flood_with_calls(&mut workers, SIP_ONE_PACKET, 2 * CALLS as u32);
    assert_eq!((workers.counter("evicted"), workers.table().live()), (CALLS as u64, CALLS));
    workers.assert_counts();
    workers.assert_ends_empty();
}

#[test]
fn in_full_buckets_a_half_open_connection_is_evicted_and_an_established_one_is_not() {
    // Two buckets of eight slots, so every key may be in any slot, and many more entries than slots.
    let mut workers = Workers::new(1, 1);
    for number in 0..16 {
        assert!(is_sent(workers.worker(0).packet(Flow::direct(1, number).request(SYN))));
    }
    for number in (0..15).cycle().take(3 * 15) {
        assert!(is_sent(workers.worker(0).packet(Flow::direct(1, number).request(ACK))));
    }
    let late = Flow::direct(2, 0);
    assert!(is_sent(workers.worker(0).packet(late.request(SYN))));
    assert_eq!((workers.state(&Flow::direct(1, 15)), workers.counter("evicted")), (None, 1));
    for _ in 0..3 {
        assert!(is_sent(workers.worker(0).packet(late.request(ACK))));
    }
    let refused = workers.worker(0).packet(Flow::direct(2, 1).request(SYN));
    assert_eq!(refused, Verdict::Drop(DropReason::TableFull));
    for number in 0..15 {
        assert_eq!(workers.state(&Flow::direct(1, number)), Some(TcpState::Established as u8));
    }
    workers.assert_counts();
}

#[test]
fn the_states_of_an_unfinished_handshake_are_half_open() {
    let tcp = TcpState::ALL.into_iter().filter(|state| is_half_open(Protocol::TCP, *state as u8));
    assert_eq!(tcp.collect::<Vec<_>>(), [TcpState::SynRecv, TcpState::SynAck]);
    let sctp = (0..14).filter(|&state| is_half_open(Protocol::SCTP, state));
    assert_eq!(sctp.collect::<Vec<_>>(), [1, 2]);
    assert!(!is_half_open(Protocol::UDP, 0));
}

/// A step of a random history.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// A packet of one of few flows, from its client or from its server.
    Packet { worker: usize, flow: u32, reply: bool, flags: u8 },
    /// SYNs and datagrams of clients that send nothing else.
    Flood { worker: usize, frames: u32, seed: u64 },
    /// Servers are removed or added again.
    TakeAway { gone: u8 },
    /// Time passes, with or without the workers' timers.
    Advance { millis: u64, timers: bool },
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![Just(SYN), Just(ACK), Just(FIN_ACK), Just(RST)];
    prop_oneof![
        8 => (0..2_usize, 0..60_u32, any::<bool>(), flags)
            .prop_map(|(worker, flow, reply, flags)| Step::Packet { worker, flow, reply, flags }),
        2 => (0..2_usize, 1..300_u32, any::<u64>())
            .prop_map(|(worker, frames, seed)| Step::Flood { worker, frames, seed }),
        1 => (0..1_u8 << SERVERS).prop_map(|gone| Step::TakeAway { gone }),
        1 => (0..90_000_u64, any::<bool>()).prop_map(|(millis, timers)| Step::Advance { millis, timers }),
    ]
}

fn take(worker: &mut Worker, step: Step) {
    match step {
        Step::Packet { flow, reply, flags, .. } => {
            let flow = Flow::any(1, flow);
            worker.packet(if reply { flow.reply(flags) } else { flow.request(flags) });
        }
        Step::Flood { frames, seed, .. } => {
            let mut random = random(seed);
            let frames: Vec<_> =
                (0..frames).map(|_| Flow::any(0, (random() >> 32) as u32).request(SYN)).collect();
            frames.chunks(64).for_each(|burst| drop(worker.burst(burst)));
        }
        Step::TakeAway { .. } | Step::Advance { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn after_any_history_of_two_workers_destinations_count_the_connections_of_the_table(
        steps in prop::collection::vec(step(), 1..120)
    ) {
        let mut workers = Workers::new(128, 2);
        let mut now = 0;
        for step in steps {
            match step {
                Step::Packet { worker, .. } | Step::Flood { worker, .. } => take(workers.worker(worker), step),
                Step::TakeAway { gone } => workers.take_away(gone),
                Step::Advance { millis, timers: false } => {
                    now += millis;
                    workers.set_clock_without_timers(now);
                }
                Step::Advance { millis, timers: true } => {
                    now += millis + LEAVING;
                    workers.set_clock(now);
                    workers.assert_counts();
                }
            }
        }
        workers.set_clock(now + LEAVING);
        workers.assert_counts();
        workers.assert_ends_empty();
    }
}

#[test]
fn threads_that_make_end_and_evict_the_same_connections_count_each_once() {
    const ROUNDS: u64 = 6000;
    const STEP: u64 = 50;
    let mut workers = Workers::new(128, 2);
    thread::scope(|scope| {
        for (number, worker) in workers.workers().iter_mut().enumerate() {
            scope.spawn(move || {
                let mut random = random(number as u64 + 7);
                for round in 0..ROUNDS {
                    let word = random();
                    let flags = [SYN, SYN, ACK, ACK, FIN_ACK, RST][(word >> 8) as usize % 6];
                    let (flow, reply) = ((word >> 16) as u32 % 24, word & 1 == 0);
                    take(worker, Step::Packet { worker: number, flow, reply, flags });
                    if round.is_multiple_of(40) {
                        take(worker, Step::Flood { worker: number, frames: 64, seed: word });
                    }
                    worker.advance(Duration::from_millis(STEP));
                }
                worker.park();
            });
        }
    });
    assert!(workers.counter("evicted") > 0);
    workers.set_clock(ROUNDS * STEP + LEAVING);
    workers.assert_counts();
    workers.assert_ends_empty();
    // How many end by their timeout before depends on how far apart the threads' clocks are.
    assert!(workers.counter("expired") > 0);
}
