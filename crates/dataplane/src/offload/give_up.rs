//! The connections that give up their records when few are free.
//!
//! Decided by each worker for its own records, once a second. While fewer than an eighth of all records are free,
//! connections with few packets in this second give up theirs, as many as are missing from the eighth. "Few" is 1 at
//! first and doubles each second, up to [`COLDEST`]. `sweep.rs` ends the records.

use super::shared::Offload;

/// Maximum number of packets per second on a connection that gives up its record.
const COLDEST: u64 = 64;

/// The records that one worker gives up in a pass over its records.
#[derive(Debug, Default)]
pub(super) struct GiveUp {
    /// Connections with at most this number of packets in the pass give up theirs.
    packets: u64,
    /// How many more do so in the pass.
    left: usize,
}

impl GiveUp {
    /// Begins a pass over this number of own records, of which some are already given up but not free yet.
    pub(super) fn begin_pass(&mut self, shared: &Offload, own: usize, given_up: usize) {
        // The share of this worker.
        let short = shared.short_of();
        self.left = (short * own).div_ceil(shared.used().max(1)).saturating_sub(given_up);
        self.packets = if short == 0 { 0 } else { (2 * self.packets).clamp(1, COLDEST) };
    }

    /// Whether a connection with this number of packets in the pass has to give up its record.
    pub(super) fn chooses(&self, packets: u64) -> bool {
        packets <= self.packets && self.left > 0
    }

    /// Counts a connection that has given up its record.
    pub(super) fn count(&mut self) {
        self.left -= 1;
    }
}
