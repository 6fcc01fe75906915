//! Follows the kernel's links, addresses, policy rules, routes and neighbours; adds neighbours.
//!
//! A [`NetworkFollower`] reads all tables once and then listens for events. The first neighbour event after a pause is
//! applied at once, so that a client's first reply finds the neighbour resolved. Other changes, and neighbour events
//! soon after the first, are collected for 10 ms and become one change. A new [`View`] is returned only if it differs
//! from the last one: a neighbour that goes stale and is confirmed with the same link address causes none. In the
//! daemon [`follow`] runs a follower on a separate thread, and [`Latest`] passes its views on. A follower belongs to
//! the network namespace of the thread that opened it.
//!
//! Cost: a neighbour event changes one entry. A change of links, addresses, rules or routes reads these tables again,
//! because the kernel does not announce routes that are removed with their link. Reading takes at most a fifth of the
//! time: with long tables, changes are collected for longer. If events were lost (`ENOBUFS`), all tables are read
//! again.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use xvs_proto::MacAddr;
use xvs_proto::network::{Link, Neighbour, Network, PolicyAction};

use crate::follower_thread::{FollowerThread, Stopper};
pub use crate::network::latest::{Latest, Slot};
use crate::network::netlink::Netlink;
use crate::network::nexthops::{RTM_DELNEXTHOP, RTM_NEWNEXTHOP};
use crate::network::tables::NeighbourEntry;
pub use crate::network::tables::path_mtu;
use crate::notice::Notice;

pub mod card;
pub mod clsact;
pub mod deferral;
mod latest;
pub mod neighbours;
pub mod netlink;
mod nexthops;
mod rules;
mod tables;

/// The network at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// Links, addresses, policy rules, routes and neighbours.
    pub network: Arc<Network>,
    /// Sentences for the operator: rules and routes of the kernel that xvs does not follow.
    pub warnings: Vec<Notice>,
}

/// Why [`NetworkFollower::next`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The network has changed; this is the new view.
    Changed(View),
    /// Nothing changed until the timeout.
    TimedOut,
    /// A [`Stopper`] was used.
    Stopped,
}

/// Follows the network by netlink events.
#[derive(Debug)]
pub struct NetworkFollower {
    events: Socket,
    requests: Netlink,
    stopper: Stopper,
    buffer: Vec<u8>,
    stale: Stale,
    neighbours: BTreeMap<(u32, IpAddr), MacAddr>,
    route_warnings: Vec<Notice>,
    rule_warnings: Vec<Notice>,
    view: View,
    /// The end of collecting events after the last reading.
    collected: Instant,
}

/// The tables in the follower's copy that may differ from the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stale {
    links: bool,
    routes: bool,
    rules: bool,
    /// Neighbour events have been lost; otherwise each is applied when it arrives.
    neighbours: bool,
    /// Neighbours have changed in the copy but not yet in the view.
    unpublished: bool,
}

/// The links in the calling thread's network namespace, with their addresses.
pub fn links() -> io::Result<Vec<Link>> {
    tables::links(&mut Netlink::open()?, &[])
}

