//! Connection synchronization between two directors: real keepalived moves the VIP, the local address of FULLNAT and
//! the gateway of NAT, and connections go on.
//!
//! Both directors run xvsd with a master and a backup daemon, one-armed on the segment of client and real servers. Each
//! test has a cluster of its own. Needs root.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use xvs::clients::HalfUpload;
use xvs::cluster::{REAL_SERVERS, real_server, succeed};
use xvs::director::Protocol;
use xvs::keepalived::{self, DIRECTORS, Keepalived};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// What keepalived moves: the VIP, FULLNAT's local address, and the gateway of real servers towards the client.
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 60);
const ADDRESSES: [Ipv4Addr; 3] = [VIP, LOCAL, GATEWAY];
/// A VIP of IPv6, which moves with them, for the same real servers.
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x100);

/// The client's address on the segment.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);

/// The port of the sinks.
const SINK: u16 = 9000;

/// The services: virtual endpoint, forwarding method, and options of the service.
const SERVICES: [((IpAddr, u16), &str, &str); 5] = [
    ((IpAddr::V4(VIP), SINK), "-g", ""),
    ((IpAddr::V4(VIP), 9001), "-m", ""),
    ((IpAddr::V4(VIP), 9002), "--fullnat", ""),
    ((IpAddr::V4(VIP), 9003), "--fullnat", "--client-address toa"),
    ((IpAddr::V6(VIP6), 9004), "--fullnat", ""),
];

/// More segments than lie between two announcements of a connection.
const SEGMENTS: usize = 60;

/// Replies of NAT go by the director; those of direct routing have the VIP as source.
fn gateway_of_replies(cluster: &Cluster) {
    for (host, number) in REAL_SERVERS.into_iter().zip(1..) {
        cluster.ip(host, &format!("route add {CLIENT}/32 via {GATEWAY} table 200"));
        cluster.ip(host, &format!("rule add from {} lookup 200", real_server(number)));
    }
}

/// The xvs.toml of a director, if it has one.
fn config_of(cluster: &Cluster, host: Host) -> PathBuf {
    cluster.state().join(format!("{}-xvs.toml", host.name()))
}

/// Starts xvsd, which restores its services and daemons, if it had some.
fn started(cluster: &Cluster, host: Host) -> Director<'_> {
    let config = config_of(cluster, host).to_string_lossy().into_owned();
    let mut words = vec!["--interface", "lan", "--workers", "1"];
    if Path::new(&config).exists() {
        words.extend(["--config", &config]);
    }
    Director::start_on(cluster, host, &words)
}

/// Starts xvsd with all services and both daemons, and writes the keepalived.conf.
fn configured(cluster: &Cluster, host: Host) -> Director<'_> {
    configured_with(cluster, host, "")
}

/// The same with more options for the daemons.
fn configured_with<'a>(cluster: &'a Cluster, host: Host, options: &str) -> Director<'a> {
    if host == Host::Backup {
        cluster.ip(host, "address replace 2001:db8:2::2/64 dev lan nodad");
    }
    let director = started(cluster, host);
    director.xvs(&format!("laddr add {LOCAL}"));
    for (service, method, options) in SERVICES {
        let service = SocketAddr::from(service);
        director.adm(&format!("-A -t {service} -s rr {options}"));
        for server in [1, 2] {
            director.adm(&format!("-a -t {service} -r {}:{SINK} {method}", real_server(server)));
        }
    }
    for role in ["master", "backup"] {
        director.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 7 {options}"));
    }
    let other = format!("virtual_ipaddress_excluded {{\n {VIP6}/128 dev lan\n }}");
    let conf = keepalived::vrrp_instance(host, &ADDRESSES, &other);
    fs::write(keepalived::conf(cluster, host), conf).expect("the cluster's folder takes a new file");
    director
}

