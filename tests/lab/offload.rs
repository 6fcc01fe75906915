//! Flow offload: the kernel runs the real XDP program beside a lab without it, and both must give the same answers.
//!
//! Each test has a network, a clock and a program of its own. Needs root. Not here: the recordings of the kernel, which
//! `scripts/test` plays beside the program too, and real interfaces (`netlab/offload.rs`).

use std::net::{IpAddr, SocketAddr};

use xvs::frames::{ACK, Complaint, FIN, RST, SYN, ethernet};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, Judged, LAN_MAC, VIP, VIP6, WAN_MAC, at, server,
    server_mac, server6,
};
use xvs::{BothPaths, Datagram, LabCluster, Transport, offload};

/// A cluster with services of these ends by NAT, one server each.
fn cluster(services: &[&str]) -> LabCluster {
    let mut cluster = LabCluster::beside(BothPaths::offloading());
    for service in services {
        let server =
            if service.contains('[') { format!("[{}]:80", server6(1)) } else { format!("{}:80", server(1)) };
        cluster.configure(&[&format!("-A {service} -s rr"), &format!("-a {service} -r {server} -m")]);
    }
    cluster
}

/// Whether the program has forwarded what is sent meanwhile.
fn is_offloaded<T>(send: impl FnOnce() -> T) -> (bool, T) {
    let before = offload::forwarded();
    let sent = send();
    (offload::forwarded() > before, sent)
}

fn segment(cluster: &mut LabCluster, port: u16, flags: u8) -> (bool, Judged) {
    let datagram = Datagram::new(Transport::Tcp(flags), at(CLIENT, port), at(VIP, 80));
    is_offloaded(|| cluster.from_client(&datagram))
}

fn reply(cluster: &mut LabCluster, port: u16, flags: u8) -> (bool, Judged) {
    let datagram = Datagram::new(Transport::Tcp(flags), at(server(1), 80), at(CLIENT, port));
    is_offloaded(|| cluster.from_server(&datagram))
}

/// A segment of a client to a service's port, or its server's reply, and the link by which it comes.
fn frame(client: u16, service: u16, flags: u8, is_reply: bool) -> (&'static str, Vec<u8>) {
    let client = at(CLIENT, client);
    if is_reply {
        let reply = Datagram::new(Transport::Tcp(flags), at(server(1), service), client);
        ("lan", reply.frame(server_mac(1), LAN_MAC))
    } else {
        let request = Datagram::new(Transport::Tcp(flags), client, at(VIP, service));
        ("wan", request.frame(GATEWAY_MAC, WAN_MAC))
    }
}

/// An established connection whose packets the program forwards.
fn established(cluster: &mut LabCluster, port: u16) {
    segment(cluster, port, SYN);
    // Without a number of its own, which the client would have to acknowledge.
    reply(cluster, port, ACK);
    (0..2).for_each(|_| drop(segment(cluster, port, ACK)));
    assert!(segment(cluster, port, ACK).0 && reply(cluster, port, ACK).0);
}

/// The states of the connections in the listing, by their clients' ports.
fn states(cluster: &mut LabCluster) -> Vec<(u16, String)> {
    let listing = cluster.adm("-Lnc");
    let rows = listing.lines().skip(2).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let port = |end: &str| end.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    rows.map(|row| (port(row[3]), row[2].to_owned())).collect()
}

#[test]
fn the_program_has_all_packets_of_a_connection_but_the_first_and_moves_its_state() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80"), &format!("-t [{VIP6}]:80")]);
    for round in 0..2 {
        assert!(!segment(&mut cluster, 1000, SYN).0, "round {round}");
        let answered = reply(&mut cluster, 1000, SYN | ACK).0;
        assert_eq!(states(&mut cluster), [(1000, "SYN_RECV".to_owned())]);
        assert!(answered && segment(&mut cluster, 1000, ACK).0 && reply(&mut cluster, 1000, ACK).0);
        assert_eq!(states(&mut cluster), [(1000, "ESTABLISHED".to_owned())]);
        assert!(reply(&mut cluster, 1000, FIN | ACK).0);
        assert_eq!(states(&mut cluster), [(1000, "FIN_WAIT".to_owned())]);
        assert!(segment(&mut cluster, 1000, FIN | ACK).0 && reply(&mut cluster, 1000, ACK).0);
        assert_eq!(states(&mut cluster), [(1000, "TIME_WAIT".to_owned())]);
        assert!(!segment(&mut cluster, 1000, RST).0 && !segment(&mut cluster, 1000, ACK).0);
    }
}

