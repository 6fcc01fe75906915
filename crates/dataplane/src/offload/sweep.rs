//! Reads the counts of the XDP program, once a second for each record.
//!
//! Each worker reads the records that it has created, some of them between two bursts. Packets since the last reading
//! count as if the worker had forwarded them now; state and deadline of the connection are those of its last packet. A
//! record that is no longer in force is counted for the last time, and freed. Cost: three cache lines for each record.
//! If few records are free, those of connections with few packets are ended (`give_up.rs`).

use std::time::Duration;

use xvs_proto::{LinkId, Protocol};

use super::begin::begin;
use super::give_up::GiveUp;
use super::own::{Offloader, Own, PASS, PAUSE, SLICE};
use super::part::leaves_by;
use super::shared::Offload;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::state;
use crate::clock::Millis;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Flags, Packets, Then, offloaded_word as word};
use crate::counters::StatsValues;
use crate::egress::Path;
use crate::forward::Ends;
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::Relaxed;
use crate::snapshot::DestinationId;
use crate::sync::announce::Announcer;

impl Flows {
    /// Makes [`Self::sweep_offloaded`] read all records now, and frees records without a rest, for tests.
    pub fn hasten_sweep(&mut self) {
        let Some(offloader) = &mut self.offloader else { return };
        (offloader.due, offloader.rest) = (Millis(0), Duration::ZERO);
    }

    /// Reads some records if they are due, and offloads connections again whose record a change has ended. Returns
    /// whether more is due.
    pub fn sweep_offloaded(&mut self, cx: Context<'_>) -> bool {
        let Some(offloader) = self.offloader.as_mut().filter(|offloader| offloader.has_work(cx.now)) else {
            return false;
        };
        if offloader.is_again_due(cx.now) {
            let mut ended = std::mem::take(&mut offloader.ended);
            let is_short = self.offload_again(&mut ended, cx);
            if let Some(offloader) = &mut self.offloader {
                offloader.ended = ended;
                if is_short {
                    offloader.again_due = cx.now + PAUSE;
                }
            }
        }
        if let Some(mut offloader) = self.offloader.take_if(|offloader| offloader.is_pass_due(cx.now)) {
            self.continue_pass(&mut offloader, cx);
            self.offloader = Some(offloader);
        }
        self.deferred.end(&cx.snapshot.destinations);
        self.offloader.as_ref().is_some_and(|offloader| offloader.has_work(cx.now))
    }

    /// Offloads some of these connections again. Returns whether there is no room for more now.
    fn offload_again(&mut self, ended: &mut Vec<(ConnId, u32, LinkId)>, cx: Context<'_>) -> bool {
        for _ in 0..SLICE {
            let Some(&(id, generation, link)) = ended.last() else { break };
            if self.table.recall(id, generation).is_some() && begin(self, id, link, cx) {
                return true;
            }
            ended.pop();
        }
        false
    }

    /// Reads the next records of a pass.
    fn continue_pass(&mut self, offloader: &mut Offloader, cx: Context<'_>) {
        if offloader.begins {
            offloader.begins = false;
            offloader
                .shared
                .flows
                .set_timeouts(|protocol, state| cx.snapshot.settings.timeout(protocol, state));
            offloader.give_up.begin_pass(&offloader.shared, offloader.own.len(), offloader.given_up);
        }
        for _ in 0..SLICE {
            let Some(own) = offloader.own.get_mut(offloader.next) else { break };
            let was_given_up = own.is_given_up;
            let is_kept = self.sweep(&offloader.shared, own, &mut offloader.give_up, cx);
            offloader.given_up += usize::from(own.is_given_up && !was_given_up);
            if is_kept {
                offloader.next += 1;
                continue;
            }
            let own = offloader.own.swap_remove(offloader.next);
            offloader.shared.release(&own);
            offloader.shared.unused.put(own.record, cx.now + offloader.rest);
            if own.is_given_up {
                offloader.given_up -= 1;
            } else if offloader.ended.len() < offloader.ended.capacity() {
                offloader.ended.push((own.id, own.generation, own.link));
            }
        }
        if offloader.next >= offloader.own.len() {
            (offloader.next, offloader.due, offloader.begins) = (0, cx.now + PASS, true);
        }
    }

