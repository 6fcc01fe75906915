//! The client's address for servers behind FULLNAT: the segments that arrive at the server and at the client.
//!
//! The lab forwards segments, some of which are lost, as two ends of a connection would send them. Not here: a real
//! server that reads the header (`netlab/fullnat.rs`).

use std::net::{IpAddr, SocketAddr};

use etherparse::{EtherType, SlicedPacket, TcpOptionElement, TransportSlice};
use proptest::prelude::*;
use serde_json::json;
use xvs::frames::{Complaint, Complaint6, ethernet};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, server, server_mac, server6,
};
use xvs::{LabCluster, Segment};

const CLIENT_PORT: u16 = 40_000;
const LOCAL_PORT: u16 = 5000;

#[derive(Clone, Copy)]
struct Ends {
    client: IpAddr,
    vip: IpAddr,
    local: IpAddr,
    server: IpAddr,
}

fn ends(v6: bool) -> Ends {
    match v6 {
        false => {
            Ends { client: CLIENT.into(), vip: VIP.into(), local: INSIDE.into(), server: server(1).into() }
        }
        true => Ends {
            client: CLIENT6.into(),
            vip: VIP6.into(),
            local: INSIDE6.into(),
            server: server6(1).into(),
        },
    }
}

struct Play {
    cluster: LabCluster,
    ends: Ends,
}

impl Play {
    fn new(ends: Ends, form: &str) -> Self {
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("laddr add {} --ports {LOCAL_PORT}-{LOCAL_PORT}", ends.local));
        let at = |addr| SocketAddr::new(addr, 80);
        cluster.adm(&format!("-A -t {} -s rr --client-address {form}", at(ends.vip)));
        cluster.adm(&format!("-a -t {} -r {} --fullnat", at(ends.vip), at(ends.server)));
        Self { cluster, ends }
    }

    /// The segment that arrives at the server for a client's segment.
    fn request(&mut self, segment: &Segment) -> Segment {
        let Ends { client, vip, local, server } = self.ends;
        let frame = segment.frame((client, CLIENT_PORT), (vip, 80), (GATEWAY_MAC, WAN_MAC));
        self.pass("wan", &frame, ((local, LOCAL_PORT), (server, 80)))
    }

    /// The segment that arrives at the client for a server's segment.
    fn reply(&mut self, segment: &Segment) -> Segment {
        let Ends { client, vip, local, server } = self.ends;
        let frame = segment.frame((server, 80), (local, LOCAL_PORT), (server_mac(1), LAN_MAC));
        self.pass("lan", &frame, ((vip, 80), (client, CLIENT_PORT)))
    }

    fn pass(&mut self, link: &str, frame: &[u8], between: ((IpAddr, u16), (IpAddr, u16))) -> Segment {
        let judged = self.cluster.inject(link, frame);
        assert_eq!(judged.verdict, "transmit");
        let [(_, sent)] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        Segment::between(sent, between.0, between.1)
    }

    /// Forwards SYN and SYN+ACK.
    fn begin(&mut self, first: u32, reply: u32) {
        self.request(&Segment { syn: true, sequence: first.wrapping_sub(1), ..Segment::default() });
        let accepted = Segment {
            syn: true,
            sequence: reply.wrapping_sub(1),
            ack: Some(first),
            options: vec![TcpOptionElement::MaximumSegmentSize(1460)],
            ..Segment::default()
        };
        let seen = self.reply(&accepted);
        assert_eq!((seen.ack, seen.sequence), (accepted.ack, accepted.sequence));
    }
}

fn header(ends: Ends) -> Vec<u8> {
    let [client, vip] = [(ends.client, CLIENT_PORT), (ends.vip, 80)].map(SocketAddr::from);
    proxy_header(client, vip, 1)
}

