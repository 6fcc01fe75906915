//! Services by firewall mark, with rules of the kernel or of `xvs mark`.
//!
//! Rules are set by the real iptables (both kinds) and nft on the director, and added, changed and flushed while
//! connections are open. Each test has a cluster of its own. Needs root. Not here: every form of rule
//! (`crates/host/src/netfilter`).

use std::net::{TcpStream, UdpSocket};

use xvs::cluster::{REAL_SERVERS, VIP, real_server, succeed, virtual_endpoint};
use xvs::director::program;
use xvs::servers::Sink;
use xvs::wait;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};

/// A director whose service of mark 1 forwards every port to nginx, and that of mark 2 to the sinks.
fn marked(cluster: &Cluster) -> Director<'_> {
    let director = Director::start(cluster, Workers::One);
    for (mark, port) in [(1, 80), (2, 9000)] {
        director.adm(&format!("-A -f {mark} -s rr"));
        for number in 1..=REAL_SERVERS.len() as u8 {
            director.adm(&format!("-a -f {mark} -r {}:{port} -m", real_server(number)));
        }
    }
    director
}

/// Runs command lines on the director; all must succeed.
fn run(cluster: &Cluster, lines: &[&str]) {
    for line in lines {
        let (name, arguments) = line.split_once(' ').expect("a program and its arguments");
        let path = if name == "xvs" { program(name) } else { name.into() };
        let arguments = arguments.split_whitespace();
        succeed(cluster.command(Host::Director, path).args(arguments));
    }
}

fn page(cluster: &Cluster, port: u16) -> Result<String, String> {
    let body = clients::fetch(cluster, &format!("http://{VIP}:{port}/"))?;
    Ok(String::from_utf8_lossy(&body).trim_end().to_owned())
}

fn await_served(cluster: &Cluster, port: u16) {
    wait::until(&format!("port {port} is served"), || page(cluster, port).ok());
}

/// Waits until the director's kernel refuses connections to a port, on which no socket listens.
fn await_refused(cluster: &Cluster, port: u16) {
    wait::until(&format!("port {port} is refused"), || page(cluster, port).err());
}

fn open(cluster: &Cluster, port: u16) -> TcpStream {
    cluster.run(Host::Client, || clients::connect(virtual_endpoint(port))).expect("the service answers")
}

/// The rules of one program through their life: no rule, two ports as one service, another port, then a port with
/// another mark, and a flush while a connection is open, which continues.
fn followed(add: &[&str], more: &[&str], flush: &[&str]) {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let director = marked(&cluster);
    assert!(page(&cluster, 80).is_err(), "without a rule no packet is marked");

    run(&cluster, add);
    await_served(&cluster, 80);
    let pages: Vec<_> = [80, 8080, 80, 8080].map(|port| page(&cluster, port).expect("a page")).into();
    assert!(clients::take_turns(&pages), "two ports are one service: {pages:?}");
    assert!(page(&cluster, 81).is_err(), "a port without a rule stays with the kernel");

    run(&cluster, more);
    await_served(&cluster, 8100);
    let mut upload = open(&cluster, 9000);
    let blob = cluster.blob();
    std::io::Write::write_all(&mut upload, &blob[..1_000_000]).expect("upload");

    let status = director.status();
    assert!(!status.contains("warning"), "{status}");

    run(&cluster, flush);
    await_refused(&cluster, 80);
    let receipt = clients::upload(upload, &blob[1_000_000..]).expect("an open connection continues");
    assert_eq!(receipt, clients::receipt(&receipt.host, &blob));
    assert!(page(&cluster, 8080).is_err());
    let status = director.status();
    for mark in [1, 2] {
        let named = format!("no rule that xvsd follows gives packets the mark {mark}");
        assert!(status.contains(&named), "{status}");
    }
}

#[test]
fn rules_of_iptables_nft_are_followed_as_they_are_added_changed_and_flushed() {
    let vip = VIP.to_string();
    let with = |line: &str| line.replace("VIP", &vip);
    let add = [
        with("iptables-nft -t mangle -N web"),
        with("iptables-nft -t mangle -A web -p tcp --dport 81 -j RETURN"),
        with("iptables-nft -t mangle -A web -p tcp -m multiport --dports 80:81,8080 -j MARK --set-mark 1"),
        with("iptables-nft -t mangle -A PREROUTING -i wan -d VIP ! -s 203.0.113.0/24 -j web"),
    ];
    let more = [
        with(
            "iptables-nft -t mangle -A PREROUTING -d VIP -p tcp --dport 9000 -j MARK --set-xmark 2/0xffffffff",
        ),
        with("iptables-nft -t mangle -A web -p tcp --dport 8100:8110 -j MARK --set-mark 1"),
    ];
    followed(&each(&add), &each(&more), &["iptables-nft -t mangle -F"]);
}

#[test]
fn rules_of_iptables_legacy_are_followed_as_they_are_added_changed_and_flushed() {
    let vip = VIP.to_string();
    let with = |line: &str| line.replace("VIP", &vip);
    let add = [with(
        "iptables-legacy -t mangle -A PREROUTING -d VIP -p tcp -m multiport --dports 80,8080 -j MARK --set-mark 1",
    )];
    let more = [
        with("iptables-legacy -t mangle -A PREROUTING -d VIP -p tcp --dport 9000 -j MARK --set-mark 2"),
        with("iptables-legacy -t mangle -A PREROUTING -d VIP -p tcp --dport 8100 -j MARK --set-mark 1"),
    ];
    followed(&each(&add), &each(&more), &["iptables-legacy -t mangle -F"]);
}

