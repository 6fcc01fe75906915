//! Persistence configured as in tutorials of the Linux Virtual Server, with real clients and servers.
//!
//! A shop's two ports as one service by firewall mark; templates of a client for all ports of an address, for each
//! port, for its network, and for FTP with its passive ports. nginx with TLS, curl that checks the certificate, rules
//! by the real iptables and nft. Each test has a cluster of its own. Needs root. Not here: the life of templates
//! (`lab/persistence.rs`), rules of every form (`marks.rs`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use xvs::clients::{self, Asker};
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed, virtual_endpoint};
use xvs::servers::{Echo, Ftp};
use xvs::{Cluster, Director, Host, Method, Workers, traffic};

/// Clients, all on one host. Two share the network 198.51.100.10/31.
const ANN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const BEN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
const CAT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 12);

/// The shop over HTTP, over TLS, and on a third port.
const PLAIN: &str = "http://shop.example/";
const TLS: &str = "https://shop.example/";
const OTHER: &str = "http://shop.example:8080/";

/// A cluster whose client host has all clients' addresses.
struct Shop {
    cluster: Cluster,
}

impl Shop {
    fn open(method: Method, workers: Workers) -> Self {
        let cluster = traffic::prepared(method, workers);
        for client in [BEN, CAT] {
            let address = format!("{client}/24");
            succeed(cluster.command(Host::Client, "ip").args(["address", "add", &address, "dev", "wan"]));
        }
        Self { cluster }
    }

    /// Runs command lines on the director; all must succeed.
    fn on_the_director(&self, lines: &[&str]) {
        for line in lines {
            let line = line.replace("VIP", &VIP.to_string());
            let (program, arguments) = line.split_once(' ').expect("a program and its arguments");
            succeed(self.cluster.command(Host::Director, program).args(arguments.split(' ')));
        }
    }

    /// The name of the server that answers a client at the shop, on a new connection.
    fn visit(&self, client: Ipv4Addr, url: &str) -> String {
        succeed(&mut self.curl(client, url)).trim_end().to_owned()
    }

    /// The server of a client that visits these URLs one after the other; asserts that it is the same for all.
    fn visits(&self, client: Ipv4Addr, urls: &[&str]) -> String {
        let servers: Vec<_> = urls.iter().map(|url| self.visit(client, url)).collect();
        assert!(servers.iter().all(|server| *server == servers[0]), "{client} met {servers:?} at {urls:?}");
        servers[0].clone()
    }

    fn is_refused(&self, client: Ipv4Addr, url: &str) -> bool {
        !self.curl(client, url).output().expect("scripts/netlab can be started").status.success()
    }

    fn curl(&self, client: Ipv4Addr, url: &str) -> Command {
        let mut curl = clients::curl(&self.cluster);
        curl.args(["--interface", &client.to_string(), "--connect-to", &format!("::{VIP}:")]);
        curl.arg("--cacert").arg(self.cluster.state().join("certificate.pem")).arg(url);
        curl
    }
}

/// Adds a service of both real servers.
fn add(director: &Director<'_>, service: &str, options: &str, port: u16, method: &str) {
    director.adm(&format!("-A {service} -s rr {options}"));
    for number in 1..=REAL_SERVERS.len() as u8 {
        director.adm(&format!("-a {service} -r {}:{port} {method}", real_server(number)));
    }
}

/// The templates: protocol, clients, virtual endpoint, and destination.
fn templates(director: &Director<'_>) -> Vec<String> {
    let listing = director.adm("-Lnc");
    let rows = listing.lines().skip(2).map(|row| row.split_whitespace().collect::<Vec<_>>());
    let of_templates = rows.filter(|row| row[3].ends_with(":0"));
    let mut found: Vec<_> =
        of_templates.map(|row| format!("{} {} {} {}", row[0], row[3], row[4], row[5])).collect();
    found.sort();
    found
}

/// The endpoint of the real server of this name in templates of all ports.
fn whole(name: &str) -> String {
    format!("{}:0", real_server(if name == "rs1" { 1 } else { 2 }))
}

