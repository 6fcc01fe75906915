//! The SYN proxy in the lab: what client and server see of each other, byte by byte, in virtual time.
//!
//! Not here: the cookies themselves (`crates/dataplane/src/general_path/syn_proxy/cookie.rs`), and real TCP
//! (`netlab/syn_proxy.rs`).

use std::net::IpAddr;

use etherparse::TcpOptionElement::{
    MaximumSegmentSize, SelectiveAcknowledgementPermitted as Sack, Timestamp, WindowScale,
};
use etherparse::{EtherType, TcpOptionElement};
use serde_json::json;
use xvs::frames::{Complaint, Complaint6, ethernet, hex};
use xvs::lab_cluster::{GATEWAY_MAC, Judged, LAN_MAC, VIP, WAN_MAC, server, server_mac};
use xvs::{LabCluster, Segment};
use xvs_model::protocol::client::Director as _;
use xvs_model::protocol::question::Request;
use xvs_model::report::connection::Filter;

mod play;

use self::play::{
    CLIENT_CLOCK, CLIENT_PORT, Play, SERVER_CLOCK, SERVERS, THEIRS, ack, modern, next, syn, timestamps,
    window, without_padding,
};

#[test]
fn a_syn_is_answered_by_a_cookie_with_a_closed_window_and_nothing_is_stored() {
    for mut play in Play::all("--syn-proxy on") {
        play.cluster.advance(100.0);
        let judged = play.request(&Segment { options: modern(0), data: vec![7; 100], ..syn() });
        let counted = ["rx_packets", "syn_cookies_sent", "tx_packets"].map(|name| (name.to_owned(), 1));
        assert_eq!(judged.moved, counted.into());
        let [sent] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        let answer = play.at_client(sent);
        assert!(answer.syn && answer.data.is_empty());
        assert_eq!((answer.ack, window(&sent.1)), (Some(next()), 0), "data in a SYN are not acknowledged");
        let mss = if play.vip.0.is_ipv4() { 1460 } else { 1440 };
        let wanted = vec![MaximumSegmentSize(mss), Sack, Timestamp(100_000, CLIENT_CLOCK), WindowScale(7)];
        assert_eq!(without_padding(answer.options), wanted);
        assert_eq!((play.cluster.connections(), play.cluster.total_load()), (vec![], (0, 0)));
        // A repeated SYN, and one without options.
        assert_eq!(play.answer(modern(0)).0.sequence, answer.sequence);
        let plain = play.answer(vec![]).0;
        assert_eq!(without_padding(plain.options), [MaximumSegmentSize(mss)]);
        assert_eq!(play.cluster.connections(), [""; 0]);
    }
}

#[test]
fn the_servers_handshake_follows_the_clients_acknowledgement_and_the_clients_window_opens_last() {
    for mut play in Play::all("--syn-proxy on") {
        play.cluster.advance(100.0);
        let (answer, _) = play.answer(modern(0));
        let (ours, _) = timestamps(&answer);
        let opened = play.acknowledge(answer.sequence, vec![Timestamp(CLIENT_CLOCK + 5, ours)]);
        assert_eq!((opened.syn, opened.ack, opened.sequence), (true, None, THEIRS));
        let wanted = vec![MaximumSegmentSize(1440), Sack, Timestamp(CLIENT_CLOCK + 5, 0), WindowScale(7)];
        assert_eq!(without_padding(opened.options), wanted);
        assert_eq!(play.cluster.only_connection().1, "SYN_RECV");
        let options =
            vec![MaximumSegmentSize(1400), Sack, Timestamp(SERVER_CLOCK, CLIENT_CLOCK + 5), WindowScale(9)];
        let (there, back, open) = play.accept(options);
        assert_eq!((there.syn, there.sequence, there.ack), (false, next(), Some(SERVERS.wrapping_add(1))));
        assert_eq!(timestamps(&there), (CLIENT_CLOCK + 5, SERVER_CLOCK));
        let expected = answer.sequence.wrapping_add(1);
        assert_eq!((back.syn, back.sequence, back.ack), (false, expected, Some(next())));
        assert_eq!(timestamps(&back), (ours, CLIENT_CLOCK + 5));
        assert_eq!(open, 64240 >> 7, "the window of a SYN is not scaled, and the client scales this one");
        assert_eq!(play.cluster.only_connection().1, "ESTABLISHED");
        assert_eq!(play.cluster.total_load(), (1, 0));
    }
}