#[test]
fn a_connection_that_its_client_closes_first_ends_in_time_wait_and_may_begin_anew() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    for round in 0..3 {
        assert!(!segment(&mut cluster, 1100, SYN).0);
        let (answer, proof) = (reply(&mut cluster, 1100, SYN | ACK).0, segment(&mut cluster, 1100, ACK).0);
        let ends = segment(&mut cluster, 1100, FIN | ACK).0 && reply(&mut cluster, 1100, FIN | ACK).0;
        assert!(answer && proof && ends && segment(&mut cluster, 1100, ACK).0, "round {round}");
        assert_eq!(states(&mut cluster), [(1100, "TIME_WAIT".to_owned())]);
    }
}

#[test]
fn without_replies_the_states_are_those_of_the_clients_packets_alone() {
    let mut cluster = LabCluster::beside(BothPaths::offloading());
    cluster
        .configure(&[&format!("-A -t {VIP}:80 -s wlc"), &format!("-a -t {VIP}:80 -r {}:80 -g", server(1))]);
    assert!(!segment(&mut cluster, 1200, SYN).0);
    for (flags, state) in
        [(ACK, "ESTABLISHED"), (ACK, "ESTABLISHED"), (FIN | ACK, "FIN_WAIT"), (ACK, "FIN_WAIT")]
    {
        assert!(segment(&mut cluster, 1200, flags).0);
        assert_eq!(states(&mut cluster), [(1200, state.to_owned())]);
    }
}

/// Random segments of both ends and pauses, at a director whose workers learn only with time what the program has done.
/// Verdicts, frames, states, times left, active and inactive connections are those of workers, at every moment.
#[test]
fn at_every_moment_states_and_loads_are_those_of_workers_though_these_learn_of_them_later() {
    const RARE: [u8; 8] = [SYN, SYN, SYN, SYN | ACK, RST, RST | ACK, FIN, 0];
    const FREQUENT: [u8; 6] = [SYN | ACK, ACK, ACK, ACK, ACK, FIN | ACK];
    let mut labs = [LabCluster::new(), LabCluster::beside(BothPaths::offloading_alone())];
    for lab in &mut labs {
        for (port, method, options) in [(80, "-m", ""), (81, "-g", ""), (82, "-m", " -p 60")] {
            lab.configure(&[
                &format!("-A -t {VIP}:{port} -s wlc{options}"),
                &format!("-a -t {VIP}:{port} -r {}:{port} {method}", server(1)),
            ]);
        }
    }
    let (mut seed, before) = (0x9e37_79b9_7f4a_7c15_u64, offload::forwarded());
    let mut below = |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    let mut history = Vec::new();
    for _ in 0..3000 {
        let (service, client) = (80 + below(3) as u16, 1000 + below(2) as u16);
        let is_reply = service != 81 && below(3) == 0;
        let flags = if below(6) == 0 { RARE[below(8) as usize] } else { FREQUENT[below(6) as usize] };
        let pause = if below(8) == 0 { [1.0, 3.0, 20.0, 70.0][below(4) as usize] } else { 0.0 };
        history.push((service, client, is_reply, flags, pause));
        let [workers, program] = labs.each_mut().map(|lab| {
            let (link, frame) = frame(client, service, flags, is_reply);
            let director = &mut lab.lab().director;
            director.burst(link, [&frame[..]]).expect("the frame fits");
            let sent = (director.verdicts().to_vec(), director.transmitted());
            if pause > 0.0 {
                lab.ask(serde_json::json!({ "advance": pause }));
            }
            (sent, lab.connections(), lab.loads())
        });
        assert_eq!(workers, program, "{:?}", &history[history.len().saturating_sub(30)..]);
    }
    let forwarded = offload::forwarded() - before;
    assert!(forwarded > 300, "{forwarded} of 3,000 segments by the program");
}

