//! Sockets for probes, with the options of a check's target; and the meaning of their errors.
//!
//! Runs once for each probe, on the health runtime. Each probe has a separate socket, so a late reply to one probe is
//! never mistaken for the reply to another. An error while a socket is created or bound is this machine's, and gives no
//! result for the server. [`network_error`] divides all later errors of all probes: the server cannot be reached, also
//! because a route on this machine refuses its packets, or the probe could not run (keepalived-behaviour, section 4.3).
//! Cost: four to eight system calls.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::Target;

use crate::probes::probe_result::ProbeResult;

/// A TCP connection to the target.
///
/// # Errors
///
/// The result of the probe: the server failed, or the probe could not run.
pub(crate) async fn connect(target: &Target, deadline: Instant) -> Result<TcpStream, ProbeResult> {
    let peer = target.endpoint;
    let within = within(deadline);
    let socket = open(target, Type::STREAM, None)?;
    begin_connection(&socket, target, peer)?;
    let stream = TcpStream::from_std(socket.into()).map_err(|error| network_error(&error, "", peer))?;
    match timeout_at(deadline, stream.writable()).await {
        Err(_) => return Err(ProbeResult::Failed(format!("no connection to {peer} {within}"))),
        Ok(waited) => waited.map_err(|error| network_error(&error, "", peer))?,
    }
    match stream.take_error().unwrap_or_else(Some) {
        None => Ok(stream),
        Some(error) => Err(network_error(&error, "", peer)),
    }
}

/// Connects a datagram or raw socket to the target and sends a datagram. The socket then receives only from the target.
/// `peer` is the target in errors.
///
/// The result is tokio's `UdpSocket` also for a raw socket: both use the same system calls.
pub(crate) fn send(
    datagram: &[u8],
    socket: Socket,
    target: &Target,
    peer: impl Display + Copy,
) -> Result<UdpSocket, ProbeResult> {
    begin_connection(&socket, target, peer)?;
    socket
        .send(datagram)
        .and_then(|_| UdpSocket::from_std(socket.into()))
        .map_err(|error| network_error(&error, "", peer))
}

/// Binds a socket as the target requires, and connects it or begins to.
fn begin_connection(socket: &Socket, target: &Target, peer: impl Display) -> Result<(), ProbeResult> {
    bind(socket, target)?;
    let Err(error) = socket.connect(&target.endpoint.into()) else { return Ok(()) };
    match (Errno::from_io_error(&error), target.source) {
        (Some(Errno::INPROGRESS), _) => Ok(()),
        // The kernel sends nothing from such an address to another machine.
        (Some(Errno::INVAL), Some(source)) if source.is_loopback() => Err(ProbeResult::NotRun(format!(
            "`bindto {source}` cannot reach {peer}; correct it, or leave it out"
        ))),
        _ => Err(network_error(&error, "", peer)),
    }
}

/// The reason why a socket cannot have the configured interface and source address now; `None` if it can.
pub(crate) fn local_fault(target: Target) -> Option<String> {
    // A port may be in use, and a mark needs a right.
    let target = Target { source_port: None, mark: 0, ..target };
    open(&target, Type::DGRAM, None)
        .and_then(|socket| bind(&socket, &target))
        .err()
        .and_then(ProbeResult::error)
}

/// Opens a non-blocking socket with the target's interface and mark.
///
/// # Errors
///
/// [`ProbeResult::NotRun`].
pub(crate) fn open(target: &Target, kind: Type, protocol: Option<Protocol>) -> Result<Socket, ProbeResult> {
    let socket = Socket::new(Domain::for_address(target.endpoint), kind.nonblocking(), protocol)
        .map_err(|error| ProbeResult::NotRun(format!("no socket: {error}")))?;
    if let Some(interface) = &target.interface {
        socket
            .bind_device(Some(interface.as_bytes()))
            .map_err(|error| ProbeResult::NotRun(format!("no socket on interface {interface}: {error}")))?;
    }
    if target.mark != 0 {
        socket
            .set_mark(target.mark)
            .map_err(|error| ProbeResult::NotRun(format!("no socket with mark {}: {error}", target.mark)))?;
    }
    if kind == Type::DGRAM {
        // Without this option the kernel does not report ICMP errors such as host unreachable to a UDP socket.
        match target.endpoint {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
        }
        .map_err(io::Error::from)
        .map_err(|error| ProbeResult::NotRun(format!("no socket that receives ICMP errors: {error}")))?;
    }
    Ok(socket)
}

