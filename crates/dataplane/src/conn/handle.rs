//! Handles: the operations of workers and readers on the table.
//!
//! A [`TableWorker`] finds, inserts, removes and times connections within a burst. A reader (`reader.rs`) walks all
//! connections at the same time. Each handle owns the entries that it has removed until no thread can still read them.
//! A worker also owns the timer links that it has created (`timer_link.rs`). Cost of each operation: a few loads and at
//! most a handful of compare-and-swaps. No operation waits or allocates.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::atomic::AtomicU64 as Statistic;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use xvs_proto::{Endpoint, FlowKey};

use super::buckets::{Claim, Entered, Key};
use super::connection::{Complete, Connection};
use super::direction::Direction;
use super::entry::Packed;
use super::flags::Flags;
use super::id::ConnId;
use super::insertion::{Inserted, Kind, NewConnection, Removal};
use super::keys::Keys;
use super::life::Life;
use super::log::Ending;
use super::lookup::Sought;
use super::offloaded::{self, Packets, Reading, Settled, State, Then, has_become_inactive};
use super::slab::{STRANDED_MAX, Stock};
use super::table::{HandleCounts, HandleState, Table};
use super::timer_link::bring_forward;
use super::wheel::{Link, Wheel};
use crate::clock::Millis;
use crate::shm::atomic::{Ordering, fence};

/// A worker's handle. It belongs to one thread at a time. A [`ConnId`] that it returns is valid until the next
/// quiescent point.
#[derive(Debug)]
pub struct TableWorker {
    pub(super) handle: TableHandle,
    /// The look-ups that found nothing; only in a dry run.
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

    /// The handle for look-ups that no packet causes: look-ups through [`Self`] may be recorded.
    pub(crate) fn handle(&self) -> &TableHandle {
        &self.handle
    }

