//! Changes of interfaces under a running director: down and up, another MTU, more queues, removal and return;
//! neighbours with a new link address; unsuitable interfaces.
//!
//! Each test has a cluster of its own. Needs root. Not here: VLANs, which this kernel may not have (`lab/links.rs`,
//! `tests/vm/links.sh`).

use std::fs;
use std::io::Write;
use std::net::SocketAddrV4;
use std::thread;

use xvs::clients::Asker;
use xvs::cluster::{
    Cluster, DIRECTOR, Host, Layout, REAL_SERVERS, VIP, Wan, complete, real_server, succeed, virtual_endpoint,
};
use xvs::director::{Protocol, program};
use xvs::servers::{Echo, Sink};
use xvs::{Director, Method, Workers, clients, traffic, wait};

/// A director with a NAT web service.
fn serving(cluster: &Cluster, workers: Workers) -> Director<'_> {
    let director = Director::start(cluster, workers);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    serves(cluster);
    director
}

/// Waits until pages come from both real servers, and asserts that they take turns.
fn serves(cluster: &Cluster) {
    wait::until("both real servers answer", || {
        let body = clients::fetch(cluster, &format!("http://{VIP}/"));
        body.is_ok().then_some(())
    });
    assert!(clients::take_turns(&clients::pages(cluster, &format!("http://{VIP}/"), 4)));
}

fn shows(director: &Director<'_>, text: &str) {
    wait::until(text, || director.status().contains(text).then_some(()));
}

#[test]
fn an_interface_serves_again_after_it_went_down_and_up() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = serving(&cluster, Workers::One);
    for name in ["lan", "wan"] {
        cluster.ip(Host::Director, &format!("link set {name} down"));
        shows(&director, &format!("warning    {name} is down; "));
        cluster.ip(Host::Director, &format!("link set {name} up"));
        shows(&director, &format!("interface  {name}: up"));
        serves(&cluster);
    }
}

#[test]
fn a_real_servers_new_link_address_is_used_once_it_is_announced() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _director = serving(&cluster, Workers::One);
    for (host, number) in REAL_SERVERS.into_iter().zip(1..) {
        cluster.ip(host, &format!("link set lan address 02:00:00:00:aa:0{number}"));
        // A packet of the changed server to the director shows its new link address.
        succeed(cluster.command(host, "ping").args(["-c1", "-W5", "192.0.2.1"]));
        serves(&cluster);
    }
}

#[test]
fn a_smaller_mtu_applies_from_the_next_packet_on() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let director = serving(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 9000, Method::Nat);
    cluster.ip(Host::Director, "link set lan mtu 1300");
    // The client receives errors that its packets are too big, and sends smaller ones.
    let bytes = &cluster.blob()[..200_000];
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(9000), 2, bytes);
    for host in REAL_SERVERS {
        assert!(receipts.contains(&clients::receipt(&host.name(), bytes)), "{receipts:?}");
    }
    let cached = cluster.ip(Host::Client, &format!("route get {VIP}"));
    assert!(cached.contains("mtu 1300"), "{cached}");
}

#[test]
fn queues_that_are_added_while_xvsd_runs_are_served_by_the_same_workers() {
    let cluster = Cluster::up(Layout { queues: 4, ..Layout::default() });
    let channels = |host, words: &str| {
        succeed(cluster.command(host, "ethtool").arg("-L").args(words.split_whitespace()));
    };
    // A veth has no native XDP while its other end has more TX queues than it has RX queues.
    channels(Host::Client, "wan tx 1");
    channels(Host::Director, "wan rx 1");
    let director = serving(&cluster, Workers::One);
    shows(&director, "interface  wan: up, native XDP, 1 queue\n");
    channels(Host::Director, "wan rx 4");
    channels(Host::Client, "wan tx 4");
    shows(&director, "interface  wan: up, native XDP, 4 queues\n");
    shows(&director, "wan queues 0,1,2,3");
    // The client's kernel spreads connections over its queues.
    assert!(clients::take_turns(&clients::pages(&cluster, &format!("http://{VIP}/"), 16)));
    let text = "wan has 4 receive queues now, not 1; workers: 1\n";
    assert!(director.xvs("events --last 1024 --no-follow").contains(text));
    wait::until("the log says so too", || director.log().contains(text).then_some(()));
}