#[test]
fn numbers_timestamps_windows_and_selective_acknowledgements_are_translated_in_both_directions() {
    for mut play in Play::all("--syn-proxy on") {
        play.cluster.advance(100.0);
        let (answer, _) = play.answer(modern(0));
        let (ours, _) = timestamps(&answer);
        play.acknowledge(answer.sequence, vec![Timestamp(CLIENT_CLOCK, ours)]);
        play.accept(vec![Sack, Timestamp(SERVER_CLOCK, CLIENT_CLOCK), WindowScale(9)]);
        let (told, servers) = (answer.sequence.wrapping_add(1), SERVERS.wrapping_add(1));
        for before in [vec![], vec![TcpOptionElement::Noop]] {
            let with = |more: Vec<TcpOptionElement>| [before.clone(), more].concat();
            let reply = Segment {
                sequence: servers.wrapping_add(50),
                ack: Some(next().wrapping_add(8)),
                options: with(vec![Timestamp(SERVER_CLOCK.wrapping_add(9), CLIENT_CLOCK + 1)]),
                data: b"answer".to_vec(),
                ..Segment::default()
            };
            let judged = play.reply(&reply);
            let seen = play.at_client(&judged.sent[0]);
            assert_eq!((seen.sequence, seen.ack), (told.wrapping_add(50), reply.ack));
            assert_eq!((timestamps(&seen), &seen.data), ((ours + 9, CLIENT_CLOCK + 1), &reply.data));
            // The server counts in units of 512 bytes, the client believes in 128.
            assert_eq!(window(&judged.sent[0].1), u16::MAX);
            let block = |start: u32| (start.wrapping_add(50), start.wrapping_add(56));
            let selective = |start| {
                TcpOptionElement::SelectiveAcknowledgement(block(start), [Some(block(start)), None, None])
            };
            let request = Segment {
                sequence: next(),
                ack: Some(told),
                options: with(vec![Timestamp(CLIENT_CLOCK + 2, ours + 9), selective(told)]),
                data: b"question".to_vec(),
                ..Segment::default()
            };
            let judged = play.request(&request);
            let seen = play.at_server(&judged.sent[0]);
            assert_eq!((seen.sequence, seen.ack), (next(), Some(servers)));
            assert_eq!(timestamps(&seen), (CLIENT_CLOCK + 2, SERVER_CLOCK.wrapping_add(9)));
            assert!(seen.options.contains(&selective(servers)), "{seen:?}");
            assert_eq!((window(&judged.sent[0].1), seen.data), (64240, request.data));
        }
        // A reset of the client has no acknowledgement.
        let judged = play.request(&Segment { rst: true, sequence: next(), ..Segment::default() });
        assert_eq!(play.at_server(&judged.sent[0]).ack, None);
        assert_eq!(play.cluster.only_connection().1, "CLOSE");
    }
}

#[test]
fn windows_are_counted_in_the_units_that_each_end_knows() {
    // The scale that the server announces, its field at the client, the client's field at the server.
    for (scale, to_client, to_server) in [
        (Some(6), 32_120, 64_240),
        (Some(7), 64_240, 64_240),
        (Some(14), u16::MAX, 64_240),
        (None, 501, u16::MAX),
    ] {
        let mut play = Play::new(false, "-m", "--syn-proxy on");
        let (answer, _) = play.answer(vec![WindowScale(7)]);
        play.acknowledge(answer.sequence, vec![]);
        play.accept(scale.map(WindowScale).into_iter().collect());
        let reply = Segment { sequence: SERVERS.wrapping_add(1), ack: Some(next()), ..Segment::default() };
        assert_eq!(window(&play.reply(&reply).sent[0].1), to_client, "{scale:?}");
        let request = ack(answer.sequence);
        assert_eq!(window(&play.request(&request).sent[0].1), to_server, "{scale:?}");
    }
    let mut play = Play::new(false, "-m", "--syn-proxy on");
    let cookie = play.connect();
    assert_eq!(window(&play.request(&ack(cookie)).sent[0].1), 64_240, "a client without scale");
}