    /// The hash of a flow, equal for both directions.
    #[inline]
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        self.handle.hash(flow)
    }

    /// Prefetches the cache line that a look-up by this hash reads first.
    #[inline]
    pub fn prefetch_buckets(&self, hash: u64) {
        self.handle.table.buckets.prefetch(hash);
    }

    /// Prefetches the entries that a look-up by this hash compares. The buckets should already be in the cache.
    #[inline]
    pub fn prefetch_entries(&self, hash: u64) {
        self.handle.table.buckets.prefetch_entries(hash, |index, wide| self.prefetch_entry(index, wide));
    }

    /// The connection of a packet, and the packet's direction. Never a template.
    ///
    /// Among several NAT connections with the same reply flow, it finds the most recently inserted one, and after its
    /// removal one of the others. If a packet is inbound on one connection and outbound on another, either may be
    /// found.
    #[inline]
    pub fn find(&self, flow: &FlowKey, hash: u64) -> Option<(ConnId, Direction)> {
        let found = self.handle.find(flow, hash);
        if found.is_none() {
            self.miss(Sought::Connection, flow);
        }
        found
    }

    /// The connection that is expected ([`Flags::NO_CLIENT_PORT`]) for a packet of this flow.
    pub(crate) fn find_expected(&self, flow: &FlowKey) -> Option<ConnId> {
        // A dry run's table contains only the connections that it has looked up.
        if self.handle.table.expected.load(Relaxed) == 0 && self.missed.is_none() {
            return None;
        }
        let expected = FlowKey { source: Endpoint { port: 0, ..flow.source }, ..*flow };
        self.find(&expected, self.hash(&expected))
            .filter(|(_, direction)| *direction == Direction::Inbound)
            .map(|(id, _)| id)
            .filter(|id| self.connection(*id).flags().contains(Flags::NO_CLIENT_PORT))
    }

    /// The template from this client (masked address, port 0) to this virtual endpoint.
    pub fn find_template(&self, flow: &FlowKey, hash: u64) -> Option<ConnId> {
        let found = self.handle.find_template(flow, hash);
        if found.is_none() {
            self.miss(Sought::Template, flow);
        }
        found
    }

    /// Records the look-ups that find nothing from now on.
    pub(crate) fn note_misses(&mut self) {
        self.missed = Some(Default::default());
    }

    /// The recorded look-ups that found nothing.
    pub(crate) fn misses(&self) -> Vec<Sought> {
        self.missed.as_ref().map(|missed| missed.borrow().clone()).unwrap_or_default()
    }

    /// Records, in a dry run, a look-up that found nothing. Costs workers a comparison for each packet without a
    /// connection.
    #[inline]
    fn miss(&self, sought: fn(FlowKey) -> Sought, flow: &FlowKey) {
        if let Some(missed) = &self.missed {
            missed.borrow_mut().push(sought(*flow));
        }
    }

    /// The number of connections and templates that this worker has inserted.
    #[inline]
    pub(crate) fn insertions(&self) -> u64 {
        self.handle.counts().inserted.load(Relaxed)
    }

    /// Inserts a connection or template, unless it exists. All workers find it from then on.
    pub fn insert(&mut self, new: &NewConnection) -> Inserted {
        self.insert_complete(new, None)
    }

    /// Like [`Self::insert`], after `complete` has written the connection's remaining data. Otherwise another worker
    /// could process a packet with an incomplete connection.
    pub(crate) fn insert_complete(&mut self, new: &NewConnection, complete: Complete<'_>) -> Inserted {
        debug_assert!(!self.handle.parked);
        let handle = &mut self.handle;
        let table = &*handle.table;
        let reply = new.reply_flow();
        let keys = Keys::of(new.request_flow(), new.kind(), reply, new.local.is_some(), &table.secret);
        // The reply key was not known before, so its lines are prefetched while the entry is filled.
        keys.prefetch_reply(&table.buckets);
        let Some(index) = handle.stock.take(&table.slab) else {
            add(&handle.counts().full, 1);
            return Inserted::Full;
        };
        // The XDP program must not forward its replies as those of an older connection.
        let older = reply
            .filter(|_| table.offloaded.get().is_some())
            .and_then(|reply| handle.find(&reply, reply.hash(&table.secret)));
        let record = table.slab.record(index);
        let tick = handle.state.wheel.tick_for(new.expires);
        record.fill(new, tick);
        if let Some(complete) = complete {
            complete(&handle.connection(ConnId(index)));
        }
        handle.begin_tally(index);
        let claim = Claim { index, wide: new.is_wide() };
        let Err((key, refused)) = keys.enter(&table.buckets, &table.slab, claim) else {
            record.entry.publish();
            if let Some((older, Direction::Outbound)) = older {
                table.end_offload(older);
            }
            if new.flags.contains(Flags::NO_CLIENT_PORT) {
                table.expected.fetch_add(1, Relaxed);
            }
            add(&handle.counts().inserted, 1);
            handle.note_begin(ConnId(index), new.state);
            handle.state.wheel.link(Link { index, tick });
            return Inserted::New(ConnId(index));
        };
        handle.discard(index);
        match refused {
            Entered::Existing(index) => {
                // The owner of the reply key may be this very connection. An entry that is not live yet may still be
                // discarded.
                let other = self.handle.table.slab.record(index);
                let taken = key == Key::Reply && !(keys.are_of(other) && other.entry.life().is_live());
                if taken { Inserted::LocalTaken } else { Inserted::Existing(ConnId(index)) }
            }
            _ => {
                add(&self.handle.counts().full, 1);
                Inserted::Full
            }
        }
    }

    /// Removes a connection from the table, because another one replaces it.
    pub fn remove(&mut self, id: ConnId) -> Removal {
        let removal = self.handle.remove(id);
        self.unlink_removed(id, removal)
    }

    /// Removes a connection from the table, for this reason, if `test` accepts its state and deadline. These are the
    /// last ones: if another worker changes either at the same time, the change precedes the test or has no effect.
    pub fn remove_if(&mut self, id: ConnId, why: Ending, test: impl Fn(u8, Millis) -> bool) -> Removal {
        let removal = self.handle.remove_if(id, why, test);
        self.unlink_removed(id, removal)
    }

    fn unlink_removed(&mut self, id: ConnId, removal: Removal) -> Removal {
        if matches!(removal, Removal::Done(_)) {
            // The link would be discarded when due; without it the worker need not wake up for that.
            self.handle.state.wheel.unlink(id.0);
        }
        removal
    }

    /// Whether the table is nearly full, so that for each inserted connection another should be removed: the slab has
    /// no entries left, and this worker has fewer than its reserve, including those in limbo.
    ///
    /// A removed entry is free only after every worker's quiescent point, so entries that are evicted in one burst are
    /// used in a later one. The reserve covers this delay. If all workers make progress, the entries evicted in a burst
    /// are free three bursts later at the latest: in the worst case the epoch is closed at the end of the second,
    /// because only one is closed at a time, and all have seen it at the end of the third. The slab exceeds the table's
    /// capacity by this reserve for each handle, so it costs no capacity. If a worker makes no progress, the reserve
    /// runs out and insertions are refused until it does.
    pub fn is_short(&self) -> bool {
        self.handle.table.slab.is_exhausted() && self.handle.stock.spare() < STRANDED_MAX
    }

    /// The connections whose slots the keys of `new` need; none if both keys have room.
    pub fn bucket_occupants(&self, new: &NewConnection) -> impl Iterator<Item = ConnId> + use<> {
        let buckets = &self.handle.table.buckets;
        let request = Some(new.request_flow());
        let reply = new.reply_flow();
        let both = reply.and(request);
        // First the keys that have no room. Both keys may share a bucket, and each could take the slot that the other
        // needs.
        [(request, 1), (reply, 1), (both, 2), (reply, 2)]
            .map(|(flow, needed)| flow.map(|flow| buckets.occupants_if_full(self.hash(&flow), needed)))
            .into_iter()
            .flatten()
            .flatten()
            .map(ConnId)
    }

    /// A view of a connection.
    #[inline]
    pub fn connection(&self, id: ConnId) -> Connection<'_> {
        self.handle.connection(id)
    }

    /// The connection at this index, if there is one. For ids that no look-up in this burst has returned.
    pub fn occupant(&self, id: ConnId) -> Option<Connection<'_>> {
        let connection = self.connection(id);
        connection.record.entry.life().is_live().then_some(connection)
    }

    /// The connection with this id and generation, if it still exists. For ids kept across bursts.
    pub fn recall(&self, id: ConnId, generation: u32) -> Option<Connection<'_>> {
        self.occupant(id).filter(|connection| connection.generation() == generation)
    }

    /// Changes the protocol state. `next` returns, for the current state, the next state and the time when the
    /// connection expires without another packet. Returns both states. `next` may be called again if another worker has
    /// changed the state at the same time, so no transition is lost and each is reported to exactly one caller.
    ///
    /// The deadline is stored exactly if the state changes or if it moves by a second or more: on the first packet of a
    /// connection, or on one after a pause. Otherwise it moves at most once a second, to a whole second: later than
    /// requested by less than a second, never earlier. A later deadline needs no change in the wheel; an earlier one is
    /// linked in this worker's wheel. The returned former state is the entry's, by which the connection is counted;
    /// `next` gets the record's, and the record ends if the state changes. If the connection has been removed, or is
    /// not completely inserted yet, nothing changes and the result is `None`: such a connection may still be discarded.
    pub fn transition(&mut self, id: ConnId, next: impl Fn(u8) -> (u8, Millis)) -> Option<(u8, u8)> {
        let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
        let by_record = Cell::new((None, 0));
        let (old, new) = change(table, wheel, id, |old| {
            // Read before the exchange, after which the owner of the record may reuse it.
            let slot = match table.offloaded.get().filter(|_| old.is_offloaded()) {
                Some(offloaded) => offloaded.of(id).map(|record| offloaded.slot(record)),
                None => None,
            };
            let mut told = offloaded::told(&table.offloaded, id, old);
            let (mut state, mut expires) = next(told.state());
            if old.is_offloaded() && state != told.state() {
                // The program no longer changes anything; its changes until now come first.
                table.end_offload(id);
                told = offloaded::told(&table.offloaded, id, old).taken_back();
                (state, expires) = next(told.state());
            }
            by_record.set((slot, told.state()));
            let new = told.refreshed(state, expires).unwrap_or(told);
            (new != old).then_some(new)
        })?;
        if let (Some(slot), state) = by_record.get()
            && has_become_inactive(old.state(), state)
            && let Some(offloaded) = table.offloaded.get()
        {
            offloaded.take_move(slot);
        }
        Some((old.state(), new.state()))
    }

    /// Applies the state and deadline in a connection's record. The record ends before the connection is taken back.
    /// `None` if the connection has no record, or was removed.
    pub(crate) fn settle(&mut self, id: ConnId, packets: Packets, then: Then) -> Option<Settled> {
        let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
        let offloaded = table.offloaded.get()?;
        let Some(record) = offloaded.of(id) else {
            // The record belongs to a former process, or there is none.
            change(table, wheel, id, |old| {
                (old.is_offloaded() && offloaded.of(id).is_none()).then(|| old.taken_back())
            });
            return None;
        };
        if then == Then::TakeBack {
            offloaded.seal(record);
        }
        let seen = Cell::new(None);
        let (old, new) = change(table, wheel, id, |old| {
            let reading = offloaded.read(id, record, old, packets);
            seen.set(reading);
            let told = reading?.told;
            let new = if then == Then::TakeBack { told.taken_back() } else { told };
            (old.is_offloaded() && new != old).then_some(new)
        })?;
        let Reading { slot, state, .. } = seen.get()?;
        if has_become_inactive(old.state(), new.state()) {
            offloaded.take_move(slot);
        }
        Some(Settled { before: old.state(), after: new.state(), record: state })
    }

    /// Like [`Self::settle`], by the record of a former process. `expires` is the deadline by state.
    pub(crate) fn settle_former(
        &mut self,
        id: ConnId,
        record: State,
        packets: Packets,
        expires: impl Fn(u8) -> Millis,
    ) -> Option<Settled> {
        let TableHandle { table, state: HandleState { wheel, .. }, .. } = &mut self.handle;
        let (old, new) = change(table, wheel, id, |old| {
            let state = old.is_offloaded().then(|| record.tcp().unwrap_or(old.state()))?;
            let new = match packets {
                Packets::AsCounted if state == old.state() => old,
                _ => old.later(state, expires(state)),
            };
            Some(new.taken_back())
        })?;
        Some(Settled { before: old.state(), after: new.state(), record })
    }

    /// Ends a burst: the worker keeps no [`ConnId`] that it will use without [`recall`](Self::recall).
    pub fn quiescent(&mut self) {
        self.handle.quiescent(BATCHES_A_BURST);
    }

    /// Like [`quiescent`](Self::quiescent); in addition the worker promises to read nothing from the table until it
    /// unparks. Other threads can reuse removed entries without it.
    pub fn park(&mut self) {
        self.handle.park();
    }

    /// Must be called after [`park`](Self::park) before any other operation.
    pub fn unpark(&mut self) {
        self.handle.unpark();
    }

    /// The number of entries that this worker has removed and that are not free yet. A worker with such entries should
    /// not sleep for long: in the meantime the table is smaller by this number.
    pub fn in_limbo(&self) -> u32 {
        self.handle.stock.in_limbo()
    }
}

