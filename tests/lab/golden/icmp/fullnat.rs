//! Errors about connections of FULLNAT: both endpoints of the quoted packet are translated.

use serde_json::json;
use xvs::frames::ACK;
use xvs::lab_cluster::at;
use xvs::{Datagram, LabCluster, Transport};

use super::super::{FORWARDED, assert_judged, assert_passed};
use super::{End, Net, TRANSPORTS, cuts, error, from_router, nets, readdressed, seen, to_client, to_server};

/// A cluster with a connection as in [`super::connected`], by FULLNAT from local port 5000, with these options of the
/// service.
fn connected_by_full_nat(net: Net, transport: (&str, Transport), options: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    let answer = cluster.ask(json!({ "xvs": ["laddr", "add", net.inside, "--ports", "5000-5000"] }));
    assert_eq!(answer["exit"], 0, "{answer}");
    cluster.adm(&format!("-A {} {} -s rr {options}", transport.0, at(net.vip, 80)));
    let server = at(net.server, 8080);
    cluster.adm(&format!("-a {} {} -r {server} --fullnat", transport.0, at(net.vip, 80)));
    let first = Datagram::new(transport.1, at(net.client, 4000), at(net.vip, 80));
    assert_eq!(cluster.from_client(&first).verdict, "transmit");
    cluster
}

#[test]
fn errors_of_both_directions_under_full_nat_quote_the_packets_that_their_receivers_sent() {
    for net in nets() {
        let local = at(net.inside, 5000);
        for transport in TRANSPORTS {
            let mut cluster = connected_by_full_nat(net, transport, "");
            let (reply, request) = seen(net, transport.1);
            let request = Datagram { source: local, ..request };
            for what in net.errors() {
                for cut in cuts(&reply) {
                    let quote = &reply.packet()[..cut];
                    let received = error(what, net.router, net.vip, 64, quote);
                    let left = readdressed(quote, End::Source, at(net.server, 8080));
                    let left = readdressed(&left, End::Dest, local);
                    let want = to_server(&error(what, net.router, net.server, 63, &left));
                    assert_judged(&from_router(&mut cluster, "wan", &received), "transmit", &want, FORWARDED);
                }
                for cut in cuts(&request) {
                    let quote = &request.packet()[..cut];
                    let received = error(what, net.router, net.inside, 64, quote);
                    let left = readdressed(quote, End::Source, at(net.client, 4000));
                    let left = readdressed(&left, End::Dest, at(net.vip, 80));
                    let want = to_client(&error(what, net.vip, net.client, 63, &left));
                    assert_judged(&from_router(&mut cluster, "lan", &received), "transmit", &want, FORWARDED);
                }
            }
            // Not an error to the client that quotes the packet of the director.
            let astray = error(net.errors()[0], net.router, net.client, 64, &request.packet());
            assert_passed(&from_router(&mut cluster, "lan", &astray));
        }
    }
}

#[test]
fn an_error_about_a_request_behind_a_proxy_header_quotes_the_clients_sequence_number() {
    for net in nets() {
        let mut cluster = connected_by_full_nat(net, TRANSPORTS[0], "--client-address proxy");
        let header = if net.vip.is_ipv4() { 28u32 } else { 52 };
        let ip = if net.vip.is_ipv4() { 20 } else { 40 };
        let (_, request) = seen(net, Transport::Tcp(ACK));
        let mut quote = Datagram { source: at(net.inside, 5000), ..request }.packet()[..ip + 8].to_vec();
        let sent = u32::from_be_bytes([4, 5, 6, 7].map(|byte| quote[ip + byte]));
        // The client's first byte has the number after that of its SYN.
        let first = sent + 1;
        let number = |quote: &[u8], number: u32| [&quote[..ip + 4], &number.to_be_bytes()[..]].concat();
        for (seen, known) in [(first, first), (first + header, first), (first + header + 9, first + 9)] {
            quote = number(&quote, seen);
            let received = error(net.too_big(1400), net.router, net.inside, 64, &quote);
            let left = readdressed(&number(&quote, known), End::Source, at(net.client, 4000));
            let left = readdressed(&left, End::Dest, at(net.vip, 80));
            let want = to_client(&error(net.too_big(1400), net.vip, net.client, 63, &left));
            assert_judged(&from_router(&mut cluster, "lan", &received), "transmit", &want, FORWARDED);
        }
    }
}
