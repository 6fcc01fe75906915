//! The running daemons, and the reasons for which they send or fetch no tables.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use arc_swap::ArcSwap;
use xvs_ctl::control::datapath::SyncSockets;
use xvs_dataplane::conn::Table;
use xvs_dataplane::port::xdp::Waker;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_backup::Inbox;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::report::warning::{Warning, WarningKind};

use super::error::SyncError;
use super::key::SyncKey;
use super::master::TableFacts;
use super::send_table::TableSender;
use super::thread::Daemon;
use super::{backup, master, sockets};
use crate::lock::lock;
use crate::sync_peers::SyncPeers;

/// The daemons. They end when this is dropped.
pub(crate) struct Daemons {
    facts: TableFacts,
    /// The connection table; `None` until it belongs to this process.
    table: Option<Arc<Table>>,
    key_file: Option<PathBuf>,
    peers: Arc<SyncPeers>,
    /// Whether the table may be sent; locked for each slice.
    may_send: Arc<Mutex<bool>>,
    master: Running,
    backup: Running,
}

/// One daemon; the default is none.
#[derive(Default)]
struct Running {
    daemon: Option<Daemon>,
    /// The part of a master daemon that reads the table.
    announcer: Option<master::Announcer>,
    /// A master daemon that begins when the table belongs to this process.
    waits: Option<master::Prepared>,
    /// The reason why a master daemon with a key sends no tables.
    no_table: Option<SyncError>,
}

impl Daemons {
    /// No daemons yet. Without a key they sign no messages, and send and fetch no tables.
    pub(crate) fn new(facts: TableFacts, key_file: Option<PathBuf>, peers: Arc<SyncPeers>) -> Self {
        Self {
            facts,
            table: None,
            key_file,
            peers,
            may_send: Arc::default(),
            master: Running::default(),
            backup: Running::default(),
        }
    }

    /// The table belongs to this process from now on: a prepared master daemon begins.
    pub(crate) fn own(&mut self, table: &Arc<Table>) -> Result<(), SyncError> {
        self.table = Some(table.clone());
        self.return_to_table();
        if let Some(prepared) = self.master.waits.take() {
            let (daemon, announcer) = prepared.begin(table)?;
            (self.master.daemon, self.master.announcer) = (Some(daemon), Some(announcer));
        }
        Ok(())
    }

    /// Returns when no daemon reads the table any more, so that a successor may use its entries. Earlier announcements
    /// are still sent. Called only while no worker announces.
    pub(crate) fn leave_table(&self) {
        *lock(&self.may_send) = false;
        self.master.announcer.iter().for_each(master::Announcer::leave_table);
    }

    /// The table belongs to this process, or does so again.
    pub(crate) fn return_to_table(&self) {
        *lock(&self.may_send) = true;
        self.master.announcer.iter().for_each(master::Announcer::return_to_table);
    }

    /// Starts the master daemon. Without a key, or without the port, it sends only messages.
    pub(crate) fn start_master(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
        published: Arc<ArcSwap<Snapshot>>,
    ) -> Result<Arc<Announcements>, SyncError> {
        let key = self.key()?;
        let mut sender = None;
        let mut no_table = None;
        if let Some(key) = &key {
            match sockets::for_table(daemon) {
                Ok(listener) => sender = Some((self.sender(daemon, key.clone(), &published), listener)),
                Err(error) => no_table = Some(error),
            }
        }
        let prepared = master::prepare(daemon, sockets, &self.facts, published, key.as_ref(), sender)?;
        let announcements = prepared.announcements.clone();
        self.master = match &self.table {
            Some(table) => {
                let (daemon, announcer) = prepared.begin(table)?;
                Running { daemon: Some(daemon), announcer: Some(announcer), waits: None, no_table }
            }
            None => Running { waits: Some(prepared), no_table, ..Running::default() },
        };
        Ok(announcements)
    }

    fn sender(&self, daemon: &SyncDaemon, key: SyncKey, published: &Arc<ArcSwap<Snapshot>>) -> TableSender {
        TableSender {
            sync_id: daemon.sync_id,
            key,
            published: published.clone(),
            peers: self.peers.master.clone(),
            may_send: self.may_send.clone(),
        }
    }

    /// Starts the backup daemon. With a key it reads only signed messages, without one it fetches no tables.
    pub(crate) fn start_backup(
        &mut self,
        daemon: &SyncDaemon,
        sockets: SyncSockets,
        wakers: Vec<Waker>,
    ) -> Result<Arc<Inbox>, SyncError> {
        let (threads, inbox) =
            backup::start(daemon, sockets, &self.facts, wakers, self.key()?, &self.peers.backup)?;
        self.backup = Running { daemon: Some(threads), ..Running::default() };
        Ok(inbox)
    }

    /// Whether the daemons have a key.
    pub(crate) fn have_key(&self) -> bool {
        self.key_file.is_some()
    }

    fn key(&self) -> Result<Option<SyncKey>, SyncError> {
        self.key_file.as_deref().map(SyncKey::read).transpose()
    }

    /// Stops the master daemon, after it has sent all announcements.
    pub(crate) fn stop_master(&mut self) {
        self.master = Running::default();
        self.peers.master.forget();
    }

    /// Stops the backup daemon.
    pub(crate) fn stop_backup(&mut self) {
        self.backup = Running::default();
        self.peers.backup.forget();
    }

    /// The warnings about daemons that have failed, or do without tables, and about refused messages.
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for (role, Running { daemon, no_table, .. }) in [("master", &self.master), ("backup", &self.backup)] {
            let again = format!("run `xvsadm --stop-daemon {role}` and start it again");
            if daemon.as_ref().is_some_and(Daemon::has_failed) {
                let text = format!("the {role} daemon has failed; {again}");
                warnings.push(Warning::new(WarningKind::SyncDaemonFailed, role, text));
            }
            if let Some(why) = no_table {
                let text = format!("the {role} daemon sends no connection tables: {why}; then {again}");
                warnings.push(Warning::new(WarningKind::SyncTables, role, text));
            }
        }
        warnings.extend(self.peers.backup.refusals(Instant::now()));
        warnings
    }
}