#[test]
fn a_reset_of_either_end_a_repeated_syn_and_a_segment_without_ack_are_the_workers() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    for (port, flags) in (1300..).zip([RST, RST | ACK, SYN, 0, FIN]) {
        established(&mut cluster, port);
        assert!(!segment(&mut cluster, port, flags).0);
        reply(&mut cluster, port, FIN | ACK);
        established(&mut cluster, port + 100);
        assert!(!reply(&mut cluster, port + 100, flags).0);
        segment(&mut cluster, port + 100, FIN | ACK);
    }
}

#[test]
fn a_segment_that_is_cut_short_moves_no_state_and_does_not_count_as_use() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    established(&mut cluster, 4000);
    cluster.advance(100.0);
    let fin = Datagram::new(Transport::Tcp(FIN | ACK), at(CLIENT, 4000), at(VIP, 80)).carrying(100);
    let frame = fin.frame(GATEWAY_MAC, WAN_MAC);
    for length in [frame.len() - 1, 72, 54] {
        assert!(cluster.inject("wan", &frame[..length]).verdict.starts_with("drop "), "{length}");
        assert_eq!(states(&mut cluster), [(4000, "ESTABLISHED".to_owned())]);
    }
    let listing = cluster.adm("-Lnc");
    assert!(listing.contains("13:20"), "900 seconds from the last packet: {listing}");
}

#[test]
fn while_a_master_announces_a_fin_is_the_workers() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    cluster.adm("--start-daemon master --mcast-interface lan");
    assert!(!segment(&mut cluster, 1499, SYN).0 && !reply(&mut cluster, 1499, SYN | ACK).0);
    established(&mut cluster, 1500);
    assert!(!segment(&mut cluster, 1500, FIN | ACK).0 && !reply(&mut cluster, 1500, ACK).0);
    // What has begun before ends with the start of the daemon.
    cluster.adm("--stop-daemon master");
    established(&mut cluster, 1501);
    cluster.adm("--start-daemon master --mcast-interface lan");
    assert!(!segment(&mut cluster, 1501, ACK).0);
}

#[test]
fn what_a_connection_was_decided_from_changes_and_its_next_packet_is_the_workers() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    let changes: [&dyn Fn(&mut LabCluster); 3] = [
        &|cluster| {
            cluster.adm("--set 500 0 0");
        },
        &|cluster| {
            cluster
                .ok(serde_json::json!({ "neighbor": server(1), "mac": "02:00:00:00:99:01", "link": "lan" }));
        },
        &|cluster| {
            cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
        },
    ];
    for (number, change) in changes.iter().enumerate() {
        let port = 2000 + number as u16;
        established(&mut cluster, port);
        change(&mut cluster);
        assert!(!segment(&mut cluster, port, ACK).0, "change {number}");
    }
    let gone = segment(&mut cluster, 2000, ACK).1;
    assert_eq!(gone.verdict, "drop destination_unavailable", "a removed real server gets nothing");
}

#[test]
fn requests_that_stay_with_a_backup_are_not_offloaded_again() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    established(&mut cluster, 2900);
    cluster.adm("--start-daemon backup --mcast-interface lan");
    cluster.set("backup_only", 1);
    for _ in 0..4 {
        let (offloaded, judged) = segment(&mut cluster, 2900, ACK);
        assert!(!offloaded && judged.verdict == "pass", "{judged:?}");
    }
}

#[test]
fn another_service_or_a_neighbour_more_does_not_end_the_offload() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    established(&mut cluster, 3000);
    cluster.configure(&[&format!("-A -t {VIP}:81 -s rr"), &format!("-a -t {VIP}:81 -r {}:81 -m", server(2))]);
    let neighbour =
        |host: u8, mac| serde_json::json!({ "neighbor": server(host), "mac": mac, "link": "lan" });
    cluster.ok(neighbour(20, "02:00:00:00:99:01"));
    assert!(segment(&mut cluster, 3000, ACK).0 && reply(&mut cluster, 3000, ACK).0);
    cluster.ok(neighbour(20, "02:00:00:00:99:02"));
    assert!(!segment(&mut cluster, 3000, ACK).0, "a path has changed");
}

