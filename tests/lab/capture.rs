//! Captured packets: their choice, their comments, and the file as another implementation reads it.
//!
//! Frames go through a director in the lab; tshark reads the file. Not here: the daemon and its client
//! (`netlab/capture.rs`), the cost of a capture (`worker/allocation.rs`, `benches/pipeline.rs`).

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, process};

use etherparse::EtherType;
use serde_json::json;
use xvs::cluster::succeed;
use xvs::frames::{Complaint, ethernet, fragments, hex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, LAN_MAC, SILENT, VIP, VIP6, WAN_MAC, assert_balance, at, server,
    server_mac,
};
use xvs::{Datagram, LabCluster, Transport};
use xvs_cli::capture::lines::Lines;
use xvs_cli::capture::pcapng::Blocks;
use xvs_ctl::api::capture::Listener;
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Direction, Missed};

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;
const SLOTS: usize = 64;

fn all() -> CaptureRequest {
    CaptureRequest::everything(4096)
}

/// A cluster with TCP services at ports 80, by this method, and 81, without servers; UDP at 80.
fn cluster(method: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    let dest = at(server(1), 80);
    cluster.configure(&[
        &format!("-A -t {VIP}:80"),
        &format!("-a -t {VIP}:80 -r {dest} {method}"),
        &format!("-A -t {VIP}:81"),
        &format!("-A -u {VIP}:80"),
        &format!("-a -u {VIP}:80 -r {dest} {method}"),
    ]);
    cluster
}

fn listen(cluster: &mut LabCluster, wanted: &CaptureRequest) -> Listener {
    cluster.lab().director.capture(wanted, SLOTS).unwrap_or_else(|error| panic!("{error}"))
}

fn captured(cluster: &mut LabCluster, listener: &mut Listener) -> Vec<CapturedPacket> {
    let (packets, missed) = cluster.lab().director.captured(listener);
    assert_eq!(missed, Missed::new());
    packets
}

/// The verdict of a packet, and each of its frames: direction, interface, bytes.
type Recorded = (String, Vec<(Direction, String, Vec<u8>)>);

fn recorded(packets: &[CapturedPacket]) -> Vec<Recorded> {
    let frame = |frame: &xvs_model::report::capture::CapturedFrame| {
        (frame.direction, frame.interface.clone(), frame.bytes.clone())
    };
    let verdict = |packet: &CapturedPacket| match &packet.reason {
        Some(reason) => format!("{} {reason}", packet.verdict),
        None => packet.verdict.clone(),
    };
    packets.iter().map(|packet| (verdict(packet), packet.frames.iter().map(frame).collect())).collect()
}

fn came(link: &str, frame: &[u8]) -> (Direction, String, Vec<u8>) {
    (Direction::In, link.to_owned(), frame.to_vec())
}

fn request(port: u16, flags: u8) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(CLIENT, 4000), at(VIP, port))
}

fn answer(flags: u8) -> Datagram {
    Datagram::new(Transport::Tcp(flags), at(server(1), 80), at(CLIENT, 4000))
}

fn outside(datagram: &Datagram) -> Vec<u8> {
    datagram.frame(GATEWAY_MAC, WAN_MAC)
}

/// Injects a request, its reply, a dropped packet and a passed one; returns each with the frames sent because of it.
fn mixture(cluster: &mut LabCluster) -> Vec<Recorded> {
    let inside = answer(SYN_ACK).frame(server_mac(1), LAN_MAC);
    let frames = [
        ("wan", outside(&request(80, SYN))),
        ("lan", inside),
        ("wan", outside(&request(81, SYN))),
        ("wan", outside(&request(82, SYN))),
    ];
    frames.into_iter().map(|(link, frame)| pass(cluster, link, &frame)).collect()
}

fn pass(cluster: &mut LabCluster, link: &str, frame: &[u8]) -> Recorded {
    let judged = cluster.inject(link, frame);
    let left = judged.sent.into_iter().map(|(link, frame)| (Direction::Out, link, frame));
    (judged.verdict, std::iter::once(came(link, frame)).chain(left).collect())
}

