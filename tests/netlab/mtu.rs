//! Packets larger than the path MTU, with real sockets: fragmented datagrams with each method, and TCP through tunnels
//! without ICMP errors.
//!
//! The kernels of client and real servers fragment and reassemble. Each test has a cluster of its own. Needs root. Not
//! here: the bytes of fragments (`conformance/main.rs`), and refused fragments (`crates/dataplane/src/general_path`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{Ipv4Header, UdpHeader};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, recv, socket};
use xvs::clients::{self, Asker, fetch};
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, complete, real_server, real_server6, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, namespace, traffic, wait};

const ECHO: u16 = 5300;
const UPLOAD: u16 = 9000;
/// The port of iperf3.
const IPERF: u16 = 5201;
/// Sizes of datagrams in bytes: three fragments, many fragments, and one packet.
const SIZES: [usize; 4] = [4000, 40_000, 65_000, 100];

/// Sends large datagrams on several flows; asserts that they are echoed whole and that real servers take turns.
fn large_datagrams_are_answered(cluster: &Cluster, workers: Workers, method: Method) {
    let director = Director::start(cluster, workers);
    director.add_service(Protocol::Udp, ECHO, method);
    ask_at(cluster, virtual_endpoint(ECHO).into());
}

fn ask_at(cluster: &Cluster, target: SocketAddr) {
    let ask = |size: usize| {
        let question: Vec<u8> = (0..size).map(|at| at as u8).collect();
        Asker::new(cluster, target).ask(&question)
    };
    let names = SIZES.map(ask).to_vec();
    assert!(clients::take_turns(&names), "flows were answered by {names:?}");
}

fn echoes(cluster: &Cluster, method: Method) -> [Echo; 2] {
    [1, 2].map(|number| {
        let addr = if method == Method::Nat { real_server(number) } else { VIP };
        Echo::start(cluster, Host::RealServer(number), SocketAddrV4::new(addr, ECHO))
    })
}

#[test]
fn large_datagrams_by_nat_are_answered_with_one_worker() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _echoes = echoes(&cluster, Method::Nat);
    large_datagrams_are_answered(&cluster, Workers::One, Method::Nat);
}

#[test]
fn large_datagrams_by_nat_are_answered_with_two_workers() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _echoes = echoes(&cluster, Method::Nat);
    large_datagrams_are_answered(&cluster, Workers::Two, Method::Nat);
}

#[test]
fn large_datagrams_over_ipv6_by_nat_are_answered() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let endpoint = |addr| SocketAddr::new(IpAddr::V6(addr), ECHO);
    let _echoes =
        [1, 2].map(|number| Echo::start(&cluster, Host::RealServer(number), endpoint(real_server6(number))));
    let director = Director::start(&cluster, Workers::Two);
    director.adm(&format!("-A -u {} -s rr", endpoint(VIP6)));
    for number in [1, 2] {
        director.adm(&format!("-a -u {} -r {} -m", endpoint(VIP6), endpoint(real_server6(number))));
    }
    ask_at(&cluster, endpoint(VIP6));
}

#[test]
fn large_datagrams_by_direct_routing_are_answered() {
    let cluster = traffic::prepared(Method::DirectRouting, Workers::One);
    let _echoes = echoes(&cluster, Method::DirectRouting);
    large_datagrams_are_answered(&cluster, Workers::One, Method::DirectRouting);
}

#[test]
fn large_datagrams_by_tunnel_are_answered() {
    // Without `xvs realserver`: only a kernel reassembles the fragments of a tunnel's packets.
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _tunnels = [1, 2].map(|number| TunnelEnd::start(&cluster, Host::RealServer(number)));
    large_datagrams_are_answered(&cluster, Workers::Two, Method::Tunnel);
}

#[test]
fn a_download_and_an_upload_through_a_tunnel_arrive_whole_while_icmp_is_blocked() {
    let cluster = traffic::prepared(Method::Tunnel, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    succeed(cluster.command(Host::Client, "nft").arg(
        "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; \
         add rule ip silent in ip protocol icmp drop",
    ));
    // Replies bypass the director, so the real servers' MSS is set on their routes.
    for host in REAL_SERVERS {
        succeed(cluster.command(host, "ip").args([
            "route",
            "replace",
            "default",
            "via",
            "192.0.2.254",
            "table",
            "100",
            "advmss",
            "1440",
        ]));
    }
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Tunnel);
    director.add_service(Protocol::Tcp, UPLOAD, Method::Tunnel);
    let blob = cluster.blob();
    let body = fetch(&cluster, &format!("http://{VIP}/blob")).expect("a download");
    assert!(body == blob, "a download of {} bytes differs from the file", body.len());
    let receipts = clients::parallel_uploads(&cluster, virtual_endpoint(UPLOAD), 1, &blob);
    assert_eq!(receipts, [clients::receipt(&receipts[0].host, &blob)]);
}

