//! Sockets as a check's target wants them, and what their errors say of the server.
//!
//! Runs once for each attempt of a probe, on the runtime of health. A socket is made for one attempt and goes with it:
//! nothing that was waited for in vain can be taken for an answer later. What speaks of the server and what of this
//! machine is decided here for all probes, as keepalived decides it (section 4.3 of its behaviour). Cost: four to eight
//! system calls. Not here: what is said over them.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};
use xvs_model::check::Target;

use crate::probe_result::ProbeResult;

/// A TCP connection to the target.
///
/// # Errors
///
/// The answer that it is not to be had.
pub(super) async fn connect(target: &Target, deadline: Instant) -> Result<TcpStream, ProbeResult> {
    let peer = target.endpoint;
    let within = within(deadline);
    let socket = open(target, Type::STREAM, None)?;
    let begun = begin(&socket, target);
    let stream = begun.and_then(|()| TcpStream::from_std(socket.into()));
    let stream = stream.map_err(|error| at_once(&error, peer))?;
    match timeout_at(deadline, stream.writable()).await {
        Err(_) => return Err(ProbeResult::Failed(format!("no connection to {peer} {within}"))),
        Ok(waited) => waited.map_err(|error| at_once(&error, peer))?,
    }
    match stream.take_error().unwrap_or_else(Some) {
        None => Ok(stream),
        Some(error) => Err(answer(&error, "", peer)),
    }
}

/// Begins the handshake.
fn begin(socket: &Socket, target: &Target) -> io::Result<()> {
    bind(socket, target)?;
    match socket.connect(&target.endpoint.into()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INPROGRESS) => Ok(()),
        begun => begun,
    }
}

/// A socket without connections that has sent a datagram to the target and takes those of the target alone.
///
/// It is a `UdpSocket` to tokio also where its protocol is another: both come from the same calls.
pub(super) fn sent(datagram: &[u8], socket: Socket, target: &Target) -> io::Result<UdpSocket> {
    bind(&socket, target)?;
    socket.connect(&target.endpoint.into())?;
    socket.send(datagram)?;
    UdpSocket::from_std(socket.into())
}

/// A socket by the target's interface and with its mark, that never blocks.
///
/// # Errors
///
/// The answer that there is none, which says nothing of the server.
pub(super) fn open(target: &Target, kind: Type, protocol: Option<Protocol>) -> Result<Socket, ProbeResult> {
    let unasked = |what: String| move |error| ProbeResult::NotRun(format!("{what}: {error}"));
    let opened = Socket::new(Domain::for_address(target.endpoint), kind.nonblocking(), protocol);
    let socket = opened.map_err(unasked("no socket".to_owned()))?;
    if let Some(interface) = &target.interface {
        let what = format!("no socket by interface {interface}");
        socket.bind_device(Some(interface.as_bytes())).map_err(unasked(what))?;
    }
    if target.mark != 0 {
        socket.set_mark(target.mark).map_err(unasked(format!("no socket with mark {}", target.mark)))?;
    }
    if kind == Type::DGRAM {
        // Without it the kernel keeps to itself that a host is not there.
        let set = match target.endpoint {
            SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
            SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
        };
        set.map_err(|error| unasked("no socket that hears ICMP".to_owned())(error.into()))?;
    }
    Ok(socket)
}

/// Gives a socket the address and the port that the target is asked from, if they are said.
fn bind(socket: &Socket, target: &Target) -> io::Result<()> {
    if target.source.is_none() && target.source_port.is_none() {
        return Ok(());
    }
    let any = match target.endpoint {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let own = SocketAddr::new(target.source.unwrap_or(any), target.source_port.unwrap_or(0));
    // Several checks may have one port.
    socket.set_reuse_address(true)?;
    socket.bind(&own.into())
}

/// What an error says that came while the server was waited for; `far` says how far it had come, and may be empty.
pub(super) fn answer(error: &io::Error, far: &str, peer: impl Display) -> ProbeResult {
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
        // A firewall on the way, by ICMPv6.
        Some(Errno::ACCESS) => "prohibited by a firewall:",
        _ => return ProbeResult::NotRun(format!("{peer} could not be asked: {error}")),
    };
    let colon = if far.is_empty() { "" } else { ": " };
    ProbeResult::Failed(format!("{far}{colon}{what} {peer}"))
}