#[test]
fn a_client_above_its_rate_is_answered_by_cookies_and_connects_by_one_within_its_other_limit() {
    for mut play in [false, true].map(|v6| Play::new(v6, "-m", "")) {
        let vip = std::net::SocketAddr::from(play.vip);
        play.cluster.xvs(&format!("limit set -t {vip} -c 2 -r 1 -b 1 --above syn-proxy"));
        let from = |play: &mut Play, port, segment: &Segment| {
            play.client.1 = port;
            play.request(segment)
        };
        let first = play.request(&syn());
        assert_eq!(play.at_server(&first.sent[0]).sequence, THEIRS, "within the rate there is no proxy");
        // Forged SYNs with the client's address, of which nothing is stored.
        for port in 1..=50 {
            assert_eq!(from(&mut play, port, &syn()).moved["syn_cookies_sent"], 1);
        }
        assert_eq!(play.cluster.connections().len(), 1);
        // The client itself proves two cookies; its third connection is above the other limit.
        for (port, verdict) in [(CLIENT_PORT + 1, "transmit"), (CLIENT_PORT + 2, "drop client_connections")] {
            play.client.1 = port;
            let cookie = play.answer(vec![]).0.sequence;
            assert_eq!(play.request(&ack(cookie)).verdict, verdict);
        }
        let counters = play.cluster.counters();
        assert_eq!((counters["syn_cookies_accepted"], counters.get("drop_client_rate")), (2, None));
        assert_eq!(from(&mut play, CLIENT_PORT + 3, &ack(7)).verdict, "pass", "it proves nothing");
        // A second later its rate allows a connection without a cookie, and its number of them none. The server of the
        // second one has not answered, and gets its SYN again.
        assert_eq!(play.cluster.wait(1.0).len(), 1);
        assert_eq!(from(&mut play, CLIENT_PORT + 3, &syn()).verdict, "drop client_connections");
    }
}

#[test]
fn a_cookie_holds_for_a_minute_and_is_refused_when_it_is_old_or_of_another_client_or_number() {
    let mut play = Play::new(false, "-m", "--syn-proxy on");
    let cookie = play.answer(vec![]).0.sequence;
    play.cluster.advance(127.0);
    let refused = |judged: Judged| {
        assert_eq!((judged.verdict.as_str(), judged.sent), ("drop bad_cookie", vec![]));
        assert_eq!(judged.moved.get("drop_bad_cookie"), Some(&1));
    };
    refused(play.request(&ack(cookie ^ 0x100)));
    refused(play.request(&Segment { sequence: next().wrapping_add(2), ..ack(cookie) }));
    refused(play.request(&Segment { ack: None, ..ack(cookie) }));
    refused(play.request(&Segment { ack: Some(cookie.wrapping_add(1)), ..syn() }));
    play.client.1 += 1;
    refused(play.request(&ack(cookie)));
    play.client.1 -= 1;
    let mut damaged = ack(cookie).frame(play.client, play.vip, (GATEWAY_MAC, WAN_MAC));
    damaged[50] ^= 1;
    refused(play.cluster.inject("wan", &damaged));
    assert_eq!(play.cluster.connections(), [""; 0]);
    play.acknowledge(cookie, vec![]);

    let mut late = Play::new(false, "-m", "--syn-proxy on");
    let cookie = late.answer(vec![]).0.sequence;
    late.cluster.advance(128.0);
    refused(late.request(&ack(cookie)));
    assert_eq!(late.cluster.counters().get("connections"), None);
}

#[test]
fn a_probe_of_the_closed_window_serves_as_the_acknowledgement_that_was_lost() {
    // With the number before the first byte, as Linux sends it, or with the first byte.
    for (sequence, data) in [(THEIRS, vec![]), (next(), vec![b'G'])] {
        let mut play = Play::new(false, "--fullnat", "--syn-proxy on");
        let cookie = play.answer(vec![]).0.sequence;
        let judged = play.request(&Segment { sequence, data, ..ack(cookie) });
        let seen = play.at_server(&judged.sent[0]);
        assert_eq!((seen.syn, seen.sequence, seen.data), (true, THEIRS, vec![]));
        let (there, ..) = play.accept(vec![]);
        assert_eq!(there.sequence, next());
    }
}

