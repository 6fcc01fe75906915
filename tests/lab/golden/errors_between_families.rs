//! ICMP errors about FULLNAT between IPv6 and IPv4, to the byte. Source of the rules: RFC 7915, sections 4.2, 4.3, 5.2
//! and 5.3.

use std::net::IpAddr;

use xvs::{Datagram, Transport};

use super::between_families::{at_client, at_server, both, cluster, plain, reply, request};
use super::icmp::{error, from_router};

#[test]
fn errors_of_servers_and_routers_reach_the_client_in_its_family_with_its_own_packet() {
    // Errors of IPv4 and of IPv6; the first has no form in the other family.
    let v4 = [(3, 14, [0; 4]), (3, 3, [0; 4]), (3, 4, [0, 0, 5, 0xdc]), (11, 0, [0; 4]), (3, 10, [0; 4])];
    let v6 = [(100, 7, [9; 4]), (1, 4, [0; 4]), (2, 0, [0, 0, 5, 0xdc]), (3, 0, [0; 4]), (1, 1, [0; 4])];
    let mtus = [0, 0, 1500, 0, 0];
    for (ends, [there, here]) in both().into_iter().zip([[v4, v6], [v6, v4]]) {
        let mut cluster = cluster(ends, 1500);
        let first = cluster.from_client(&request(ends, Transport::Udp, 600));
        let sent = at_server(ends, &request(ends, Transport::Udp, 600), &first).packet();
        let router: IpAddr = match ends.server {
            IpAddr::V4(_) => [10, 9, 8, 7].into(),
            IpAddr::V6(_) => "2001:db8:99::7".parse().unwrap(),
        };
        for number in 0..there.len() {
            let received = error(there[number], router, ends.local, 64, &sent);
            let judged = from_router(&mut cluster, "lan", &received);
            if number == 0 {
                assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("drop untranslatable", 0));
                continue;
            }
            // Its own packet with the time to live that it had, as far as an error may quote it.
            let quote =
                Datagram { ttl: 63, dont_fragment: false, id: 0, ..request(ends, Transport::Udp, 600) };
            let most = if ends.client.is_ipv4() { 576 - 28 } else { 1280 - 48 };
            let mut quote = quote.packet();
            quote.truncate(most);
            let mut what = here[number];
            if mtus[number] != 0 {
                // 20 more or fewer, and at most what the link carries.
                let mtu: u16 = if ends.client.is_ipv6() { 1500 } else { 1480 };
                what.2[2..].copy_from_slice(&mtu.to_be_bytes());
            }
            let (_, frame) = judged.sent.first().expect("an error");
            let want = error(what, ends.vip, ends.client, 63, &quote);
            assert_eq!(judged.verdict, "transmit");
            assert_eq!(plain(&frame[14..]), plain(&want), "{ends:?} {number}");
        }
    }
}

#[test]
fn errors_of_clients_reach_the_server_in_its_family_from_the_local_address() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        cluster.from_client(&request(ends, Transport::Udp, 10));
        let judged = cluster.from_server(&reply(ends, Transport::Udp, 10));
        let seen = at_client(ends, &reply(ends, Transport::Udp, 10), &judged).packet();
        let (received, wanted) = match ends.client {
            IpAddr::V4(_) => ((3, 3, [0; 4]), (1, 4, [0; 4])),
            IpAddr::V6(_) => ((1, 4, [0; 4]), (3, 3, [0; 4])),
        };
        let judged = from_router(&mut cluster, "wan", &error(received, ends.client, ends.vip, 64, &seen));
        assert_eq!(judged.verdict, "transmit");
        let quote = Datagram { ttl: 63, dont_fragment: false, id: 0, ..reply(ends, Transport::Udp, 10) };
        let quote = quote.packet();
        let want = error(wanted, ends.local, ends.server, 63, &quote);
        assert_eq!(judged.sent[0].0, "lan");
        assert_eq!(plain(&judged.sent[0].1[14..]), plain(&want), "{ends:?}");
    }
}

#[test]
fn an_error_with_a_false_or_true_length_of_its_quote_is_forwarded_with_the_quote_as_far_as_it_is() {
    for ends in both() {
        let mut cluster = cluster(ends, 1500);
        let first = cluster.from_client(&request(ends, Transport::Udp, 300));
        let sent = at_server(ends, &request(ends, Transport::Udp, 300), &first).packet();
        let (kind, unit) = if ends.server.is_ipv4() { (3, 4) } else { (1, 8) };
        for words in 0..=255_u8 {
            let rest = if ends.server.is_ipv4() { [0, words, 0, 0] } else { [words, 0, 0, 0] };
            let received = error((kind, 1, rest), ends.server, ends.local, 64, &sent);
            let judged = from_router(&mut cluster, "lan", &received);
            assert_eq!(judged.verdict, "transmit", "{words}");
            let quoted = match usize::from(words) * unit {
                // RFC 4884, section 4: less than 128 is no length.
                0..128 => sent.len(),
                claimed => claimed.min(sent.len()),
            };
            let headers = |addr: IpAddr| if addr.is_ipv4() { 20 } else { 40 };
            let want = 2 * headers(ends.client) + 8 + quoted - headers(ends.server);
            assert_eq!(judged.sent[0].1.len() - 14, want, "{ends:?} {words}");
        }
        for cut in 0..60 {
            let received = error((kind, 1, [0; 4]), ends.server, ends.local, 64, &sent[..cut]);
            let judged = from_router(&mut cluster, "lan", &received);
            let has_ports = cut >= if ends.server.is_ipv4() { 24 } else { 44 };
            assert_eq!(judged.verdict, if has_ports { "transmit" } else { "pass" }, "{cut}");
        }
    }
}
