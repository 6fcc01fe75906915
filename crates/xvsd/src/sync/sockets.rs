//! The sockets of the daemons: UDP for messages, to a group or to peers, and TCP for tables.
//!
//! Source: ipvs-behaviour, section 12.1.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use std::{fs, io};

use nix::ifaddrs::getifaddrs;
use rustix::fs::fstat;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use socket2::{Domain, SockRef, Socket, Type};
use xvs_model::config::sync_daemon::SyncDaemon;

use xvs_ctl::control::datapath::SyncSockets;

use super::error::SyncError;

/// For each port sockets that are connected to the daemon's group or each to a peer, with the address of its interface
/// as source.
pub(super) fn sending(daemon: &SyncDaemon, sockets: SyncSockets) -> Result<Vec<Vec<UdpSocket>>, SyncError> {
    let source = match source(daemon) {
        Ok(Some(source)) => source,
        Ok(None) => {
            let family = if daemon.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(SyncError::NoAddress { interface: daemon.interface.clone(), family });
        }
        Err(error) => return Err(SyncError::Addresses { interface: daemon.interface.clone(), error }),
    };
    let mut all = Vec::new();
    for number in 0..sockets.ports {
        let mut of_port = Vec::new();
        for &to in daemon.destinations() {
            of_port.push(sending_to(daemon, to, source, number, sockets).map_err(|error| {
                SyncError::Destination { interface: daemon.interface.clone(), to, error }
            })?);
        }
        all.push(of_port);
    }
    Ok(all)
}

fn sending_to(
    daemon: &SyncDaemon,
    to: IpAddr,
    source: Source,
    number: u16,
    sockets: SyncSockets,
) -> io::Result<UdpSocket> {
    let socket = match daemon.peers.is_empty() {
        true => to_group(daemon, to, source, number)?,
        false => to_peer(daemon, to, source, number)?,
    };
    if sockets.buffer_bytes != 0 {
        sockopt::set_socket_send_buffer_size(&socket, sockets.buffer_bytes as usize)?;
    }
    // The thread keeps a message for which there is no room, and tries again.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn to_peer(daemon: &SyncDaemon, peer: IpAddr, source: Source, number: u16) -> io::Result<UdpSocket> {
    let SyncDaemon { interface, port, ttl, .. } = daemon;
    let socket = UdpSocket::bind((source.address, 0))?;
    SockRef::from(&socket).bind_device(Some(interface.as_bytes()))?;
    if peer.is_ipv4() {
        sockopt::set_ip_ttl(&socket, (*ttl).into())?;
        sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
    } else {
        sockopt::set_ipv6_unicast_hops(&socket, Some(*ttl))?;
        sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
    }
    socket.connect((peer, port.saturating_add(number)))?;
    Ok(socket)
}

fn to_group(daemon: &SyncDaemon, group: IpAddr, source: Source, number: u16) -> io::Result<UdpSocket> {
    let SyncDaemon { port, ttl, .. } = daemon;
    let port = port.saturating_add(number);
    let Source { address, index } = source;
    let socket = UdpSocket::bind(match address {
        IpAddr::V4(address) => SocketAddr::new(address.into(), 0),
        IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, index).into(),
    })?;
    match group {
        IpAddr::V4(group) => {
            sockopt::set_ip_multicast_if_with_ifindex(&socket, &group, &Ipv4Addr::UNSPECIFIED, index)?;
            sockopt::set_ip_multicast_ttl(&socket, (*ttl).into())?;
            sockopt::set_ip_multicast_loop(&socket, false)?;
            sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
            socket.connect((group, port))?;
        }
        IpAddr::V6(group) => {
            sockopt::set_ipv6_multicast_if(&socket, index)?;
            sockopt::set_ipv6_multicast_hops(&socket, (*ttl).into())?;
            sockopt::set_ipv6_multicast_loop(&socket, false)?;
            sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
            socket.connect(SocketAddrV6::new(group, port, 0, index))?;
        }
    }
    Ok(socket)
}

/// One socket for each port. It receives on the daemon's interface the messages to the daemon's group, or with peers
/// the messages to an address of this machine.
pub(super) fn receiving(daemon: &SyncDaemon, sockets: SyncSockets) -> Result<Vec<UdpSocket>, SyncError> {
    (0..sockets.ports).map(|number| of_port(daemon, sockets, number)).collect::<io::Result<_>>().map_err(
        |error| {
            let SyncDaemon { interface, port, .. } = daemon;
            SyncError::Port { interface: interface.clone(), port: *port, error }
        },
    )
}

fn of_port(daemon: &SyncDaemon, sockets: SyncSockets, number: u16) -> io::Result<UdpSocket> {
    let SyncDaemon { interface, group, port, .. } = daemon;
    let port = port.saturating_add(number);
    let family = if daemon.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = UdpSocket::from(socket_with(family, SocketType::DGRAM, flags, None)?);
    sockopt::set_socket_reuseaddr(&socket, true)?;
    SockRef::from(&socket).bind_device(Some(interface.as_bytes()))?;
    let index = name_to_index(&socket, interface)?;
    match group {
        _ if !daemon.peers.is_empty() => {
            if !daemon.is_ipv4() {
                sockopt::set_ipv6_v6only(&socket, true)?;
            }
            bind(&socket, &SocketAddr::new(any(daemon), port))?;
        }
        IpAddr::V4(group) => {
            bind(&socket, &SocketAddr::from((*group, port)))?;
            sockopt::set_ip_add_membership_with_ifindex(&socket, group, &Ipv4Addr::UNSPECIFIED, index)?;
        }
        IpAddr::V6(group) => {
            bind(&socket, &SocketAddrV6::new(*group, port, 0, index))?;
            sockopt::set_ipv6_add_membership(&socket, group, index)?;
        }
    }
    match sockets.buffer_bytes as usize {
        // Without the right to exceed the system's limit, it has as much as that permits.
        0 if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err() => {
            sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)?;
        }
        0 => {}
        bytes => sockopt::set_socket_recv_buffer_size(&socket, bytes)?,
    }
    Ok(socket)
}