/// The header of a client of a virtual endpoint. The transport is 1 of a stream, 2 of datagrams. Source: «The PROXY
/// protocol», section 2.2.
pub(crate) fn proxy_header(client: SocketAddr, vip: SocketAddr, transport: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            header.extend([0x10 | transport, 0, 12]);
            header.extend(client.octets());
            header.extend(vip.octets());
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            header.extend([0x20 | transport, 0, 36]);
            header.extend(client.octets());
            header.extend(vip.octets());
        }
        _ => panic!("one family"),
    }
    header.extend(client.port().to_be_bytes());
    header.extend(vip.port().to_be_bytes());
    header
}

#[test]
fn the_header_is_sent_with_the_end_of_the_handshake_and_again_until_it_is_acknowledged() {
    for ends in [ends(false), ends(true)] {
        let (mut play, header) = (Play::new(ends, "proxy"), header(ends));
        let by = header.len() as u32;
        let (first, reply) = (1000, 9000);
        play.begin(first, reply);
        let ack = Segment { ack: Some(reply), sequence: first, ..Segment::default() };
        for _ in 0..2 {
            let seen = play.request(&ack);
            assert_eq!((seen.sequence, &seen.data), (first, &header));
        }
        let question = Segment { data: b"question".to_vec(), ..ack.clone() };
        let seen = play.request(&question);
        assert_eq!((seen.sequence, seen.data), (first, [&header[..], b"question"].concat()));
        // The server has received the header, but not the question.
        let partial = Segment { ack: Some(first + by), sequence: reply, ..Segment::default() };
        assert_eq!(play.reply(&partial).ack, Some(first));
        let seen = play.request(&question);
        assert_eq!((seen.sequence, &seen.data[..]), (first + by, &b"question"[..]));
        let complete = Segment { ack: Some(first + by + 8), sequence: reply, ..Segment::default() };
        assert_eq!(play.reply(&complete).ack, Some(first + 8));
    }
}

#[test]
fn a_reset_by_the_client_right_after_the_handshake_is_valid_for_the_server_that_has_the_header() {
    for ends in [ends(false), ends(true)] {
        let (mut play, header) = (Play::new(ends, "proxy"), header(ends));
        let (first, reply) = (1000, 9000);
        play.begin(first, reply);
        play.request(&Segment { ack: Some(reply), sequence: first, ..Segment::default() });
        // The server has acknowledged nothing yet, and accepts a reset only with the sequence number that it expects
        // next.
        let reset = Segment { rst: true, ack: Some(reply), sequence: first, ..Segment::default() };
        assert_eq!(play.request(&reset).sequence, first + header.len() as u32);
    }
}

#[test]
fn a_header_that_would_make_a_segment_exceed_the_path_mtu_is_sent_alone() {
    for ends in [ends(false), ends(true)] {
        let (mut play, header) = (Play::new(ends, "proxy"), header(ends));
        let (first, reply) = (1000, 9000);
        play.begin(first, reply);
        // As large as the path MTU: the segment that ends the handshake was lost, and the first header with it.
        let network = if ends.vip.is_ipv4() { 20 } else { 40 };
        let data = vec![0x5a; 1300 - network - 20];
        let full = Segment { ack: Some(reply), sequence: first, data, ..Segment::default() };
        let frame = full.frame((ends.client, CLIENT_PORT), (ends.vip, 80), (GATEWAY_MAC, WAN_MAC));
        let sent = play.cluster.inject("wan", &frame).sent.remove(0).1;
        assert_eq!(sent.len(), 14 + 1300 + header.len());
        let (kind, error) = match ends.server {
            IpAddr::V4(_) => {
                let router = "192.0.2.99".parse().expect("an address");
                (EtherType::IPV4, Complaint::fragmentation_needed(1300).about(&sent[14..], router, 7))
            }
            IpAddr::V6(_) => {
                let router = "2001:db8:2::99".parse().expect("an address");
                (EtherType::IPV6, Complaint6::packet_too_big(1300).about(&sent[14..], router))
            }
        };
        let relayed = play.cluster.inject("lan", &ethernet(server_mac(1), LAN_MAC, kind, &error));
        assert_eq!((relayed.verdict.as_str(), relayed.sent[0].0.as_str()), ("transmit", "wan"));
        assert_eq!(play.request(&full).data, header);
        let acknowledged =
            Segment { ack: Some(first + header.len() as u32), sequence: reply, ..Segment::default() };
        play.reply(&acknowledged);
        assert_eq!(play.request(&full).data, full.data);
    }
}