#[test]
fn downloads_arrive_whole_while_the_mtu_changes_and_the_kernel_keeps_the_queues_that_are_served() {
    let cluster = Cluster::up(Layout { queues: 2, ..Layout::default() });
    Method::Nat.prepare(&cluster);
    let director = serving(&cluster, Workers::One);
    let blob = cluster.blob();
    thread::scope(|scope| {
        let downloads = [1, 2].map(|_| {
            scope.spawn(|| {
                // Slow enough that all changes come meanwhile.
                let mut curl = clients::curl(&cluster);
                complete(curl.args(["--limit-rate", "8M"]).arg(format!("http://{VIP}/blob")))
            })
        });
        for mtu in [1300, 1500, 1400, 1500] {
            cluster.ip(Host::Director, &format!("link set lan mtu {mtu}"));
        }
        // A veth has no native XDP while its other end has more TX queues than it has RX queues.
        succeed(cluster.command(Host::Client, "ethtool").args(["-L", "wan", "tx", "1"]));
        let fewer = complete(cluster.command(Host::Director, "ethtool").args(["-L", "wan", "rx", "1"]));
        assert!(!fewer.status.success(), "a queue with a socket is gone");
        let is_under_way = downloads.iter().all(|download| !download.is_finished());
        for download in downloads {
            let output = download.join().expect("no panic");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(output.stdout == blob, "{} bytes differ from the file", output.stdout.len());
        }
        assert!(is_under_way, "the downloads ended before the changes");
    });
    shows(&director, "interface  wan: up, native XDP, 2 queues\n");
}

#[test]
fn packets_of_an_mtu_that_was_raised_are_received() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _echoes = [1, 2].map(|number| {
        Echo::start(&cluster, Host::RealServer(number), SocketAddrV4::new(real_server(number), 5300))
    });
    let director = serving(&cluster, Workers::One);
    director.add_service(Protocol::Udp, 5300, Method::Nat);
    for host in [Host::Director, Host::Client] {
        cluster.ip(host, "link set wan mtu 3000");
    }
    // The first datagram is a packet of 2928 bytes; the director's error names the smaller MTU of `lan`.
    Asker::new(&cluster, virtual_endpoint(5300)).ask(&[7; 2900]);
    assert!(director.xvs("counters").contains("drop_too_big"), "{}", director.xvs("counters"));
    serves(&cluster);
}

#[test]
fn a_removed_interface_is_attached_again_when_it_returns_and_connections_continue() {
    let workers = Workers::Two;
    let cluster = traffic::prepared(Method::Nat, workers);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let mut director = serving(&cluster, workers);
    director.add_service(Protocol::Tcp, 9000, Method::Nat);
    let mut upload = cluster.run(Host::Client, || clients::connect(virtual_endpoint(9000))).expect("opens");
    upload.write_all(b"before and ").expect("upload");
    for times in ["once", "2 times"] {
        traffic::wan_comes_back(&cluster, workers.count(), workers.count());
        shows(&director, &format!("interface  wan: up, native XDP, {} queue", workers.count()));
        shows(&director, &format!(", attached again {times}\n"));
        let events = director.xvs("events --last 1024 --no-follow");
        assert!(events.contains("link: wan is attached again, native XDP\n"), "{events}");
        serves(&cluster);
    }
    let receipt = clients::upload(upload, b"after").expect("the connection is still there");
    assert_eq!(receipt, clients::receipt(&receipt.host, b"before and after"));
    assert!(director.stop().success(), "{}", director.log());
}

#[test]
fn while_another_interface_is_gone_one_that_returns_is_attached_and_served() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _here = Sink::start(&cluster, Host::Director, 8080);
    let director = serving(&cluster, Workers::One);
    // A server that is reached without `lan`, and only by xvsd.
    director.adm(&format!("-A -t {VIP}:9000 -s rr"));
    director.adm(&format!("-a -t {VIP}:9000 -r {DIRECTOR}:8080 -m"));
    cluster.ip(Host::Director, "link del lan");
    shows(&director, "interface  lan: gone");
    traffic::wan_comes_back(&cluster, 1, 1);
    shows(&director, ", attached again once\n");
    let upload = || clients::upload(clients::connect(virtual_endpoint(9000))?, b"all");
    wait::until("wan is served", || cluster.run(Host::Client, upload).ok());
}

