//! Adds destinations and gateways as neighbours that the kernel keeps resolved.
//!
//! A worker never sends ARP requests or neighbour solicitations; it needs the link addresses. [`Neighbours`] adds
//! managed neighbours (ip-neighbour(8)), which the kernel keeps resolved as long as they exist. A kernel before 5.16
//! does not have managed neighbours and resolves the address once; each call of [`Neighbours::manage`], at every change
//! of the network, renews it. Permanent entries of an operator are left unchanged. Entries of xvs are removed when they
//! are no longer needed, and on drop. Their protocol number identifies them after a director was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;

use crate::network::netlink::Netlink;
use crate::network::tables;
use crate::network::tables::{NeighbourEntry, Upkeep};

/// The neighbours that this process has added.
#[derive(Debug)]
pub struct Neighbours {
    netlink: Netlink,
    added: BTreeSet<(u32, IpAddr)>,
}

/// Neighbours that the kernel refused; the others were added.
#[derive(Debug)]
pub struct Refused {
    /// Their number, at least 1.
    pub count: usize,
    /// The interface of the first one: its name, or its index if it is gone.
    pub interface: String,
    /// The address of the first one.
    pub addr: IpAddr,
    /// The kernel's error for the first one.
    pub error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, interface, addr, error } = self;
        match count {
            1 => write!(f, "neighbour {addr} on {interface} cannot be added: {error}")?,
            _ => write!(f, "{count} neighbours cannot be added, the first {addr} on {interface}: {error}")?,
        }
        if is_table_full(error) {
            let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
            write!(f, "; raise net.{family}.neigh.default.gc_thresh3")?;
        }
        Ok(())
    }
}

/// Whether the kernel has as many neighbours as `gc_thresh3` allows (`net/core/neighbour.c`, `neigh_add`).
fn is_table_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}

impl Neighbours {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, added: BTreeSet::new() })
    }

    /// Treats the entries on these interfaces, given by index, that another director has left as added by this process.
    /// Cost: one dump of the neighbours.
    ///
    /// # Errors
    /// The dump failed.
    pub fn adopt(&mut self, links: &[u32]) -> io::Result<()> {
        let present = tables::neighbours(&mut self.netlink)?;
        let left =
            present.iter().filter(|entry| entry.protocol == PROTOCOL && links.contains(&entry.ifindex));
        self.added.extend(left.map(|entry| (entry.ifindex, entry.addr)));
        Ok(())
    }

    /// Adds and removes entries so that exactly these neighbours, by interface index and address, are managed for xvs.
    ///
    /// To be called when the set changes, and when the network changes: the kernel removes the neighbours of a link
    /// that goes down. Refused neighbours are returned, and tried again at the next call. Cost: one dump of the
    /// neighbours, and one request for each missing neighbour.
    ///
    /// # Errors
    /// The dump failed.
    pub fn manage(&mut self, wanted: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        let unwanted: Vec<_> = self.added.difference(wanted).copied().collect();
        for neighbour in unwanted {
            self.remove(neighbour);
        }
        self.add_missing(wanted, NeighbourExtFlags::Managed)
    }

    /// Makes the kernel resolve these neighbours once, unless they are resolved. Cost and errors as [`Self::manage`].
    pub fn resolve(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        self.add_missing(neighbours, NeighbourExtFlags::empty())
    }

    /// Adds neighbours that are neither managed nor permanent: adding these again would clear the flag.
    fn add_missing(
        &mut self,
        neighbours: &BTreeSet<(u32, IpAddr)>,
        flags: NeighbourExtFlags,
    ) -> io::Result<Option<Refused>> {
        let present = tables::neighbours(&mut self.netlink)?;
        let key = |entry: &NeighbourEntry| ((entry.ifindex, entry.addr), entry.upkeep);
        let present: BTreeMap<_, _> = present.iter().map(key).collect();
        let on_demand = |key| present.get(key).is_none_or(|upkeep| *upkeep == Upkeep::OnDemand);
        let mut missing = neighbours.iter().filter(|key| on_demand(key));
        let mut refused: Option<Refused> = None;
        while let Some(&(ifindex, addr)) = missing.next() {
            let Err(error) = self.add(ifindex, addr, flags) else { continue };
            // With a full table, the kernel searches the whole table for each request; the others are not tried.
            let others = if is_table_full(&error) { missing.by_ref().count() } else { 0 };
            let interface = || {
                let name = index_to_name(&self.netlink, ifindex);
                name.unwrap_or_else(|_| format!("interface {ifindex}, which is gone"))
            };
            let refused =
                refused.get_or_insert_with(|| Refused { count: 0, interface: interface(), addr, error });
            refused.count += 1 + others;
        }
        Ok(refused)
    }

    /// Adds a neighbour. `NTF_USE` makes the kernel resolve it at once. Older kernels ignore unknown `flags`.
    fn add(&mut self, ifindex: u32, addr: IpAddr, flags: NeighbourExtFlags) -> io::Result<()> {
        let mut message = message(ifindex, addr);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        if !flags.is_empty() {
            message.attributes.push(NeighbourAttribute::ExtFlags(flags));
            message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        }
        self.netlink.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)?;
        if !flags.is_empty() {
            self.added.insert((ifindex, addr));
        }
        Ok(())
    }

    /// Removes a neighbour; it is no error if the neighbour or its link is gone.
    fn remove(&mut self, (ifindex, addr): (u32, IpAddr)) {
        self.added.remove(&(ifindex, addr));
        let removed = self.netlink.change(RouteNetlinkMessage::DelNeighbour(message(ifindex, addr)), 0);
        if let Err(error) = removed {
            tracing::debug!("neighbour {addr} on interface {ifindex} was not removed: {error}");
        }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        while let Some(&neighbour) = self.added.first() {
            self.remove(neighbour);
        }
    }
}

fn message(ifindex: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(addr.into()));
    message
}

/// The protocol number of entries of xvs: the letter x, which `include/uapi/linux/rtnetlink.h` and iproute2's
/// `rt_protos` do not assign.
const PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use crate::network::neighbours::*;

    #[test]
    fn refused_neighbours_are_reported_in_one_line_with_their_number_the_first_one_and_the_sysctl_to_raise() {
        let refused = |count, error: Errno| Refused {
            count,
            interface: "lan".to_owned(),
            addr: "192.0.2.7".parse().unwrap(),
            error: error.into(),
        };
        let full = refused(9000, Errno::NOBUFS).to_string();
        assert!(full.starts_with("9000 neighbours cannot be added, the first 192.0.2.7 on lan: "), "{full}");
        assert!(full.ends_with("; raise net.ipv4.neigh.default.gc_thresh3"), "{full}");
        let down = refused(1, Errno::NETDOWN).to_string();
        assert!(down.starts_with("neighbour 192.0.2.7 on lan cannot be added: "), "{down}");
        assert!(!down.contains("gc_thresh3"), "{down}");
    }
}
