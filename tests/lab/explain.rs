//! `xvs explain` in the lab: its answer for each scheduler, method and reason, and what it refuses.
//!
//! The answer is compared with the result that the configuration requires, and with the result that the packet then
//! gets. Not here: that they always agree, and that explaining changes nothing (`explain_agrees.rs`).

use serde_json::{Value, json};
use xvs::frames::{ACK, Complaint, SYN, ethernet, hex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, NOWHERE, SILENT, VIP, VIP6, WAN_MAC, at, server, server_mac,
};
use xvs::{Datagram, LabCluster, Transport};
use xvs_model::report::capture::CaptureRequest;

/// The explanation of a packet.
#[track_caller]
fn explain(cluster: &mut LabCluster, question: Value) -> Value {
    let report = cluster.ask(json!({ "explain": question.clone() }));
    assert!(report.get("verdict").is_some(), "{question}: {report}");
    report
}

/// The explanation of a client's SYN to a port of the virtual address.
#[track_caller]
fn syn(cluster: &mut LabCluster, port: u16) -> Value {
    explain(cluster, json!({ "proto": "tcp", "from": at(CLIENT, 4001), "to": at(VIP, port) }))
}

/// The output of `xvs explain`.
fn printed(cluster: &mut LabCluster, line: &str) -> (u64, String, String) {
    let words: Vec<_> = ["explain"].into_iter().chain(line.split_whitespace()).collect();
    let answer = cluster.ask(json!({ "xvs": words }));
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (answer["exit"].as_u64().expect("a code"), text("stdout"), text("stderr"))
}

fn connect(cluster: &mut LabCluster, port: u16) {
    let judged = cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, port), at(VIP, 80)));
    assert_eq!(judged.verdict, "transmit");
}

/// For each candidate the number of its server, its standing and its figures.
fn standings(report: &Value) -> Vec<(u8, String, String)> {
    let candidates = report["choice"]["candidates"].as_array().expect("candidates");
    let one = |candidate: &Value| {
        let text = |name: &str| candidate[name].as_str().expect("a text").to_owned();
        let server: std::net::SocketAddr = text("server").parse().expect("an endpoint");
        let number = (1..=9).find(|number| server.ip() == server_addr(*number)).expect("a server");
        let figures = candidate["figures"].as_array().expect("figures").iter();
        let figures =
            figures.map(|figure| format!("{} {}", figure["name"].as_str().expect("a name"), figure["value"]));
        (number, text("standing"), figures.collect::<Vec<_>>().join(", "))
    };
    candidates.iter().map(one).collect()
}

fn server_addr(number: u8) -> std::net::IpAddr {
    server(number).into()
}

/// A candidate's server, standing and figures.
type Expected = (u8, &'static str, &'static str);

/// A service with three servers of weights 1, 2 and 3. The first has a connection.
fn loaded(options: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w 1", server(1)));
    connect(&mut cluster, 3001);
    for number in 2..=3 {
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w {number}", server(number)));
    }
    cluster.adm(&format!("-E -t {VIP}:80 -s {options}"));
    cluster
}

