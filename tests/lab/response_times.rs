//! Times until the first reply, in the lab: from the request to the listing's histogram, with a clock moved by hand.
//!
//! Not here: the metrics and the warning (`metrics/mod.rs`, `status/warnings.rs` of `xvsd`).

use serde_json::{Value, json};
use xvs::frames::{ACK, RST, SYN};
use xvs::lab_cluster::{CLIENT, GATEWAY_MAC, LAN_MAC, VIP, WAN_MAC, at, server, server_mac};
use xvs::{BothPaths, Datagram, LabCluster, Transport, offload};

/// A cluster with a service of this protocol option and method.
fn cluster(service: &str, method: &str) -> LabCluster {
    with(LabCluster::new(), service, method)
}

fn with(mut cluster: LabCluster, service: &str, method: &str) -> LabCluster {
    cluster.configure(&[
        &format!("-A {service} {VIP}:80 -s rr"),
        &format!("-a {service} {VIP}:80 -r {}:80 {method}", server(1)),
    ]);
    cluster
}

fn request(cluster: &mut LabCluster, transport: Transport, port: u16) {
    let sent = cluster.from_client(&Datagram::new(transport, at(CLIENT, port), at(VIP, 80)));
    assert_eq!(sent.verdict, "transmit");
}

fn reply(cluster: &mut LabCluster, transport: Transport, port: u16) {
    let sent = cluster.from_server(&Datagram::new(transport, at(server(1), 80), at(CLIENT, port)));
    assert_eq!(sent.verdict, "transmit");
}

/// The connections in each range, and the sum in microseconds; nulls without a measured connection.
fn times(cluster: &mut LabCluster) -> (Value, Value) {
    let rows: Value = serde_json::from_str(&cluster.adm("-L -n --json")).expect("JSON");
    let responses = &rows[0]["destinations"][0]["responses"];
    (responses["connections"].clone(), responses["sum_micros"].clone())
}

/// The numbers with these connections, by the exponent of the range: 64 microseconds times two to that power.
fn ranges(counted: &[(usize, u64)]) -> Value {
    let longest = counted.iter().map(|(range, _)| *range).max().expect("some");
    let mut ranges = vec![0; longest + 1];
    counted.iter().for_each(|(range, count)| ranges[*range] += count);
    json!(ranges)
}

#[test]
fn the_time_from_a_clients_syn_to_the_syn_ack_is_counted_once_in_its_range() {
    let mut cluster = cluster("-t", "-m");
    // 1 ms is in (512, 1024] microseconds, 70 ms in (65536, 131072], 10 s beyond 8.4 s.
    for (port, seconds) in [(1000, 0.001), (1001, 0.070), (1002, 10.0), (1003, 0.001)] {
        request(&mut cluster, Transport::Tcp(SYN), port);
        cluster.advance(seconds);
        reply(&mut cluster, Transport::Tcp(SYN | ACK), port);
        request(&mut cluster, Transport::Tcp(ACK), port);
        cluster.advance(0.5);
        // A repeated SYN+ACK, and data.
        reply(&mut cluster, Transport::Tcp(SYN | ACK), port);
        reply(&mut cluster, Transport::Tcp(ACK), port);
    }
    let expected = ranges(&[(4, 2), (11, 1), (18, 1)]);
    assert_eq!(times(&mut cluster), (expected, json!(10_072_000)));
}

#[test]
fn a_repeated_syn_begins_no_new_time_and_a_reset_ends_none() {
    let mut cluster = cluster("-t", "-m");
    request(&mut cluster, Transport::Tcp(SYN), 1000);
    cluster.advance(1.0);
    request(&mut cluster, Transport::Tcp(SYN), 1000);
    cluster.advance(0.001);
    reply(&mut cluster, Transport::Tcp(SYN | ACK), 1000);
    request(&mut cluster, Transport::Tcp(SYN), 1001);
    cluster.advance(0.001);
    reply(&mut cluster, Transport::Tcp(RST | ACK), 1001);
    // 1.001 s is in (524288, 1048576] microseconds.
    assert_eq!(times(&mut cluster), (ranges(&[(14, 1)]), json!(1_001_000)));
}

