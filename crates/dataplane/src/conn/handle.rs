//! Handles at the table: what workers and readers do with it.
//!
//! A [`TableWorker`] finds, inserts, removes and times connections within a burst; a reader (`reader.rs`) walks all of
//! them beside. Each owns the entries that it has removed until nobody can still look at them, and a worker the timer
//! links that it has made. A connection's one link that counts is at the tick in its entry's `timer`, in whichever
//! worker's wheel; who sets `timer` makes that link, and every other link dies when it is due. Cost of each operation:
//! a few loads and at most a handful of compare-and-swaps; nothing waits or allocates. Not here: how the index and the
//! reuse work (`buckets.rs`, `slab.rs`, `quiescence.rs`).

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64 as Statistic;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use xvs_proto::FlowKey;

use super::buckets::{Claim, Entered, Key};
use super::connection::Connection;
use super::direction::Direction;
use super::entry::{self, Life, Packed};
use super::id::ConnId;
use super::insertion::{Inserted, Kind, NewConnection, Removal};
use super::lookup::Sought;
use super::slab::STRANDED_MAX;
use super::table::{HandleCounts, HandleState, Table};
use super::wheel::{Link, Wheel, tick_at_or_after};
use crate::clock::Millis;
use crate::shm::atomic::{Ordering, fence};
use crate::shm::layout::Entry;
use crate::shm::prefetch;

/// Whether a worker's timers are up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timers {
    /// All that was due was looked at.
    Current,
    /// There is more: it is looked at by the next call.
    Behind,
}

/// A worker's handle at the table. It belongs to one thread at a time; what it returns by [`ConnId`] is good until the
/// next quiescent point.
#[derive(Debug)]
pub struct TableWorker {
    pub(super) handle: TableHandle,
    /// What was looked for in vain; of a rehearsal only.
    pub(super) missed: Option<RefCell<Vec<Sought>>>,
}

impl TableWorker {
    pub(super) fn new(handle: TableHandle) -> Self {
        Self { handle, missed: None }
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.handle.table
    }

