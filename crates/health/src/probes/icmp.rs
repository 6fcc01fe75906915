//! `PING_CHECK`: an ICMP echo and its reply.
//!
//! Runs once for each probe, over a raw socket, which needs `CAP_NET_RAW` and no sysctl. The socket is connected to the
//! target's address, and a kernel filter passes only the reply to this echo, so replies to other programs neither count
//! nor wake the probe. Other ICMP messages are ignored; an unreachable host is silent. Source: RFC 792, RFC 4443 §4.
//! Cost: ten system calls and one small buffer.

use std::io;
use std::net::SocketAddr;

use socket2::{Protocol, SockFilter, Type};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::Target;
use xvs_proto::checksum::Sum;

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Probes the target once, at most until the deadline. Its ports are ignored.
pub(crate) async fn probe(target: &Target, deadline: Instant) -> ProbeResult {
    let peer = target.endpoint.ip();
    let within = socket::within(deadline);
    let target = Target { endpoint: SocketAddr::new(peer, 0), source_port: None, ..target.clone() };
    // Identifier and sequence number; random, because other programs send echoes, too.
    let number: [u8; 4] = fastrand::u32(..).to_be_bytes();
    let family = Family::of(&target);
    let socket = match socket::open(&target, Type::RAW, Some(family.protocol)).and_then(|socket| {
        socket
            .attach_filter(&family.filter(number))
            .map_err(|error| ProbeResult::NotRun(format!("no socket with a filter: {error}")))?;
        socket::send(&family.echo(number), socket, &target, peer)
    }) {
        Ok(socket) => socket,
        Err(result) => return result,
    };
    match timeout_at(deadline, family.reply(&socket, number)).await {
        Ok(Ok(())) => ProbeResult::Passed(0),
        Ok(Err(error)) => socket::network_error(&error, "", peer),
        Err(_) => ProbeResult::Failed(format!("no echo reply from {peer} {within}")),
    }
}

/// The differences between ICMP and ICMPv6.
struct Family {
    protocol: Protocol,
    /// The ICMP types of an echo and of its reply.
    echo: u8,
    reply: u8,
    /// Whether a received packet starts with the IP header.
    has_header: bool,
}

impl Family {
    fn of(target: &Target) -> Self {
        match target.endpoint {
            SocketAddr::V4(_) => Self { protocol: Protocol::ICMPV4, echo: 8, reply: 0, has_header: true },
            SocketAddr::V6(_) => {
                Self { protocol: Protocol::ICMPV6, echo: 128, reply: 129, has_header: false }
            }
        }
    }

    /// An echo. The kernel computes the checksum of ICMPv6, which covers the addresses.
    fn echo(&self, number: [u8; 4]) -> Vec<u8> {
        let mut message = vec![self.echo, 0, 0, 0];
        message.extend(number);
        message.extend(0..DATA_BYTES);
        if self.protocol == Protocol::ICMPV4 {
            let checksum = Sum::default().bytes(&message).checksum();
            message[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        message
    }

    /// A filter that passes only the reply to the echo with this number.
    ///
    /// Source: kernel, Documentation/networking/filter.rst.
    fn filter(&self, number: [u8; 4]) -> [SockFilter; 7] {
        let load_header_length = match self.has_header {
            true => SockFilter::new(0xb1, 0, 0, 0),  // ldx 4*([0]&0xf)
            false => SockFilter::new(0x01, 0, 0, 0), // ldx #0
        };
        [
            load_header_length,
            SockFilter::new(0x50, 0, 0, 0),                     // ldb [x + 0]
            SockFilter::new(0x15, 0, 3, u32::from(self.reply)), // jne #type, drop
            SockFilter::new(0x40, 0, 0, 4),                     // ld [x + 4]
            SockFilter::new(0x15, 0, 1, u32::from_be_bytes(number)), // jne #number, drop
            SockFilter::new(0x06, 0, 0, u32::MAX),              // ret #-1
            SockFilter::new(0x06, 0, 0, 0),                     // drop: ret #0
        ]
    }

    /// Waits for the reply. Ignores packets that arrived before the filter was attached.
    async fn reply(&self, socket: &UdpSocket, number: [u8; 4]) -> io::Result<()> {
        let mut packet = [0; 256];
        loop {
            let length = socket.recv(&mut packet).await?;
            let header = if self.has_header { usize::from(packet[0] & 0xf) * 4 } else { 0 };
            let message = packet[..length].get(header..).unwrap_or_default();
            if message.first() == Some(&self.reply) && message.get(4..8) == Some(&number) {
                return Ok(());
            }
        }
    }
}

/// The data of an echo, as long as keepalived's.
const DATA_BYTES: u8 = 128;

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, UdpSocket};
    use std::process::Command;
    use std::time::Duration;

