//! The daemons of connection synchronization, as the desired state wants them.
//!
//! The datapath runs them; workers learn of a master by the snapshot. Not here: what is announced, and the messages
//! (`xvs_dataplane::sync`).

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::sync_backup::SyncBackup;
use xvs_dataplane::snapshot::sync_master::{SyncMaster, SyncRules};
use xvs_model::config::command::{Command, CommandError};
use xvs_model::config::settings::Ipvs;
use xvs_model::config::sync_daemon::SyncRole;
use xvs_proto::sync::Version;

use crate::control::Control;
use crate::control::datapath::{Datapath, SyncSockets};

impl<D: Datapath> Control<D> {
    /// Starts the daemon that a command wants.
    ///
    /// # Errors
    /// Its sockets cannot be opened; then nothing has changed.
    pub(super) fn start_daemon(&mut self, command: &Command, now: Millis) -> Result<(), CommandError> {
        let Command::StartDaemon(daemon) = command else { return Ok(()) };
        let Ipvs { sync_ports, sync_sock_size, .. } = self.settings.ipvs;
        let sockets = SyncSockets { ports: sync_ports.used(), buffer_bytes: sync_sock_size };
        match daemon.role {
            SyncRole::Master => {
                let published = self.publication.pointer();
                self.announcements = Some(self.datapath.start_master(daemon, sockets, published, now)?);
            }
            SyncRole::Backup => self.inbox = Some(self.datapath.start_backup(daemon, sockets)?),
        }
        Ok(())
    }

    /// Stops the daemon of this role. What workers announce until the publication is lost, and
    /// connections that wait for workers are, too.
    pub(super) fn stop_daemon(&mut self, role: SyncRole) {
        match role {
            SyncRole::Master => {
                self.announcements = None;
                self.datapath.stop_master();
            }
            SyncRole::Backup => {
                self.inbox = None;
                self.datapath.stop_backup();
            }
        }
    }

    /// What workers announce; `None`: no master daemon runs.
    pub(super) fn sync_master(&self) -> Option<Arc<SyncMaster>> {
        let announcements = self.announcements.as_ref()?;
        let rules = rules(&self.settings.ipvs);
        let published = self.publication.snapshot.sync_master.as_ref();
        let same =
            published.filter(|master| master.rules == rules && Arc::ptr_eq(&master.shared, announcements));
        Some(same.cloned().unwrap_or_else(|| Arc::new(SyncMaster::new(rules, announcements.clone()))))
    }

    /// How workers take connections of other directors; `None`: no backup daemon runs.
    pub(super) fn sync_backup(&self) -> Option<Arc<SyncBackup>> {
        let packets = self.settings.ipvs.sync_threshold.first;
        self.inbox.clone().map(|inbox| Arc::new(SyncBackup { packets, inbox }))
    }
}

fn rules(ipvs: &Ipvs) -> SyncRules {
    SyncRules {
        threshold: ipvs.sync_threshold.first,
        period: ipvs.sync_threshold.period,
        refresh: Duration::from_secs(ipvs.sync_refresh_period.into()),
        retries: ipvs.sync_retries.0,
        templates_alone: ipvs.sync_persist_mode.0,
        version: if ipvs.sync_version.0 { Version::V1 } else { Version::V0 },
        queue_max: ipvs.sync_qlen_max as usize,
    }
}
