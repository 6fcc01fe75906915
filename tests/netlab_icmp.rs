//! ICMP errors with real kernels at both ends: path MTU discovery through a director that clamps no segment size, and
//! what clients hear of ports that nobody serves.
//!
//! A router with a route of 1300 bytes stands in the path: the client host towards a client behind it, or the second real
//! server towards the first. TCP sends 1500 bytes there, so what arrives whole arrived because the sender heard. Each test
//! has a cluster of its own. Needs root. Not here: bytes (`golden/icmp.rs`).

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use xvs::clients;
use xvs::cluster::{VIP, VIP6, complete, real_server, real_server6, succeed, virtual_endpoint};
use xvs::director::program;
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, carries, wait};

const ROUTER: Host = Host::Client;
const SERVER: Host = Host::RealServer(1);
/// The second real server serves nobody: it is the client behind the router, or the router before the first.
const OTHER: Host = Host::RealServer(2);
const UPLOAD: u16 = 9000;
const MTU: &str = "1300";

fn run(cluster: &Cluster, host: Host, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    succeed(cluster.command(host, words[0]).args(&words[1..]));
}

/// A cluster whose second real server is a client at 203.0.113.7 and 2001:db8:7::7, reached by the client host.
fn with_a_router_to_clients(method: Method) -> Cluster {
    let cluster = carries::prepared(method, Workers::One);
    if method != Method::Nat {
        // It would answer itself.
        let mut down = cluster.command(OTHER, program("xvs"));
        let way = if method == Method::Tunnel { "tunnel" } else { "dr" };
        succeed(down.args([
            "realserver",
            "down",
            "--vip",
            &VIP.to_string(),
            "--method",
            way,
            "--dev",
            "lan",
        ]));
    }
    for (host, line) in [
        (ROUTER, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"),
        (ROUTER, "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.back.send_redirects=0"),
        (ROUTER, &format!("ip route add 203.0.113.7/32 via 192.0.2.12 mtu {MTU}")),
        (ROUTER, &format!("ip -6 route add 2001:db8:7::7/128 via 2001:db8:2::12 mtu {MTU}")),
        (OTHER, "ip address add 203.0.113.7/32 dev lan"),
        (OTHER, "ip address add 2001:db8:7::7/128 dev lan"),
        (OTHER, "ip route add 198.51.100.0/24 via 192.0.2.254 src 203.0.113.7"),
        (OTHER, "ip -6 route add 2001:db8:1::/64 via 2001:db8:2::254 src 2001:db8:7::7"),
        (Host::Director, "ip route add 203.0.113.0/24 via 198.51.100.10"),
        (Host::Director, "ip -6 route add 2001:db8:7::/64 via 2001:db8:1::10"),
    ] {
        run(&cluster, host, line);
    }
    cluster
}

/// A cluster whose first real server is reached by the second.
fn with_a_router_to_servers(method: Method) -> Cluster {
    let cluster = carries::prepared(method, Workers::One);
    for (host, line) in [
        (
            OTHER,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan.rp_filter=0",
        ),
        (OTHER, "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0"),
        // What netlab's rule would send past the director.
        (OTHER, "ip rule add to 192.0.2.11 lookup main"),
        (OTHER, &format!("ip route add 192.0.2.11/32 dev lan mtu {MTU}")),
        (Host::Director, "ip route add 192.0.2.11/32 via 192.0.2.12"),
    ] {
        run(&cluster, host, line);
    }
    cluster
}

/// A director that clamps nothing and has a service of the first real server at each of these ports.
fn directed<'c>(cluster: &'c Cluster, vip: IpAddr, ports: &[u16], method: Method) -> Director<'c> {
    let director = Director::start(cluster, Workers::One);
    succeed(cluster.command(Host::Director, program("xvs")).args(["set", "mss_clamp", "off"]));
    let server = if vip.is_ipv4() { real_server(1).into() } else { IpAddr::from(real_server6(1)) };
    for port in ports {
        let (service, server) = (SocketAddr::new(vip, *port), SocketAddr::new(server, *port));
        director.adm(&format!("-A -t {service} -s rr"));
        director.adm(&format!("-a -t {service} -r {server} {}", method.option()));
    }
    director
}

