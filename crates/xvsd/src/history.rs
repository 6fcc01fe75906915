//! Samples of counters from the last minute, from which `xvs status` computes recent drops and load.
//!
//! The control thread, which wakes ten times a second anyway, records a sample every [`INTERVAL`], without the workers.
//! Memory: the samples of the last [`WINDOW`] and one older, some fourteen of a few hundred numbers each.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::counters::{Counter, WorkerCounters};
use xvs_dataplane::egress::Path;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::verdict::DropReason;
use xvs_host::network::card::CardLosses;

use crate::lock::lock;

/// The time between two samples.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// The time that the samples cover.
pub const WINDOW: Duration = Duration::from_secs(60);

/// The values of the workers' counters at a moment. The default is the daemon's start, when all were zero.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// The moment.
    pub at: Millis,
    /// Packets dropped, in the order of [`Reason::all`].
    pub drops: Vec<u64>,
    /// The busy time of each worker, in nanoseconds.
    pub busy_ns: Vec<u64>,
    /// The losses of each interface's card.
    pub cards: Vec<CardLosses>,
    /// The real servers whose next hop does not answer.
    pub silent: BTreeSet<IpAddr>,
}

impl Sample {
    /// The current values.
    pub fn take(
        workers: &[Arc<WorkerCounters>],
        cards: &[CardLosses],
        snapshot: &Snapshot,
        at: Millis,
    ) -> Self {
        Self {
            at,
            drops: drops(workers).collect(),
            busy_ns: workers.iter().map(|worker| worker.busy_ns.value()).collect(),
            cards: cards.to_vec(),
            silent: silent_servers(snapshot),
        }
    }

    /// Packets dropped since an earlier sample, in the same order.
    pub fn drops_since(&self, earlier: &Self) -> Vec<u64> {
        differences(&self.drops, &earlier.drops).collect()
    }

    /// The losses of each interface's card since an earlier sample.
    pub fn card_losses_since(&self, earlier: &Self) -> Vec<CardLosses> {
        let earlier = earlier.cards.iter().copied().chain(std::iter::repeat(CardLosses::default()));
        self.cards.iter().zip(earlier).map(|(now, earlier)| now.since(earlier)).collect()
    }

    /// The share of the time since an earlier sample in which each worker was busy, in percent; `None` if no time has
    /// passed.
    pub fn busy_percent_since(&self, earlier: &Self) -> Vec<Option<f64>> {
        let passed_ns = earlier.at.until(self.at).as_nanos() as f64;
        differences(&self.busy_ns, &earlier.busy_ns)
            .map(|busy| (passed_ns > 0.0).then(|| (busy as f64 / passed_ns * 100.0).min(100.0)))
            .collect()
    }
}

/// Packets dropped since the workers began, in the order of [`Reason::all`].
pub(crate) fn drops(workers: &[Arc<WorkerCounters>]) -> impl Iterator<Item = u64> {
    Reason::all().map(|reason| workers.iter().map(|worker| reason.counter(worker).value()).sum())
}

/// The real servers whose next hop does not answer.
pub fn silent_servers(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot
        .services
        .iter()
        .flat_map(|service| &service.members)
        .filter(|member| {
            let destination = snapshot.destinations.find(member.id);
            destination.is_some_and(|destination| {
                matches!(snapshot.path_of_clients(destination), Path::NoNeighbour { .. })
            })
        })
        .map(|member| member.endpoint.addr)
        .collect()
}

/// Why a packet was dropped: by a worker, or by the kernel before a worker received it.
#[derive(Clone, Copy)]
pub enum Reason {
    /// By a worker.
    Worker(DropReason),
    /// By the kernel.
    Kernel(&'static KernelReason),
}

/// Why the kernel drops packets before a worker receives them.
pub struct KernelReason {
    name: &'static str,
    sentence: &'static str,
    /// The label of the workers' metric.
    pub label: &'static str,
    /// A worker's counter.
    pub counter: fn(&WorkerCounters) -> &Counter,
}

impl Reason {
    /// Every reason.
    pub fn all() -> impl Iterator<Item = Self> {
        DropReason::all().map(Self::Worker).chain(KERNEL.iter().map(Self::Kernel))
    }

    /// The name that programs read.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worker(reason) => reason.name(),
            Self::Kernel(reason) => reason.name,
        }
    }

    /// The sentence that operators read.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Worker(reason) => reason.sentence(),
            Self::Kernel(reason) => reason.sentence,
        }
    }

    fn counter(self, worker: &WorkerCounters) -> &Counter {
        match self {
            Self::Worker(reason) => worker.dropped(reason),
            Self::Kernel(reason) => (reason.counter)(worker),
        }
    }
}