    use socket2::{Domain, Socket};

    use crate::probes::icmp::*;
    use crate::probes::socket::testing::{soon, target};
    use crate::probes::{agent, dns, smtp, tcp, udp};
    use xvs_model::health_checks::check::{Dns, Udp};

    fn host(addr: &str) -> Target {
        target(SocketAddr::new(addr.parse().unwrap(), 0))
    }

    /// Whether this process has a separate network namespace. If not, runs the named test in a new one, after these
    /// commands.
    fn is_own_network(test: &str, commands: &str) -> bool {
        const MARK: &str = "XVS_TEST_IN_OWN_NETWORK";
        if std::env::var_os(MARK).is_some() {
            return true;
        }
        let script =
            format!("ip link set lo up; {commands}; exec \"$0\" --exact probes::icmp::tests::{test}");
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-ec", &script]).arg(std::env::current_exe().unwrap()).env(MARK, "");
        let run = command.output().unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success() && said.contains("1 passed"), "{said}{run:?}");
        false
    }

    #[test]
    fn an_echo_is_as_rfc_792_and_rfc_4443_have_it() {
        let v4 = Family::of(&host("127.0.0.1")).echo([0x12, 0x34, 0x56, 0x78]);
        // 0x0800, 0x1234, 0x5678 and 0x0001, 0x0203 to 0x7e7f sum to 0x1040ac; folded, that is 0x40bc.
        assert_eq!(v4[..8], [8, 0, 0xbf, 0x43, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(v4.len(), 8 + 128);
        let v6 = Family::of(&host("::1")).echo([0x12, 0x34, 0x56, 0x78]);
        assert_eq!(v6[..8], [128, 0, 0, 0, 0x12, 0x34, 0x56, 0x78]);
        assert_eq!(v6[8..], v4[8..]);
    }

    #[test]
    fn the_kernel_filter_passes_the_reply_to_this_echo_alone() {
        for addr in ["127.0.0.1", "::1"] {
            let (target, number) = (host(addr), [0xff, 0, 0, 1]);
            let family = Family::of(&target);
            let mut socket = socket::open(&target, Type::RAW, Some(family.protocol)).unwrap();
            socket.attach_filter(&family.filter(number)).unwrap();
            socket.connect(&target.endpoint.into()).unwrap();
            for other in [[0xff, 1, 0, 1], [0xff, 0, 1, 1], number] {
                socket.send(&family.echo(other)).unwrap();
            }
            let mut packet = [0xa5; 256];
            let length = socket.read(&mut packet).unwrap();
            assert_eq!(packet[length - 136..][..1], [family.reply]);
            assert_eq!(packet[length - 132..][..4], number);
            assert_eq!(socket.read(&mut packet).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[tokio::test]
    async fn a_host_that_replies_passes_also_among_many_concurrent_probes() {
        let hosts = ["127.0.0.1", "127.0.0.2", "::1"];
        let probed: Vec<_> = (0..60)
            .map(|at| tokio::spawn(async move { probe(&host(hosts[at % hosts.len()]), soon()).await }))
            .collect();
        for result in probed {
            assert_eq!(result.await.unwrap(), ProbeResult::Passed(0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_host_fails_at_the_deadline() {
        // No host has the address on this interface.
        let silent = Target { interface: Some("lo".to_owned()), ..host("192.0.2.1") };
        let why = "no echo reply from 192.0.2.1 within 5s".to_owned();
        assert_eq!(probe(&silent, soon()).await, ProbeResult::Failed(why));
    }

    #[tokio::test]
    async fn a_missing_interface_or_source_address_counts_as_not_run() {
        for target in [
            Target { interface: Some("nosuch0".to_owned()), ..host("127.0.0.1") },
            Target { source: Some("192.0.2.7".parse().unwrap()), ..host("127.0.0.1") },
        ] {
            assert!(matches!(probe(&target, soon()).await, ProbeResult::NotRun(_)));
        }
    }

    #[test]
    fn only_the_reply_to_this_echo_counts_and_it_goes_to_the_configured_address() {
        let name = "only_the_reply_to_this_echo_counts_and_it_goes_to_the_configured_address";
        // The kernel answers no echo here; the default of ping_group_range permits no ICMP datagram sockets.
        let prepare = "sysctl -qw net.ipv4.icmp_echo_ignore_all=1; \
                       test \"$(cat /proc/sys/net/ipv4/ping_group_range)\" = \"1\t0\"";
        if !is_own_network(name, prepare) {
            return;
        }
        let ours = Target { source: Some("127.0.0.7".parse().unwrap()), ..host("127.0.0.9") };
        let from = |addr: &str| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            socket.bind(&SocketAddr::new(addr.parse().unwrap(), 0).into()).unwrap();
            socket
        };
        let asked_and_answered = |wrong: fn(&mut [u8]), replier: &'static str| {
            let listens = from("127.0.0.9");
            listens.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let ours = ours.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let server = tokio::task::spawn_blocking(move || {
                    let mut packet = [0; 256];
                    let length = (&listens).read(&mut packet).unwrap();
                    let echo = &mut packet[20..length];
                    assert_eq!((echo[0], echo.len()), (8, 136));
                    echo[0] = 0;
                    wrong(echo);
                    let to: SocketAddr = "127.0.0.7:0".parse().unwrap();
                    from(replier).send_to(echo, &to.into()).unwrap();
                });
                let result = probe(&ours, Instant::now() + Duration::from_millis(300)).await;
                server.await.unwrap();
                result
            })
        };
        let silent = ProbeResult::Failed("no echo reply from 127.0.0.9 within 300ms".to_owned());
        assert_eq!(asked_and_answered(|_| {}, "127.0.0.9"), ProbeResult::Passed(0));
        assert_eq!(asked_and_answered(|_| {}, "127.0.0.8"), silent);
        assert_eq!(asked_and_answered(|echo| echo[0] = 3, "127.0.0.9"), silent);
        assert_eq!(asked_and_answered(|echo| echo[5] ^= 1, "127.0.0.9"), silent);
        assert_eq!(asked_and_answered(|echo| echo[7] ^= 1, "127.0.0.9"), silent);
    }

    #[tokio::test]
    async fn a_route_that_refuses_the_packets_is_a_failure_of_the_server_and_a_wrong_source_is_none() {
        let name = "a_route_that_refuses_the_packets_is_a_failure_of_the_server_and_a_wrong_source_is_none";
        let prepare = "ip link add d0 type veth peer d1; ip link set d0 up; ip link set d1 up; \
                       ip addr add 192.0.2.1/24 dev d0; ip addr add 2001:db8::1/64 dev d0 nodad; \
                       ip route add blackhole 192.0.2.11; ip route add prohibit 192.0.2.12; \
                       ip route add unreachable 192.0.2.13; ip route add blackhole 2001:db8::11; \
                       ip route add prohibit 2001:db8::12; ip route add unreachable 2001:db8::13";
        if !is_own_network(name, prepare) {
            return;
        }
        let udp = Udp { payload: None, reply: None };
        let dns = Dns { kind: "SOA".to_owned(), name: String::new() };
        for (last, why) in [
            ("11", "dropped by a blackhole route: "),
            ("12", "prohibited by a route or a firewall: "),
            ("13", "host unreachable: "),
            // No route at all.
            ("", "network unreachable: "),
        ] {
            for network in ["192.0.2.", "2001:db8::"] {
                let addr = match last {
                    "" if network.contains(':') => "2001:db8:1::1".to_owned(),
                    "" => "198.51.100.1".to_owned(),
                    last => format!("{network}{last}"),
                };
                let server = target(SocketAddr::new(addr.parse().unwrap(), 80));
                let failed = |peer: &str| ProbeResult::Failed(format!("{why}{peer}"));
                let endpoint = server.endpoint.to_string();
                assert_eq!(probe(&server, soon()).await, failed(&addr));
                assert_eq!(tcp::probe(&server, soon()).await, failed(&endpoint));
                assert_eq!(udp::probe(&server, &udp, soon()).await, failed(&endpoint));
                assert_eq!(dns::probe(&server, &dns, soon()).await, failed(&endpoint));
                assert_eq!(smtp::probe(&server, "lb", soon()).await, failed(&endpoint));
                let silent = ProbeResult::Inconclusive(format!("{why}{endpoint}"));
                assert_eq!(agent::probe(&server, "", soon()).await, silent);
            }
        }
        for (source, why) in [
            ("192.0.2.7", "is not an address of this machine; see `ip address`, or leave it out"),
            ("127.0.0.1", "cannot reach 192.0.2.14:80; correct it, or leave it out"),
        ] {
            let own = Some(source.parse().unwrap());
            let server = Target { source: own, ..target("192.0.2.14:80".parse().unwrap()) };
            let not_run = ProbeResult::NotRun(format!("`bindto {source}` {why}"));
            assert_eq!(tcp::probe(&server, soon()).await, not_run);
            assert_eq!(udp::probe(&server, &udp, soon()).await, not_run);
            assert_eq!(dns::probe(&server, &dns, soon()).await, not_run);
            assert_eq!(smtp::probe(&server, "lb", soon()).await, not_run);
            assert_eq!(agent::probe(&server, "", soon()).await, not_run);
            let ProbeResult::NotRun(seen) = probe(&server, soon()).await else { panic!("{source}") };
            assert!(seen.starts_with(&format!("`bindto {source}` ")), "{seen}");
        }
    }

    #[tokio::test]
    async fn a_link_local_server_is_probed_over_its_interface() {
        let prepare = "ip link add d0 type veth peer d1; ip addr add fe80::1/64 dev d0 nodad; \
                       ip link set d0 up; ip link set d1 up; \
                       for _ in $(seq 1000); do ip -6 route get fe80::1 oif d0 | grep -q ^local && break; done";
        if !is_own_network("a_link_local_server_is_probed_over_its_interface", prepare) {
            return;
        }
        let listener = TcpListener::bind("[::]:80").unwrap();
        let _server = UdpSocket::bind("[::]:80").unwrap();
        for source in [None, Some("fe80::1".parse().unwrap())] {
            let by_interface = Target {
                source,
                interface: Some("d0".to_owned()),
                ..target("[fe80::1]:80".parse().unwrap())
            };
            assert_eq!(probe(&by_interface, soon()).await, ProbeResult::Passed(0));
            assert_eq!(tcp::probe(&by_interface, soon()).await, ProbeResult::Passed(0));
            listener.accept().unwrap();
            let soon = Instant::now() + Duration::from_millis(100);
            assert_eq!(
                udp::probe(&by_interface, &Udp { payload: None, reply: None }, soon).await,
                ProbeResult::Passed(0)
            );
        }
    }
}
