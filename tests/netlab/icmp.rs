//! ICMP errors with real kernels at both ends: path MTU discovery through a director without MSS clamping, errors to
//! clients about unserved ports and from routers on the path, and errors to real servers.
//!
//! A router in the path has a route with an MTU of 1300 bytes: the client host before a client, or the second real
//! server before the first. TCP sends 1500 bytes there, so a transfer arrives whole only if the sender received the
//! error. Each test has a cluster of its own. Needs root. Not here: the bytes of errors (`lab/golden/icmp.rs`).

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_ipv6_unicast_hops, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, recv, socket};
use xvs::clients;
use xvs::cluster::{VIP, VIP6, complete, real_server, real_server6, succeed};
use xvs::director::{Protocol, program};
use xvs::servers::Sink;
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

const ROUTER: Host = Host::Client;
const SERVER: Host = Host::RealServer(1);
/// The second real server has no service: it is the client behind the router, or the router before the first one.
const OTHER: Host = Host::RealServer(2);
const UPLOAD: u16 = 9000;
const MTU: &str = "1300";
/// How long one try waits for a response.
const PATIENCE: Duration = Duration::from_millis(500);
/// Methods with which errors about requests reach the director, in both families.
const MASQUERADED: [(IpAddr, Method); 4] = [
    (IpAddr::V4(VIP), Method::Nat),
    (IpAddr::V4(VIP), Method::FullNat),
    (IpAddr::V6(VIP6), Method::Nat),
    (IpAddr::V6(VIP6), Method::FullNat),
];

fn run(cluster: &Cluster, host: Host, line: &str) {
    let words: Vec<_> = line.split(' ').collect();
    succeed(cluster.command(host, words[0]).args(&words[1..]));
}

/// A cluster whose second real server is a client at 203.0.113.7 and 2001:db8:7::7, behind the client host as a router.
fn with_a_router_to_clients(method: Method) -> Cluster {
    let cluster = traffic::prepared(method, Workers::One);
    if !method.masquerades() {
        // Without the VIP, so it does not answer requests itself.
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
        (ROUTER, &format!("ip -6 route add 2001:db8:7::7/128 via 2001:db8:2::12 mtu lock {MTU}")),
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

/// A cluster whose first real server is reached from the director through the second one, and whose replies bypass it.
fn with_a_router_to_servers(method: Method) -> Cluster {
    let cluster = traffic::prepared(method, Workers::One);
    for (host, line) in [
        (
            OTHER,
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.lan.rp_filter=0 \
             net.ipv6.conf.all.forwarding=1",
        ),
        (OTHER, "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0"),
        // For packets that netlab's rule would send past the director.
        (OTHER, "ip rule add to 192.0.2.11 lookup main"),
        (OTHER, "ip -6 rule add to 2001:db8:2::11 lookup main"),
        (OTHER, &format!("ip route add 192.0.2.11/32 dev lan mtu {MTU}")),
        (OTHER, &format!("ip -6 route add 2001:db8:2::11/128 dev lan mtu lock {MTU}")),
        (Host::Director, "ip route add 192.0.2.11/32 via 192.0.2.12"),
        (Host::Director, "ip -6 route add 2001:db8:2::11/128 via 2001:db8:2::12"),
    ] {
        run(&cluster, host, line);
    }
    cluster
}

/// Number of packets that a host has refused as too big for their route.
fn refused(cluster: &Cluster, host: Host, vip: IpAddr) -> u64 {
    let (file, key) = match vip {
        IpAddr::V4(_) => ("/proc/net/snmp", "OutDestUnreachs"),
        IpAddr::V6(_) => ("/proc/net/snmp6", "Icmp6OutPktTooBigs"),
    };
    let text = succeed(cluster.command(host, "cat").arg(file));
    // The names of a protocol's counters are on one line, their values on the next; for IPv6 each counter has a line.
    let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let place = lines.iter().enumerate().find_map(|(row, words)| {
        let column = words.iter().position(|word| *word == key)?;
        Some(if column == 0 { (row, 1) } else { (row + 1, column) })
    });
    let (row, column) = place.expect("the kernel counts it");
    lines[row][column].parse().expect("a number")
}

/// The first real server, by the family of its virtual address.
fn server(vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { real_server(1).into() } else { real_server6(1).into() }
}

/// The director's local address, which FULLNAT real servers see instead of the client's.
fn local(vip: IpAddr) -> IpAddr {
    if vip.is_ipv4() { [192, 0, 2, 1].into() } else { [0x2001, 0xdb8, 2, 0, 0, 0, 0, 1].into() }
}

/// Any endpoint of the virtual address's family.
fn any(vip: IpAddr) -> SocketAddr {
    let addr: IpAddr =
        if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(addr, 0)
}

/// A director without MSS clamping, with a service of the first real server at each of these ports.
fn directed<'c>(cluster: &'c Cluster, vip: IpAddr, ports: &[u16], method: Method) -> Director<'c> {
    directed_by(Workers::One, Protocol::Tcp, cluster, (vip, vip), ports, method)
}