#[test]
fn an_interface_that_is_gone_does_not_keep_others_without_sockets_though_its_queues_are_configured() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _here = Sink::start(&cluster, Host::Director, 8080);
    let file = cluster.state().join("xvs.toml");
    fs::write(&file, "[interfaces.lan]\nqueues = 1\n").expect("a file");
    let director =
        Director::start_with(&cluster, Workers::One, &["--config", file.to_str().expect("a path")]);
    director.adm(&format!("-A -t {VIP}:9000 -s rr"));
    director.adm(&format!("-a -t {VIP}:9000 -r {DIRECTOR}:8080 -m"));
    cluster.ip(Host::Director, "link del lan");
    shows(&director, "interface  lan: gone");
    // All sockets are opened again.
    for host in [Host::Director, Host::Client] {
        cluster.ip(host, "link set wan mtu 3000");
    }
    let text = "wan has an MTU of 3000 now, not 1500";
    wait::until(text, || director.xvs("events --last 1024 --no-follow").contains(text).then_some(()));
    let upload = || clients::upload(clients::connect(virtual_endpoint(9000))?, b"all");
    wait::until("wan is served", || cluster.run(Host::Client, upload).ok());
}

#[test]
fn an_interface_whose_driver_refuses_the_configured_queues_is_named_and_serves_with_those_that_it_has() {
    let cluster = Cluster::up(Layout { queues: 4, ..Layout::default() });
    let channels = |host, words: &str| {
        succeed(cluster.command(host, "ethtool").arg("-L").args(words.split_whitespace()));
    };
    channels(Host::Client, "wan tx 1");
    let file = cluster.state().join("xvs.toml");
    fs::write(&file, "[interfaces.wan]\nqueues = 1\n").expect("a file");
    let director =
        Director::start_with(&cluster, Workers::One, &["--config", file.to_str().expect("a path")]);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    serves(&cluster);
    channels(Host::Director, "wan rx 2");
    // With two TX queues at its other end and a native program, this veth refuses one RX queue.
    channels(Host::Client, "wan tx 2");
    shows(
        &director,
        "wan has 2 receive queues, and xvsd serves 1, so packets on the others are not forwarded",
    );
    let page = || clients::fetch(&cluster, &format!("http://{VIP}/")).ok();
    wait::until("a connection on the first queue", page);
    channels(Host::Client, "wan tx 1");
    serves(&cluster);
}

#[test]
fn a_returned_interface_that_cannot_be_attached_is_reported_and_attached_once_the_cause_is_removed() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = serving(&cluster, Workers::One);
    traffic::wan_comes_back(&cluster, 1, 2);
    shows(&director, "`ethtool -K wan rxvlan off` fixes it\n");
    succeed(cluster.command(Host::Director, "ethtool").args(["-K", "wan", "rxvlan", "off"]));
    shows(&director, "interface  wan: up, generic XDP");
    serves(&cluster);
    assert!(!director.status().contains("fixes it"), "{}", director.status());
}

#[test]
fn a_service_whose_only_server_is_the_director_reaches_its_own_socket_in_native_and_generic_mode() {
    for wan in [Wan::Veth, Wan::Macvlan] {
        let cluster = Cluster::up(Layout { wan, ..Layout::default() });
        let _own = Sink::start(&cluster, Host::Director, 9000);
        let director = Director::start(&cluster, Workers::One);
        director.adm(&format!("-A -t {VIP}:9000 -s rr"));
        director.adm(&format!("-a -t {VIP}:9000 -r {DIRECTOR}:9000 -g"));
        let bytes = &cluster.blob()[..1_000_000];
        let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(9000), 3, bytes);
        assert_eq!(receipts, vec![clients::receipt("dr", bytes); 3]);
        let listed = director.adm("-L -n -c");
        assert_eq!(listed.lines().count(), 2 + 3, "each connection was the director's: {listed}");
    }
}

#[test]
fn an_interface_that_was_forgotten_is_named_by_status_doctor_and_explain() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    for (attached, warning, forgotten) in [
        ("lan", format!("clients of {VIP} come in by wan, to which xvsd is not attached"), "wan"),
        (
            "wan",
            "the route to 192.0.2.11 and 1 more real server is by lan, to which xvsd is".to_owned(),
            "lan",
        ),
    ] {
        let director = Director::start_on(&cluster, Host::Director, &["--interface", attached]);
        director.add_service(Protocol::Tcp, 80, Method::Nat);
        let step = format!("or restart xvsd with `--interface {forgotten}` beside the others");
        let status = director.status();
        assert!(status.contains(&format!("warning    {warning}")) && status.contains(&step), "{status}");
        let doctor = complete(cluster.command(Host::Director, program("xvs")).args(["doctor", "--json"]));
        assert_eq!(doctor.status.code(), Some(2));
        let report = String::from_utf8_lossy(&doctor.stdout).into_owned();
        assert!(report.matches(&step).count() >= 2 && !report.contains("ip route replace"), "{report}");
        if attached == "wan" {
            let said = director.xvs(&format!("explain --proto tcp --from 198.51.100.10:5 --to {VIP}:80"));
            let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(said.contains("its route is by lan, to which xvsd is not attached"), "{said}");
            assert!(said.contains(&step), "{said}");
        }
    }
}

