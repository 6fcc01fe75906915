//! Policy routing with real sockets: a director with two uplinks, and two routes to a real server.
//!
//! Table main reaches the client through `wan`, table 100 through `wan2`. Each test has a cluster of its own. Needs
//! root. Not here: every form of rule (`policy_rules.rs` compares look-ups with the kernel's).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Child;

use serde_json::Value;
use xvs::cluster::{VIP, VIP6, real_server, real_server6, succeed};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// Virtual addresses of the second uplink.
const VIP_2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const VIP6_2: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2);
/// Addresses of the client that both uplinks reach.
const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 200);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x200, 0, 0, 0, 0, 1);
/// Bytes of `/blob`.
const BLOB: u64 = 20_000_000;
/// More than all packets but those of a download have together.
const LITTLE: u64 = 2_000_000;

/// Connects two hosts of a cluster by a new link of the same name on both.
fn connect(cluster: &Cluster, [here, there]: [Host; 2], name: &str, addresses: [[&str; 2]; 2]) {
    let peer = cluster.namespace(there);
    cluster.ip(here, &format!("link add {name} type veth peer name {name} netns {peer}"));
    for (host, addresses) in [here, there].into_iter().zip(addresses) {
        succeed(cluster.command(host, "ethtool").args(["-K", name, "tx", "off", "gro", "off"]));
        for addr in addresses {
            cluster.ip(host, &format!("address add {addr} dev {name}"));
        }
        cluster.ip(host, &format!("link set {name} up"));
    }
    let filter = |dev: &str| format!("net.ipv4.conf.{dev}.rp_filter=0");
    succeed(cluster.command(there, "sysctl").args(["-qw", &filter("all"), &filter(name)]));
}

/// A cluster with a second uplink, which the routes of table 100 use.
fn cluster() -> Cluster {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let links = [["10.77.0.1/24", "2001:db8:77::1/64"], ["10.77.0.2/24", "2001:db8:77::2/64"]];
    connect(&cluster, [Host::Director, Host::Client], "wan2", links);
    for (host, line) in [
        (Host::Director, format!("address add {VIP_2}/32 dev wan2")),
        (Host::Director, format!("address add {VIP6_2}/128 dev wan2")),
        (Host::Director, format!("route add {CLIENT}/32 via 198.51.100.10")),
        (Host::Director, format!("route add {CLIENT6}/128 via 2001:db8:1::10")),
        (Host::Director, "route add default via 10.77.0.2 table 100".to_owned()),
        (Host::Director, "-6 route add default via 2001:db8:77::2 table 100".to_owned()),
        (Host::Client, format!("address add {CLIENT}/32 dev lo")),
        (Host::Client, format!("address add {CLIENT6}/128 dev lo")),
        (Host::Client, format!("route add {VIP_2}/32 via 10.77.0.1")),
        (Host::Client, format!("route add {VIP6_2}/128 via 2001:db8:77::1")),
    ] {
        cluster.ip(host, &line);
    }
    cluster
}

/// The daemon on all links of the director, with a service of one real server at port 80 of each virtual address.
fn director<'a>(cluster: &'a Cluster, links: &[&str]) -> Director<'a> {
    let named = links.iter().flat_map(|link| ["--interface", link]);
    let arguments: Vec<_> = named.chain(["--workers", "1"]).collect();
    let director = Director::start_on(cluster, Host::Director, &arguments);
    for vip in [VIP, VIP_2] {
        director.adm(&format!("-A -t {vip}:80 -s rr"));
        director.adm(&format!("-a -t {vip}:80 -r {}:80 -m", real_server(1)));
    }
    for vip in [VIP6, VIP6_2] {
        director.adm(&format!("-A -t [{vip}]:80 -s rr"));
        director.adm(&format!("-a -t [{vip}]:80 -r [{}]:80 -m", real_server6(1)));
    }
    director
}

/// The bytes that a host has received by these links.
fn received<const N: usize>(cluster: &Cluster, host: Host, links: [&str; N]) -> [u64; N] {
    let table = cluster.run(host, || fs::read_to_string("/proc/thread-self/net/dev")).expect("procfs");
    let of = |link| {
        let row = table.lines().find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'));
        row.and_then(|row| row.split_whitespace().next()?.parse().ok()).expect("the link's row")
    };
    links.map(of)
}

