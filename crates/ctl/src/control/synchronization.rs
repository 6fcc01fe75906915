//! The daemons of connection synchronization in the desired state.
//!
//! The datapath runs them; the snapshot informs workers about a master daemon. Not here: the announced connections, and
//! the messages (`xvs_dataplane::sync`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::sync_backup::SyncBackup;
use xvs_dataplane::snapshot::sync_master::{SyncMaster, SyncRules};
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::Accepted;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::settings::Ipvs;
use xvs_model::config::sync_daemon::{SyncDaemon, SyncRole};
use xvs_model::objects::{Object, Rule};
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::Prefix;
use xvs_proto::sync::Version;

use crate::control::Control;
use crate::control::change::Prepared;
use crate::control::datapath::{Datapath, SyncSockets};

impl<D: Datapath> Control<D> {
    /// Starts the daemon that a command adds.
    ///
    /// # Errors
    /// The daemon's sockets cannot be opened; then nothing has changed.
    pub(super) fn start_daemon(&mut self, daemon: &SyncDaemon, now: Millis) -> Result<(), CommandError> {
        let daemon = &daemon.admitted();
        let ipvs = &self.settings.ipvs;
        // Both daemons have as many ports as the daemon that started first.
        let ports = match (&self.announcements, &self.inbox) {
            (None, None) => ipvs.sync_ports.used(),
            _ => self.sync_ports,
        };
        let sockets = SyncSockets { ports, buffer_bytes: ipvs.sync_sock_size };
        match daemon.role {
            SyncRole::Master => {
                let published = self.publication.published.clone();
                self.announcements = Some(self.datapath.start_master(daemon, sockets, published, now)?);
            }
            SyncRole::Backup => self.inbox = Some(self.datapath.start_backup(daemon, sockets)?),
        }
        self.sync_ports = ports;
        Ok(())
    }