#[test]
fn a_member_of_a_bridge_and_a_tap_of_xvsd_are_refused_and_one_that_becomes_a_member_is_a_warning() {
    let cluster = Cluster::up(Layout::default());
    cluster.ip(Host::Director, "link add br0 type bridge");
    let director = Director::start(&cluster, Workers::One);
    assert!(refused(&cluster, "xvs0").contains("xvs0 is a TAP of xvsd"));
    cluster.ip(Host::Director, "link set lan master br0");
    let why = "lan is a member of the bridge br0, which has its addresses";
    shows(&director, &format!("warning    {why}"));
    wait::until("the log says so too", || director.log().contains(why).then_some(()));
    let log = refused(&cluster, "lan");
    assert!(log.contains(why) && log.contains("`--interface br0`"), "{log}");
    cluster.ip(Host::Director, "link set dev lan nomaster");
    wait::until("the warning is over", || (!director.status().contains(why)).then_some(()));
}

/// The log of an xvsd that refuses to attach an interface.
fn refused(cluster: &Cluster, interface: &str) -> String {
    let socket = cluster.state().join("other.sock").display().to_string();
    let (status, log) = Director::refusal(cluster, &["--interface", interface, "--socket", &socket]);
    assert!(!status.success(), "{log}");
    log
}

/// A cluster whose director has its address towards the real servers on a bridge, `br0`, over `lan`.
fn bridged() -> Cluster {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    for words in [
        "link add br0 type bridge",
        "link set lan master br0",
        "address del 192.0.2.1/24 dev lan",
        "link set br0 up",
        "address add 192.0.2.1/24 dev br0",
    ] {
        cluster.ip(Host::Director, words);
    }
    cluster
}

const BRIDGED: [&str; 4] = ["--interface", "wan", "--interface", "br0"];

/// A director with NAT services behind a bridge.
fn behind_bridge(cluster: &Cluster) -> Director<'_> {
    let director = Director::start_on(cluster, Host::Director, &BRIDGED);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    serves(cluster);
    director
}

#[test]
fn a_bridge_serves_in_generic_mode_and_its_ports_bring_whole_downloads_and_uploads() {
    let cluster = bridged();
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let director = behind_bridge(&cluster);
    director.add_service(Protocol::Tcp, 9000, Method::Nat);
    shows(&director, "interface  br0: up, generic XDP");
    let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("download");
    assert!(body == cluster.blob(), "{} bytes differ from the file", body.len());
    let bytes = &cluster.blob()[..1_000_000];
    for receipt in clients::parallel_uploads(&cluster, virtual_endpoint(9000), 2, bytes) {
        assert_eq!(receipt, clients::receipt(&receipt.host, bytes));
    }
    // Large pings to the VIP go by the worker, as fragments, and back to the kernel by the bridge.
    let server = Host::RealServer(1);
    succeed(cluster.command(server, "ping").args(["-c3", "-W5", "-s3000"]).arg(VIP.to_string()));
    let doctor = complete(cluster.command(Host::Director, program("xvs")).args(["doctor"]));
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("no port merges packets"), "{said}");
    let said = director.xvs(&format!("explain --proto tcp --from 198.51.100.10:5 --to {VIP}:80"));
    assert!(said.contains("br0"), "{said}");
}