#[test]
fn each_scheduler_shows_the_numbers_by_which_it_then_chooses() {
    let cases: &[(&str, &str, &[Expected])] = &[
        (
            "lc",
            "lowest 256",
            &[
                (3, "chosen", "overhead 0.0"),
                (2, "passed_over", "overhead 0.0"),
                (1, "passed_over", "overhead 256.0"),
            ],
        ),
        (
            "wlc",
            "inactive connections) ÷ weight",
            &[
                (3, "chosen", "overhead 0.0, ratio 0.0"),
                (2, "passed_over", "overhead 0.0, ratio 0.0"),
                (1, "passed_over", "overhead 256.0, ratio 256.0"),
            ],
        ),
        (
            "sed",
            "(active connections + 1) ÷ weight",
            &[
                (3, "chosen", "expected 1.0, ratio 0.3333333333333333"),
                (2, "passed_over", "expected 1.0, ratio 0.5"),
                (1, "passed_over", "expected 2.0, ratio 2.0"),
            ],
        ),
        (
            "nq",
            "idle",
            &[
                (3, "chosen", "expected 1.0, ratio 0.3333333333333333, idle 1.0"),
                (2, "passed_over", "expected 1.0, ratio 0.5, idle 1.0"),
                (1, "passed_over", "expected 2.0, ratio 2.0"),
            ],
        ),
        ("fo", "highest weight", &[(3, "chosen", ""), (2, "passed_over", ""), (1, "passed_over", "")]),
        (
            "ovf",
            "with room",
            &[(3, "chosen", "room 4.0"), (2, "passed_over", "room 3.0"), (1, "passed_over", "room 1.0")],
        ),
        (
            "wrr",
            "threshold, 3 now",
            &[(3, "chosen", "turn 1.0"), (2, "passed_over", "turn 2.0"), (1, "passed_over", "turn 3.0")],
        ),
        (
            "lblc",
            "remembered",
            &[
                (3, "chosen", "overhead 0.0, ratio 0.0"),
                (2, "passed_over", "overhead 0.0, ratio 0.0"),
                (1, "passed_over", "overhead 256.0, ratio 256.0"),
            ],
        ),
        (
            "lblcr",
            "among those remembered",
            &[
                (3, "chosen", "overhead 0.0, ratio 0.0"),
                (2, "passed_over", "overhead 0.0, ratio 0.0"),
                (1, "passed_over", "overhead 256.0, ratio 256.0"),
            ],
        ),
    ];
    for (scheduler, rule, expected) in cases {
        let mut cluster = loaded(scheduler);
        let report = syn(&mut cluster, 80);
        assert_eq!(report["choice"]["scheduler"], *scheduler);
        let shown = report["choice"]["rule"].as_str().expect("a rule");
        assert!(shown.contains(rule), "{scheduler}: {shown}");
        let expected = expected.iter().map(|(number, is, by)| (*number, (*is).to_owned(), (*by).to_owned()));
        assert_eq!(standings(&report), expected.collect::<Vec<_>>(), "{scheduler}");
        goes_to_the_chosen(&mut cluster, &report);
    }
}

/// Injects the explained packet, which must go to the chosen server.
#[track_caller]
fn goes_to_the_chosen(cluster: &mut LabCluster, report: &Value) {
    let chosen = standings(report).into_iter().find(|(_, standing, _)| standing == "chosen").expect("one");
    let judged = cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4001), at(VIP, 80)));
    assert_eq!(judged.sent[0].1[..6], server_mac(chosen.0), "{report:#}");
}

#[test]
fn schedulers_with_turns_or_hashes_show_the_next_turn_and_the_bucket() {
    let mut cluster = loaded("rr");
    let report = syn(&mut cluster, 80);
    // The scheduler's position is the destination chosen last, which is now the last in order.
    let turns: Vec<_> =
        standings(&report).into_iter().map(|(number, _, figures)| (number, figures)).collect();
    let turn = |turn: u8| format!("turn {turn}.0");
    assert_eq!(turns, [(3, turn(1)), (2, turn(2)), (1, turn(3))]);
    goes_to_the_chosen(&mut cluster, &report);
    for (scheduler, place, rule) in
        [("dh", "bucket", "destination address"), ("sh", "bucket", "source address"), ("mh", "slot", "slot")]
    {
        let mut cluster = loaded(scheduler);
        let report = syn(&mut cluster, 80);
        assert!(report["choice"]["rule"].as_str().expect("a rule").contains(rule), "{report:#}");
        let with_place: Vec<_> =
            standings(&report).into_iter().filter(|(.., figures)| figures.starts_with(place)).collect();
        assert_eq!(with_place.len(), 1, "{report:#}");
        assert_eq!(with_place[0].1, "chosen");
        goes_to_the_chosen(&mut cluster, &report);
    }
    let report = syn(&mut loaded("none"), 80);
    assert_eq!((&report["verdict"], &report["reason"]), (&json!("drop"), &json!("no_destination")));
    let mut cluster = loaded("twos");
    let report = syn(&mut cluster, 80);
    assert_eq!(report["choice"]["certainty"], "chance");
    assert_eq!(report["caveats"][0]["name"], "drawn");
}

