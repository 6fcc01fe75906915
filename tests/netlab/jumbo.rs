//! Packets of 9000 bytes, each in several buffers of AF_XDP, with real sockets: every method, the PROXY header,
//! fragments, captures, the director's own sockets, and an MTU that changes while xvsd runs.
//!
//! Each test has a cluster of its own. Needs root, tcpdump, and Linux 6.6 or later. Not here: refusals of older kernels
//! (`crates/xdp/src/mode.rs`), and every kind of packet in parts (all tests with `both_paths.rs`).

use std::net::{SocketAddr, SocketAddrV4};
use std::process::{Command, Stdio};

use xvs::clients::{self, Asker, fetch};
use xvs::cluster::{REAL_SERVERS, VIP, real_server, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Layout, Method, Wan, Workers, traffic, wait};

const ECHO: u16 = 5300;
const UPLOAD: u16 = 9000;
/// A datagram that is one packet of nearly 9000 bytes, also inside a tunnel.
const LARGE: usize = 8900;

/// Sets the MTU of all interfaces on the way between the client and the director, and between it and the real servers.
fn set_mtu(cluster: &Cluster, outside: u32, inside: u32) {
    let set = |host, names: &[&str], mtu: u32| {
        for name in names {
            cluster.ip(host, &format!("link set {name} mtu {mtu}"));
        }
    };
    set(Host::Client, &["wan"], outside);
    set(Host::Director, &["wan"], outside);
    set(Host::Director, &["lan"], inside);
    set(Host::Switch, &["dr", "cl", "rs1", "rs2", "bridge"], inside);
    set(Host::Client, &["back"], inside);
    for host in REAL_SERVERS {
        set(host, &["lan"], inside);
    }
}

fn jumbo(method: Method, workers: Workers) -> Cluster {
    let cluster = traffic::prepared(method, workers);
    set_mtu(&cluster, 9000, 9000);
    cluster
}

fn echoes(cluster: &Cluster, method: Method) -> [Echo; 2] {
    [1, 2].map(|number| {
        let addr = if method == Method::Nat { real_server(number) } else { VIP };
        Echo::start(cluster, Host::RealServer(number), SocketAddrV4::new(addr, ECHO))
    })
}

/// Asks with datagrams of these sizes, each on a flow of its own; both real servers answer. Not in turn: under load a
/// question is repeated, and two workers may each choose a destination for one new flow.
fn ask(cluster: &Cluster, sizes: &[usize]) {
    let ask = |size: &usize| {
        let question: Vec<u8> = (0..*size).map(|at| (at / 3) as u8).collect();
        Asker::new(cluster, virtual_endpoint(ECHO)).ask(&question)
    };
    let names: Vec<_> = sizes.iter().map(ask).collect();
    assert!(["rs1", "rs2"].iter().all(|rs| names.iter().any(|name| name == rs)), "answered by {names:?}");
}

fn everything_arrives_whole(method: Method, workers: Workers) {
    let cluster = jumbo(method, workers);
    let _echoes = echoes(&cluster, method);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, workers);
    director.add_service(Protocol::Udp, ECHO, method);
    director.add_service(Protocol::Tcp, 80, method);
    director.add_service(Protocol::Tcp, UPLOAD, method);
    ask(&cluster, &[LARGE, LARGE, 3500, 4000, 100]);
    let blob = cluster.blob();
    for _ in REAL_SERVERS {
        let body = fetch(&cluster, &format!("http://{VIP}/blob")).expect("a download");
        assert!(body == blob, "a download of {} bytes differs from the file", body.len());
    }
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 4, &blob);
    for receipt in &receipts {
        assert_eq!(*receipt, clients::receipt(&receipt.host, &blob));
    }
}

#[test]
fn everything_arrives_whole_by_nat_with_one_and_with_two_workers() {
    everything_arrives_whole(Method::Nat, Workers::One);
    everything_arrives_whole(Method::Nat, Workers::Two);
}

#[test]
fn everything_arrives_whole_by_direct_routing() {
    everything_arrives_whole(Method::DirectRouting, Workers::One);
}

#[test]
fn everything_arrives_whole_by_tunnel() {
    everything_arrives_whole(Method::Tunnel, Workers::One);
}