#[test]
fn packets_of_the_client_end_at_the_director_until_the_server_has_answered() {
    for mut play in Play::all("--syn-proxy on") {
        let cookie = play.answer(vec![]).0.sequence;
        play.acknowledge(cookie, vec![]);
        for again in [ack(cookie), syn(), Segment { data: vec![1], ..ack(cookie) }] {
            let judged = play.request(&again);
            assert_eq!((judged.verdict.as_str(), judged.sent), ("consumed", vec![]));
        }
        // Nothing that is not the answer to this SYN.
        for other in [
            Segment { ack: Some(next()), ..Segment::default() },
            Segment { syn: true, ..Segment::default() },
            Segment { rst: true, ack: Some(7), ..Segment::default() },
        ] {
            let judged = play.reply(&other);
            assert_eq!((judged.verdict.as_str(), judged.sent), ("consumed", vec![]));
        }
        assert_eq!((play.cluster.connections().len(), play.cluster.counters()["connections"]), (1, 1));
        let (_, back, _) = play.accept(vec![]);
        assert_eq!(back.sequence, cookie.wrapping_add(1));
    }
}

#[test]
fn a_server_that_refuses_resets_the_client_with_the_number_that_the_client_expects() {
    for mut play in Play::all("--syn-proxy on") {
        let cookie = play.answer(vec![]).0.sequence;
        play.acknowledge(cookie, vec![]);
        let judged = play.reply(&Segment { rst: true, ack: Some(next()), ..Segment::default() });
        let seen = play.at_client(&judged.sent[0]);
        assert_eq!((seen.rst, seen.sequence), (true, cookie.wrapping_add(1)));
        assert_eq!(play.cluster.only_connection().1, "CLOSE");
    }
}

#[test]
fn a_silent_server_gets_three_syns_and_then_the_client_is_reset() {
    for mut play in Play::all("--syn-proxy on") {
        let (answer, _) = play.answer(modern(0));
        let (ours, _) = timestamps(&answer);
        let first = play.acknowledge(answer.sequence, vec![Timestamp(CLIENT_CLOCK, ours)]);
        let originated = |play: &mut Play| play.cluster.counters().get("originated").copied().unwrap_or(0);
        for (quiet, count) in [(0.9, 1), (1.6, 2)] {
            play.cluster.advance(quiet);
            let sent = play.cluster.wait(0.4);
            assert_eq!(play.at_server(&sent[0]), first);
            assert_eq!((sent.len(), originated(&mut play)), (1, count));
        }
        play.cluster.advance(3.6);
        let sent = play.cluster.wait(0.5);
        let [reset] = &sent[..] else { panic!("one frame: {sent:?}") };
        let seen = play.at_client(reset);
        assert_eq!((seen.rst, seen.sequence), (true, answer.sequence.wrapping_add(1)));
        assert_eq!((play.cluster.connections(), play.cluster.total_load()), (vec![], (0, 0)));
        assert_eq!(play.cluster.counters()["resets"], 1);
    }
}

#[test]
fn a_server_that_still_has_a_former_connection_of_the_client_is_reset_there_and_then_accepts() {
    for mut play in Play::all("--syn-proxy on") {
        let (answer, _) = play.answer(modern(0));
        let (ours, _) = timestamps(&answer);
        let first = play.acknowledge(answer.sequence, vec![Timestamp(CLIENT_CLOCK, ours)]);
        // RFC 5961 §4.2: an ACK of what it has received before.
        let judged = play.reply(&Segment { sequence: 4711, ack: Some(815), ..Segment::default() });
        let [reset] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        let seen = play.at_server(reset);
        assert_eq!((judged.verdict.as_str(), judged.moved["resets"]), ("consumed", 1));
        assert_eq!((seen.rst, seen.syn, seen.sequence, seen.ack), (true, false, 815, None));
        let sent = play.cluster.wait(1.2);
        assert_eq!((sent.len(), play.at_server(&sent[0])), (1, first));
        play.accept(vec![]);
        assert_eq!(play.cluster.only_connection().1, "ESTABLISHED");
    }
}

