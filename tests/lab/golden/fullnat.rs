//! Packets of FULLNAT in both directions, to the byte.

use std::net::{IpAddr, SocketAddr};

use serde_json::json;
use xvs::frames::{ACK, RST, SYN, id};
use xvs::lab_cluster::{CLIENT, CLIENT6, INSIDE, INSIDE6, VIP, VIP6, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged, assert_passed, to_client, to_server};

/// The only local port, so that it is known which one is used.
const PORT: u16 = 5000;

struct Ends {
    client: IpAddr,
    vip: IpAddr,
    local: IpAddr,
    server: IpAddr,
}

fn families() -> [Ends; 2] {
    [
        Ends { client: CLIENT.into(), vip: VIP.into(), local: INSIDE.into(), server: server(1).into() },
        Ends { client: CLIENT6.into(), vip: VIP6.into(), local: INSIDE6.into(), server: server6(1).into() },
    ]
}

/// A cluster with a service of each protocol at port 80, whose only server is at `port`.
fn cluster(ends: &Ends, port: u16) -> LabCluster {
    let mut cluster = LabCluster::new();
    let (local, ports) = (ends.local.to_string(), format!("{PORT}-{PORT}"));
    let answer = cluster.ask(json!({ "xvs": ["laddr", "add", local, "--ports", ports] }));
    assert_eq!(answer["exit"], 0, "{answer}");
    for protocol in ["-t", "-u", "--sctp-service"] {
        cluster.adm(&format!("-A {protocol} {} -s rr", SocketAddr::new(ends.vip, 80)));
        let server = SocketAddr::new(ends.server, port);
        cluster.adm(&format!("-a {protocol} {} -r {server} --fullnat", SocketAddr::new(ends.vip, 80)));
    }
    cluster
}

/// A client's first packet of this protocol; for SCTP an INIT chunk.
fn first(ends: &Ends, transport: Transport, length: usize) -> Datagram {
    let request = Datagram::new(transport, at(ends.client, 4000), at(ends.vip, 80));
    // Otherwise it gets another identification.
    let request = Datagram { dont_fragment: true, ..request };
    match transport {
        Transport::Sctp => {
            let data = [&[1, 0, 0, 20][..], &[0x5a; 16]].concat();
            Datagram { data, ..request }
        }
        _ => request.carrying(length),
    }
}

#[test]
fn both_ends_are_rewritten_in_both_directions_and_every_checksum_is_kept() {
    for ends in families() {
        for transport in [Transport::Tcp(SYN), Transport::Udp, Transport::Sctp] {
            for (length, port) in [(0, 80), (1, 8080), (1400, 80), (17, 8080)] {
                let mut cluster = cluster(&ends, port);
                let request = Datagram { tos: 0x28, ..first(&ends, transport, length) };
                let want = Datagram {
                    ttl: 63,
                    source: at(ends.local, PORT),
                    dest: at(ends.server, port),
                    ..request.clone()
                };
                let want = to_server(1, &want);
                let judged = cluster.from_client(&request);
                assert_judged(&judged, "transmit", std::slice::from_ref(&want), BEGUN);
                assert_judged(&cluster.from_client(&request), "transmit", &[want], FORWARDED);

                let answering = match transport {
                    Transport::Tcp(_) => Transport::Tcp(SYN | ACK),
                    other => other,
                };
                let answer = Datagram::new(answering, at(ends.server, port), at(ends.local, PORT));
                let answer = Datagram { data: request.data.clone(), ..answer };
                let want = Datagram {
                    ttl: 63,
                    source: at(ends.vip, 80),
                    dest: at(ends.client, 4000),
                    ..answer.clone()
                };
                assert_judged(&cluster.from_server(&answer), "transmit", &[to_client(&want)], FORWARDED);
            }
        }
    }
}

#[test]
fn a_datagram_without_checksum_gets_one_for_its_new_endpoints() {
    let [ends, _] = families();
    let mut cluster = cluster(&ends, 8080);
    let request = first(&ends, Transport::UdpUnsummed, 33);
    let want = Datagram {
        ttl: 63,
        source: at(INSIDE, PORT),
        dest: at(server(1), 8080),
        transport: Transport::Udp,
        ..request.clone()
    };
    assert_judged(&cluster.from_client(&request), "transmit", &[to_server(1, &want)], BEGUN);
}

#[test]
fn packets_to_a_local_address_without_a_connection_go_to_the_kernel() {
    let [ends, _] = families();
    let mut cluster = cluster(&ends, 80);
    let reply = |from, to| Datagram::new(Transport::Tcp(RST), at(server(1), from), at(INSIDE, to));
    assert_passed(&cluster.from_server(&reply(80, PORT)));
    cluster.from_client(&first(&ends, Transport::Tcp(SYN), 0));
    assert_passed(&cluster.from_server(&reply(81, PORT)));
    assert_passed(&cluster.from_server(&reply(80, PORT + 1)));
    // Under NAT such a packet would be a reply. A FULLNAT server does not know the client, so it belongs to no
    // connection.
    let to_the_client = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(CLIENT, 4000));
    assert_passed(&cluster.from_server(&to_the_client));
}

#[test]
fn packets_whose_time_to_live_has_run_out_are_refused_as_under_masquerading() {
    let [ends, _] = families();
    let mut cluster = cluster(&ends, 80);
    let request = first(&ends, Transport::Tcp(SYN), 0);
    cluster.from_client(&request);
    let old = cluster.from_client(&Datagram { ttl: 1, ..request.clone() });
    assert_eq!(old.verdict, "drop ttl_expired");
    assert_eq!(old.sent[0].0, "wan", "the client gets an error");
    let reply = Datagram::new(Transport::Tcp(SYN | ACK), at(server(1), 80), at(INSIDE, PORT));
    let old = cluster.from_server(&Datagram { ttl: 1, ..reply });
    assert_eq!(old.verdict, "drop ttl_expired");
    assert_eq!(old.sent[0].0, "lan", "the server gets an error");
}

#[test]
fn datagrams_of_two_flows_with_one_identification_leave_with_two() {
    let [ends, _] = families();
    let mut cluster = LabCluster::with_mtu(1400);
    let answer = cluster.ask(json!({ "xvs": ["laddr", "add", ends.local.to_string()] }));
    assert_eq!(answer["exit"], 0, "{answer}");
    cluster.adm(&format!("-A -u {} -s rr", SocketAddr::new(ends.vip, 80)));
    cluster.adm(&format!("-a -u {0} -r {1}:80 --fullnat", SocketAddr::new(ends.vip, 80), ends.server));
    let mut sent = |port, bytes| {
        let request = Datagram::new(Transport::Udp, at(ends.client, port), at(ends.vip, 80)).carrying(bytes);
        let judged = cluster.from_client(&request);
        let ids: Vec<_> = judged.sent.iter().map(|(_, frame)| id(frame)).collect();
        assert!(ids.iter().all(|of| *of == ids[0]), "{ids:?}");
        (ids.len(), ids[0])
    };
    // In one case the director fragments the packets, in the other a router may do so.
    for (bytes, fragments) in [(1472, 2), (100, 1)] {
        let [one, other] = [4000, 4001].map(|port| sent(port, bytes));
        assert_eq!((one.0, other.0), (fragments, fragments));
        assert_ne!(one.1, other.1);
    }
}
