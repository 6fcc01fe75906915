//! Connections that an operator resets: the resets to both ends at the next packet, to the byte.
//!
//! `etherparse` writes the received and the expected frames. Not here: how `xvs drain` sets the flag, and sockets that
//! accept the reset (`netlab/rules.rs`).

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, IpNumber, Ipv6FlowLabel, Ipv6Header, PacketBuilder, TcpOptionElement};
use serde_json::json;
use xvs::LabCluster;
use xvs::frames::{Ipv4, Mac, ethernet, hex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, Judged, LAN_MAC, VIP, VIP6, WAN_MAC, at, server,
    server_mac, server6,
};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::connection::{Ended, Filter};

const METHODS: [&str; 4] = ["-m", "--fullnat", "-g", "-i"];
const LOCAL_PORT: u16 = 5000;

/// A segment, as its sender writes it.
#[derive(Clone, Debug)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    syn: bool,
    rst: bool,
    fin: bool,
    ack: Option<u32>,
    sequence: u32,
    window: u16,
    ttl: u8,
    options: bool,
    data: Vec<u8>,
}

impl Segment {
    fn new(from: SocketAddr, to: SocketAddr) -> Self {
        Self {
            from,
            to,
            syn: false,
            rst: false,
            fin: false,
            ack: None,
            sequence: 0,
            window: 501,
            ttl: 64,
            options: false,
            data: Vec::new(),
        }
    }

    fn frame(&self, macs: (Mac, Mac)) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(macs.0, macs.1);
        let network = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), self.ttl),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), self.ttl),
            _ => panic!("one family"),
        };
        let mut tcp = network.tcp(self.from.port(), self.to.port(), self.sequence, self.window);
        tcp = if self.syn { tcp.syn() } else { tcp };
        tcp = if self.rst { tcp.rst() } else { tcp };
        tcp = if self.fin { tcp.fin() } else { tcp };
        tcp = if self.data.is_empty() { tcp } else { tcp.psh() };
        if let Some(number) = self.ack {
            tcp = tcp.ack(number);
        }
        let options = [TcpOptionElement::Noop, TcpOptionElement::Noop, TcpOptionElement::Timestamp(7, 8)];
        let tcp = tcp.options(if self.options { &options[..] } else { &[] }).expect("the options fit");
        let mut frame = Vec::new();
        tcp.write(&mut frame, &self.data).expect("a vector takes all");
        frame
    }

    /// The reset that it becomes, from `from` to `to`.
    fn cut(&self, from: SocketAddr, to: SocketAddr) -> Self {
        let (ttl, data) = (self.ttl - 1, Vec::new());
        Self { from, to, rst: true, syn: false, fin: false, options: false, ttl, data, ..self.clone() }
    }

    /// The reset that its sender gets.
    fn answer(&self) -> Self {
        let counted = u32::from(self.syn) + u32::from(self.fin) + self.data.len() as u32;
        let (sequence, ack) = match self.ack {
            Some(number) => (number, None),
            None => (0, Some(self.sequence.wrapping_add(counted))),
        };
        Self { rst: true, sequence, ack, window: 0, ..Self::new(self.to, self.from) }
    }
}

/// A director with one connection. Both ends have sent packets, as far as the director sees them.
struct Play {
    cluster: LabCluster,
    method: &'static str,
    client: SocketAddr,
    vip: SocketAddr,
    server: SocketAddr,
    local: SocketAddr,
}