#[test]
fn every_packet_is_captured_as_received_and_as_sent_with_its_verdict() {
    for method in ["-m", "-g", "-i"] {
        let mut cluster = cluster(method);
        let mut listener = listen(&mut cluster, &all());
        let passed = mixture(&mut cluster);
        assert_eq!(recorded(&captured(&mut cluster, &mut listener)), passed, "{method}");
        assert_eq!(passed[2].0, "drop no_destination");
        assert_eq!((passed[0].1.len(), passed[2].1.len(), passed[3].1.len()), (2, 2, 1));
    }
}

#[test]
fn packets_between_families_are_found_by_the_client_and_captured_in_both() {
    let mut cluster = LabCluster::new();
    cluster.xvs(&format!("laddr add {INSIDE} --ports 5000-5000"));
    let (client, service, dest) = (at(CLIENT6, 4000), at(VIP6, 80), at(server(1), 8080));
    cluster.configure(&[&format!("-A -u {service}"), &format!("-a -u {service} -r {dest} --fullnat")]);
    let wanted = CaptureRequest { address: CLIENT6.to_string().parse().ok(), ..all() };
    let mut listener = listen(&mut cluster, &wanted);
    let request = Datagram::new(Transport::Udp, client, service).frame(GATEWAY_MAC, WAN_MAC);
    let reply = Datagram::new(Transport::Udp, dest, at(INSIDE, 5000)).frame(server_mac(1), LAN_MAC);
    let passed = [pass(&mut cluster, "wan", &request), pass(&mut cluster, "lan", &reply)];
    assert!(passed.iter().all(|(verdict, frames)| verdict == "transmit" && frames.len() == 2), "{passed:?}");
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), passed);
}

#[test]
fn an_ended_capture_shows_nothing_and_a_new_one_shows_the_packets_from_its_start_on() {
    let mut cluster = cluster("-m");
    let mut first = listen(&mut cluster, &all());
    // The lab has one capture at a time.
    let mut second = listen(&mut cluster, &all());
    let passed = mixture(&mut cluster);
    assert!(captured(&mut cluster, &mut first).is_empty());
    assert_eq!(recorded(&captured(&mut cluster, &mut second)), passed);
}

/// Asserts which of the mixture's packets a capture shows, by their index.
#[track_caller]
fn assert_shown(wanted: &CaptureRequest, method: &str, shown: &[usize]) {
    let mut cluster = cluster(method);
    let mut listener = listen(&mut cluster, wanted);
    let passed = mixture(&mut cluster);
    let passed: Vec<_> = shown.iter().map(|place| passed[*place].clone()).collect();
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), passed, "{wanted:?}");
}

#[test]
fn packets_are_found_by_every_endpoint_of_their_connection_by_service_interface_and_verdict() {
    let by_address = |address: &str| CaptureRequest { address: address.parse().ok(), ..all() };
    // The first packet of a connection also matches the server that is chosen for it.
    assert_shown(&by_address(&server(1).to_string()), "-m", &[0, 1]);
    assert_shown(&by_address("203.0.113.0/24"), "-m", &[0, 1]);
    assert_shown(&by_address(&CLIENT.to_string()), "-m", &[0, 1, 2, 3]);
    assert_shown(&by_address("192.0.2.77"), "-m", &[]);
    // With direct routing no packet has the server's address, and its replies bypass the director.
    assert_shown(&by_address(&server(1).to_string()), "-g", &[0, 1]);
    assert_shown(&CaptureRequest { port: Some(81), ..all() }, "-m", &[2]);
    assert_shown(&CaptureRequest { port: Some(80), ..all() }, "-m", &[0, 1]);
    assert_shown(&CaptureRequest { port: Some(82), ..by_address(&server(1).to_string()) }, "-m", &[]);
    let service = |port| format!("TCP {VIP}:{port}").parse().ok();
    assert_shown(&CaptureRequest { service: service(80), ..all() }, "-m", &[0, 1]);
    assert_shown(&CaptureRequest { service: service(81), ..all() }, "-m", &[2]);
    assert_shown(&CaptureRequest { interface: Some("lan".to_owned()), ..all() }, "-m", &[1]);
    assert_shown(&CaptureRequest { drops: true, ..all() }, "-m", &[2]);
    assert_shown(&CaptureRequest { reason: Some("no_destination".to_owned()), ..all() }, "-m", &[2]);
    assert_shown(&CaptureRequest { reason: Some("no_route".to_owned()), ..all() }, "-m", &[]);
}

