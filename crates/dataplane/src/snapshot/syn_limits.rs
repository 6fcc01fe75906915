//! Limits on SYNs: the number that a service gets per second, from all clients together.
//!
//! A limit is one 64-bit integer: the time at which the next SYN is due (the generic cell rate algorithm, ITU-T I.371),
//! changed by compare-and-swap. The XDP program decides on the SYNs for most services, before anything is copied; the
//! integer is then in the program's map (`steering/syn_limits.rs`). Workers decide on the rest: fragments, packets from
//! this machine itself, and SYNs for services that the program cannot determine. Either the program or a worker decides
//! on a SYN, never both. `new_connection/limit.rs` checks packets.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use hashbrown::HashMap;
use xvs_sched::{ServiceKey, SynRate};
use xvs_xdp::bpf::Words;

use super::clients::next_due;
use crate::bpf::{in_words, xvs_syn_limits};
use crate::clock::Millis;

/// The limits by service.
pub type SynLimits = HashMap<ServiceKey, Arc<SynLimit>>;

/// The limit of a service.
#[derive(Debug)]
pub struct SynLimit {
    /// The SYNs that it lets pass.
    pub rate: SynRate,
    /// SYNs that it has dropped, also in the program.
    pub dropped: Arc<AtomicU64>,
    /// When the next SYN would be due without a burst, in nanoseconds of the clock.
    due: AtomicU64,
    /// The program's limits, and the index of this limit's time in them.
    of_program: OnceLock<(Arc<ProgramWords>, usize)>,
    /// Whether the program decides on whole packets. Only the control thread writes it.
    is_in_program: AtomicBool,
}

/// The words of the program's limits.
pub(crate) type ProgramWords = Words<{ in_words(size_of::<xvs_syn_limits>()) }>;

impl SynLimit {
    /// A limit that adds to these drops.
    pub fn new(rate: SynRate, dropped: Arc<AtomicU64>) -> Self {
        Self {
            rate,
            dropped,
            due: AtomicU64::new(0),
            of_program: OnceLock::new(),
            is_in_program: false.into(),
        }
    }

    /// A copy that changes independently, counts nowhere and is in no program.
    pub(crate) fn separate_copy(&self) -> Self {
        Self { due: AtomicU64::new(self.due().load(Relaxed)), ..Self::new(self.rate, Arc::default()) }
    }

    /// Records the limit's index in the program, and whether the program decides from now on.
    pub(crate) fn set_program(&self, words: &Arc<ProgramWords>, place: usize, is_in_program: bool) {
        self.of_program.get_or_init(|| (words.clone(), place));
        // Relaxed: a worker that is late lets a SYN pass without counting it, or counts one twice.
        self.is_in_program.store(is_in_program, Relaxed);
    }

    /// Whether the program decides on whole packets from the wire.
    pub(crate) fn is_in_program(&self) -> bool {
        self.is_in_program.load(Relaxed)
    }

    fn due(&self) -> &AtomicU64 {
        match self.of_program.get() {
            Some((words, place)) if self.is_in_program() => &words[*place],
            _ => &self.due,
        }
    }

    /// Consumes the permission for a SYN, if the rate gives one now. If not, counts the SYN as dropped.
    pub(crate) fn take(&self, now: Millis) -> bool {
        let SynRate { rate, burst } = self.rate;
        // Relaxed: the integer orders no other memory.
        let taken = self.due().fetch_update(Relaxed, Relaxed, |due| next_due(rate, burst, due, now));
        if taken.is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use crate::snapshot::syn_limits::*;

    #[test]
    fn workers_that_take_at_once_get_no_more_than_the_burst_and_count_all_others() {
        let limit = SynLimit::new(SynRate { rate: 1, burst: 1000 }, Arc::default());
        let now = Millis(10_000);
        let taken: usize = thread::scope(|scope| {
            let worker = || (0..2000).filter(|_| limit.take(now)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().expect("it does not panic")).sum()
        });
        assert_eq!((taken, limit.dropped.load(Relaxed)), (1000, 7000));
    }
}
