//! The daemon's shared state, from which requests that change nothing are answered.
//!
//! Read by the threads that serve clients, so that listings and `xvs status` delay no command. Workers write the table
//! and the counters. The facts are written by the thread that starts the daemon, then by the control thread.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_ctl::control::Control;
use xvs_ctl::control::datapath::Datapath;
use xvs_ctl::events::Events;
use xvs_ctl::sweep::SweepCounters;
use xvs_ctl::unattached::Attachment;
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::{Table, TableReader};
use xvs_dataplane::counters::{Histogram, SharedStats, WorkerCounters};
use xvs_dataplane::offload::Offload;
use xvs_dataplane::port::xdp::{SocketCounters, Waker};
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::steering::hold::Hold;
use xvs_health::engine;
use xvs_host::network::card::CardLosses;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::objects::disabled::DisabledServers;
use xvs_model::protocol::request::Access;
use xvs_model::report::health::HealthReport;
use xvs_model::report::setting::Setting;
use xvs_model::report::status::{InterfaceStatus, LinkState};
use xvs_model::report::warning::Warning;
use xvs_proto::network::Network;
use xvs_sched::ServiceKey;
use xvs_xdp::polling::Poll;

use crate::connection_log::Logged;
use crate::fleet_view::FleetView;
use crate::history::{History, Sample, drops};
use crate::last_hour::{LastHour, Total};
use crate::lock::lock;
use crate::log::Losses;
use crate::response_minute::ResponseMinutes;
use crate::restart::handing_over::{HandingOver, Limits};
use crate::restart::kept_hour::KeptHour;
use crate::status::weights_in_force;
use crate::sync_peers::SyncPeers;

/// The largest number of attempts to free ended connections that workers may still use.
const FREE_TRIES: u32 = 100;
/// The time between two attempts.
const FREE_INTERVAL: Duration = Duration::from_millis(10);

/// The daemon's shared state.
pub struct Shared {
    pub(crate) clock: Arc<Clock>,
    /// When the daemon started.
    pub(crate) started: Millis,
    /// The hold; `None` if there are no interfaces.
    pub(crate) hold: Option<Arc<Hold>>,
    /// The offload of connections; `None` if it is off.
    pub(crate) offload: Option<Arc<Offload>>,
    /// The table and its reader for listings, from the moment at which the table is this process's.
    pub(crate) owned: OnceLock<(Arc<Table>, Mutex<TableReader>)>,
    /// The time of systemd's watchdog, if it is notified.
    pub(crate) watchdog: Option<Duration>,
    /// While the control thread hands over to a successor, it answers nothing else.
    pub(crate) handing_over: HandingOver,
    /// While a thread holds this, no connections are swept.
    pub(crate) sweeping: Arc<Mutex<()>>,
    /// The snapshot that workers use.
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    /// The waker of each worker.
    pub(crate) wakers: Vec<Waker>,
    /// The totals of all services, including deleted ones.
    pub(crate) total: SharedStats,
    pub(crate) request_durations: RequestDurations,
    pub(crate) swept: Arc<SweepCounters>,
    pub(crate) history: History,
    pub(crate) last_hour: LastHour,
    /// Where the last hour is kept for the next process; `None` if nothing outlives this one.
    pub(crate) kept_hour: Option<KeptHour>,
    pub(crate) responses: ResponseMinutes,
    pub(crate) events: Arc<Events>,
    /// Other directors, as the daemons of synchronization know them.
    pub(crate) peers: Arc<SyncPeers>,
    /// Facts that no counter has: interfaces, workers, warnings.
    pub(crate) facts: Mutex<Facts>,
    /// The lines that the log has lost; `None` without a log.
    pub(crate) log: Option<Losses>,
    /// The log of connections; `None` if there is none.
    pub(crate) connection_log: Option<Logged>,
    /// The health checks, if the daemon has a keepalived.conf file.
    pub(crate) checks: OnceLock<engine::Handle>,
    /// A report of health checks that do not run.
    #[cfg(test)]
    pub(crate) report: OnceLock<HealthReport>,
    /// The fleet of this director.
    pub(crate) fleet: OnceLock<Arc<FleetView>>,
}