/// The listener for directors that fetch the table: the daemon's port in TCP, on its interface alone.
pub(super) fn for_table(daemon: &SyncDaemon) -> Result<TcpListener, SyncError> {
    listen(daemon).map_err(|error| {
        let SyncDaemon { interface, port, .. } = daemon;
        SyncError::TablePort { interface: interface.clone(), port: *port, error }
    })
}

fn listen(daemon: &SyncDaemon) -> io::Result<TcpListener> {
    let any = any(daemon);
    let socket = tcp(any, &daemon.interface)?;
    socket.set_reuse_address(true)?;
    // While xvsd takes over, its predecessor has the port, too.
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(any, daemon.port).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A connection to the port of another director for its table, through this interface.
pub(super) fn connect(to: SocketAddr, interface: &str, patience: Duration) -> io::Result<TcpStream> {
    let socket = tcp(to.ip(), interface)?;
    socket.connect_timeout(&to.into(), patience)?;
    Ok(socket.into())
}

fn tcp(family: IpAddr, interface: &str) -> io::Result<Socket> {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    Ok(socket)
}

/// Each address of the daemon's family.
fn any(daemon: &SyncDaemon) -> IpAddr {
    if daemon.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// The messages for this socket that the kernel has discarded, because they came faster than they were read.
pub(super) fn discarded(socket: &UdpSocket) -> io::Result<u64> {
    let inode = fstat(socket)?.st_ino.to_string();
    let file = match socket.local_addr()? {
        SocketAddr::V4(_) => "/proc/thread-self/net/udp",
        SocketAddr::V6(_) => "/proc/thread-self/net/udp6",
    };
    fs::read_to_string(file)?
        .lines()
        .find(|line| line.split_whitespace().nth(INODE) == Some(&inode))
        .and_then(|line| line.split_whitespace().nth(DISCARDED)?.parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not list the socket"))
}

/// The default size of a backup's receive buffer. The kernel doubles it, to room for about 1,800 messages; 20,000 new
/// connections a second need a thousand messages a second. The system's default has room for 90, so a thread that waits
/// for a core for a tenth of a second would lose some.
const RECEIVE_BUFFER_BYTES: usize = 2 << 20;
/// The fields of a line of `/proc/net/udp`.
const INODE: usize = 9;
const DISCARDED: usize = 12;
/// The directors that may wait for the table.
const BACKLOG: i32 = 16;

/// The source of messages.
#[derive(Clone, Copy)]
struct Source {
    address: IpAddr,
    /// The index of the interface.
    index: u32,
}

/// The first address of a daemon's interface that fits its messages. The kernel lists link-local addresses of IPv6
/// last; messages to peers never come from these.
fn source(daemon: &SyncDaemon) -> io::Result<Option<Source>> {
    let interface = daemon.interface.as_str();
    let index = name_to_index(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, interface)?;
    let address = getifaddrs()?
        .filter(|one| one.interface_name == interface)
        .filter_map(|one| one.address)
        .filter_map(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::from(v4.ip())),
            (_, Some(v6)) => Some(IpAddr::from(v6.ip())),
            _ => None,
        })
        .find(|address| match address {
            IpAddr::V4(_) => daemon.is_ipv4(),
            IpAddr::V6(v6) => !daemon.is_ipv4() && (daemon.peers.is_empty() || !v6.is_unicast_link_local()),
        });
    Ok(address.map(|address| Source { address, index }))
}

#[cfg(test)]
mod tests {
    use xvs_model::config::sync_daemon::SyncRole;

    use super::*;

    #[test]
    fn a_backup_keeps_the_messages_of_a_second_until_its_thread_reads_them() {
        let address = Ipv4Addr::LOCALHOST;
        let port = UdpSocket::bind((address, 0)).unwrap().local_addr().unwrap().port();
        let daemon = SyncDaemon {
            role: SyncRole::Backup,
            interface: "lo".to_owned(),
            sync_id: 7,
            max_len_bytes: 1472,
            group: Ipv4Addr::new(224, 0, 0, 81).into(),
            port,
            ttl: 1,
            peers: vec![address.into()],
        };
        let socket = receiving(&daemon, SyncSockets { ports: 1, buffer_bytes: 0 }).unwrap().remove(0);
        let sender = UdpSocket::bind((address, 0)).unwrap();
        let message = [0; 1472];
        (0..1000).for_each(|_| _ = sender.send_to(&message, (address, port)).unwrap());
        let read = std::iter::from_fn(|| socket.recv(&mut [0; 1472]).ok()).count();
        assert_eq!((read, discarded(&socket).unwrap()), (1000, 0));
    }

    #[test]
    fn messages_that_a_full_socket_discards_are_counted() {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sockopt::set_socket_recv_buffer_size(&socket, 0).unwrap();
        assert_eq!(discarded(&socket).unwrap(), 0);
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for _ in 0..1000 {
            sender.send_to(&[0; 1000], socket.local_addr().unwrap()).unwrap();
        }
        socket.set_nonblocking(true).unwrap();
        let mut read = 0;
        while socket.recv(&mut [0; 1000]).is_ok() {
            read += 1;
        }
        assert!(read > 0);
        assert_eq!(discarded(&socket).unwrap(), 1000 - read);
    }
}