#[test]
fn the_server_cached_for_an_address_is_shown_and_explain_caches_none() {
    for scheduler in ["lblc", "lblcr"] {
        let mut cluster = loaded(scheduler);
        let remembered = |report: &Value| {
            let all = standings(report).into_iter().filter(|(.., figures)| figures.contains("remembered"));
            all.map(|(number, ..)| number).collect::<Vec<_>>()
        };
        for _ in 0..2 {
            assert!(remembered(&syn(&mut cluster, 80)).is_empty(), "an explanation caches nothing");
        }
        connect(&mut cluster, 3002);
        let report = syn(&mut cluster, 80);
        assert_eq!(remembered(&report), [3], "{report:#}");
        goes_to_the_chosen(&mut cluster, &report);
    }
}

#[test]
fn quiescent_and_overloaded_servers_are_distinguished_and_if_all_are_the_client_gets_an_error() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr"),
        &format!("-a -t {VIP}:80 -r {}:80 -m -w 1 -x 1", server(1)),
        &format!("-a -t {VIP}:80 -r {}:80 -m -w 0", server(2)),
    ]);
    connect(&mut cluster, 3001);
    let report = syn(&mut cluster, 80);
    let shown: Vec<_> =
        standings(&report).into_iter().map(|(number, standing, _)| (number, standing)).collect();
    assert_eq!(shown, [(2, "quiescent".to_owned()), (1, "overloaded".to_owned())]);
    assert_eq!(report["reason"], "no_destination");
    assert_eq!(report["sent"][0]["packet"]["protocol"], "ICMP", "the error that the client gets");
    let line = format!("--proto tcp --from {} --to {VIP}:80", at(CLIENT, 4001));
    let (exit, text, _) = printed(&mut cluster, &line);
    assert_eq!(exit, 0);
    assert!(report["advice"].as_str().is_some_and(|advice| advice.contains("raise a weight")), "{report:#}");
    for part in
        ["weight 0: quiescent", "overloaded: 1 of 1 connections", "dropped (no_destination): ", "reply "]
    {
        assert!(text.contains(part), "{part}:\n{text}");
    }
}

#[test]
fn each_method_shows_its_changes_and_the_interface_the_packet_leaves_by() {
    let methods: &[(&str, &str, Value)] = &[
        ("-m", "Masq", json!({ "to": at(server(1), 8080), "pieces": 1, "ttl": 63 })),
        ("-g", "Route", json!({ "pieces": 1, "ttl": 63 })),
        ("-i", "Tunnel", json!({ "tunnel": { "kind": "ipip", "from": INSIDE, "to": server(1) } })),
        (
            "-i --tun-type gre",
            "Tunnel",
            json!({ "tunnel": { "kind": "gre", "from": INSIDE, "to": server(1) } }),
        ),
        (
            "-i --tun-type gue --tun-port 6080",
            "Tunnel",
            json!({ "tunnel": { "kind": "gue", "from": INSIDE, "to": server(1) } }),
        ),
        ("--fullnat", "FullNat", json!({ "from": at(INSIDE, 5000), "to": at(server(1), 8080) })),
    ];
    for (words, listed, expected) in methods {
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("laddr add {INSIDE} --ports 5000-5000"));
        cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:8080 {words}", server(1)));
        let report = syn(&mut cluster, 80);
        assert_eq!(report["verdict"], "transmit", "{report:#}");
        let rewrite = &report["rewrite"];
        assert_eq!(rewrite["method"], *listed);
        for (name, value) in expected.as_object().expect("an object") {
            assert_eq!(&rewrite[name], value, "{words}: {name}: {rewrite}");
        }
        let way = json!({ "to": server(1), "via": server(1), "interface": "lan", "mac": "02:00:00:00:02:0b", "mtu": 1500 });
        assert_eq!(report["way"], way, "{words}");
        let caveats = report["caveats"].as_array().expect("a list").len();
        assert_eq!(caveats, usize::from(*listed == "FullNat"), "only the local port may differ");
        let connection = json!(["made", "SYN_RECV", *listed, 60_000]);
        let made = &report["connection"];
        assert_eq!(
            json!([made["origin"], made["state"], made["method"], made["expires_millis"]]),
            connection
        );
    }
}

