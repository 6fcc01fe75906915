//! The work of an earlier xvsd's program since that xvsd last read its records: after a kill, during the whole hold.
//!
//! Packets are counted and connections get their states once, before the first timer of the next xvsd runs, so a
//! connection with traffic does not expire. A bit of its entry indicates whether a connection already includes its
//! record (`conn/offloaded.rs`).

use std::io;

use xvs_xdp::bpf::KernelMap;

use super::shared::{BUCKET, LAYOUT, LAYOUT_KNOWN, SLOT_WORDS, STATE_WORDS, TCP};
use super::sweep::taken;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::burst::state;
use crate::conn::{
    ConnId, Direction, NO_CONNECTION, Packets, RECORD, RecordState, Used, has_packets, offloaded_word as word,
};
use crate::shm::atomic::AtomicU64;
use crate::shm::atomic::Ordering::{Acquire, Relaxed};
use crate::shm::prefetch;
use crate::shm::words::{self, Rows};
use crate::snapshot::DestinationId;

/// The number of records that are prefetched: with 16, a scan of a million takes 21 ms instead of 37.
const AHEAD: usize = 16;

/// The records of an earlier xvsd.
pub struct FormerRecords {
    records: Rows<RECORD>,
    layout: u64,
}

/// The records of an earlier xvsd that may contain counts or states, by number.
pub struct UsedRecords {
    of: FormerRecords,
    used: Vec<usize>,
}

/// Packets of a connection that no xvsd has counted.
#[derive(Debug)]
pub struct Uncounted {
    id: ConnId,
    generation: u32,
    /// Packets and bytes of requests, then of replies.
    counts: [[u64; 2]; 2],
    /// The state of the record, and the time of its last packet; `None` if its layout does not include them.
    last: Option<(RecordState, Used)>,
}

impl FormerRecords {
    /// Maps the records beside this state. `None` if their layout has another version than those that this program
    /// reads.
    pub(crate) fn map(state: &KernelMap, records: &KernelMap) -> Option<Self> {
        let layout = layout::<STATE_WORDS>(state)
            .or_else(|_| layout::<WITH_KEYS>(state))
            .or_else(|_| layout::<WITHOUT_STATES>(state))
            .ok()?;
        (layout <= LAYOUT_KNOWN).then_some(Self { records: words::rows_of_map(records).ok()?, layout })
    }

    /// These records.
    #[cfg(loom)]
    pub(super) fn of_model(records: Rows<RECORD>, layout: u64) -> Self {
        Self { records, layout }
    }

    /// Finds the records that may contain counts or states, when the workers that begin records have stopped: a program
    /// begins none. Cost: a cache line for each record, most of them unused.
    pub fn find_used(self) -> UsedRecords {
        let used = (0..self.records.len())
            .filter(|number| {
                // At the end, the first ones again.
                prefetch(&self.records[(number + AHEAD) % self.records.len()]);
                is_used(&self.records[*number])
            })
            .collect();
        UsedRecords { of: self, used }
    }
}

/// The version of the layout, in a state with this number of 64-bit words.
fn layout<const N: usize>(state: &KernelMap) -> io::Result<u64> {
    Ok(words::of_map::<N>(state)?[LAYOUT].load(Relaxed))
}

/// Whether a record may contain counts or a state.
fn is_used(words: &[AtomicU64; RECORD]) -> bool {
    // One that was never used has zeros alone.
    words[word::CONNECTION].load(Relaxed) != NO_CONNECTION
        && words[..word::PARTS].iter().any(|word| word.load(Relaxed) != 0)
        || has_packets(words)
}

impl UsedRecords {
    /// Takes the contents of the records, after another program has replaced the earlier xvsd's. Seals them: a segment
    /// that a core is still processing no longer changes the state of a connection, but goes to a worker.
    pub fn take(&self) -> Vec<Uncounted> {
        let FormerRecords { records, layout } = &self.of;
        self.used.iter().filter_map(|number| take(&records[*number], *layout)).collect()
    }
}

/// Seals a record, and takes its contents.
fn take(words: &[AtomicU64; RECORD], layout: u64) -> Option<Uncounted> {
    // Acquire: the program stores the time of a segment before it changes the state.
    let state = (layout == LAYOUT_KNOWN)
        .then(|| RecordState(words[word::STATE].fetch_and(!RecordState::IN_FORCE, Acquire)));
    let counts = [0, 2].map(|part| [0, 1].map(|unit| taken(&words[word::COUNTS + part + unit])));
    let connection = words[word::CONNECTION].load(Relaxed);
    let last = state.map(|state| (state, Used(words[word::USED].load(Relaxed))));
    let is_bound = connection != NO_CONNECTION && last.is_some();
    (is_bound || counts != [[0; 2]; 2]).then_some(Uncounted {
        id: ConnId(connection as u32),
        generation: (connection >> 32) as u32,
        counts,
        last,
    })
}

/// The size of the state in 64-bit words when it had the keys of 131,072 records.
const WITH_KEYS: usize = STATE_WORDS + (1 << 17) * BUCKET;
/// The size of the state in 64-bit words beside records with layout 0, when it had no table of TCP states.
const WITHOUT_STATES: usize = WITH_KEYS - (SLOT_WORDS - TCP);

impl Flows {
    /// Counts these packets as if this worker had forwarded them now. Packets of connections that are not in the table
    /// count only for the totals. Called before there are workers.
    pub fn count_former(&mut self, uncounted: Vec<Uncounted>, cx: Context<'_>) {
        self.table.unpark();
        for Uncounted { id, generation, counts, last } in uncounted {
            let destination = Some(id)
                .filter(|id| (id.0 as usize) < self.table.table().entries())
                .and_then(|id| self.table.recall(id, generation))
                .map(|connection| DestinationId(connection.dest_ref()));
            for (direction, [packets, bytes]) in
                [Direction::Inbound, Direction::Outbound].into_iter().zip(counts)
            {
                if packets == 0 && bytes == 0 {
                    continue;
                }
                let counted_at = destination.unwrap_or(DestinationId::NONE);
                self.count_offloaded(counted_at, direction, packets, bytes, cx);
                if destination.is_some() {
                    self.add_packets(id, direction, packets, cx);
                    if let Some(log) = self.table.table().log() {
                        log.tally(id, direction, packets, bytes, cx.now);
                    }
                }
            }
            if destination.is_some() {
                let packets = if counts == [[0; 2]; 2] { Packets::AsCounted } else { Packets::HavePassed };
                self.settle_former(id, last, packets, cx);
            }
        }
        self.deferred.end(&cx.snapshot.destinations);
        self.table.park();
    }

    /// Gives a connection the state and deadline of a former record. `packets`: whether packets have passed.
    fn settle_former(
        &mut self,
        id: ConnId,
        last: Option<(RecordState, Used)>,
        packets: Packets,
        cx: Context<'_>,
    ) {
        let protocol = self.table.connection(id).protocol();
        let settings = &cx.snapshot.settings;
        match last {
            Some((record, used)) => {
                if let Some(settled) = self
                    .table
                    .settle_former(id, record, packets, |state| used.at() + settings.timeout(protocol, state))
                {
                    state::note_settled(&self.table, &mut self.deferred, id, settled, cx.snapshot);
                }
            }
            None if packets == Packets::HavePassed => {
                self.table.transition(id, |state| (state, cx.now + settings.timeout(protocol, state)));
            }
            None => {}
        }
    }
}
