//! Follows the kernel's links, addresses, routes and neighbours, and enters the neighbours that we need.
//!
//! A [`NetworkFollower`] reads everything once and then listens. A neighbour after a quiet time is taken over at once,
//! so that a client's first reply finds it resolved; other changes, and neighbours that follow soon, are gathered for
//! 10 ms and become one. A new [`View`] is returned only if it differs, so a neighbour that goes stale and is
//! confirmed with the same link address makes no noise. The daemon runs it on a thread of its own by [`follow`] and
//! hands views over by [`Latest`]. It sees the network namespace of the thread that opened it.
//!
//! Cost: neighbour events are applied as they come; a change of links, addresses or routes re-reads those tables,
//! because the kernel announces no route that goes with its link. Reading takes at most a fifth of the time:
//! with long tables, changes are gathered for longer. If the kernel could not keep up telling (`ENOBUFS`),
//! everything is read anew. Not here: look-ups (`xvs_dataplane::egress::Egress`).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use xvs_proto::MacAddr;
use xvs_proto::network::{Neighbour, Network};

pub use crate::network::latest::{Latest, Slot};
use crate::network::netlink::Netlink;
use crate::network::tables::NeighbourEntry;
pub use crate::network::tables::path_mtu;

mod latest;
pub mod neighbours;
pub mod netlink;
mod rules;
mod tables;
pub mod veth;

/// The network at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// What forwarding depends on.
    pub network: Arc<Network>,
    /// Sentences for the operator: what the kernel has and xvs does not follow.
    pub warnings: Vec<String>,
}

/// Why [`NetworkFollower::next`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something that matters is different: this is all of it.
    Changed(View),
    /// Nothing happened for as long as it was told to wait.
    TimedOut,
    /// A [`Stopper`] was used.
    Stopped,
}

/// Listens to the kernel.
#[derive(Debug)]
pub struct NetworkFollower {
    events: Socket,
    questions: Netlink,
    stop: Arc<OwnedFd>,
    buffer: Vec<u8>,
    stale: Stale,
    neighbours: BTreeMap<(u32, IpAddr), MacAddr>,
    route_warnings: Vec<String>,
    rule_warnings: Vec<String>,
    view: View,
    /// Until when events are gathered, because of the last reading.
    gathered: Instant,
}

/// Ends a follower's wait from another thread, now and for ever.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<OwnedFd>);

/// What of our copy no longer is what the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stale {
    links: bool,
    routes: bool,
    rules: bool,
    /// Events have been lost; while they come in, they are applied as they do.
    neighbours: bool,
    /// Neighbours have changed in our copy and not yet in the view.
    unpublished: bool,
}

impl NetworkFollower {
    /// Begins to listen in the network namespace of the calling thread, then reads everything.
    pub fn open() -> io::Result<Self> {
        let mut events = Socket::new(NETLINK_ROUTE)?;
        events.bind(&SocketAddr::new(0, 0))?;
        events.set_non_blocking(true)?;
        // More room than usual, so that re-reading everything stays the exception; no matter if refused.
        if let Err(error) = events.set_rx_buf_sz(EVENT_ROOM_BYTES) {
            tracing::debug!("netlink events have the usual room only: {error}");
        }
        for group in GROUPS {
            events.add_membership(group)?;
        }
        let mut follower = Self {
            events,
            questions: Netlink::open()?,
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            buffer: Vec::with_capacity(netlink::BUFFER_BYTES),
            stale: Stale::EVERYTHING,
            neighbours: BTreeMap::new(),
            route_warnings: Vec::new(),
            rule_warnings: Vec::new(),
            view: View::default(),
            gathered: Instant::now(),
        };
        follower.refresh()?;
        Ok(follower)
    }