#[test]
fn selective_acknowledgements_of_the_server_are_shifted_to_the_clients_sequence_numbers() {
    let ends = ends(false);
    let mut play = Play::new(ends, "proxy");
    let (first, reply, by) = (u32::MAX - 100, 9000, 28u32);
    play.begin(first, reply);
    play.request(&Segment { ack: Some(reply), sequence: first, ..Segment::default() });
    let at = |number: u32| first.wrapping_add(number);
    let blocks = |begin: u32, end: u32| {
        let second = Some((at(begin + 500), at(end + 500)));
        TcpOptionElement::SelectiveAcknowledgement((at(begin), at(end)), [second, None, None])
    };
    // Odd positions too: no padding precedes the option.
    for before in [vec![], vec![TcpOptionElement::Noop], vec![TcpOptionElement::Timestamp(1, 2)]] {
        let with = |option| [&before[..], &[option]].concat();
        let segment = Segment {
            ack: Some(at(by)),
            sequence: reply,
            options: with(blocks(by + 100, by + 200)),
            ..Segment::default()
        };
        let seen = play.reply(&segment);
        assert_eq!(seen.ack, Some(first));
        let options: Vec<_> =
            seen.options.into_iter().filter(|option| *option != TcpOptionElement::Noop).collect();
        let wanted = with(blocks(100, 200));
        let wanted: Vec<_> = wanted.into_iter().filter(|option| *option != TcpOptionElement::Noop).collect();
        assert_eq!(options, wanted);
    }
}

#[test]
fn the_mss_leaves_room_for_the_header_and_the_data_of_a_syn_are_removed() {
    for (ends, by) in [(ends(false), 28), (ends(true), 52)] {
        let mut play = Play::new(ends, "proxy");
        let open = Segment { syn: true, sequence: 999, data: vec![7; 100], ..Segment::default() };
        assert!(play.request(&open).data.is_empty());
        let accepted = Segment {
            syn: true,
            ack: Some(1000),
            options: vec![TcpOptionElement::MaximumSegmentSize(1440)],
            ..Segment::default()
        };
        let seen = play.reply(&accepted);
        assert_eq!(seen.options, [TcpOptionElement::MaximumSegmentSize(1440 - by)]);
        let full = Segment {
            sequence: 1000,
            ack: Some(1),
            data: vec![7; usize::from(1440 - by)],
            ..Segment::default()
        };
        assert_eq!(play.request(&full).data.len(), 1440);
        // For a client that exceeds the MSS, the header is sent alone.
        let larger = Segment { data: vec![7; 1440], ..full };
        assert_eq!(play.request(&larger).data, header(ends));
    }
}

#[test]
fn the_option_precedes_all_others_in_the_first_segments_and_is_in_no_later_one() {
    let ends = ends(false);
    let mut play = Play::new(ends, "toa");
    play.begin(1000, 9000);
    let timestamp = TcpOptionElement::Timestamp(1, 2);
    let ack =
        Segment { ack: Some(9000), sequence: 1000, options: vec![timestamp.clone()], ..Segment::default() };
    for data in [&b""[..], b"question", b"question"] {
        let segment = Segment { data: data.to_vec(), ..ack.clone() };
        let frame = segment.frame((ends.client, CLIENT_PORT), (ends.vip, 80), (GATEWAY_MAC, WAN_MAC));
        let sent = play.cluster.inject("wan", &frame).sent.remove(0).1;
        let tcp = &sent[34..];
        // Kind 254, length 8, port, address.
        assert_eq!(tcp[20..28], [254, 8, 0x9c, 0x40, 192, 0, 2, 200]);
        assert_eq!(tcp[28..30], [8, 10], "then the client's own");
        assert_eq!(usize::from(tcp[12] >> 4) * 4, 20 + 8 + 12);
        assert_eq!(tcp[40..], *data);
        let packet = SlicedPacket::from_ethernet(&sent).expect("a frame");
        let Some(TransportSlice::Tcp(slice)) = packet.transport else { panic!("TCP") };
        let (from, to) = (INSIDE.octets(), server(1).octets());
        let sum = slice.to_header().calc_checksum_ipv4_raw(from, to, slice.payload());
        assert_eq!(Ok(slice.checksum()), sum);
    }
    let later = Segment { sequence: 1008, ..ack.clone() };
    assert_eq!(
        play.request(&later).options,
        [timestamp, TcpOptionElement::Noop, TcpOptionElement::Noop][..1]
    );
}