#[test]
fn the_time_from_the_first_datagram_to_the_first_one_back_is_counted_and_later_ones_are_not() {
    // Beside a pipeline without the fast path, which gives the same answers.
    let mut cluster = cluster("-u", "-m");
    for port in [1000, 1001] {
        request(&mut cluster, Transport::Udp, port);
        cluster.advance(0.002);
        request(&mut cluster, Transport::Udp, port);
        cluster.advance(0.002);
        for _ in 0..3 {
            reply(&mut cluster, Transport::Udp, port);
            cluster.advance(0.1);
            request(&mut cluster, Transport::Udp, port);
        }
    }
    // 4 ms is in (2048, 4096] microseconds.
    assert_eq!(times(&mut cluster), (ranges(&[(6, 2)]), json!(8_000)));
}

#[test]
fn direct_routing_whose_replies_do_not_pass_has_no_times() {
    let mut cluster = cluster("-t", "-g");
    request(&mut cluster, Transport::Tcp(SYN), 1000);
    cluster.advance(0.001);
    request(&mut cluster, Transport::Tcp(ACK), 1000);
    assert_eq!(times(&mut cluster), (Value::Null, Value::Null));
}

/// Needs root.
#[test]
fn the_program_measures_the_syn_ack_that_it_forwards_and_a_worker_no_second_time() {
    let mut cluster = with(LabCluster::beside(BothPaths::offloading_alone()), "-t", "-m");
    // Whether the program has forwarded the segment, before a worker reads its records.
    let send = |cluster: &mut LabCluster, port, flags, is_reply: bool| {
        let [client, service, dest] = [at(CLIENT, port), at(VIP, 80), at(server(1), 80)];
        let (link, frame) = match is_reply {
            true => ("lan", Datagram::new(Transport::Tcp(flags), dest, client).frame(server_mac(1), LAN_MAC)),
            false => {
                ("wan", Datagram::new(Transport::Tcp(flags), client, service).frame(GATEWAY_MAC, WAN_MAC))
            }
        };
        let before = offload::forwarded();
        let director = &mut cluster.lab().director;
        director.burst(link, [&frame[..]]).expect("the frame fits");
        assert_eq!(director.transmitted().len(), 1);
        offload::forwarded() > before
    };
    for (port, seconds) in [(1000, 0.001), (1001, 0.070), (1002, 0.0)] {
        assert!(!send(&mut cluster, port, SYN, false));
        cluster.advance(seconds);
        assert!(send(&mut cluster, port, SYN | ACK, true), "port {port}");
        assert!(send(&mut cluster, port, ACK, false));
        assert!(!send(&mut cluster, port, SYN | ACK, true), "a repeated SYN+ACK is a worker's");
        cluster.advance(0.01);
        send(&mut cluster, port, SYN | ACK, true);
    }
    // The program keeps the range, and the time to a sixteenth.
    let (connections, sum) = times(&mut cluster);
    assert_eq!(connections, ranges(&[(0, 1), (4, 1), (11, 1)]));
    assert!(sum.as_u64().expect("a number").abs_diff(71_000) <= 71_000 / 16, "{sum}");
}

/// Needs root.
#[test]
fn a_syn_ack_that_a_worker_forwards_after_a_repeated_syn_has_the_time_since_the_first() {
    let mut cluster = with(LabCluster::beside(BothPaths::offloading()), "-t", "-m");
    request(&mut cluster, Transport::Tcp(SYN), 1000);
    cluster.advance(1.0);
    request(&mut cluster, Transport::Tcp(SYN), 1000);
    cluster.advance(0.001);
    reply(&mut cluster, Transport::Tcp(SYN | ACK), 1000);
    assert_eq!(times(&mut cluster), (ranges(&[(14, 1)]), json!(1_001_000)));
}
