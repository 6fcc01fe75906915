//! QUIC connection IDs in the lab (`xvs quic`): which real server a packet gets, what the scheduler decides, and what
//! is refused.
//!
//! Connection IDs are the vectors of draft-ietf-quic-load-balancers-21, appendix B. Not here: their bytes
//! (`server_id.rs` of `proto`), QUIC itself (`netlab/quic.rs`).

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::{env, process};

use etherparse::EtherType;
use serde_json::{Value, json};
use xvs::frames::{Complaint, Datagram, ethernet, hex, unhex};
use xvs::lab_cluster::{
    CLIENT, CLIENT6, GATEWAY_MAC, INSIDE, INSIDE6, VIP, VIP6, WAN_MAC, at, server, server_mac, server6,
};
use xvs::{Judged, LabCluster, Transport};

/// A connection ID of configuration 0 without a key, whose server ID is [`PLAIN_ID`].
const PLAIN: &str = "07c4605e4504cc4f";
const PLAIN_ID: &str = "c4605e";
/// One of configuration 0 with [`KEY`], whose server ID is [`SECRET_ID`].
const SECRET: &str = "0720b1d07b359d3c";
const SECRET_ID: &str = "ed793a";
/// One of configuration 2 with [`KEY`], in one block, whose server ID is [`BLOCK_ID`].
const BLOCK: &str = "504dd2d05a7b0de9b2b9907afb5ecf8cc3";
const BLOCK_ID: &str = "ed793a51d49b8f5f";
const KEY: &str = "8f95f09245765f80256934e50c66207f";

/// A service with three real servers in turns, of which the third has an ID of configuration 0.
fn plain(method: &str) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.configure(&[&format!("-A -u {VIP}:443 -s rr")]);
    for number in 1..=3 {
        cluster.adm(&format!("-a -u {VIP}:443 -r {}:443 {method}", server(number)));
    }
    with_plain_id(&mut cluster, &format!("-u {VIP}:443"), &format!("{}:443", server(3)));
    cluster
}

fn with_plain_id(cluster: &mut LabCluster, service: &str, real_server: &str) {
    cluster.xvs(&format!("quic add {service} --config 0 --server-id-length 3 --nonce-length 4"));
    cluster.xvs(&format!("quic server-id {service} -r {real_server} {PLAIN_ID}"));
}

/// A file with a key; removed when dropped.
struct KeyFile(PathBuf);

impl KeyFile {
    fn new(name: &str, text: &str, mode: u32) -> Self {
        let path = env::temp_dir().join(format!("xvs-quic-{}-{name}", process::id()));
        fs::write(&path, text).expect("a temporary file");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("its mode");
        Self(path)
    }
}

impl Drop for KeyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A packet with a short header, which continues a connection.
fn short(id: &str) -> Vec<u8> {
    unhex(&format!("41{id}a5a5a5a5"))
}

/// A packet with a long header, a client's Initial of version 1.
fn long(id: &str) -> Vec<u8> {
    unhex(&format!("c000000001{:02x}{id}00a5a5a5", id.len() / 2))
}

fn send(cluster: &mut LabCluster, port: u16, data: &[u8]) -> Judged {
    let data = data.to_vec();
    cluster.from_client(&Datagram { data, ..Datagram::new(Transport::Udp, at(CLIENT, port), at(VIP, 443)) })
}

/// The number of the real server that the packet was sent to.
fn reached(judged: &Judged) -> u8 {
    let [(_, frame)] = &judged.sent[..] else { panic!("one frame: {judged:?}") };
    (1..=9).find(|number| frame[..6] == server_mac(*number)).expect("a real server")
}

/// The number of the real server that a client's packet from this port gets.
fn server_of(cluster: &mut LabCluster, port: u16, data: &[u8]) -> u8 {
    let judged = send(cluster, port, data);
    reached(&judged)
}

fn counters(cluster: &mut LabCluster) -> [u64; 2] {
    let all = cluster.counters();
    ["quic_routed", "quic_unroutable"].map(|name| all.get(name).copied().unwrap_or(0))
}

#[test]
fn a_client_that_has_moved_keeps_its_server_by_every_method_and_the_scheduler_is_left_alone() {
    for method in ["-m", "-g", "-i", "--fullnat"] {
        let mut cluster = plain(method);
        cluster.xvs(&format!("laddr add {INSIDE}"));
        // The one added last comes first.
        let ports = [(1000, short(PLAIN), 3), (1001, vec![], 3), (1002, short(PLAIN), 3), (1003, vec![], 2)];
        for (port, data, expected) in ports {
            assert_eq!(server_of(&mut cluster, port, &data), expected, "{method}, port {port}");
        }
        assert_eq!(counters(&mut cluster), [2, 0]);
        assert_eq!(server_of(&mut cluster, 1003, &short(PLAIN)), 2, "a connection that exists needs no ID");
        assert_eq!(counters(&mut cluster), [2, 0]);
    }
}