#[test]
fn a_port_that_merges_packets_is_refused_and_one_that_joins_later_is_a_warning_with_the_command() {
    let cluster = bridged();
    let gro = |host, interface: &str, state: &str| {
        succeed(cluster.command(host, "ethtool").args(["-K", interface, "gro", state]));
    };
    gro(Host::Director, "lan", "on");
    let (status, log) = Director::refusal(&cluster, &BRIDGED);
    assert!(
        !status.success() && log.contains("br0 is a bridge") && log.contains("`ethtool -K lan gro off`"),
        "{log}"
    );
    gro(Host::Director, "lan", "off");
    let director = behind_bridge(&cluster);
    cluster.ip(Host::Director, "link add more type veth peer name far");
    gro(Host::Director, "more", "on");
    cluster.ip(Host::Director, "link set more master br0");
    shows(&director, "`ethtool -K more gro off`");
    gro(Host::Director, "more", "off");
    wait::until("the warning is over", || (!director.status().contains("ethtool -K more")).then_some(()));
    serves(&cluster);
}

#[test]
fn a_bridge_that_loses_its_ports_is_down_and_serves_again_with_them() {
    let cluster = bridged();
    let director = behind_bridge(&cluster);
    cluster.ip(Host::Director, "link set lan nomaster");
    shows(&director, "warning    br0 is down; ");
    cluster.ip(Host::Director, "link set lan master br0");
    shows(&director, "interface  br0: up");
    serves(&cluster);
}

#[test]
fn what_a_ports_sender_has_not_segmented_is_dropped_and_counted_until_the_sender_segments() {
    let cluster = bridged();
    // A port of the bridge that is the other end of a real server's veth, as a container's is.
    let (server, there) = (Host::RealServer(1), cluster.namespace(Host::RealServer(1)));
    cluster
        .ip(Host::Director, &format!("link add port up master br0 type veth peer name direct netns {there}"));
    cluster.ip(server, "link set direct up");
    cluster.ip(server, "address add 203.0.113.2/24 dev direct");
    cluster.ip(server, "route replace default via 203.0.113.1");
    cluster.ip(Host::Director, "address add 203.0.113.1/24 dev br0");
    let director = Director::start_on(&cluster, Host::Director, &BRIDGED);
    director.adm(&format!("-A -t {VIP}:80"));
    director.adm(&format!("-a -t {VIP}:80 -r 203.0.113.2:80 -m"));
    let download = || {
        let mut curl = clients::curl(&cluster);
        complete(curl.args(["--max-time", "5"]).arg(format!("http://{VIP}/blob"))).stdout
    };
    assert!(download().len() < cluster.blob().len());
    shows(&director, "packets were dropped as kernel_dropped");
    succeed(cluster.command(server, "ethtool").args(["-K", "direct", "tx", "off"]));
    assert!(download() == cluster.blob());
}

/// A director with a UDP service by NAT, whose real server answers, and a client that has been answered.
fn answered(cluster: &Cluster) -> (Director<'_>, Echo, Asker) {
    let echo = Echo::start(cluster, Host::RealServer(1), SocketAddrV4::new(real_server(1), 5300));
    let director = Director::start(cluster, Workers::One);
    director.adm(&format!("-A -u {VIP}:5300"));
    director.adm(&format!("-a -u {VIP}:5300 -r {}:5300 -m", real_server(1)));
    let asker = Asker::new(cluster, virtual_endpoint(5300));
    asker.ask(b"who serves me?");
    (director, echo, asker)
}

#[test]
fn a_reply_to_a_client_whose_link_address_was_forgotten_waits_and_arrives() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let (director, _echo, asker) = answered(&cluster);
    let count = |name: &str| {
        let counters = director.xvs("counters");
        let mut lines = counters.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.find_map(|words| (words.first() == Some(&name)).then(|| words[1].parse().expect("a count")))
    };
    let before: Option<u64> = count("waited");
    wait::until("a reply has waited", || {
        cluster.ip(Host::Director, "neigh flush dev wan");
        asker.ask(b"and now?");
        (count("waited") > before).then_some(())
    });
}

#[test]
fn the_kernel_confirms_a_neighbour_that_only_workers_send_to() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let (_director, _echo, asker) = answered(&cluster);
    let client = "198.51.100.10 dev wan";
    // Five seconds otherwise.
    succeed(
        cluster
            .command(Host::Director, "sysctl")
            .args(["-qw", "net.ipv4.neigh.wan.delay_first_probe_time=1"]),
    );
    let known = cluster.ip(Host::Director, &format!("neigh show {client}"));
    let mac = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).expect("a link address");
    cluster.ip(Host::Director, &format!("neigh replace {client} lladdr {mac} nud stale"));
    wait::until("the kernel confirms the client", || {
        asker.ask(b"still there?");
        let now = cluster.ip(Host::Director, &format!("neigh show {client}"));
        now.contains("REACHABLE").then_some(())
    });
}
