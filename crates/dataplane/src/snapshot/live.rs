//! Numbers of services and destinations that outlive snapshots.

use std::net::IpAddr;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use xvs_sched::Load;

use super::load::{Activity, Change, LiveLoad};
use crate::clock::Millis;
use crate::conn::{Connection, Offloaded};
use crate::counters::{Pending, ResponseTimes, SharedStats, StatsValues};

/// Numbers of a service that outlive snapshots: the sums of its destinations' counts, so that a packet is counted once.
#[derive(Default)]
pub struct ServiceLive {
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    /// The destinations, each with its counts from before it came to this service.
    destinations: Vec<(Arc<DestinationLive>, StatsValues)>,
    /// The counts of destinations that no longer exist.
    past: StatsValues,
}

impl ServiceLive {
    /// Continues with these sums, which include the destinations' counts so far.
    pub fn resume(&self, counted: StatsValues) {
        let mut sums = self.counted();
        sums.past = counted;
        sums.destinations.iter_mut().for_each(|(destination, before)| *before = destination.stats.sum());
    }

    /// Adds this destination's counts to the sums from now on, as long as it exists.
    pub fn add(&self, destination: &Arc<DestinationLive>) {
        let destinations = &mut self.counted().destinations;
        if !destinations.iter().any(|(known, _)| Arc::ptr_eq(known, destination)) {
            destinations.push((destination.clone(), destination.stats.sum()));
        }
    }

    /// The sums, which never decrease.
    pub fn stats(&self) -> StatsValues {
        let Counted { destinations, past } = &mut *self.counted();
        let mut sum = *past;
        destinations.retain_mut(|(destination, before)| {
            let is_gone = Arc::get_mut(destination).is_some();
            let counted = destination.stats.sum() - *before;
            sum += counted;
            if is_gone {
                *past += counted;
            }
            !is_gone
        });
        sum
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time after which unanswered connections are no longer meaningful.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// The time within which a client has repeated its SYN. Linux does so after one second.
const REPEATED: Duration = Duration::from_secs(5);

/// The connections of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Active and inactive ones.
    pub load: Load,
    /// Templates.
    pub templates: u32,
}

impl Counts {
    /// Counts a connection or template.
    pub fn count(&mut self, connection: &Connection<'_>) {
        match Activity::counted(connection, connection.state()) {
            Activity::Template => self.templates += 1,
            Activity::Active => self.load.active += 1,
            Activity::Inactive => self.load.inactive += 1,
        }
    }
}

/// Numbers of a destination that outlive snapshots, on separate cache lines.
#[derive(Default)]
#[cfg_attr(not(loom), repr(align(64)))]
pub struct DestinationLive {
    load: LiveLoad,
    templates: AtomicI32,
    unanswered: AtomicU32,
    last_unanswered: AtomicU64,
    /// When the destination last refused a connection; 0 if never, or if it has accepted one since.
    last_refused: AtomicU64,
    /// When a first packet last caused an ICMP error, and when the last reply passed through this director and was left
    /// to the kernel; 0 as for `last_refused`.
    last_rejected: AtomicU64,
    last_returned: AtomicU64,
    /// The number of unanswered NAT connections over TCP from clients in the destination's own network, since the last
    /// answered one; and the last such client, with the time.
    neighbours: AtomicU32,
    last_neighbour: Mutex<Option<(IpAddr, Millis)>>,
    /// Where the XDP program counts connections that have become inactive; unset if it forwards none.
    moves: OnceLock<(Arc<Offloaded>, u32)>,
    /// The destination's counters.
    pub stats: SharedStats,
    /// The times until the destination's first reply.
    pub responses: ResponseTimes,
}

impl DestinationLive {
    /// Zeros for this many workers.
    pub fn new(workers: usize) -> Self {
        Self { stats: SharedStats::new(workers), responses: ResponseTimes::new(workers), ..Self::default() }
    }

    /// Continues with these numbers. Only while no worker counts.
    pub fn resume(&self, counts: Counts, overloaded: bool, counted: StatsValues) {
        self.load.resume(counts.load, overloaded);
        self.templates.store(counts.templates as i32, Ordering::Relaxed);
        self.stats.resume(counted);
    }

    /// The numbers of connections by the states in the table, which [`Self::resume`] accepts: without the XDP program's
    /// moves. Those in bursts that have not ended may be missing.
    pub fn counts(&self) -> Counts {
        let (active, inactive) = self.load.counts(0);
        Counts { load: Load { active, inactive }, templates: self.templates() }
    }