    #[inline]
    /// The hash of a flow: one of both directions.
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        flow.hash(&self.handle.table.secret)
    }

    /// Brings the first line that a look-up by this hash reads into the cache.
    #[inline]
    pub fn prefetch_buckets(&self, hash: u64) {
        self.handle.table.buckets.prefetch(hash);
    }

    /// Brings the entries that a look-up by this hash compares into the cache; worth it when the buckets are there.
    #[inline]
    pub fn prefetch_entries(&self, hash: u64) {
        let table = &self.handle.table;
        table.buckets.prefetch_entries(hash, |index, wide| {
            let record = table.slab.record(index);
            prefetch(record.entry);
            if wide {
                prefetch(record.extension);
            }
        });
    }

    /// The connection to which a packet belongs, and which way it goes. Never a template.
    ///
    /// Of several NAT connections with the same replies, the one inserted last answers; when it is gone, one of the
    /// others. Should a packet be inbound of one connection and outbound of another, either may be found.
    #[inline]
    pub fn find(&self, flow: &FlowKey, hash: u64) -> Option<(ConnId, Direction)> {
        let found = self.handle.find(flow, hash);
        if found.is_none() {
            self.miss(Sought::Connection, flow);
        }
        found
    }

    /// The template from this client (its address masked, port 0) to this virtual endpoint.
    pub fn find_template(&self, flow: &FlowKey, hash: u64) -> Option<ConnId> {
        let found = self.handle.find_template(flow, hash);
        if found.is_none() {
            self.miss(Sought::Template, flow);
        }
        found
    }

    /// Takes note of what is looked for in vain from now on.
    pub(crate) fn note_misses(&mut self) {
        self.missed = Some(Default::default());
    }

    /// What was looked for in vain since.
    pub(crate) fn misses(&self) -> Vec<Sought> {
        self.missed.as_ref().map(|missed| missed.borrow().clone()).unwrap_or_default()
    }

    /// Nothing is noted by the workers of a director: one comparison for each packet without a connection.
    #[inline]
    fn miss(&self, sought: fn(FlowKey) -> Sought, flow: &FlowKey) {
        if let Some(missed) = &self.missed {
            missed.borrow_mut().push(sought(*flow));
        }
    }

    /// Inserts a connection or template, found by all workers from then on, unless it is there.
    pub fn insert(&mut self, new: &NewConnection) -> Inserted {
        debug_assert!(!self.handle.parked);
        let request = new.request_flow();
        let (packed, hash) = (Packed::of(&request), request.hash(&self.handle.table.secret));
        let handle = &mut self.handle;
        let table = &*handle.table;
        // Nobody knew of the reply key before: its lines come while the entry is filled.
        let reply = new.reply_flow().map(|flow| flow.hash(&table.secret));
        reply.inspect(|&hash| table.buckets.prefetch_both(hash));
        let Some(index) = handle.state.stock.take(&table.slab) else {
            add(&handle.counts().full, 1);
            return Inserted::Full;
        };
        let record = table.slab.record(index);
        let tick = handle.state.wheel.tick_for(new.expires);
        record.fill(new, tick);
        let claim = Claim { index, wide: new.is_wide() };
        // The reply key first: when another worker finds the connection by the client's, it may send a packet to
        // the destination, and the answer must be known for one.
        let replies = reply.map_or(Entered::Own, |hash| match new.local {
            Some(_) => {
                let same = |other| table.slab.record(other).reply_flow() == new.reply_flow();
                table.buckets.enter_alone(hash, claim, Key::Reply, same)
            }
            None => {
                let beside = |other| table.slab.record(other).shares_reply_key(record);
                table.buckets.enter_beside(hash, claim, beside)
            }
        });
        let (entered, reply) = match replies {
            Entered::Own => {
                let same = |other| table.slab.record(other).is(&packed, new.kind());
                (table.buckets.enter_alone(hash, claim, Key::Request, same), reply)
            }
            refused => (refused, None),
        };
        if entered == Entered::Own {
            record.entry.publish();
            add(&handle.counts().inserted, 1);
            handle.state.wheel.link(Link { index, tick });
            return Inserted::New(ConnId(index));
        }
        handle.discard(index, reply);
        match entered {
            Entered::Existing(index) => {
                // Who has the reply key may be this very connection. One that is not live yet may still be discarded.
                let other = self.handle.table.slab.record(index);
                let is_it = || other.is(&packed, new.kind()) && other.entry.life().is_live();
                let taken = replies != Entered::Own && !is_it();
                if taken { Inserted::LocalTaken } else { Inserted::Existing(ConnId(index)) }
            }
            _ => {
                add(&self.handle.counts().full, 1);
                Inserted::Full
            }
        }
    }

    /// Takes a connection out of the table.
    pub fn remove(&mut self, id: ConnId) -> Removal {
        let removal = self.handle.remove(id);
        if matches!(removal, Removal::Done(_)) {
            // It would die when due; so it need not wake the worker for that.
            self.handle.state.wheel.unlink(id.0);
        }
        removal
    }

    /// Takes a connection out of the table if `test` approves of its state and deadline, which then are its last: a
    /// packet that moves either at this moment on another worker comes before, and is judged, or too late.
    pub fn remove_if(&mut self, id: ConnId, test: impl Fn(u8, Millis) -> bool) -> Removal {
        let removal = self.handle.remove_if(id, test);
        if matches!(removal, Removal::Done(_)) {
            self.handle.state.wheel.unlink(id.0);
        }
        removal
    }

    /// Whether the table is as good as full, so that for each connection inserted another should be removed: nobody
    /// has entries to give, and this worker, limbo included, has fewer than its reserve.
    ///
    /// A removed entry is free only after every worker's quiescent point, so what a burst evicts serves a later one:
    /// the reserve bridges that. With workers that keep pace, the evictions of a burst are free three bursts later at
    /// the latest: closed at the end of the second at the worst, because one closing is under way at a time, and seen
    /// by all at the end of the third. So three bursts' worth suffices. Each handle's part of the slab that is more than
    /// the table's capacity has room for that many, so the reserve costs no capacity. When a worker does not keep
    /// pace, the reserve runs out and insertions are refused until it does.
    pub fn is_short(&self) -> bool {
        self.handle.table.slab.is_exhausted() && self.handle.state.stock.spare() < STRANDED_MAX
    }

    /// The connections in whose slots one of the keys of `new` would have to stand; none if there is room for both.
    pub fn bucket_occupants(&self, new: &NewConnection) -> impl Iterator<Item = ConnId> + use<> {
        let buckets = &self.handle.table.buckets;
        let (request, reply) = (Some(new.request_flow()), new.reply_flow());
        let both = reply.and(request);
        let occupants = |flow: FlowKey, needed| buckets.occupants_if_full(self.hash(&flow), needed);
        // Where there is no room first. Two keys may have one bucket in common: each could take what the other needs.
        let keys = [(request, 1), (reply, 1), (both, 2), (reply, 2)];
        let occupants = keys.map(|(flow, needed)| flow.map(|flow| occupants(flow, needed)));
        occupants.into_iter().flatten().flatten().map(ConnId)
    }

    /// A view of a connection.
    #[inline]
    pub fn connection(&self, id: ConnId) -> Connection<'_> {
        self.handle.connection(id)
    }

    /// The connection in this place, if there is one; for ids that no look-up of this burst has given.
    pub fn occupant(&self, id: ConnId) -> Option<Connection<'_>> {
        let connection = self.connection(id);
        connection.record.entry.life().is_live().then_some(connection)
    }

    /// The connection that had this id and generation, if it is still there; for ids kept across bursts.
    pub fn recall(&self, id: ConnId, generation: u32) -> Option<Connection<'_>> {
        let connection = self.connection(id);
        let there = connection.record.entry.life().is_live() && connection.generation() == generation;
        there.then_some(connection)
    }

    /// Sets the protocol's state and when the connection expires unless a packet refreshes it; see
    /// [`Self::transition`].
    pub fn refresh(&mut self, id: ConnId, state: u8, expires: Millis) {
        self.transition(id, |_| (state, expires));
    }

    /// Moves the protocol's state: `next` gives, for the state that the connection is in, the one to go to and when it
    /// expires unless a packet refreshes it. Returns both states. `next` may be asked again when another worker was
    /// faster, so that no transition is lost and each is reported to exactly one caller.
    ///
    /// A change of state keeps the time exactly, and so does what moves a deadline by a second or more: the first packet
    /// of a connection, or one after a pause. Otherwise a deadline is moved at most once a second, to a whole second:
    /// later than asked for by less than a second, never earlier. A later deadline costs nothing in the wheel, an
    /// earlier one is linked in this worker's. Nothing happens, and `None` is returned, if the connection
    /// has been removed, or is not quite inserted yet: then it can still be discarded.
    pub fn transition(&mut self, id: ConnId, next: impl Fn(u8) -> (u8, Millis)) -> Option<(u8, u8)> {
        let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
        let entry = table.entry(id);
        let mut old = entry.life();
        let (deadline, state) = loop {
            if !old.is_live() {
                return None;
            }
            let (state, expires) = next(old.state());
            let deadline = match old.deadline() {
                _ if old.state() != state => expires,
                now if now >= expires && now < expires + SECOND => return Some((state, state)),
                now if now < expires && expires < now + SECOND => whole_second(expires),
                _ => expires,
            };
            let new = old.with(state, deadline);
            // Relaxed: state and deadline speak for themselves; what an earlier deadline needs comes below.
            match entry.life.compare_exchange_weak(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break (deadline, state),
                Err(now) => old = Life(now),
            }
        };
        if deadline < old.deadline() {
            // Orders the deadline written above before the tick read below, against `put_back`, which writes the
            // tick before it reads the deadline: one of the two sees what the other has written.
            fence(Ordering::SeqCst);
            bring_forward(wheel, id.0, entry, deadline);
        }
        Some((old.state(), state))
    }

    /// Looks at links that are due, a bounded number of them, and calls `expired` for each connection whose deadline
    /// has come. It is expected to remove or to refresh the connection; one that it leaves alone is due again a
    /// tick (1/8 s) later. To be called first in a burst: what is inserted is timed from the last call on.
    pub fn advance_timers(&mut self, now: Millis, mut expired: impl FnMut(&mut Self, ConnId)) -> Timers {
        debug_assert!(!self.handle.parked);
        for _ in 0..TIMERS_A_CALL {
            let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
            let Some(link) = wheel.pop(now) else { return Timers::Current };
            if put_back(wheel, table.slab.entry(link.index), link) {
                expired(self, ConnId(link.index));
            }
        }
        Timers::Behind
    }

    /// When the worker must advance its timers at the latest; `None`: it times nothing.
    pub fn next_timer(&self) -> Option<Millis> {
        self.handle.state.wheel.next_due()
    }

    /// Ends a burst: the worker holds no [`ConnId`] that it will use without [`recall`](Self::recall).
    pub fn quiescent(&mut self) {
        self.handle.quiescent(BATCHES_A_BURST);
    }

    /// As [`quiescent`](Self::quiescent), and it will not look into the table until it unparks: others may reuse
    /// without it what they remove.
    pub fn park(&mut self) {
        self.handle.park();
    }

    /// To be called after [`park`](Self::park), before anything else.
    pub fn unpark(&mut self) {
        self.handle.unpark();
    }

    /// Entries that this worker has removed and that are not free yet: a worker that has some should not sleep for
    /// long, or the table is smaller by as many.
    pub fn in_limbo(&self) -> u32 {
        self.handle.state.stock.in_limbo()
    }
}

