//! A packet gets the result that `xvs explain` announced, and explaining changes nothing.
//!
//! Two directors in the lab get the same commands, frames and time; one of them explains each frame before it arrives.
//! The frame must get the explained result, and both directors must be equal afterwards. Not here: the text of
//! explanations (`explain.rs`).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use serde_json::{Value, json};
use xvs::frames::{ACK, Complaint, Complaint6, FIN, RST, SYN, ethernet, hex, resum, unhex};
use xvs::fuzz::{self, Random};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, SILENT, VIP, VIP6, WAN_MAC, at, server,
    server_mac, server6,
};
use xvs::{Datagram, LabCluster, Transport};

const SCHEDULERS: [&str; 15] =
    ["rr", "wrr", "lc", "wlc", "sed", "nq", "fo", "ovf", "dh", "sh", "mh", "lblc", "lblcr", "twos", "none"];
const PROTOCOLS: [&str; 3] = ["-t", "-u", "--sctp-service"];
const PORTS: [u16; 4] = [21, 80, 81, 0];

/// A director that explains each frame first, and its twin that does not.
struct Twins {
    asked: LabCluster,
    other: LabCluster,
}

impl Twins {
    fn new() -> Self {
        let mut twins = Self { asked: LabCluster::with_mtu(1480), other: LabCluster::with_mtu(1480) };
        for local in [IpAddr::from(INSIDE), INSIDE6.into()] {
            twins.both(json!({ "xvs": ["laddr", "add", local, "--ports", "4001-4006"] }));
        }
        for (port, mark) in [(90, "1"), (91, "2")] {
            for vip in [IpAddr::from(VIP), VIP6.into()] {
                let port = port.to_string();
                twins.both(json!({ "xvs": ["mark", "add", "-d", vip, "-p", "tcp", "--dport", port, "--set-mark", mark] }));
            }
        }
        twins
    }

    /// Sends a line to both; their answers must be equal.
    fn both(&mut self, request: Value) -> Value {
        let answer = self.asked.ask(request.clone());
        assert_eq!(
            without_ports(self.other.ask(request.clone())),
            without_ports(answer.clone()),
            "{request}"
        );
        answer
    }

    /// Injects a frame into both after one has explained it. Returns the explanation.
    fn come(&mut self, link: &str, frame: &[u8]) -> Value {
        let frame = hex(frame);
        let report = self.asked.ask(json!({ "explain": { "in": link, "frame": frame } }));
        assert!(report.get("verdict").is_some(), "{link} {frame}: {report}");
        let judged = self.both(json!({ "inject": link, "frame": frame }));
        check(&report, &judged, &mut self.asked);
        report
    }

    /// Compares everything that can be seen of both.
    fn compare(&mut self) {
        for line in [
            &["-L", "-n"][..],
            &["-L", "-n", "-c"],
            &["-L", "-n", "--persistent-conn"],
            &["-L", "-n", "--thresholds"],
            &["-L", "-n", "--stats", "--exact"],
            &["-S", "-n"],
        ] {
            self.both(json!({ "adm": line }));
        }
        self.both(json!({ "counters": true }));
    }
}

/// An endpoint of the virtual address or of a server, in the notation of commands.
fn endpoint(addr: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(addr.into(), port).to_string()
}

/// The options by which a command names a service.
fn service(random: &mut Random, v6: bool) -> String {
    let vip = if v6 { IpAddr::from(VIP6) } else { VIP.into() };
    match random.below(8) {
        0 => format!("-f {}{}", 1 + random.below(2), if v6 { " -6" } else { "" }),
        _ => format!("{} {}", random.of(&PROTOCOLS), endpoint(vip, *random.of(&PORTS))),
    }
}

