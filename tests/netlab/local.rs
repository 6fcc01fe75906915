//! Real servers on the director itself, by NAT to another port, and clients on it, with real sockets.
//!
//! Each test has a cluster of its own. Needs root. Not here: delivery without rewriting (`lab/links.rs`).

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};

use xvs::cluster::{DIRECTOR, VIP, VIP6, complete, succeed};
use xvs::exposition::{ADDRESS, Page};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The port of the server on the director, and that of its service.
const HERE: u16 = 8080;
const SERVED: u16 = 9000;
/// That of a server on a real server.
const THERE: u16 = 7000;

/// The service at the VIP, with a server at another port of an address of the director.
fn served<'a>(cluster: &'a Cluster, vip: IpAddr, here: SocketAddr, more: &[&str]) -> Director<'a> {
    let director = Director::start_with(cluster, Workers::Two, more);
    let vip = SocketAddr::new(vip, SERVED);
    for protocol in ["-t", "-u"] {
        director.adm(&format!("-A {protocol} {vip} -s rr"));
        director.adm(&format!("-a {protocol} {vip} -r {here} -m"));
    }
    director
}

/// What the client uploads, larger than many windows, arrives at the director's server.
fn uploads(cluster: &Cluster, to: SocketAddr) {
    uploads_from(cluster, Host::Client, to, "dr");
}

/// The same from and to a host.
fn uploads_from(cluster: &Cluster, client: Host, to: SocketAddr, server: &str) {
    let bytes = vec![0x5a; 3_000_000];
    let receipt =
        cluster.run(client, || clients::connect(to).and_then(|stream| clients::upload(stream, &bytes)));
    assert_eq!(receipt.ok(), Some(clients::receipt(server, &bytes)), "{to}");
}

/// The result of curl on the director, or its exit code.
fn page(cluster: &Cluster, url: &str) -> Result<Vec<u8>, i32> {
    let output = complete(cluster.command(Host::Director, "curl").args(["-sS", "--max-time", "20", url]));
    if output.status.success() { Ok(output.stdout) } else { Err(output.status.code().unwrap_or_default()) }
}

/// The exit code of curl for a refused connection.
const REFUSED: i32 = 7;

/// The VIPs with the first real server's address.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("198.51.100.100", "192.0.2.11", "192.0.2.1"),
    ("[2001:db8:1::100]", "[2001:db8:2::11]", "2001:db8:2::1"),
];

/// The programs on the egress of the director's interfaces.
fn redirected(cluster: &Cluster) -> Vec<String> {
    let shown = ["wan", "lan", "lo"].map(|interface| {
        succeed(cluster.command(Host::Director, "tc").args(["filter", "show", "dev", interface, "egress"]))
    });
    shown.into_iter().filter(|shown| !shown.is_empty()).collect()
}

#[test]
fn a_server_at_another_port_of_the_director_is_served_and_is_reached_directly_too() {
    for (vip, here) in
        [(IpAddr::from(VIP), IpAddr::from(DIRECTOR)), (VIP.into(), VIP.into()), (VIP6.into(), VIP6.into())]
    {
        let cluster = traffic::prepared(Method::Nat, Workers::Two);
        let here = SocketAddr::new(here, HERE);
        let _sink = Sink::start(&cluster, Host::Director, HERE);
        let director = served(&cluster, vip, here, &[]);
        uploads(&cluster, SocketAddr::new(vip, SERVED));
        uploads(&cluster, here);
        let _echo = Echo::start(&cluster, Host::Director, here);
        // The last one is sent in fragments.
        for question in [&b"hello"[..], &[0x5a; 1400], &[0x5a; 4000]] {
            for to in [SocketAddr::new(vip, SERVED), here] {
                assert_eq!(clients::Asker::new(&cluster, to).ask(question), "dr", "{to}");
            }
        }
        let listed = director.adm("-Lnc");
        assert!(listed.contains("TIME_WAIT") || listed.contains("CLOSE"), "replies are seen: {listed}");
        wait::until("replies are counted", || {
            let counted = director.adm("-Ln --stats --exact");
            let server = counted.lines().find(|line| line.contains("->") && line.contains(":8080"))?;
            let packets: u64 = server.split_whitespace().nth(4)?.parse().ok()?;
            (packets > 20).then_some(())
        });
    }
}