impl Table {
    /// The handle of a worker, unparked; `None` if there is no such worker or the handle is taken. Dropping it gives the
    /// handle back, with the timers and spare entries that belong to it.
    pub fn handle(self: &Arc<Self>, worker: usize) -> Option<TableWorker> {
        if worker >= self.config.workers {
            return None;
        }
        let handle = TableHandle::acquire(self, worker)?;
        Some(TableWorker::new(handle))
    }
}

/// What workers and readers have in common.
#[derive(Debug)]
pub(super) struct TableHandle {
    pub(super) table: Arc<Table>,
    number: usize,
    pub(super) state: HandleState,
    parked: bool,
    /// It may go to another thread but not be used by two.
    one_thread: PhantomData<std::cell::Cell<()>>,
}

impl TableHandle {
    /// Takes the handle, unparked, if there is one of this number and nobody sits there.
    pub(super) fn acquire(table: &Arc<Table>, number: usize) -> Option<Self> {
        let state = table.free_handles.get(number)?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        table.quiescence.unpark(number);
        Some(Self { table: Arc::clone(table), number, state, parked: false, one_thread: PhantomData })
    }

    fn counts(&self) -> &HandleCounts {
        &self.table.counts[self.number]
    }

    #[inline]
    pub(super) fn connection(&self, id: ConnId) -> Connection<'_> {
        Connection { id, record: self.table.slab.record(id.0) }
    }

    #[inline]
    pub(super) fn find(&self, flow: &FlowKey, hash: u64) -> Option<(ConnId, Direction)> {
        debug_assert!(!self.parked);
        let flow = Packed::of(flow);
        self.table.find(hash, |record| record.direction(&flow))
    }

    pub(super) fn find_template(&self, flow: &FlowKey, hash: u64) -> Option<ConnId> {
        debug_assert!(!self.parked);
        let packed = Packed::of(flow);
        let found = self.table.find(hash, |record| record.is(&packed, Kind::Template).then_some(()));
        found.map(|(id, ())| id)
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Removal {
        debug_assert!(!self.parked);
        let table = &*self.table;
        let entry = table.entry(id);
        if !entry.life().is_live() {
            return Removal::NotOurs;
        }
        // This exchange elects the one who removes.
        match entry.close() {
            Ok(_) => {}
            Err(entry::REMOVED) => return Removal::NotOurs,
            Err(_) => return Removal::Controls,
        }
        Removal::Done(self.withdraw(id))
    }

    pub(super) fn remove_if(&mut self, id: ConnId, test: impl Fn(u8, Millis) -> bool) -> Removal {
        debug_assert!(!self.parked);
        let entry = self.table.entry(id);
        let passes = |life: Life| life.is_live() && test(life.state(), life.deadline());
        let mut life = entry.life();
        // Looked at before the election too, which writes the entry's line.
        if !passes(life) {
            return Removal::Lasts;
        }
        match entry.close() {
            Ok(_) => {}
            Err(entry::REMOVED) => return Removal::NotOurs,
            Err(_) => return Removal::Controls,
        }
        while passes(life) {
            // Relaxed: the word alone is decided here; what others need to see comes with `withdraw`.
            let removed = Life::removed(0).0;
            match entry.life.compare_exchange_weak(life.0, removed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.withdraw(id);
                    return Removal::Done(life.state());
                }
                Err(now) => life = Life(now),
            }
        }
        entry.reopen();
        Removal::Lasts
    }

    /// Takes the keys of a closed entry out of the index, retires it ([`discard`](Self::discard)), and gives its share
    /// of its controller back.
    fn withdraw(&mut self, id: ConnId) -> u8 {
        let table = &*self.table;
        let record = table.slab.record(id.0);
        table.buckets.unlink(record.client_hash(&table.secret), id.0);
        let reply = record.reply_flow().map(|flow| flow.hash(&table.secret));
        add(&self.counts().removed, 1);
        let state = self.discard(id.0, reply);
        if let Some(controller) = self.connection(id).controller() {
            self.connection(controller).drop_controlled();
        }
        state
    }

    /// Retires an entry that no client key leads to, and whose reply key, if it has one, is still there. Returns the
    /// state that it was in: no transition comes after.
    fn discard(&mut self, index: u32, reply: Option<u64>) -> u8 {
        let table = &*self.table;
        let entry = table.slab.entry(index);
        if let Some(hash) = reply {
            table.buckets.unlink(hash, index);
        }
        // A swap, not a store: an exchange of another worker that refreshes it at this moment fails or comes before.
        // Release, as for the generation: before the closing of the epoch, which others acquire.
        let last = Life(entry.life.swap(Life::removed(0).0, Ordering::Release));
        let generation = entry.generation.load(Ordering::Relaxed).wrapping_add(1);
        entry.generation.store(generation, Ordering::Release);
        self.state.stock.retire(&table.slab, index);
        last.state()
    }

    pub(super) fn quiescent(&mut self, batches: u32) {
        let Table { slab, quiescence, .. } = &*self.table;
        self.state.stock.close(quiescence);
        quiescence.quiescent(self.number);
        self.state.stock.collect(slab, quiescence, batches);
    }

    pub(super) fn park(&mut self) {
        self.parked = true;
        self.state.stock.close(&self.table.quiescence);
        self.table.quiescence.park(self.number);
        self.state.stock.collect(&self.table.slab, &self.table.quiescence, BATCHES_A_BURST);
    }

    pub(super) fn unpark(&mut self) {
        self.table.quiescence.unpark(self.number);
        self.parked = false;
    }
}

