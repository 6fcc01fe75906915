//! The multicast sockets of the daemons.
//!
//! Source: ipvs-behaviour, section 12.1.

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::BindToDevice;
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
use xvs_model::config::sync_daemon::SyncDaemon;

use crate::control::datapath::SyncSockets;

/// One socket for each port, connected to the daemon's group, with the address of its interface as source.
///
/// # Errors
/// A sentence that names what the kernel refuses.
pub(super) fn to_group(daemon: &SyncDaemon, sockets: SyncSockets) -> Result<Vec<UdpSocket>, String> {
    let SyncDaemon { interface, group, .. } = daemon;
    let source = source(interface, *group)
        .map_err(|error| format!("the addresses of {interface} cannot be read: {error}"))?
        .ok_or_else(|| {
            let family = if group.is_ipv4() { "IPv4" } else { "IPv6" };
            format!(
                "{interface} has no {family} address; add one (`ip address add`), or choose another interface"
            )
        })?;
    let open = |number| socket(daemon, sockets, source, number);
    let refused = |error| format!("{interface}: the socket to {group} cannot be opened: {error}");
    (0..sockets.ports).map(open).collect::<io::Result<_>>().map_err(refused)
}

fn socket(daemon: &SyncDaemon, sockets: SyncSockets, source: Source, number: u16) -> io::Result<UdpSocket> {
    let SyncDaemon { group, port, ttl, .. } = daemon;
    let port = port.saturating_add(number);
    let Source { address, index } = source;
    let socket = UdpSocket::bind(match address {
        IpAddr::V4(address) => SocketAddr::new(address.into(), 0),
        IpAddr::V6(address) => SocketAddrV6::new(address, 0, 0, index).into(),
    })?;
    match group {
        IpAddr::V4(group) => {
            sockopt::set_ip_multicast_if_with_ifindex(&socket, group, &Ipv4Addr::UNSPECIFIED, index)?;
            sockopt::set_ip_multicast_ttl(&socket, (*ttl).into())?;
            sockopt::set_ip_multicast_loop(&socket, false)?;
            sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DONT)?;
            socket.connect((*group, port))?;
        }
        IpAddr::V6(group) => {
            sockopt::set_ipv6_multicast_if(&socket, index)?;
            sockopt::set_ipv6_multicast_hops(&socket, (*ttl).into())?;
            sockopt::set_ipv6_multicast_loop(&socket, false)?;
            sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DONT)?;
            socket.connect(SocketAddrV6::new(*group, port, 0, index))?;
        }
    }
    if sockets.buffer_bytes != 0 {
        sockopt::set_socket_send_buffer_size(&socket, sockets.buffer_bytes as usize)?;
    }
    // The thread keeps a message for which there is no room, and tries again.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// One socket for each port that receives what is sent to the daemon's group on its interface, and nothing else.
///
/// # Errors
/// A sentence that names what the kernel refuses.
pub(super) fn of_group(daemon: &SyncDaemon, sockets: SyncSockets) -> Result<Vec<UdpSocket>, String> {
    let SyncDaemon { interface, group, .. } = daemon;
    let open = |number| receiving(daemon, sockets, number);
    let refused = |error| format!("{interface}: the socket of {group} cannot be opened: {error}");
    (0..sockets.ports).map(open).collect::<io::Result<_>>().map_err(refused)
}

fn receiving(daemon: &SyncDaemon, sockets: SyncSockets, number: u16) -> io::Result<UdpSocket> {
    let SyncDaemon { interface, group, port, .. } = daemon;
    let port = port.saturating_add(number);
    let family = if group.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = UdpSocket::from(socket_with(family, SocketType::DGRAM, flags, None)?);
    sockopt::set_socket_reuseaddr(&socket, true)?;
    setsockopt(&socket, BindToDevice, &OsString::from(interface))?;
    let index = name_to_index(&socket, interface)?;
    match group {
        IpAddr::V4(group) => {
            bind(&socket, &SocketAddr::from((*group, port)))?;
            sockopt::set_ip_add_membership_with_ifindex(&socket, group, &Ipv4Addr::UNSPECIFIED, index)?;
        }
        IpAddr::V6(group) => {
            bind(&socket, &SocketAddrV6::new(*group, port, 0, index))?;
            sockopt::set_ipv6_add_membership(&socket, group, index)?;
        }
    }
    if sockets.buffer_bytes != 0 {
        sockopt::set_socket_recv_buffer_size(&socket, sockets.buffer_bytes as usize)?;
    }
    Ok(socket)
}

/// The source of messages.
#[derive(Clone, Copy)]
struct Source {
    address: IpAddr,
    /// The index of the interface.
    index: u32,
}

/// The first address of an interface that fits a group: the kernel lists link-local ones of IPv6 last.
fn source(interface: &str, group: IpAddr) -> io::Result<Option<Source>> {
    let any = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let index = name_to_index(any, interface)?;
    let all = getifaddrs()?.filter(|one| one.interface_name == interface);
    let addresses = all.filter_map(|one| {
        let address = one.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    let mut fitting = addresses.filter(|address| address.is_ipv4() == group.is_ipv4());
    Ok(fitting.next().map(|address| Source { address, index }))
}