#[test]
fn a_connection_whose_offload_a_change_has_ended_is_offloaded_again_after_the_next_pass() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    established(&mut cluster, 3000);
    // So many that the next ones alone are no reason to try it.
    (0..20).for_each(|_| assert!(segment(&mut cluster, 3000, ACK).0));
    cluster.adm("--set 500 0 0");
    // There is a pass after each packet.
    assert!(!segment(&mut cluster, 3000, ACK).0);
    assert!(segment(&mut cluster, 3000, ACK).0 && reply(&mut cluster, 3000, ACK).0);
}

#[test]
fn a_newer_connection_with_the_same_replies_has_them_although_the_older_one_was_offloaded() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80"), &format!("-t {VIP}:81")]);
    established(&mut cluster, 3100);
    let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 3100), at(VIP, 81));
    assert_eq!(cluster.from_client(&syn).verdict, "transmit");
    // The labs agree on where it goes.
    reply(&mut cluster, 3100, ACK);
    (0..20).for_each(|_| drop((segment(&mut cluster, 3100, ACK), reply(&mut cluster, 3100, ACK))));
}

#[test]
fn connections_from_one_endpoint_of_a_client_to_eight_services_are_all_offloaded() {
    let services: Vec<_> = (80..88).map(|port| format!("-t {VIP}:{port}")).collect();
    let mut cluster = LabCluster::beside(BothPaths::offloading());
    for (number, service) in (0..).zip(&services) {
        // Each has a server port of its own, so that replies belong to one connection.
        let dest = format!("{}:{}", server(1), 80 + number);
        cluster.configure(&[&format!("-A {service} -s rr"), &format!("-a {service} -r {dest} -m")]);
    }
    let mut is_program_s = |port: u16, flags: u8, is_reply: bool| {
        let (link, frame) = frame(3200, port, flags, is_reply);
        is_offloaded(|| cluster.inject(link, &frame)).0
    };
    for port in 80..88 {
        assert!(!is_program_s(port, SYN, false), "port {port}");
        assert!(is_program_s(port, SYN | ACK, true) && is_program_s(port, ACK, false), "port {port}");
    }
    for port in 80..88 {
        assert!(is_program_s(port, ACK, false) && is_program_s(port, ACK, true), "port {port}");
    }
    assert_eq!(offload::last().refused(), 0);
}

#[test]
fn more_connections_than_records_are_forwarded_by_workers_and_idle_ones_make_room() {
    let mut cluster = cluster(&[&format!("-u {VIP}:80"), &format!("-u [{VIP6}]:80")]);
    let mut ask = |port: u16, to_v6: bool| {
        let (client, service) =
            if to_v6 { (at(CLIENT6, port), at(VIP6, 80)) } else { (at(CLIENT, port), at(VIP, 80)) };
        let datagram = Datagram::new(Transport::Udp, client, service);
        (0..8).filter(|_| is_offloaded(|| cluster.from_client(&datagram)).0).count()
    };
    let offloaded: Vec<_> = (4000..4200).map(|port| ask(port, port % 2 == 0)).collect();
    assert!(offloaded[..40].iter().all(|packets| *packets > 0), "{offloaded:?}");
    assert!(offloaded.iter().all(|packets| *packets > 0), "idle connections make room: {offloaded:?}");
}

/// Eight records, each of which rests for 0.1 s when it is free again, could follow 80 handshakes a second, if each
/// ended at once. There are 2,000.
#[test]
fn forged_syns_at_any_rate_take_an_eighth_of_the_records_and_clients_are_offloaded_once_established() {
    let mut cluster = LabCluster::beside(BothPaths::offloading_alone());
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr"), &format!("-a -t {VIP}:80 -r {}:80 -m", server(1))]);
    let send = |cluster: &mut LabCluster, port, flags, is_reply| {
        let (link, frame) = frame(port, 80, flags, is_reply);
        let director = &mut cluster.lab().director;
        let (by_program, ()) = is_offloaded(|| director.burst(link, [&frame[..]]).expect("the frame fits"));
        director.transmitted();
        by_program
    };
    let mut clients = Vec::new();
    for round in 0..100 {
        for forged in 0..20 {
            assert!(!send(&mut cluster, 10_000 + 20 * round + forged, SYN, false));
        }
        if round % 20 == 0 {
            let port = 7000 + round;
            send(&mut cluster, port, SYN, false);
            // Without a number of its own, which the client would have to acknowledge.
            assert!(!send(&mut cluster, port, ACK, true), "no record is left for its handshake");
            for _ in 0..2 {
                send(&mut cluster, port, ACK, false);
            }
            clients.push(port);
        }
        for client in &clients {
            assert!(send(&mut cluster, *client, ACK, false) && send(&mut cluster, *client, ACK, true));
        }
        cluster.advance(0.01);
        let in_force = offload::last().in_force();
        assert!(in_force <= offload::RECORDS as usize / 8 + clients.len(), "{in_force} in round {round}");
    }
    cluster.advance(5.0);
    send(&mut cluster, 9000, SYN, false);
    assert!(send(&mut cluster, 9000, SYN | ACK, true), "the share is free again");
}