/// The client behind the router downloads the file; its router tells the virtual address what passes.
fn a_download_arrives(vip: IpAddr, method: Method) {
    let cluster = with_a_router_to_clients(method);
    let _director = directed(&cluster, vip, &[80], method);
    let url = format!("http://{}/blob", SocketAddr::new(vip, 80));
    let mut curl = cluster.command(OTHER, "curl");
    let output = complete(curl.args(["--silent", "--show-error", "--max-time", "20", &url]));
    let (body, blob) = (output.stdout, cluster.blob());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(body == blob, "{} of {} bytes: {complaint}", body.len(), blob.len());
}

/// A client uploads the file; the router before the real server tells the director, or the client itself.
fn an_upload_arrives(method: Method) {
    let cluster = with_a_router_to_servers(method);
    let _sink = Sink::start(&cluster, SERVER, UPLOAD);
    let _director = directed(&cluster, VIP.into(), &[UPLOAD], method);
    let blob = &cluster.blob()[..5_000_000];
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 1, blob);
    assert_eq!(receipts, [clients::receipt(&SERVER.name(), blob)]);
}

#[test]
fn a_download_by_nat_arrives_through_a_narrow_router() {
    a_download_arrives(VIP.into(), Method::Nat);
}

#[test]
fn a_download_over_ipv6_by_nat_arrives_through_a_narrow_router() {
    a_download_arrives(VIP6.into(), Method::Nat);
}

#[test]
fn a_download_by_direct_routing_arrives_through_a_narrow_router() {
    a_download_arrives(VIP.into(), Method::DirectRouting);
}

#[test]
fn a_download_by_tunnel_arrives_through_a_narrow_router() {
    a_download_arrives(VIP.into(), Method::Tunnel);
}

#[test]
fn an_upload_by_nat_arrives_through_a_narrow_router() {
    an_upload_arrives(Method::Nat);
}

#[test]
fn an_upload_by_tunnel_arrives_through_a_narrow_router() {
    an_upload_arrives(Method::Tunnel);
}

#[test]
fn an_upload_by_gre_arrives_through_a_narrow_router() {
    an_upload_arrives(Method::GreSummed);
}

#[test]
fn an_upload_by_gue_arrives_through_a_narrow_router() {
    an_upload_arrives(Method::GueSummed);
}

#[test]
fn tracepath_sees_the_way_to_a_masqueraded_server_as_the_virtual_addresss() {
    let cluster = with_a_router_to_servers(Method::Nat);
    let director = Director::start(&cluster, Workers::One);
    // Every port, for tracepath counts them up; nobody listens there, which ends its way.
    director.adm(&format!("-A -u {VIP}:0 -s rr -p"));
    director.adm(&format!("-a -u {VIP}:0 -r {} -m", real_server(1)));
    let said = succeed(cluster.command(Host::Client, "tracepath").args(["-n", &VIP.to_string()]));
    assert!(said.contains(&format!("pmtu {MTU}")), "{said}");
    assert!(said.contains("reached") && said.contains(&VIP.to_string()), "{said}");
    assert!(!said.contains(&real_server(1).to_string()), "{said}");
}

#[test]
fn a_client_of_a_port_that_its_real_server_does_not_serve_is_refused() {
    for (vip, server, any) in [
        (IpAddr::from(VIP), IpAddr::from(real_server(1)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
        (VIP6.into(), real_server6(1).into(), "[::]:0".parse().expect("an endpoint")),
    ] {
        let cluster = carries::prepared(Method::Nat, Workers::Two);
        let director = Director::start(&cluster, Workers::Two);
        director.adm(&format!("-A -u {} -s rr", SocketAddr::new(vip, 5300)));
        director.adm(&format!(
            "-a -u {} -r {} -m",
            SocketAddr::new(vip, 5300),
            SocketAddr::new(server, 5300)
        ));
        cluster.run(Host::Client, || {
            let socket = UdpSocket::bind(any).expect("a port is free");
            socket.connect((vip, 5300)).expect("a route");
            socket.set_read_timeout(Some(Duration::from_millis(500))).expect("not zero");
            wait::until("the client is told that nobody serves the port", || {
                let sent = socket.send(b"anybody there?").map(drop);
                let heard = socket.recv(&mut [0; 100]).map(drop);
                let refused = |result: &Result<(), std::io::Error>| {
                    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                };
                (refused(&sent) || refused(&heard)).then_some(())
            });
        });
    }
}
