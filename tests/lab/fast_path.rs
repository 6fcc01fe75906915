//! Which packets take the fast path: those of connections whose state stays as it is.
//!
//! Not here: that both paths have the same results, which every test with a lab shows (`support/both_paths.rs`).

use std::net::SocketAddr;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use xvs::frames::{ACK, FIN, RST, SYN};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::{Datagram, LabCluster, Transport};

const DIRECT: [&str; 4] = ["-g", "-i", "-i --tun-type gre", "-i --tun-type gue --tun-port 6181 --tun-nocsum"];
const MASQUERADING: [&str; 2] = ["-m", "--fullnat"];

/// The sequence number of all segments of the tests.
const SEQUENCE: u32 = 1000;

/// A client and a service with one server.
struct Play {
    cluster: LabCluster,
    client: SocketAddr,
    vip: SocketAddr,
    method: &'static str,
    /// Both ends of the last request behind the director.
    behind: Option<(SocketAddr, SocketAddr)>,
}

impl Play {
    fn new(ipv6: bool, method: &'static str) -> Self {
        let [client, vip, server, inside] = match ipv6 {
            false => [at(CLIENT, 4000), at(VIP, 80), at(server(1), 8080), at(INSIDE, 0)],
            true => [at(CLIENT6, 4000), at(VIP6, 80), at(server6(1), 8080), at(INSIDE6, 0)],
        };
        let server = if DIRECT.contains(&method) { SocketAddr::new(server.ip(), vip.port()) } else { server };
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("laddr add {} --ports 5000-5999", inside.ip()));
        for protocol in ["-t", "-u"] {
            cluster.adm(&format!("-A {protocol} {vip} -s rr"));
            cluster.adm(&format!("-a {protocol} {vip} -r {server} {method}"));
        }
        Self { cluster, client, vip, method, behind: None }
    }

    /// A client's packet that is forwarded. Returns whether it took the fast path. A TCP segment acknowledges
    /// the server's SYN.
    fn request(&mut self, transport: Transport) -> bool {
        let mut frame = Datagram::new(transport, self.client, self.vip).frame(GATEWAY_MAC, WAN_MAC);
        if let Transport::Tcp(_) = transport {
            let acknowledgement = self.transport() + 8;
            frame[acknowledgement..acknowledgement + 4].copy_from_slice(&(SEQUENCE + 1).to_be_bytes());
        }
        let judged = self.cluster.inject("wan", &frame);
        assert_eq!(judged.verdict, "transmit");
        self.behind = (!DIRECT.contains(&self.method)).then(|| ends(&judged.sent[0].1));
        self.cluster.general_path() == 0
    }

    /// The reply to the last request. Returns whether it took the fast path.
    fn reply(&mut self, transport: Transport) -> bool {
        let (to, from) = self.behind.expect("a request came first");
        let frame = Datagram::new(transport, from, to).frame(server_mac(1), LAN_MAC);
        assert_eq!(self.cluster.inject("lan", &frame).verdict, "transmit");
        self.cluster.general_path() == 0
    }

    /// Where the transport header of a frame begins.
    fn transport(&self) -> usize {
        14 + if self.vip.is_ipv4() { 20 } else { 40 }
    }
}

/// Source and destination of a frame's packet.
fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let packet = SlicedPacket::from_ethernet(frame).expect("a valid packet");
    let (source, dest) = match packet.net.expect("a network header") {
        NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("not ARP"),
    };
    let (from, to) = match packet.transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => (tcp.source_port(), tcp.destination_port()),
        TransportSlice::Udp(udp) => (udp.source_port(), udp.destination_port()),
        other => panic!("{other:?}"),
    };
    (SocketAddr::new(source, from), SocketAddr::new(dest, to))
}

#[test]
fn datagrams_take_the_fast_path_from_the_second_one_on_by_every_method_and_family() {
    for ipv6 in [false, true] {
        for method in DIRECT.into_iter().chain(MASQUERADING) {
            let mut play = Play::new(ipv6, method);
            assert!(!play.request(Transport::Udp), "{method}: it begins the connection");
            assert!(play.request(Transport::Udp), "{method}, IPv6 {ipv6}");
            if MASQUERADING.contains(&method) {
                assert!(play.reply(Transport::Udp), "{method}, IPv6 {ipv6}");
            }
        }
    }
}

