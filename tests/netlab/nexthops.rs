//! Clients and real servers behind routes as routing daemons install them: by IPv6 next hops and by nexthop objects,
//! with `net.ipv4.nexthop_compat_mode=0`.
//!
//! The kernel then says in a route only which object it uses. Needs root. Not here: which next hop each kind of object
//! leads to (`network.rs`).

use std::net::IpAddr;

use xvs::cluster::{VIP, VIP6, complete, succeed};
use xvs::director::Protocol;
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// Addresses of the client that only routes of the test reach.
const CLIENTS: [&str; 2] = ["203.0.113.5", "2001:db8:203::5"];

/// The page that a client with this address gets within a second, if any.
fn page(cluster: &Cluster, from: &str) -> Option<String> {
    let from: IpAddr = from.parse().expect("a literal address");
    let vip = if from.is_ipv6() { format!("[{VIP6}]") } else { VIP.to_string() };
    let mut curl = clients::curl(cluster);
    let output = complete(
        curl.args(["--max-time", "1", "--interface", &from.to_string()]).arg(format!("http://{vip}/")),
    );
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The link-local address of a host's interface.
fn link_local(cluster: &Cluster, host: Host, dev: &str) -> String {
    let listing = cluster.ip(host, &format!("-6 -brief address show dev {dev} scope link"));
    let addr = listing.split_whitespace().find_map(|word| word.strip_suffix("/64"));
    addr.unwrap_or_else(|| panic!("no link-local address: {listing}")).to_owned()
}

#[test]
fn clients_and_real_servers_behind_nexthop_objects_are_served_and_changes_of_the_objects_are_followed() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let dr = |words: &str| cluster.ip(Host::Director, words);
    let sysctl = ["-qw", "net.ipv4.nexthop_compat_mode=0"];
    succeed(cluster.command(Host::Director, "sysctl").args(sysctl));
    for client in CLIENTS {
        cluster.ip(Host::Client, &format!("address add {client} dev lo"));
    }
    cluster.ip(Host::Client, "address add 198.51.100.11/24 dev wan");
    let client = link_local(&cluster, Host::Client, "wan");
    let server = link_local(&cluster, Host::RealServer(1), "lan");
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.adm(&format!("-A -t [{VIP6}]:80"));
    director.adm(&format!("-a -t [{VIP6}]:80 -r [{}]:80 -m", xvs::cluster::real_server6(1)));
    assert_eq!(
        CLIENTS.map(|client| page(&cluster, client)),
        [None, None],
        "the director has no route to them"
    );

    for words in [
        "id 1 via 198.51.100.10 dev wan",
        "id 2 via 198.51.100.11 dev wan",
        "id 3 via 198.51.100.66 dev wan",
        "id 4 via 2001:db8:1::10 dev wan",
        &format!("id 5 via inet6 {client} dev wan"),
        &format!("id 6 via inet6 {server} dev lan"),
        "id 10 group 1,3/2",
        "id 11 group 1/2 type resilient buckets 8",
        "id 12 group 4/5",
        "id 13 group 3",
        "id 14 via 192.0.2.12 dev lan onlink",
    ] {
        dr(&format!("nexthop add {words}"));
    }
    let [v4, v6] = CLIENTS;
    for (client, by) in [
        (v4, format!("via inet6 {client} dev wan")),
        (v4, "nhid 1".to_owned()),
        (v4, "nhid 10".to_owned()),
        (v4, "nhid 11".to_owned()),
        (v4, "nhid 5".to_owned()),
        (v6, "nhid 4".to_owned()),
        (v6, "nhid 12".to_owned()),
    ] {
        dr(&format!("route add {client} {by}"));
        wait::until(&format!("{client} {by} is served"), || page(&cluster, client));
        dr(&format!("route del {client}"));
        wait::until(&format!("{client} has no route"), || page(&cluster, client).is_none().then_some(()));
    }

    // Nobody is at the member of this group, until the daemon puts another one into it.
    dr(&format!("route add {v4} nhid 13"));
    assert_eq!(page(&cluster, v4), None);
    dr("nexthop replace id 13 group 2");
    wait::until("the new member is used", || page(&cluster, v4));
    dr(&format!("route del {v4}"));

    // The lower metric wins for as long as its route is there.
    for (metric, by) in [(20, 1), (1024, 3)] {
        dr(&format!("route add {v4} nhid {by} metric {metric}"));
    }
    wait::until("the route of BGP is used", || page(&cluster, v4));
    dr(&format!("route del {v4} metric 20"));
    wait::until("nobody is at the next hop of DHCP", || page(&cluster, v4).is_none().then_some(()));
    dr("nexthop replace id 3 via 198.51.100.11 dev wan");
    wait::until("the object of DHCP's route leads elsewhere", || page(&cluster, v4));

    director.adm(&format!("-d -t {VIP}:80 -r 192.0.2.12:80"));
    dr("route add 192.0.2.11 nhid 6");
    let words = format!("explain --proto tcp --from {v4}:4000 --to {VIP}:80 --flags syn");
    let hop = format!("{server} on lan");
    wait::until("the real server is reached by its object", || {
        director.xvs(&words).contains(&hop).then_some(())
    });
    wait::until("it serves the client", || page(&cluster, v4));

    dr("route replace 192.0.2.11 nhid 14");
    wait::until("the object is on the link", || {
        director.xvs(&words).contains("192.0.2.12 on lan").then_some(())
    });
    let status = director.status();
    assert!(!status.contains("is not followed"), "{status}");
}
