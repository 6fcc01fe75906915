//! The daemon's shared state, from which requests that change nothing are answered.
//!
//! Read by the threads that serve clients, so that listings and `xvs status` delay no command. Workers write the table
//! and the counters. The facts are written by the thread that starts the daemon, then by the control thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_ctl::control::Control;
use xvs_ctl::control::datapath::Datapath;
use xvs_ctl::events::Events;
use xvs_ctl::sweep::SweepCounters;
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::{Table, TableReader};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::offload::Offload;
use xvs_dataplane::port::xdp::Waker;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::steering::hold::Hold;
use xvs_health::engine;
use xvs_model::report::health::HealthReport;

use crate::connection_log::Logged;
use crate::facts::Facts;
use crate::fleet_view::FleetView;
use crate::history::{History, Sample};
use crate::last_hour::LastHour;
use crate::lock::lock;
use crate::log::Losses;
use crate::request_durations::RequestDurations;
use crate::response_minute::ResponseMinutes;
use crate::restart::handing_over::{HandingOver, Limits};
use crate::status::weights_in_force;
use crate::sync_peers::SyncPeers;

/// The largest number of attempts to free ended connections that workers may still use.
const FREE_TRIES: u32 = 100;
/// The time between two attempts.
const FREE_INTERVAL: Duration = Duration::from_millis(10);

/// The daemon's shared state.
pub struct Shared {
    // Parts of the daemon, from its start.
    pub(crate) clock: Arc<Clock>,
    /// The hold; `None` if there are no interfaces.
    pub(crate) hold: Option<Arc<Hold>>,
    /// The offload of connections; `None` if it is off.
    pub(crate) offload: Option<Arc<Offload>>,
    /// The waker of each worker.
    pub(crate) wakers: Vec<Waker>,
    /// The snapshot that workers use.
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    /// The lines that the log has lost; `None` without a log.
    pub(crate) log: Option<Losses>,
    /// The log of connections; `None` if there is none.
    pub(crate) connection_log: Option<Logged>,
    /// The time of systemd's watchdog, if it is notified.
    pub(crate) watchdog: Option<Duration>,
    /// While the control thread hands over to a successor, it answers nothing else.
    pub(crate) handing_over: HandingOver,
    /// While a thread holds this, no connections are swept.
    pub(crate) sweeping: Arc<Mutex<()>>,

    // Parts that start later.
    /// The table and its reader for listings, from the moment at which the table is this process's.
    pub(crate) owned: OnceLock<(Arc<Table>, Mutex<TableReader>)>,
    /// The health checks, if the daemon has a keepalived.conf file.
    pub(crate) checks: OnceLock<engine::Handle>,
    /// The fleet of this director.
    pub(crate) fleet: OnceLock<Arc<FleetView>>,
    /// A report of health checks that do not run.
    #[cfg(test)]
    pub(crate) report: OnceLock<HealthReport>,

    // What is observed.
    /// When the daemon started.
    pub(crate) started: Millis,
    /// The counters of each worker.
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    /// The totals of all services, including deleted ones.
    pub(crate) total: SharedStats,
    pub(crate) swept: Arc<SweepCounters>,
    pub(crate) request_durations: RequestDurations,
    pub(crate) history: History,
    pub(crate) last_hour: LastHour,
    pub(crate) responses: ResponseMinutes,
    pub(crate) events: Arc<Events>,
    /// Other directors, as the daemons of synchronization know them.
    pub(crate) peers: Arc<SyncPeers>,
    /// Facts that no counter has: interfaces, workers, warnings.
    pub(crate) facts: Mutex<Facts>,
}

impl Shared {
    /// The state of a daemon that has just been started, before it has interfaces.
    pub(crate) fn new<D: Datapath>(clock: Arc<Clock>, workers: usize, control: &Control<D>) -> Self {
        let started = clock.now();
        Self {
            clock,
            hold: None,
            offload: None,
            wakers: Vec::new(),
            published: control.published(),
            log: None,
            connection_log: None,
            watchdog: None,
            handing_over: HandingOver::default(),
            sweeping: Arc::default(),
            owned: OnceLock::new(),
            checks: OnceLock::new(),
            fleet: OnceLock::new(),
            #[cfg(test)]
            report: OnceLock::new(),
            started,
            counters: (0..workers).map(|_| Arc::default()).collect(),
            total: control.total(),
            swept: Arc::default(),
            request_durations: RequestDurations::default(),
            history: History::since(started),
            last_hour: LastHour::default(),
            responses: ResponseMinutes::since(started),
            events: control.events(),
            peers: Arc::default(),
            facts: Mutex::default(),
        }
    }