/// Puts the sum of the pseudo-header into the checksum field of a datagram, whose checksum is right: the sum of the
/// datagram is its complement (RFC 1071).
pub(crate) fn make_partial(frame: &mut [u8], transport: usize) {
    let sum: u32 = frame[transport..]
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    frame[transport + 6..transport + 8].copy_from_slice(&(!folded as u16).to_be_bytes());
}

#[test]
fn datagrams_whose_checksum_is_left_to_a_device_take_the_general_path_and_are_completed() {
    for ipv6 in [false, true] {
        for method in ["-g", "-m"] {
            let mut play = Play::new(ipv6, method);
            play.cluster.leave_checksums();
            assert!(!play.request(Transport::Udp), "it begins the connection");
            let whole = Datagram::new(Transport::Udp, play.client, play.vip).frame(GATEWAY_MAC, WAN_MAC);
            let mut partial = whole.clone();
            make_partial(&mut partial, play.transport());
            let mut expected = play.cluster.inject("wan", &whole);
            assert_eq!((expected.verdict.as_str(), play.cluster.general_path()), ("transmit", 0), "{method}");
            expected.moved.insert("checksums_completed".to_owned(), 1);
            assert_eq!(play.cluster.inject("wan", &partial), expected, "{method}, IPv6 {ipv6}");
            assert_eq!(play.cluster.general_path(), 1);
        }
    }
}

#[test]
fn segments_take_the_fast_path_while_their_connection_is_established_and_they_only_acknowledge() {
    for ipv6 in [false, true] {
        for method in DIRECT.into_iter().chain(MASQUERADING) {
            let mut play = Play::new(ipv6, method);
            let masquerades = MASQUERADING.contains(&method);
            let segment = |flags| Transport::Tcp(flags);
            assert!(!play.request(segment(SYN)));
            if masquerades {
                assert!(!play.reply(segment(SYN | ACK)), "{method}: it changes the state");
            }
            assert!(!play.request(segment(ACK)), "{method}: it establishes the connection");
            assert!(play.request(segment(ACK)), "{method}, IPv6 {ipv6}");
            if masquerades {
                assert!(play.reply(segment(ACK)), "{method}, IPv6 {ipv6}");
            }
            assert!(!play.request(segment(FIN | ACK)), "{method}: it changes the state");
            assert!(!play.request(segment(ACK)), "{method}: the connection is ending");
            assert!(!play.request(segment(RST)), "{method}: it ends the connection");
        }
    }
}

#[test]
fn a_packet_after_a_pause_takes_the_fast_path_and_keeps_its_connection() {
    let mut play = Play::new(false, "-m");
    play.request(Transport::Udp);
    for _ in 0..4 {
        // More than half of the timeout of UDP.
        play.cluster.advance(200.0);
        assert!(play.request(Transport::Udp), "the connection lives");
    }
}

#[test]
fn packets_of_a_removed_server_take_the_general_path() {
    let mut play = Play::new(false, "-g");
    assert!(!play.request(Transport::Udp) && play.request(Transport::Udp));
    let vip = play.vip;
    play.cluster.adm(&format!("-d -u {vip} -r {}", at(server(1), vip.port())));
    play.cluster.from_client(&Datagram::new(Transport::Udp, play.client, vip));
    assert_eq!(play.cluster.general_path(), 1);
}

#[test]
fn a_datagram_without_a_checksum_takes_the_general_path_where_it_gets_one() {
    for (method, goes_short) in [("-g", true), ("-m", false), ("--fullnat", false)] {
        let mut play = Play::new(false, method);
        play.request(Transport::Udp);
        assert_eq!(play.request(Transport::UdpUnsummed), goes_short, "{method}");
    }
}

/// The frame of a client's segment.
fn segment(play: &Play, flags: u8) -> Vec<u8> {
    Datagram::new(Transport::Tcp(flags), play.client, play.vip).frame(GATEWAY_MAC, WAN_MAC)
}

