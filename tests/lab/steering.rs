//! The XDP program redirects to xvsd every packet that xvsd would not pass to the kernel.
//!
//! Plays every recording's frames, and a few of this test, through the lab. Before each, the program's maps get the
//! state of the lab's control thread, and `BPF_PROG_TEST_RUN` runs it on the frame. Steering too much costs a detour,
//! steering too little loses packets. Needs the right to load a BPF program, and no interface. Not here: what the
//! program does to frames of no service (`crates/dataplane/tests/kernel/steering.rs`).

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use etherparse::EtherType;
use serde_json::{Value, json};
use xvs::frames::{ACK, Complaint, Complaint6, SYN, ethernet, hex, unhex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, LAN_MAC, VIP, VIP6, WAN_MAC, at, server, server_mac,
    server6,
};
use xvs::setup::{self, Action};
use xvs::steered::{Steered, unreadable};
use xvs::{Datagram, LabCluster, Transport, recording};
use xvs_cli::lab::Lab;
use xvs_dataplane::steering::Verdict;

/// Injects a frame. Fails with a message if the director processed it but the XDP program would not have redirected it.
fn inject(steered: &mut Steered, lab: &mut Lab, link: &str, frame: &[u8]) -> Result<Value, String> {
    let verdict = steered.verdict(lab, frame);
    let request = json!({ "inject": link, "frame": hex(frame) });
    let answer: Value = serde_json::from_str(&lab.answer(&request.to_string())).expect("JSON");
    let reason = answer["reason"].as_str().unwrap_or_default();
    let taken = answer.get("error").is_none() && answer["verdict"] != "pass" && !unreadable(reason);
    match verdict {
        Verdict::Kernel if taken => Err(format!("left to the kernel, but {answer}: {}", hex(frame))),
        _ => Ok(answer),
    }
}

/// Plays a recording. Returns how many frames it has, and a message for each that was left to the kernel wrongly.
fn play(path: &Path, steered: &mut Steered) -> (usize, Vec<String>) {
    let recording: Value = serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON");
    let truth = &recording["truth"];
    let mut lab = Lab::new();
    for request in recording::network(&truth["topology"]) {
        lab.answer(&request.to_string());
    }
    let (mut now, mut frames, mut wrong) = (0.0, 0, Vec::new());
    for (number, step) in truth["steps"].as_array().expect("steps").iter().enumerate() {
        if step["ns"].as_str().is_some_and(|ns| ns != "dir") {
            continue;
        }
        let then = step["t"].as_f64().unwrap_or(now);
        if then > now {
            lab.answer(&json!({ "advance": then - now }).to_string());
            now = then;
        }
        match step["op"].as_str().unwrap_or_default() {
            "cmd" => {
                let words = step["argv"].as_array().map(Vec::as_slice).unwrap_or_default();
                if words.first().is_some_and(|word| word == "ipvsadm") {
                    let stdin = step["stdin"].as_str().unwrap_or_default();
                    lab.answer(&json!({ "adm": &words[1..], "stdin": stdin }).to_string());
                }
            }
            "mark" => {
                lab.answer(&recording::mark(step).to_string());
            }
            "sysctl" => {
                let name = step["name"].as_str().expect("a setting's name");
                if let Ok(request) = recording::setting(name, &step["value"]) {
                    lab.answer(&request.to_string());
                }
            }
            "setup" => {
                let argv = recording::strings(&step["argv"]);
                for action in setup::actions(&argv, &truth["topology"]).unwrap_or_default() {
                    if let Action::Request(request) = action {
                        lab.answer(&request.to_string());
                    }
                }
            }
            "frame" | "burst" => {
                frames += 1;
                let frame = unhex(step["in"].as_str().expect("a frame"));
                let link = step["port"].as_str().expect("a link");
                if let Err(difference) = inject(steered, &mut lab, link, &frame) {
                    wrong.push(format!("step {number}, {}: {difference}", step["note"]));
                }
            }
            _ => {}
        }
    }
    (frames, wrong)
}