    /// Takes a record's counts, and its state of the connection. Returns whether the record is kept.
    fn sweep(&mut self, shared: &Offload, own: &mut Own, give_up: &mut GiveUp, cx: Context<'_>) -> bool {
        // Read before the counts, so that the last packets are not missed.
        let is_in_force = shared.is_in_force(own.record, own.destination);
        let is_its = shared.flows.of(own.id) == Some(own.record);
        self.count_response(shared, own, cx);
        if is_its {
            // Before the counts are taken, so that other threads always see the last packet.
            let Self { table, deferred, .. } = self;
            state::settle(table, deferred, own.id, Packets::AsCounted, Then::Keep, cx.snapshot);
        }
        let mut moved = 0;
        let mut has_path = true;
        let counts = self.take_counts(shared, own, is_its);
        for (place, (direction, [packets, bytes])) in DIRECTIONS.into_iter().zip(counts).enumerate() {
            if packets != 0 || bytes != 0 {
                moved += packets.max(1);
                self.count_offloaded(own.destination, direction, packets, bytes, cx);
                if is_its {
                    self.add_packets(own.id, direction, packets, cx);
                    let part = &shared.flows.record(own.record)[word::PARTS + place * word::PART..];
                    has_path &= direction == Direction::Inbound || self.has_path(own, part, cx);
                }
            }
        }
        if is_its {
            // Workers process the connection again if the program no longer forwards it.
            let packets = if moved != 0 { Packets::HavePassed } else { Packets::AsCounted };
            let then = if is_in_force { Then::Keep } else { Then::TakeBack };
            state::settle(&mut self.table, &mut self.deferred, own.id, packets, then, cx.snapshot);
        }
        let idle = shared.flows.used(own.record).at().until(cx.now);
        let connection = self.table.recall(own.id, own.generation);
        // The thread that removes a connection reverts its move, by the record.
        let is_to_be_forgotten = is_its && connection.is_none();
        // A mark that another thread has considered stale is missing.
        let lasts = connection
            .is_some_and(|connection| connection.life().is_offloaded() && idle <= longest_idle(&connection));
        let is_new = std::mem::take(&mut own.is_new);
        let is_cold = give_up.chooses(moved) && !is_new;
        if is_in_force && (is_cold || !lasts || !has_path) {
            // A connection whose path has changed is offloaded again.
            own.is_given_up = has_path || is_cold;
            own.count(shared, false);
            if is_cold {
                give_up.count();
            }
            shared.flows.seal(own.record);
            // Read once more, for packets that the program has forwarded in the meantime.
            return true;
        }
        own.count(shared, is_in_force);
        // A connection whose keys found no room is not tried again within a second.
        if is_in_force || moved != 0 || own.is_given_up && is_new || is_to_be_forgotten {
            return true;
        }
        shared.flows.seal(own.record);
        shared.flows.unbind(own.id, own.record);
        false
    }

    /// Takes a record's counts, packets and bytes of requests, then of replies; also for the log, if the record belongs
    /// to its connection.
    fn take_counts(&self, shared: &Offload, own: &Own, is_its: bool) -> [[u64; 2]; 2] {
        let words = shared.flows.record(own.record);
        let take = || [0, 2].map(|part| [0, 1].map(|unit| taken(&words[word::COUNTS + part + unit])));
        let Some(log) = self.table.table().log().filter(|_| is_its) else { return take() };
        log.moving(own.id, || {
            let counts = take();
            let at = shared.flows.used(own.record).at();
            for (direction, [packets, bytes]) in DIRECTIONS.into_iter().zip(counts) {
                if packets != 0 || bytes != 0 {
                    log.tally(own.id, direction, packets, bytes, at);
                }
            }
            counts
        })
    }

