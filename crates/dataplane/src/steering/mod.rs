//! The steering program: the XDP program of the director (`bpf/redirect.bpf.c`), loaded once, attached to each
//! interface, and updated at every change of the steered traffic.
//!
//! Runs on the control thread. All interfaces share the maps of steered traffic; each interface has a separate map of
//! sockets. Dropping an [`Attached`] detaches the program from its interface, and the kernel does so when the process
//! ends, unless the program is pinned: then it holds the frames for services for some time ([`hold`]). A full map
//! refuses further entries with an error that names its limit; its entries stay in force.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use rustix::rand::{GetRandomFlags, getrandom};
use xvs_sched::ServiceKey;
use xvs_xdp::bpf::{KernelMap, Key, Map, Object, Words, test_run, test_run_repeated};
use xvs_xdp::pins::Pins;
use xvs_xdp::{AttachError, Attached, Mode, Wanted, attach};

use self::hold::Hold;
use self::lists::ListMaps;
use self::maps::{EndpointKey, Image, Marker, Roles};
use self::objects::{ADDRESSES, CLIENTS, ENDPOINTS, FILTER, Load, OpenFormerMaps, PROGRAM, VERDICT, named};
use self::syn_limits::SynMaps;

pub mod hold;
mod lists;
pub mod losses;
mod maps;
pub mod objects;
pub mod own;
pub mod reinject;
mod rules;
mod syn_limits;

pub use self::maps::Counts;
pub use self::objects::MapSizes;
pub use self::rules::{OwnSender, SteeringRules};
use crate::clock::Clock;
use crate::offload::former::FormerRecords;
use crate::offload::{Offload, Settings, map};
use crate::snapshot::lists::Lists;
use crate::snapshot::syn_limits::SynLimits;

/// The return values of the program for a dropped and for a redirected frame (linux/bpf.h).
const DROP: u32 = 1;
const REDIRECT: u32 = 4;

/// The decision of the steering program on a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to the director.
    Steered,
    /// It is dropped, because it belongs to the director and no worker serves it.
    Held,
    /// It is dropped, because an access list or a limit on SYNs refuses it.
    Refused,
    /// It goes to the kernel.
    Kernel,
}

/// The reason why the maps could not be written.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The map is full.
    #[error("steering holds at most {limit} {what}; {step}")]
    Full {
        /// The kind of its entries, in the plural.
        what: &'static str,
        /// Maximum number of entries.
        limit: u32,
        /// The operator's remedy.
        step: &'static str,
    },
    /// The kernel refused for another reason.
    #[error("steering: {0}")]
    Kernel(#[from] io::Error),
}

/// The loaded program with the maps that all interfaces share.
pub struct Steering {
    object: Object,
    /// The contents of the maps, which only this value writes.
    installed: Image,
    /// The endpoints of this machine that are real servers behind NAT, and those of services for its own clients.
    own: [BTreeSet<EndpointKey>; 2],
    /// The filter of the program: the bits of at least the keys in the maps.
    filter: Words<{ maps::FILTER_WORDS }>,
    hold: Arc<Hold>,
    lists: ListMaps,
    syn_limits: SynMaps,
    /// The maps of earlier processes whose counts are included here.
    counted: BTreeSet<u32>,
}

impl Steering {
    /// Creates the maps, with these sizes; nothing is steered yet. The kernel verifies the program for each interface.
    ///
    /// # Errors
    ///
    /// The kernel's error: usually CAP_BPF, CAP_NET_ADMIN or CAP_PERFMON is missing. The verifier's reasons are on
    /// stderr. An invalid argument if a size is out of its range.
    pub fn load(sizes: MapSizes) -> io::Result<Self> {
        Self::of(Load::Maps(sizes))
    }

    /// Like [`Self::load`]; also loads the program for [`Self::test_run`] and [`Self::test_run_without_sockets`].
    ///
    /// # Errors
    ///
    /// Same as [`Self::load`].
    pub fn load_for_test_runs() -> io::Result<Self> {
        Self::of(Load::ForTestRuns(MapSizes::default()))
    }

    /// Like [`Self::load`], for [`Self::test_run_offloaded`] and [`Self::time_offloaded`].
    ///
    /// # Errors
    ///
    /// Same as [`Self::load`].
    pub fn load_for_offloaded_runs(sizes: MapSizes) -> io::Result<Self> {
        Self::of(Load::ForOffloadedRuns(sizes))
    }

    fn of(load: Load) -> io::Result<Self> {
        let object = load.object(None)?;
        Ok(Self {
            filter: object.words(FILTER)?,
            hold: Arc::new(Hold::of(&object)?),
            lists: ListMaps::of(&object)?,
            syn_limits: SynMaps::of(&object)?,
            installed: Default::default(),
            own: Default::default(),
            counted: Default::default(),
            object,
        })
    }