#[test]
fn every_recorded_frame_that_the_director_processes_is_steered_to_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let mut steered = Steered::new();
    let (mut frames, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(folder).expect("the recordings") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let (played, differences) = play(&path, &mut steered);
        frames += played;
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        wrong.extend(differences.into_iter().map(|difference| format!("{name}: {difference}")));
    }
    println!("{frames} frames");
    assert!(frames > 1000, "{frames} frames");
    assert!(wrong.is_empty(), "{} of {frames} frames:\n{}", wrong.len(), wrong.join("\n"));
}

/// A cluster with a masqueraded connection after its SYN.
fn connected() -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster
        .configure(&[&format!("-A -t {VIP}:80 -s rr"), &format!("-a -t {VIP}:80 -r {}:8080 -m", server(1))]);
    let verdict = cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80)));
    assert_eq!(verdict.verdict, "transmit");
    cluster
}

fn request() -> Vec<u8> {
    Datagram::new(Transport::Tcp(ACK), at(CLIENT, 4000), at(VIP, 80)).frame(GATEWAY_MAC, WAN_MAC)
}

fn reply() -> Vec<u8> {
    Datagram::new(Transport::Tcp(ACK), at(server(1), 8080), at(CLIENT, 4000)).frame(server_mac(1), LAN_MAC)
}

#[test]
fn replies_of_a_live_connection_are_steered_after_any_change_of_its_destination() {
    let mut steered = Steered::new();
    let service = format!("-t {VIP}:80");
    let dest = format!("{service} -r {}:8080", server(1));
    let direct = format!("{service} -r {}:80", server(1));
    for commands in [
        &[][..],
        &[format!("-e {dest} -m -w 0")],
        &[format!("-e {dest} -i")],
        &[format!("-d {dest}")],
        &[format!("-d {dest}"), format!("-a {direct} -g")],
        &[format!("-A -u {VIP}:53"), format!("-D {service}")],
        &[format!("-A -u {VIP}:53"), format!("-D {service}"), format!("-A {service}")],
    ] {
        let mut cluster = connected();
        for command in commands {
            // A direct-routing server has the service's port, so one of these commands names no destination.
            cluster.ask(json!({ "adm": command.split(' ').collect::<Vec<_>>() }));
        }
        let lab = cluster.lab();
        let answer = inject(&mut steered, lab, "lan", &reply())
            .unwrap_or_else(|wrong| panic!("{commands:?}: {wrong}"));
        assert_eq!(answer["verdict"], "transmit", "{commands:?}");
        inject(&mut steered, lab, "wan", &request()).unwrap_or_else(|wrong| panic!("{commands:?}: {wrong}"));
    }
}

#[test]
fn live_marked_connections_and_no_others_stay_steered_after_their_rule_or_service_is_gone() {
    let mut steered = Steered::new();
    let mark = |action| json!({ "xvs": ["mark", action, "-d", format!("{VIP}/32"), "--set-mark", "7"] });
    let delete = mark("delete");
    for gone in [None, Some(delete), Some(json!({ "adm": ["-D", "-f", "7"] }))] {
        let mut cluster = LabCluster::new();
        cluster.configure(&["-A -f 7 -s rr", &format!("-a -f 7 -r {}:8080 -m", server(1))]);
        assert_eq!(steered.verdict(cluster.lab(), &request()), Verdict::Kernel, "no rule marks it");
        // With a service of the family, the program still steers packets.
        cluster.adm(&format!("-A -u {}:53", server(2)));
        assert_eq!(cluster.ask(mark("add"))["exit"], 0);
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80));
        let judged = inject(&mut steered, cluster.lab(), "wan", &syn.frame(GATEWAY_MAC, WAN_MAC));
        assert_eq!(judged.map(|answer| answer["verdict"].clone()), Ok(json!("transmit")));
        if let Some(gone) = &gone {
            assert_eq!(cluster.ask(gone.clone())["exit"], 0, "{gone}");
        }
        let lab = cluster.lab();
        assert_eq!(steered.verdict(lab, &request()), Verdict::Steered, "{gone:?}");
        let answer = inject(&mut steered, lab, "lan", &reply());
        assert_eq!(answer.map(|answer| answer["verdict"].clone()), Ok(json!("transmit")), "{gone:?}");
        lab.answer(r#"{"advance":1200}"#);
        let left = if gone.is_none() { Verdict::Steered } else { Verdict::Kernel };
        assert_eq!(steered.verdict(lab, &request()), left, "{gone:?}: when its connections are over");
    }
}