#[test]
fn flows_of_many_clients_with_one_port_are_all_offloaded_and_count_as_long_as_they_are() {
    let mut cluster = cluster(&[&format!("-u {VIP}:80")]);
    // A record without a packet in 30 passes is ended, and there is a pass after each packet.
    let clients: Vec<_> = (201..=214).map(|last| at(IpAddr::from([192, 0, 2, last]), 5353)).collect();
    for _ in 0..4 {
        for client in &clients {
            cluster.from_client(&Datagram::new(Transport::Udp, *client, at(VIP, 80)));
            cluster.from_server(&Datagram::new(Transport::Udp, at(server(1), 80), *client));
        }
    }
    for client in &clients {
        let request = Datagram::new(Transport::Udp, *client, at(VIP, 80));
        let reply = Datagram::new(Transport::Udp, at(server(1), 80), *client);
        assert!(is_offloaded(|| cluster.from_client(&request)).0, "a request of {client}");
        assert!(is_offloaded(|| cluster.from_server(&reply)).0, "a reply to {client}");
    }
    assert_eq!((offload::last().in_force(), offload::last().refused()), (14, 0));
    cluster.advance(1000.0);
    // The connections are gone, and a packet of none of them comes with a pass.
    cluster.from_client(&Datagram::new(Transport::Udp, clients[0], at(VIP, 81)));
    assert_eq!(offload::last().in_force(), 0);
}

#[test]
fn datagrams_without_a_checksum_have_the_bytes_of_workers_behind_nat() {
    let mut cluster = cluster(&[&format!("-u {VIP}:80")]);
    let exchange = |cluster: &mut LabCluster, length: usize| {
        let data: Vec<_> = (0..length).map(|at| (7 * at + length) as u8).collect();
        let way = |source, dest| Datagram {
            data: data.clone(),
            ..Datagram::new(Transport::UdpUnsummed, source, dest)
        };
        let (client, server) = (at(CLIENT, 4500), at(server(1), 80));
        // A lab without the program answers alike.
        let request = is_offloaded(|| cluster.from_client(&way(client, at(VIP, 80)))).0;
        request && is_offloaded(|| cluster.from_server(&way(server, client))).0
    };
    (0..3).for_each(|_| _ = exchange(&mut cluster, 4));
    for length in [0, 1, 2, 3, 4, 5, 47, 55, 56, 57, 58, 63, 64, 65, 119, 120, 121, 500, 1001, 1400, 1472] {
        assert!(exchange(&mut cluster, length), "{length} bytes");
    }
}

#[test]
fn an_offloaded_connection_with_traffic_lasts_and_an_idle_one_ends_when_it_is_due() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    cluster.adm("--set 10 0 0");
    established(&mut cluster, 5000);
    for _ in 0..10 {
        cluster.advance(8.0);
        assert!(segment(&mut cluster, 5000, ACK).0, "it lasts, offloaded");
    }
    assert_eq!(cluster.total_load(), (1, 0));
    cluster.advance(12.0);
    assert_eq!(cluster.total_load(), (0, 0));
    assert!(!segment(&mut cluster, 5000, ACK).0);
}

/// A tunnel: its options, the bytes of its headers behind that of the network, and whether they cover no packet.
const TUNNELS: [(&str, usize, bool); 5] = [
    ("-i", 0, true),
    ("-i --tun-type gre", 4, true),
    ("-i --tun-type gue --tun-port 6080 --tun-nocsum", 12, true),
    ("-i --tun-type gre --tun-csum", 8, false),
    ("-i --tun-type gue --tun-port 6080 --tun-csum", 12, false),
];

