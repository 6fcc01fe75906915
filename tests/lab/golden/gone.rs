//! Connections whose destination or service is removed and added again.

use xvs::frames::{ACK, SYN};
use xvs::lab_cluster::{CLIENT, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};

use super::{BEGUN, FORWARDED, assert_judged, assert_passed, to_client, to_server};

const UNAVAILABLE: &[(&str, u64)] = &[("drop_destination_unavailable", 1), ("rx_packets", 1)];

/// A TCP service with two masqueraded servers and a connection to the second, which was added last.
fn connected() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr"),
        &format!("-a -t {VIP}:80 -r {}:80 -m", server(1)),
        &format!("-a -t {VIP}:80 -r {}:80 -m", server(2)),
    ]);
    assert_judged(&cluster.from_client(&request(SYN)), "transmit", &[to_second(SYN)], BEGUN);
    assert_judged(&cluster.from_server(&reply()), "transmit", &[translated()], FORWARDED);
    cluster
}

fn request(flags: u8) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(CLIENT, 4000), at(VIP, 80))
}

fn reply() -> Datagram {
    Datagram::new(Transport::Tcp(SYN | ACK), at(server(2), 80), at(CLIENT, 4000))
}

fn to_second(flags: u8) -> (&'static str, Vec<u8>) {
    to_server(2, &Datagram { ttl: 63, dest: at(server(2), 80), ..request(flags) })
}

fn translated() -> (&'static str, Vec<u8>) {
    to_client(&Datagram { ttl: 63, source: at(VIP, 80), ..reply() })
}

#[test]
fn packets_to_a_removed_destination_are_dropped_and_its_replies_translated_but_not_counted() {
    let mut cluster = connected();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
    let before = cluster.stats();
    for flags in [ACK, SYN, ACK] {
        let judged = cluster.from_client(&request(flags));
        assert_judged(&judged, "drop destination_unavailable", &[], UNAVAILABLE);
    }
    assert_judged(&cluster.from_server(&reply()), "transmit", &[translated()], FORWARDED);
    assert_eq!(cluster.stats(), before);
    assert_eq!(cluster.connections().len(), 1);
}

#[test]
fn a_new_client_of_a_service_with_a_removed_destination_gets_another() {
    let mut cluster = connected();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
    let first = Datagram { source: at(CLIENT, 4001), ..request(SYN) };
    let want = to_server(1, &Datagram { ttl: 63, dest: at(server(1), 80), ..first.clone() });
    assert_judged(&cluster.from_client(&first), "transmit", &[want], BEGUN);
}

#[test]
fn a_destination_that_is_added_again_has_its_connections_and_counts() {
    let mut cluster = connected();
    let before = cluster.stats();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w 5", server(2)));
    assert_eq!(cluster.load(at(server(2), 80)), (1, 0));
    assert_eq!(cluster.stats(), before);
    assert_judged(&cluster.from_client(&request(ACK)), "transmit", &[to_second(ACK)], FORWARDED);
}

#[test]
fn packets_of_a_deleted_services_connections_are_dropped_while_another_service_exists() {
    let mut cluster = connected();
    cluster.adm(&format!("-A -u {VIP}:53"));
    cluster.adm(&format!("-D -t {VIP}:80"));
    for flags in [ACK, SYN] {
        let judged = cluster.from_client(&request(flags));
        assert_judged(&judged, "drop destination_unavailable", &[], UNAVAILABLE);
    }
    assert_judged(&cluster.from_server(&reply()), "transmit", &[translated()], FORWARDED);
    let stranger = Datagram { source: at(CLIENT, 4001), ..request(SYN) };
    assert_passed(&cluster.from_client(&stranger));
}

#[test]
fn packets_of_a_deleted_services_connections_go_to_the_kernel_when_no_service_is_left() {
    for last in [format!("-D -t {VIP}:80"), "-C".to_owned()] {
        let mut cluster = connected();
        cluster.adm(&last);
        assert_passed(&cluster.from_client(&request(ACK)));
        assert_passed(&cluster.from_client(&request(SYN)));
        assert_passed(&cluster.from_server(&reply()));
        assert_eq!(cluster.connections().len(), 1, "they stay listed");
        // Any service of the family makes them effective again.
        cluster.adm(&format!("-A -u {VIP}:53"));
        let judged = cluster.from_client(&request(ACK));
        assert_judged(&judged, "drop destination_unavailable", &[], UNAVAILABLE);
        assert_judged(&cluster.from_server(&reply()), "transmit", &[translated()], FORWARDED);
    }
}

#[test]
fn a_service_that_is_added_again_has_its_connections_and_counts_from_zero() {
    let mut cluster = connected();
    cluster.stats();
    cluster.adm(&format!("-D -t {VIP}:80"));
    cluster
        .configure(&[&format!("-A -t {VIP}:80 -s wlc"), &format!("-a -t {VIP}:80 -r {}:80 -m", server(2))]);
    assert_eq!(cluster.load(at(server(2), 80)), (1, 0));
    assert_eq!(
        cluster.stats(),
        [format!("TCP {VIP}:80 0 0 0 0 0"), format!("-> {}:80 0 0 0 0 0", server(2))]
    );
    assert_judged(&cluster.from_client(&request(ACK)), "transmit", &[to_second(ACK)], FORWARDED);
    assert_eq!(
        cluster.stats(),
        [format!("TCP {VIP}:80 0 1 0 40 0"), format!("-> {}:80 0 1 0 40 0", server(2))]
    );
}

#[test]
fn connections_keep_the_method_that_they_began_with_when_the_destination_gets_another() {
    for edit in [true, false] {
        let mut cluster = connected();
        if edit {
            cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -g", server(2)));
        } else {
            cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
            cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g", server(2)));
        }
        assert_judged(&cluster.from_client(&request(ACK)), "transmit", &[to_second(ACK)], FORWARDED);
        assert_judged(&cluster.from_server(&reply()), "transmit", &[translated()], FORWARDED);
    }
}

#[test]
fn a_connection_of_a_removed_destination_expires_and_the_client_can_connect_again() {
    let mut cluster = connected();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(2)));
    // SYN_RECV lasts 60 seconds, and dropped packets do not extend it.
    cluster.advance(30.0);
    cluster.from_client(&request(ACK));
    cluster.advance(30.2);
    assert_eq!(cluster.connections(), [] as [String; 0]);
    let want = to_server(1, &Datagram { ttl: 63, dest: at(server(1), 80), ..request(SYN) });
    assert_judged(&cluster.from_client(&request(SYN)), "transmit", &[want], BEGUN);
}
