//! IPv6 with real sockets: curl and nginx, uploads and datagrams, by NAT and by direct routing.
//!
//! Each test has a cluster of its own. Needs root. Not here: the same in IPv4 (`nat.rs`, `dr.rs`).

use std::net::{IpAddr, SocketAddr};

use xvs::clients::{self, Asker};
use xvs::cluster::{Cluster, Host, REAL_SERVERS, VIP6, real_server6, succeed};
use xvs::director::program;
use xvs::servers::{Echo, Receipt, Sink};
use xvs::{Director, Method, Workers, traffic, wait};

const UPLOAD: u16 = 9000;
const DATAGRAMS: u16 = 5300;

/// A cluster whose real servers have the virtual address if the method needs it.
fn cluster(method: Method) -> Cluster {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    if method == Method::DirectRouting {
        for server in REAL_SERVERS {
            let mut command = cluster.command(server, program("xvs"));
            succeed(command.args(["realserver", "up", "--vip", &VIP6.to_string(), "--dev", "lan"]));
        }
    }
    cluster
}

/// Adds a round-robin service with both real servers.
fn add_service(director: &Director<'_>, protocol: &str, port: u16, method: Method) {
    director.adm(&format!("-A {protocol} [{VIP6}]:{port} -s rr"));
    for number in [1, 2] {
        director.adm(&format!(
            "-a {protocol} [{VIP6}]:{port} -r [{}]:{port} {}",
            real_server6(number),
            method.option()
        ));
    }
}

fn at(addr: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), port)
}

/// Real servers take turns, and a download from and an upload to each arrive whole.
fn tcp_whole_both_ways(cluster: &Cluster, director: &Director<'_>, method: Method) {
    let _sinks = REAL_SERVERS.map(|host| Sink::start(cluster, host, UPLOAD));
    for port in [80, UPLOAD] {
        add_service(director, "-t", port, method);
    }
    let pages = clients::pages(cluster, &format!("http://[{VIP6}]/"), 8);
    assert!(clients::take_turns(&pages), "pages came from {pages:?}");
    let blob = cluster.blob();
    for host in REAL_SERVERS {
        let body = clients::fetch(cluster, &format!("http://[{VIP6}]/blob")).expect("download");
        assert!(body == blob, "a download of {} bytes differs from the file", body.len());
        let receipts = clients::parallel_uploads(cluster, at(VIP6, UPLOAD), 2, &blob[..5_000_000]);
        let owed: Receipt = clients::receipt(&host.name(), &blob[..5_000_000]);
        assert!(receipts.contains(&owed), "{receipts:?}");
    }
}

#[test]
fn downloads_and_uploads_arrive_whole() {
    for method in [Method::Nat, Method::DirectRouting] {
        let cluster = cluster(method);
        tcp_whole_both_ways(&cluster, &Director::start(&cluster, Workers::Two), method);
    }
}

#[test]
fn direct_routing_works_with_the_director_as_the_real_servers_router_and_replies_are_counted() {
    let cluster = cluster(Method::DirectRouting);
    for server in REAL_SERVERS {
        succeed(cluster.command(server, "ip").args("-6 rule del from 2001:db8:1::/64 lookup 100".split(' ')));
    }
    let director = Director::start(&cluster, Workers::Two);
    tcp_whole_both_ways(&cluster, &director, Method::DirectRouting);
    // The two downloads are 40 MB. Estimators read counters every two seconds.
    wait::until("the replies are counted", || {
        let listing = director.adm(&format!("-Ln --stats --exact -t [{VIP6}]:80"));
        let row = listing.lines().find(|line| line.starts_with("TCP")).expect("the service's row");
        let sent: u64 = row.split_whitespace().last().and_then(|word| word.parse().ok()).expect("OutBytes");
        (sent > 40_000_000).then_some(())
    });
}

#[test]
fn datagrams_are_answered_and_each_flow_keeps_its_real_server() {
    for method in [Method::Nat, Method::DirectRouting] {
        let cluster = cluster(method);
        let _echoes = [1, 2].map(|number| {
            let addr = if method == Method::Nat { real_server6(number) } else { VIP6 };
            Echo::start(&cluster, Host::RealServer(number), at(addr, DATAGRAMS))
        });
        let director = Director::start(&cluster, Workers::Two);
        add_service(&director, "-u", DATAGRAMS, method);
        let flows: Vec<Asker> = (0..8).map(|_| Asker::new(&cluster, at(VIP6, DATAGRAMS))).collect();
        let first: Vec<String> = flows.iter().map(|flow| flow.ask(b"who serves me?")).collect();
        assert!(clients::take_turns(&first), "flows were answered by {first:?}");
        let again: Vec<String> = flows.iter().map(|flow| flow.ask(&[0xa5; 1400])).collect();
        assert_eq!(first, again, "a flow changed its real server");
    }
}