    /// The time of the workers' clock.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// How long a successor may take.
    pub(crate) fn hand_over_limits(&self) -> Limits {
        let servers = self.published.load().services.iter().map(|service| service.members.len()).sum();
        Limits::of(servers, self.table().entries())
    }

    /// The connection table is this process's from now on.
    pub(crate) fn own(&self, table: Arc<Table>) {
        let reader = Mutex::new(table.reader().expect("the first reader of a table finds a handle"));
        let _ = self.owned.set((table, reader));
    }

    /// The connection table. The control socket, the exporter and the status page are served when it is this process's.
    pub fn table(&self) -> &Table {
        &self.expect_owned().0
    }

    /// The table's reader for listings, one listing at a time.
    pub fn reader(&self) -> &Mutex<TableReader> {
        &self.expect_owned().1
    }

    fn expect_owned(&self) -> &(Arc<Table>, Mutex<TableReader>) {
        self.owned.get().expect("nothing is served before the table is owned")
    }

    /// The number of connections in the table, and its size. Zeros before this process owns it, as at the fleet's first
    /// query.
    pub(crate) fn fill(&self) -> (usize, usize) {
        self.owned.get().map_or((0, 0), |(table, _)| (table.live(), table.config().capacity))
    }

    /// Records a sample of the counters if one is due, and the times of a minute that is over.
    pub(crate) fn sample_history(&self) {
        let now = self.now();
        self.responses.record(now, &self.published.load());
        let cards = self.facts_mut().card_losses.clone();
        self.history.record(now, || Sample::take(&self.counters, &cards, &self.published.load(), now));
    }

    /// Waits until the entries that the reader has ended are free for new connections, a second at most; a later walk
    /// frees the rest.
    pub(crate) fn free_ended(&self) {
        for _ in 0..FREE_TRIES {
            let mut reader = lock(self.reader());
            reader.visit(0..0, |_, _| {});
            if reader.in_limbo() == 0 {
                return;
            }
            drop(reader);
            thread::sleep(FREE_INTERVAL);
        }
    }

    /// The health of real servers; `None` without keepalived.conf.
    pub fn health(&self) -> Option<HealthReport> {
        let report = self.checks.get().map(engine::Handle::report);
        #[cfg(test)]
        let report = report.or_else(|| self.report.get().cloned());
        let mut report = report?;
        // A copy, so that the control thread does not have to wait for the lock.
        let drift = self.facts_mut().drift.clone();
        weights_in_force::fill_in(&mut report, &self.published.load(), self.now());
        Some(HealthReport { drift: drift.to_vec(), ..report })
    }

    /// A copy of the facts.
    pub fn facts(&self) -> Facts {
        self.facts_mut().clone()
    }

    /// The facts, for the control thread, the only writer.
    pub(crate) fn facts_mut(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// Lines that the log has lost.
    pub(crate) fn log_lines_lost(&self) -> u64 {
        self.log.as_ref().map_or(0, Losses::lines)
    }

    /// Every worker's counters.
    pub fn workers(&self) -> &[Arc<WorkerCounters>] {
        &self.counters
    }

    /// Every counter, summed over the workers, and those of the sweeper.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::from(self.swept.all().map(|(name, value)| (name.to_owned(), value)));
        for (name, value) in self.counters.iter().flat_map(|counters| counters.all()) {
            *sum.entry(name).or_default() += value;
        }
        sum
    }
}

#[cfg(test)]
impl Shared {
    /// The state of a daemon with one worker and no interface, for tests.
    #[allow(clippy::unwrap_used, reason = "for tests only")]
    pub(crate) fn of_one_worker<D: Datapath>(control: &Control<D>) -> Self {
        use xvs_dataplane::conn::TableConfig;
        use xvs_dataplane::shm::Memory;
        let table =
            Table::create(TableConfig { capacity: 1024, workers: 1, memory: Memory::OnDemand }).unwrap();
        let shared = Self::new(Arc::new(Clock::Monotonic), 1, control);
        shared.own(table);
        shared
    }
}