/// The example of the tutorials: a client reaches the same server over HTTP and over TLS. `rules` mark both ports with
/// 1.
fn a_shop_is_one_service_by_its_mark(rules: &[&str]) {
    let shop = Shop::open(Method::DirectRouting, Workers::One);
    shop.on_the_director(rules);
    let director = Director::start(&shop.cluster, Workers::One);
    add(&director, "-f 1", "-p 300", 0, "-g");

    let ann = shop.visits(ANN, &[PLAIN, TLS, TLS, PLAIN, TLS]);
    let ben = shop.visits(BEN, &[TLS, PLAIN, PLAIN, TLS, PLAIN]);
    assert_ne!(ann, ben, "clients take turns");
    assert!(shop.is_refused(ANN, OTHER), "a port without the mark stays with the kernel");

    let expected =
        [format!("IP {ANN}:0 0.0.0.1:0 {}", whole(&ann)), format!("IP {BEN}:0 0.0.0.1:0 {}", whole(&ben))];
    assert_eq!(templates(&director), expected);
    let listing = director.adm("-Ln --persistent-conn");
    assert!(listing.contains("FWM  1 rr persistent 300\n"), "{listing}");
    let counts = listing.lines().filter(|line| line.starts_with("  -> 192.0.2."));
    assert!(
        counts.clone().count() == 2 && counts.clone().all(|line| line.contains(" 1           ")),
        "{listing}"
    );
}

#[test]
fn ports_80_and_443_with_one_mark_of_iptables_nft_are_one_service_for_a_client() {
    a_shop_is_one_service_by_its_mark(&[
        "iptables-nft -t mangle -A PREROUTING -d VIP -p tcp --dport 80 -j MARK --set-mark 1",
        "iptables-nft -t mangle -A PREROUTING -d VIP -p tcp --dport 443 -j MARK --set-mark 1",
    ]);
}

#[test]
fn ports_80_and_443_with_one_mark_of_iptables_legacy_are_one_service_for_a_client() {
    a_shop_is_one_service_by_its_mark(&[
        "iptables-legacy -t mangle -A PREROUTING -d VIP -p tcp --dport 80 -j MARK --set-mark 1",
        "iptables-legacy -t mangle -A PREROUTING -d VIP -p tcp --dport 443 -j MARK --set-mark 1",
    ]);
}

#[test]
fn ports_80_and_443_with_one_mark_of_nftables_are_one_service_for_a_client() {
    a_shop_is_one_service_by_its_mark(&[
        "nft add table ip lvs",
        "nft add chain ip lvs pre { type filter hook prerouting priority mangle ; }",
        "nft add rule ip lvs pre ip daddr VIP tcp dport { 80, 443 } meta mark set 1",
    ]);
}

/// Persistent client connections: a service of port 0.
fn all_ports_reach_one_server(method: Method, workers: Workers) {
    let shop = Shop::open(method, workers);
    let director = Director::start(&shop.cluster, workers);
    add(&director, &format!("-t {VIP}:0"), "-p", 0, method.option());

    let ann = shop.visits(ANN, &[PLAIN, TLS, OTHER, TLS, OTHER, PLAIN]);
    let ben = shop.visits(BEN, &[OTHER, OTHER, TLS, PLAIN]);
    assert_ne!(ann, ben, "clients take turns");
    let expected =
        [format!("TCP {ANN}:0 {VIP}:0 {}", whole(&ann)), format!("TCP {BEN}:0 {VIP}:0 {}", whole(&ben))];
    assert_eq!(templates(&director), expected);

    let address = VIP.to_string();
    succeed(shop.cluster.command(Host::Client, "ping").args(["-c1", "-W5", &address]));
}

#[test]
fn a_service_of_port_0_sends_all_ports_of_a_client_to_one_server_by_direct_routing() {
    all_ports_reach_one_server(Method::DirectRouting, Workers::One);
}

#[test]
fn a_service_of_port_0_sends_all_ports_of_a_client_to_one_server_by_nat() {
    all_ports_reach_one_server(Method::Nat, Workers::Two);
}

#[test]
fn a_service_of_port_0_sends_all_ports_of_a_client_to_one_server_by_tunnel() {
    all_ports_reach_one_server(Method::Tunnel, Workers::One);
}

#[test]
fn a_service_of_port_0_sends_a_clients_datagrams_to_any_port_to_one_server() {
    let cluster = traffic::prepared(Method::DirectRouting, Workers::Two);
    let ports = [5300, 5301, 5302];
    let _echoes =
        REAL_SERVERS.map(|host| ports.map(|port| Echo::start(&cluster, host, virtual_endpoint(port))));
    let director = Director::start(&cluster, Workers::Two);
    add(&director, &format!("-u {VIP}:0"), "-p 60", 0, "-g");

    let flows = ports.map(|port| Asker::new(&cluster, virtual_endpoint(port)));
    let servers = flows.each_ref().map(|flow| flow.ask(b"who serves me?"));
    assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
    assert_eq!(templates(&director), [format!("UDP {ANN}:0 {VIP}:0 {}", whole(&servers[0]))]);
}