#[test]
fn a_connection_is_shown_as_it_is_for_packets_of_either_direction() {
    let mut cluster = loaded("rr");
    connect(&mut cluster, 3002);
    cluster.advance(10.0);
    let ack = json!({ "proto": "tcp", "from": at(CLIENT, 3002), "to": at(VIP, 80), "flags": "ack" });
    let report = explain(&mut cluster, ack);
    assert_eq!(report["direction"], "inbound");
    assert_eq!(json!([report["met"]["state"], report["met"]["expires_millis"]]), json!(["SYN_RECV", 50_000]));
    assert_eq!(report["connection"]["origin"], "found");
    assert!(report.get("choice").is_none(), "the scheduler does not choose");
    assert_eq!(report["service"], format!("TCP {VIP}:80"));
    let answers =
        json!({ "proto": "tcp", "from": at(server(3), 80), "to": at(CLIENT, 3002), "flags": "syn,ack" });
    let report = explain(&mut cluster, answers);
    assert_eq!(json!([report["direction"], report["interface"]]), json!(["outbound", "lan"]));
    assert_eq!(report["rewrite"]["from"], json!(at(VIP, 80)));
    assert_eq!(json!([report["way"]["to"], report["way"]["via"]]), json!([CLIENT, "192.0.2.126"]));
    assert_eq!(cluster.connections().iter().filter(|row| row.contains("00:50 SYN_RECV")).count(), 2);
}

#[test]
fn explain_names_the_persistence_template_that_decides_or_is_made() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s rr -p 300 -M 255.255.255.0"),
        &format!("-a -t {VIP}:80 -r {}:80 -m", server(1)),
        &format!("-a -t {VIP}:80 -r {}:80 -m", server(2)),
        &format!("-A -u {VIP}:5060 -s rr -p 60 --pe sip"),
        &format!("-a -u {VIP}:5060 -r {}:5060 -m", server(1)),
    ]);
    let report = syn(&mut cluster, 80);
    let template = |report: &Value| {
        let template = &report["template"];
        json!([template["origin"], template["client"], template["dest"], template["expires_millis"]])
    };
    assert_eq!(template(&report), json!(["made", "192.0.2.0:0", at(server(2), 80), 300_000]));
    assert!(report.get("choice").is_some());
    connect(&mut cluster, 3001);
    cluster.advance(100.0);
    let report = syn(&mut cluster, 80);
    assert_eq!(template(&report), json!(["found", "192.0.2.0:0", at(server(2), 80), 300_000]));
    assert!(report.get("choice").is_none(), "the template decides");
    let packet = Datagram::new(Transport::Udp, at(CLIENT, 4001), at(VIP, 5060));
    let data = b"INVITE sip:b@h SIP/2.0\r\nCall-ID: abc\r\n\r\n".to_vec();
    let frame = hex(&Datagram { data, ..packet.clone() }.frame(GATEWAY_MAC, WAN_MAC));
    let report = cluster.ask(json!({ "explain": "wan", "frame": frame }));
    assert_eq!(report["template"]["call_id"], "abc", "{report:#}");
    let frame = hex(&packet.frame(GATEWAY_MAC, WAN_MAC));
    let report = explain(&mut cluster, json!({ "frame": frame }));
    assert_eq!(json!([report["interface"], report["reason"]]), json!(["wan", "no_call_id"]));
}

#[test]
fn a_mark_is_shown_with_the_rule_that_set_it() {
    let mut cluster = LabCluster::new();
    for port in ["80", "443"] {
        cluster.xvs(&format!("mark add -d {VIP} -p tcp --dport {port} --set-mark 7"));
    }
    cluster.configure(&["-A -f 7 -s rr", &format!("-a -f 7 -r {}:0 -m", server(1))]);
    let report = syn(&mut cluster, 443);
    assert_eq!(json!([report["mark"], report["service"]]), json!([7, "FWM 7"]));
    let rule = report["marked_by"].as_str().expect("a rule");
    assert!(rule.contains("198.51.100.1/32") && rule.ends_with("to port 443: mark 7"), "{rule}");
    let report = syn(&mut cluster, 444);
    assert_eq!(json!([report["mark"], report["verdict"]]), json!([0, "pass"]));
}