    /// Records the time of a first reply that the program has measured.
    fn count_response(&self, shared: &Offload, own: &mut Own, cx: Context<'_>) {
        if !own.is_timed {
            return;
        }
        let Some(micros) = shared.flows.state(own.record).response_micros() else { return };
        own.is_timed = false;
        // A repeated SYN+ACK, which goes to a worker, is not a first reply.
        self.table.table().forget_request(own.id, own.generation);
        if let Some(destination) = cx.snapshot.destinations.find(own.destination) {
            destination.live.responses.count(self.worker, micros);
        }
    }

    pub(super) fn count_offloaded(
        &self,
        destination: DestinationId,
        direction: Direction,
        packets: u64,
        bytes: u64,
        cx: Context<'_>,
    ) {
        let counted = match direction {
            Direction::Inbound => StatsValues { in_packets: packets, in_bytes: bytes, ..Default::default() },
            Direction::Outbound => {
                StatsValues { out_packets: packets, out_bytes: bytes, ..Default::default() }
            }
        };
        if let Some(destination) = cx.snapshot.destinations.find(destination) {
            destination.live.stats.of_worker(self.worker).add(&counted);
        }
        self.count_total(&counted);
        self.counters.offloaded.add(packets);
    }

    /// Adds packets to those of a connection, and announces them.
    pub(super) fn add_packets(&self, id: ConnId, direction: Direction, packets: u64, cx: Context<'_>) {
        if direction == Direction::Inbound {
            let connection = self.table.connection(id);
            match Announcer::of(cx.snapshot, self.worker, cx.now).filter(|_| is_steady(&connection)) {
                Some(announcer) => announcer.packets(&self.table, id, packets),
                None => connection.set_in_packets(connection.in_packets().wrapping_add(packets as u32)),
            }
        }
    }

    /// Whether a connection's replies still leave as this part of its record specifies. Marks their neighbour as used.
    fn has_path(&self, own: &Own, part: &[AtomicU64], cx: Context<'_>) -> bool {
        let connection = self.table.connection(own.id);
        let ends = Ends::of(&connection);
        let hash = self.table.hash(&ends.replies(connection.protocol()));
        let egress = &cx.snapshot.egress;
        // Replies are received on the link on which requests leave (`begin.rs`).
        let link = cx
            .snapshot
            .destinations
            .route_in(egress.vrf(own.link), own.destination)
            .map_or(own.link, |route| route.link);
        match Path::find_by(egress, ends.client.addr, hash, || {
            cx.snapshot.unmarked_key_to_client(link, &ends)
        }) {
            Some(Path::To(hop)) => {
                let ifindex = egress.link(hop.link).map_or(0, |link| link.ifindex);
                leaves_by(part, ifindex, &hop.addresses())
            }
            _ => false,
        }
    }
}

/// The lifetime of a record after the last packet: for an open connection, for one whose handshake is not complete, and
/// for one that is closed or reset. Few packets follow the last FIN, and none a forged SYN.
fn longest_idle(connection: &Connection<'_>) -> Duration {
    Duration::from_secs(match TcpState::of(connection.state()) {
        _ if connection.flags().intersects(Flags::UNUSUAL) => 0,
        state if connection.protocol() != Protocol::TCP || state == TcpState::Established => 30,
        state if state.is_active() => 2,
        TcpState::FinWait | TcpState::CloseWait | TcpState::LastAck => 5,
        _ => 1,
    })
}

/// Whether ordinary packets leave a connection's state unchanged.
fn is_steady(connection: &Connection<'_>) -> bool {
    (connection.protocol() != Protocol::TCP || connection.state() == TcpState::Established as u8)
        && !connection.flags().intersects(Flags::UNUSUAL)
}

/// In the order of a record's directions.
const DIRECTIONS: [Direction; 2] = [Direction::Inbound, Direction::Outbound];

/// Takes a count to which the program adds. Most are 0.
pub(super) fn taken(count: &AtomicU64) -> u64 {
    if count.load(Relaxed) == 0 { 0 } else { count.swap(0, Relaxed) }
}