impl Play {
    fn new(method: &'static str, v6: bool) -> Self {
        let (client, vip, server, local): (IpAddr, IpAddr, IpAddr, IpAddr) = match v6 {
            false => (CLIENT.into(), VIP.into(), server(1).into(), INSIDE.into()),
            true => (CLIENT6.into(), VIP6.into(), server6(1).into(), INSIDE6.into()),
        };
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("laddr add {local} --ports {LOCAL_PORT}-{LOCAL_PORT}"));
        let (client, vip, server) = (at(client, 40_000), at(vip, 80), at(server, 80));
        let local = at(local, LOCAL_PORT);
        cluster.adm(&format!("-A -t {vip} -s rr"));
        cluster.adm(&format!("-a -t {vip} -r {server} {method}"));
        let mut play = Self { cluster, method, client, vip, server, local };
        let syn = Segment { syn: true, sequence: 999, ..Segment::new(client, vip) };
        assert_eq!(play.request(&syn).verdict, "transmit");
        if play.sees_replies() {
            let syn_ack = Segment { syn: true, ack: Some(1000), sequence: 8999, ..play.reply() };
            assert_eq!(play.answered(&syn_ack).verdict, "transmit");
        }
        let ack = Segment { ack: Some(9000), sequence: 1000, ..Segment::new(client, vip) };
        let judged = play.request(&ack);
        assert_eq!((judged.verdict.as_str(), judged.sent.len()), ("transmit", 1));
        assert_eq!(play.state(), "ESTABLISHED");
        play
    }

    fn sees_replies(&self) -> bool {
        matches!(self.method, "-m" | "--fullnat")
    }

    /// An empty segment of the server.
    fn reply(&self) -> Segment {
        Segment::new(self.server, if self.method == "-m" { self.client } else { self.local })
    }

    fn question(&self) -> Segment {
        let data = b"question".to_vec();
        let new = Segment::new(self.client, self.vip);
        Segment { ack: Some(9000), sequence: 1000, options: true, data, ..new }
    }

    fn mark(&mut self) -> Ended {
        let wanted = Request::ResetConnections(Filter::default());
        match self.cluster.lab().director.call(wanted) {
            Ok(Reply::Ended(ended)) => ended,
            other => panic!("{other:?}"),
        }
    }

    fn request(&mut self, segment: &Segment) -> Judged {
        self.cluster.inject("wan", &segment.frame((GATEWAY_MAC, WAN_MAC)))
    }

    fn answered(&mut self, segment: &Segment) -> Judged {
        self.cluster.inject("lan", &segment.frame((server_mac(1), LAN_MAC)))
    }

    fn to_client(segment: &Segment) -> (String, Vec<u8>) {
        ("wan".to_owned(), segment.frame((WAN_MAC, GATEWAY_MAC)))
    }

    fn to_server(segment: &Segment) -> (String, Vec<u8>) {
        ("lan".to_owned(), segment.frame((LAN_MAC, server_mac(1))))
    }

    /// The frame that the server gets for a client's segment.
    fn forwarded(&self, segment: &Segment) -> (String, Vec<u8>) {
        match self.method {
            "-m" => Self::to_server(&segment.cut(self.client, self.server)),
            "--fullnat" => Self::to_server(&segment.cut(self.local, self.server)),
            "-g" => Self::to_server(&segment.cut(self.client, self.vip)),
            _ => ("lan".to_owned(), self.tunnelled(&segment.cut(self.client, self.vip))),
        }
    }

    /// IP in IP, of the packet's own family.
    fn tunnelled(&self, segment: &Segment) -> Vec<u8> {
        let inner = &segment.frame((LAN_MAC, server_mac(1)))[14..];
        let (kind, packet) = match self.server.ip() {
            IpAddr::V4(server) => {
                let outer = Ipv4 { ttl: segment.ttl, tos: 0, id: 0, dont_fragment: true };
                (EtherType::IPV4, outer.packet(IpNumber::IPV4, INSIDE, server, inner))
            }
            IpAddr::V6(server) => {
                let outer = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Ipv6FlowLabel::ZERO,
                    payload_length: inner.len() as u16,
                    next_header: IpNumber::IPV6,
                    hop_limit: segment.ttl,
                    source: INSIDE6.octets(),
                    destination: server.octets(),
                };
                (EtherType::IPV6, [&outer.to_bytes()[..], inner].concat())
            }
        };
        ethernet(LAN_MAC, server_mac(1), kind, &packet)
    }

    fn state(&mut self) -> String {
        self.cluster.only_connection().1
    }
}