/// Replaces the field `life` of a live connection with the result of `next`, again if another thread has changed it in
/// the meantime; `None` from `next` leaves it unchanged. Returns the field before and after; `None` if the connection
/// was removed.
fn change(
    table: &Table,
    wheel: &mut Wheel,
    id: ConnId,
    next: impl Fn(Life) -> Option<Life>,
) -> Option<(Life, Life)> {
    let entry = table.entry(id);
    let mut old = entry.life();
    let new = loop {
        if !old.is_live() {
            return None;
        }
        let Some(new) = next(old) else { return Some((old, old)) };
        // Relaxed: state and deadline order no other memory. The fence below orders what an earlier deadline needs.
        match entry.life.compare_exchange_weak(old.0, new.0, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => break new,
            Err(now) => old = Life(now),
        }
    };
    if new.deadline() < old.deadline() {
        // Orders the write of the deadline above before the read of the tick below. `put_back` writes the tick and then
        // reads the deadline, so at least one of the two sees what the other has written.
        fence(Ordering::SeqCst);
        bring_forward(wheel, id.0, entry, new.deadline());
    }
    Some((old, new))
}

impl Table {
    /// The handle of a worker, unparked; `None` if there is no such worker or the handle is taken. Dropping it returns
    /// the handle with its timers and spare entries.
    pub fn handle(self: &Arc<Self>, worker: usize) -> Option<TableWorker> {
        if worker >= self.config.workers {
            return None;
        }
        Some(TableWorker::new(TableHandle::acquire(self, worker)?))
    }
}