/// Starts xvsd and keepalived on both directors; the first has the addresses.
fn served(cluster: &Cluster) -> [(Director<'_>, Keepalived); 2] {
    let both = DIRECTORS.map(|host| (configured(cluster, host), Keepalived::start(cluster, host)));
    await_addresses(cluster, Host::Director);
    both
}

/// Waits until this director alone has the addresses, and the others send to it.
fn await_addresses(cluster: &Cluster, host: Host) {
    keepalived::await_addresses(cluster, host, &ADDRESSES);
    for (machine, device) in [(Host::Client, "back"), (REAL_SERVERS[0], "lan"), (REAL_SERVERS[1], "lan")] {
        cluster.ip(machine, &format!("neighbour flush dev {device}"));
    }
}

/// Uploads through each service, some bytes of which are sent.
fn begun(cluster: &Cluster) -> Vec<TcpStream> {
    let begin = |(service, ..): ((IpAddr, u16), &str, &str)| {
        let target = SocketAddr::from(service);
        let connected = cluster.run(Host::Client, || clients::connect(target));
        let mut stream = connected.unwrap_or_else(|error| panic!("{target}: {error}"));
        stream.write_all(b"before, ").expect("upload");
        stream
    };
    SERVICES.into_iter().map(begin).collect()
}

/// Waits until a director lists as many connections.
fn await_connections(director: &Director<'_>, count: usize) {
    wait::until(&format!("{count} connections are known"), || {
        let listing = director.adm("-L -n -c");
        (listing.matches("ESTABLISHED").count() == count).then_some(())
    });
}

#[test]
fn connections_of_every_method_go_on_when_keepalived_moves_the_addresses_and_back() {
    let cluster = Cluster::with_backup(VIP);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, SINK));
    gateway_of_replies(&cluster);
    let [(mut first, keepalived), (second, _kept)] = served(&cluster);
    let mut uploads = begun(&cluster);
    await_connections(&first, SERVICES.len());
    await_connections(&second, SERVICES.len());
    assert!(second.adm("-L --daemon").contains("backup sync daemon (mcast=lan, syncid=7"));

    // The director dies with its machine.
    keepalived.stop();
    first.kill();
    await_addresses(&cluster, Host::Backup);
    for stream in &mut uploads {
        stream.write_all(b"meanwhile, ").expect("upload");
    }
    // New ones are served, too.
    uploads.extend(begun(&cluster));
    await_connections(&second, uploads.len());

    // It comes back, and learns of those that began without it.
    let first = started(&cluster, Host::Director);
    assert_eq!(first.adm("-L --daemon").lines().count(), 2, "the daemons were journalled");
    for stream in &mut uploads[SERVICES.len()..] {
        for _ in 0..SEGMENTS {
            stream.write_all(b"more, ").expect("upload");
            thread::sleep(Duration::from_millis(2));
        }
    }
    await_connections(&first, uploads.len());
    let _keepalived = Keepalived::start(&cluster, Host::Director);
    await_addresses(&cluster, Host::Director);
    for (number, stream) in uploads.into_iter().enumerate() {
        let sent = match number < SERVICES.len() {
            true => "before, meanwhile, after".to_owned(),
            false => format!("before, {}after", "more, ".repeat(SEGMENTS)),
        };
        let receipt = clients::upload(stream, b"after").expect("the connection is still there");
        assert_eq!(receipt, clients::receipt(&receipt.host, sent.as_bytes()), "upload {number}");
    }
    let status = first.status();
    assert!(status.contains("sync       backup on lan, sync id 7; "), "{status}");
}

/// The network takes no UDP multicast, as in a cloud.
fn refuse_multicast(cluster: &Cluster) {
    for host in DIRECTORS {
        let rules = "add table ip cloud; add chain ip cloud out { type filter hook output priority 0; }; \
                     add rule ip cloud out ip daddr 224.0.0.0/4 meta l4proto udp counter drop";
        succeed(cluster.command(host, "nft").arg(rules));
    }
}

#[test]
fn connections_of_every_method_go_on_at_a_peer_without_any_multicast() {
    let cluster = Cluster::with_backup(VIP);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, SINK));
    gateway_of_replies(&cluster);
    refuse_multicast(&cluster);
    // One of the peers is not there.
    let peers = [(Host::Director, "192.0.2.2,192.0.2.77"), (Host::Backup, "192.0.2.1,192.0.2.77")];
    let [(mut first, keepalived), (second, _kept)] = peers.map(|(host, peers)| {
        let director = configured_with(&cluster, host, &format!("--sync-peers {peers}"));
        (director, Keepalived::start(&cluster, host))
    });
    await_addresses(&cluster, Host::Director);
    let mut uploads = begun(&cluster);
    await_connections(&second, SERVICES.len());
    shows(&second, "backup on lan with 192.0.2.1, 192.0.2.77, sync id 7; 5 connections from");
    shows(&second, "without the table of 192.0.2.77: nothing was heard from it; 0 messages");

    keepalived.stop();
    first.kill();
    await_addresses(&cluster, Host::Backup);
    for stream in &mut uploads {
        stream.write_all(b"meanwhile, ").expect("upload");
    }
    for (number, stream) in uploads.into_iter().enumerate() {
        let receipt = clients::upload(stream, b"after").expect("the connection is still there");
        assert_eq!(receipt, clients::receipt(&receipt.host, b"before, meanwhile, after"), "upload {number}");
    }
    // The next process has the peers, too.
    let first = started(&cluster, Host::Director);
    let daemons = first.adm("-L --daemon");
    assert_eq!(daemons.matches("peers=192.0.2.2,192.0.2.77, port=8848").count(), 2, "{daemons}");
    for host in DIRECTORS {
        let listed = succeed(cluster.command(host, "nft").args(["list", "table", "ip", "cloud"]));
        assert!(listed.contains("counter packets 0 bytes 0 drop"), "{listed}");
    }
}