/// The facts of `xvs status` that no counter has.
#[derive(Clone, Default)]
pub struct Facts {
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The losses of each interface's card since it was attached.
    pub card_losses: Vec<CardLosses>,
    /// The machine's network, with the interfaces that are not attached.
    pub network: Arc<Network>,
    /// The workers.
    pub workers: Vec<WorkerFacts>,
    /// The warnings of the control thread.
    pub warnings: Vec<Warning>,
    /// The warnings of the start, which stay: about workers that found no queue, and a table beyond the memory limit.
    pub start_warnings: Vec<Warning>,
    /// The rules file that the daemon started with.
    pub rules: Option<PathBuf>,
    /// When the journal with which the daemon began was last written, in milliseconds since 1970; `None` if it began
    /// with its files.
    pub journal_saved_at_millis: Option<u64>,
    /// Commands, as typed, that undo manual changes to owned services.
    pub drift: Arc<[String]>,
    /// The disabled real servers.
    pub disabled: DisabledServers,
    /// The running daemons of connection synchronization.
    pub daemons: Vec<SyncDaemon>,
    /// The settings in force.
    pub settings: Arc<[Setting]>,
    /// Time until which applied rules can be confirmed; `None` if none wait.
    pub unconfirmed_until: Option<Millis>,
}

impl Facts {
    /// The machine's interfaces, attached and not.
    pub fn attachment(&self) -> Attachment<'_> {
        Attachment::new(&self.network, self.interfaces.iter().map(|interface| interface.name.as_str()))
    }
}

/// The placement and sockets of a worker.
#[derive(Clone)]
pub struct WorkerFacts {
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// Whether the kernel copies its frames, and because of which interface.
    pub copy_mode: String,
    /// How it waits for packets.
    pub poll: Poll,
    /// The worker's share of each interface's queues, in the interfaces' order.
    pub queues: Vec<Vec<u32>>,
    /// The counters of its sockets.
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

/// Durations of requests to the control thread, from the request to its reply, in microseconds, separate for changes
/// and reads. The holder of the lock is the only writer.
#[derive(Default)]
pub(crate) struct RequestDurations([Mutex<Histogram<DURATION_BOUNDS>>; 2]);

/// The number of buckets of the histogram: the last bound is 2^23 µs, eight seconds.
pub(crate) const DURATION_BOUNDS: usize = 24;

impl RequestDurations {
    /// Counts one request.
    pub(crate) fn count(&self, access: Access, time: Duration) {
        // Fits: it is shorter than the daemon's uptime.
        self.of(access).count(time.as_micros() as u64);
    }

    /// The histogram for this kind of request.
    pub(crate) fn of(&self, access: Access) -> MutexGuard<'_, Histogram<DURATION_BOUNDS>> {
        lock(&self.0[access as usize])
    }
}

impl Shared {
    /// The state of a daemon that has just been started, before it has interfaces.
    pub(crate) fn new<D: Datapath>(clock: Arc<Clock>, workers: usize, control: &Control<D>) -> Self {
        let started = clock.now();
        Self {
            started,
            clock,
            hold: None,
            offload: None,
            owned: OnceLock::new(),
            watchdog: None,
            handing_over: HandingOver::default(),
            sweeping: Arc::default(),
            published: control.published(),
            counters: (0..workers).map(|_| Arc::default()).collect(),
            wakers: Vec::new(),
            total: control.total(),
            request_durations: RequestDurations::default(),
            swept: Arc::default(),
            history: History::since(started),
            last_hour: LastHour::default(),
            kept_hour: None,
            responses: ResponseMinutes::since(started),
            events: control.events(),
            peers: Arc::default(),
            facts: Mutex::default(),
            log: None,
            connection_log: None,
            checks: OnceLock::new(),
            #[cfg(test)]
            report: OnceLock::new(),
            fleet: OnceLock::new(),
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

    /// Adds what is due to the counts of the last hour, and keeps them once a minute. Called by the control thread.
    pub(crate) fn record_last_hour(&self) {
        // A successor that prepares must not write the file of the running process.
        if self.owned.get().is_none() {
            return;
        }
        let now = self.now();
        if !self.last_hour.has_begun() {
            let kept = self.kept_hour.as_ref().and_then(KeptHour::read);
            self.last_hour.begin(now, kept, || self.total_counts(), || self.service_counts());
        } else if self.last_hour.record(now, || self.total_counts(), || self.service_counts()) {
            self.keep_last_hour();
        }
    }

    /// Writes the counts of the last hour for the next process.
    pub(crate) fn keep_last_hour(&self) {
        self.kept_hour.iter().for_each(|kept| kept.write(&self.last_hour));
    }

    fn total_counts(&self) -> Vec<(Total, u64)> {
        let counted = self.total.sum();
        vec![
            (Total::Connections, counted.connections),
            (Total::InPackets, counted.in_packets),
            (Total::OutPackets, counted.out_packets),
            (Total::DroppedPackets, drops(&self.counters).sum()),
        ]
    }

    fn service_counts(&self) -> Vec<(ServiceKey, u64)> {
        let snapshot = self.published.load();
        snapshot.services.iter().map(|service| (service.key, service.live.stats().connections)).collect()
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

#[cfg(test)]
mod tests {
    use crate::shared::*;

    #[test]
    fn a_link_is_up_down_or_gone() {
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