impl Drop for TableHandle {
    fn drop(&mut self) {
        self.park();
        let state = std::mem::take(&mut self.state);
        *self.table.free_handles[self.number].lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }
}

/// Puts a due link back, a tick later if the deadline has come; then `true`. A link that does not count dies.
///
/// The entry may be another connection's by now. Its link that counts is in some wheel at the tick in `timer`; if that
/// is this link's tick too, this one takes over and the other dies. So each connection is always looked at in time.
fn put_back(wheel: &mut Wheel, entry: &Entry, due: Link) -> bool {
    let life = entry.life();
    if !life.is_current() {
        return false;
    }
    let has_come = tick_at_or_after(life.deadline()) <= due.tick;
    let tick = wheel.tick_for(life.deadline());
    // Relaxed, as all accesses of `timer`: the fences here and in `refresh` order what must be.
    if entry.timer.compare_exchange(due.tick, tick, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        return false;
    }
    wheel.link(Link { tick, ..due });
    if has_come {
        // One that is being inserted cannot be ended yet. One that is live stays readable in this burst.
        return life.is_live();
    }
    // See `refresh`. A deadline brought forward while the link was on its way back is seen here.
    fence(Ordering::SeqCst);
    let life = entry.life();
    if life.is_current() {
        bring_forward(wheel, due.index, entry, life.deadline());
    }
    false
}

/// Links an entry here if no link that counts is due early enough.
fn bring_forward(wheel: &mut Wheel, index: u32, entry: &Entry, deadline: Millis) {
    let tick = wheel.tick_for(deadline);
    let earlier = |linked| (linked > tick).then_some(tick);
    if entry.timer.fetch_update(Ordering::Relaxed, Ordering::Relaxed, earlier).is_ok() {
        wheel.link(Link { index, tick });
    }
}

/// Adds to a count whose one writer is the caller.
fn add(count: &Statistic, more: u64) {
    count.store(count.load(Relaxed) + more, Relaxed);
}

/// The whole second at or after a time.
fn whole_second(time: Millis) -> Millis {
    Millis(time.0.div_ceil(1000).saturating_mul(1000))
}

const SECOND: Duration = Duration::from_secs(1);
/// Links that one call of `advance_timers` looks at: four bursts' worth of connections.
const TIMERS_A_CALL: usize = 256;
/// Batches of surplus that a quiescent point gives away: more than a burst and its timers can remove.
const BATCHES_A_BURST: u32 = 8;