#[test]
fn rules_of_nftables_are_followed_as_they_are_added_changed_and_flushed() {
    let vip = VIP.to_string();
    let with = |line: &str| line.replace("VIP", &vip);
    let add = [
        with("nft add table inet lvs"),
        with("nft add set inet lvs web { type inet_service ; flags interval ; elements = { 80, 8080 } ; }"),
        with("nft add chain inet lvs pre { type filter hook prerouting priority mangle ; }"),
        with("nft add rule inet lvs pre iifname wan ip daddr VIP tcp dport @web meta mark set 1"),
    ];
    let more = [
        with("nft add rule inet lvs pre ip daddr VIP tcp dport 9000 meta mark set 2"),
        with("nft add element inet lvs web { 8100-8110 }"),
    ];
    followed(&each(&add), &each(&more), &["nft flush ruleset"]);
}

#[test]
fn expired_set_elements_and_elements_added_by_packets_change_the_marked_packets() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, 9000));
    let _director = marked(&cluster);
    let lines = [
        "nft add table ip lvs",
        "nft add set ip lvs web { type inet_service ; flags timeout ; elements = { 80 timeout 3s } ; }",
        "nft add set ip lvs seen { type inet_service ; flags dynamic ; size 100 ; }",
        "nft add chain ip lvs pre { type filter hook prerouting priority mangle ; }",
        "nft add rule ip lvs pre tcp dport @web meta mark set 1",
        "nft add rule ip lvs pre tcp dport @seen meta mark set 1",
        "nft add rule ip lvs pre tcp dport 8081 add @seen { tcp dport }",
    ];
    run(&cluster, &lines);
    await_served(&cluster, 80);
    // Until a packet has added its port, the kernel refuses connections to it.
    await_served(&cluster, 8081);
    await_refused(&cluster, 80);
}

#[test]
fn rules_of_xvs_mark_are_in_force_at_once() {
    let vip = VIP.to_string();
    let with = |line: &str| line.replace("VIP", &vip);
    let add = [with("xvs mark add -d VIP -p tcp --dports 80,8080 --set-mark 1")];
    let more = [
        with("xvs mark add -d VIP -p tcp --dport 9000 --set-mark 2"),
        with("xvs mark add -d VIP/31 -p tcp -i wan --dports 8100:8110 --set-mark 1"),
    ];
    let flush: Vec<_> = add.iter().chain(&more).map(|line| line.replace(" add ", " delete ")).collect();
    followed(&each(&add), &each(&more), &each(&flush));
}

#[test]
fn rules_older_than_the_daemon_are_followed_and_an_unsupported_rule_is_logged_with_its_text() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    run(
        &cluster,
        &[
            &format!(
                "iptables-nft -t mangle -A PREROUTING -d {VIP} -p tcp --dport 8080 -j MARK --set-mark 1"
            ),
            &format!(
                "iptables-nft -t mangle -A PREROUTING -d {VIP} -m length --length 100 -j MARK --set-mark 1"
            ),
        ],
    );
    let director = marked(&cluster);
    assert!(page(&cluster, 8080).is_ok(), "from the first packet on");
    let warning = format!(
        "mark rule «iptables -t mangle -A PREROUTING -d {VIP}/32 -m length --length 100 -j MARK \
         --set-xmark 0x1/0xffffffff» is not followed: xvs does not know the match length"
    );
    let status = director.status();
    assert!(status.contains(&format!("warning    {warning}\n")), "{status}");
    assert!(director.log().contains(&warning));
}

#[test]
fn without_a_real_server_cache_bypass_forwards_marked_packets_that_the_kernel_would_deliver_locally() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let ip = |host, line: &str| succeed(cluster.command(host, "ip").args(line.split(' ')));
    // A server behind the director, at its own address.
    ip(Host::RealServer(1), "address add 203.0.113.80/32 dev lo");
    ip(Host::Director, "route add 203.0.113.80/32 via 192.0.2.11");
    ip(Host::Client, "route add 203.0.113.80/32 via 198.51.100.1");
    ip(Host::Director, "rule add fwmark 7 lookup 100");
    ip(Host::Director, "route add local 0.0.0.0/0 dev lo table 100");
    run(&cluster, &["iptables-nft -t mangle -A PREROUTING -d 203.0.113.0/24 -j MARK --set-mark 7"]);
    let director = Director::start(&cluster, Workers::One);
    director.adm("-A -f 7 -s rr");
    let fetch = || clients::fetch(&cluster, "http://203.0.113.80/");
    assert!(fetch().is_err(), "there is no real server");

    run(&cluster, &["xvs set cache_bypass 1"]);
    assert_eq!(fetch().as_deref(), Ok(b"rs1\n".as_slice()));
    let listing = director.adm("-Lnc");
    let row = listing.lines().find(|line| line.contains("203.0.113.80:80")).expect("a connection");
    assert!(row.ends_with(" 0.0.0.0:0"), "{row}");
    assert!(director.adm("-Ln").contains("FWM  7 rr"));

    // The time to live of a datagram expires at the director, which must not send the error from the server's address.
    let counted = |name: &str| {
        let counters = succeed(cluster.command(Host::Director, program("xvs")).arg("counters"));
        counters.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    let said = counted("originated ");
    cluster.run(Host::Client, || {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        socket.set_ttl(1).expect("a time to live");
        socket.send_to(b"?", ("203.0.113.80", 9)).expect("it leaves");
    });
    wait::until("it is dropped", || (counted("drop_ttl_expired ") == "1").then_some(()));
    assert_eq!(counted("originated "), said);
}

fn each(lines: &[String]) -> Vec<&str> {
    lines.iter().map(String::as_str).collect()
}