#[test]
fn with_one_service_per_port_a_client_has_one_server_per_port() {
    let shop = Shop::open(Method::Nat, Workers::One);
    let director = Director::start(&shop.cluster, Workers::One);
    for port in [80, 443] {
        add(&director, &format!("-t {VIP}:{port}"), "-p 300", port, "-m");
    }
    // The first client of each service gets the same server: so Ann has one server here and another there.
    let ann = shop.visits(ANN, &[PLAIN, PLAIN]);
    let ben = shop.visits(BEN, &[PLAIN, PLAIN]);
    let ben_by_tls = shop.visits(BEN, &[TLS, TLS]);
    let ann_by_tls = shop.visits(ANN, &[TLS, TLS]);
    assert_ne!(ann, ben);
    assert_eq!((ann_by_tls, ben_by_tls), (ben.clone(), ann.clone()));
    assert_eq!((shop.visits(ANN, &[PLAIN, PLAIN]), shop.visits(BEN, &[PLAIN, PLAIN])), (ann, ben));
    assert!(shop.is_refused(ANN, OTHER));
    assert_eq!(templates(&director).len(), 4);
}

#[test]
fn with_a_netmask_all_clients_of_a_network_have_one_server_per_port() {
    let shop = Shop::open(Method::DirectRouting, Workers::One);
    let director = Director::start(&shop.cluster, Workers::One);
    add(&director, &format!("-t {VIP}:80"), "-p 300 -M 255.255.255.254", 80, "-g");

    let ann = shop.visits(ANN, &[PLAIN, PLAIN]);
    let ben = shop.visits(BEN, &[PLAIN, PLAIN]);
    let cat = shop.visits(CAT, &[PLAIN, PLAIN]);
    assert_eq!(ann, ben, "one network");
    assert_ne!(ann, cat, "another network");
    let of = |name: &str| whole(name).replace(":0", ":80");
    let expected = [
        format!("TCP 198.51.100.10:0 {VIP}:80 {}", of(&ann)),
        format!("TCP 198.51.100.12:0 {VIP}:80 {}", of(&cat)),
    ];
    assert_eq!(templates(&director), expected);
}

#[test]
fn with_a_prefix_all_ipv6_clients_of_a_network_have_one_server() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let service = format!("-t [{VIP6}]:0");
    director.adm(&format!("-A {service} -s rr -p 300 -M 124"));
    for number in 1..=REAL_SERVERS.len() as u8 {
        director.adm(&format!("-a {service} -r [{}]:0 -m", real_server6(number)));
    }
    let server = |last: u16| {
        let client = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, last));
        if last != 0x10 {
            let address = format!("{client}/64");
            let add = ["-6", "address", "add", &address, "dev", "wan", "nodad"];
            succeed(cluster.command(Host::Client, "ip").args(add));
        }
        let mut curl = clients::curl(&cluster);
        succeed(curl.args(["--interface", &client.to_string(), &format!("http://[{VIP6}]/")]))
    };
    let servers = [0x10, 0x11, 0x1f, 0x20].map(server);
    assert!(servers[0] == servers[1] && servers[1] == servers[2] && servers[2] != servers[3], "{servers:?}");
    let found = templates(&director);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("TCP [2001:db8:1::10]:0 [2001:db8:1::100]:0 "), "{found:?}");
}

/// curl downloads by passive FTP: a control connection to port 21, a data connection to a port that the server names.
fn passive_ftp_works(method: Method) {
    let shop = Shop::open(method, Workers::One);
    let _servers = REAL_SERVERS.map(|host| Ftp::start(&shop.cluster, host));
    let director = Director::start(&shop.cluster, Workers::One);
    add(&director, &format!("-t {VIP}:21"), "-p 540", 21, method.option());

    let file = format!("ftp://{VIP}/file");
    let ann = shop.visits(ANN, &[&file, &file, &file]);
    let ben = shop.visits(BEN, &[&file, &file]);
    assert_ne!(ann, ben, "clients take turns");
    let expected =
        [format!("TCP {ANN}:0 {VIP}:0 {}", whole(&ann)), format!("TCP {BEN}:0 {VIP}:0 {}", whole(&ben))];
    assert_eq!(templates(&director), expected);
    assert_eq!(shop.visit(ANN, OTHER), ann, "a port that FTP may have named");
    assert!(shop.is_refused(ANN, PLAIN), "a port outside that range stays with the kernel");
}

#[test]
fn passive_ftp_reaches_the_server_of_the_control_connection_by_nat() {
    passive_ftp_works(Method::Nat);
}

#[test]
fn passive_ftp_reaches_the_server_of_the_control_connection_by_direct_routing() {
    passive_ftp_works(Method::DirectRouting);
}