#[test]
fn ipv6_replies_of_a_marks_service_are_steered_from_its_servers_and_from_marked_addresses() {
    let mut steered = Steered::new();
    for (method, from) in [("-m", at(server6(1), 8443)), ("-g", at(VIP6, 443))] {
        let mut cluster = LabCluster::new();
        cluster.configure(&["-A -f 7 -6 -s rr", &format!("-a -f 7 -6 -r [{}]:8443 {method}", server6(1))]);
        cluster.xvs("mark add -d 2001:db8:51::/64 --set-mark 7");
        let syn = Datagram::new(Transport::Tcp(SYN), at(CLIENT6, 4000), at(VIP6, 443));
        let answer = inject(&mut steered, cluster.lab(), "wan", &syn.frame(GATEWAY_MAC, WAN_MAC));
        assert_eq!(answer.map(|answer| answer["verdict"].clone()), Ok(json!("transmit")));
        let reply = Datagram::new(Transport::Tcp(ACK), from, at(CLIENT6, 4000));
        let answer = inject(&mut steered, cluster.lab(), "lan", &reply.frame(server_mac(1), LAN_MAC));
        assert_eq!(answer.map(|answer| answer["verdict"].clone()), Ok(json!("transmit")), "{method}");
    }
}

#[test]
fn a_batch_that_adds_a_mark_rule_and_its_service_steers_the_marked_packets() {
    let mut steered = Steered::new();
    for rule in ["-d 198.51.100.0/24", "-p tcp", "-s 203.0.113.0/24 -p tcp --dport 80"] {
        let mut cluster = LabCluster::new();
        cluster.xvs(&format!("mark add {rule} --set-mark 7"));
        assert_eq!(
            steered.verdict(cluster.lab(), &request()),
            Verdict::Kernel,
            "{rule}: no service of the mark"
        );
        let answer =
            cluster.ask(json!({ "adm": ["-R"], "stdin": "-A -f 7 -s rr\n-a -f 7 -r 192.0.2.11:80 -g\n" }));
        assert_eq!(answer["exit"], 0, "{answer}");
        assert_eq!(steered.verdict(cluster.lab(), &request()), Verdict::Steered, "{rule}");
    }
}

#[test]
fn replies_of_a_destination_that_changes_to_direct_routing_are_still_steered() {
    let mut steered = Steered::new();
    for again in [false, true] {
        let mut cluster = LabCluster::new();
        cluster.configure(&[
            &format!("-A -t {VIP}:80 -s rr"),
            &format!("-a -t {VIP}:80 -r {}:80 -m", server(1)),
        ]);
        cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(CLIENT, 4000), at(VIP, 80)));
        if again {
            cluster.adm(&format!("-d -t {VIP}:80 -r {}:80", server(1)));
            cluster.adm(&format!("-a -t {VIP}:80 -r {}:80 -g", server(1)));
        } else {
            cluster.adm(&format!("-e -t {VIP}:80 -r {}:80 -g", server(1)));
        }
        let reply = Datagram::new(Transport::Tcp(ACK), at(server(1), 80), at(CLIENT, 4000));
        let answer = inject(&mut steered, cluster.lab(), "lan", &reply.frame(server_mac(1), LAN_MAC));
        assert_eq!(answer.map(|answer| answer["verdict"].clone()), Ok(json!("transmit")));
    }
}