fn options(random: &mut Random, v6: bool) -> String {
    let keeps: &[&str] = if v6 {
        &["", "", "-p 5", "-p 90 -M 64", "-p 30 --pe sip", "-o"]
    } else {
        &["", "", "-p 5", "-p 90 -M 255.255.255.0", "-p 30 --pe sip", "-o"]
    };
    let flags = random.of(&["", "", "-b flag-1", "-b flag-1,flag-2"]);
    format!("-s {} {} {flags}", random.of(&SCHEDULERS), random.of(keeps))
}

fn command(random: &mut Random) -> String {
    let v6 = random.below(3) == 0;
    let service = service(random, v6);
    let number = 1 + random.below(4) as u8;
    let words = destination(random, v6, number);
    let dest = words.split(' ').take(2).collect::<Vec<_>>().join(" ");
    match random.below(12) {
        0..2 => format!("-A {service} {}", options(random, v6)),
        2 => format!("-E {service} {}", options(random, v6)),
        3 | 4 => format!("-e {service} {words}"),
        5 => format!("-d {service} {dest}"),
        6 if random.below(4) == 0 => format!("-D {service}"),
        _ => format!("-a {service} {words}"),
    }
}

/// The options by which a command describes a destination completely.
fn destination(random: &mut Random, v6: bool, number: u8) -> String {
    let addr = match (v6, random.below(20)) {
        (false, 0) => IpAddr::from(SILENT),
        (false, _) => server(number).into(),
        (true, _) => server6(number).into(),
    };
    let dest = format!("-r {}", endpoint(addr, *random.of(&[80, 81, 8080])));
    let method = random.of(&["-m", "-m", "-g", "-i", "-i --tun-type gre", "--fullnat"]);
    let weight = random.below(4);
    let bounds = random.of(&["", "", "-x 2", "-x 4 -y 2"]);
    format!("{dest} {method} -w {weight} {bounds}")
}

fn set(random: &mut Random) -> Value {
    let key = *random.of(&[
        "expire_nodest_conn",
        "expire_quiescent_template",
        "udp_nodest_reschedule",
        "sloppy_tcp",
        "sloppy_sctp",
        "nat_icmp_send",
        "conn_reuse_mode",
        "secure_tcp",
        "drop_packet",
        "schedule_icmp",
        "backup_only",
    ]);
    let value = match (key, random.below(8)) {
        ("backup_only", below) => u64::from(below == 0),
        ("drop_packet", below) => {
            if below == 0 {
                3
            } else {
                0
            }
        }
        ("secure_tcp", below) => below & 3,
        (_, below) => below & 1,
    };
    json!({ "set": { key: value } })
}

/// A frame, and the link that receives it.
fn frame(random: &mut Random) -> (&'static str, Vec<u8>) {
    let v6 = random.below(3) == 0;
    let pick = |v4: std::net::Ipv4Addr, other: std::net::Ipv6Addr| -> IpAddr {
        if v6 { other.into() } else { v4.into() }
    };
    let port = *random.of(&[21, 80, 80, 81, 90, 91, 5000]);
    let client = at(pick(CLIENT, CLIENT6), 4001 + random.below(6) as u16);
    let inbound = random.below(4) != 0;
    let (source, dest) = match inbound {
        true => (client, at(pick(VIP, VIP6), port)),
        false => {
            let number = 1 + random.below(4) as u8;
            let to = if random.below(3) == 0 { at(pick(INSIDE, INSIDE6), client.port()) } else { client };
            (at(pick(server(number), server6(number)), *random.of(&[80, 81, 8080])), to)
        }
    };
    let transport = match random.below(10) {
        0..6 => {
            let all = [SYN, SYN, SYN, ACK, ACK, SYN | ACK, FIN | ACK, RST];
            Transport::Tcp(*random.of(&all))
        }
        6..9 => Transport::Udp,
        _ => Transport::Sctp,
    };
    let length = if random.below(6) == 0 { random.below(1600) } else { random.below(40) } as usize;
    let mut datagram = Datagram::new(transport, source, dest).carrying(length);
    datagram.dont_fragment = random.below(2) == 0;
    datagram.ttl = if random.below(10) == 0 { random.below(3) as u8 } else { 64 };
    match (transport, datagram.data.first_mut()) {
        (Transport::Sctp, Some(kind)) => *kind = *random.of(&[1, 1, 1, 2, 10, 11, 0, 6, 7, 14]),
        (Transport::Udp, _) if random.below(3) == 0 => {
            datagram.data =
                format!("INVITE sip:b@h SIP/2.0\r\nCall-ID: {}\r\n\r\n", random.below(4)).into_bytes();
        }
        _ => {}
    }
    let (link, from, to) = match inbound {
        true => ("wan", GATEWAY_MAC, WAN_MAC),
        false => ("lan", server_mac(1), LAN_MAC),
    };
    let mut frame = match random.below(12) {
        0 => error(random, &datagram, from, to),
        _ => datagram.frame(from, to),
    };
    if random.below(16) == 0 {
        let at = random.below(frame.len().min(60) as u64) as usize;
        frame[at] = random.draw() as u8;
        if random.below(2) == 0 && frame[12..14] == [8, 0] {
            resum(&mut frame);
        }
    }
    (link, frame)
}