#[test]
fn a_backup_with_peers_reads_no_message_of_a_stranger_and_fetches_the_table_of_a_peer_by_ipv6() {
    let cluster = Cluster::with_backup(VIP);
    let with = started(&cluster, Host::Backup);
    with.adm(&format!("-A -t {VIP}:{SINK} -s rr"));
    with.adm(&format!("-a -t {VIP}:{SINK} -r 192.0.2.11 -g"));
    with.adm("--start-daemon backup --mcast-interface lan --syncid 7 --sync-peers 192.0.2.1");
    let message = [&[0, 7, 0, 44, 1, 1, 0, 0][..], &CONNECTION].concat();
    let send = |host, from: Ipv4Addr| {
        cluster.run(host, || {
            let socket = UdpSocket::bind((from, 0)).expect("a socket");
            socket.send_to(&message, (Ipv4Addr::new(192, 0, 2, 2), 8848)).expect("sent");
        });
    };
    send(Host::Client, CLIENT);
    shows(
        &with,
        "a message from 192.0.2.254 was refused in the last minute: its sender is none of the daemon's --sync-peers",
    );
    shows(&with, "0 connections from 0 messages, 1 refused or discarded");
    assert!(!with.adm("-L -n -c").contains("ESTABLISHED"));
    send(Host::Director, Ipv4Addr::new(192, 0, 2, 1));
    await_connections(&with, 1);
    let start = "--start-daemon master --mcast-interface lan --sync-peers";
    for (peer, fault) in [
        ("192.0.2.2", "peer 192.0.2.2 is an address of this director; name those of the others"),
        ("224.0.0.81", "peer 224.0.0.81 is a multicast address; name the other director's own address"),
    ] {
        let refused = with.adm_reading(&format!("{start} {peer}"), "");
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(why.contains(fault), "{why}");
    }
    with.adm("--stop-daemon backup");
    drop(with);

    cluster.ip(Host::Backup, "address add 2001:db8:2::2/64 dev lan nodad");
    give_keys(&cluster);
    let config = config_of(&cluster, Host::Backup).to_string_lossy().into_owned();
    let held = ["--interface", "lan", "--workers", "1", "--hold", "10s", "--config", &config];
    let (first, second) =
        (started(&cluster, Host::Director), Director::start_on(&cluster, Host::Backup, &held));
    for (director, peer) in [(&first, "2001:db8:2::2"), (&second, "2001:db8:2::1")] {
        for role in ["master", "backup"] {
            director.adm(&format!("--start-daemon {role} --mcast-interface lan --sync-peers {peer}"));
        }
    }
    shows(&first, "in sync with 2001:db8:2::2");
    shows(&second, "in sync with 2001:db8:2::1");
    // Messages reach the sockets of a successor.
    let next = Director::take_over_on(&cluster, Host::Backup, &held).unwrap_or_else(|log| panic!("{log}"));
    shows(&next, "in sync with 2001:db8:2::1");
}