/// Each method with each family, with a connection that is marked for a reset.
fn marked() -> impl Iterator<Item = Play> {
    let all = METHODS.into_iter().flat_map(|method| [(method, false), (method, true)]);
    all.map(|(method, v6)| {
        let mut play = Play::new(method, v6);
        assert_eq!(play.mark(), Ended { ended: 0, marked: 1 });
        assert_eq!(play.state(), "ESTABLISHED", "nothing happens before the next packet");
        play
    })
}

#[test]
fn a_packet_of_the_client_is_forwarded_as_a_reset_and_the_client_gets_one() {
    for mut play in marked() {
        let question = play.question();
        let what = format!("{} {}", play.method, play.vip);
        let said = play.cluster.ask(json!({ "explain": {
            "in": "wan", "frame": hex(&question.frame((GATEWAY_MAC, WAN_MAC))) } }));
        assert_eq!(play.state(), "ESTABLISHED", "an explanation changes nothing");
        let judged = play.request(&question);
        assert_eq!(judged.verdict, "transmit", "{what}");
        assert_eq!(judged.sent, [play.forwarded(&question), Play::to_client(&question.answer())], "{what}");
        assert_eq!((judged.moved["resets"], judged.moved["originated"]), (1, 1));
        let frames: Vec<_> = judged.sent.iter().map(|(_, frame)| json!(hex(frame))).collect();
        let explained: Vec<_> =
            said["sent"].as_array().expect("frames").iter().map(|sent| &sent["frame"]).collect();
        assert_eq!(explained, frames.iter().collect::<Vec<_>>(), "{said}");
        assert!(said["why"].as_str().is_some_and(|why| why.contains("is reset")), "{said}");
        assert_eq!((&said["rewrite"]["pieces"], &said["caveats"]), (&json!(1), &json!([])));
        assert_eq!((play.state(), play.cluster.total_load()), ("CLOSE".to_owned(), (0, 1)), "{what}");
        // An end whose reset was lost gets another one, also for a packet without data, options or ACK.
        let bare = Segment { options: false, data: Vec::new(), ack: None, ..question.clone() };
        let fin = Segment { fin: true, ..question.clone() };
        for segment in [bare, fin] {
            let judged = play.request(&segment);
            assert_eq!(judged.sent, [play.forwarded(&segment), Play::to_client(&segment.answer())]);
        }
        play.cluster.advance(11.0);
        assert_eq!(play.cluster.total_load(), (0, 0), "{what}");
    }
}

#[test]
fn a_packet_of_the_server_is_forwarded_as_a_reset_and_the_server_gets_one() {
    for mut play in marked().filter(Play::sees_replies) {
        let what = format!("{} {}", play.method, play.vip);
        let answer = Segment { ack: Some(1008), sequence: 9000, options: true, ..play.reply() };
        let answer = Segment { data: vec![0x5a; 1301], ..answer };
        let judged = play.answered(&answer);
        let forwarded = Play::to_client(&answer.cut(play.vip, play.client));
        assert_eq!(judged.sent, [forwarded, Play::to_server(&answer.answer())], "{what}");
        assert_eq!((play.state(), play.cluster.total_load()), ("CLOSE".to_owned(), (0, 1)), "{what}");
        let fresh = Segment { syn: true, fin: true, ack: None, sequence: u32::MAX, ..answer };
        let judged = play.answered(&fresh);
        let forwarded = Play::to_client(&fresh.cut(play.vip, play.client));
        assert_eq!(judged.sent, [forwarded, Play::to_server(&fresh.answer())], "{what}");
    }
}

#[test]
fn a_reset_gets_no_reset_and_a_wrong_checksum_stays_wrong() {
    for mut play in marked() {
        let mut wrong = play.question().frame((GATEWAY_MAC, WAN_MAC));
        let last = wrong.len() - 1;
        wrong[last] ^= 1;
        let judged = play.cluster.inject("wan", &wrong);
        assert_eq!((judged.sent.len(), judged.sent[0].1.last()), (1, wrong.last()));
        assert_eq!(play.state(), "ESTABLISHED");
        let late = Segment { ttl: 1, ..play.question() };
        assert_eq!(play.request(&late).moved.get("resets"), None, "its time to live has run out");
        let reset = Segment { rst: true, options: false, data: Vec::new(), ..play.question() };
        let judged = play.request(&reset);
        assert_eq!((judged.sent, judged.moved.get("resets")), (vec![play.forwarded(&reset)], None));
        assert_eq!(play.state(), "CLOSE");
    }
}

