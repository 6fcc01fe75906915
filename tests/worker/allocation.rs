//! A worker allocates no memory for packets, connections and their end.
//!
//! The worker is the data plane's own and runs on this thread, with the port of the benches. That port does not
//! allocate, so each counted allocation is the pipeline's. Packets pass before the count begins, because a thread's
//! first packets allocate what it keeps. Not here: the port over AF_XDP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use allocation_counter::measure;
use xvs_dataplane::capture::filter::Filter;
use xvs_dataplane::capture::{Capture, Reader};
use xvs_dataplane::conn::Timers;
use xvs_dataplane::port::Received;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::{Announcements, SyncMaster, SyncRules};
use xvs_dataplane::snapshot::vip_probes::{VipPath, VipProbes, VipStage};
use xvs_dataplane::worker::Worker;
use xvs_proto::quic::{Decoder, Header};
use xvs_proto::sync::Version;
use xvs_proto::{Endpoint, Prefix, ethernet, icmp};
use xvs_sched::ForwardingMethod::{DirectRouting, Nat, Tunnel};
use xvs_xdp::Frame;

use crate::rig::{self, Loop, Order, Side, Variant};

const FLOWS: u32 = 10_000;
const PACKETS: u64 = 50_000;

/// A worker through which a packet of each of the first `flows` has passed.
fn worker_after(flows: u32, variant: impl Into<Variant>) -> Worker<Loop> {
    let mut worker = rig::worker(variant, FLOWS as usize, Memory::OnDemand);
    worker.port.offer(Side::Requests, Order::Turns, flows, flows.into());
    rig::forward(&mut worker);
    assert_eq!(worker.port.sent(), u64::from(flows));
    worker
}

/// Runs the worker until it receives nothing more. Returns how often it allocated, and how many packets it has sent in
/// all.
fn run(mut worker: Worker<Loop>, side: Side, packets: u64) -> (u64, u64) {
    worker.port.offer(side, Order::Turns, FLOWS, packets);
    let allocations = measure(|| worker.run());
    (allocations.count_total, worker.port.sent())
}

#[test]
fn an_allocation_would_be_counted() {
    assert_eq!(measure(|| drop(std::hint::black_box(Box::new(0xa5)))).count_total, 1);
}

#[test]
fn the_server_id_of_a_connection_id_costs_no_allocation() {
    let decoders = [(3, 4), (8, 8), (10, 5)].map(|(id, nonce)| Decoder::new(id, nonce, Some([0x5e; 16])));
    let datagram = [0x41; 32];
    let found = measure(|| {
        for decoder in decoders.iter().flatten() {
            let Some(Header::Short(id)) = Header::of(&datagram) else { panic!("a short header") };
            assert!(decoder.server_id(id).is_some());
        }
    });
    assert_eq!(found.count_total, 0);
}

#[test]
fn packets_of_existing_connections_cost_no_allocation() {
    for variant in Variant::all() {
        let worker = worker_after(FLOWS, variant);
        assert_eq!(run(worker, Side::Requests, PACKETS), (0, u64::from(FLOWS) + PACKETS), "{variant}");
    }
}

#[test]
fn packets_that_announce_their_connection_to_backups_cost_no_allocation() {
    // Each packet; the queue is full after some.
    let rules = SyncRules {
        threshold: 0,
        period: 1,
        refresh: Duration::ZERO,
        retries: 0,
        templates_alone: false,
        version: Version::V1,
        queue_max: 8,
    };
    for variant in Variant::all() {
        let worker = worker_after(FLOWS, variant);
        let announcements = Arc::new(Announcements::new(2 * FLOWS as usize, 1));
        let snapshot = Snapshot::clone(&worker.snapshot.load());
        let master = Some(Arc::new(SyncMaster::new(rules, announcements.clone())));
        worker.snapshot.store(Arc::new(Snapshot { sync_master: master, ..snapshot }));
        assert_eq!(run(worker, Side::Requests, PACKETS), (0, u64::from(FLOWS) + PACKETS), "{variant}");
        let mut announced = 0;
        announcements.take(|_| announced += 1);
        assert_eq!(announced + announcements.counters.lost.load(Ordering::Relaxed), PACKETS, "{variant}");
    }
}

#[test]
fn replies_cost_no_allocation() {
    let worker = worker_after(FLOWS, Nat);
    assert_eq!(run(worker, Side::Replies, PACKETS), (0, u64::from(FLOWS) + PACKETS));
}

/// Replaces a request by an ICMP error about the reply to it.
fn report(frame: &mut Frame) {
    let request = &frame.bytes()[ethernet::HEADER_LEN..];
    let mut reply = *request.first_chunk::<28>().expect("headers of IPv4 and UDP");
    reply[12..16].copy_from_slice(&request[16..20]);
    reply[16..20].copy_from_slice(&request[12..16]);
    reply[20..22].copy_from_slice(&request[22..24]);
    reply[22..24].copy_from_slice(&request[20..22]);
    let error = icmp::Error::HostUnreachable;
    assert!(frame.resize(ethernet::HEADER_LEN + error.length(reply.len())));
    // From a router on the reply's path, to the sender of the reply.
    let router = std::net::Ipv4Addr::new(203, 0, 113, 9);
    error.emit(&mut frame.bytes_mut()[ethernet::HEADER_LEN..], router, &reply, 7);
}

#[test]
fn fragments_cost_no_allocation() {
    for variant in Variant::all() {
        let (allocations, sent) = run(worker_after(1, variant), Side::Fragments, PACKETS);
        assert_eq!(allocations, 0, "{variant}");
        // In a tunnel, two fragments may leave as one packet.
        assert!(sent > PACKETS / 2, "{variant}: {sent} left");
    }
}