/// An ICMP error about a packet that the receiver of `datagram` would send back.
fn error(random: &mut Random, datagram: &Datagram, from: [u8; 6], to: [u8; 6]) -> Vec<u8> {
    let (source, dest) = (datagram.dest, datagram.source);
    let about = Datagram { source, dest, ..datagram.clone() }.packet();
    let kind = match datagram.source.is_ipv4() {
        true => etherparse::EtherType::IPV4,
        false => etherparse::EtherType::IPV6,
    };
    let packet = match datagram.source.ip() {
        IpAddr::V4(addr) => {
            let complaint = *random.of(&[Complaint(3, 3, [0; 4]), Complaint(3, 4, [0, 0, 4, 0])]);
            complaint.about(&about, addr, 7)
        }
        IpAddr::V6(addr) => {
            random.of(&[Complaint6::PORT_UNREACHABLE, Complaint6::packet_too_big(1300)]).about(&about, addr)
        }
    };
    ethernet(from, to, kind, &packet)
}

/// An answer without GUE's source port, which depends on a table's hash secret and so differs between the twins.
fn without_ports(mut answer: Value) -> Value {
    for sent in answer.get_mut("tx").and_then(Value::as_array_mut).into_iter().flatten() {
        let mut bytes = unhex(sent["frame"].as_str().expect("hex"));
        let udp = match bytes[12..14] {
            [8, 0] => (bytes[23] == 17).then_some(34),
            _ => (bytes[20] == 17).then_some(54),
        };
        if let Some(udp) = udp.filter(|udp| udp + 8 <= bytes.len()) {
            [udp..udp + 2, udp + 6..udp + 8].into_iter().for_each(|range| bytes[range].fill(0));
        }
        sent["frame"] = json!(hex(&bytes));
    }
    answer
}

/// Removes the identifications that the director chooses, which cannot be predicted.
fn without_ids(frame: &Value) -> Value {
    let mut bytes = unhex(frame["frame"].as_str().expect("hex"));
    match bytes[12..14] {
        [8, 0] => [18..20, 24..26].into_iter().for_each(|range| bytes[range].fill(0)),
        // The identification in the fragment header.
        _ if bytes[20] == 44 => bytes[58..62].fill(0),
        _ => {}
    }
    json!({ "link": frame.get("link").or(frame.get("interface")), "frame": hex(&bytes) })
}

fn all_without_ids(frames: &Value) -> Vec<Value> {
    frames.as_array().expect("frames").iter().map(without_ids).collect()
}