#[test]
fn checksums_that_a_virtual_device_leaves_are_completed_over_all_buffers() {
    let cluster = jumbo(Method::Nat, Workers::One);
    let hosts =
        [Host::Client, Host::RealServer(1), Host::RealServer(2), Host::Switch, Host::Switch, Host::Switch];
    for (host, end) in hosts.into_iter().zip(["wan", "lan", "lan", "dr", "rs1", "rs2"]) {
        succeed(cluster.command(host, "ethtool").args(["-K", end, "tx", "on"]));
    }
    let _echoes = echoes(&cluster, Method::Nat);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Udp, ECHO, Method::Nat);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    ask(&cluster, &[LARGE, LARGE, 5001, 5001]);
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 2, &cluster.blob());
    for receipt in &receipts {
        assert_eq!(*receipt, clients::receipt(&receipt.host, &cluster.blob()));
    }
    assert!(director.xvs("counters").contains("checksums_completed"), "{}", director.xvs("counters"));
}

#[test]
fn datagrams_in_fragments_of_9000_bytes_are_answered() {
    let cluster = jumbo(Method::Nat, Workers::Two);
    let _echoes = echoes(&cluster, Method::Nat);
    let director = Director::start(&cluster, Workers::Two);
    director.add_service(Protocol::Udp, ECHO, Method::Nat);
    ask(&cluster, &[9_500, 20_000, 40_000, 65_000]);
}

#[test]
fn an_upload_by_fullnat_begins_with_the_proxy_header_and_arrives_whole_behind_it() {
    let cluster = jumbo(Method::Nat, Workers::One);
    let _sink = Sink::start(&cluster, Host::RealServer(1), UPLOAD);
    let director = Director::start(&cluster, Workers::One);
    director.xvs("laddr add 192.0.2.1");
    director.adm(&format!("-A -t {VIP}:{UPLOAD} -s rr --client-address proxy"));
    director.adm(&format!("-a -t {VIP}:{UPLOAD} -r {}:{UPLOAD} --fullnat", real_server(1)));
    let blob = cluster.blob();
    let (receipt, client) = cluster.run(Host::Client, || {
        let stream = clients::connect(virtual_endpoint(UPLOAD)).expect("a connection");
        let client = stream.local_addr().expect("an address");
        (clients::upload(stream, &blob).expect("an upload"), client)
    });
    let SocketAddr::V4(client) = client else { panic!("{client} is IPv4") };
    // «The PROXY protocol», version 2: a signature, PROXY, TCP over IPv4, 12 bytes of endpoints.
    let mut wanted = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    wanted.extend([client.ip().octets(), VIP.octets()].concat());
    wanted.extend([client.port().to_be_bytes(), UPLOAD.to_be_bytes()].concat());
    wanted.extend(&blob);
    assert_eq!(receipt, clients::receipt("rs1", &wanted));
}

#[test]
fn packets_to_servers_with_an_mtu_of_1500_are_fragmented_or_refused_with_that_size() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    set_mtu(&cluster, 9000, 1500);
    let _echoes = echoes(&cluster, Method::Nat);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Udp, ECHO, Method::Nat);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Nat);
    let discovery = |off: u8| {
        succeed(cluster.command(Host::Client, "sysctl").arg(format!("net.ipv4.ip_no_pmtu_disc={off}")));
    };
    discovery(1);
    ask(&cluster, &[LARGE, LARGE]);
    let cached = || cluster.ip(Host::Client, &format!("route get {VIP}"));
    assert!(!cached().contains("mtu 1500"), "the director fragments: {}", cached());
    discovery(0);
    ask(&cluster, &[LARGE, LARGE]);
    assert!(cached().contains("mtu 1500"), "the client receives an ICMP error: {}", cached());
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 2, &cluster.blob());
    for receipt in &receipts {
        assert_eq!(*receipt, clients::receipt(&receipt.host, &cluster.blob()));
    }
}