    /// The hold, for workers and reports. No frames are held until it is set.
    pub fn hold(&self) -> &Arc<Hold> {
        &self.hold
    }

    /// The flow offload for a table with this number of entries.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn offload(&self, entries: usize, settings: Settings) -> io::Result<Arc<Offload>> {
        Offload::of(&self.object, entries, settings).map(Arc::new)
    }

    /// Attaches the program to an interface in this thread's network namespace, like [`attach()`]. If an earlier
    /// process has pinned its program for the interface in `pins`, that one stays in force until
    /// [`Self::put_in_force`].
    ///
    /// # Errors
    ///
    /// See [`AttachError`]; the program then stays detached.
    pub fn attach(
        &self,
        interface: &str,
        wanted: Wanted,
        pins: Option<&Pins>,
    ) -> Result<Attached, AttachError> {
        let mut marker = Marker::default();
        getrandom(&mut marker, GetRandomFlags::empty())
            .map_err(|error| AttachError::Kernel { interface: interface.to_owned(), source: error.into() })?;
        attach(interface, wanted, PROGRAM, &marker, pins, |marker| self.object_for_an_interface(marker))
    }

    /// Replaces the pinned program of an earlier process, if there is one, with this one, without a gap. Called when
    /// the steered traffic and the sockets are entered. Counts the frames that the earlier program has held, and steers
    /// replies to the clients on this machine that it knows.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the earlier program stays in force.
    pub fn put_in_force(&mut self, attached: &mut Attached) -> io::Result<()> {
        let former = attached.former_program().map(OpenFormerMaps::maps).unwrap_or_default();
        let [held, clients] = [hold::MAP, CLIENTS].map(|name| named(&former, name));
        // A program of another version may have other keys.
        if let Some(Ok(clients)) = clients.map(KernelMap::keys) {
            let known = self.object.map(CLIENTS)?;
            clients.iter().try_for_each(|client: &EndpointKey| known.set(client, 1))?;
        }
        self.beat();
        attached.put_in_force(PROGRAM)?;
        if let Some(map) = held
            && self.counted.insert(map.id)
        {
            let words = map.words::<{ hold::WORDS }>(0).unwrap_or_default();
            self.hold.add_dropped(words[hold::DROPPED]);
        }
        Ok(())
    }

    /// The records of the programs that earlier processes have pinned on these interfaces. Called before
    /// [`Self::put_in_force`].
    pub fn former_records(interfaces: &[Attached]) -> Vec<FormerRecords> {
        let mut known = BTreeSet::new();
        interfaces
            .iter()
            .filter_map(|attached| {
                let maps = OpenFormerMaps::maps(attached.former_program()?);
                let [state, records] = [map::STATE, map::RECORDS].map(|name| named(&maps, name));
                // A program of another version may have other records.
                FormerRecords::map(state?, records.filter(|map| known.insert(map.id))?)
            })
            .collect()
    }

    /// Puts this program in force again after another process has replaced it.
    ///
    /// # Errors
    ///
    /// The kernel refuses; the other program stays in force.
    pub fn restore(&self, attached: &mut Attached) -> io::Result<()> {
        self.beat();
        attached.restore(PROGRAM)
    }

    /// Detaches the program of an earlier process and attaches this one, with a gap.
    ///
    /// # Errors
    /// The kernel refuses; no program is attached.
    pub fn attach_anew(&self, attached: &mut Attached) -> io::Result<()> {
        self.beat();
        attached.attach_anew(PROGRAM)
    }

    /// Begins the hold when a program comes into force. If the first worker beat later than the hold, the kernel would
    /// get the frames for services and reset their connections.
    fn beat(&self) {
        self.hold.beat(Clock::Monotonic.elapsed());
    }

    /// Attaches the program to an interface again, because veth does not run it on queues that were added since.
    /// Sockets have to be reopened.
    ///
    /// # Errors
    ///
    /// See [`AttachError`]; nothing has changed.
    pub fn renew(&self, attached: &mut Attached) -> Result<(), AttachError> {
        attached.replace_program(PROGRAM, |marker| self.object_for_an_interface(marker))
    }

    /// Adds the traffic that `more` steers, as [`SteeringRules::add`] defines. Called before new rules become visible
    /// to the workers. The cost is proportional to `more`.
    ///
    /// # Errors
    ///
    /// [`SteeringError`]; the maps then contain part of the change, and a later call completes it.
    pub fn add(&mut self, more: &SteeringRules) -> Result<(), SteeringError> {
        let change = self.installed.with(more);
        self.add_to_filter(&change.filter());
        self.write(&change)
    }

    /// Removes the traffic that `less` names, as [`SteeringRules::subtract`] defines. Called after every worker has
    /// left the old rules. The cost is proportional to `less`; the bits of the filter stay until the next
    /// [`Self::set`].
    ///
    /// # Errors
    ///
    /// Same as [`Self::add`].
    pub fn subtract(&mut self, less: &SteeringRules) -> Result<(), SteeringError> {
        self.write(&self.installed.without(less))
    }

    /// Steers exactly the traffic of `wanted`. Called after every worker has left the old rules. The cost is
    /// proportional to `wanted` and the rules before it.
    ///
    /// # Errors
    ///
    /// Same as [`Self::add`].
    pub fn set(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        let wanted = Image::of(wanted);
        let filter = wanted.filter();
        self.add_to_filter(&filter);
        self.write(&self.installed.towards(wanted))?;
        self.filter.iter().zip(*filter).for_each(|(word, bits)| word.store(bits, Relaxed));
        Ok(())
    }

    /// Makes the program look up keys with these bits, before there are any.
    fn add_to_filter(&self, filter: &[u64; maps::FILTER_WORDS]) {
        // Relaxed, like all words of the filter: the system calls that enter the keys come later.
        for (word, bits) in self.filter.iter().zip(filter).filter(|(_, bits)| **bits != 0) {
            word.fetch_or(*bits, Relaxed);
        }
    }

    /// Adds and then removes, for callers that need not wait for workers.
    ///
    /// # Errors
    ///
    /// Same as [`Self::add`].
    pub fn update(&mut self, wanted: &SteeringRules) -> Result<(), SteeringError> {
        self.add(wanted)?;
        self.set(wanted)
    }

    /// Replaces the access lists; `None` if there are none. They include the services for every port whose packets
    /// belong to no other service.
    ///
    /// # Errors
    ///
    /// Same as [`Self::add`]; then the program has no lists until the next call.
    pub fn set_lists(&mut self, lists: Option<(Arc<Lists>, Vec<ServiceKey>)>) -> Result<(), SteeringError> {
        self.lists.set(&self.object, lists)
    }

    /// Replaces the limits on SYNs. Workers apply the limits of services that the program cannot determine.
    ///
    /// # Errors
    ///
    /// Same as [`Self::add`]; then workers decide where the program does not.
    pub fn set_syn_limits(&mut self, limits: &SynLimits) -> Result<(), SteeringError> {
        let concerned = self.syn_limits.set(limits);
        self.write_endpoints(SynMaps::roles(concerned, &self.installed))
    }

    /// Adds the program's drops since the last call to the counts of the lists and of the limits on SYNs.
    pub fn count_drops(&mut self) {
        self.lists.count();
        self.syn_limits.count();
    }

    /// Whether packets from this sender have to be redirected: an endpoint of this machine is a NAT real server, or
    /// that of a service that masquerades.
    pub fn redirects(&self, sender: OwnSender) -> bool {
        !self.own[sender as usize].is_empty()
    }

    /// The program's decision on a frame from an interface whose queues all have a socket.
    ///
    /// # Errors
    ///
    /// The kernel's error; an invalid argument unless it was loaded for test runs. It does not run frames below 14
    /// bytes or above a page.
    pub fn test_run(&self, frame: &[u8]) -> io::Result<Verdict> {
        Ok(match test_run(self.object.program(VERDICT)?, frame)?.0 {
            REDIRECT => Verdict::Steered,
            DROP => Verdict::Refused,
            _ => Verdict::Kernel,
        })
    }

    /// The mean time of several runs on a frame, in nanoseconds.
    ///
    /// # Errors
    ///
    /// Same as [`Self::test_run`].
    pub fn bench(&self, frame: &[u8], times: u32) -> io::Result<u32> {
        test_run_repeated(self.object.program(VERDICT)?, frame, times).map(|(_, nanos)| nanos)
    }

    /// The program's decision on a frame from a queue without a socket.
    ///
    /// # Errors
    ///
    /// Same as [`Self::test_run`].
    pub fn test_run_without_sockets(&self, frame: &[u8]) -> io::Result<Verdict> {
        Ok(match test_run(self.object.program(PROGRAM)?, frame)?.0 {
            DROP => Verdict::Held,
            _ => Verdict::Kernel,
        })
    }

    /// The frame as the program forwards it; `None` if it is left to workers or the kernel.
    ///
    /// # Errors
    ///
    /// Same as [`Self::test_run`].
    pub fn test_run_offloaded(&self, frame: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (returned, after) = test_run(self.object.program(PROGRAM)?, frame)?;
        Ok((returned == REDIRECT).then_some(after))
    }

    /// Whether the program forwards a frame, and the duration of its run in nanoseconds.
    ///
    /// # Errors
    ///
    /// Same as [`Self::test_run`].
    pub fn time_offloaded(&self, frame: &[u8]) -> io::Result<(bool, u32)> {
        let (returned, nanos) = test_run_repeated(self.object.program(PROGRAM)?, frame, 1)?;
        Ok((returned == REDIRECT, nanos))
    }

    fn object_for_an_interface(&self, marker: &[u8]) -> io::Result<Object> {
        Load::Steering(marker.try_into().map_err(io::Error::other)?).object(Some(&self.object))
    }

    /// Gives endpoints these roles, with the numbers of their limits.
    fn write_endpoints(&mut self, mut change: Roles<EndpointKey>) -> Result<(), SteeringError> {
        self.syn_limits.enter(&mut change, &self.installed);
        let endpoints = self.object.map(ENDPOINTS)?;
        let done = converge(OF_ENDPOINTS, &endpoints, &mut self.installed.endpoints, &change);
        self.syn_limits.tell(change.keys(), &self.installed);
        done
    }

    fn write(&mut self, change: &Image) -> Result<(), SteeringError> {
        // An endpoint is effective only with the roles of its address, so the addresses are written first. Frames that
        // are steered too early are at worst passed back. The ports precede the addresses, because the role of an
        // address has no effect without them.
        let translated = self.object.map(c"translated")?;
        converge(OF_LOCALS, &translated, &mut self.installed.translated, &change.translated)?;
        let addresses = self.object.map(ADDRESSES)?;
        converge(OF_ADDRESSES, &addresses, &mut self.installed.addresses, &change.addresses)?;
        self.write_endpoints(change.endpoints.clone())?;
        self.lists.set_marked(
            !self.installed.prefixes.is_empty() || change.prefixes.values().any(|roles| *roles != 0),
        );
        let prefixes = self.object.map(c"prefixes")?;
        let done = converge(OF_NETWORKS, &prefixes, &mut self.installed.prefixes, &change.prefixes);
        self.lists.set_marked(!self.installed.prefixes.is_empty());
        if !change.prefixes.is_empty() {
            self.write_endpoints(SynMaps::roles(self.syn_limits.endpoints(), &self.installed))?;
        }
        done?;
        for key in change.endpoints.keys() {
            for sender in [OwnSender::Server, OwnSender::Client] {
                match self.installed.has_own(sender, key) {
                    true => self.own[sender as usize].insert(*key),
                    false => self.own[sender as usize].remove(key),
                };
            }
        }
        Ok(())
    }
}