/// Asserts that a frame got the explained result.
fn check(report: &Value, judged: &Value, cluster: &mut LabCluster) {
    let caveats: Vec<_> =
        report["caveats"].as_array().expect("a list").iter().map(|one| one["name"].as_str()).collect();
    let may_differ = |name: &str| caveats.contains(&Some(name));
    if may_differ("drop_packet") && judged["reason"] == "defence" || may_differ("fragment") {
        return;
    }
    let drawn = may_differ("drawn");
    let context = || format!("{report:#}\n{judged}");
    if !drawn {
        assert_eq!(report["verdict"], judged["verdict"], "{}", context());
        assert_eq!(
            report.get("reason"),
            judged.get("reason").filter(|reason| !reason.is_null()),
            "{}",
            context()
        );
    }
    if !drawn && !may_differ("local_port") {
        assert_eq!(all_without_ids(&report["sent"]), all_without_ids(&judged["tx"]), "{}", context());
    }
    if report["verdict"] == "pass" {
        let why = report["why"].as_str().expect("a sentence");
        assert!(why.len() > 20, "{}", context());
    }
    if let (Some(choice), Some(connection)) = (report.get("choice"), report.get("connection")) {
        let candidates = choice["candidates"].as_array().expect("a list");
        let chosen: Vec<_> = candidates.iter().filter(|one| one["standing"] == "chosen").collect();
        assert_eq!(chosen.len(), 1, "{}", context());
        let addr = |text: &Value| text.as_str().and_then(|text| Some(text.rsplit_once(':')?.0.to_owned()));
        assert_eq!(addr(&chosen[0]["server"]), addr(&connection["dest"]), "{}", context());
    }
    let remembered = ["connection", "template"].map(|name| (name, report.get(name)));
    if drawn || remembered.iter().all(|(_, entry)| entry.is_none()) {
        return;
    }
    let rows: Value = serde_json::from_str(&cluster.adm("-L -n -c --json")).expect("JSON");
    for (name, entry) in remembered {
        let Some(entry) = entry else { continue };
        let same = |row: &&Value| {
            let equal = |ours: &str, theirs: &str| entry[ours] == row[theirs];
            equal("protocol", "protocol")
                && equal("client", "client")
                && equal("virtual_endpoint", "virtual_endpoint")
                && equal("dest", "dest")
                && equal("state", "state")
                && entry["expires_millis"].as_u64().map(|millis| millis / 1000)
                    == row["expires_seconds"].as_u64()
        };
        let found = rows.as_array().expect("rows").iter().find(same);
        assert!(found.is_some(), "{name}: {}\n{rows:#}", context());
    }
}

/// The number of answers of each kind.
type Tally = BTreeMap<String, u32>;

/// The kinds of an answer.
fn kinds(report: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut kinds = vec![format!("{} {}", text(&report["verdict"]), text(&report["reason"]))];
    if let Some(choice) = report.get("choice") {
        kinds.push(format!("scheduler {}", text(&choice["scheduler"])));
    }
    if let Some(connection) = report.get("connection") {
        kinds.push(format!("{} {}", text(&connection["origin"]), text(&connection["method"])));
        kinds.push(format!("{} {}", text(&connection["protocol"]), text(&connection["state"])));
    }
    if let Some(template) = report.get("template") {
        kinds.push(format!("{} template", text(&template["origin"])));
    }
    if let Some(direction) = report.get("direction") {
        kinds.push(text(direction));
    }
    if report.get("met").is_some() && report["connection"]["origin"] == "made" {
        kinds.push("replaced".to_owned());
    }
    if report.get("about").is_some() && report.get("met").is_some() {
        kinds.push("error about a connection".to_owned());
    }
    if report.get("marked_by").is_some() {
        kinds.push("marked".to_owned());
    }
    let caveats = report["caveats"].as_array().expect("a list");
    kinds.extend(caveats.iter().map(|caveat| format!("caveat {}", text(&caveat["name"]))));
    kinds
}