/// The same with a number of workers, services of this protocol, and a real server of the second address's family.
fn directed_by<'c>(
    workers: Workers,
    protocol: Protocol,
    cluster: &'c Cluster,
    (vip, inside): (IpAddr, IpAddr),
    ports: &[u16],
    method: Method,
) -> Director<'c> {
    let director = Director::start(cluster, workers);
    succeed(cluster.command(Host::Director, program("xvs")).args(["set", "mss_clamp", "off"]));
    if method == Method::FullNat {
        director.xvs(&format!("laddr add {}", local(inside)));
    }
    for port in ports {
        let (service, server) = (SocketAddr::new(vip, *port), SocketAddr::new(server(inside), *port));
        director.adm(&format!("-A {} {service} -s rr", protocol.option()));
        director.adm(&format!("-a {} {service} -r {server} {}", protocol.option(), method.option()));
    }
    director
}

/// The client behind the router downloads the file; its router reports the path MTU to the virtual address.
fn a_download_arrives(vip: IpAddr, method: Method) {
    a_download_arrives_from(vip, vip, method);
}

/// The same from a real server of the second address's family.
fn a_download_arrives_from(vip: IpAddr, inside: IpAddr, method: Method) {
    let cluster = with_a_router_to_clients(method);
    let _director = directed_by(Workers::One, Protocol::Tcp, &cluster, (vip, inside), &[80], method);
    let url = format!("http://{}/blob", SocketAddr::new(vip, 80));
    let mut curl = cluster.command(OTHER, "curl");
    let output = complete(curl.args(["--silent", "--show-error", "--max-time", "20", &url]));
    let (body, blob) = (output.stdout, cluster.blob());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(body == blob, "{} of {} bytes: {complaint}", body.len(), blob.len());
    assert_ne!(refused(&cluster, ROUTER, vip), 0, "the router is narrow");
}

/// A client uploads the file; the router before the real server reports the path MTU to the director, or to the client.
fn an_upload_arrives(vip: IpAddr, method: Method) {
    an_upload_arrives_at(vip, vip, method);
}

/// The same at a real server of the second address's family.
fn an_upload_arrives_at(vip: IpAddr, inside: IpAddr, method: Method) {
    let cluster = with_a_router_to_servers(method);
    let _sink = Sink::start(&cluster, SERVER, UPLOAD);
    let _director = directed_by(Workers::One, Protocol::Tcp, &cluster, (vip, inside), &[UPLOAD], method);
    let blob = &cluster.blob()[..5_000_000];
    let receipts = clients::parallel_uploads(&cluster, SocketAddr::new(vip, UPLOAD), 1, blob);
    assert_eq!(receipts, [clients::receipt(&SERVER.name(), blob)]);
    assert_ne!(refused(&cluster, OTHER, inside), 0, "the router is narrow");
}

#[test]
fn files_between_the_families_arrive_through_narrow_routers() {
    for (vip, inside) in [(VIP.into(), VIP6.into()), (VIP6.into(), VIP.into())] {
        a_download_arrives_from(vip, inside, Method::FullNat);
        an_upload_arrives_at(vip, inside, Method::FullNat);
    }
}

