//! Connection synchronization through the lab: which connections a master announces, and when, how they continue at a
//! backup, and what a backup makes of any message.
//!
//! Not here: the kernel's messages (`conformance/main.rs`), sockets and VRRP (`netlab/sync.rs`).

use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;
use serde_json::{Value, json};
use xvs::frames::{ACK, FIN, SYN, hex};
use xvs::lab_cluster::{CLIENT, CLIENT6, INSIDE, INSIDE6, VIP, VIP6, at, server, server6};
use xvs::{Datagram, LabCluster, Transport};
use xvs_proto::sync::{Entry, Version};
use xvs_proto::{Endpoint, Protocol};

fn with_daemon(role: &str, services: &[String]) -> LabCluster {
    let mut cluster = LabCluster::new();
    cluster.xvs(&format!("laddr add {INSIDE}"));
    for line in services {
        cluster.adm(line);
    }
    cluster.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7"));
    cluster
}

/// The payloads of the messages that a master sends in this time.
fn messages(master: &mut LabCluster, seconds: f64) -> Vec<String> {
    let answer = master.ask(json!({ "advance": seconds }));
    let messages = answer["sync"].as_array().expect("a master daemon runs");
    messages.iter().map(|message| message["payload"].as_str().expect("a text").to_owned()).collect()
}

/// The number of entries in messages of version 1.
fn entries(messages: &[String]) -> usize {
    messages.iter().map(|message| usize::from_str_radix(&message[8..10], 16).expect("a number")).sum()
}

fn tcp(flags: u8, from: SocketAddr, to: SocketAddr) -> Datagram {
    Datagram { dont_fragment: true, ..Datagram::new(Transport::Tcp(flags), from, to) }
}

#[test]
fn a_connection_of_each_method_is_forwarded_at_the_backup_as_at_the_master() {
    let (client, service, dest) = (at(CLIENT, 1000), at(VIP, 80), at(server(2), 80));
    for (method, is_standby) in
        [("-g", false), ("-m", false), ("-i", false), ("--fullnat", false), ("--fullnat", true)]
    {
        let services = [
            format!("-A -t {service} -s rr"),
            format!("-a -t {service} -r {} {method}", at(server(1), 80)),
            format!("-a -t {service} -r {dest} {method}"),
        ];
        let [mut master, mut backup] = ["master", "backup"].map(|role| with_daemon(role, &services));
        if is_standby {
            backup.xvs(&format!("laddr delete {INSIDE}"));
            backup.xvs(&format!("laddr add {INSIDE} --standby"));
            let refused = backup.from_client(&tcp(SYN, at(CLIENT, 2000), service));
            assert_eq!(refused.verdict, "drop no_local_address");
        }
        let begun = master.from_client(&tcp(SYN, client, service));
        let masquerades = matches!(method, "-m" | "--fullnat");
        // What the server sees as the client.
        let source = match method {
            "--fullnat" => {
                let frame = &begun.sent[0].1;
                at(INSIDE, u16::from_be_bytes([frame[34], frame[35]]))
            }
            _ => client,
        };
        if masquerades {
            master.from_server(&tcp(SYN | ACK, dest, source));
        }
        for _ in 0..2 {
            master.from_client(&tcp(ACK, client, service));
        }
        for message in messages(&mut master, 4.0) {
            backup.ok(json!({ "sync": message, "link": "lan" }));
        }
        assert_eq!(
            backup.connections(),
            master
                .connections()
                .iter()
                .map(|row| {
                    // The deadline of the message counts from its arrival.
                    row.replacen("14:56", "15:00", 1)
                })
                .collect::<Vec<_>>(),
            "{method}"
        );
        assert_eq!(backup.total_load(), (1, 0), "{method}");
        let data = tcp(ACK, client, service).carrying(100);
        let [here, there] = [&mut master, &mut backup].map(|cluster| cluster.from_client(&data));
        assert_eq!((&there.verdict, &there.sent), (&here.verdict, &here.sent), "{method}");
        assert_eq!(there.verdict, "transmit", "{method}");
        if masquerades {
            let reply = tcp(ACK, dest, source).carrying(100);
            let [here, there] = [&mut master, &mut backup].map(|cluster| cluster.from_server(&reply));
            assert_eq!((&there.verdict, &there.sent), (&here.verdict, &here.sent), "{method}");
            assert_eq!(there.verdict, "transmit", "{method}");
        }
        // Its end is announced, and counted there.
        master.from_client(&tcp(FIN | ACK, client, service));
        for message in messages(&mut master, 4.0) {
            backup.ok(json!({ "sync": message, "link": "lan" }));
        }
        assert_eq!(backup.total_load(), (0, 1), "{method}");
    }
}