#[test]
fn it_does_over_ipv6_too() {
    for method in ["-m", "-g", "-i", "--fullnat"] {
        let mut cluster = LabCluster::new();
        let vip = format!("[{VIP6}]:443");
        cluster.configure(&[&format!("-A -u {vip} -s rr")]);
        for number in 1..=3 {
            cluster.adm(&format!("-a -u {vip} -r [{}]:443 {method}", server6(number)));
        }
        cluster.xvs(&format!("laddr add {INSIDE6}"));
        with_plain_id(&mut cluster, &format!("-u {vip}"), &format!("[{}]:443", server6(1)));
        for port in 1000..1004 {
            let datagram = Datagram::new(Transport::Udp, at(CLIENT6, port), at(VIP6, 443));
            let judged = cluster.from_client(&Datagram { data: short(PLAIN), ..datagram });
            assert_eq!(reached(&judged), 1, "{method}");
        }
    }
}

#[test]
fn ids_that_name_no_server_are_scheduled_and_those_of_short_headers_are_counted() {
    let mut cluster = plain("-m");
    let other_id = "07c4605f4504cc4f";
    let other_configuration = "27c4605e4504cc4f";
    let without_configuration = "e7c4605e4504cc4f";
    let packets = [
        (short(other_id), 1),
        (short(other_configuration), 1),
        (short(without_configuration), 1),
        // Too short by a byte.
        (short(PLAIN)[..8].to_vec(), 1),
        (vec![0x40], 1),
        (long(other_id), 0),
        (long(""), 0),
        (long(&PLAIN[..14]), 0),
        // Its ID is longer than the packet.
        (long(PLAIN)[..10].to_vec(), 0),
        (vec![0xc0], 0),
        (vec![], 0),
    ];
    for (number, ((data, unroutable), turn)) in packets.iter().zip([3, 2, 1].into_iter().cycle()).enumerate()
    {
        let before = counters(&mut cluster);
        assert_eq!(server_of(&mut cluster, 1000 + number as u16, data), turn, "{data:02x?}");
        assert_eq!(counters(&mut cluster), [0, before[1] + unroutable], "{data:02x?}");
    }
}

#[test]
fn a_server_without_new_connections_keeps_moved_ones_and_gets_none_by_a_long_header() {
    let mut cluster = plain("-m");
    assert_eq!(
        [1000, 1001].map(|port| server_of(&mut cluster, port, &long(PLAIN))),
        [3, 3],
        "as any ID does"
    );
    for quiescent in ["-m -w 0", "-m -w 1 -x 1"] {
        cluster.adm(&format!("-e -u {VIP}:443 -r {}:443 {quiescent}", server(3)));
        let first = if quiescent.contains("-x") { 1100 } else { 1200 };
        assert_eq!(server_of(&mut cluster, first, &short(PLAIN)), 3, "{quiescent}");
        assert_ne!(server_of(&mut cluster, first + 1, &long(PLAIN)), 3, "{quiescent}");
    }
    cluster.adm(&format!("-e -u {VIP}:443 -r {}:443 -m", server(3)));
    cluster.xvs(&format!("disable {}", server(3)));
    assert_eq!(server_of(&mut cluster, 1300, &short(PLAIN)), 3, "disabled");
    cluster.adm(&format!("-d -u {VIP}:443 -r {}:443", server(3)));
    assert_ne!(server_of(&mut cluster, 1400, &short(PLAIN)), 3, "removed");
    assert_eq!(counters(&mut cluster), [5, 1]);
    cluster.xvs(&format!("enable {}", server(3)));
    cluster.adm(&format!("-a -u {VIP}:443 -r {}:443 -m", server(3)));
    assert_eq!(server_of(&mut cluster, 1500, &short(PLAIN)), 3, "its ID has outlived it");
}

#[test]
fn an_id_decides_without_the_clients_template_and_makes_none() {
    let mut cluster = plain("-m");
    cluster.adm(&format!("-E -u {VIP}:443 -s rr -p 300"));
    assert_eq!([1000, 1001].map(|port| server_of(&mut cluster, port, &short(PLAIN))), [3, 3]);
    let templates = |cluster: &mut LabCluster| cluster.adm("-Lnc").matches(&format!("{CLIENT}:0 ")).count();
    assert_eq!(templates(&mut cluster), 0);
    server_of(&mut cluster, 1002, &[]);
    assert_eq!(templates(&mut cluster), 1);
    let kept = server_of(&mut cluster, 1003, &[]);
    cluster.adm(&format!("-e -u {VIP}:443 -r {}:443 -m -w 0", server(3)));
    assert_eq!(server_of(&mut cluster, 1004, &short(PLAIN)), 3);
    assert_eq!(server_of(&mut cluster, 1005, &[]), kept);
}