#[test]
fn a_server_that_answers_the_second_syn_ends_the_repetition() {
    let mut play = Play::new(false, "-m", "--syn-proxy on");
    let cookie = play.answer(vec![]).0.sequence;
    play.acknowledge(cookie, vec![]);
    assert_eq!(play.cluster.wait(1.2).len(), 1);
    play.accept(vec![]);
    play.cluster.advance(20.0);
    assert_eq!(play.cluster.only_connection().1, "ESTABLISHED");
}

#[test]
fn without_a_usable_server_a_syn_gets_the_usual_error_and_an_acknowledgement_a_reset() {
    let mut play = Play::new(false, "-m", "--syn-proxy on");
    let cookie = play.answer(vec![]).0.sequence;
    play.cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -m -w 0", server(1)));
    assert_eq!(play.request(&syn()).verdict, "drop no_destination");
    let judged = play.request(&ack(cookie));
    assert_eq!(judged.verdict, "drop no_destination");
    let reset = judged.sent.iter().find(|(_, frame)| frame[23] == 6).expect("a reset");
    let seen = play.at_client(reset);
    assert_eq!((seen.rst, seen.sequence), (true, cookie.wrapping_add(1)));
}

#[test]
fn an_icmp_error_about_a_reply_quotes_the_number_that_the_server_has_sent() {
    for mut play in Play::all("--syn-proxy on") {
        play.connect();
        let sequence = SERVERS.wrapping_add(1);
        let reply = Segment { sequence, ack: Some(next()), data: vec![7; 1200], ..Segment::default() };
        let sent = play.reply(&reply).sent.remove(0).1;
        let (kind, error) = match play.client.0 {
            IpAddr::V4(_) => {
                let router = "192.0.2.130".parse().expect("an address");
                (EtherType::IPV4, Complaint::fragmentation_needed(1000).about(&sent[14..], router, 7))
            }
            IpAddr::V6(_) => {
                let router = "2001:db8:c::99".parse().expect("an address");
                (EtherType::IPV6, Complaint6::packet_too_big(1280).about(&sent[14..], router))
            }
        };
        let judged = play.cluster.inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, kind, &error));
        let [(link, frame)] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
        let quoted = if play.client.0.is_ipv4() { 14 + 20 + 8 + 20 } else { 14 + 40 + 8 + 40 };
        let number = u32::from_be_bytes(frame[quoted + 4..quoted + 8].try_into().expect("four bytes"));
        assert_eq!((link.as_str(), number), ("lan", sequence));
    }
}

#[test]
fn an_error_of_the_director_about_a_reply_quotes_the_number_that_the_server_has_sent() {
    let mut play = Play::new(true, "-m", "--syn-proxy on");
    play.connect();
    let sequence = SERVERS.wrapping_add(1);
    let reply = Segment { sequence, ack: Some(next()), ..Segment::default() };
    let mut frame = reply.frame(play.server, play.seen, (server_mac(1), LAN_MAC));
    // The hop limit.
    frame[21] = 1;
    let judged = play.cluster.inject("lan", &frame);
    assert_eq!((judged.verdict.as_str(), judged.sent[0].0.as_str()), ("drop ttl_expired", "lan"));
    let quoted = 14 + 40 + 8;
    assert_eq!(judged.sent[0].1[quoted..quoted + 60], frame[14..74], "as it was received");
}

#[test]
fn the_proxy_protocols_header_is_in_the_acknowledgement_that_completes_the_servers_handshake() {
    let mut play = Play::new(false, "--fullnat", "--client-address proxy --syn-proxy on");
    let (answer, _) = play.answer(vec![]);
    assert_eq!(without_padding(answer.options), [MaximumSegmentSize(1460 - 28)]);
    play.acknowledge(answer.sequence, vec![]);
    let (there, ..) = play.accept(vec![]);
    assert_eq!((there.sequence, there.data.len()), (next(), 28));
    assert_eq!(there.data[..4], *b"\r\n\r\n");
    let known = next().wrapping_add(28);
    let reply = Segment { sequence: SERVERS.wrapping_add(1), ack: Some(known), ..Segment::default() };
    let judged = play.reply(&reply);
    let seen = play.at_client(&judged.sent[0]);
    assert_eq!((seen.sequence, seen.ack), (answer.sequence.wrapping_add(1), Some(next())));
    let judged = play.request(&Segment { data: b"question".to_vec(), ..ack(answer.sequence) });
    let seen = play.at_server(&judged.sent[0]);
    assert_eq!((seen.sequence, seen.ack), (known, Some(SERVERS.wrapping_add(1))));
}