#[test]
fn redirection_ends_with_the_last_such_server_and_a_director_without_one_has_none() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let here = SocketAddr::new(VIP.into(), HERE);
    let director = served(&cluster, VIP.into(), here, &[]);
    assert_eq!(redirected(&cluster).len(), 3);
    director.adm(&format!("-d -t {VIP}:{SERVED} -r {here}"));
    assert_eq!(redirected(&cluster).len(), 3, "the other service has it");
    director.adm(&format!("-d -u {VIP}:{SERVED} -r {here}"));
    assert_eq!(redirected(&cluster), [""; 0]);
}

#[test]
fn a_killed_or_stopped_xvsd_leaves_the_server_reachable_at_once_and_the_next_one_serves_again() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let here = SocketAddr::new(VIP.into(), HERE);
    let _sink = Sink::start(&cluster, Host::Director, HERE);
    for kill in [true, false] {
        let mut director = served(&cluster, VIP.into(), here, &["--hold", "1h"]);
        uploads(&cluster, SocketAddr::new(VIP.into(), SERVED));
        match kill {
            true => director.kill(),
            false => assert!(director.stop().success()),
        }
        uploads(&cluster, here);
        assert_eq!(redirected(&cluster).len(), if kill { 3 } else { 0 }, "killed: {kill}");
        let director = Director::start(&cluster, Workers::Two);
        uploads(&cluster, SocketAddr::new(VIP.into(), SERVED));
        uploads(&cluster, here);
        director.adm("-C");
        wait::until("nothing is redirected", || redirected(&cluster).is_empty().then_some(()));
    }
}

#[test]
fn a_server_on_the_director_sends_packets_of_9000_bytes() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    cluster.ip(Host::Client, "link set wan mtu 9000");
    cluster.ip(Host::Director, "link set wan mtu 9000");
    let here = SocketAddr::new(VIP.into(), HERE);
    let _sink = Sink::start(&cluster, Host::Director, HERE);
    let _echo = Echo::start(&cluster, Host::Director, here);
    let _director = served(&cluster, VIP.into(), here, &[]);
    for to in [SocketAddr::new(VIP.into(), SERVED), here] {
        assert_eq!(clients::Asker::new(&cluster, to).ask(&[0x5a; 8900]), "dr", "{to}");
    }
    uploads(&cluster, SocketAddr::new(VIP.into(), SERVED));
}

#[test]
fn clients_on_the_director_are_served_by_nat_and_fullnat_over_ipv4_and_ipv6() {
    for method in ["-m", "--fullnat"] {
        let cluster = traffic::prepared(Method::Nat, Workers::Two);
        let director = Director::start_with(&cluster, Workers::Two, &["--metrics", ADDRESS]);
        for (vip, server, local) in FAMILIES {
            director.xvs(&format!("laddr add {local}"));
            director.adm(&format!("-A -t {vip}:80 -s rr"));
            director.adm(&format!("-a -t {vip}:80 -r {server}:80 {method}"));
            director.adm(&format!("-A -t {vip}:{SERVED} -s rr"));
            director.adm(&format!("-a -t {vip}:{SERVED} -r {server}:{THERE} {method}"));
            let _sink = Sink::start(&cluster, Host::RealServer(1), THERE);
            assert_eq!(page(&cluster, &format!("http://{vip}/")).as_deref(), Ok(&b"rs1\n"[..]), "{method}");
            let blob = page(&cluster, &format!("http://{vip}/blob"));
            assert!(blob == Ok(cluster.blob()), "{method} {vip}: {:?}", blob.map(|blob| blob.len()));
            uploads_from(&cluster, Host::Director, format!("{vip}:{SERVED}").parse().unwrap(), "rs1");
            // The director's own connections to a real server are its own, with a client's at the same time or not.
            uploads_from(&cluster, Host::Director, format!("{server}:{THERE}").parse().unwrap(), "rs1");
            assert_eq!(clients::pages(&cluster, &format!("http://{vip}/"), 1), ["rs1"]);
        }
        let page = Page::of(&cluster, Host::Director);
        assert_eq!(page.sum("xvs_worker_unaccounted_packets", &[]), Some(0.0), "{method}");
    }
}

#[test]
fn a_client_and_a_server_may_both_be_on_the_director() {
    for (vip, ..) in FAMILIES {
        let cluster = traffic::prepared(Method::Nat, Workers::One);
        let _sink = Sink::start(&cluster, Host::Director, HERE);
        let vip = format!("{vip}:{SERVED}").parse::<SocketAddr>().unwrap();
        let here = SocketAddr::new(vip.ip(), HERE);
        let _director = served(&cluster, vip.ip(), here, &[]);
        uploads_from(&cluster, Host::Director, vip, "dr");
        uploads_from(&cluster, Host::Director, here, "dr");
        uploads(&cluster, vip);
    }
}