#[test]
fn packets_of_one_burst_have_the_results_of_packets_one_after_the_other() {
    let bursts: [&[u8]; 6] = [
        &[SYN, ACK, ACK],
        &[ACK, FIN | ACK, ACK],
        &[ACK, RST, ACK],
        &[FIN | ACK, SYN, ACK],
        &[RST, SYN, ACK],
        &[ACK],
    ];
    for method in DIRECT.into_iter().chain(MASQUERADING) {
        let mut play = Play::new(false, method);
        for burst in bursts {
            let frames: Vec<_> = burst.iter().map(|flags| segment(&play, *flags)).collect();
            // The double takes the general path.
            play.cluster.burst("wan", &frames.iter().map(Vec::as_slice).collect::<Vec<_>>());
            play.cluster.adm("-L -n -c");
            play.cluster.adm("-L -n --stats");
        }
    }
}

#[test]
fn a_reply_follows_the_connection_that_an_earlier_packet_of_its_burst_has_begun() {
    let mut play = Play::new(false, "-m");
    let (other, server) = (at(VIP, 81), at(server(1), 8080));
    play.cluster.adm(&format!("-A -u {other} -s rr"));
    play.cluster.adm(&format!("-a -u {other} -r {server} -m"));
    play.request(Transport::Udp);
    let reply = Datagram::new(Transport::Udp, server, play.client).frame(server_mac(1), LAN_MAC);
    // The same client by another virtual endpoint to the same server: the reply could be of either.
    let begins = Datagram::new(Transport::Udp, play.client, other).frame(GATEWAY_MAC, LAN_MAC);
    play.cluster.burst("lan", &[&begins, &reply, &reply]);
    assert_eq!(play.cluster.general_path(), 3);
}

/// Sends a burst of the frame cut to every length, each beside the whole frame. The whole ones are forwarded by the
/// fast path, and the others dropped.
fn cut_everywhere(play: &mut Play, link: &str, whole: &[u8]) {
    let lengths: Vec<usize> = (0..whole.len()).collect();
    for lengths in lengths.chunks(32) {
        let before = play.cluster.counters();
        let frames: Vec<_> = lengths.iter().flat_map(|length| [&whole[..*length], whole]).collect();
        play.cluster.burst(link, &frames);
        assert_eq!(play.cluster.general_path(), lengths.len());
        let after = play.cluster.counters();
        let moved = |name: &str| after.get(name).unwrap_or(&0) - before.get(name).unwrap_or(&0);
        assert_eq!(moved("tx_packets"), lengths.len() as u64, "{after:?}");
        let dropped = after.keys().filter(|name| name.starts_with("drop_")).map(|name| moved(name));
        assert_eq!(dropped.sum::<u64>(), lengths.len() as u64, "{after:?}");
    }
}

#[test]
fn frames_that_end_anywhere_are_dropped_and_others_of_their_burst_are_forwarded() {
    for (ipv6, method) in [false, true]
        .into_iter()
        .flat_map(|ipv6| DIRECT.into_iter().chain(MASQUERADING).map(move |method| (ipv6, method)))
    {
        for transport in [Transport::Udp, Transport::Tcp(ACK)] {
            let mut play = Play::new(ipv6, method);
            if let Transport::Tcp(_) = transport {
                play.request(Transport::Tcp(SYN));
                if MASQUERADING.contains(&method) {
                    play.reply(Transport::Tcp(SYN | ACK));
                }
            }
            play.request(transport);
            play.request(transport);
            let mut frame = Datagram::new(transport, play.client, play.vip).frame(GATEWAY_MAC, WAN_MAC);
            if let Transport::Tcp(_) = transport {
                let acknowledgement = play.transport() + 8;
                frame[acknowledgement..acknowledgement + 4].copy_from_slice(&(SEQUENCE + 1).to_be_bytes());
            }
            cut_everywhere(&mut play, "wan", &frame);
            if let Some((to, from)) = play.behind {
                play.reply(transport);
                let frame = Datagram::new(transport, from, to).frame(server_mac(1), LAN_MAC);
                cut_everywhere(&mut play, "lan", &frame);
            }
        }
    }
}
