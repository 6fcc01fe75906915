//! Adds destinations and gateways as neighbours that the kernel keeps resolved.
//!
//! A worker never sends ARP requests or neighbour solicitations; it needs the link addresses. [`Neighbours`] adds
//! managed neighbours (ip-neighbour(8)), which the kernel keeps resolved as long as they exist. A kernel before 5.16
//! does not have managed neighbours and resolves the address once; each call of [`Neighbours::manage`], at every change
//! of the network, renews it. An operator's permanent entries are not changed. xvs's entries are removed when they are
//! no longer needed, and on drop. Their protocol number identifies them after a director was killed.

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
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};
use xvs_proto::MacAddr;

use crate::network::netlink::Netlink;
use crate::network::tables;
use crate::network::tables::{NeighbourEntry, Upkeep};

/// The neighbours that this process has added.
#[derive(Debug)]
pub struct Neighbours {
    netlink: Netlink,
    added: BTreeSet<Key>,
    /// The link addresses of managed neighbours at the last call.
    known: BTreeMap<Key, MacAddr>,
}

/// A neighbour: the index of its interface, and its address.
type Key = (u32, IpAddr);

/// The neighbours of one request.
const BATCH: usize = 1024;

/// Neighbours that the kernel refused; the others were added.
#[derive(Debug)]
pub struct Refused {
    /// Their number, at least 1.
    pub count: usize,
    /// The interface of the first refused neighbour: its name, or its index if it is gone.
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
        Ok(Self { netlink: Netlink::open()?, added: BTreeSet::new(), known: BTreeMap::new() })
    }

    /// Treats entries that another director left on these interfaces (by index) as added by this process. Cost: one
    /// dump.
    ///
    /// # Errors
    ///
    /// The dump failed.
    pub fn adopt(&mut self, links: &[u32]) -> io::Result<()> {
        for entry in tables::neighbours(&mut self.netlink)? {
            if entry.protocol == PROTOCOL && links.contains(&entry.ifindex) {
                self.added.insert((entry.ifindex, entry.addr));
            }
        }
        Ok(())
    }

    /// Adds and removes entries so that exactly these neighbours, by interface index and address, are managed for xvs.
    ///
    /// Must be called when the set changes, and when the network changes: the kernel removes the neighbours of a link
    /// that goes down, and notices a neighbour's new link address only when it is used, or up to five seconds later
    /// (`interval_probe_time_ms`). Refused neighbours are returned, and tried again at the next call. Cost: one dump of
    /// the neighbours, and one request for each missing neighbour.
    ///
    /// # Errors
    ///
    /// The dump failed, or there is no helper process that may add them.
    pub fn manage(&mut self, wanted: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        let unwanted: Vec<_> = self.added.difference(wanted).copied().collect();
        self.remove(&unwanted);
        self.add_missing(wanted, Upkeep::Managed)
    }

    /// Makes the kernel resolve these neighbours once, unless they are resolved. Cost and errors are those of
    /// [`Self::manage`].
    pub fn resolve(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) -> io::Result<Option<Refused>> {
        self.add_missing(neighbours, Upkeep::OnDemand)
    }

    /// Adds neighbours that are neither managed nor permanent: adding one of these again would clear the flag.
    fn add_missing(&mut self, neighbours: &BTreeSet<Key>, upkeep: Upkeep) -> io::Result<Option<Refused>> {
        let present: BTreeMap<_, _> = tables::neighbours(&mut self.netlink)?
            .into_iter()
            .map(|entry| ((entry.ifindex, entry.addr), entry))
            .collect();
        let missing: Vec<_> =
            neighbours.iter().filter(|key| self.is_missing(key, present.get(key), upkeep)).copied().collect();
        if upkeep == Upkeep::Managed {
            self.known = present
                .iter()
                .filter(|(key, _)| neighbours.contains(key))
                .filter_map(|(key, entry)| Some((*key, entry.mac?)))
                .collect();
        }
        let mut refused: Option<Refused> = None;
        for (number, batch) in missing.chunks(BATCH).enumerate() {
            let is_managed = upkeep == Upkeep::Managed;
            let change = ChangeNeighbours { add: batch.to_vec(), is_managed, remove: Vec::new() };
            let done = change.run(&[]);
            // Without an answer all of them may have been added.
            let refusals = done.as_ref().map(|(refusals, _)| &refusals[..]).unwrap_or_default();
            for (place, neighbour) in batch.iter().enumerate().filter(|_| is_managed) {
                if !refusals.iter().any(|(refused, _)| *refused == place) {
                    self.added.insert(*neighbour);
                }
            }
            let (refusals, _) = done?;
            let mut is_full = false;
            for (place, error) in refusals {
                let Some((ifindex, addr)) = batch.get(place) else { continue };
                let error = io::Error::from_raw_os_error(error);
                is_full |= is_table_full(&error);
                let refused = refused.get_or_insert_with(|| {
                    let interface = index_to_name(&self.netlink, *ifindex)
                        .unwrap_or_else(|_| format!("interface {ifindex}, which is gone"));
                    Refused { count: 0, interface, addr: *addr, error }
                });
                refused.count += 1;
            }
            if let Some(refused) = refused.as_mut().filter(|_| is_full) {
                refused.count += missing.len() - number * BATCH - batch.len();
                break;
            }
        }
        Ok(refused)
    }

    /// Whether a neighbour must be added. `present` is the kernel's entry.
    fn is_missing(&self, key: &Key, present: Option<&NeighbourEntry>, upkeep: Upkeep) -> bool {
        match present.map(|entry| (entry.upkeep, entry.mac)) {
            None | Some((Upkeep::OnDemand, _)) => true,
            // Adding an entry again makes the kernel use it.
            Some((Upkeep::Managed, Some(mac))) => {
                upkeep == Upkeep::Managed && self.known.get(key).is_some_and(|known| *known != mac)
            }
            Some(_) => false,
        }
    }

    /// Removes neighbours that this process has added. If the request fails as a whole, they still belong to this
    /// process.
    fn remove(&mut self, neighbours: &[Key]) {
        for batch in neighbours.chunks(BATCH) {
            let change = ChangeNeighbours { remove: batch.to_vec(), ..Default::default() };
            match change.run(&[]) {
                Ok(_) => batch.iter().for_each(|neighbour| _ = self.added.remove(neighbour)),
                Err(error) => tracing::warn!("{} neighbours were not removed: {error}", batch.len()),
            }
        }
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        let added: Vec<_> = self.added.iter().copied().collect();
        self.remove(&added);
    }
}