/// What an error says of a call that has waited for nothing: as [`answer`], but what is prohibited is so by this machine.
pub(super) fn at_once(error: &io::Error, peer: impl Display) -> ProbeResult {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS) => ProbeResult::NotRun(format!("{peer} could not be asked: {error}")),
        _ => answer(error, "", peer),
    }
}

/// How long is left until a deadline, in words.
pub(super) fn within(deadline: Instant) -> String {
    let left = deadline.saturating_duration_since(Instant::now());
    format!("within {:?}", Duration::from_millis((left.as_micros() as u64).div_ceil(1000)))
}

#[cfg(test)]
pub(super) mod testing {
    use std::net::SocketAddr;
    use std::time::Duration;

    use tokio::time::Instant;

    use crate::socket::Target;

    /// A server that is asked from anywhere.
    pub(crate) fn target(endpoint: SocketAddr) -> Target {
        Target { endpoint, source: None, source_port: None, interface: None, mark: 0 }
    }

    /// As long as a check has if nothing is said. It is only waited for where the clock stands still.
    pub(crate) fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use crate::socket::testing::{soon, target};
    use crate::socket::*;

    #[tokio::test]
    async fn a_connection_comes_from_the_address_and_port_that_are_said_and_again_at_once() {
        for own in ["127.0.0.5:0", "[::1]:0"] {
            let mut own: SocketAddr = own.parse().unwrap();
            let listener = TcpListener::bind(SocketAddr::new(own.ip(), 0)).unwrap();
            // A port that is free.
            own.set_port(TcpListener::bind(own).unwrap().local_addr().unwrap().port());
            let source = (Some(own.ip()), Some(own.port()));
            let target =
                Target { source: source.0, source_port: source.1, ..target(listener.local_addr().unwrap()) };
            for _ in 0..3 {
                connect(&target, soon()).await.unwrap();
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
    async fn an_interface_or_an_address_that_is_not_here_says_nothing_of_the_server() {
        let here = target("127.0.0.1:80".parse().unwrap());
        let no_interface = Target { interface: Some("nosuch0".to_owned()), ..here.clone() };
        let why = "no socket by interface nosuch0: No such device (os error 19)".to_owned();
        assert_eq!(connect(&no_interface, soon()).await.unwrap_err(), ProbeResult::NotRun(why));
        let no_address = Target { source: Some("192.0.2.7".parse().unwrap()), ..here };
        let why = "127.0.0.1:80 could not be asked: Cannot assign requested address (os error 99)".to_owned();
        assert_eq!(connect(&no_address, soon()).await.unwrap_err(), ProbeResult::NotRun(why));
    }

    #[test]
    fn what_comes_from_the_network_is_the_servers_and_what_does_not_is_ours() {
        let peer = "10.1.0.1:80";
        let unwell = [
            (Errno::CONNREFUSED, "connection refused by 10.1.0.1:80"),
            (Errno::CONNRESET, "connection reset by 10.1.0.1:80"),
            (Errno::CONNABORTED, "connection aborted by 10.1.0.1:80"),
            (Errno::TIMEDOUT, "connection timed out: 10.1.0.1:80"),
            (Errno::HOSTUNREACH, "host unreachable: 10.1.0.1:80"),
            (Errno::HOSTDOWN, "host down: 10.1.0.1:80"),
            (Errno::NETUNREACH, "network unreachable: 10.1.0.1:80"),
            (Errno::NETDOWN, "network down: 10.1.0.1:80"),
        ];
        for (errno, words) in unwell {
            let wanted = ProbeResult::Failed(words.to_owned());
            assert_eq!(at_once(&errno.into(), peer), wanted);
            assert_eq!(answer(&errno.into(), "", peer), wanted);
        }
        for errno in [Errno::ADDRNOTAVAIL, Errno::INVAL, Errno::MFILE, Errno::PERM, Errno::NOBUFS] {
            assert!(matches!(at_once(&errno.into(), peer), ProbeResult::NotRun(_)), "{errno}");
            assert!(matches!(answer(&errno.into(), "", peer), ProbeResult::NotRun(_)), "{errno}");
        }
        let prohibited = "connected: prohibited by a firewall: 10.1.0.1:80".to_owned();
        assert_eq!(answer(&Errno::ACCESS.into(), "connected", peer), ProbeResult::Failed(prohibited));
        assert!(matches!(at_once(&Errno::ACCESS.into(), peer), ProbeResult::NotRun(_)));
    }
}