    /// A copy that counts independently.
    pub(super) fn separate_copy(&self) -> Self {
        Self {
            load: self.load.separate_copy(),
            templates: AtomicI32::new(self.templates.load(Ordering::Relaxed)),
            moves: self.moves.clone(),
            ..Self::new(1)
        }
    }

    /// The destination's connections. Those in bursts that have not ended may be missing.
    pub fn load(&self) -> Load {
        self.load_with(0)
    }

    /// The destination's connections as this worker sees them, with those in its current burst.
    #[inline]
    pub(crate) fn load_for(&self, worker: usize) -> Load {
        self.load_with(self.stats.of_worker(worker).pending.load.value())
    }

    #[inline]
    fn load_with(&self, pending: u64) -> Load {
        let (active, inactive) = self.load.counts(pending);
        // A move is reverted before or after its connection is counted as inactive, so for a moment, or until a burst
        // ends, it may be negative or missing.
        let moved = self
            .moves
            .get()
            .and_then(|(offloaded, slot)| u32::try_from(offloaded.moved(*slot)).ok())
            .map_or(0, |moved| moved.min(active));
        Load { active: active - moved, inactive: inactive + moved }
    }

    /// Adds the moves to inactive connections that the XDP program counts in this slot.
    pub(crate) fn count_moves(&self, offloaded: &Arc<Offloaded>, slot: u32) {
        self.moves.get_or_init(|| (Arc::clone(offloaded), slot));
    }