#[test]
fn single_datagrams_and_services_of_marks_are_routed_too_and_limits_of_clients_hold() {
    let mut cluster = plain("-m");
    cluster.adm(&format!("-E -u {VIP}:443 -s rr -o"));
    assert_eq!([(); 4].map(|()| server_of(&mut cluster, 1000, &short(PLAIN))), [3; 4]);

    let mut cluster = LabCluster::new();
    cluster.configure(&["-A -f 7 -s rr"]);
    for number in 1..=2 {
        cluster.adm(&format!("-a -f 7 -r {}:443 -m", server(number)));
    }
    cluster.xvs(&format!("mark add -d {VIP} -p udp --dport 443 --set-mark 7"));
    with_plain_id(&mut cluster, "-f 7", &format!("{}:443", server(1)));
    assert_eq!([1000, 1001, 1002].map(|port| server_of(&mut cluster, port, &short(PLAIN))), [1; 3]);

    cluster.xvs("limit set -f 7 --connections 1");
    let port = 2000;
    assert_eq!(server_of(&mut cluster, port, &short(PLAIN)), 1);
    assert_eq!(send(&mut cluster, port + 1, &short(PLAIN)).verdict, "drop client_connections");
}

#[test]
fn the_id_in_a_packet_that_an_icmp_error_quotes_is_that_of_a_client_and_is_not_read() {
    let mut cluster = plain("-m");
    cluster.ok(json!({ "set": { "schedule_icmp": 1 } }));
    for (port, turn) in [(1000, 3), (1001, 2), (1002, 1)] {
        let reply = Datagram::new(Transport::Udp, at(VIP, 443), at(CLIENT, port));
        let reply = Datagram { data: short(PLAIN), ..reply }.packet();
        let error = Complaint(3, 3, [0; 4]).about(&reply, CLIENT, 7);
        let judged = cluster.inject("wan", &ethernet(GATEWAY_MAC, WAN_MAC, EtherType::IPV4, &error));
        assert_eq!(reached(&judged), turn);
    }
    assert_eq!(counters(&mut cluster), [0, 0]);
}

#[test]
fn encrypted_ids_of_several_configurations_are_read_while_keys_are_rotated() {
    let mut cluster = plain("-m");
    let (vip, key) = (format!("-u {VIP}:443"), KeyFile::new("rotated", KEY, 0o600));
    let key = key.0.display();
    let lengths =
        |id: u8, nonce: u8| format!("--server-id-length {id} --nonce-length {nonce} --key-file {key}");
    cluster.xvs(&format!("quic add {vip} --config 2 {}", lengths(8, 8)));
    cluster.xvs(&format!("quic server-id {vip} -r {}:443 {BLOCK_ID}", server(1)));
    assert_eq!(server_of(&mut cluster, 1000, &short(BLOCK)), 1);
    assert_eq!(server_of(&mut cluster, 1001, &short(PLAIN)), 3);
    // The number of a configuration that no connection uses any more gets a new meaning.
    cluster.xvs(&format!("quic delete {vip} --config 0"));
    assert_eq!(server_of(&mut cluster, 1002, &short(PLAIN)), 3, "the first turn");
    cluster.xvs(&format!("quic add {vip} --config 0 {}", lengths(3, 4)));
    cluster.xvs(&format!("quic server-id {vip} -r {}:443 {SECRET_ID}", server(2)));
    assert_eq!(server_of(&mut cluster, 1003, &short(SECRET)), 2);
    assert_eq!(server_of(&mut cluster, 1004, &short(BLOCK)), 1);
    assert_eq!(counters(&mut cluster), [4, 1]);
    cluster.xvs(&format!("quic delete-server-id {vip} {SECRET_ID}"));
    server_of(&mut cluster, 1005, &short(SECRET));
    assert_eq!(counters(&mut cluster), [4, 2]);
}