#[test]
fn a_packet_for_the_directors_own_socket_arrives_whole_in_native_and_in_generic_mode() {
    for wan in [Wan::Veth, Wan::Macvlan] {
        let cluster = Cluster::up(Layout { wan, ..Layout::default() });
        if matches!(wan, Wan::Macvlan) {
            cluster.ip(Host::Director, "link set uplink mtu 9000");
        }
        set_mtu(&cluster, 9000, 9000);
        let _own = Echo::start(&cluster, Host::Director, virtual_endpoint(ECHO));
        let director = Director::start(&cluster, Workers::One);
        director.adm(&format!("-A -u {VIP}:{ECHO} -s rr"));
        director.adm(&format!("-a -u {VIP}:{ECHO} -r {VIP}:{ECHO} -g"));
        let question: Vec<u8> = (0..LARGE).map(|at| (at / 3) as u8).collect();
        assert_eq!(Asker::new(&cluster, virtual_endpoint(ECHO)).ask(&question), "dr");
    }
}

#[test]
fn the_mtu_may_be_raised_and_lowered_while_xvsd_runs() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _echoes = echoes(&cluster, Method::Nat);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Udp, ECHO, Method::Nat);
    ask(&cluster, &[LARGE, LARGE, 1000, 1000]);
    set_mtu(&cluster, 9000, 9000);
    // Packets that are too large for the former sockets are lost, with a warning.
    wait::until("both interfaces have sockets for larger packets", || {
        let events = director.xvs("events --last 1024 --no-follow");
        let renewed =
            |name| events.contains(&format!("{name} has an MTU of 9000 now, not 1500; workers: 1\n"));
        ["wan", "lan"].into_iter().all(renewed).then_some(())
    });
    for (outside, inside) in [(9000, 9000), (9000, 1500), (1500, 1500), (9000, 9000), (3000, 3000)] {
        set_mtu(&cluster, outside, inside);
        ask(&cluster, &[LARGE, LARGE, 1000, 1000]);
        assert!(!director.status().contains("warning"), "{}", director.status());
    }
}

#[test]
fn a_capture_shows_packets_of_9000_bytes_as_they_are_on_the_wire() {
    let cluster = jumbo(Method::Nat, Workers::One);
    let _echoes = echoes(&cluster, Method::Nat);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Udp, ECHO, Method::Nat);
    // A packet that waits for the link address of its next hop would be shown twice.
    ask(&cluster, &[100, 100]);
    let file = |name: &str| cluster.state().join(name);
    let (ours, wire) = (file("ours.pcapng"), file("wire.pcap"));
    let filter = format!("udp port {ECHO} and host {VIP}");
    let mut tcpdump = cluster.command(Host::Client, "tcpdump");
    tcpdump.args(["-Z", "root", "-U", "--immediate-mode", "-n", "-s", "0", "-c", "4", "-i", "wan", "-w"]);
    let mut tcpdump = tcpdump.arg(&wire).arg(&filter).stderr(Stdio::null()).spawn().expect("tcpdump");
    let mut capture = cluster.command(Host::Director, program("xvs"));
    capture.args([
        "capture",
        "--snaplen",
        "16384",
        "--count",
        "4",
        "--service",
        &format!("UDP {VIP}:{ECHO}"),
        "-w",
    ]);
    let mut capture = capture.arg(&ours).stderr(Stdio::null()).spawn().expect("xvs capture");
    wait::until("both files begin", || {
        [&ours, &wire].iter().all(|file| file.metadata().is_ok_and(|file| file.len() > 0)).then_some(())
    });
    ask(&cluster, &[LARGE, LARGE]);
    for process in [&mut tcpdump, &mut capture] {
        assert!(process.wait().expect("it ends by itself").success());
    }
    let frames = |file, filter: &str| {
        let mut dump = Command::new("tshark");
        dump.args(["-n", "-r"]).arg(file).args([
            "-Y",
            filter,
            "-T",
            "fields",
            "-e",
            "frame.len",
            "-e",
            "data.data",
        ]);
        succeed(&mut dump).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let shown = frames(&ours, "frame.interface_name == \"wan\"");
    let lengths: Vec<_> = shown.iter().filter_map(|line| line.split_once('\t')).map(|(len, _)| len).collect();
    // The answers begin with a server's name.
    assert_eq!(lengths, ["8942", "8946", "8942", "8946"]);
    assert_eq!(shown, frames(&wire, "udp"));
}