fn play(seed: u64, frames: u64) -> Tally {
    let mut tally = Tally::new();
    let (mut twins, mut random) = (Twins::new(), Random(seed));
    for v6 in [false, true] {
        for (protocol, port) in PROTOCOLS.iter().flat_map(|protocol| [80, 81].map(|port| (protocol, port))) {
            let vip = if v6 { IpAddr::from(VIP6) } else { VIP.into() };
            let service = format!("{protocol} {}", endpoint(vip, port));
            let add = format!("-A {service} {}", options(&mut random, v6));
            let lines = (1..=3).map(|number| destination(&mut random, v6, number));
            for line in [add].into_iter().chain(lines.map(|words| format!("-a {service} {words}"))) {
                let words: Vec<_> = line.split_whitespace().collect();
                twins.both(json!({ "adm": words }));
            }
        }
    }
    let mut done = 0;
    while done < frames {
        match random.below(24) {
            0..5 => {
                let line = command(&mut random);
                let words: Vec<_> = line.split_whitespace().collect();
                twins.both(json!({ "adm": words }));
            }
            5 => drop(twins.both(set(&mut random))),
            6 => {
                let tenths = if random.below(8) == 0 { random.below(4000) } else { random.below(60) };
                twins.both(json!({ "advance": tenths as f64 / 10.0 }));
            }
            _ => {
                done += 1;
                let (link, frame) = frame(&mut random);
                let report = twins.come(link, &frame);
                kinds(&report).into_iter().for_each(|kind| *tally.entry(kind).or_default() += 1);
            }
        }
        if done % 64 == 0 {
            twins.compare();
            twins.both(json!({ "set": { "backup_only": 0 } }));
        }
    }
    twins.compare();
    tally
}

#[test]
fn ten_thousand_random_packets_get_the_explained_result_and_explaining_changes_nothing() {
    let mut tally = Tally::new();
    // It takes longer than all other tests of the lab, so it takes two cores.
    thread::scope(|scope| {
        let halves = [1..=10, 11..=20]
            .map(|seeds| scope.spawn(move || seeds.flat_map(|seed| play(seed, 500)).collect::<Vec<_>>()));
        for (kind, count) in halves.into_iter().flat_map(|half| half.join().expect("no failure")) {
            *tally.entry(kind).or_default() += count;
        }
    });
    // All kinds of answers must occur.
    let expected = [
        ("pass ", 1000),
        ("transmit ", 1000),
        ("consumed ", 5),
        ("drop no_destination", 100),
        ("drop destination_unavailable", 3),
        ("consumed no_neighbour", 10),
        ("drop too_big", 10),
        ("drop ttl_expired", 20),
        ("drop no_call_id", 20),
        ("drop unasked", 5),
        ("inbound", 400),
        ("outbound", 15),
        ("replaced", 5),
        ("error about a connection", 20),
        ("marked", 100),
        ("caveat drawn", 20),
        ("caveat drop_packet", 20),
        ("caveat local_port", 50),
        ("caveat fragment", 5),
        ("made template", 100),
        ("found template", 100),
    ];
    let made = ["Masq", "Route", "Tunnel", "FullNat"].map(|method| (format!("made {method}"), 100));
    let schedulers = SCHEDULERS.map(|name| (format!("scheduler {name}"), 20));
    let expected = expected.map(|(kind, least)| (kind.to_owned(), least));
    for (kind, least) in expected.into_iter().chain(made).chain(schedulers) {
        let count = tally.get(&kind).copied().unwrap_or(0);
        assert!(count >= least, "{kind}: {count}\n{tally:#?}");
    }
}

#[test]
fn recorded_frames_changed_at_random_get_the_explained_result_for_every_configuration() {
    let (mut seeds, mut random) = (fuzz::recorded(), Random(7));
    let [asked, other] = [(); 2].map(|()| LabCluster::around(seeds.lab()));
    let mut twins = Twins { asked, other };
    for number in 1..=3000 {
        let (link, frame) = seeds.frame(&mut random);
        twins.come(link, &frame);
        if number % 100 == 0 {
            twins.both(json!({ "advance": random.below(700) as f64 / 10.0 }));
            twins.compare();
        }
    }
}
