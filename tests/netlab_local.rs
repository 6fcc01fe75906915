//! Real servers on the director itself, by NAT to another port, with real sockets.
//!
//! Each test has a cluster of its own. Needs root. Not here: delivery without rewriting (`links.rs`).

use std::net::{IpAddr, SocketAddr};

use xvs::cluster::{DIRECTOR, VIP, VIP6, succeed};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The port of the server on the director, and that of its service.
const HERE: u16 = 8080;
const SERVED: u16 = 9000;

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

/// What the client uploads, larger than many windows, arrives at the server of this host.
fn uploads(cluster: &Cluster, to: SocketAddr) {
    let bytes = vec![0x5a; 3_000_000];
    let receipt = cluster.run(Host::Client, || clients::upload(clients::connect(to).unwrap(), &bytes));
    assert_eq!(receipt.unwrap(), clients::receipt("dr", &bytes), "{to}");
}

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
    assert_eq!(redirected(&cluster).len(), 2);
    director.adm(&format!("-d -t {VIP}:{SERVED} -r {here}"));
    assert_eq!(redirected(&cluster).len(), 2, "the other service has it");
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
        assert_eq!(redirected(&cluster).len(), if kill { 2 } else { 0 }, "killed: {kill}");
        let director = Director::start(&cluster, Workers::Two);
        uploads(&cluster, SocketAddr::new(VIP.into(), SERVED));
        uploads(&cluster, here);
        director.adm("-C");
        wait::until("nothing is redirected", || redirected(&cluster).is_empty().then_some(()));
    }
}
