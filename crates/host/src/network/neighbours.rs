//! Entering destinations and gateways as neighbours that the kernel keeps resolved.
//!
//! A worker never sends ARP or neighbour solicitations; it needs the link address to be there. [`Neighbours`]
//! therefore enters those it is told of as *managed* neighbours (ip-neighbour(8)), which the kernel probes by
//! itself as long as they exist. A kernel before 5.16 does not know that word and resolves the address once:
//! calling [`Neighbours::manage`] again, as is done at each change of the network, then renews it. Entries that
//! an operator made permanent are left alone. Those entered here go when no longer wanted, and on drop; they carry a
//! number of ours, by which those of a director that was killed are known again.

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

/// The neighbours that this process has entered.
#[derive(Debug)]
pub struct Neighbours {
    netlink: Netlink,
    entered: BTreeSet<(u32, IpAddr)>,
}

/// Neighbours that could not be entered; the others were.
#[derive(Debug)]
pub struct Refused {
    /// How many; at least one.
    pub count: usize,
    /// The first one's interface, by name if it has one.
    pub interface: String,
    /// The first one's address.
    pub addr: IpAddr,
    /// The kernel's reason for the first one.
    pub error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, interface, addr, error } = self;
        match count {
            1 => write!(f, "neighbour {addr} on {interface} cannot be entered: {error}")?,
            _ => write!(f, "{count} neighbours cannot be entered, the first {addr} on {interface}: {error}")?,
        }
        if is_table_full(error) {
            let family = if addr.is_ipv4() { "ipv4" } else { "ipv6" };
            write!(f, "; raise net.{family}.neigh.default.gc_thresh3")?;
        }
        Ok(())
    }
}

/// What the kernel says when it has as many neighbours as `gc_thresh3` (`net/core/neighbour.c`, `neigh_add`).
fn is_table_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error())
}

impl Neighbours {
    /// Works in the network namespace of the calling thread.
    ///
    /// Those that a director which was killed has left on these interfaces, given by index, count as entered by this
    /// one. Costs one dump of the neighbours.
    pub fn open(links: &[u32]) -> io::Result<Self> {
        let mut netlink = Netlink::open()?;
        let present = tables::neighbours(&mut netlink)?;
        let left =
            present.iter().filter(|entry| entry.protocol == PROTOCOL && links.contains(&entry.ifindex));
        let entered = left.map(|entry| (entry.ifindex, entry.addr)).collect();
        Ok(Self { netlink, entered })
    }

    /// Sees to it that exactly these, by interface index and address, are kept resolved on our account.
    ///
    /// To be called when the wanted ones change, and when the network did: the kernel forgets a neighbour when its
    /// link goes down. Costs one dump of the neighbours, and one request for each that is missing. Those that the
    /// kernel refuses are told of, and tried again at the next call; an error is a dump that failed.
    pub fn manage(&mut self, wanted: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        let unwanted: Vec<_> = self.entered.difference(wanted).copied().collect();
        for neighbour in unwanted {
            self.remove(neighbour);
        }
        self.enter_missing(wanted, NeighbourExtFlags::Managed)
    }

    /// Has the kernel resolve these once, now, where it has not. Costs and errors are those of [`Self::manage`].
    pub fn resolve(&mut self, asked: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        self.enter_missing(asked, NeighbourExtFlags::empty())
    }

    /// Enters those that nobody keeps: entering another again would take away that it is permanent, or managed.
    fn enter_missing(
        &mut self,
        asked: &BTreeSet<(u32, IpAddr)>,
        kept: NeighbourExtFlags,
    ) -> io::Result<Option<Refused>> {
        let present = tables::neighbours(&mut self.netlink)?;
        let key = |entry: &NeighbourEntry| ((entry.ifindex, entry.addr), entry.upkeep);
        let present: BTreeMap<_, _> = present.iter().map(key).collect();
        let on_demand = |key| present.get(key).is_none_or(|upkeep| *upkeep == Upkeep::OnDemand);
        let mut missing = asked.iter().filter(|key| on_demand(key));
        let mut refused: Option<Refused> = None;
        while let Some(&(ifindex, addr)) = missing.next() {
            let Err(error) = self.enter(ifindex, addr, kept) else { continue };
            // Asked for each of the others, a kernel whose table is full would look through all of it each time.
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

    /// `NTF_USE` has every kernel resolve it at once; one that does not know `kept` ignores that.
    fn enter(&mut self, ifindex: u32, addr: IpAddr, kept: NeighbourExtFlags) -> io::Result<()> {
        let mut message = message(ifindex, addr);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        if !kept.is_empty() {
            message.attributes.push(NeighbourAttribute::ExtFlags(kept));
            message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        }
        self.netlink.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)?;
        if !kept.is_empty() {
            self.entered.insert((ifindex, addr));
        }
        Ok(())
    }

    /// Removes one; that it is gone already, or its link, is as good.
    fn remove(&mut self, (ifindex, addr): (u32, IpAddr)) {
        self.entered.remove(&(ifindex, addr));
        let gone = self.netlink.change(RouteNetlinkMessage::DelNeighbour(message(ifindex, addr)), 0);
        if let Err(error) = gone {
            tracing::debug!("neighbour {addr} on interface {ifindex} was not removed: {error}");
        }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        while let Some(&neighbour) = self.entered.first() {
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

/// By whom our entries say that they were entered: the letter x, which `include/uapi/linux/rtnetlink.h` and
/// iproute2's `rt_protos` give to nobody.
const PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use crate::network::neighbours::*;

    #[test]
    fn refused_neighbours_are_one_line_with_their_number_the_first_and_what_to_raise() {
        let refused = |count, error: Errno| Refused {
            count,
            interface: "lan".to_owned(),
            addr: "192.0.2.7".parse().unwrap(),
            error: error.into(),
        };
        let full = refused(9000, Errno::NOBUFS).to_string();
        assert!(
            full.starts_with("9000 neighbours cannot be entered, the first 192.0.2.7 on lan: "),
            "{full}"
        );
        assert!(full.ends_with("; raise net.ipv4.neigh.default.gc_thresh3"), "{full}");
        let down = refused(1, Errno::NETDOWN).to_string();
        assert!(down.starts_with("neighbour 192.0.2.7 on lan cannot be entered: "), "{down}");
        assert!(!down.contains("gc_thresh3"), "{down}");
    }
}