#[test]
fn drops_show_their_reason_and_the_next_step_and_passed_packets_their_reason() {
    let mut cluster = LabCluster::with_mtu(1400);
    for (port, dest, method) in [
        (80, at(server(1), 80), "-m"),
        (81, at(SILENT, 81), "-m"),
        (82, at(NOWHERE, 82), "-m"),
        (83, at(server(1), 83), "--fullnat"),
    ] {
        cluster.configure(&[
            &format!("-A -t {VIP}:{port} -s rr"),
            &format!("-a -t {VIP}:{port} -r {dest} {method}"),
        ]);
    }
    connect(&mut cluster, 3001);
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
    cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -m", server(2)));
    let to = |port: u16| json!({ "proto": "tcp", "from": at(CLIENT, 4001), "to": at(VIP, port) });
    let with = |mut question: Value, name: &str, value: Value| {
        question[name] = value;
        question
    };
    let cases = [
        (to(81), "no_neighbour", "ip neigh"),
        (to(82), "no_route", "ip route"),
        (to(83), "no_local_address", "xvs laddr add"),
        (with(to(80), "ttl", json!(1)), "ttl_expired", "ICMP error"),
        (with(to(80), "length", json!(1400)), "too_big", "the MTU"),
        (
            with(with(to(80), "from", json!(at(CLIENT, 3001))), "flags", json!("ack")),
            "destination_unavailable",
            "add it back",
        ),
    ];
    for (question, reason, advice) in cases {
        let report = explain(&mut cluster, question);
        assert_eq!(report["reason"], reason, "{report:#}");
        assert!(report["why"].as_str().expect("a sentence").contains(advice), "{report:#}");
    }
    for (question, why) in [
        (to(90), "no service"),
        (with(to(80), "flags", json!("ack")), "without SYN"),
        (with(to(80), "from", json!("192.0.2.200:20")), "port 20"),
        (
            json!({ "proto": "tcp", "from": "[2001:db8:c::1]:9", "to": at(VIP6, 80) }),
            "no service of its family",
        ),
        (with(with(to(80), "from", json!(at(INSIDE, 9))), "in", json!("lan")), "this machine's own"),
    ] {
        let report = explain(&mut cluster, question);
        assert_eq!(report["verdict"], "pass", "{report:#}");
        assert!(report["why"].as_str().expect("a sentence").contains(why), "{report:#}");
    }
}

#[test]
fn a_packet_for_the_director_itself_is_shown_as_passed_to_the_kernel() {
    let mut cluster = LabCluster::new();
    cluster
        .configure(&[&format!("-A -t {INSIDE}:80 -s rr"), &format!("-a -t {INSIDE}:80 -r {INSIDE}:80 -g")]);
    let question = json!({ "proto": "tcp", "from": at(CLIENT, 4001), "to": at(INSIDE, 80) });
    let report = explain(&mut cluster, question);
    assert_eq!(
        json!([report["verdict"], report["connection"]["origin"]]),
        json!(["pass", "made"]),
        "{report:#}"
    );
    assert!(report["why"].as_str().is_some_and(|why| why.contains("this machine itself")), "{report:#}");
}

#[test]
fn an_icmp_error_is_followed_to_the_connection_that_it_is_about() {
    let mut cluster = loaded("rr");
    connect(&mut cluster, 3002);
    let reply = Datagram::new(Transport::Tcp(ACK), at(VIP, 80), at(CLIENT, 3002)).packet();
    let error = Complaint(3, 3, [0; 4]).about(&reply, CLIENT, 7);
    let frame = hex(&ethernet(GATEWAY_MAC, WAN_MAC, etherparse::EtherType::IPV4, &error));
    let report = explain(&mut cluster, json!({ "frame": frame }));
    assert_eq!(report["about"]["to"], json!(at(CLIENT, 3002)));
    assert_eq!(json!([report["met"]["dest"], report["verdict"]]), json!([at(server(3), 80), "transmit"]));
}