#[test]
fn an_unknown_interface_or_reason_is_refused_with_the_list_of_known_ones() {
    let mut cluster = cluster("-m");
    let mut refusal =
        |wanted| cluster.lab().director.capture(&wanted, SLOTS).err().expect("a refusal").to_string();
    let error = refusal(CaptureRequest { interface: Some("eth9".to_owned()), ..all() });
    assert!(error.contains("eth9") && error.contains("xvs status"), "{error}");
    let error = refusal(CaptureRequest { reason: Some("bad_luck".to_owned()), ..all() });
    assert!(error.contains("bad_luck") && error.contains("no_neighbour"), "{error}");
}

/// A UDP request in two fragments.
fn halves(port: u16) -> [Vec<u8>; 2] {
    let whole = Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, port)).carrying(72);
    fragments(&outside(&whole), 40)
}

#[test]
fn a_fragment_is_captured_as_held_and_the_last_one_with_all_frames_sent() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &all());
    let [first, last] = halves(80);
    cluster.inject("wan", &first);
    let judged = cluster.inject("wan", &last);
    assert_eq!(judged.sent.len(), 2);
    let left = judged.sent.into_iter().map(|(link, frame)| (Direction::Out, link, frame));
    let whole = std::iter::once(came("wan", &last)).chain(left).collect();
    let expected = [("held".to_owned(), vec![came("wan", &first)]), ("transmit".to_owned(), whole)];
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), expected);
}

#[test]
fn a_packet_that_waits_for_its_next_hop_is_captured_as_held_and_again_when_it_leaves() {
    let mut cluster = LabCluster::new();
    cluster.configure(&[&format!("-A -u {VIP}:80"), &format!("-a -u {VIP}:80 -r {SILENT}:80 -g")]);
    let mut listener = listen(&mut cluster, &all());
    let request = outside(&Datagram::new(Transport::Udp, at(CLIENT, 4000), at(VIP, 80)));
    cluster.inject("wan", &request);
    cluster.ok(json!({ "neighbor": SILENT, "mac": "02:00:00:00:02:99", "link": "lan" }));
    let left = cluster.wait(0.1).into_iter().map(|(link, frame)| (Direction::Out, link, frame)).collect();
    let expected = [("held".to_owned(), vec![came("wan", &request)]), ("transmit".to_owned(), left)];
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), expected);
    assert_eq!(expected[1].1.len(), 1);
}

#[test]
fn a_held_fragment_is_captured_again_when_it_passes_to_the_kernel_or_is_dropped() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &all());
    let [first, last] = halves(53);
    cluster.inject("wan", &first);
    assert_eq!(cluster.inject("wan", &last).verdict, "pass");
    let before = (Direction::Before, "wan".to_owned(), first.clone());
    let expected = [
        ("held".to_owned(), vec![came("wan", &first)]),
        ("pass".to_owned(), vec![before.clone()]),
        ("pass".to_owned(), vec![came("wan", &last)]),
    ];
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), expected);

    let mut listener = listen(&mut cluster, &CaptureRequest { drops: true, ..all() });
    cluster.inject("wan", &first);
    let answers = cluster.wait(60.0);
    assert_eq!(answers.len(), 1, "its sender receives an error");
    let left = answers.into_iter().map(|(link, frame)| (Direction::Out, link, frame));
    let expected = [("drop fragment_timeout".to_owned(), std::iter::once(before).chain(left).collect())];
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), expected);
}

