//! The real data path of the control thread: steering, workers, neighbours, memory.
//!
//! Used only by the control thread, for each change that it publishes. Created at the start, and dropped first when the
//! daemon ends, which detaches the interfaces. Waits for workers (with a timeout) and for netlink. `control/publish.rs`
//! in `ctl` determines the order of a publication.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use xvs_ctl::control::datapath::{Datapath, Late, SyncSockets};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::Table;
use xvs_dataplane::offload::Ends;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::lists::Lists;
use xvs_dataplane::snapshot::syn_limits::SynLimits;
use xvs_dataplane::snapshot::sync_backup::Inbox;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::steering::{Steering, SteeringError, SteeringRules};
use xvs_host::memory::available_pages;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::reserved_ports::ReservedPorts;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_sched::ServiceKey;

use crate::date::date_millis;
use crate::offload::Offloading;
use crate::sync::daemons::Daemons;
use crate::sync::error::SyncError;
use crate::workers::{RETRY_REFUSED, Workers};

/// The real data path. Fields are dropped in this order: the interfaces must be detached before anything else is
/// dropped.
pub(crate) struct SystemDatapath {
    pub(crate) workers: Workers,
    pub(crate) steering: Steering,
    pub(crate) neighbours: Neighbours,
    /// The neighbours to keep resolved, by interface index and address.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// When neighbours are tried again; `None` if the kernel has refused none.
    retry: Option<Instant>,
    /// Not before this is a failed redirection tried again.
    redirect_after: Instant,
    /// `None` until it is this process's.
    table: Option<Arc<Table>>,
    /// The number of connections for which the table is made.
    capacity: usize,
    reserved: ReservedPorts,
    /// Why local ports are not reserved; `None`: they are.
    pub(crate) not_reserved: Option<Warning>,
    pub(crate) daemons: Daemons,
    /// The offload of flows; `None` if there is none.
    pub(crate) offload: Option<Offloading>,
}

impl SystemDatapath {
    pub(crate) fn new(
        workers: Workers,
        steering: Steering,
        neighbours: Neighbours,
        capacity: usize,
        daemons: Daemons,
        offload: Option<Offloading>,
    ) -> Self {
        Self {
            workers,
            steering,
            neighbours,
            wanted: BTreeSet::new(),
            retry: None,
            redirect_after: Instant::now(),
            table: None,
            capacity,
            reserved: ReservedPorts::default(),
            not_reserved: None,
            daemons,
            offload,
        }
    }

    /// The connection table is this process's from now on: connections may be announced, offloaded and counted.
    ///
    /// # Errors
    /// A daemon of synchronization cannot be started.
    pub(crate) fn own(&mut self, table: &Arc<Table>) -> Result<(), SyncError> {
        if let Some(offload) = &self.offload {
            offload.flows().set_table(table);
        }
        self.table = Some(table.clone());
        self.daemons.own(table)
    }

    /// Turns the offload of flows on or off, as the workers' sockets want it.
    pub(crate) fn follow_offload(&mut self) {
        if let Some(offload) = &mut self.offload {
            offload.follow(self.workers.copies());
        }
    }

    /// Queries the kernel about the interfaces that accept packets forwarded by the XDP program.
    pub(crate) fn ask_takers(&mut self) {
        if let Some(offload) = &mut self.offload {
            offload.ask(self.workers.attached.iter());
        }
    }

    /// The name of the thread with this number at the table: workers first, then readers.
    fn thread_name(&self, slot: usize) -> String {
        if slot < self.workers.count() { format!("worker {slot}") } else { "a listing".to_owned() }
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
        self.daemons
            .start_master(daemon, sockets, published)
            .map_err(|why| CommandError::failed(format_args!("master daemon: {why}")))
    }

    fn stop_master(&mut self) {
        self.daemons.stop_master();
    }

    fn start_backup(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
    ) -> Result<Arc<Inbox>, CommandError> {
        self.daemons
            .start_backup(daemon, sockets, self.workers.wakers.clone())
            .map_err(|why| CommandError::failed(format_args!("backup daemon: {why}")))
    }

    fn stop_backup(&mut self) {
        self.daemons.stop_backup();
    }

    fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.add(rules)?;
        self.workers.redirect_own(&self.steering);
        Ok(())
    }

    fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.subtract(rules)?;
        self.workers.redirect_own(&self.steering);
        Ok(())
    }

    fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.set(rules)?;
        self.workers.redirect_own(&self.steering);
        Ok(())
    }

    fn set_lists(&mut self, lists: Option<(Arc<Lists>, Vec<ServiceKey>)>) -> Result<(), SteeringError> {
        self.steering.set_lists(lists)
    }

    fn set_syn_limits(&mut self, limits: &SynLimits) -> Result<(), SteeringError> {
        self.steering.set_syn_limits(limits)
    }

    fn count_drops(&mut self) {
        self.steering.count_drops();
    }

    fn seconds_since_1970(&self, _: Millis) -> u64 {
        date_millis() / 1000
    }

    fn date_millis(&self) -> fn() -> u64 {
        date_millis
    }

    fn await_workers(&mut self, timeout: Duration) -> Result<(), Late> {
        // Without a table there are no workers yet.
        let Some(table) = &self.table else { return Ok(()) };
        let epoch = table.close_epoch();
        let deadline = Instant::now() + timeout;
        while let Some(slot) = table.laggard(epoch) {
            if Instant::now() >= deadline {
                return Err(Late { worker: self.thread_name(slot) });
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn end_offload(&mut self, ends: &Ends) {
        self.offload.iter().for_each(|offload| offload.flows().end(ends));
    }

    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
        self.wanted.clone_from(neighbours);
        self.manage_neighbours();
    }

    fn reserve_ports(&mut self, ports: &[(u16, u16)]) {
        self.not_reserved = self
            .reserved
            .set(ports.to_vec())
            .err()
            .map(|error| Warning::new(WarningKind::PortsNotReserved, "", error.to_string()));
    }

    fn available_pages(&mut self) -> Option<u32> {
        available_pages().inspect_err(|error| tracing::warn!("available memory is unknown: {error}")).ok()
    }

    fn free_entries(&self) -> (usize, usize) {
        let live = self.table.as_ref().map_or(0, |table| table.live());
        (self.capacity.saturating_sub(live), self.capacity)
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

    /// Adopts the neighbours on these links, by index, that an earlier process has left.
    pub(crate) fn adopt_neighbours(&mut self, links: &[u32]) {
        match self.neighbours.adopt(links) {
            Ok(()) => self.manage_neighbours(),
            Err(error) => tracing::warn!("neighbours of an earlier xvsd stay: {error}"),
        }
    }

    /// Retries what was refused, if that is due: neighbours, and the redirection of this machine's own packets.
    pub(crate) fn retry_refused(&mut self) {
        let now = Instant::now();
        if self.retry.is_some_and(|due| due <= now) {
            self.manage_neighbours();
        }
        if !self.workers.not_redirected.is_empty() && self.redirect_after <= now {
            self.redirect_after = now + RETRY_REFUSED;
            self.workers.redirect_own(&self.steering);
        }
    }
}