#[test]
fn the_clients_address_in_an_option_is_in_the_first_segments() {
    let mut play = Play::new(false, "--fullnat", "--client-address toa --syn-proxy on");
    let cookie = play.answer(vec![]).0.sequence;
    play.acknowledge(cookie, vec![]);
    let segment = Segment { syn: true, sequence: SERVERS, ack: Some(next()), ..Segment::default() };
    let judged = play.reply(&segment);
    let frame = &judged.sent[0].1;
    assert_eq!(frame[54..62], [254, 8, 0x9c, 0x40, 192, 0, 2, 200]);
}

#[test]
fn an_automatic_proxy_lets_syns_pass_while_memory_is_not_short() {
    let mut play = Play::new(false, "-m", "--syn-proxy auto");
    let judged = play.request(&syn());
    assert!(play.at_server(&judged.sent[0]).syn);
    play.client.1 += 1;
    assert_eq!(play.request(&ack(7)).verdict, "pass", "an acknowledgement of nothing, as ever");
}

#[test]
fn a_cookie_that_was_sent_is_accepted_after_the_proxy_became_automatic() {
    let mut play = Play::new(false, "-m", "--syn-proxy on");
    let cookie = play.answer(vec![]).0.sequence;
    play.cluster.adm(&format!("-E -t {VIP}:80 -s rr --syn-proxy auto"));
    play.acknowledge(cookie, vec![]);
    play.accept(vec![]);
}

#[test]
fn each_end_of_a_connection_that_is_drained_is_reset_with_the_numbers_that_it_knows() {
    for from_client in [true, false] {
        let mut play = Play::new(false, "--fullnat", "--syn-proxy on");
        let (told, servers) = (play.connect().wrapping_add(1), SERVERS.wrapping_add(1));
        let wanted = Request::ResetConnections(Filter::default());
        play.cluster.lab().director.call(wanted).expect("it is marked");
        let judged = match from_client {
            true => play.request(&Segment { sequence: next(), ack: Some(told), ..Segment::default() }),
            false => play.reply(&Segment { sequence: servers, ack: Some(next()), ..Segment::default() }),
        };
        let on = |link: &str| judged.sent.iter().find(|(sent, _)| sent == link).expect("a reset").clone();
        let (there, back) = (play.at_server(&on("lan")), play.at_client(&on("wan")));
        assert_eq!((there.rst, there.sequence), (true, next()));
        assert_eq!((back.rst, back.sequence), (true, told));
    }
}

#[test]
fn other_methods_and_protocols_are_refused_with_the_proxy() {
    let mut cluster = LabCluster::new();
    let refused = |cluster: &mut LabCluster, line: &str, why: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let answer = cluster.ask(json!({ "adm": words }));
        assert_ne!(answer["exit"], 0, "{line}");
        let text = answer["stderr"].as_str().unwrap_or_default().to_owned();
        assert!(text.contains(why), "{line}: {text}");
    };
    refused(
        &mut cluster,
        &format!("-A -u {VIP}:53 -s rr --syn-proxy on"),
        "another protocol than TCP is not supported",
    );
    refused(&mut cluster, &format!("-A -t {VIP}:80 -s rr --syn-proxy yes"), "takes off, auto or on");
    let add = |method: &str| format!("-a -t {VIP}:80 -r {}:80 {method}", server(1));
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr --syn-proxy auto"), &add("-m")]);
    for method in ["-g", "-i"] {
        refused(&mut cluster, &add(method), "replies do not pass the director is not supported");
        refused(
            &mut cluster,
            &add(method).replacen("-a", "-e", 1),
            "replies do not pass the director is not supported",
        );
    }
    cluster.configure(&[&format!("-E -t {VIP}:80 -s rr"), &add("-g").replacen("-a", "-e", 1)]);
    refused(
        &mut cluster,
        &format!("-E -t {VIP}:80 -s rr --syn-proxy on"),
        "replies do not pass the director is not supported",
    );
}