#[test]
fn frames_of_a_vlan_belong_to_its_interface_and_those_of_an_unknown_tag_stay_tagged() {
    let tagged = |frame: &[u8], vlan| [&frame[..12], &[0x81, 0x00, 0x00, vlan], &frame[12..]].concat();
    let mut cluster = LabCluster::new();
    cluster.ok(json!({ "link": "wan.5", "vlan": 5, "over": "wan", "addresses": ["10.5.0.1/24"] }));
    cluster.ok(json!({ "link": "wan.7", "vlan": 7, "over": "wan", "addresses": ["10.7.0.1/24"] }));
    cluster.ok(json!({ "neighbor": "10.7.0.11", "mac": "02:00:00:00:07:0b", "link": "wan.7" }));
    cluster.configure(&[&format!("-A -t {VIP}:80"), &format!("-a -t {VIP}:80 -r 10.7.0.11:80 -g")]);
    let mut listener = listen(&mut cluster, &all());
    let frame = outside(&request(80, SYN));
    let judged = cluster.inject("wan", &tagged(&frame, 5));
    assert_eq!(cluster.inject("wan", &tagged(&frame, 6)).verdict, "pass");
    let (_, sent) = &judged.sent[0];
    let left = (Direction::Out, "wan.7".to_owned(), [&sent[..12], &sent[16..]].concat());
    let expected = [
        ("transmit".to_owned(), vec![came("wan.5", &frame), left]),
        ("pass".to_owned(), vec![came("wan", &tagged(&frame, 6))]),
    ];
    assert_eq!(recorded(&captured(&mut cluster, &mut listener)), expected);
}

#[test]
fn errors_about_a_connection_match_its_filter_and_the_error_sent_instead_follows_them() {
    for (method, verdict) in [("-m", "transmit"), ("-i", "consumed")] {
        let mut cluster = cluster(method);
        let service = format!("TCP {VIP}:80").parse().ok();
        let wanted = if method == "-m" {
            CaptureRequest { service, ..all() }
        } else {
            CaptureRequest { address: server(1).to_string().parse().ok(), ..all() }
        };
        let first = Datagram { dont_fragment: true, ..request(80, SYN).carrying(1000) };
        let judged = cluster.from_client(&first);
        let mut listener = listen(&mut cluster, &wanted);
        let error = Complaint::fragmentation_needed(600).about(&judged.sent[0].1[14..], server(2), 0);
        let error = ethernet(server_mac(2), LAN_MAC, EtherType::IPV4, &error);
        let judged = cluster.inject("lan", &error);
        assert_eq!((judged.verdict.as_str(), judged.sent.len()), (verdict, 1), "{method}");
        let left = judged.sent.into_iter().map(|(link, frame)| (Direction::Out, link, frame));
        let expected = (verdict.to_owned(), std::iter::once(came("lan", &error)).chain(left).collect());
        assert_eq!(recorded(&captured(&mut cluster, &mut listener)), [expected], "{method}");
    }
}

#[test]
fn fullnat_replies_are_found_by_their_client() {
    let mut cluster = LabCluster::new();
    cluster.xvs("laddr add 203.0.113.1");
    let dest = at(server(1), 80);
    cluster.configure(&[&format!("-A -t {VIP}:80"), &format!("-a -t {VIP}:80 -r {dest} --fullnat")]);
    let sent = cluster.from_client(&request(80, SYN)).sent.remove(0).1;
    let local = at([sent[26], sent[27], sent[28], sent[29]], u16::from_be_bytes([sent[34], sent[35]]));
    let by_client = CaptureRequest { address: CLIENT.to_string().parse().ok(), ..all() };
    let mut listener = listen(&mut cluster, &by_client);
    let judged = cluster.from_server(&Datagram::new(Transport::Tcp(SYN_ACK), dest, local));
    assert_eq!(judged.verdict, "transmit");
    assert_eq!(captured(&mut cluster, &mut listener).len(), 1);
}