#[test]
fn a_syn_with_the_same_endpoints_begins_a_connection_that_is_not_reset() {
    for mut play in marked() {
        let syn = Segment { syn: true, sequence: 5000, ..Segment::new(play.client, play.vip) };
        let judged = play.request(&syn);
        assert_eq!((judged.sent.len(), judged.moved["connections"]), (1, 1));
        assert_eq!(play.state(), "SYN_RECV");
        let ack = Segment { ack: Some(1), sequence: 5001, ..Segment::new(play.client, play.vip) };
        assert_eq!(play.request(&ack).moved.get("resets"), None);
    }
}

#[test]
fn a_client_whose_server_was_removed_meanwhile_gets_a_reset_though_its_packet_is_dropped() {
    for mut play in marked() {
        let (vip, server) = (play.vip, play.server);
        play.cluster.adm(&format!("-d -t {vip} -r {server}"));
        let question = play.question();
        let judged = play.request(&question);
        assert_eq!(judged.verdict, "drop destination_unavailable");
        assert_eq!(judged.sent, [Play::to_client(&question.answer())]);
    }
}

#[test]
fn resets_have_the_sequence_numbers_of_their_receiver_when_a_proxy_header_shifts_them() {
    let mut play = Play::new("--fullnat", false);
    let (vip, server) = (play.vip, play.server);
    play.cluster.adm(&format!("-D -t {vip}"));
    play.cluster.adm(&format!("-A -t {vip} -s rr --client-address proxy"));
    play.cluster.adm(&format!("-a -t {vip} -r {server} --fullnat"));
    play.client.set_port(40_001);
    play.cluster.advance(1000.0);
    let header = 28;
    let syn = Segment { syn: true, sequence: 999, ..Segment::new(play.client, vip) };
    play.request(&syn);
    let syn_ack = Segment { syn: true, ack: Some(1000), sequence: 8999, ..play.reply() };
    play.answered(&syn_ack);
    play.request(&Segment { data: Vec::new(), options: false, ..play.question() });
    play.answered(&Segment { ack: Some(1000 + header), sequence: 9000, ..play.reply() });
    assert_eq!(play.mark(), Ended { ended: 0, marked: 1 });
    let question = play.question();
    let judged = play.request(&question);
    let shifted = Segment { sequence: 1000 + header, ..question.clone() };
    assert_eq!(judged.sent, [play.forwarded(&shifted), Play::to_client(&question.answer())]);
    let answer = Segment { ack: Some(1000 + header), sequence: 9000, data: vec![7; 99], ..play.reply() };
    let judged = play.answered(&answer);
    let shifted = Segment { ack: Some(1000), ..answer.clone() };
    let forwarded = Play::to_client(&shifted.cut(vip, play.client));
    assert_eq!(judged.sent, [forwarded, Play::to_server(&answer.answer())]);
}

#[test]
fn connections_of_other_protocols_end_at_once_and_are_counted() {
    let mut play = Play::new("-m", false);
    let (vip, server) = (play.vip, play.server);
    play.cluster.adm(&format!("-A -u {vip} -s rr"));
    play.cluster.adm(&format!("-a -u {vip} -r {server} -m"));
    let datagram = xvs::Datagram::new(xvs::Transport::Udp, play.client, vip);
    assert_eq!(play.cluster.from_client(&datagram).verdict, "transmit");
    assert_eq!(play.mark(), Ended { ended: 1, marked: 1 });
    assert_eq!(play.cluster.total_load(), (1, 0));
    assert_eq!(play.cluster.counters()["swept_drained"], 1);
}