#[test]
fn ipv6_uploads_through_tunnels_arrive_whole_by_clamping_alone_if_replies_pass_the_director() {
    let cluster = traffic::prepared(Method::Nat, Workers::Two);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    succeed(cluster.command(Host::Client, "nft").arg(
        "add table ip6 silent; add chain ip6 silent in { type filter hook input priority 0; }; \
         add rule ip6 silent in icmpv6 type packet-too-big drop",
    ));
    for host in REAL_SERVERS {
        let mut up = cluster.command(host, program("xvs"));
        succeed(up.args([
            "realserver",
            "up",
            "--vip",
            &VIP6.to_string(),
            "--method",
            "tunnel",
            "--dev",
            "lan",
        ]));
        let mut by_the_director = cluster.command(host, "ip");
        let route = ["-6", "route", "replace", "default", "via", "2001:db8:2::1", "table", "100"];
        succeed(by_the_director.args(route));
    }
    let director = Director::start(&cluster, Workers::Two);
    let service = SocketAddr::new(VIP6.into(), UPLOAD);
    let bytes = &cluster.blob()[..5_000_000];
    for (kind, in_v4) in [(Method::Tunnel, false), (Method::GueSummed, false), (Method::GreSummed, true)] {
        director.adm("-C");
        director.adm(&format!("-A -t {service} -s rr"));
        for number in [1, 2] {
            let addr = if in_v4 { IpAddr::V4(real_server(number)) } else { real_server6(number).into() };
            director.adm(&format!("-a -t {service} -r {} {}", SocketAddr::new(addr, UPLOAD), kind.option()));
        }
        let receipts = clients::parallel_uploads(&cluster, service, 2, bytes);
        for receipt in &receipts {
            assert_eq!(*receipt, clients::receipt(&receipt.host, bytes), "{kind:?}");
        }
    }
    // The client has received no path MTU, and needed none.
    assert!(!director.status().contains("too_big"), "{}", director.status());
}

/// iperf3 sends datagrams of 4,000 bytes to the first real server through the director, and receives some from it.
fn iperf_sends_large_datagrams_to(method: Method, vip: IpAddr, server: IpAddr) {
    let cluster = traffic::prepared(method, Workers::Two);
    if !method.masquerades() && vip.is_ipv6() {
        let mut up = cluster.command(Host::RealServer(1), program("xvs"));
        succeed(up.args(["realserver", "up", "--vip", &vip.to_string(), "--method", "dr", "--dev", "lan"]));
    }
    // Replies must come from the address of the requests.
    let at = if method.masquerades() { server } else { vip };
    let mut serving = cluster.command(Host::RealServer(1), "iperf3");
    serving.args(["--server", "--bind", &at.to_string()]).stdout(Stdio::null());
    let _serving = Killed(serving.spawn().expect("iperf3 is installed"));
    let director = Director::start(&cluster, Workers::Two);
    if method == Method::FullNat {
        director.xvs(if server.is_ipv4() { "laddr add 192.0.2.1" } else { "laddr add 2001:db8:2::1" });
    }
    for protocol in ["-t", "-u"] {
        let service = SocketAddr::new(vip, IPERF);
        director.adm(&format!("-A {protocol} {service} -s rr"));
        let dest = SocketAddr::new(server, IPERF);
        director.adm(&format!("-a {protocol} {service} -r {dest} {}", method.option()));
    }
    for way in [&[][..], &["--reverse"]] {
        let report = wait::until("iperf3 has a report", || {
            let mut asking = cluster.command(Host::Client, "iperf3");
            asking.args(["--client", &vip.to_string(), "--udp", "--length", "4000", "--bytes", "2M"]);
            let output = complete(asking.args(["--bitrate", "40M", "--json"]).args(way));
            // Fails until the server listens.
            output.status.success().then_some(output.stdout)
        });
        let report: serde_json::Value = serde_json::from_slice(&report).expect("JSON");
        let sum = |name: &str| report["end"]["sum"][name].as_u64().unwrap_or_else(|| panic!("{report:#}"));
        // A busy machine may lose some of them.
        assert!(
            sum("packets") >= 500 && sum("lost_packets") < sum("packets") / 2,
            "{method:?} {way:?} {report:#}"
        );
    }
}