    /// The result of a command's check. A missing interface is reported before a daemon that already runs.
    pub(super) fn with_device<'a>(
        &self,
        command: &Command,
        checked: Result<Accepted<'a>, CommandError>,
    ) -> Result<Accepted<'a>, CommandError> {
        match (command, checked) {
            (
                Command::Add(Rule::Daemon(SyncDaemon { interface, .. })),
                Ok(_) | Err(CommandError::DaemonRunning(_)),
            ) if !self.devices.contains_key(interface) => Err(CommandError::NoSuchDevice(interface.clone())),
            (_, checked) => checked,
        }
    }

    /// Refuses a daemon with a peer that is this director or a broadcast address.
    pub(super) fn refuse_own_peer(&self, command: &Command) -> Result<(), CommandError> {
        let Command::Add(Rule::Daemon(SyncDaemon { role, peers, .. })) = command else { return Ok(()) };
        for peer in peers {
            let mut addresses = self.marks.links.iter().flat_map(|link| &link.addresses);
            let fault = if addresses.any(|(addr, _)| addr == peer) {
                "an address of this director; name those of the others"
            } else if self.broadcasts.contains(peer) {
                "a broadcast address; name the other director's own address"
            } else {
                continue;
            };
            return Err(CommandError::failed(format_args!("{} daemon: peer {peer} is {fault}", role.name())));
        }
        Ok(())
    }

    /// Carries out all of these commands, which start or stop daemons, or none of them.
    ///
    /// # Errors
    /// Sockets cannot be opened; then the former daemons run again.
    pub(super) fn change_daemons(
        &mut self,
        commands: Vec<Prepared<'_>>,
        now: Millis,
    ) -> Result<(), CommandError> {
        let former = self.state.daemons().to_vec();
        let changed = commands.into_iter().try_for_each(|prepared| self.carry_out(prepared, now));
        if changed.is_err() {
            for role in [SyncRole::Master, SyncRole::Backup] {
                let before = former.iter().find(|daemon| daemon.role == role);
                let after = self.state.daemons().iter().find(|daemon| daemon.role == role);
                if before == after {
                    continue;
                }
                if after.is_some() {
                    // Cannot be refused, because the daemon is in the state.
                    let _ = self.change_daemon(&Command::Delete(Object::Daemon(role)), now);
                }
                if let Some(daemon) = before
                    && let Err(error) = self.change_daemon(&Command::Add(Rule::Daemon(daemon.clone())), now)
                {
                    self.await_daemon(daemon.clone(), &error);
                }
            }
            let _ = self.publish();
        }
        changed
    }

    fn change_daemon(&mut self, command: &Command, now: Millis) -> Result<(), CommandError> {
        self.enter(self.state.check(command)?, now)
    }

    /// Adds a daemon that cannot run now to the desired state. It is tried again each second.
    pub(super) fn await_daemon(&mut self, daemon: SyncDaemon, why: &CommandError) {
        let role = daemon.role;
        if self.state.apply(&Command::Add(Rule::Daemon(daemon))).is_ok() {
            self.waiting.insert(role, why.to_string());
        }
    }

    /// Stops daemons whose interface has a new index: their sockets are bound to the old one. Tries them again each
    /// second.
    pub(super) fn stop_daemons_of_changed(&mut self, former: &BTreeMap<String, u32>) {
        for SyncDaemon { role, interface, .. } in self.state.daemons().to_vec() {
            let [before, after] = [former, &self.devices].map(|devices| devices.get(&interface));
            if before.is_some() && before != after && !self.waiting.contains_key(&role) {
                self.stop_daemon(role);
                self.waiting.insert(role, CommandError::NoSuchDevice(interface).to_string());
            }
        }
    }

    /// Tries daemons again that could not run.
    pub(super) fn retry_daemons(&mut self, now: Millis) {
        let mut has_started = false;
        for role in self.waiting.keys().copied().collect::<Vec<_>>() {
            let Some(daemon) = self.state.daemons().iter().find(|daemon| daemon.role == role).cloned() else {
                continue;
            };
            let started = match self.devices.contains_key(&daemon.interface) {
                true => self.start_daemon(&daemon, now),
                false => Err(CommandError::NoSuchDevice(daemon.interface)),
            };
            match started {
                Ok(()) => {
                    tracing::info!("the {} daemon runs", role.name());
                    self.waiting.remove(&role);
                    has_started = true;
                }
                Err(error) => _ = self.waiting.insert(role, error.to_string()),
            }
        }
        if has_started {
            let _ = self.publish();
        }
    }

    /// The warnings about daemons that cannot run.
    pub(super) fn waiting_daemons(&self) -> impl Iterator<Item = Warning> {
        self.waiting.iter().map(|(role, why)| {
            let role = role.name();
            let text = format!("the {role} daemon does not run, and is tried again each second: {why}");
            Warning::new(WarningKind::SyncDaemonWaits, role, text)
        })
    }

    /// The warnings about interfaces on which messages of daemons can be forged, unless messages are signed.
    pub fn unsigned_daemons(&self) -> impl Iterator<Item = Warning> {
        let interfaces: BTreeSet<_> = self.state.daemons().iter().map(|daemon| &*daemon.interface).collect();
        interfaces.into_iter().map(|interface| {
            let text = match self.has_servers(interface) {
                true => format!(
                    "synchronization is on {interface}, where real servers can forge its messages; set sync_key_file on \
                     all directors, or use an interface of theirs alone"
                ),
                false => format!(
                    "synchronization on {interface} is not signed: any machine there can forge its messages; set \
                     sync_key_file on all directors"
                ),
            };
            Warning::new(WarningKind::SyncUnsigned, interface, text)
        })
    }

    /// Whether a real server is in a network of this interface.
    fn has_servers(&self, interface: &str) -> bool {
        let networks: Vec<_> = self
            .marks
            .links
            .iter()
            .filter(|link| link.name == interface)
            .flat_map(|link| &link.addresses)
            .filter_map(|(addr, len)| Prefix::new(*addr, *len))
            .collect();
        self.state
            .services()
            .flat_map(|(_, service)| &service.destinations)
            .any(|server| networks.iter().any(|network| network.contains(server.endpoint.addr)))
    }

    /// Stops the daemon of this role. Connections that workers announce before the next publication, and received
    /// connections that wait for a worker, are lost.
    pub(super) fn stop_daemon(&mut self, role: SyncRole) {
        self.waiting.remove(&role);
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

    /// The master daemon as workers use it; `None`: no master daemon runs.
    pub(super) fn sync_master(&self) -> Option<Arc<SyncMaster>> {
        let announcements = self.announcements.as_ref()?;
        let rules = rules(&self.settings.ipvs);
        match &self.publication.snapshot.sync_master {
            Some(master) if master.rules == rules && Arc::ptr_eq(&master.shared, announcements) => {
                Some(master.clone())
            }
            _ => Some(Arc::new(SyncMaster::new(rules, announcements.clone()))),
        }
    }

    /// How workers take connections of other directors; `None`: no backup daemon runs.
    pub(super) fn sync_backup(&self) -> Option<Arc<SyncBackup>> {
        let inbox = self.inbox.clone()?;
        Some(Arc::new(SyncBackup { packets: self.settings.ipvs.sync_threshold.first, inbox }))
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