    /// Waits for a change that matters, at most for `timeout` and the gathering of what came at its end.
    ///
    /// An error is a system call that should not have failed; the follower may be asked again.
    pub fn next(&mut self, timeout: Duration) -> io::Result<Event> {
        let give_up = Instant::now() + timeout;
        // The kernel tells of a link before it has done with the link's routes, of which it does not tell: tables
        // are therefore never read at once.
        let mut tables_due = None;
        loop {
            let now = Instant::now();
            let until = match self.stale {
                Stale::NOTHING => give_up,
                Stale::NEIGHBOURS => self.gathered,
                _ => *tables_due.get_or_insert(self.gathered.max(now + GATHER_AT_LEAST)),
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

    /// What ends the wait.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.stop))
    }

    fn wait(&self, at_most: Duration) -> io::Result<Woken> {
        let mut fds = [
            PollFd::from_borrowed_fd(rustix::fd::AsFd::as_fd(&self.events), PollFlags::IN),
            PollFd::new(&*self.stop, PollFlags::IN),
        ];
        let at_most = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        match poll(&mut fds, Some(&at_most)) {
            Ok(_) if !fds[1].revents().is_empty() => Ok(Woken::Stopped),
            // Readable, or in error: reading tells.
            Ok(_) if !fds[0].revents().is_empty() => Ok(Woken::Events),
            Ok(_) | Err(Errno::INTR) => Ok(Woken::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads what the kernel has told, until there is no more.
    fn take_events(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.events.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    tracing::info!("the kernel's network events came too fast; reading everything anew");
                    self.stale = Stale::EVERYTHING;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in netlink::messages(&self.buffer) {
                let Ok(header) = NetlinkBuffer::new_checked(message) else { continue };
                match header.message_type() {
                    RTM_NEWLINK..=RTM_DELADDR => (self.stale.links, self.stale.routes) = (true, true),
                    RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWNEXTHOP | RTM_DELNEXTHOP => self.stale.routes = true,
                    RTM_NEWRULE | RTM_DELRULE => self.stale.rules = true,
                    RTM_NEWNEIGH | RTM_DELNEIGH => {
                        let Some(entry) = neighbour_event(message) else { continue };
                        self.stale.unpublished |= apply(&mut self.neighbours, &entry);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reads what is stale and says whether the view became another.
    fn refresh(&mut self) -> io::Result<bool> {
        let began = Instant::now();
        let mut network = (*self.view.network).clone();
        if self.stale.links {
            network.links = tables::links(&mut self.questions, &network.links)?;
        }
        if self.stale.routes {
            (network.routes, self.route_warnings) = tables::routes(&mut self.questions)?;
        }
        if self.stale.rules {
            (network.ruled_marks, self.rule_warnings) = rules::read(&mut self.questions)?;
        }
        if self.stale.neighbours {
            self.neighbours.clear();
            for entry in tables::neighbours(&mut self.questions)? {
                apply(&mut self.neighbours, &entry);
            }
        }
        let entries = self.neighbours.iter();
        network.neighbours =
            entries.map(|(&(ifindex, addr), &mac)| Neighbour { ifindex, addr, mac }).collect();
        self.stale = Stale::NOTHING;
        self.gathered = gathered(began, Instant::now());
        let warnings = [self.rule_warnings.as_slice(), &self.route_warnings].concat();
        let view = View { network: Arc::new(network), warnings };
        let changed = view != self.view;
        if changed {
            self.view = view;
        }
        Ok(changed)
    }
}

impl Stopper {
    /// Has every present and later [`NetworkFollower::next`] return [`Event::Stopped`].
    pub fn stop(&self) {
        // The counter would have to be full to refuse, and then the wait has ended too.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// A follower on a thread of its own; dropping it stops the thread and waits for its end.
#[derive(Debug)]
pub struct FollowerThread {
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

/// Follows the network of the calling thread's namespace on a thread of its own.
///
/// `report` is called on that thread, first with the network as it is and then at each change. Errors: what
/// [`NetworkFollower::open`] could not do. What fails later is logged and tried again.
pub fn follow(mut report: impl FnMut(View) + Send + 'static) -> io::Result<FollowerThread> {
    let mut follower = NetworkFollower::open()?;
    let stopper = follower.stopper();
    let run = move || {
        report(follower.view().clone());
        loop {
            match follower.next(LISTEN) {
                Ok(Event::Changed(view)) => report(view),
                Ok(Event::TimedOut) => {}
                Ok(Event::Stopped) => return,
                Err(error) => {
                    tracing::warn!("following the kernel's network: {error}; everything is read anew");
                    follower.stale = Stale::EVERYTHING;
                    // A fault that stays must not become a busy loop. A stop meanwhile ends the next wait.
                    thread::sleep(RETRY);
                }
            }
        }
    };
    let thread = thread::Builder::new().name("xvs-network".to_owned()).spawn(run)?;
    Ok(FollowerThread { stopper, thread: Some(thread) })
}

impl Drop for FollowerThread {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that followed the kernel's network had panicked");
        }
    }
}

impl Stale {
    const NOTHING: Self =
        Self { links: false, routes: false, rules: false, neighbours: false, unpublished: false };
    /// The copy is right and only the view is behind it.
    const NEIGHBOURS: Self = Self { unpublished: true, ..Self::NOTHING };
    const EVERYTHING: Self =
        Self { links: true, routes: true, rules: true, neighbours: true, unpublished: true };
}

enum Woken {
    Events,
    Stopped,
    TimedOut,
}

/// What a neighbour event says; one that went has no link address.
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

/// Until when events are gathered after a reading: long enough that reading takes at most a fifth of the time.
fn gathered(began: Instant, ended: Instant) -> Instant {
    ended + GATHER_AT_LEAST.max((ended - began) * 4)
}

/// Enters what is resolved and removes what is not; says whether that made a difference.
fn apply(neighbours: &mut BTreeMap<(u32, IpAddr), MacAddr>, entry: &NeighbourEntry) -> bool {
    let key = (entry.ifindex, entry.addr);
    match entry.mac {
        Some(mac) => neighbours.insert(key, mac) != Some(mac),
        None => neighbours.remove(&key).is_some(),
    }
}

/// How long events are gathered after a reading, so that a burst of them is one change.
const GATHER_AT_LEAST: Duration = Duration::from_millis(10);
const LISTEN: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(1);
const EVENT_ROOM_BYTES: u32 = 4 << 20;

/// `include/uapi/linux/rtnetlink.h`: `RTNLGRP_LINK`, `NEIGH`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`,
/// `IPV6_IFADDR`, `IPV6_ROUTE`, `IPV6_RULE`, `NEXTHOP`.
const GROUPS: [u32; 9] = [1, 3, 5, 7, 8, 9, 11, 19, 32];

/// Kinds of message (same file); links and addresses are one range.
const RTM_NEWLINK: u16 = 16;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

#[cfg(test)]
mod tests {
    use crate::network::*;

    #[test]
    fn after_a_reading_events_are_gathered_for_ten_milliseconds_or_four_times_as_long_as_it_took() {
        let began = Instant::now();
        let after = |took, due| {
            let ended = began + Duration::from_millis(took);
            assert_eq!(gathered(began, ended), ended + Duration::from_millis(due));
        };
        after(0, 10);
        after(2, 10);
        after(50, 200);
    }
}