/// Binds a socket to the configured source address and port, if there are any.
fn bind(socket: &Socket, target: &Target) -> Result<(), ProbeResult> {
    if target.source.is_none() && target.source_port.is_none() {
        return Ok(());
    }
    let any = match target.endpoint {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let own = SocketAddr::new(target.source.unwrap_or(any), target.source_port.unwrap_or(0));
    // Several checks may use one source port.
    socket.set_reuse_address(true).and_then(|()| socket.bind(&own.into())).map_err(|error| {
        let addr = own.ip();
        ProbeResult::NotRun(match (Errno::from_io_error(&error), &target.interface) {
            (Some(Errno::ADDRNOTAVAIL), None) => {
                format!("`bindto {addr}` is not an address of this machine; see `ip address`, or leave it out")
            }
            (Some(Errno::ADDRNOTAVAIL), Some(interface)) => format!(
                "`bindto {addr}` is not an address that {interface} can use; see `ip address`, or leave it out"
            ),
            _ => format!("no socket with the source {own}: {error}"),
        })
    })
}

/// The probe result for an error of a call that sends to the server or waits for it. `progress` describes how far the
/// probe had come, and may be empty.
///
/// Errors of [`open`] or of binding are never passed here: for them EACCES and EINVAL have other meanings.
pub(crate) fn network_error(error: &io::Error, progress: &str, peer: impl Display) -> ProbeResult {
    let what = match Errno::from_io_error(error) {
        Some(Errno::CONNREFUSED) => "connection refused by",
        Some(Errno::CONNRESET | Errno::PIPE) => "connection reset by",
        Some(Errno::CONNABORTED) => "connection aborted by",
        Some(Errno::TIMEDOUT) => "connection timed out:",
        Some(Errno::HOSTUNREACH) => "host unreachable:",
        Some(Errno::HOSTDOWN | Errno::NONET) => "host down:",
        Some(Errno::NETUNREACH) => "network unreachable:",
        Some(Errno::NETDOWN) => "network down:",
        Some(Errno::PROTO | Errno::NOPROTOOPT) => "protocol refused by",
        // A route or rule of type prohibit on this machine, or a firewall on the path, reported by ICMPv6.
        Some(Errno::ACCESS) => "prohibited by a route or a firewall:",
        // A route or rule of type blackhole on this machine.
        Some(Errno::INVAL) => "dropped by a blackhole route:",
        Some(Errno::PERM) => {
            return ProbeResult::NotRun(format!(
                "{peer} could not be probed: a firewall of this machine drops the packet; see `nft list ruleset`"
            ));
        }
        _ => return ProbeResult::NotRun(format!("{peer} could not be probed: {error}")),
    };
    let colon = if progress.is_empty() { "" } else { ": " };
    ProbeResult::Failed(format!("{progress}{colon}{what} {peer}"))
}

/// A duration whose text is `within 5s`. Few probes need the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Within(Duration);

impl Display for Within {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "within {:?}", Duration::from_millis((self.0.as_micros() as u64).div_ceil(1000)))
    }
}

/// The time until a deadline.
pub(crate) fn within(deadline: Instant) -> Within {
    Within(deadline.saturating_duration_since(Instant::now()))
}

#[cfg(test)]
pub(crate) mod testing {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::time::Instant;

    use crate::probes::socket::Target;

    /// A target without source address, interface and mark.
    pub(crate) fn target(endpoint: SocketAddr) -> Target {
        Target { endpoint, source: None, source_port: None, interface: None, mark: 0 }
    }

    /// The default timeout of a check. Only tests with a paused clock reach it.
    pub(crate) fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crate::probes::socket::testing::{soon, target};
    use crate::probes::socket::*;