/// A cluster with a service of datagrams at the first server by this tunnel.
fn tunnel(virtual_endpoint: SocketAddr, server: IpAddr, options: &str) -> LabCluster {
    let mut cluster = LabCluster::beside(BothPaths::offloading());
    let server = SocketAddr::new(server, 80);
    cluster.adm(&format!("-A -u {virtual_endpoint} -s rr"));
    cluster.adm(&format!("-a -u {virtual_endpoint} -r {server} {options}"));
    cluster
}

#[test]
fn tunnels_are_offloaded_unless_each_of_their_headers_differs() {
    for (client, vip) in [(at(CLIENT, 4000), at(VIP, 80)), (at(CLIENT6, 4000), at(VIP6, 80))] {
        for server in [IpAddr::from(server(1)), server6(1).into()] {
            for (options, headers, alike) in TUNNELS {
                let mut cluster = tunnel(vip, server, options);
                let dont_fragment =
                    Datagram { dont_fragment: true, ..Datagram::new(Transport::Udp, client, vip) };
                (0..2).for_each(|_| drop(cluster.from_client(&dont_fragment)));
                let wanted = alike && (vip.is_ipv4() || server.is_ipv6());
                // The double asserts that both labs send the same bytes.
                for (length, tos, ttl) in
                    [(0, 0, 64), (1, 0xb8, 2), (18, 1, 64), (1000, 3, 255), (1440, 2, 63)]
                {
                    let datagram = Datagram { tos, ttl, ..dont_fragment.clone().carrying(length) };
                    let outer = if server.is_ipv4() { 20 } else { 40 } + headers;
                    let is_small = datagram.packet().len() + outer <= 1500;
                    let (offloaded, judged) = is_offloaded(|| cluster.from_client(&datagram));
                    assert_eq!(
                        offloaded,
                        wanted && is_small,
                        "{vip} {server} {options} {length}: {judged:?}"
                    );
                }
                let last = Datagram { ttl: 1, ..dont_fragment.clone() };
                assert!(!is_offloaded(|| cluster.from_client(&last)).0);
                let divisible = Datagram { dont_fragment: false, ..dont_fragment };
                let offloaded = is_offloaded(|| cluster.from_client(&divisible)).0;
                assert_eq!(
                    offloaded,
                    alike && server.is_ipv6(),
                    "identifications are the workers': {options}"
                );
            }
        }
    }
}

#[test]
fn a_smaller_path_mtu_of_a_tunnel_is_in_force_with_the_next_packet() {
    let (client, vip) = (at(CLIENT, 4000), at(VIP, 80));
    let mut cluster = tunnel(vip, server(1).into(), "-i");
    let large = Datagram { dont_fragment: true, ..Datagram::new(Transport::Udp, client, vip) }.carrying(1400);
    (0..2).for_each(|_| drop(cluster.from_client(&large)));
    let (offloaded, sent) = is_offloaded(|| cluster.from_client(&large));
    assert!(offloaded);
    let outer = &sent.sent[0].1[14..];
    let mut message = Complaint::fragmentation_needed(1300).about(outer, server(9), 1);
    // The router writes to the director.
    message[16..20].copy_from_slice(&INSIDE.octets());
    let mut complaint = ethernet(server_mac(9), LAN_MAC, etherparse::EtherType::IPV4, &message);
    xvs::frames::resum(&mut complaint);
    assert_eq!(cluster.inject("lan", &complaint).verdict, "consumed");
    let (offloaded, judged) = is_offloaded(|| cluster.from_client(&large));
    assert!(!offloaded && judged.verdict == "drop too_big", "{judged:?}");
    let small = Datagram { dont_fragment: true, ..Datagram::new(Transport::Udp, client, vip) };
    (0..2).for_each(|_| drop(cluster.from_client(&small)));
    assert!(is_offloaded(|| cluster.from_client(&small)).0, "smaller packets are offloaded again");
}