fn iperf_sends_large_datagrams(method: Method, vip: IpAddr) {
    let server = if vip.is_ipv4() { IpAddr::V4(real_server(1)) } else { real_server6(1).into() };
    iperf_sends_large_datagrams_to(method, vip, server);
}

#[test]
fn iperf_sends_large_datagrams_over_ipv6_to_a_server_of_ipv4() {
    iperf_sends_large_datagrams_to(Method::FullNat, VIP6.into(), real_server(1).into());
}

#[test]
fn iperf_sends_large_datagrams_over_ipv4_to_a_server_of_ipv6() {
    iperf_sends_large_datagrams_to(Method::FullNat, VIP.into(), real_server6(1).into());
}

#[test]
fn iperf_sends_large_datagrams_by_nat() {
    iperf_sends_large_datagrams(Method::Nat, VIP.into());
}

#[test]
fn iperf_sends_large_datagrams_over_ipv6_by_nat() {
    iperf_sends_large_datagrams(Method::Nat, VIP6.into());
}

#[test]
fn iperf_sends_large_datagrams_by_fullnat() {
    iperf_sends_large_datagrams(Method::FullNat, VIP.into());
}

#[test]
fn iperf_sends_large_datagrams_over_ipv6_by_fullnat() {
    iperf_sends_large_datagrams(Method::FullNat, VIP6.into());
}

#[test]
fn iperf_sends_large_datagrams_by_direct_routing() {
    iperf_sends_large_datagrams(Method::DirectRouting, VIP.into());
}

#[test]
fn iperf_sends_large_datagrams_over_ipv6_by_direct_routing() {
    iperf_sends_large_datagrams(Method::DirectRouting, VIP6.into());
}

/// A process that ends with its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // A failure cannot be handled here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers datagrams that arrive in a tunnel, from the VIP, as [`Echo`] does: a kernel without a tunnel device also
/// reassembles the tunnel's fragments, and delivers the packet to raw sockets of the protocol.
struct TunnelEnd {
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl TunnelEnd {
    fn start(cluster: &Cluster, host: Host) -> Self {
        succeed(cluster.command(host, "ip").args(["addr", "add", &format!("{VIP}/32"), "dev", "lo"]));
        let running = Arc::new(AtomicBool::new(true));
        let (listening, started) = mpsc::channel();
        let (flag, name) = (running.clone(), host.name());
        let thread = namespace::spawn(&cluster.namespace(host), move || {
            let tunnel = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::IPIP)).expect("root");
            set_socket_timeout(&tunnel, Timeout::Recv, Some(Duration::from_millis(100))).expect("a limit");
            let replies = UdpSocket::bind((VIP, ECHO)).expect("it has the VIP");
            listening.send(()).expect("`start` waits for this");
            let mut packet = vec![0; 65536];
            // Relaxed: the flag publishes no other data.
            while flag.load(Ordering::Relaxed) {
                let Ok((count, _)) = recv(&tunnel, &mut packet[..], RecvFlags::empty()) else { continue };
                answer(&replies, &name, &packet[..count]);
            }
        });
        started.recv().expect("the end of a tunnel started");
        Self { running, thread: Some(thread) }
    }
}

/// Sends the datagram in a tunnel's packet back with the host's name in front.
fn answer(replies: &UdpSocket, name: &str, packet: &[u8]) {
    let (_, inner) = Ipv4Header::from_slice(packet).expect("the kernel read this header");
    let (header, datagram) = Ipv4Header::from_slice(inner).expect("a packet in the tunnel");
    assert_eq!((Ipv4Addr::from(header.destination), header.is_fragmenting_payload()), (VIP, false));
    let (udp, data) = UdpHeader::from_slice(datagram).expect("a datagram");
    let sum = udp.calc_checksum_ipv4_raw(header.source, header.destination, data).expect("its length");
    assert_eq!(udp.checksum, sum, "the checksum of a datagram of {} bytes", data.len());
    let client = SocketAddrV4::new(header.source.into(), udp.source_port);
    // A reply that can't be sent is a lost datagram; clients repeat the request.
    let _ = replies.send_to(&[name.as_bytes(), b" ", data].concat(), client);
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed, and the test fails for lack of a reply.
            let _ = thread.join();
        }
    }
}