/// The kernel's reasons.
pub static KERNEL: [KernelReason; 3] = [
    KernelReason {
        name: "kernel_ring_full",
        sentence: "a worker was not fast enough for its RX ring: use more workers, or raise receive_ring",
        label: "ring_full",
        counter: |worker| &worker.kernel_ring_full,
    },
    KernelReason {
        name: "kernel_fill_ring_empty",
        sentence: "the kernel had no free frame for received packets: raise receive_ring",
        label: "fill_ring_empty",
        counter: |worker| &worker.kernel_fill_ring_empty,
    },
    KernelReason {
        name: "kernel_dropped",
        sentence: "the kernel could not deliver packets to a worker, although a frame was free: compare the MTU of the \
                   interface with that of its senders",
        label: "other",
        counter: |worker| &worker.kernel_dropped,
    },
];

/// The differences, never negative. Numbers that `earlier` does not have were 0.
fn differences<'a>(now: &'a [u64], earlier: &'a [u64]) -> impl Iterator<Item = u64> {
    let earlier = earlier.iter().copied().chain(std::iter::repeat(0));
    now.iter().zip(earlier).map(|(now, earlier)| now.saturating_sub(earlier))
}

/// The recorded samples. The control thread writes, any thread may read.
#[derive(Debug)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// The history of a daemon that starts at this time.
    pub fn since(at: Millis) -> Self {
        Self(Mutex::new([Sample { at, ..Sample::default() }].into()))
    }

    /// Records the sample of `take` if one is due.
    pub fn record(&self, now: Millis, take: impl FnOnce() -> Sample) {
        let mut samples = lock(&self.0);
        if samples.back().is_some_and(|last| last.at.until(now) < INTERVAL) {
            return;
        }
        samples.push_back(take());
        while samples.get(1).is_some_and(|second| second.at.until(now) >= WINDOW) {
            samples.pop_front();
        }
    }

    /// The newest sample of at least this age; if there is none, the oldest sample.
    pub fn before(&self, now: Millis, age: Duration) -> Sample {
        let samples = lock(&self.0);
        samples
            .iter()
            .rev()
            .find(|sample| sample.at.until(now) >= age)
            .or_else(|| samples.front())
            .cloned()
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use crate::history::*;

    fn noted(history: &History, seconds: u64, drops: u64) {
        let at = Millis(seconds * 1000);
        history.record(at, || Sample {
            at,
            drops: vec![drops],
            busy_ns: vec![seconds * 250_000_000],
            ..Sample::default()
        });
    }

    #[test]
    fn the_sample_of_an_age_is_the_newest_that_old_or_else_the_start() {
        let history = History::since(Millis(0));
        (1..=40).for_each(|second| noted(&history, second, second));
        assert_eq!(history.before(Millis(41_000), WINDOW).at, Millis(0));
        (41..=600).for_each(|second| noted(&history, second, second));
        assert_eq!(history.before(Millis(600_000), WINDOW).at, Millis(540_000));
        assert_eq!(history.before(Millis(600_000), INTERVAL).at, Millis(595_000));
        assert!(lock(&history.0).len() <= 14);
    }

    #[test]
    fn differences_are_by_reason_and_worker_and_never_negative() {
        let sample = |at, drops: &[u64], busy_ns: &[u64]| Sample {
            at: Millis(at),
            drops: drops.into(),
            busy_ns: busy_ns.into(),
            ..Sample::default()
        };
        let now = sample(12_000, &[7, 5], &[4_500_000_000, 9]);
        let earlier = sample(2_000, &[3, 6], &[2_000_000_000]);
        assert_eq!(now.drops_since(&earlier), [4, 0]);
        assert_eq!(now.busy_percent_since(&earlier)[0], Some(25.0));
        assert_eq!(now.busy_percent_since(&now), [None, None]);
    }

    #[test]
    fn drops_of_all_workers_are_summed_and_include_those_of_the_kernel() {
        let workers = [Arc::new(WorkerCounters::default()), Arc::default()];
        workers[0].dropped(DropReason::TransmitRefused).add(2);
        workers[1].dropped(DropReason::TransmitRefused).add(3);
        workers[1].kernel_ring_full.add(7);
        let drops = Sample::take(&workers, &[], &Snapshot::default(), Millis(0)).drops;
        assert_eq!(Reason::all().count(), drops.len());
        let counted: Vec<_> = Reason::all()
            .zip(drops)
            .filter(|(_, packets)| *packets > 0)
            .map(|(reason, packets)| (reason.name(), packets))
            .collect();
        assert_eq!(counted, [(DropReason::TransmitRefused.name(), 5), ("kernel_ring_full", 7)]);
    }
}