#[test]
fn a_full_queue_misses_copies_counts_them_and_delays_no_packet() {
    let mut cluster = cluster("-m");
    let mut listener = cluster.lab().director.capture(&all(), 3).unwrap_or_else(|error| panic!("{error}"));
    for _ in 0..5 {
        assert_eq!(cluster.from_client(&request(80, SYN)).sent.len(), 1);
    }
    assert_balance(&cluster.counters());
    let (packets, missed) = cluster.lab().director.captured(&mut listener);
    let frames: Vec<_> = packets.iter().map(|packet| packet.frames.len()).collect();
    assert_eq!((frames, missed), (vec![2, 1], Missed::from([("wan".to_owned(), 7)])));
    // Reading frees the queue.
    cluster.from_client(&request(80, ACK));
    let (packets, missed) = cluster.lab().director.captured(&mut listener);
    assert_eq!((packets.len(), missed["wan"]), (1, 7));
}

/// A file that is removed when it is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The form in which tshark prints a file.
enum Reading<'a> {
    /// These fields of each frame.
    Fields(&'a [&'a str]),
    /// Its blocks.
    Blocks,
}

/// The lines that tshark prints for a file.
fn read(name: &str, packets: &[CapturedPacket], missed: &Missed, what: Reading<'_>) -> Vec<String> {
    let file = Scratch(env::temp_dir().join(format!("xvs-{}-{name}.pcapng", process::id())));
    let mut blocks = Blocks::new(4096).unwrap();
    packets.iter().for_each(|packet| blocks.packet(packet).unwrap());
    blocks.statistics(missed).unwrap();
    fs::write(&file.0, blocks.take()).unwrap();
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(&file.0);
    match what {
        Reading::Fields(fields) => {
            command.args(["-T", "fields", "-E", "separator=|"]);
            fields.iter().for_each(|field| _ = command.args(["-e", field]));
        }
        Reading::Blocks => _ = command.args(["-X", "read_format:MIME Files Format", "-V"]),
    }
    command.env("TZ", "UTC");
    succeed(&mut command).lines().map(str::to_owned).collect()
}

#[test]
fn tshark_reads_interfaces_directions_times_lengths_and_comments() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &CaptureRequest { snap_bytes: 50, ..all() });
    mixture(&mut cluster);
    let mut packets = captured(&mut cluster, &mut listener);
    for (place, frame) in packets.iter_mut().flat_map(|packet| &mut packet.frames).enumerate() {
        frame.nanoseconds = 1_700_000_000_123_456_789 + place as u64;
    }
    let fields = [
        "frame.interface_name",
        "frame.packet_flags_direction",
        "frame.time_epoch",
        "frame.len",
        "frame.cap_len",
        "frame.comment",
    ];
    let no_destination = "drop no_destination: each real server that the scheduler may choose for the client has weight \
                          0 or is overloaded, or there is none; the client got an ICMP error";
    let expected = [
        "wan|0x00000001|1700000000.123456789|54|50|xvs: transmit".to_owned(),
        "lan|0x00000002|1700000000.123456790|54|50|xvs: transmit".to_owned(),
        "lan|0x00000001|1700000000.123456791|54|50|xvs: transmit".to_owned(),
        "wan|0x00000002|1700000000.123456792|54|50|xvs: transmit".to_owned(),
        format!("wan|0x00000001|1700000000.123456793|54|50|xvs: {no_destination}"),
        "wan|0x00000002|1700000000.123456794|82|50|xvs: an ICMP error of the director's own, because of the packet \
         before"
            .to_owned(),
        "wan|0x00000001|1700000000.123456795|54|50|xvs: pass: passed to the kernel, as if xvs were absent"
            .to_owned(),
    ];
    assert_eq!(read("fields", &packets, &Missed::new(), Reading::Fields(&fields)), expected);
}

