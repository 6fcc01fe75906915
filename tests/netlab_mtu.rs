//! What does not fit the way, with real sockets: datagrams in fragments by each method, and TCP through a tunnel that
//! no ICMP error tells of.
//!
//! The kernels of client and real servers fragment and put together. Each test has a cluster of its own. Needs root.
//! Not here: which bytes leave (`conformance.rs`), and what is refused (`crates/dataplane/src/fragments.rs`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use etherparse::{Ipv4Header, UdpHeader};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, recv, socket};
use xvs::clients::{self, Asker, fetch};
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed, virtual_endpoint};
use xvs::director::Protocol;
use xvs::servers::{Echo, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, carries, namespace};

const ECHO: u16 = 5300;
const UPLOAD: u16 = 9000;
/// Bytes of datagrams: in three fragments, in many, and in one again.
const SIZES: [usize; 4] = [4000, 40_000, 65_000, 100];

/// Flows ask with large datagrams and are answered with what they sent; real servers take turns.
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
    let cluster = carries::prepared(Method::Nat, Workers::One);
    let _echoes = echoes(&cluster, Method::Nat);
    large_datagrams_are_answered(&cluster, Workers::One, Method::Nat);
}

#[test]
fn large_datagrams_by_nat_are_answered_with_two_workers() {
    let cluster = carries::prepared(Method::Nat, Workers::Two);
    let _echoes = echoes(&cluster, Method::Nat);
    large_datagrams_are_answered(&cluster, Workers::Two, Method::Nat);
}

#[test]
fn large_datagrams_over_ipv6_by_nat_are_answered() {
    let cluster = carries::prepared(Method::Nat, Workers::Two);
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
    let cluster = carries::prepared(Method::DirectRouting, Workers::One);
    let _echoes = echoes(&cluster, Method::DirectRouting);
    large_datagrams_are_answered(&cluster, Workers::One, Method::DirectRouting);
}

#[test]
fn large_datagrams_by_tunnel_are_answered() {
    // Not by `xvs realserver`: only a kernel puts the fragments of a tunnel together.
    let cluster = carries::prepared(Method::Nat, Workers::Two);
    let _tunnels = [1, 2].map(|number| TunnelEnd::start(&cluster, Host::RealServer(number)));
    large_datagrams_are_answered(&cluster, Workers::Two, Method::Tunnel);
}

#[test]
fn a_download_and_an_upload_through_a_tunnel_arrive_whole_though_icmp_is_blocked() {
    let cluster = carries::prepared(Method::Tunnel, Workers::One);
    let _sinks = REAL_SERVERS.map(|host| Sink::start(&cluster, host, UPLOAD));
    succeed(cluster.command(Host::Client, "nft").arg(
        "add table ip silent; add chain ip silent in { type filter hook input priority 0; }; \
         add rule ip silent in ip protocol icmp drop",
    ));
    // What the real servers promise goes past the director, so they are told themselves.
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

/// Answers datagrams that come by tunnel from the VIP, as [`Echo`] does: a kernel without the tunnel's device puts its
/// fragments together too, and hands the packet to whoever asks for the protocol.
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
            // Relaxed: the flag stands for nothing but itself.
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
    // One that can't be sent is a lost datagram; clients ask again.
    let _ = replies.send_to(&[name.as_bytes(), b" ", data].concat(), client);
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed, and the test noticed by what did not come back.
            let _ = thread.join();
        }
    }
}
