//! Packets that the program of an earlier xvsd has forwarded since that xvsd counted last: after a kill, all packets of
//! the hold.
//!
//! Counted once, before the first timer of the next xvsd runs, so that a connection with traffic does not expire.

use std::sync::atomic::Ordering::Relaxed;

use xvs_xdp::bpf::{KernelMap, Words};

use super::shared::{LAYOUT, LAYOUT_KNOWN, STATE_WORDS};
use super::sweep::taken;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::{ConnId, Direction, RECORD, RECORDS, offloaded_word as word};
use crate::snapshot::DestinationId;

/// The records of an earlier xvsd.
pub(crate) type FormerRecords = Words<{ RECORDS * RECORD }>;

/// Packets of a connection that no xvsd has counted.
#[derive(Debug)]
pub struct Uncounted {
    id: ConnId,
    generation: u32,
    /// Packets and bytes of requests, then of replies.
    counts: [[u64; 2]; 2],
}

/// Whether the records beside this state have the layout that this program reads.
pub(crate) fn has_known_layout(state: &KernelMap) -> bool {
    state.map_words::<STATE_WORDS>().is_ok_and(|state| state[LAYOUT].load(Relaxed) == LAYOUT_KNOWN)
}

/// Takes the counts of the records. Cost: a load for each of their counts.
pub(crate) fn take(records: &FormerRecords) -> Vec<Uncounted> {
    let uncounted = records.as_chunks::<RECORD>().0.iter().filter_map(|words| {
        let counts = [0, 2].map(|part| [0, 1].map(|unit| taken(&words[word::COUNTS + part + unit])));
        let connection = words[word::CONNECTION].load(Relaxed);
        let (id, generation) = (ConnId(connection as u32), (connection >> 32) as u32);
        (counts != [[0; 2]; 2]).then_some(Uncounted { id, generation, counts })
    });
    uncounted.collect()
}

impl Flows {
    /// Counts these packets as if this worker had forwarded them now. Packets of connections that the table does not
    /// have count only for the totals. Called before there are workers.
    pub fn count_former(&mut self, uncounted: Vec<Uncounted>, at: Context<'_>) {
        self.table.unpark();
        for Uncounted { id, generation, counts } in uncounted {
            let is_known = (id.0 as usize) < self.table.table().entries();
            let connection = is_known.then(|| self.table.recall(id, generation)).flatten();
            let destination = connection.map(|connection| DestinationId(connection.dest_ref()));
            for (direction, [packets, bytes]) in
                [Direction::Inbound, Direction::Outbound].into_iter().zip(counts)
            {
                if packets == 0 && bytes == 0 {
                    continue;
                }
                let of = destination.unwrap_or(DestinationId::NONE);
                self.count_offloaded(of, direction, packets, bytes, at);
                if destination.is_some() {
                    self.refresh_offloaded(id, (direction, packets), at);
                }
            }
        }
        self.table.park();
    }
}