#[test]
fn a_client_on_the_director_is_explained_and_direct_routing_and_tunnels_are_named_as_impossible() {
    for (method, verdict, why) in [
        ("-m", "transmit", None),
        ("-g", "pass", Some("use NAT or FULLNAT")),
        ("-i", "pass", Some("use NAT or FULLNAT")),
    ] {
        let mut cluster = LabCluster::new();
        cluster.ok(json!({ "link": "vips", "mac": "02:00:00:00:09:01", "addresses": [format!("{VIP}/32")] }));
        cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
        cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 {method}", server(1)));
        let report =
            explain(&mut cluster, json!({ "proto": "tcp", "from": at(VIP, 4001), "to": at(VIP, 80) }));
        assert_eq!((&report["interface"], &report["verdict"]), (&json!("lo"), &json!(verdict)), "{report}");
        let said = report["why"].as_str().unwrap_or_default();
        assert!(why.is_none_or(|why| said.contains(why) && said.contains("the director itself")), "{said}");
    }
}

#[test]
fn nat_to_the_director_itself_is_explained_with_what_its_kernel_gets() {
    let mut cluster = LabCluster::new();
    cluster.adm(&format!("-A -t {VIP}:80 -s rr"));
    cluster.adm(&format!("-a -t {VIP}:80 -r {INSIDE}:8080 -m"));
    let report = syn(&mut cluster, 80);
    assert_eq!(report["verdict"], "pass", "{report}");
    assert!(report["why"].as_str().unwrap_or_default().contains("this machine itself"), "{report}");
    assert_eq!(report["rewrite"]["to"], format!("{INSIDE}:8080"));
    assert_eq!(report["sent"], json!([]));
}

#[test]
fn an_explained_packet_is_not_captured() {
    let mut cluster = loaded("rr");
    let everything = CaptureRequest::everything(4096);
    let mut listener = cluster.lab().director.capture(&everything, 64).expect("a capture");
    for _ in 0..3 {
        assert_eq!(syn(&mut cluster, 80)["verdict"], "transmit");
    }
    let (packets, missed) = cluster.lab().director.captured(&mut listener);
    assert!(packets.is_empty() && missed.is_empty(), "{missed:?}");
    connect(&mut cluster, 3002);
    let (packets, _) = cluster.lab().director.captured(&mut listener);
    assert!(!packets.is_empty(), "packets that are received are captured");
}

#[test]
fn the_page_is_plain_and_aligned_in_eighty_columns() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[
        &format!("-A -t {VIP}:80 -s wlc"),
        &format!("-a -t {VIP}:80 -r {}:8080 -m -w 2", server(1)),
    ]);
    let (exit, text, _) = printed(&mut cluster, &format!("--proto tcp --from {CLIENT}:4001 --to {VIP}:80"));
    let expected = "\
packet      TCP 192.0.2.200:4001 -> 198.51.100.1:80, syn, TTL 64, 40 bytes;
            received on wan
service     TCP 198.51.100.1:80
scheduler   wlc: the lowest (256 × active + inactive connections) ÷ weight; the
            first in order wins a tie
   Real server           Forward Weight Active InAct  Standing
 * 203.0.113.11:8080     Masq         2      0     0  overhead 0, ratio 0
connection  new: TCP 192.0.2.200:4001 -> 198.51.100.1:80 -> 203.0.113.11:8080,
            Masq, SYN_RECV, expires in 1:00
next hop    203.0.113.11 on lan, link address 02:00:00:00:02:0b, MTU 1500
verdict     sent
rewrite     Masq: now to 203.0.113.11:8080, TTL 63
sent        TCP 192.0.2.200:4001 -> 203.0.113.11:8080, syn, TTL 63, 40 bytes,
            on lan
";
    assert_eq!((exit, text.as_str()), (0, expected));
    let (_, json, _) =
        printed(&mut cluster, &format!("--proto tcp --from {CLIENT}:4001 --to {VIP}:80 --json"));
    let report: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(report, syn(&mut cluster, 80), "the lab's own object is the same");
}