/// The entries of a map, as operators name them.
struct Entries {
    /// In the plural.
    what: &'static str,
    /// The operator's remedy if there are too many.
    step: &'static str,
}

const OF_ENDPOINTS: Entries = Entries { what: "endpoints", step: RAISE };
const OF_ADDRESSES: Entries = Entries { what: "addresses", step: RAISE };
const OF_LOCALS: Entries =
    Entries { what: "local addresses", step: "delete local addresses that no connection uses" };
const OF_NETWORKS: Entries =
    Entries { what: "networks", step: "combine the networks of mark rules, or delete mark rules" };

const RAISE: &str = "raise `steered_endpoints` in xvs.toml, which `xvs reload` applies";

/// Applies a change to a map: first additions and changed roles, then removals. `installed` is the map's contents at
/// any time, also after an error.
fn converge<K: Key + Ord>(
    Entries { what, step }: Entries,
    map: &Map<'_, K>,
    installed: &mut Roles<K>,
    change: &Roles<K>,
) -> Result<(), SteeringError> {
    for (key, roles) in change.iter().filter(|(_, roles)| **roles != 0) {
        if installed.get(key) == Some(roles) {
            continue;
        }
        map.set(key, *roles).map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => SteeringError::Full { what, limit: map.limit(), step },
            _ => error.into(),
        })?;
        installed.insert(*key, *roles);
    }
    for (key, _) in change.iter().filter(|(_, roles)| **roles == 0) {
        if installed.contains_key(key) {
            map.unset(key)?;
            installed.remove(key);
        }
    }
    Ok(())
}

/// The bytes that make the program on an interface leave a frame to the kernel. None in native mode, in which such a
/// frame arrives after the program.
pub(crate) fn marker(attached: &Attached) -> &[u8] {
    match attached.mode() {
        Mode::Native => &[],
        Mode::Generic => attached.constants(),
    }
}