/// One test for each row: its name, the transfer, the address and the method.
macro_rules! transfers {
    ($(fn $name:ident() = $transfer:ident($vip:ident, $method:ident);)*) => { $(
        #[test]
        fn $name() {
            $transfer($vip.into(), Method::$method);
        }
    )* };
}

transfers! {
    fn a_download_by_nat_arrives_through_a_narrow_router() = a_download_arrives(VIP, Nat);
    fn a_download_over_ipv6_by_nat_arrives_through_a_narrow_router() = a_download_arrives(VIP6, Nat);
    fn a_download_by_fullnat_arrives_through_a_narrow_router() = a_download_arrives(VIP, FullNat);
    fn a_download_over_ipv6_by_fullnat_arrives_through_a_narrow_router() = a_download_arrives(VIP6, FullNat);
    fn a_download_by_direct_routing_arrives_through_a_narrow_router() = a_download_arrives(VIP, DirectRouting);
    fn a_download_by_tunnel_arrives_through_a_narrow_router() = a_download_arrives(VIP, Tunnel);
    fn an_upload_by_nat_arrives_through_a_narrow_router() = an_upload_arrives(VIP, Nat);
    fn an_upload_over_ipv6_by_nat_arrives_through_a_narrow_router() = an_upload_arrives(VIP6, Nat);
    fn an_upload_by_fullnat_arrives_through_a_narrow_router() = an_upload_arrives(VIP, FullNat);
    fn an_upload_over_ipv6_by_fullnat_arrives_through_a_narrow_router() = an_upload_arrives(VIP6, FullNat);
    fn an_upload_by_tunnel_arrives_through_a_narrow_router() = an_upload_arrives(VIP, Tunnel);
    fn an_upload_by_gre_arrives_through_a_narrow_router() = an_upload_arrives(VIP, GreSummed);
    fn an_upload_by_gue_arrives_through_a_narrow_router() = an_upload_arrives(VIP, GueSummed);
}

/// A director that forwards every UDP port to the first real server, because tracepath increments the port; no port has
/// a socket.
fn directed_at_every_port<'c>(cluster: &'c Cluster, vip: IpAddr, method: Method) -> Director<'c> {
    let director = directed(cluster, vip, &[], method);
    let (service, server) = (SocketAddr::new(vip, 0), server(vip));
    director.adm(&format!("-A -u {service} -s rr -p"));
    director.adm(&format!("-a -u {service} -r {} {}", SocketAddr::new(server, 0), method.option()));
    director
}

#[test]
fn tracepath_shows_the_virtual_address_for_every_hop_to_a_masqueraded_server() {
    for (vip, method) in MASQUERADED {
        let cluster = with_a_router_to_servers(method);
        let _director = directed_at_every_port(&cluster, vip, method);
        let said = succeed(cluster.command(Host::Client, "tracepath").args(["-n", &vip.to_string()]));
        // The director, the router and the real server all appear as the virtual address.
        let hops = said.lines().filter(|line| line.contains(&vip.to_string())).count();
        assert!(said.contains(&format!("pmtu {MTU} hops 3")) && hops >= 3, "{said}");
        for hidden in ["192.0.2.", "2001:db8:2:"] {
            assert!(!said.contains(hidden), "{said}");
        }
    }
}

#[test]
fn a_client_receives_the_error_of_a_router_without_a_route_to_its_real_server() {
    for (vip, method) in MASQUERADED {
        let cluster = with_a_router_to_servers(method);
        let _director = directed(&cluster, vip, &[UPLOAD], method);
        run(&cluster, OTHER, &format!("ip route replace unreachable {}", server(vip)));
        let connected = cluster.run(Host::Client, || clients::connect(SocketAddr::new(vip, UPLOAD)));
        let error = connected.map(drop).expect_err("there is no way").kind();
        // The errors that Linux sends as a router (ICMP 3/1, ICMPv6 1/0).
        let expected = if vip.is_ipv4() { ErrorKind::HostUnreachable } else { ErrorKind::NetworkUnreachable };
        assert_eq!(error, expected, "{vip} {method:?}");
    }
}