    #[tokio::test]
    async fn a_connection_uses_the_configured_source_address_and_port_repeatedly() {
        for own in ["127.0.0.5:0", "[::1]:0"] {
            let mut own: SocketAddr = own.parse().unwrap();
            let listener = TcpListener::bind(SocketAddr::new(own.ip(), 0)).unwrap();
            // A free port.
            own.set_port(TcpListener::bind(own).unwrap().local_addr().unwrap().port());
            let source = (Some(own.ip()), Some(own.port()));
            let target =
                Target { source: source.0, source_port: source.1, ..target(listener.local_addr().unwrap()) };
            for _ in 0..3 {
                // Until the kernel has closed the previous connection, its addresses are in use.
                while let Err(result) = connect(&target, soon()).await.map(drop) {
                    let ProbeResult::NotRun(why) = result else { panic!("{result:?}") };
                    assert!(why.contains("Cannot assign requested address"), "{why}");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                assert_eq!(listener.accept().unwrap().1, own);
            }
        }
    }

    #[test]
    fn a_socket_has_its_interface_and_its_mark() {
        let here = target("127.0.0.1:80".parse().unwrap());
        let wanted = Target { interface: Some("lo".to_owned()), mark: 7, ..here };
        for kind in [Type::STREAM, Type::DGRAM, Type::RAW] {
            let protocol = (kind == Type::RAW).then_some(Protocol::ICMPV4);
            let socket = open(&wanted, kind, protocol).unwrap();
            assert_eq!(socket.device().unwrap().as_deref(), Some(b"lo".as_slice()));
            assert_eq!(socket.mark().unwrap(), 7);
        }
    }

    #[tokio::test]
    async fn a_missing_interface_or_address_is_no_failure_of_the_server() {
        let here = target("127.0.0.1:80".parse().unwrap());
        let no_interface = Target { interface: Some("nosuch0".to_owned()), ..here.clone() };
        let why = "no socket on interface nosuch0: No such device (os error 19)".to_owned();
        assert_eq!(connect(&no_interface, soon()).await.unwrap_err(), ProbeResult::NotRun(why));
        let no_address = Target { source: Some("192.0.2.7".parse().unwrap()), ..here };
        let why = "`bindto 192.0.2.7` is not an address of this machine; see `ip address`, or leave it out";
        assert_eq!(connect(&no_address, soon()).await.unwrap_err(), ProbeResult::NotRun(why.to_owned()));
        assert_eq!(local_fault(no_address.clone()).as_deref(), Some(why));
    }

    #[test]
    fn errors_from_the_network_are_failures_and_local_errors_are_not() {
        let peer = "10.1.0.1:80";
        let failures = [
            (Errno::CONNREFUSED, "connection refused by 10.1.0.1:80"),
            (Errno::CONNRESET, "connection reset by 10.1.0.1:80"),
            (Errno::CONNABORTED, "connection aborted by 10.1.0.1:80"),
            (Errno::TIMEDOUT, "connection timed out: 10.1.0.1:80"),
            (Errno::HOSTUNREACH, "host unreachable: 10.1.0.1:80"),
            (Errno::HOSTDOWN, "host down: 10.1.0.1:80"),
            (Errno::NETUNREACH, "network unreachable: 10.1.0.1:80"),
            (Errno::NETDOWN, "network down: 10.1.0.1:80"),
            (Errno::ACCESS, "prohibited by a route or a firewall: 10.1.0.1:80"),
            (Errno::INVAL, "dropped by a blackhole route: 10.1.0.1:80"),
        ];
        for (errno, text) in failures {
            let wanted = ProbeResult::Failed(text.to_owned());
            assert_eq!(network_error(&errno.into(), "", peer), wanted);
        }
        for errno in [Errno::ADDRNOTAVAIL, Errno::MFILE, Errno::PERM, Errno::NOBUFS, Errno::NOMEM] {
            assert!(matches!(network_error(&errno.into(), "", peer), ProbeResult::NotRun(_)), "{errno}");
        }
        let prohibited = "connected: prohibited by a route or a firewall: 10.1.0.1:80".to_owned();
        assert_eq!(network_error(&Errno::ACCESS.into(), "connected", peer), ProbeResult::Failed(prohibited));
    }
}