#[test]
fn a_request_that_cannot_be_explained_is_refused_with_the_reason() {
    let mut cluster = LabCluster::new();
    let from = format!("--from {CLIENT}:4001");
    for (line, code, said) in [
        (
            format!("--proto tcp {from} --to {VIP}:80 --in eth9"),
            3,
            "no interface eth9 is attached; those that are: wan, lan",
        ),
        (
            format!("--proto tcp --from 10.9.9.9:1 --to {VIP}:80"),
            3,
            "name the interface that the packet comes in by",
        ),
        (format!("--proto tcp {from} --to {VIP}:80 --flags syn,urgent"), 3, "urgent is no flag"),
        (format!("--proto udp {from} --to {VIP}:80 --flags syn"), 3, "only TCP"),
        (format!("--proto tcp {from} --to [{VIP6}]:80"), 3, "different families"),
        (format!("--proto tcp {from} --to {VIP}:80 --length 65535"), 3, "too long"),
        (format!("--proto tcp {from} --to {VIP}:80 --length 20000"), 3, "are possible"),
        (format!("--proto tcp {from} --to {VIP}"), 2, "ADDRESS:PORT"),
        (format!("--proto tcp --to {VIP}:80"), 2, "--from"),
        (format!("--proto icmp {from} --to {VIP}:80"), 2, "tcp"),
        ("--frame 0".to_owned(), 3, "hexadecimal"),
        ("--frame 00".to_owned(), 3, "name the interface that it comes in by"),
        (format!("--frame 00 {from}"), 2, "cannot be used with"),
        (String::new(), 2, "--proto"),
    ] {
        let (exit, _, stderr) = printed(&mut cluster, &line);
        assert_eq!(exit, code, "{line}: {stderr}");
        assert!(stderr.contains(said), "{line}: {stderr}");
    }
    // Any bytes are a frame if the interface is given.
    for frame in ["", "00", "ffffffffffff"] {
        let report = cluster.ask(json!({ "explain": { "in": "wan", "frame": frame } }));
        assert!(report.get("verdict").is_some(), "{report}");
    }
    let mixed = json!({ "explain": { "in": "wan", "frame": "00", "proto": "tcp" } });
    assert!(cluster.ask(mixed)["error"].as_str().is_some_and(|error| error.contains("leave them out")));
    let unknown = json!({ "explain": { "in": "wan", "port": 80 } });
    assert!(cluster.ask(unknown)["error"].is_string());
}

#[test]
fn a_packet_of_a_vlan_is_explained_as_of_its_interface() {
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "link": "lan.5", "vlan": 5, "over": "lan", "addresses": ["203.0.114.1/24"] }));
    cluster.ok(json!({ "neighbor": "203.0.114.11", "mac": "02:00:00:00:05:0b", "link": "lan.5" }));
    cluster.configure(&[&format!("-A -t {VIP}:80 -s rr"), &format!("-a -t {VIP}:80 -r 203.0.114.11:80 -m")]);
    let report = syn(&mut cluster, 80);
    assert_eq!(
        json!([report["way"]["interface"], report["sent"][0]["interface"]]),
        json!(["lan.5", "lan.5"])
    );
    let question = json!({ "proto": "tcp", "from": "203.0.114.11:9", "to": at(VIP, 80) });
    let report = explain(&mut cluster, question);
    assert_eq!(json!([report["interface"], report["service"]]), json!(["lan.5", "TCP 198.51.100.1:80"]));
}

#[test]
fn a_packet_to_a_server_of_the_other_family_is_explained_and_then_gets_that_result() {
    let mut cluster = LabCluster::new();
    cluster.xvs(&format!("laddr add {INSIDE} --ports 5000-5000"));
    cluster.adm(&format!("-A -t [{VIP6}]:80 -s rr"));
    cluster.adm(&format!("-a -t [{VIP6}]:80 -r {}:80 --fullnat", server(1)));
    let question = json!({ "proto": "tcp", "from": at(CLIENT6, 4001), "to": at(VIP6, 80) });
    let report = explain(&mut cluster, question);
    assert_eq!(report["rewrite"]["from"], json!(at(INSIDE, 5000)));
    assert_eq!((&report["way"]["to"], &report["way"]["interface"]), (&json!(server(1)), &json!("lan")));
    assert_eq!(report["sent"][0]["packet"]["to"], json!(at(server(1), 80)));
    let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT6, 4001), at(VIP6, 80));
    let judged = cluster.from_client(&first);
    assert_eq!((judged.verdict.as_str(), judged.sent[0].0.as_str()), ("transmit", "lan"));
    let line = format!("--proto tcp --from [{CLIENT6}]:4001 --to [{VIP6}]:80");
    let (exit, text, _) = printed(&mut cluster, &line);
    assert!(exit == 0 && text.contains(&at(INSIDE, 5000).to_string()), "{text}");
}