/// The common part of the handles of workers and readers.
#[derive(Debug)]
pub(crate) struct TableHandle {
    pub(super) table: Arc<Table>,
    pub(super) number: usize,
    pub(super) state: HandleState,
    pub(super) stock: Stock,
    pub(super) parked: bool,
    /// The time of the burst or walk, for the log of connections.
    pub(super) now: Millis,
    /// The handle may move to another thread, but two threads must not use it at once.
    one_thread: PhantomData<Cell<()>>,
}

impl TableHandle {
    /// Takes the handle with this number, unparked. `None` if there is none or it is taken.
    pub(super) fn acquire(table: &Arc<Table>, number: usize) -> Option<Self> {
        let state = table.free_handles.get(number)?.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        table.quiescence.unpark(number);
        Some(Self {
            table: Arc::clone(table),
            number,
            state,
            stock: table.left_stock(number).take().unwrap_or_default(),
            parked: false,
            now: Millis(0),
            one_thread: PhantomData,
        })
    }

    fn counts(&self) -> &HandleCounts {
        &self.table.counts[self.number]
    }

    #[inline]
    pub(super) fn connection(&self, id: ConnId) -> Connection<'_> {
        Connection { id, record: self.table.slab.record(id.0), offloaded: &self.table.offloaded }
    }

    #[inline]
    pub(crate) fn hash(&self, flow: &FlowKey) -> u64 {
        flow.hash(&self.table.secret)
    }

    #[inline]
    pub(crate) fn find(&self, flow: &FlowKey, hash: u64) -> Option<(ConnId, Direction)> {
        debug_assert!(!self.parked);
        let packed = Packed::of(flow);
        self.table.find(hash, |record| record.direction(&packed))
    }

    pub(super) fn find_template(&self, flow: &FlowKey, hash: u64) -> Option<ConnId> {
        debug_assert!(!self.parked);
        let packed = Packed::of(flow);
        self.table.find(hash, |record| record.is(&packed, Kind::Template).then_some(())).map(|(id, ())| id)
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Removal {
        debug_assert!(!self.parked);
        let entry = self.table.entry(id);
        if !entry.life().is_live() {
            return Removal::NotLive;
        }
        // This exchange elects the thread that removes the entry.
        if let Err(refusal) = entry.close() {
            return refusal;
        }
        Removal::Done(self.withdraw(id, Ending::Replaced, None))
    }

    pub(super) fn remove_if(
        &mut self,
        id: ConnId,
        why: Ending,
        test: impl Fn(u8, Millis) -> bool,
    ) -> Removal {
        debug_assert!(!self.parked);
        let entry = self.table.entry(id);
        let mut life = entry.life();
        // Tested before the election, too, because the election writes the entry's cache line.
        if !self.passes(id, life, &test) {
            return Removal::Kept;
        }
        if let Err(refusal) = entry.close() {
            return refusal;
        }
        if life.is_offloaded() {
            self.table.end_offload(id);
        }
        while self.passes(id, life, &test) {
            // Relaxed: this exchange decides only this field; `withdraw` publishes the data that other threads need to
            // see.
            let removed = Life::removed(0).0;
            match entry.life.compare_exchange_weak(life.0, removed, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Removal::Done(self.withdraw(id, why, Some(life))),
                Err(now) => life = Life(now),
            }
        }
        entry.reopen();
        Removal::Kept
    }

    fn passes(&self, id: ConnId, life: Life, test: &impl Fn(u8, Millis) -> bool) -> bool {
        let told = offloaded::told(&self.table.offloaded, id, life);
        life.is_live() && test(told.state(), told.deadline())
    }

    /// Unlinks the keys of a closed entry from the index, retires the entry ([`discard`](Self::discard)), and
    /// decrements the count of its controller. `last` is the entry's last `life`, if another value has already replaced
    /// it. Returns the last state.
    fn withdraw(&mut self, id: ConnId, why: Ending, last: Option<Life>) -> u8 {
        let table = &*self.table;
        Keys::of_entry(&table.slab, &table.secret, id.0).unlink(&table.buckets, id.0);
        if self.connection(id).flags().contains(Flags::NO_CLIENT_PORT) {
            table.expected.fetch_sub(1, Relaxed);
        }
        add(&self.counts().removed, 1);
        let last = last.unwrap_or(self.discard(id.0));
        self.note_end(id, why, last.state());
        if let Some(offloaded) = self.table.offloaded.get() {
            offloaded.forget(id, last);
        }
        if let Some(controller) = self.connection(id).controller() {
            self.connection(controller).drop_controlled();
        }
        last.state()
    }

    /// Retires an entry whose keys are not in the index. Returns its last `life`: no transition follows.
    fn discard(&mut self, index: u32) -> Life {
        let table = &*self.table;
        let entry = table.slab.entry(index);
        // A swap, not a store: a concurrent exchange by a worker that refreshes the entry either fails or comes before.
        // Release, as for the generation: both come before the closing of the epoch, which other threads acquire.
        let last = Life(entry.life.swap(Life::removed(0).0, Ordering::Release));
        entry.generation.store(entry.generation.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        self.stock.retire(&table.slab, index);
        last
    }

    pub(super) fn quiescent(&mut self, batches: u32) {
        let Table { slab, quiescence, .. } = &*self.table;
        self.stock.close(quiescence);
        quiescence.quiescent(self.number);
        self.stock.collect(slab, quiescence, batches);
    }

    pub(super) fn park(&mut self) {
        self.parked = true;
        self.stock.close(&self.table.quiescence);
        self.table.quiescence.park(self.number);
        self.stock.collect(&self.table.slab, &self.table.quiescence, BATCHES_A_BURST);
    }

    pub(super) fn unpark(&mut self) {
        self.table.quiescence.unpark(self.number);
        self.parked = false;
    }
}

/// Adds to a count whose only writer is the caller.
fn add(count: &Statistic, more: u64) {
    count.store(count.load(Relaxed) + more, Relaxed);
}

/// The number of surplus batches that a quiescent point returns: more than a burst and its timers can remove.
const BATCHES_A_BURST: u32 = 8;

#[cfg(test)]
impl TableWorker {
    /// Inserts a connection for which there is room, and whose identity is new.
    pub(crate) fn insert_new(&mut self, new: &NewConnection) -> ConnId {
        match self.insert(new) {
            Inserted::New(id) => id,
            other => panic!("{new:?}: {other:?}"),
        }
    }
}