fn host_of(addr: IpAddr) -> String {
    if addr.is_ipv6() { format!("[{addr}]") } else { addr.to_string() }
}

/// The client's address of a family.
fn client(vip: IpAddr) -> IpAddr {
    if vip.is_ipv6() { CLIENT6.into() } else { CLIENT.into() }
}

/// Starts a download of `/blob` into a file, from the address that both uplinks reach.
fn begin_download(cluster: &Cluster, vip: IpAddr, more: &[&str]) -> Child {
    let mut curl = clients::curl(cluster);
    curl.args(["--interface", &client(vip).to_string()]).args(more);
    curl.arg("--output").arg(cluster.state().join("download"));
    curl.arg(format!("http://{}/blob", host_of(vip))).spawn().expect("curl starts")
}

/// Waits for the download, which must be whole.
fn finish_download(cluster: &Cluster, mut curl: Child) {
    assert!(curl.wait().expect("curl ends").success());
    let body = fs::read(cluster.state().join("download")).expect("curl wrote it");
    assert!(body == cluster.blob(), "a download of {} bytes differs from the file", body.len());
}

/// Downloads, and returns the link of the client by which the file came.
fn download(cluster: &Cluster, vip: impl Into<IpAddr>) -> &'static str {
    let vip = vip.into();
    let before = received(cluster, Host::Client, ["wan", "wan2"]);
    finish_download(cluster, begin_download(cluster, vip, &[]));
    let after = received(cluster, Host::Client, ["wan", "wan2"]);
    match (after[0] - before[0], after[1] - before[1]) {
        (BLOB.., 0..LITTLE) => "wan",
        (0..LITTLE, BLOB..) => "wan2",
        other => panic!("{other:?} bytes came by wan and wan2"),
    }
}

/// Adds a policy rule for both families and waits until the director follows it.
fn add_rule(cluster: &Cluster, director: &Director<'_>, words: &str, vips: [IpAddr; 2], expected: &str) {
    for flag in ["-4", "-6"] {
        cluster.ip(Host::Director, &format!("{flag} rule add priority 100 {words}"));
    }
    for vip in vips {
        wait::until("the rule is followed", || (way(director, vip)["interface"] == expected).then_some(()));
    }
}

/// The next hop of a reply from a virtual address, as `xvs explain` sees the reply of an open connection.
fn way(director: &Director<'_>, vip: IpAddr) -> Value {
    let server = if vip.is_ipv6() { real_server6(1).into() } else { IpAddr::from(real_server(1)) };
    let listing = director.adm("-Lnc");
    let virtual_end = format!("{}:80", host_of(vip));
    let rows = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = rows.into_iter().find(|words| words.get(4).is_some_and(|word| *word == virtual_end));
    let row = row.unwrap_or_else(|| panic!("no connection to {virtual_end}:\n{listing}"));
    let words = format!("--proto tcp --from {}:80 --to {} --flags ack", host_of(server), row[3]);
    let report = director.xvs(&format!("explain --json --in lan {words}"));
    serde_json::from_str::<Value>(&report).expect("JSON")["way"].clone()
}

#[test]
fn replies_leave_by_the_uplink_of_their_virtual_address_and_the_next_ones_by_the_other_when_the_rule_goes() {
    let cluster = cluster();
    cluster.ip(Host::Director, &format!("rule add priority 100 from {VIP_2} lookup 100"));
    cluster.ip(Host::Director, &format!("-6 rule add priority 100 from {VIP6_2} lookup 100"));
    let director = director(&cluster, &["wan", "wan2", "lan"]);
    let status = director.status();
    assert!(!status.contains("policy rule"), "{status}");
    let pairs: [[IpAddr; 2]; 2] = [[VIP.into(), VIP_2.into()], [VIP6.into(), VIP6_2.into()]];
    for [first, second] in pairs {
        assert_eq!(download(&cluster, first), "wan");
        assert_eq!(way(&director, first)["rule"], "32766: from all lookup main");
        assert_eq!(download(&cluster, second), "wan2");
        let found = way(&director, second);
        assert_eq!(found["interface"], "wan2", "{found}");
        let length = if second.is_ipv6() { 128 } else { 32 };
        assert_eq!(found["rule"], format!("100: from {second}/{length} lookup 100"));

        // The rule goes while a download goes on.
        let before = received(&cluster, Host::Client, ["wan", "wan2"]);
        let curl = begin_download(&cluster, second, &["--limit-rate", "8M"]);
        let more_than_little = |at: usize| {
            let link = ["wan", "wan2"][at];
            wait::until(&format!("the file comes by {link}"), || {
                let now = received(&cluster, Host::Client, ["wan", "wan2"]);
                (now[at] > before[at] + LITTLE).then_some(())
            });
        };
        more_than_little(1);
        let flag = if second.is_ipv6() { "-6" } else { "-4" };
        cluster.ip(Host::Director, &format!("{flag} rule del priority 100"));
        more_than_little(0);
        finish_download(&cluster, curl);
        assert_eq!(download(&cluster, second), "wan");
    }
}