#[test]
fn packets_from_a_virtual_endpoint_are_steered_while_its_connections_live_unless_they_go_to_the_director() {
    let mut steered = Steered::new();
    let mut verdict_of = |cluster: &mut LabCluster, from: IpAddr, to: IpAddr| {
        let reply = Datagram::new(Transport::Tcp(ACK), at(from, 80), at(to, 4000));
        steered.verdict(cluster.lab(), &reply.frame(server_mac(1), LAN_MAC))
    };
    let families: [[IpAddr; 4]; 2] = [
        [VIP.into(), server(1).into(), CLIENT.into(), INSIDE.into()],
        [VIP6.into(), server6(1).into(), CLIENT6.into(), INSIDE6.into()],
    ];
    for [vip, server, client, inside] in families {
        let mut cluster = LabCluster::new();
        let service = at(vip, 80);
        cluster.configure(&[
            &format!("-A -t {service} -s rr"),
            &format!("-a -t {service} -r {} -g", at(server, 80)),
        ]);
        cluster.from_client(&Datagram::new(Transport::Tcp(SYN), at(client, 4000), service));
        assert_eq!(verdict_of(&mut cluster, vip, client), Verdict::Steered);
        assert_eq!(verdict_of(&mut cluster, vip, inside), Verdict::Kernel, "to the director itself");
        cluster.configure(&[&format!("-A -u {}", at(vip, 53)), &format!("-D -t {service}")]);
        assert_eq!(verdict_of(&mut cluster, vip, client), Verdict::Steered);
        cluster.advance(60.0 + 120.0 + 61.0);
        assert_eq!(verdict_of(&mut cluster, vip, client), Verdict::Kernel);
    }
}

#[test]
fn no_packet_is_steered_without_a_service() {
    let mut steered = Steered::new();
    let mut fresh = LabCluster::new();
    assert_eq!(steered.verdict(fresh.lab(), &request()), Verdict::Kernel);
    let mut cluster = connected();
    assert_eq!(steered.verdict(cluster.lab(), &request()), Verdict::Steered);
    assert_eq!(steered.verdict(cluster.lab(), &reply()), Verdict::Steered);
    cluster.adm("-C");
    assert_eq!(steered.verdict(cluster.lab(), &request()), Verdict::Kernel);
    assert_eq!(steered.verdict(cluster.lab(), &reply()), Verdict::Kernel);
}

#[test]
fn replies_of_a_removed_destination_are_steered_only_until_its_connections_end() {
    let mut steered = Steered::new();
    let mut cluster = connected();
    cluster.adm(&format!("-d -t {VIP}:80 -r {}:8080", server(1)));
    assert_eq!(steered.verdict(cluster.lab(), &reply()), Verdict::Steered);
    // The connection ends after a minute. The destination is kept for two more minutes, and checked once a minute.
    cluster.advance(60.0 + 120.0 + 61.0);
    assert_eq!(steered.verdict(cluster.lab(), &reply()), Verdict::Kernel);
    assert_eq!(steered.verdict(cluster.lab(), &request()), Verdict::Steered);
}

#[test]
fn errors_about_a_tunnel_are_steered_while_its_connections_live() {
    let mut steered = Steered::new();
    for (vip, dest) in [(at(VIP, 80), at(server(1), 80)), (at(VIP6, 80), at(server6(1), 80))] {
        for gone in [None, Some(format!("-e -t {vip} -r {dest} -g")), Some(format!("-d -t {vip} -r {dest}"))]
        {
            let mut cluster = LabCluster::new();
            cluster.configure(&[&format!("-A -t {vip} -s rr"), &format!("-a -t {vip} -r {dest} -i")]);
            let client = if vip.is_ipv4() { at(CLIENT, 4000) } else { at(CLIENT6, 4000) };
            let syn = Datagram::new(Transport::Tcp(SYN), client, vip);
            let outer =
                cluster.from_client(&Datagram { dont_fragment: true, ..syn }).sent[0].1[14..].to_vec();
            gone.iter().for_each(|line| drop(cluster.adm(line)));
            // A router reports an MTU of 1300, with a correct checksum.
            let error = match dest.ip() {
                IpAddr::V4(_) => Complaint::fragmentation_needed(1300).about(&outer, server(2), 7),
                IpAddr::V6(_) => Complaint6::packet_too_big(1300).about(&outer, server6(2)),
            };
            let kind = if vip.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
            let frame = ethernet(server_mac(2), LAN_MAC, kind, &error);
            let answer = inject(&mut steered, cluster.lab(), "lan", &frame);
            assert_eq!(answer.map(|answer| answer["verdict"].clone()), Ok(json!("consumed")), "{gone:?}");
        }
    }
}