#[test]
fn a_client_on_the_director_reaches_its_kernel_by_direct_routing_and_tunnels_and_when_xvsd_is_gone() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    for method in ["-g", "-i"] {
        director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.11:80 {method}"));
        assert_eq!(page(&cluster, &format!("http://{VIP}/")), Err(REFUSED));
        assert_eq!(redirected(&cluster), [""; 0]);
        director.adm(&format!("-d -t {VIP}:80 -r 192.0.2.11:80"));
    }
    director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.11:80 -m"));
    assert!(page(&cluster, &format!("http://{VIP}/")).is_ok());
    assert_eq!(redirected(&cluster).len(), 1);
    // One of both: the kernel has the packets of its connections.
    director.adm(&format!("-e -t {VIP}:80 -r 192.0.2.11:80 -m -w 0"));
    director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.12:80 -g"));
    assert_eq!(page(&cluster, &format!("http://{VIP}/")), Err(REFUSED));
    director.kill();
    assert_eq!(page(&cluster, &format!("http://{VIP}/")), Err(REFUSED));
    let director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-e -t {VIP}:80 -r 192.0.2.11:80 -m -w 1"));
    director.adm(&format!("-d -t {VIP}:80 -r 192.0.2.12:80"));
    assert!(page(&cluster, &format!("http://{VIP}/")).is_ok());
    director.adm("-C");
    assert_eq!(redirected(&cluster), [""; 0]);
}

#[test]
fn connections_of_servers_and_clients_on_the_director_go_on_over_a_take_over() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _here = Sink::start(&cluster, Host::Director, HERE);
    let _there = Sink::start(&cluster, Host::RealServer(1), THERE);
    let mut director = served(&cluster, VIP.into(), SocketAddr::new(VIP.into(), HERE), &["--hold", "1h"]);
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.11:{THERE} -m"));
    // A server that speaks first, after the take-over.
    let there = SocketAddr::from(([192, 0, 2, 11], THERE + 1));
    let listener = cluster.run(Host::RealServer(1), || TcpListener::bind(there)).unwrap();
    director.adm(&format!("-A -t {VIP}:81 -s rr"));
    director.adm(&format!("-a -t {VIP}:81 -r {there} -m"));
    let mut idle = cluster.run(Host::Director, || clients::connect(SocketAddr::new(VIP.into(), 81))).unwrap();
    let mut server = listener.accept().unwrap().0;
    let to_here = clients::HalfUpload::begin(&cluster, SERVED);
    let from_here =
        cluster.run(Host::Director, || clients::connect(SocketAddr::new(VIP.into(), 80))).unwrap();
    let successor = Director::take_over(&cluster, Workers::Two, &["--hold", "1h"]);
    let _successor = successor.unwrap_or_else(|log| panic!("{log}"));
    director.is_taken_over();
    let mut news = [0; 4];
    server.write_all(b"news").unwrap();
    idle.read_exact(&mut news).unwrap();
    assert_eq!(&news, b"news");
    to_here.finish();
    assert_eq!(clients::upload(from_here, b"all").unwrap(), clients::receipt("rs1", b"all"));
    uploads(&cluster, SocketAddr::new(VIP.into(), SERVED));
    assert_eq!(redirected(&cluster).len(), 3);
}

#[test]
fn status_says_that_packets_cannot_be_redirected_until_they_can() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let tc = |words: &str| succeed(cluster.command(Host::Director, "tc").args(words.split(' ')));
    // It takes the place of `clsact`, and has no egress.
    tc("qdisc add dev lo ingress");
    director.adm(&format!("-A -t {VIP}:80 -s rr"));
    director.adm(&format!("-a -t {VIP}:80 -r 192.0.2.11:80 -m"));
    let warns = || director.status().contains("clients on this machine are not served");
    wait::until("a warning", || warns().then_some(()));
    assert_eq!(clients::pages(&cluster, &format!("http://{VIP}/"), 1), ["rs1"], "others are served");
    tc("qdisc del dev lo ingress");
    director.adm(&format!("-e -t {VIP}:80 -r 192.0.2.11:80 -m -w 2"));
    wait::until("no warning", || (!warns()).then_some(()));
    assert!(page(&cluster, &format!("http://{VIP}/")).is_ok());
}