#[test]
fn connections_and_templates_between_families_are_forwarded_at_the_backup_as_at_the_master() {
    for (client, vip, dest, local) in [
        (IpAddr::from(CLIENT6), IpAddr::from(VIP6), IpAddr::from(server(1)), IpAddr::from(INSIDE)),
        (CLIENT.into(), VIP.into(), server6(1).into(), INSIDE6.into()),
    ] {
        let (service, dest) = (at(vip, 80), at(dest, 80));
        let services =
            [format!("-A -t {service} -s rr -p 300"), format!("-a -t {service} -r {dest} --fullnat")];
        let [mut master, mut backup] = ["master", "backup"].map(|role| with_daemon(role, &services));
        for cluster in [&mut master, &mut backup] {
            cluster.ask(json!({ "xvs": ["laddr", "add", INSIDE6.to_string()] }));
        }
        let client = at(client, 1000);
        let begun = master.from_client(&tcp(SYN, client, service)).sent.remove(0).1;
        let port = if dest.is_ipv4() { &begun[34..36] } else { &begun[54..56] };
        let local = at(local, u16::from_be_bytes([port[0], port[1]]));
        let reply = |flags| tcp(flags, dest, local);
        master.from_server(&reply(SYN | ACK));
        for _ in 0..2 {
            master.from_client(&tcp(ACK, client, service));
        }
        let told = messages(&mut master, 4.0);
        assert!(entries(&told) >= 2, "a template and a connection: {told:?}");
        for message in told {
            backup.ok(json!({ "sync": message, "link": "lan" }));
        }
        let ends = |cluster: &mut LabCluster| {
            let ends = |row: &String| row.split_whitespace().skip(2).map(str::to_owned).collect::<Vec<_>>();
            let mut rows: Vec<_> = cluster.connections().iter().map(ends).collect();
            rows.sort();
            rows
        };
        assert_eq!(ends(&mut backup), ends(&mut master));
        // Over IPv4 without an identification, which each director chooses.
        let data = tcp(ACK, client, service).carrying(1300);
        let [here, there] = [&mut master, &mut backup].map(|cluster| cluster.from_client(&data));
        assert_eq!((&there.verdict, &there.sent), (&here.verdict, &here.sent));
        assert_eq!(there.verdict, "transmit");
        let reply = reply(ACK).carrying(1300);
        let [here, there] = [&mut master, &mut backup].map(|cluster| cluster.from_server(&reply));
        assert_eq!((&there.verdict, &there.sent), (&here.verdict, &here.sent));
        assert_eq!(there.verdict, "transmit");
    }
}

#[test]
fn datagrams_get_their_proxy_header_at_the_backup_as_at_the_master() {
    let (service, dest, client) = (at(VIP, 53), at(server(1), 53), at(CLIENT, 1000));
    let services = [
        format!("-A -u {service} -s rr --client-address proxy"),
        format!("-a -u {service} -r {dest} --fullnat"),
    ];
    let [mut master, mut backup] = ["master", "backup"].map(|role| with_daemon(role, &services));
    let request = Datagram { dont_fragment: true, ..Datagram::new(Transport::Udp, client, service) };
    for _ in 0..3 {
        master.from_client(&request.clone().carrying(30));
    }
    let told = messages(&mut master, 4.0);
    assert!(entries(&told) > 0, "{told:?}");
    for message in told {
        backup.ok(json!({ "sync": message, "link": "lan" }));
    }
    let data = request.carrying(40);
    let [here, there] = [&mut master, &mut backup].map(|cluster| cluster.from_client(&data));
    assert_eq!((&there.verdict, &there.sent), (&here.verdict, &here.sent));
    assert_eq!((there.verdict.as_str(), there.sent[0].1.len()), ("transmit", 14 + 28 + 28 + 40));
}