#[test]
fn tshark_reads_the_counts_of_captured_and_missed_frames_of_each_interface() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &all());
    mixture(&mut cluster);
    let mut packets = captured(&mut cluster, &mut listener);
    for frame in packets.iter_mut().flat_map(|packet| &mut packet.frames) {
        frame.nanoseconds = 1_700_000_000_123_456_789;
    }
    let missed = Missed::from([("lan".to_owned(), 3), ("other".to_owned(), 1)]);
    let said = read("statistics", &packets, &missed, Reading::Blocks);
    // tshark 4.4 numbers the blocks.
    let lines = said.iter().map(|line| line.trim());
    let blocks =
        lines.filter(|line| line.starts_with("Block") && line.ends_with(": Interface Statistics Block"));
    assert_eq!(blocks.count(), 3, "{said:#?}");
    let values = |what: &str| {
        let of = |line: &String| line.trim().strip_prefix(what).map(str::to_owned);
        said.iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(values("Number of Received Packets: "), ["5", "5", "1"]);
    assert_eq!(values("Number of Dropped Packets: "), ["0", "3", "1"]);
    assert_eq!(values("Number of Delivered to the User Packets: "), ["5", "2", "0"]);
    let time = "[Timestamp: Nov 14, 2023 22:13:20.123456789 UTC]";
    assert!(said.iter().filter(|line| line.trim() == time).count() >= 2, "{said:#?}");
}

#[test]
fn frames_are_in_the_file_byte_for_byte() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &all());
    let passed = mixture(&mut cluster);
    let packets = captured(&mut cluster, &mut listener);
    let file = Scratch(env::temp_dir().join(format!("xvs-{}-bytes.pcapng", process::id())));
    let mut blocks = Blocks::new(4096).unwrap();
    packets.iter().for_each(|packet| blocks.packet(packet).unwrap());
    fs::write(&file.0, blocks.take()).unwrap();
    let dump = succeed(Command::new("tcpdump").args(["-n", "-t", "-xx", "-r"]).arg(&file.0));
    let mut read: Vec<String> = Vec::new();
    for line in dump.lines() {
        match line.trim_start().strip_prefix("0x").and_then(|line| line.split_once(':')) {
            Some((_, digits)) => read.last_mut().unwrap().push_str(&digits.replace(' ', "")),
            None => read.push(String::new()),
        }
    }
    let frames = passed.iter().flat_map(|(_, frames)| frames).map(|(_, _, bytes)| hex(bytes));
    assert_eq!(read, frames.collect::<Vec<_>>());
}

#[test]
fn a_packet_is_a_line_and_a_reason_is_explained_once() {
    let mut cluster = cluster("-m");
    let mut listener = listen(&mut cluster, &all());
    mixture(&mut cluster);
    cluster.from_client(&request(81, SYN));
    let mut lines = Lines::default();
    let packets = captured(&mut cluster, &mut listener);
    let lines: Vec<_> = packets.iter().map(|packet| lines.line(packet)[16..].to_owned()).collect();
    let (client, dest) = (at(CLIENT, 4000), at(server(1), 80));
    assert_eq!(lines[0], format!("wan {client} > {VIP}:80 TCP S 54 -> lan {dest}"));
    assert_eq!(lines[1], format!("lan {dest} > {client} TCP S. 54 -> wan {client}"));
    let refused = format!("wan {client} > {VIP}:81 TCP S 54 drop no_destination");
    assert!(lines[2].starts_with(&format!("{refused}: each real server that the scheduler")), "{}", lines[2]);
    assert_eq!(lines[3], format!("wan {client} > {VIP}:82 TCP S 54 pass"));
    assert_eq!(lines[4], format!("{refused} -> wan {CLIENT}"));
}

#[test]
fn captures_do_not_affect_forwarding() {
    let mut counted = [false, true].map(|watched| {
        let mut cluster = cluster("-m");
        let listener = watched.then(|| listen(&mut cluster, &all()));
        let passed = mixture(&mut cluster);
        for frame in halves(80) {
            cluster.inject("wan", &frame);
        }
        drop(listener);
        (passed, cluster.counters(), cluster.connections())
    });
    let [without, with] = &mut counted;
    assert_eq!(without, with);
}
