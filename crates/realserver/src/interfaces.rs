//! Reads and changes this machine's interfaces and addresses over netlink.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use xvs_host::network::NetworkFollower;
use xvs_host::network::netlink::Netlink;
use xvs_proto::Prefix;
use xvs_proto::network::{Link, Network, RouteAction, Table};

use crate::record::Origin;

/// Maximum time until the kernel has the route to a new address. It waits for other changes of the network, which take
/// milliseconds.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The interfaces at one moment, and a socket to change them.
#[derive(Debug)]
pub(crate) struct Interfaces {
    network: Arc<Network>,
    netlink: Netlink,
}

/// The administrative state of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdminState {
    Up,
    Down,
}

impl Interfaces {
    pub(crate) fn read() -> io::Result<Self> {
        let network = Arc::clone(&NetworkFollower::open()?.view().network);
        Ok(Self { network, netlink: Netlink::open()? })
    }

    pub(crate) fn link(&self, name: &str) -> Option<&Link> {
        self.network.link_named(name)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.network.links.iter().map(|link| link.name.as_str()).collect()
    }

    /// The interface of the default route of the address's family.
    pub(crate) fn default_dev(&self, addr: IpAddr) -> Option<&str> {
        let action = self
            .network
            .routes
            .iter()
            .filter(|route| {
                route.table == Table::MAIN
                    && route.dest.is_default()
                    && route.dest.addr().is_ipv4() == addr.is_ipv4()
            })
            .min_by_key(|route| route.metric)
            .map(|route| &route.action);
        let Some(RouteAction::Unicast(hops)) = action else { return None };
        let ifindex = hops.first()?.ifindex;
        self.network.links.iter().find(|link| link.ifindex == ifindex).map(|link| link.name.as_str())
    }

    /// An interface other than `holders` that has this address.
    pub(crate) fn other_link_with(&self, addr: IpAddr, holders: &[&str]) -> Option<&Link> {
        self.network
            .links
            .iter()
            .filter(|link| !holders.contains(&link.name.as_str()))
            .find(|link| link.addresses.iter().any(|&(held, _)| held == addr))
    }

    /// The addresses of this machine that can be reached from other links.
    pub(crate) fn reachable(&self) -> impl Iterator<Item = IpAddr> {
        self.network.links.iter().flat_map(|link| &link.addresses).map(|&(addr, _)| addr).filter(|addr| {
            match addr {
                IpAddr::V4(v4) => !v4.is_loopback(),
                IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
            }
        })
    }

    /// Adds an address with a host prefix.
    pub(crate) fn add_address(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<Origin> {
        let mut message = address(ifindex, addr);
        // No neighbour is on this interface, so duplicate address detection (RFC 4862 §5.4) is not needed.
        message.header.flags |= AddressHeaderFlags::Nodad;
        match self.netlink.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) => Ok(Origin::Added),
            Err(error) if is(&error, Errno::EXIST) => Ok(Origin::Found),
            Err(error) => Err(error),
        }
    }

    /// Waits until packets to `addr` stay on this machine: the kernel adds the route to a new IPv6 address later, on a
    /// separate thread.
    pub(crate) fn wait_until_local(&mut self, addr: IpAddr) -> io::Result<()> {
        let end = Instant::now() + LONGEST_WAIT;
        let mut request = RouteMessage::default();
        request.header.address_family = family(addr);
        request.header.destination_prefix_length = Prefix::host(addr).len();
        request.attributes = vec![RouteAttribute::Destination(addr.into())];
        while Instant::now() < end {
            match self.netlink.get(RouteNetlinkMessage::GetRoute(request.clone())) {
                Ok(replies) if replies.iter().any(is_local) => return Ok(()),
                Ok(_) => {}
                Err(error) if is(&error, Errno::NETUNREACH) => {}
                Err(error) => return Err(error),
            }
            thread::sleep(Duration::from_millis(1));
        }
        Err(io::Error::other(format!(
            "the kernel has no route to it after {} seconds",
            LONGEST_WAIT.as_secs()
        )))
    }

    /// Removes an address; a missing address is not an error.
    pub(crate) fn remove_address(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<()> {
        match self.netlink.change(RouteNetlinkMessage::DelAddress(address(ifindex, addr)), 0) {
            Err(error) if !is(&error, Errno::ADDRNOTAVAIL) => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn set(&mut self, ifindex: u32, state: AdminState) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.header.change_mask = LinkFlags::Up;
        if state == AdminState::Up {
            message.header.flags = LinkFlags::Up;
        }
        self.netlink.change(RouteNetlinkMessage::SetLink(message), 0)
    }
}

fn address(ifindex: u32, addr: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    (message.header.family, message.header.prefix_len) = (family(addr), Prefix::host(addr).len());
    message.attributes = vec![AddressAttribute::Local(addr), AddressAttribute::Address(addr)];
    message
}

fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Whether a reply is the route of an address of this machine.
fn is_local(reply: &RouteNetlinkMessage) -> bool {
    matches!(reply, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The interface of the kernel's module `ipip`, which decapsulates tunnels from any sender.
pub(crate) const TUNL0: &str = "tunl0";