/// A master with an established connection, and a client that sends a packet each second.
fn announced_in(seconds: usize, settings: &[(&str, Value)]) -> Vec<usize> {
    let service = at(VIP, 80);
    let services = [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {} -g", server(1))];
    let mut master = with_daemon("master", &services);
    for (key, value) in settings {
        master.ok(json!({ "set": { *key: value } }));
    }
    let client = at(CLIENT, 1000);
    master.from_client(&tcp(SYN, client, service));
    let mut told = Vec::new();
    for second in 0..seconds {
        master.from_client(&tcp(ACK, client, service));
        if entries(&messages(&mut master, 1.0)) > 0 {
            // A message leaves two seconds after its first entry.
            told.push(second.saturating_sub(1));
        }
    }
    told
}

#[test]
fn a_connection_is_announced_by_its_packets_or_by_the_refresh_period_with_its_retries() {
    // The SYN is its first packet.
    assert_eq!(announced_in(30, &[("sync_threshold", json!("3 10"))]), [1, 11, 21]);
    assert_eq!(announced_in(30, &[("sync_threshold", json!("3 0"))]), [1]);
    let refresh = [("sync_threshold", json!("3 0")), ("sync_refresh_period", json!(10))];
    assert_eq!(announced_in(30, &refresh), [0, 10, 20]);
    let retries =
        [("sync_threshold", json!("3 0")), ("sync_refresh_period", json!(80)), ("sync_retries", json!(2))];
    assert_eq!(announced_in(115, &retries), [0, 10, 20, 100, 110]);
}

#[test]
fn a_template_is_announced_again_when_it_outlives_its_timeout() {
    let service = at(VIP, 80);
    let services = [format!("-A -t {service} -s rr -p 20"), format!("-a -t {service} -r {} -g", server(1))];
    let mut master = with_daemon("master", &services);
    master.ok(json!({ "set": { "sync_threshold": "1 0" } }));
    for flags in [SYN, ACK] {
        master.from_client(&tcp(flags, at(CLIENT, 1000), service));
    }
    assert!(entries(&messages(&mut master, 5.0)) > 0);
    assert_eq!(entries(&messages(&mut master, 12.0)), 0);
    let again = messages(&mut master, 10.0);
    // A template without a port of the client, now for a minute.
    assert_eq!((again.len(), &again[0][36..40], &again[0][56..64]), (1, "0000", "0000003c"));
}

#[test]
fn a_template_of_a_drained_server_is_announced_as_it_is_listed_so_that_no_backup_uses_it() {
    let (service, drained) = (at(VIP, 80), at(server(1), 80));
    for version in [0, 1] {
        let services = [
            format!("-A -t {service} -s rr -p 20"),
            format!("-a -t {service} -r {drained} -g"),
            format!("-a -t {service} -r {} -g", at(server(2), 80)),
        ];
        let mut master = with_daemon("master", &services);
        master.ok(json!({ "set": { "expire_quiescent_template": 1, "sync_threshold": "1 2", "sync_version": version } }));
        let mut both = Vec::new();
        for port in [1000, 1001] {
            master.from_client(&tcp(SYN, at(CLIENT, port), service));
            let listed = master.connections();
            let first = both.is_empty().then(|| listed[0].clone());
            both.push(listed);
            if let Some(row) = first {
                let server = if row.contains(&drained.to_string()) { 1 } else { 2 };
                master.adm(&format!("-e -t {service} -r {} -g -w 0", at(self::server(server), 80)));
            }
        }
        assert!(both[1].iter().any(|row| row.matches(":65535").count() == 2), "{both:?}");
        drop(messages(&mut master, 3.0));
        (0..4).for_each(|_| drop(master.from_client(&tcp(ACK, at(CLIENT, 1000), service))));
        let told = messages(&mut master, 3.0).concat();
        // The client's port, that of the service and that of the server.
        assert!(told.contains("0000ffffffff"), "version {version}: {told}");
    }
}

#[test]
fn a_daemon_that_was_stopped_announces_and_enters_nothing() {
    let service = at(VIP, 80);
    let services = [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {} -g", server(1))];
    let mut director = with_daemon("master", &services);
    director.adm("--start-daemon backup --mcast-interface lan --syncid 7");
    assert_eq!(director.adm("-L --daemon").lines().count(), 2);
    director.adm("--stop-daemon master");
    director.adm("--stop-daemon backup");
    for flags in [SYN, ACK, ACK, ACK] {
        director.from_client(&tcp(flags, at(CLIENT, 1000), service));
    }
    let answer = director.ask(json!({ "advance": 5 }));
    assert!(answer.get("sync").is_none(), "{answer}");
    let answer = director.ask(json!({ "sync": "00070008000100", "link": "lan" }));
    assert_eq!(answer["refused"], "lan has no backup daemon");
}

#[test]
fn a_connection_of_a_table_has_its_remaining_time_and_the_state_of_the_later_packet() {
    const ESTABLISHED: u8 = 1;
    const FIN_WAIT: u8 = 4;
    let service = at(VIP, 80);
    let services = [format!("-A -t {service} -s rr"), format!("-a -t {service} -r {} -g", server(1))];
    let mut backup = with_daemon("backup", &services);
    let mut enter = |state, seconds, remaining_millis: Option<u32>, wait: f64| {
        let of_message = Told {
            protocol: 6,
            flags: 0x83,
            state,
            client: 1000,
            port: 80,
            server: 1,
            seconds,
            remaining_millis,
            local: None,
        };
        backup.ask(json!({ "sync": hex(&message(&[of_message], None)), "link": "lan" }));
        backup.wait(wait);
        let listed = backup.connections();
        listed
            .iter()
            .map(|line| line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    // 30 of its 900 seconds are left.
    assert_eq!(enter(ESTABLISHED, 900, Some(30_000), 0.0), ["00:30 ESTABLISHED"]);
    assert_eq!(enter(ESTABLISHED, 900, Some(60_000), 31.0), ["00:29 ESTABLISHED"]);
    // A message is about a packet that has just passed.
    assert_eq!(enter(ESTABLISHED, 900, None, 100.0), ["13:20 ESTABLISHED"]);
    // The packet of this table was 110 seconds ago, then 98 (the message may have taken as long), and then 60.
    assert_eq!(enter(FIN_WAIT, 120, Some(10_000), 0.0), ["13:20 ESTABLISHED"]);
    assert_eq!(enter(FIN_WAIT, 120, Some(22_000), 0.0), ["13:20 ESTABLISHED"]);
    assert_eq!(enter(FIN_WAIT, 120, Some(60_000), 0.0), ["01:00 FIN_WAIT"]);
}

/// What may happen to a backup.
#[derive(Clone, Debug)]
enum Step {
    /// A message with these entries, the last bytes cut off or changed.
    Message(Vec<Told>, Option<(usize, u8)>),
    /// A client's packet.
    Packet(u16, u8),
    /// Seconds pass.
    Wait(u16),
    /// A server is removed, or is added again.
    Server(u8, bool),
}

/// An entry of a message, from small sets of values.
#[derive(Clone, Debug)]
struct Told {
    protocol: u8,
    flags: u32,
    state: u8,
    client: u16,
    port: u16,
    server: u8,
    seconds: u32,
    remaining_millis: Option<u32>,
    local: Option<u16>,
}

fn told() -> impl Strategy<Value = Told> {
    let flags = prop_oneof![Just(0), Just(0x100), Just(0x1000), Just(0x1100), Just(0x83), Just(0x183)];
    let protocol = prop_oneof![8 => Just(6), 2 => Just(17), 1 => Just(0), 1 => Just(132)];
    let local = proptest::option::weighted(0.2, 5000..5003_u16);
    let remaining = proptest::option::weighted(0.3, 0..400_000_u32);
    let times = (0..300_u32, remaining);
    (protocol, flags, 0..13_u8, 1000..1004_u16, 79..82_u16, 1..4_u8, times, local).prop_map(
        |(protocol, flags, state, client, port, server, (seconds, remaining_millis), local)| Told {
            protocol,
            flags,
            state,
            client,
            port,
            server,
            seconds,
            remaining_millis,
            local,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let message =
        (prop::collection::vec(told(), 1..4), proptest::option::weighted(0.2, (0..200_usize, any::<u8>())));
    prop_oneof![
        6 => message.prop_map(|(entries, damage)| Step::Message(entries, damage)),
        4 => (1000..1004_u16, prop_oneof![Just(SYN), Just(ACK), Just(FIN | ACK)]).prop_map(|(port, flags)| Step::Packet(port, flags)),
        1 => (1..130_u16).prop_map(Step::Wait),
        1 => (1..3_u8, any::<bool>()).prop_map(|(number, there)| Step::Server(number, there)),
    ]
}

/// The bytes of a message of version 1.
fn message(told: &[Told], damage: Option<(usize, u8)>) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    for one in told {
        let endpoint = |addr: std::net::Ipv4Addr, port| Endpoint::new(addr, port);
        let entry = Entry {
            protocol: Protocol(one.protocol),
            flags: one.flags,
            state: one.state,
            client: endpoint(CLIENT, one.client),
            virtual_endpoint: endpoint(VIP, one.port),
            dest: endpoint(server(one.server), 80),
            mark: 0,
            timeout_seconds: one.seconds,
            remaining_millis: one.remaining_millis,
            call_id: None,
            local: one.local.map(|port| endpoint(INSIDE, port)),
            client_address: None,
            reply_shift: None,
            numbers: None,
        };
        bytes.resize(bytes.len() + Version::V1.padding(bytes.len()), 0);
        bytes.extend_from_slice(entry.encode(Version::V1).expect("one family").bytes());
    }
    let (header, len) = Version::V1.header(7, told.len() as u8, bytes.len() as u16);
    bytes[..len].copy_from_slice(&header[..len]);
    if let Some((place, value)) = damage {
        let place = 8 + place % (bytes.len() - 8);
        bytes[place] = value;
    }
    bytes
}

/// A few cases; `scripts/fuzz messages` tries many.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Each message, packet and removal keeps the counts of servers equal to the connections that there are: at the end
    /// of all timeouts both are zero.
    #[test]
    fn counts_are_zero_when_all_received_connections_have_ended(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let service = at(VIP, 80);
        let add = |number: u8| format!("-a -t {service} -r {} -m", at(server(number), 80));
        let services = [format!("-A -t {service} -s rr"), add(1), add(2)];
        let mut backup = with_daemon("backup", &services);
        let mut there = [true, true];
        for step in steps {
            match step {
                Step::Message(entries, damage) => {
                    let answer = backup.ask(json!({ "sync": hex(&message(&entries, damage)), "link": "lan" }));
                    prop_assert_eq!(&answer["ok"], true, "{}", answer);
                }
                Step::Packet(port, flags) => _ = backup.from_client(&tcp(flags, at(CLIENT, port), service)),
                Step::Wait(seconds) => _ = backup.wait(seconds.into()),
                Step::Server(number, is_there) => {
                    let place = usize::from(number - 1);
                    if there[place] != is_there {
                        match is_there {
                            true => backup.adm(&add(number)),
                            false => {
                                let dest = at(server(number), 80);
                                backup.adm(&format!("-d -t {service} -r {dest}"))
                            }
                        };
                        there[place] = is_there;
                    }
                }
            }
        }
        for number in [1, 2] {
            if !there[usize::from(number - 1)] {
                backup.adm(&add(number));
            }
        }
        backup.wait(2000.0);
        // A message may carry a longer timeout than a packet gives; damage makes it up to a month.
        let left = backup.connections().len() as u64;
        if left == 0 {
            prop_assert_eq!(backup.total_load(), (0, 0));
            let persistent = backup.adm("-L -n --persistent-conn");
            for line in persistent.lines().filter(|line| line.contains("->") && line.contains("203.0.113.")) {
                let words: Vec<_> = line.split_whitespace().collect();
                prop_assert_eq!((words[3], words[4]), ("0", "0"), "{}", persistent);
            }
        }
    }
}