#[test]
fn a_director_that_joins_has_all_connections_also_those_without_traffic() {
    let cluster = Cluster::with_backup(VIP);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, SINK));
    gateway_of_replies(&cluster);
    give_keys(&cluster);
    let key = |host| key_of(&cluster, host);
    let mut first = configured(&cluster, Host::Director);
    let kept = Keepalived::start(&cluster, Host::Director);
    keepalived::await_addresses(&cluster, Host::Director, &ADDRESSES);
    let mut uploads = begun(&cluster);
    await_connections(&first, SERVICES.len());

    let second = configured(&cluster, Host::Backup);
    await_connections(&second, SERVICES.len());
    shows(&second, "in sync with 192.0.2.1, whose table had 5 connections");
    shows(&first, "table sent to 192.0.2.2, 5 connections");
    let _kept = Keepalived::start(&cluster, Host::Backup);
    kept.stop();
    first.kill();
    await_addresses(&cluster, Host::Backup);
    for stream in &mut uploads {
        stream.write_all(b"meanwhile, ").expect("upload");
    }
    for (number, stream) in uploads.into_iter().enumerate() {
        let receipt = clients::upload(stream, b"after").expect("the connection is still there");
        assert_eq!(receipt, clients::receipt(&receipt.host, b"before, meanwhile, after"), "upload {number}");
    }

    // A director with another key gets no table.
    fs::write(key(Host::Director), "e5".repeat(32)).expect("the file can be written");
    let first = started(&cluster, Host::Director);
    shows(
        &first,
        "without the table of 192.0.2.2: it has refused the handshake; perhaps the other director has",
    );
    // Nor does it take the messages of the other one.
    shows(&first, "192.0.2.2 was refused in the last minute: it is signed with another key");
    // Without a key that can be used a daemon does not run, and begins when it can be.
    first.adm("--stop-daemon backup");
    fs::set_permissions(key(Host::Director), Permissions::from_mode(0o644)).expect("the file is there");
    let output = first.adm_reading("--start-daemon backup --mcast-interface lan --syncid 7", "");
    let refused = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && refused.contains("sync_key_file"), "{refused}");
    assert_eq!(first.adm("-L --daemon").lines().count(), 1);
}

fn key_of(cluster: &Cluster, host: Host) -> PathBuf {
    cluster.state().join(format!("{}.key", host.name()))
}

/// Both directors have an xvs.toml with the same key.
fn give_keys(cluster: &Cluster) {
    for host in DIRECTORS {
        let key = key_of(cluster, host);
        fs::write(&key, "5e".repeat(32)).expect("the cluster's folder takes a new file");
        fs::set_permissions(&key, Permissions::from_mode(0o640)).expect("the file is there");
        let config = format!("sync_key_file = {key:?}\n");
        fs::write(config_of(cluster, host), config).expect("the cluster's folder takes a new file");
    }
}

/// Waits until the status has a text, in whatever lines.
fn shows(director: &Director<'_>, text: &str) {
    wait::until(text, || {
        let status = director.status().split_whitespace().collect::<Vec<_>>().join(" ");
        status.contains(text).then_some(())
    });
}

#[test]
fn take_overs_keep_the_daemons_announcing() {
    const SINK_WAN: u16 = 9100;
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    cluster.add_backup();
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, SINK_WAN));
    give_keys(&cluster);
    let config = config_of(&cluster, Host::Director).to_string_lossy().into_owned();
    let held = ["--hold", "10s", "--config", &config];
    let other = started(&cluster, Host::Backup);
    let mut former = Director::start_with(&cluster, Workers::One, &held);
    former.add_service(Protocol::Tcp, SINK_WAN, Method::Nat);
    for director in [&former, &other] {
        for role in ["master", "backup"] {
            director.adm(&format!("--start-daemon {role} --mcast-interface lan --syncid 9"));
        }
    }
    let listed = |director: &Director<'_>, count| {
        wait::until(&format!("{count} connections are known"), || {
            (director.adm("-L -n -c").matches("ESTABLISHED").count() == count).then_some(())
        });
    };
    let first = HalfUpload::begin(&cluster, SINK_WAN);
    listed(&other, 1);
    let successor = Director::take_over(&cluster, Workers::One, &held).unwrap_or_else(|log| panic!("{log}"));
    assert!(former.has_ended().success(), "{}", former.log());
    let second = HalfUpload::begin(&cluster, SINK_WAN);
    listed(&other, 2);
    let again = Director::take_over(&cluster, Workers::One, &held).unwrap_or_else(|log| panic!("{log}"));
    let third = HalfUpload::begin(&cluster, SINK_WAN);
    listed(&other, 3);
    assert_eq!(again.adm("-L --daemon").lines().count(), 2);
    // Each process has the sockets of its predecessor's daemons, and so its port for tables.
    shows(&again, "in sync with 192.0.2.2");
    other.adm("--stop-daemon backup");
    other.adm("--start-daemon backup --mcast-interface lan --syncid 9");
    shows(&other, "in sync with 192.0.2.1");
    shows(&again, "table sent to 192.0.2.2, 3 connections");
    // By IPv6, from link-local addresses, the only ones.
    cluster.ip(Host::Director, "address del 2001:db8:2::1/64 dev lan");
    for director in [&again, &other] {
        for role in ["master", "backup"] {
            director.adm(&format!("--stop-daemon {role}"));
            let options = "--mcast-interface lan --syncid 9 --mcast-group ff02::81";
            director.adm(&format!("--start-daemon {role} {options}"));
        }
    }
    shows(&other, "in sync with fe80::");
    shows(&again, "in sync with fe80::");
    [first, second, third].into_iter().for_each(|upload| upload.finish());
    drop((successor, again));
}