/// Removes and then adds neighbours in the calling thread's network namespace.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ChangeNeighbours {
    remove: Vec<Key>,
    add: Vec<Key>,
    /// Whether the kernel keeps the added neighbours resolved; otherwise it resolves them once.
    is_managed: bool,
}

impl Task for ChangeNeighbours {
    const NAME: &'static str = "change-neighbours";
    /// The neighbours in `add` that the kernel refused, by index, with the kernel's error number.
    type Done = Vec<(usize, i32)>;

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<Self::Done>> {
        let mut netlink = Netlink::open()?;
        // An attacker may control the requester: only entries with the protocol of xvs are removed.
        let present = if self.remove.is_empty() { Vec::new() } else { tables::neighbours(&mut netlink)? };
        let own: BTreeSet<Key> = present
            .iter()
            .filter(|entry| entry.protocol == PROTOCOL)
            .map(|entry| (entry.ifindex, entry.addr))
            .collect();
        for &(ifindex, addr) in self.remove.iter().filter(|key| own.contains(key)) {
            // It is not an error if the neighbour or its link is gone.
            if let Err(error) = netlink.change(RouteNetlinkMessage::DelNeighbour(message(ifindex, addr)), 0) {
                tracing::debug!("neighbour {addr} on interface {ifindex} was not removed: {error}");
            }
        }
        let mut refused = Vec::new();
        let mut places = self.add.iter().enumerate();
        while let Some((place, neighbour)) = places.next() {
            let Err(error) = self.add(&mut netlink, *neighbour) else { continue };
            let number = error.raw_os_error().unwrap_or(Errno::IO.raw_os_error());
            refused.push((place, number));
            // With a full table, the kernel searches the whole table for each request; the others are not tried.
            if is_table_full(&error) {
                refused.extend(places.by_ref().map(|(place, _)| (place, number)));
            }
        }
        Ok((refused, Vec::new()))
    }
}

impl ChangeNeighbours {
    /// Adds a neighbour. `NTF_USE` makes the kernel resolve it at once. Older kernels ignore unknown flags.
    fn add(&self, netlink: &mut Netlink, (ifindex, addr): Key) -> io::Result<()> {
        let mut message = message(ifindex, addr);
        message.header.state = NeighbourState::None;
        message.header.flags = NeighbourFlags::Use;
        if self.is_managed {
            message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
            message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        }
        netlink.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
    }
}

fn message(ifindex: u32, addr: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(addr.into()));
    message
}

/// The protocol number of xvs's entries: the letter x, which `include/uapi/linux/rtnetlink.h` and iproute2's
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