#[test]
fn the_mark_of_a_reply_chooses_its_route_and_that_of_a_request_does_not() {
    let cluster = cluster();
    for (program, vip, server) in [
        ("iptables-nft", VIP.to_string(), real_server(1).to_string()),
        ("ip6tables-nft", VIP6.to_string(), real_server6(1).to_string()),
    ] {
        for line in [
            format!("-t mangle -A PREROUTING -d {vip} -p tcp --dport 80 -j MARK --set-mark 1"),
            format!("-t mangle -A PREROUTING -s {server} -p tcp --sport 80 -j MARK --set-mark 2"),
        ] {
            succeed(cluster.command(Host::Director, program).args(line.split(' ')));
        }
    }
    // IPVS routes packets to real servers without their mark.
    for flag in ["-4", "-6"] {
        cluster.ip(Host::Director, &format!("{flag} rule add priority 90 fwmark 1 unreachable"));
    }
    let director = director(&cluster, &["wan", "wan2", "lan"]);
    let vips: [IpAddr; 2] = [VIP.into(), VIP6.into()];
    for vip in vips {
        assert_eq!(download(&cluster, vip), "wan");
    }
    add_rule(&cluster, &director, "fwmark 0x2/0xff lookup 100", vips, "wan2");
    for vip in vips {
        assert_eq!(download(&cluster, vip), "wan2");
        assert_eq!(way(&director, vip)["rule"], "100: from all fwmark 0x2/0xff lookup 100");
    }
}

#[test]
fn a_rule_for_its_address_chooses_the_link_by_which_a_real_server_is_reached() {
    let cluster = cluster();
    let server = Host::RealServer(1);
    let links = [["10.78.0.1/24", "2001:db8:78::1/64"], ["10.78.0.2/24", "2001:db8:78::2/64"]];
    connect(&cluster, [Host::Director, server], "lan2", links);
    cluster.ip(Host::Director, "route add default via 10.78.0.2 table 101");
    cluster.ip(Host::Director, "-6 route add default via 2001:db8:78::2 table 101");
    let director = director(&cluster, &["wan", "wan2", "lan", "lan2"]);
    let links = ["lan", "lan2"];
    for (vip, dest) in
        [(IpAddr::from(VIP), IpAddr::from(real_server(1))), (VIP6.into(), real_server6(1).into())]
    {
        let before = received(&cluster, server, links);
        download(&cluster, vip);
        let direct = received(&cluster, server, links);
        let flag = if vip.is_ipv6() { "-6" } else { "-4" };
        cluster.ip(Host::Director, &format!("{flag} rule add priority 100 to {dest} lookup 101"));
        let explained = || {
            let report = director.xvs(&format!(
                "explain --json --proto tcp --from {}:4000 --to {}:80",
                host_of(client(vip)),
                host_of(vip)
            ));
            serde_json::from_str::<Value>(&report).expect("JSON")["way"]["interface"].clone()
        };
        wait::until("the rule is followed", || (explained() == "lan2").then_some(()));
        download(&cluster, vip);
        let ruled = received(&cluster, server, links);
        // Acknowledgements of a download are more than what neighbours ask each other.
        let more = |now: [u64; 2], then: [u64; 2]| [now[0] - then[0] > 10_000, now[1] - then[1] > 10_000];
        assert_eq!([more(direct, before), more(ruled, direct)], [[true, false], [false, true]]);
    }
}