/// A connection of direct routing, in version 1.
const CONNECTION: [u8; 36] = [
    0, 6, 0, 36, 0, 0, 0, 0x83, 0, 1, 0x03, 0xe8, 0x23, 0x28, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 3, 0x84, 192, 0,
    2, 10, 192, 0, 2, 100, 192, 0, 2, 11,
];

/// The client, which is on the segment, sends to the group of the daemons.
fn send(cluster: &Cluster, message: &[u8]) {
    cluster.run(Host::Client, || {
        let socket = UdpSocket::bind((CLIENT, 0)).expect("a socket");
        let group = Ipv4Addr::new(224, 0, 0, 81);
        rustix::net::sockopt::set_ip_multicast_if(&socket, &CLIENT).expect("an option");
        socket.send_to(message, (group, 8848)).expect("sent");
    });
}

#[test]
fn forged_messages_are_refused_and_named_where_directors_have_a_key() {
    let cluster = Cluster::with_backup(VIP);
    let forged = [&[0, 7, 0, 44, 1, 1, 0, 0][..], &CONNECTION].concat();
    let without = started(&cluster, Host::Director);
    without.adm("--start-daemon backup --mcast-interface lan --syncid 7");
    without.adm(&format!("-A -t {VIP}:{SINK} -s rr"));
    without.adm(&format!("-a -t {VIP}:{SINK} -r 192.0.2.11 -g"));
    shows(
        &without,
        "synchronization is on lan, where real servers can forge its messages; set sync_key_file",
    );
    send(&cluster, &forged);
    await_connections(&without, 1);
    shows(&without, "without the table of 192.0.2.254: this director has no sync_key_file; 1 message");
    drop(without);

    give_keys(&cluster);
    let with = started(&cluster, Host::Backup);
    with.adm("--start-daemon backup --mcast-interface lan --syncid 7");
    with.adm(&format!("-A -t {VIP}:{SINK} -s rr"));
    with.adm(&format!("-a -t {VIP}:{SINK} -r 192.0.2.11 -g"));
    send(&cluster, &forged);
    shows(&with, "a message from 192.0.2.254 was refused in the last minute: it is not signed");
    assert!(!with.adm("-L -n -c").contains("ESTABLISHED"));
    let status = with.status();
    assert!(!status.contains("can forge"), "{status}");
}

#[test]
fn forged_and_broken_messages_do_no_harm_and_are_counted() {
    let cluster = Cluster::with_backup(VIP);
    let director = Director::start_on(&cluster, Host::Backup, &["--interface", "lan", "--workers", "1"]);
    director.adm(&format!("-A -t {VIP}:{SINK} -s rr"));
    director.adm(&format!("-a -t {VIP}:{SINK} -r 192.0.2.11 -g"));
    director.adm("--start-daemon backup --mcast-interface lan --syncid 7");
    let send = |message: &[u8]| send(&cluster, message);
    let entry = CONNECTION;
    let message =
        |sync_id, len: u8, count| [vec![0, sync_id, 0, len, count, 1, 0, 0], entry.to_vec()].concat();
    send(&message(8, 44, 1));
    send(&message(7, 45, 1));
    send(b"x");
    send(&[0, 7, 0, 8, 200, 1, 0, 0]);
    let mut unknown = message(7, 44, 1);
    unknown[9] = 99;
    send(&unknown);
    let mut to_another_server = message(7, 44, 1);
    to_another_server[43] = 12;
    send(&to_another_server);
    // Of two entries that are announced, the one that is there counts.
    send(&message(7, 44, 2));
    wait::until("the connection is there", || director.adm("-L -n -c").contains("ESTABLISHED").then_some(()));
    let status: serde_json::Value = serde_json::from_str(&director.xvs("status --json")).expect("JSON");
    let sync = &status["sync"][0];
    let counts =
        ["messages", "failed_messages", "connections", "lost_connections"].map(|key| sync[key].as_u64());
    // One is of another sync id.
    assert_eq!(counts, [Some(4), Some(2), Some(1), Some(4)], "{sync}");
}