#[test]
fn an_option_without_room_is_omitted_and_counted() {
    let mut play = Play::new(ends(false), "toa");
    play.begin(1000, 9000);
    let full = Segment { sequence: 1000, ack: Some(9000), data: vec![7; 1460], ..Segment::default() };
    let seen = play.request(&full);
    assert_eq!((seen.options.len(), seen.data.len()), (0, 1460));
    assert_eq!(play.cluster.counters().get("toa_no_room"), Some(&1));
}

#[test]
fn the_form_of_the_client_address_is_saved_and_restored() {
    let mut play = Play::new(ends(false), "proxy");
    let saved = play.cluster.adm("-S -n");
    let line = format!("#xvs -E -t {VIP}:80 -s rr --client-address proxy\n");
    assert!(saved.contains(&line), "{saved}");
    let mut other = LabCluster::new();
    let answer = other.ask(json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!(answer["exit"], 0, "{answer}");
    assert_eq!(other.adm("-S -n"), saved);
    let answer = other.ask(json!({ "adm": ["-D", "-t", format!("{VIP}:80"), "--client-address", "toa"] }));
    assert_eq!(answer["exit"], 2, "{answer}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// A client that retransmits data without acknowledgement, and a server that accepts data in order. Both directions
    /// lose segments.
    #[test]
    fn the_server_reads_the_header_and_then_the_clients_bytes_whatever_is_lost(
        v6: bool,
        first: u32,
        sizes in prop::collection::vec(0usize..300, 1..12),
        losses in prop::collection::vec(any::<(bool, bool)>(), 0..60),
    ) {
        let ends = ends(v6);
        let mut play = Play::new(ends, "proxy");
        play.begin(first, 9000);
        let written: Vec<u8> = (0..sizes.iter().sum()).map(|at: usize| at as u8).collect();
        let (mut acknowledged, mut read) = (0usize, Vec::<u8>::new());
        let mut losses = losses.into_iter().chain(std::iter::repeat((false, false)));
        let mut sizes = sizes.into_iter().cycle();
        let mut rounds = 0;
        while acknowledged < written.len() || read.is_empty() {
            let size = sizes.next().unwrap_or(1).max(1).min(written.len() - acknowledged);
            let data = written[acknowledged..acknowledged + size].to_vec();
            let sequence = first.wrapping_add(acknowledged as u32);
            let arrived = play.request(&Segment { ack: Some(9000), sequence, data, ..Segment::default() });
            let (request_lost, reply_lost) = losses.next().unwrap_or_default();
            if !request_lost {
                let at = arrived.sequence.wrapping_sub(first) as usize;
                prop_assert!(at <= read.len(), "a hole before {at}, {} were read", read.len());
                let known = (read.len() - at).min(arrived.data.len());
                prop_assert_eq!(&arrived.data[..known], &read[at..at + known], "retransmitted with the same bytes");
                read.extend(&arrived.data[known..]);
            }
            let ack = first.wrapping_add(read.len() as u32);
            let seen = play.reply(&Segment { ack: Some(ack), sequence: 9000, ..Segment::default() });
            if !reply_lost {
                acknowledged = acknowledged.max(seen.ack.unwrap_or(first).wrapping_sub(first) as usize);
            }
            rounds += 1;
            prop_assert!(rounds < 1000);
        }
        prop_assert_eq!(read, [header(ends), written].concat());
    }
}
