//! Entering destinations and gateways as neighbours that the kernel keeps resolved.
//!
//! A worker never sends ARP or neighbour solicitations; it needs the link address to be there. [`Neighbours`]
//! therefore enters those it is told of as *managed* neighbours (ip-neighbour(8)), which the kernel probes by
//! itself as long as they exist. A kernel before 5.16 does not know that word and resolves the address once:
//! calling [`Neighbours::manage`] again, as is done at each change of the network, then renews it. Entries that
//! an operator made permanent are left alone. Those entered here go when no longer wanted, and on drop.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::tables::{self, Keeping};

/// The neighbours that this process has entered.
#[derive(Debug)]
pub struct Neighbours {
    netlink: Netlink,
    entered: BTreeSet<(u32, IpAddr)>,
}

/// A neighbour that could not be entered; the others were.
#[derive(Debug)]
pub struct Refused {
    /// The interface's index.
    pub ifindex: u32,
    /// The neighbour's address.
    pub addr: IpAddr,
    /// The kernel's reason.
    pub error: io::Error,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ifindex, addr, error } = self;
        write!(f, "neighbour {addr} on interface {ifindex} cannot be kept resolved: {error}")
    }
}

impl Neighbours {
    /// Works in the network namespace of the calling thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open()?, entered: BTreeSet::new() })
    }

    /// Sees to it that exactly these, by interface index and address, are kept resolved on our account.
    ///
    /// To be called when the wanted ones change, and when the network did: the kernel forgets a neighbour when its
    /// link goes down. Costs one dump of the neighbours, and one request for each that is missing. Those that the
    /// kernel refuses are returned and tried again at the next call; an error is a dump that failed.
    pub fn manage(&mut self, wanted: &BTreeSet<(u32, IpAddr)>) -> io::Result<Vec<Refused>> {
        let present = tables::neighbours(&mut self.netlink)?;
        let unwanted: Vec<_> = self.entered.difference(wanted).copied().collect();
        for neighbour in unwanted {
            self.remove(neighbour);
        }
        let mut refused = Vec::new();
        for &(ifindex, addr) in wanted {
            let entry = present.iter().find(|entry| (entry.ifindex, entry.addr) == (ifindex, addr));
            match entry.map_or(Keeping::OnDemand, |entry| entry.keeping) {
                Keeping::Permanent | Keeping::Managed => continue,
                Keeping::OnDemand => {}
            }
            match self.enter(ifindex, addr, NeighbourExtFlags::Managed) {
                Ok(()) => drop(self.entered.insert((ifindex, addr))),
                Err(error) => refused.push(Refused { ifindex, addr, error }),
            }
        }
        Ok(refused)
    }

    /// Has the kernel resolve an address once, now, if it has not.
    pub fn resolve(&mut self, ifindex: u32, addr: IpAddr) -> io::Result<()> {
        let present = tables::neighbours(&mut self.netlink)?;
        let known = present.iter().find(|entry| (entry.ifindex, entry.addr) == (ifindex, addr));
        match known {
            // Entering it again would take away that it is permanent, or managed.
            Some(entry) if entry.keeping != Keeping::OnDemand => Ok(()),
            _ => self.enter(ifindex, addr, NeighbourExtFlags::empty()),
        }
    }

    /// `NTF_USE` has every kernel resolve it at once; one that does not know `kept` ignores that.
    fn enter(&mut self, ifindex: u32, addr: IpAddr, kept: NeighbourExtFlags) -> io::Result<()> {
        let mut message = message(ifindex, addr);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        if !kept.is_empty() {
            message.attributes.push(NeighbourAttribute::ExtFlags(kept));
        }
        self.netlink.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
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