#[test]
fn saved_rules_give_the_same_again_and_no_listing_has_the_key() {
    let mut cluster = plain("-m");
    let key = KeyFile::new("saved", KEY, 0o640);
    let vip = format!("-u {VIP}:443");
    let add = format!("--server-id-length 8 --nonce-length 8 --key-file {}", key.0.display());
    cluster.xvs(&format!("quic add {vip} --config 2 {add}"));
    cluster.xvs(&format!("quic server-id {vip} -r {}:443 {BLOCK_ID}", server(1)));
    // An ID of a length that no configuration has any more.
    cluster.xvs(&format!("quic delete {vip} --config 0"));
    let saved = cluster.adm("-Sn");
    for line in [
        format!("#xvs quic add {vip} --config 2 {add}"),
        format!("#xvs quic server-id {vip} -r {}:443 {BLOCK_ID}", server(1)),
        format!("#xvs quic server-id {vip} -r {}:443 {PLAIN_ID}", server(3)),
    ] {
        assert!(saved.lines().any(|saved| saved == line), "{line} is not in {saved}");
    }
    let json: Value = serde_json::from_str(&cluster.xvs("quic list --json")).expect("JSON");
    assert_eq!(json[0]["configs"][0]["config"], 2, "{json}");
    assert_eq!(json[0]["server_ids"].as_array().map(Vec::len), Some(2), "{json}");
    assert!(![saved.clone(), json.to_string(), cluster.xvs("quic list")].concat().contains(KEY));

    let mut other = LabCluster::new();
    let rules = other.ask(json!({ "adm": ["-R"], "stdin": saved }));
    assert_eq!(rules["exit"], 0, "{rules}");
    assert_eq!(other.adm("-Sn"), saved);
    assert_eq!(server_of(&mut other, 1000, &short(BLOCK)), 1);
}

#[test]
fn a_key_file_that_is_missing_wrong_or_open_to_every_user_is_refused_with_the_next_step() {
    let mut cluster = plain("-m");
    let vip = format!("-u {VIP}:443");
    let wrong = KeyFile::new("wrong", &KEY[2..], 0o600);
    let open = KeyFile::new("open", KEY, 0o644);
    for (file, expected) in [
        (
            &env::temp_dir().join("xvs-quic-none"),
            "No such file or directory (os error 2); `openssl rand -hex 16`",
        ),
        (&wrong.0, "not 32 hexadecimal digits; `openssl rand -hex 16` prints a key"),
        (&open.0, "every user may read or change it; `chmod o= /"),
    ] {
        let add = format!("quic add {vip} --config 1 --server-id-length 3 --nonce-length 4");
        let (exit, text) = cluster.xvs_reading(&format!("{add} --key-file {}", file.display()));
        assert_eq!(exit, 3, "{text}");
        assert!(text.contains(&format!("QUIC key {}: {expected}", file.display())), "{text}");
    }
    let tcp = format!("quic add -t {VIP}:443 --config 1 --server-id-length 3 --nonce-length 4");
    let (exit, text) = cluster.xvs_reading(&tcp);
    assert_eq!(exit, 3, "{text}");
    assert!(text.contains("QUIC over another protocol than UDP"), "{text}");
    let (exit, text) = cluster.xvs_reading(&format!("quic server-id -u {VIP}:443 -r {}:443 xyz", server(1)));
    assert_eq!(exit, 2, "{text}");
    assert!(text.contains("two hexadecimal digits each"), "{text}");
}

#[test]
fn an_explanation_says_which_server_an_id_names_or_why_none() {
    let mut cluster = plain("-m");
    let explain = |cluster: &mut LabCluster, data: Vec<u8>| {
        let datagram = Datagram::new(Transport::Udp, at(CLIENT, 1000), at(VIP, 443));
        let frame = hex(&Datagram { data, ..datagram }.frame(GATEWAY_MAC, WAN_MAC));
        let report = cluster.ask(json!({ "explain": { "in": "wan", "frame": frame } }));
        let is_scheduled = report.get("choice").is_some();
        (report["quic"].as_str().unwrap_or_default().to_owned(), is_scheduled)
    };
    let named = format!("its QUIC connection ID chooses {}:443", server(3));
    assert_eq!(explain(&mut cluster, short(PLAIN)), (named, false));
    let none = "its QUIC connection ID chooses no real server: ";
    for (data, why) in [
        (short("07c4605f4504cc4f"), "no real server of the service has server ID c4605f"),
        (short("a7c4605e4504cc4f"), "the service has no configuration 5 in force"),
        (long("07"), "it has none, or one that is too short"),
    ] {
        assert_eq!(explain(&mut cluster, data), (format!("{none}{why}"), true));
    }
    cluster.adm(&format!("-e -u {VIP}:443 -r {}:443 -m -w 0", server(3)));
    let (text, is_scheduled) = explain(&mut cluster, long(PLAIN));
    assert!(text.ends_with("gets no new connections") && is_scheduled, "{text}");
    assert_eq!(counters(&mut cluster), [0, 0], "an explanation changes nothing");
    send(&mut cluster, 1000, &short(PLAIN));
    assert_eq!(explain(&mut cluster, short(PLAIN)), (String::new(), false), "its connection exists");
}