/// Source and destination of the packet that an ICMP time exceeded message quotes; `None` for other messages.
fn quoted(message: &[u8], family: IpAddr) -> Option<[SocketAddr; 2]> {
    // For IPv4 the kernel also returns the network header, which has no options here.
    let (message, kind, addrs, ports) = match family {
        IpAddr::V4(_) => (&message[20..], 11, [12..16, 16..20], 20..24),
        IpAddr::V6(_) => (message, 3, [8..24, 24..40], 40..44),
    };
    // The socket also receives neighbour discovery.
    let quote = message.get(8..).filter(|quote| message[0] == kind && quote.len() >= ports.end)?;
    let port = |at: usize| u16::from_be_bytes([quote[ports.start + at], quote[ports.start + at + 1]]);
    let [from, to] = addrs.map(|range| match family {
        IpAddr::V4(_) => IpAddr::from(<[u8; 4]>::try_from(&quote[range]).expect("four bytes")),
        IpAddr::V6(_) => IpAddr::from(<[u8; 16]>::try_from(&quote[range]).expect("sixteen bytes")),
    });
    Some([SocketAddr::new(from, port(0)), SocketAddr::new(to, port(2))])
}

#[test]
fn a_real_server_receives_time_exceeded_errors_that_quote_its_own_packet() {
    for (vip, method) in MASQUERADED {
        let cluster = with_a_router_to_clients(method);
        let _director = directed_by(Workers::One, Protocol::Udp, &cluster, (vip, vip), &[5300], method);
        let serving = SocketAddr::new(server(vip), 5300);
        let (replies, errors) = cluster.run(SERVER, || {
            let replies = UdpSocket::bind(serving).expect("the port is free");
            let (family, protocol) = match vip {
                IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
                IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
            };
            // Expires at the router behind the director.
            match vip {
                IpAddr::V4(_) => replies.set_ttl(2).expect("a time to live"),
                IpAddr::V6(_) => set_ipv6_unicast_hops(&replies, Some(2)).expect("a hop limit"),
            }
            (replies, socket(family, SocketType::RAW, Some(protocol)).expect("root"))
        });
        let asking = cluster.run(OTHER, || {
            let asking = UdpSocket::bind(any(vip)).expect("a port is free");
            asking.connect((vip, 5300)).expect("a route");
            asking
        });
        replies.set_read_timeout(Some(PATIENCE)).expect("not zero");
        set_socket_timeout(&errors, Timeout::Recv, Some(PATIENCE)).expect("not zero");
        let [from, to] = wait::until("the real server receives the error", || {
            asking.send(b"anybody there?").ok()?;
            let mut bytes = [0; 2000];
            let (_, client) = replies.recv_from(&mut bytes).ok()?;
            replies.send_to(b"I am", client).ok()?;
            while let Ok((count, _)) = recv(&errors, &mut bytes[..], RecvFlags::empty()) {
                if let Some([from, to]) = quoted(&bytes[..count], vip).filter(|[_, to]| *to == client) {
                    return Some([from, to]);
                }
            }
            None
        });
        assert_eq!(from, serving);
        let seen = if method == Method::FullNat {
            local(vip)
        } else {
            asking.local_addr().expect("it has one").ip()
        };
        assert_eq!(to.ip(), seen, "{vip} {method:?}");
    }
}

#[test]
fn a_client_receives_the_port_unreachable_error_of_its_real_server() {
    for (vip, method) in MASQUERADED {
        let cluster = traffic::prepared(method, Workers::Two);
        let director = directed_by(Workers::Two, Protocol::Udp, &cluster, (vip, vip), &[5300], method);
        cluster.run(Host::Client, || {
            let socket = UdpSocket::bind(any(vip)).expect("a port is free");
            socket.connect((vip, 5300)).expect("a route");
            socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
            wait::until("the client receives a port unreachable error", || {
                let sent = socket.send(b"anybody there?").map(drop);
                let heard = socket.recv(&mut [0; 100]).map(drop);
                let refused = |result: &Result<(), std::io::Error>| {
                    result.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
                };
                (refused(&sent) || refused(&heard)).then_some(())
            });
        });
        // The director's own kernel did not refuse it.
        let connections = director.adm("-L -n -c");
        assert!(connections.contains(&server(vip).to_string()), "{connections}");
    }
}
