//! The real data path of the control thread: steering, workers, neighbours, memory.
//!
//! Used by the control thread alone, for each change that it publishes. Created at the start, and dropped first when
//! the daemon ends, which detaches the interfaces. Waits for workers (with a timeout) and for netlink. Not here: the
//! order of a publication (`control/publish.rs`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::Table;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_backup::Inbox;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::steering::{Steering, SteeringError, SteeringRules};
use xvs_model::config::command::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;

use crate::control::datapath::{Datapath, SyncSockets};
use crate::sync::key::SyncKey;
use crate::sync::peers::SyncPeers;
use crate::sync::thread::DaemonThread;
use crate::sync::{backup, master};
use crate::workers::Workers;
use xvs_host::memory::available_pages;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::reserved_ports::ReservedPorts;

/// The time after a refusal until neighbours are tried again.
pub(crate) const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// The real data path. Fields are dropped in this order: the interfaces must be detached before anything else is
/// dropped.
pub(crate) struct SystemDatapath {
    workers: Workers,
    steering: Steering,
    neighbours: Neighbours,
    /// The neighbours to keep resolved, by interface index and address.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// When neighbours are tried again; `None`: the kernel has refused none.
    retry: Option<Instant>,
    table: Arc<Table>,
    reserved: ReservedPorts,
    /// Why local ports are not reserved; `None`: they are.
    not_reserved: Option<String>,
    /// The file of the key for connection tables, if there is one.
    sync_key_file: Option<PathBuf>,
    /// The threads of the master daemon of connection synchronization, if one runs.
    master: Vec<DaemonThread>,
    /// Those of the backup daemon.
    backup: Vec<DaemonThread>,
    peers: Arc<SyncPeers>,
}

impl SystemDatapath {
    pub(crate) fn new(
        workers: Workers,
        steering: Steering,
        neighbours: Neighbours,
        table: Arc<Table>,
        sync_key_file: Option<PathBuf>,
        peers: Arc<SyncPeers>,
    ) -> Self {
        Self {
            workers,
            steering,
            neighbours,
            wanted: BTreeSet::new(),
            retry: None,
            table,
            reserved: ReservedPorts::default(),
            not_reserved: None,
            sync_key_file,
            master: Vec::new(),
            backup: Vec::new(),
            peers,
        }
    }

    /// The workers with their interfaces, and the steering.
    pub(crate) fn workers(&mut self) -> (&mut Workers, &mut Steering) {
        (&mut self.workers, &mut self.steering)
    }

    /// The kernel's neighbours.
    pub(crate) fn neighbours(&mut self) -> &mut Neighbours {
        &mut self.neighbours
    }

    /// Why local ports are not reserved, so that the kernel may use them for its own connections; `None`: they are.
    pub(crate) fn not_reserved(&self) -> Option<&String> {
        self.not_reserved.as_ref()
    }

    /// A sentence for each daemon of synchronization whose thread has ended by a fault.
    pub(crate) fn failed_daemons(&self) -> impl Iterator<Item = String> + use<> {
        let has_failed = |threads: &[DaemonThread]| threads.iter().any(DaemonThread::has_failed);
        let master = has_failed(&self.master).then_some("master");
        let backup = has_failed(&self.backup).then_some("backup");
        master.into_iter().chain(backup).map(|role| {
            format!("the {role} daemon has failed; run `xvsadm --stop-daemon {role}` and start it again")
        })
    }

    fn sync_key(&self) -> Result<Option<SyncKey>, String> {
        self.sync_key_file.as_deref().map(SyncKey::read).transpose()
    }

    /// The name of the thread with this number at the table: workers first, then readers.
    fn thread_name(&self, slot: usize) -> String {
        let workers = self.table.config().workers;
        if slot < workers { format!("worker {slot}") } else { "a listing".to_owned() }
    }
}

impl Datapath for SystemDatapath {
    fn start_master(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
        published: Arc<ArcSwap<Snapshot>>,
        _: Millis,
    ) -> Result<Arc<Announcements>, CommandError> {
        let peers = &self.peers.master;
        let start = |key| master::start(daemon, sockets, &self.table, published, key, peers);
        let failed = |why| CommandError::Failed { why: format!("xvs: master daemon: {why}") };
        let (master, announcements) = self.sync_key().and_then(start).map_err(failed)?;
        self.master = master;
        Ok(announcements)
    }

    fn stop_master(&mut self) {
        self.master.clear();
        self.peers.master.forget();
    }

    fn start_backup(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
    ) -> Result<Arc<Inbox>, CommandError> {
        let wakers = self.workers.wakers().to_vec();
        let peers = &self.peers.backup;
        let start = |key| backup::start(daemon, sockets, &self.table, wakers, key, peers);
        let failed = |why| CommandError::Failed { why: format!("xvs: backup daemon: {why}") };
        let (backup, inbox) = self.sync_key().and_then(start).map_err(failed)?;
        self.backup = backup;
        Ok(inbox)
    }

    fn stop_backup(&mut self) {
        self.backup.clear();
        self.peers.backup.forget();
    }

    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.add(rules)
    }

    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.subtract(rules)
    }

    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.set(rules)
    }

    fn await_workers(&mut self, timeout: Duration) -> Result<(), String> {
        let epoch = self.table.close_epoch();
        let deadline = Instant::now() + timeout;
        while let Some(slot) = self.table.laggard(epoch) {
            if Instant::now() >= deadline {
                return Err(self.thread_name(slot));
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
        self.wanted.clone_from(neighbours);
        self.manage_neighbours();
    }

    fn reserve_ports(&mut self, ports: &[(u16, u16)]) {
        self.not_reserved = self.reserved.set(ports.to_vec()).err();
    }

    fn available_pages(&mut self) -> Option<u32> {
        available_pages().inspect_err(|error| tracing::warn!("available memory is unknown: {error}")).ok()
    }

    fn free_entries(&self) -> (usize, usize) {
        let size = self.table.config().capacity;
        (size.saturating_sub(self.table.live()), size)
    }
}

impl SystemDatapath {
    /// Makes the kernel keep the wanted neighbours resolved. Logs when refusals begin and when they end.
    fn manage_neighbours(&mut self) {
        let refused = match self.neighbours.manage(&self.wanted) {
            Ok(None) => None,
            Ok(Some(refused)) => Some(refused.to_string()),
            Err(error) => Some(format!("neighbours cannot be kept resolved: {error}")),
        };
        match (&refused, self.retry) {
            (Some(refused), None) => {
                tracing::warn!("{refused}; tried again every {} s", RETRY_REFUSED.as_secs());
            }
            (None, Some(_)) => tracing::info!("all neighbours are kept resolved again"),
            _ => {}
        }
        self.retry = refused.map(|_| Instant::now() + RETRY_REFUSED);
    }

    /// Makes the neighbours that an earlier process has left this one's.
    pub(crate) fn adopt_neighbours(&mut self) {
        match self.neighbours.adopt(&self.workers.links()) {
            Ok(()) => self.manage_neighbours(),
            Err(error) => tracing::warn!("neighbours of an earlier xvsd stay: {error}"),
        }
    }

    /// Tries refused neighbours again if that is due.
    pub(crate) fn retry_neighbours(&mut self) {
        if self.retry.is_some_and(|due| due <= Instant::now()) {
            self.manage_neighbours();
        }
    }
}
