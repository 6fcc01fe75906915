//! What the daemon knows of itself: what requests are answered from that need no writer.
//!
//! Read by the threads of clients, so that listings and `xvs status` delay no command. The table and the counters are
//! the workers'; the facts are written by whoever starts the daemon and then by the control thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::{Table, TableReader};
use xvs_dataplane::counters::{Histogram, WorkerCounters};
use xvs_dataplane::port::xdp::{SocketCounters, Waker};
use xvs_dataplane::snapshot::{ServiceLive, Snapshot};
use xvs_model::command::CommandError;
use xvs_model::health::HealthReport;
use xvs_model::request::Access;
use xvs_model::status::{InterfaceStatus, LinkState};
use xvs_proto::network::Network;

use crate::events::Events;
use crate::status::health;
use crate::status::history::{History, Sample};
use crate::sweep::SweepCounters;

/// How often it is looked whether workers have left what was ended, and between two looks.
const FREE_TRIES: u32 = 100;
const FREE_INTERVAL: Duration = Duration::from_millis(10);

/// What requests that need no writer are answered from.
pub struct Shared {
    pub(crate) clock: Arc<Clock>,
    pub(crate) table: Arc<Table>,
    pub(crate) reader: Mutex<TableReader>,
    /// What workers act on.
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    /// What ends each worker's sleep.
    pub(crate) wakers: Vec<Waker>,
    /// What all services count together, deleted ones included.
    pub(crate) total: Arc<ServiceLive>,
    pub(crate) waits: Waits,
    pub(crate) swept: Arc<SweepCounters>,
    pub(crate) history: History,
    pub(crate) events: Arc<Events>,
    /// How each interface is attached and each worker placed, and what is wrong with the network.
    pub(crate) facts: Mutex<Facts>,
    /// What tells of the health of real servers, if the daemon has a keepalived.conf.
    pub(crate) health: OnceLock<Arc<dyn Fn() -> HealthReport + Send + Sync>>,
    /// What gives its thread something to do.
    pub(crate) health_thread: OnceLock<tokio::runtime::Handle>,
    /// What reads that file anew and says in a line what has changed, or what is wrong with it.
    pub(crate) reload: OnceLock<Arc<dyn Fn() -> Result<String, CommandError> + Send + Sync>>,
}

/// What `xvs status` tells beside counters.
#[derive(Clone, Default)]
pub struct Facts {
    /// One line an interface.
    pub interfaces: Vec<InterfaceStatus>,
    /// One line a worker.
    pub workers: Vec<WorkerFacts>,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
    /// The file of rules that the daemon began with.
    pub rules: Option<PathBuf>,
    /// What leads back to what is wanted of owned services, as one would type it.
    pub drift: Arc<[String]>,
    /// Until when rules that were applied can be confirmed.
    pub unconfirmed_until: Option<Millis>,
}

/// Where a worker runs.
#[derive(Clone)]
pub struct WorkerFacts {
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// Whether the kernel copies its frames, and because of which interface.
    pub copy_mode: String,
    /// Its share of each interface's queues, in the interfaces' order.
    pub queues: Vec<Vec<u32>>,
    /// What is known of its sockets.
    pub sockets: Arc<[SocketCounters]>,
}

/// The state of the link with this index.
pub(crate) fn link_state(network: &Network, ifindex: u32) -> LinkState {
    match network.links.iter().find(|link| link.ifindex == ifindex) {
        Some(link) if link.up => LinkState::Up,
        Some(_) => LinkState::Down,
        None => LinkState::Gone,
    }
}

/// How long those waited who asked the control thread, from the question to the answer, in microseconds; changes and
/// reads apart. Whoever holds the lock is the one writer.
#[derive(Default)]
pub(crate) struct Waits([Mutex<Histogram<WAIT_BOUNDS>>; 2]);

/// Waits of up to 2^23 µs, eight seconds, are told apart.
pub(crate) const WAIT_BOUNDS: usize = 24;

impl Waits {
    /// Counts one.
    pub(crate) fn count(&self, access: Access, time: Duration) {
        // No longer than the daemon runs.
        self.of(access).count(time.as_micros() as u64);
    }

    /// Those of this kind.
    pub(crate) fn of(&self, access: Access) -> MutexGuard<'_, Histogram<WAIT_BOUNDS>> {
        self.0[access as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// What time it is for the workers.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The reader's seat; listings take turns.
    pub fn reader(&self) -> &Mutex<TableReader> {
        &self.reader
    }

    /// Remembers what the counters say, if that is due.
    pub(crate) fn sample_history(&self) {
        let now = self.now();
        self.history.record(now, || Sample::take(&self.counters, now));
    }

    /// Waits until what the reader has ended is free for others, but not long: a later walk frees the rest.
    pub(crate) fn free_ended(&self) {
        for _ in 0..FREE_TRIES {
            let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
            reader.visit(0..0, |_, _| {});
            if reader.in_limbo() == 0 {
                return;
            }
            drop(reader);
            thread::sleep(FREE_INTERVAL);
        }
    }

    /// What is known of the health of real servers; `None` without a keepalived.conf.
    pub fn health(&self) -> Option<HealthReport> {
        let mut report = self.health.get()?();
        health::weigh(&mut report, &self.published.load());
        Some(HealthReport { drift: self.facts_mut().drift.to_vec(), ..report })
    }

    /// How the daemon stands.
    pub fn facts(&self) -> Facts {
        self.facts_mut().clone()
    }

    /// The same, for the control thread, which is the one writer. A panic elsewhere leaves it whole.
    pub(crate) fn facts_mut(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every worker's counters.
    pub fn workers(&self) -> &[Arc<WorkerCounters>] {
        &self.counters
    }

    /// Every counter, summed over the workers, and the sweeper's.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        let swept = self.swept.all().map(|(name, value)| (name.to_owned(), value));
        for (name, value) in self.counters.iter().flat_map(|counters| counters.all()).chain(swept) {
            *sum.entry(name).or_default() += value;
        }
        sum
    }
}

#[cfg(test)]
impl Shared {
    /// A daemon's, of one worker and no interface, for tests.
    #[allow(clippy::unwrap_used, reason = "for tests only")]
    pub(crate) fn of_one_worker(published: Arc<ArcSwap<Snapshot>>) -> Self {
        use xvs_dataplane::conn::TableConfig;
        use xvs_dataplane::shm::Memory;
        let table =
            Table::create(TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand }).unwrap();
        Self {
            clock: Arc::new(Clock::monotonic()),
            reader: Mutex::new(table.reader().unwrap()),
            table,
            published,
            counters: vec![Arc::default()],
            wakers: Vec::new(),
            total: Arc::new(ServiceLive::new(1)),
            waits: Waits::default(),
            swept: Arc::default(),
            history: History::default(),
            events: Arc::default(),
            facts: Mutex::default(),
            health: OnceLock::new(),
            health_thread: OnceLock::new(),
            reload: OnceLock::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::status::shared::*;

    #[test]
    fn a_link_is_up_or_down_or_gone_from_the_network() {
        let mut network = Network::default();
        network.add_link("wan", "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        let ifindex = network.links[0].ifindex;
        assert_eq!(link_state(&network, ifindex), LinkState::Up);
        network.links[0].up = false;
        assert_eq!(link_state(&network, ifindex), LinkState::Down);
        network.links.clear();
        assert_eq!(link_state(&network, ifindex), LinkState::Gone);
    }
}