/// Workers translate from IPv6 to IPv4, because of identifications, and from IPv4 to IPv6 what may be fragmented, and
/// datagrams without a checksum.
#[test]
fn packets_from_ipv4_to_ipv6_have_the_bytes_of_workers_and_the_other_direction_is_theirs() {
    let ends: [[IpAddr; 4]; 2] = [
        [CLIENT6.into(), VIP6.into(), INSIDE.into(), server(1).into()],
        [CLIENT.into(), VIP.into(), INSIDE6.into(), server6(1).into()],
    ];
    for [client, vip, local, server] in ends {
        for (option, transport) in [("-t", Transport::Tcp(ACK)), ("-u", Transport::Udp)] {
            let mut cluster = LabCluster::beside(BothPaths::offloading());
            cluster.xvs(&format!("laddr add {local} --ports 5000-5000"));
            let (service, at_server) = (at(vip, 80), at(server, 8080));
            cluster.adm(&format!("-A {option} {service} -s rr"));
            cluster.adm(&format!("-a {option} {service} -r {at_server} --fullnat"));
            let request = Datagram::new(transport, at(client, 4000), service);
            let reply = Datagram::new(transport, at_server, at(local, 5000));
            if option == "-t" {
                cluster.from_client(&Datagram { transport: Transport::Tcp(SYN), ..request.clone() });
                let answer = Datagram { dont_fragment: true, ..reply.clone() };
                assert!(!is_offloaded(|| cluster.from_server(&answer)).0, "workers alone lower the MSS");
            }
            for _ in 0..3 {
                cluster.from_client(&request);
                cluster.from_server(&reply);
            }
            for (length, tos, ttl) in [
                (0, 0, 64),
                (1, 0xb8, 2),
                (1212, 1, 64),
                (1213, 0x28, 9),
                (1220, 3, 255),
                (1221, 0, 64),
                (1400, 2, 64),
            ] {
                for dont_fragment in [true, false] {
                    let with =
                        |way: &Datagram| Datagram { tos, ttl, dont_fragment, ..way.clone().carrying(length) };
                    for (is_request, way) in [(true, with(&request)), (false, with(&reply))] {
                        // The double asserts that both labs send the same bytes.
                        let (offloaded, judged) = is_offloaded(|| match is_request {
                            true => cluster.from_client(&way),
                            false => cluster.from_server(&way),
                        });
                        let wanted = way.source.is_ipv4() && dont_fragment;
                        assert_eq!(offloaded, wanted, "{way:?}: {judged:?}");
                        assert_eq!(judged.verdict, "transmit", "{way:?}");
                    }
                }
            }
            for way in [&request, &reply].map(|way| Datagram { dont_fragment: true, ..way.clone() }) {
                let is_ipv4 = way.source.is_ipv4();
                let from = |cluster: &mut LabCluster, way: &Datagram| match way.dest == service {
                    true => cluster.from_client(way).verdict,
                    false => cluster.from_server(way).verdict,
                };
                let length = if is_ipv4 { 1480 } else { 1500 } - way.packet().len();
                let largest = way.clone().carrying(length);
                assert_eq!(is_offloaded(|| from(&mut cluster, &largest)).0, is_ipv4, "{largest:?}");
                if is_ipv4 {
                    let larger = way.clone().carrying(length + 1);
                    let (offloaded, verdict) = is_offloaded(|| from(&mut cluster, &larger));
                    assert!(!offloaded && verdict == "drop too_big", "{verdict}");
                    if option == "-u" {
                        let unsummed = Datagram { transport: Transport::UdpUnsummed, ..way.clone() };
                        assert!(!is_offloaded(|| from(&mut cluster, &unsummed)).0);
                    }
                }
                let last = Datagram { ttl: 1, ..largest.clone() };
                assert!(!is_offloaded(|| from(&mut cluster, &last)).0);
            }
        }
    }
}

/// Source: ipvs-behaviour, section 2.2. The kernel translates such replies and counts them nowhere.
#[test]
fn replies_of_a_removed_server_are_translated_and_not_counted_at_it() {
    let mut cluster = cluster(&[&format!("-t {VIP}:80")]);
    established(&mut cluster, 1500);
    let before = cluster.stats();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    for _ in 0..20 {
        let (is_offloaded, judged) = reply(&mut cluster, 1500, ACK);
        assert_eq!((is_offloaded, &*judged.verdict), (false, "transmit"));
        cluster.advance(0.3);
    }
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(1)));
    assert_eq!(cluster.stats(), before);
}