    /// The number of the destination's templates.
    pub fn templates(&self) -> u32 {
        // The additions and subtractions of two workers may be seen in either order, so the count may be negative for a
        // moment.
        u32::try_from(self.templates.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Counts a TCP connection whose client has repeated its SYN.
    pub(crate) fn count_unanswered(&self, now: Millis) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        self.last_unanswered.store(now.0, Ordering::Relaxed);
    }

    /// Counts a TCP connection that the destination has answered with a reset.
    pub(crate) fn count_refused(&self, now: Millis) {
        self.last_refused.store(now.0, Ordering::Relaxed);
        self.count_unanswered(now);
    }

    /// Counts a TCP connection whose first packet caused an ICMP error.
    pub(crate) fn count_rejected(&self, now: Millis) {
        self.last_rejected.store(now.0, Ordering::Relaxed);
        self.count_unanswered(now);
    }

    /// Records an established TCP connection, or the end of earlier information: no connection is unanswered.
    pub fn answered(&self) {
        // Nearly always already 0; then no other worker's copy of the line is invalidated.
        if self.unanswered.load(Ordering::Relaxed) != 0 {
            self.unanswered.store(0, Ordering::Relaxed);
            for last in [&self.last_refused, &self.last_rejected, &self.last_returned] {
                last.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The number of TCP connections whose clients have repeated their SYN, or that were refused, since the last one
    /// was established. Without those in [`Self::unanswered_neighbours`].
    pub fn unanswered(&self) -> u32 {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Like [`Self::unanswered`], but 0 if none was counted for ten minutes: the destination may have no clients any
    /// more.
    pub fn recently_unanswered(&self, now: Millis) -> u32 {
        let last = Millis(self.last_unanswered.load(Ordering::Relaxed));
        if last.until(now) < FORGOTTEN { self.unanswered() } else { 0 }
    }

    /// Counts a NAT connection over TCP whose client is in the destination's own network and has repeated its SYN.
    pub(crate) fn count_neighbour(&self, client: IpAddr, now: Millis) {
        self.neighbours.fetch_add(1, Ordering::Relaxed);
        // Another worker that holds the lock also writes such a client.
        if let Ok(mut last) = self.last_neighbour.try_lock() {
            *last = Some((client, now));
        }
    }

    /// Whether [`Self::count_neighbour`] has counted any.
    #[inline]
    pub(crate) fn has_neighbours(&self) -> bool {
        self.neighbours.load(Ordering::Relaxed) != 0
    }

    /// Records an established TCP connection of such a client, or the end of earlier information.
    pub fn neighbour_answered(&self) {
        self.neighbours.store(0, Ordering::Relaxed);
    }

    /// The number of unanswered connections of clients in the destination's own network, and one of the clients. `None`
    /// if there are none, or none was counted for ten minutes.
    pub fn unanswered_neighbours(&self, now: Millis) -> Option<(u32, IpAddr)> {
        let last = *self.last_neighbour.lock().unwrap_or_else(PoisonError::into_inner);
        let (client, at) = last.filter(|_| self.has_neighbours())?;
        (at.until(now) < FORGOTTEN).then(|| (self.neighbours.load(Ordering::Relaxed), client))
    }

    /// Records a reply that passed through this director and was left to the kernel.
    pub(crate) fn note_returned(&self, now: Millis) {
        self.last_returned.store(now.0, Ordering::Relaxed);
    }

    /// Whether the last unanswered connection was refused by the destination.
    pub fn refuses(&self) -> bool {
        self.is_of_the_last(&self.last_refused)
    }

    /// Whether the last unanswered connection caused an ICMP error.
    pub fn rejects(&self) -> bool {
        self.is_of_the_last(&self.last_rejected)
    }

    /// Whether the reply to the last unanswered connection passed through this director and was left to the kernel.
    pub fn returns(&self) -> bool {
        self.is_of_the_last(&self.last_returned)
    }

    /// Whether this was seen with the last unanswered connection: not long before the client repeated its SYN.
    fn is_of_the_last(&self, seen: &AtomicU64) -> bool {
        let [seen, last] = [seen, &self.last_unanswered].map(|at| Millis(at.load(Ordering::Relaxed)));
        seen.0 != 0 && seen.until(last) < REPEATED
    }

    /// Counts a connection or template. Called before other threads can find it.
    pub fn increment(&self, activity: Activity) {
        self.change(Change::Begin(activity));
    }

    /// Checks the upper threshold after a connection that was counted has been inserted.
    pub fn check_limit(&self) {
        self.load.check_limit();
    }

    /// Stops counting a connection or template, also one whose insertion failed.
    pub fn decrement(&self, activity: Activity) {
        self.change(Change::End(activity));
    }

    /// Moves a counted connection to the active or inactive ones, to which it did not belong before.
    pub fn move_to(&self, to: Activity) {
        self.change(Change::MoveTo(to));
    }

    fn change(&self, change: Change) {
        let (load, templates) = change.addends();
        self.add(load, templates);
        if let Change::End(_) = change {
            self.check_limit();
        }
    }

    fn add(&self, load: u64, templates: u64) {
        if load != 0 {
            self.load.add(load);
        }
        if templates != 0 {
            self.templates.fetch_add(templates as i32, Ordering::Relaxed);
        }
    }

    /// Counts a change for this worker alone until it calls [`Self::add_deferred`], which the worker has to do if the
    /// result is `true`. If there are thresholds, other threads see the change at once.
    pub fn defer(&self, worker: usize, change: Change) -> bool {
        if self.load.is_bounded() {
            self.change(change);
            return false;
        }
        let Pending { load, templates } = &self.stats.of_worker(worker).pending;
        let is_first = load.value() == 0 && templates.value() == 0;
        let (of_load, of_templates) = change.addends();
        load.add(of_load);
        templates.add(of_templates);
        is_first
    }

    /// Adds the changes that this worker has deferred. Thresholds that were set in the meantime are checked.
    pub fn add_deferred(&self, worker: usize) {
        let Pending { load, templates } = &self.stats.of_worker(worker).pending;
        self.add(load.value(), templates.value());
        self.check_limit();
        load.set(0);
        templates.set(0);
    }

    /// Counts a one-packet connection, which ends at once. It may leave the destination overloaded.
    pub fn count_one_packet(&self) {
        if self.load.is_bounded() {
            self.increment(Activity::Inactive);
            self.check_limit();
            self.decrement(Activity::Inactive);
        }
    }

    /// Sets the thresholds, in connections, and checks them at once. An upper threshold of 0 means none; a lower one of
    /// 0 means three quarters of the upper one.
    pub fn set_thresholds(&self, upper: u32, lower: u32) {
        self.load.set_bounds(upper, lower);
    }

    /// The upper threshold (0 if there is none), and the number of connections below which the destination accepts new
    /// ones again.
    pub fn thresholds(&self) -> (u32, u32) {
        self.load.bounds()
    }

    /// Whether the destination accepts no new connections: it has reached its upper threshold and has not been below
    /// its lower one since. Source: ipvs-behaviour, section 7.
    pub fn is_overloaded(&self) -> bool {
        self.load.is_overloaded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_sums_what_its_destinations_count_while_they_belong_to_it_also_when_they_are_gone() {
        let (service, destination) = (ServiceLive::default(), Arc::new(DestinationLive::new(2)));
        destination.stats.of_worker(0).count_in(1000);
        service.add(&destination);
        service.add(&destination);
        destination.stats.of_worker(1).count_in(60);
        destination.stats.of_worker(0).connections.add(1);
        let counted = StatsValues { connections: 1, in_packets: 1, in_bytes: 60, ..Default::default() };
        assert_eq!(service.stats(), counted);
        drop(destination);
        assert_eq!(service.stats(), counted);
        assert!(service.counted().destinations.is_empty());
        assert_eq!(service.stats(), counted);
    }
}