#[test]
fn the_proxy_of_a_service_is_saved_and_restored() {
    let mut play = Play::new(false, "-m", "--client-address toa --syn-proxy on");
    let saved = play.cluster.adm("-S -n");
    let line = format!("#xvs -E -t {VIP}:80 -s rr --client-address toa --syn-proxy on\n");
    assert!(saved.contains(&line), "{saved}");
    let mut other = LabCluster::new();
    let answer = other.ask(json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!(answer["exit"], 0, "{answer}");
    assert_eq!(other.adm("-S -n"), saved);
}

#[test]
fn another_director_translates_as_the_first_one_does() {
    let roles = |role: &'static str| {
        Play::all("--syn-proxy on").map(move |mut play| {
            play.cluster.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7"));
            play
        })
    };
    for (mut master, mut backup) in roles("master").zip(roles("backup")) {
        let (answer, _) = master.answer(modern(0));
        let (ours, _) = timestamps(&answer);
        master.acknowledge(answer.sequence, vec![Timestamp(CLIENT_CLOCK, ours)]);
        master.accept(vec![Sack, Timestamp(SERVER_CLOCK, CLIENT_CLOCK), WindowScale(9)]);
        let request = Segment {
            options: vec![Timestamp(CLIENT_CLOCK, ours)],
            data: b"question".to_vec(),
            ..ack(answer.sequence)
        };
        for _ in 0..2 {
            master.request(&request);
        }
        let told = master.cluster.ask(json!({ "advance": 4.0 }))["sync"].clone();
        for message in told.as_array().expect("a master daemon runs") {
            backup.cluster.ok(json!({ "sync": message["payload"], "link": "lan" }));
        }
        let reply = Segment {
            sequence: SERVERS.wrapping_add(1),
            ack: Some(next().wrapping_add(8)),
            options: vec![Timestamp(SERVER_CLOCK + 1, CLIENT_CLOCK)],
            ..Segment::default()
        };
        assert_eq!(master.request(&request).sent, backup.request(&request).sent);
        let [here, there] = [&mut master, &mut backup].map(|play| play.reply(&reply).sent);
        assert_eq!((here.len(), &here), (1, &there));
    }
}

#[test]
fn each_step_is_explained_as_it_happens() {
    let mut play = Play::new(false, "--fullnat", "--syn-proxy on");
    let explain = |play: &mut Play, segment: &Segment, from_client: bool| {
        let (link, frame) = match from_client {
            true => ("wan", segment.frame(play.client, play.vip, (GATEWAY_MAC, WAN_MAC))),
            false => ("lan", segment.frame(play.server, play.seen, (server_mac(1), LAN_MAC))),
        };
        let report = play.cluster.ask(json!({ "explain": { "in": link, "frame": hex(&frame) } }));
        let text = |name: &str| report[name].as_str().unwrap_or_default().to_owned();
        (text("verdict"), text("why"), report["sent"].as_array().map_or(0, Vec::len))
    };
    let (verdict, why, sent) = explain(&mut play, &syn(), true);
    assert_eq!((verdict.as_str(), sent), ("transmit", 1));
    assert!(why.contains("answered by a SYN cookie"), "{why}");
    let cookie = play.answer(vec![]).0.sequence;
    let (verdict, why, _) = explain(&mut play, &ack(cookie), true);
    assert!(verdict == "transmit" && why.contains("cookie is right"), "{verdict}: {why}");
    let (verdict, why, _) = explain(&mut play, &ack(cookie + 9), true);
    assert!(verdict == "drop" && why.contains("acknowledges none"), "{verdict}: {why}");
    assert_eq!(play.cluster.connections(), [""; 0]);
    play.acknowledge(cookie, vec![]);
    let (verdict, why, _) = explain(&mut play, &ack(cookie), true);
    assert!(verdict == "consumed" && why.contains("waits for the SYN+ACK"), "{verdict}: {why}");
    let accepted = Segment { syn: true, sequence: SERVERS, ack: Some(next()), ..Segment::default() };
    let (verdict, why, sent) = explain(&mut play, &accepted, false);
    assert_eq!((verdict.as_str(), sent), ("transmit", 2));
    assert!(why.contains("the client is told"), "{why}");
    play.accept(vec![]);
}