#[test]
fn icmp_errors_cost_no_allocation() {
    for method in [DirectRouting, Nat, Tunnel] {
        let mut worker = worker_after(1, method);
        worker.port.offer(Side::Requests, Order::Turns, 1, PACKETS);
        let remake =
            |burst: &mut [Received]| burst.iter_mut().for_each(|received| report(&mut received.frame));
        worker.port.received = Some(Box::new(remake));
        let allocations = measure(|| worker.run());
        assert_eq!((allocations.count_total, worker.port.sent()), (0, 1 + PACKETS), "{method:?}");
    }
}

/// Starts a capture of a worker's packets, from its next burst on.
fn captured<P>(worker: &Worker<P>, filter: Filter, slots: usize) -> (Arc<Capture>, Reader) {
    let (capture, reader) = Capture::new(filter, 1, slots, 2048);
    let snapshot = Snapshot::clone(&worker.snapshot.load());
    worker.snapshot.store(Arc::new(Snapshot { captures: [capture.clone()].into(), ..snapshot }));
    (capture, reader)
}

#[test]
fn captured_packets_cost_no_allocation_while_they_are_read_and_when_the_queue_is_full() {
    const PACKETS: u64 = 10_000;
    let no_packets = Filter { port: Some(1), ..Filter::default() };
    for variant in Variant::all() {
        for (filter, copies) in [(Filter::default(), 2 * PACKETS), (no_packets.clone(), 0)] {
            let worker = worker_after(FLOWS, variant);
            let (capture, mut reader) = captured(&worker, filter.clone(), 64);
            let done = AtomicBool::new(false);
            let read = std::thread::scope(|scope| {
                let read = scope.spawn(|| {
                    let mut read = 0;
                    while !done.load(Ordering::Relaxed) {
                        read += reader.read(|_, record| assert_eq!(record.bytes().len(), record.length));
                    }
                    read + reader.read(|_, _| ())
                });
                assert_eq!(run(worker, Side::Requests, PACKETS), (0, u64::from(FLOWS) + PACKETS));
                done.store(true, Ordering::Relaxed);
                read.join().unwrap()
            });
            let missed: u64 = capture.missed().map(|(_, missed)| missed).sum();
            assert_eq!(read as u64 + missed, copies, "{variant}: each copy was read or counted");

            let worker = worker_after(FLOWS, variant);
            let (capture, _reader) = captured(&worker, filter, 64);
            assert_eq!(run(worker, Side::Requests, PACKETS), (0, u64::from(FLOWS) + PACKETS));
            let missed: u64 = capture.missed().map(|(_, missed)| missed).sum();
            assert_eq!(missed, copies.saturating_sub(64), "{variant}: no reader");
        }
    }
}

#[test]
fn captured_fragments_and_new_connections_cost_no_allocation() {
    const PACKETS: u64 = 10_000;
    for variant in Variant::all() {
        let worker = worker_after(1, variant);
        let _capture = captured(&worker, Filter::default(), 4096);
        assert_eq!(run(worker, Side::Fragments, PACKETS).0, 0, "{variant}");
        let worker = worker_after(1, variant);
        let by_server = Filter { address: Some(Prefix::host([192, 0, 2, 12].into())), ..Filter::default() };
        let _capture = captured(&worker, by_server, 4096);
        assert_eq!(run(worker, Side::Requests, FLOWS.into()), (0, 1 + u64::from(FLOWS)), "{variant}");
    }
}

#[test]
fn probes_of_health_checks_cost_a_worker_no_allocation() {
    // Few enough that each finds a place: a probe has eight.
    const PROBES: u16 = 64;
    for variant in Variant::all().filter(|variant| matches!(variant.method, DirectRouting | Tunnel)) {
        let worker = worker_after(FLOWS, variant);
        let probes = Arc::new(VipProbes::new(40_000));
        let (local, virtual_endpoint) = (variant.client(0), variant.flow_key(0).dest);
        let snapshot = Snapshot::clone(&worker.snapshot.load());
        let known = snapshot.destinations.iter().next().expect("the rig has destinations");
        let (server, method, encapsulation) = (known.endpoint, known.method, known.tunnel.encapsulation);
        let path = |port| VipPath {
            local,
            virtual_endpoint: Endpoint { port, ..virtual_endpoint },
            server,
            method,
            encapsulation,
        };
        let begun: Vec<_> = (1..=PROBES).map(|port| probes.begin(path(port)).expect("a free slot")).collect();
        worker.snapshot.store(Arc::new(Snapshot { vip_probes: Some(probes), ..snapshot }));
        let sent = u64::from(FLOWS) + PACKETS + u64::from(PROBES);
        assert_eq!(run(worker, Side::Requests, PACKETS), (0, sent), "{variant}");
        assert!(begun.iter().all(|probe| probe.stage() == VipStage::Sent));
    }
}

#[test]
fn new_connections_cost_no_allocation() {
    for variant in Variant::all() {
        let worker = worker_after(1, variant);
        assert_eq!(run(worker, Side::Requests, FLOWS.into()), (0, 1 + u64::from(FLOWS)), "{variant}");
    }
}

#[test]
fn the_end_of_connections_costs_no_allocation() {
    let mut worker = worker_after(FLOWS, Nat);
    worker.clock.advance(Duration::from_secs(3600));
    let snapshot = worker.snapshot.load();
    let allocations = measure(|| {
        while worker.pipeline.flows.expire(&snapshot, worker.clock.now()) == Timers::Behind {
            worker.pipeline.flows.quiescent();
        }
    });
    assert_eq!((allocations.count_total, worker.pipeline.flows.table().table().live()), (0, 0));
}