impl NetworkFollower {
    /// Listens in the network namespace of the calling thread, then reads all tables.
    pub fn open() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, 0))?;
        events.set_non_blocking(true)?;
        // A larger buffer, so that events are rarely lost. The follower also works with the default size.
        if let Err(error) = events.set_rx_buf_sz(EVENT_BUFFER_BYTES) {
            tracing::debug!("the buffer of netlink events has the default size: {error}");
        }
        for group in GROUPS {
            events.add_membership(group)?;
        }
        let mut follower = Self {
            events,
            requests: Netlink::open()?,
            stopper: Stopper::open()?,
            buffer: Vec::with_capacity(netlink::BUFFER_BYTES),
            stale: Stale::EVERYTHING,
            neighbours: BTreeMap::new(),
            route_warnings: Vec::new(),
            rule_warnings: Vec::new(),
            view: View::default(),
            collected: Instant::now(),
        };
        follower.refresh()?;
        Ok(follower)
    }

    /// Waits for a change of the network, at most for `timeout` plus the time to collect events that arrive at its end.
    ///
    /// # Errors
    ///
    /// A system call failed; the next call tries again.
    pub fn next(&mut self, timeout: Duration) -> io::Result<Event> {
        let give_up = Instant::now() + timeout;
        // The kernel announces a link before it changes its routes, and does not announce these. Tables are therefore
        // never read at once.
        let mut tables_due = None;
        loop {
            let now = Instant::now();
            let until = match self.stale {
                Stale::NOTHING => give_up,
                Stale::NEIGHBOURS => self.collected,
                _ => *tables_due.get_or_insert(self.collected.max(now + COLLECT_AT_LEAST)),
            };
            if until <= now {
                tables_due = None;
                if self.stale == Stale::NOTHING {
                    return Ok(Event::TimedOut);
                }
                if self.refresh()? {
                    return Ok(Event::Changed(self.view.clone()));
                }
                continue;
            }
            match self.wait(until - now)? {
                Woken::Stopped => return Ok(Event::Stopped),
                Woken::TimedOut => {}
                Woken::Events => self.take_events()?,
            }
        }
    }

    /// The network as last returned, or as first read.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// A handle that ends the wait.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    fn wait(&self, at_most: Duration) -> io::Result<Woken> {
        let mut fds = [
            PollFd::from_borrowed_fd(rustix::fd::AsFd::as_fd(&self.events), PollFlags::IN),
            self.stopper.poll_fd(),
        ];
        let at_most = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut fds, Some(&at_most)) {
            Ok(_) if !fds[1].revents().is_empty() => Ok(Woken::Stopped),
            // Readable, or in error; the read returns the error.
            Ok(_) if !fds[0].revents().is_empty() => Ok(Woken::Events),
            Ok(_) | Err(Errno::INTR) => Ok(Woken::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads all events that have arrived.
    fn take_events(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.events.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    tracing::info!("network events of the kernel were lost; all tables are read again");
                    self.stale = Stale::EVERYTHING;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in netlink::messages(&self.buffer) {
                let Ok(header) = NetlinkBuffer::new_checked(message) else { continue };
                match header.message_type() {
                    // The VRFs decide which tables rules look up.
                    RTM_NEWLINK..=RTM_DELADDR => {
                        (self.stale.links, self.stale.rules, self.stale.routes) = (true, true, true);
                    }
                    RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.stale.routes = true,
                    // A rule may look up a table whose routes were not read.
                    RTM_NEWRULE | RTM_DELRULE => (self.stale.rules, self.stale.routes) = (true, true),
                    RTM_NEWNEIGH | RTM_DELNEIGH => {
                        let Some(entry) = neighbour_event(message) else { continue };
                        self.stale.unpublished |= apply(&mut self.neighbours, &entry);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reads the stale tables; returns whether the view has changed.
    fn refresh(&mut self) -> io::Result<bool> {
        let began = Instant::now();
        let mut network = (*self.view.network).clone();
        if self.stale.links {
            network.links = tables::links(&mut self.requests, &network.links)?;
        }
        if self.stale.rules {
            let read = rules::read(&mut self.requests, &network.links)?;
            (network.rules, network.policy_rule_marks) = (read.followed, read.marks);
            self.rule_warnings = read.warnings;
        }
        if self.stale.routes {
            let tables = network.rules.iter().filter_map(|rule| match rule.action {
                PolicyAction::Lookup(table) => Some(table),
                PolicyAction::Refuse => None,
            });
            (network.routes, self.route_warnings) =
                tables::routes(&mut self.requests, &tables.collect(), &network.links)?;
        }
        if self.stale.neighbours {
            self.neighbours.clear();
            for entry in tables::neighbours(&mut self.requests)? {
                apply(&mut self.neighbours, &entry);
            }
        }
        network.neighbours =
            self.neighbours.iter().map(|(&(ifindex, addr), &mac)| Neighbour { ifindex, addr, mac }).collect();
        self.stale = Stale::NOTHING;
        self.collected = collected(began, Instant::now());
        let warnings = [self.rule_warnings.as_slice(), &self.route_warnings].concat();
        let view = View { network: Arc::new(network), warnings };
        let changed = view != self.view;
        if changed {
            self.view = view;
        }
        Ok(changed)
    }
}

/// Follows the network in the calling thread's network namespace on a new thread.
///
/// `report` is called on that thread, first with the current network, then after each change. Later errors are logged,
/// and the call is repeated.
///
/// # Errors
///
/// The errors of [`NetworkFollower::open`] and of starting a thread.
pub fn follow(report: impl FnMut(View) + Send + 'static) -> io::Result<FollowerThread> {
    let follower = NetworkFollower::open()?;
    let stopper = follower.stopper();
    FollowerThread::start("xvs-network", "the kernel's network", stopper, move || run(follower, report))
}

/// Follows the network until the stop.
fn run(mut follower: NetworkFollower, mut report: impl FnMut(View)) {
    report(follower.view().clone());
    loop {
        match follower.next(LISTEN) {
            Ok(Event::Changed(view)) => report(view),
            Ok(Event::TimedOut) => {}
            Ok(Event::Stopped) => return,
            Err(error) => {
                tracing::warn!("following the kernel's network: {error}; all tables are read again");
                follower.stale = Stale::EVERYTHING;
                // A persistent error must not become a busy loop. A stop during the pause ends the next wait.
                thread::sleep(RETRY);
            }
        }
    }
}

impl Stale {
    const NOTHING: Self =
        Self { links: false, routes: false, rules: false, neighbours: false, unpublished: false };
    /// The copy is up to date, the view is not.
    const NEIGHBOURS: Self = Self { unpublished: true, ..Self::NOTHING };
    const EVERYTHING: Self =
        Self { links: true, routes: true, rules: true, neighbours: true, unpublished: true };
}

enum Woken {
    Events,
    Stopped,
    TimedOut,
}

/// The entry in a neighbour event; a removed neighbour has no link address.
fn neighbour_event(message: &[u8]) -> Option<NeighbourEntry> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) => {
            tables::neighbour(&message)
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelNeighbour(message)) => {
            tables::neighbour(&message).map(|entry| NeighbourEntry { mac: None, ..entry })
        }
        _ => None,
    }
}

/// The end of collecting events after a reading, so that reading takes at most a fifth of the time.
fn collected(began: Instant, ended: Instant) -> Instant {
    ended + COLLECT_AT_LEAST.max((ended - began) * 4)
}

/// Adds a resolved neighbour, or removes any other; returns whether the copy has changed.
fn apply(neighbours: &mut BTreeMap<(u32, IpAddr), MacAddr>, entry: &NeighbourEntry) -> bool {
    let key = (entry.ifindex, entry.addr);
    match entry.mac {
        Some(mac) => neighbours.insert(key, mac) != Some(mac),
        None => neighbours.remove(&key).is_some(),
    }
}

/// The minimum time of collecting events after a reading, so that a burst of events is one change.
const COLLECT_AT_LEAST: Duration = Duration::from_millis(10);
const LISTEN: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(1);
const EVENT_BUFFER_BYTES: u32 = 4 << 20;

/// `include/uapi/linux/rtnetlink.h`: `RTNLGRP_LINK`, `NEIGH`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`,
/// `IPV6_IFADDR`, `IPV6_ROUTE`, `IPV6_RULE`, `NEXTHOP`.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// Types of messages (same file); those for links and addresses form one range.
const RTM_NEWLINK: u16 = 16;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

#[cfg(test)]
mod tests {
    use crate::network::*;

    #[test]
    fn events_are_collected_for_ten_milliseconds_or_four_times_the_duration_of_the_last_reading() {
        let began = Instant::now();
        let after = |took, due| {
            let ended = began + Duration::from_millis(took);
            assert_eq!(collected(began, ended), ended + Duration::from_millis(due));
        };
        after(0, 10);
        after(2, 10);
        after(50, 200);
    }
}
