//! `xvs reload`: applies every changed key of xvs.toml and keepalived.conf, or nothing.
//!
//! A key changes in the running process, or with a successor that takes over without losing a connection; then the
//! successor begins with all keys. A key that needs a restart makes the reload fail. Everything that can fail is
//! prepared before the first change that stays. One reload runs at a time, on the thread of its client or of SIGHUP.
//! `difference.rs` finds the changed keys; `health/src/manager.rs` compares keepalived.conf with the running checks.

mod difference;
mod metrics;

use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::bounded;
use xvs_ctl::arguments::Arguments;
use xvs_ctl::config::{Config, InForce};
use xvs_ctl::control::list_sources::read_list;
use xvs_ctl::control::quic::read_key;
use xvs_ctl::control::reload_settings::Reloaded;
use xvs_ctl::journal::format::{Entry, FileRecord};
use xvs_ctl::unattached::Attachment;
use xvs_health::engine;
use xvs_health::prepare::Prepared;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_model::objects::list_file::ListFile;
use xvs_model::protocol::question;
use xvs_model::report::event::Kind;
use xvs_model::report::setting::Source;
use xvs_model::report::warning::Warning;

use crate::fleet::check_files;
use crate::handle::Handle;
use crate::health_checks::read_again;
use crate::keepalived_conf::Loss;
use crate::lock::lock;
use crate::log::SetLog;
use crate::metrics::admission::Admission;
use crate::metrics::exporter::Listener;
use crate::reload::difference::{Difference, differences, shown};
use crate::reload::metrics::{Metrics, files_line, listener};
use crate::restart::handing_over::Limits;
use crate::restart::successor;
use crate::status::virtual_addresses;

/// How long a successor may take beyond its preparation and its two later steps. The running xvsd gives up earlier on a
/// successor that hangs at a step.
const PATIENCE: Duration = Duration::from_secs(40);

/// Carries out reloads of a running daemon.
pub struct Reloader {
    arguments: Arguments,
    daemon: Handle,
    log: SetLog,
    /// A reload that panics has changed the process, but not this.
    running: Mutex<Running>,
}

/// The configuration that the last reload, or the start, has put in force.
struct Running {
    config: Config,
    metrics: Metrics,
}

impl Reloader {
    /// Serves metrics at the address of the start, and carries out reloads from now on.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(
        (arguments, config): (Arguments, Config),
        daemon: Handle,
        log: SetLog,
        (listener, admission): (Option<Listener>, Admission),
    ) -> io::Result<Arc<Self>> {
        let metrics = Metrics::start(&daemon, &config, listener, Arc::new(admission))?;
        let running = Mutex::new(Running { config, metrics });
        Ok(Arc::new(Self { arguments, daemon, log, running }))
    }

    /// Ends the server of metrics, unless a reload runs.
    pub fn stop(&self) {
        if let Ok(mut running) = self.running.try_lock() {
            running.metrics.exporter = None;
        }
    }

    /// Reads xvs.toml and keepalived.conf again, and returns the changes, a line each, once they are in force.
    ///
    /// # Errors
    /// The reason why nothing has changed: xvsd has no such file, or the errors in it.
    pub fn reload(&self, loss: Loss) -> Result<String, CommandError> {
        let mut running = lock(&self.running);
        let new = match self.arguments.file() {
            Some(_) => self.arguments.clone().config().map_err(unchanged)?,
            None if self.daemon.shared().checks.get().is_some() => running.config.clone(),
            None => {
                return Err(unchanged(
                    "xvsd has no file to read; start it with `--config FILE` or `--keepalived FILE`",
                ));
            }
        };
        let changes = differences(&running.config, &new);
        let has = |in_force| changes.iter().any(|change| change.in_force == in_force);
        if has(InForce::AtRestart) {
            return Err(self.needs_restart(&changes, InForce::AtRestart, "this"));
        }
        if has(InForce::ByApply) {
            new.read_files().map_err(unchanged)?;
        }
        let admission = Admission::read(&new).map_err(unchanged)?;
        check_files(&new.fleet).map_err(unchanged)?;
        for (list, path) in new.list_files() {
            read_list(list, &path).map_err(unchanged)?;
        }
        // Including those that commands name: a successor would refuse them only later.
        for rule in &self.daemon.ask(question::rules())?.rules {
            if let Rule::ListFile(ListFile { list, path }) = rule {
                read_list(*list, path).map_err(unchanged)?;
            }
            if let Some(path) = rule.key_file() {
                read_key(path).map_err(unchanged)?;
            }
        }
        if !has(InForce::BySuccessor) {
            return self.in_place(&mut running, (new, admission), &changes, loss);
        }
        if loss == Loss::Accepted {
            let why = "a successor would not know of `--accept-loss`, so this";
            return Err(self.needs_restart(&changes, InForce::BySuccessor, why));
        }
        self.by_successor(&running.config, &new, &changes)
    }

    /// Changes what the running process can change.
    fn in_place(
        &self,
        running: &mut Running,
        (new, admission): (Config, Admission),
        changes: &[Difference],
        loss: Loss,
    ) -> Result<String, CommandError> {
        let Running { config: old, metrics } = running;
        let shared = self.daemon.shared();
        // All that can fail without a change is prepared.
        let admission = Arc::new(admission);
        let is_served = new.metrics_address.is_some() == metrics.exporter.is_some();
        let metrics_anew = if is_served && new.metrics_address == old.metrics_address {
            None
        } else {
            let listener = listener(old, &new)?;
            Some(Metrics::start(&self.daemon, &new, listener, admission.clone()).map_err(unchanged)?)
        };
        let filter = new.log_filter().map_err(unchanged)?;
        let checks = shared
            .checks
            .get()
            .map(|checks| read_again(&new.keepalived, checks, loss).map(|read| (checks, read)))
            .transpose()?;
        // What is changed and can fail is undone here.
        set_mode(old, &new)?;
        let read = self.set_files(checks, (old, &new)).inspect_err(|_| _ = set_mode(&new, old))?;
        // Nothing below fails, unless xvsd ends.
        let mut lines: Vec<_> =
            changes.iter().map(Difference::line).chain(read).chain(files_line(&new)).collect();
        let is_same = new == *old && metrics_anew.is_none();
        match metrics_anew {
            // The former address ends with its own settings.
            Some(anew) => *metrics = anew,
            None => metrics.set(&new, admission),
        }
        if is_same {
            return Ok(said(&lines));
        }
        let reloaded = Reloaded {
            changed: changes.iter().filter_map(Difference::setting).map(str::to_owned).collect(),
            ipvs: new.ipvs,
            feedback: new.feedback.clone(),
            repair: new.keepalived.repair,
            settings: new.settings(shared.counters.len()),
            toml: new.toml.clone(),
        };
        let undone = self.daemon.run(|thread| Ok(thread.reload(reloaded)))?;
        if (&new.log, new.log_format) != (&old.log, old.log_format)
            && let Err(error) = (self.log)(filter, new.log_format)
        {
            tracing::error!("log: {error}");
        }
        // Without a bpffs there is none.
        if let Some(hold) = shared.hold.as_ref().filter(|hold| !hold.length().is_zero()) {
            hold.set(new.hold.duration(), shared.clock.elapsed());
        }
        shared.facts_mut().rules = new.compared_rules();
        *old = new;
        for (change, line) in changes.iter().zip(&mut lines) {
            if change.setting().is_some_and(|key| undone.iter().any(|undone| undone == key)) {
                line.push_str(", over the value of `xvs set`");
            }
            if change.in_force == InForce::ByApply {
                line.push_str(", not loaded: `xvs apply` or the next start loads it");
            }
            self.note(line);
        }
        Ok(said(&lines))
    }

    /// Lets the control thread read the files of lists and keys and replace the health checks. Returns a line for each.
    fn set_files(
        &self,
        checks: Option<(&engine::Handle, Prepared)>,
        (old, new): (&Config, &Config),
    ) -> Result<Vec<String>, CommandError> {
        let set = |files| self.daemon.run(|thread| thread.control.set_list_files(files));
        let mut lines = set(new.list_files())?;
        if let Some((checks, read)) = checks {
            lines.insert(0, checks.replace(read).inspect_err(|_| _ = set(old.list_files()))?);
            checks.set_file(new.keepalived.file.clone().unwrap_or_default());
        }
        Ok(lines)
    }

    /// Lets a successor begin with the file. This process ends when it has taken over.
    fn by_successor(
        &self,
        old: &Config,
        new: &Config,
        changes: &[Difference],
    ) -> Result<String, CommandError> {
        let no_successor = if new.hold.duration().is_zero() {
            Some("with hold = \"0\" no successor can take over, so this")
        } else if new.state_directory.is_none() {
            Some("without a state directory no successor can take over, so this")
        } else if process::id() == 1 {
            Some("xvsd is the first process of its container, which would end with it, so this")
        } else {
            None
        };
        if let Some(why) = no_successor {
            return Err(self.needs_restart(changes, InForce::BySuccessor, why));
        }
        if new.metrics_address != old.metrics_address {
            // The successor listens when it has taken over, which is too late for an error.
            listener(old, new)?;
        }
        let mut lines =
            changes.iter().map(|change| format!("{}, by a successor", change.line())).collect::<Vec<_>>();
        lines.iter().for_each(|line| self.note(line));
        lines.extend(self.unattached(old, new).iter().map(|warning| format!("warning: {warning}")));
        // The settings of `xvs set` that the file does not change go on. The successor begins with this journal.
        let undone = self.overridden(changes);
        let keys = undone.iter().map(|(key, _)| key.clone()).collect();
        self.write(vec![Entry::Toml(new.toml.clone(), keys)])?;
        self.successor().map_err(|why| {
            self.note(&format!("no successor has taken over, all is as before: {why}"));
            self.write(as_before(old.toml.clone(), undone))
                .unwrap_or_else(|error| tracing::error!("journal: {error}"));
            unchanged(format!("no successor has taken over:\n{why}"))
        })?;
        Ok(lines.join("\n"))
    }

    /// The warnings about interfaces that packets of services pass and that are not attached any more.
    fn unattached(&self, old: &Config, new: &Config) -> Vec<Warning> {
        let shared = self.daemon.shared();
        let network = shared.facts().network;
        let snapshot = shared.published.load();
        let [before, mut after] = [old, new].map(|config| {
            let servers = snapshot.services.iter().flat_map(|service| &service.members);
            Attachment::new(&network, config.interfaces.names())
                .warnings(virtual_addresses(&snapshot), servers.map(|member| member.endpoint.addr))
        });
        after.retain(|warning| !before.contains(warning));
        after
    }

    /// Starts a successor. Returns when it has taken over.
    fn successor(&self) -> Result<(), String> {
        let (result, results) = bounded(2);
        let shared = self.daemon.shared();
        shared.handing_over.expect(result.clone());
        let process = successor::start_for_reload(result)
            .map_err(|error| format!("its process cannot be started: {error}"))?;
        let Limits { preparation, step } = shared.hand_over_limits();
        results
            .recv_timeout(preparation + 2 * step + PATIENCE)
            .unwrap_or_else(|_| Err("it takes too long".to_owned()))
            .inspect_err(|_| _ = process.kill())
    }

    /// The settings of `xvs set` that these changes undo, with their values.
    fn overridden(&self, changes: &[Difference]) -> Vec<(String, String)> {
        self.daemon
            .shared()
            .facts()
            .settings
            .iter()
            .filter(|setting| {
                setting.source == Source::XvsSet
                    && changes.iter().filter_map(Difference::setting).any(|key| key == setting.key)
            })
            .map(|setting| (setting.key.clone(), shown(&setting.value)))
            .collect()
    }

    fn needs_restart(&self, changes: &[Difference], in_force: InForce, why: &str) -> CommandError {
        let lines: Vec<_> =
            changes.iter().filter(|change| change.in_force == in_force).map(Difference::line).collect();
        unchanged(format_args!(
            "{}: {why} needs a restart of xvsd; restart it, or undo the change in {}",
            lines.join("; "),
            self.arguments.file().unwrap_or_else(|| "xvs.toml".as_ref()).display()
        ))
    }

    /// Writes these lines to the journal.
    fn write(&self, entries: Vec<Entry>) -> Result<(), CommandError> {
        self.daemon.run(|thread| {
            thread.control.write_entries(entries);
            Ok(())
        })
    }

    /// Logs a change, and notifies listeners to events.
    fn note(&self, line: &str) {
        let line = format!("xvs.toml: {line}");
        tracing::info!("{line}");
        let shared = self.daemon.shared();
        shared.events.record(Kind::Change, shared.published.load().epoch, line);
    }
}

/// The answer of these lines.
fn said(lines: &[String]) -> String {
    if lines.is_empty() { "no key of xvs.toml has changed".to_owned() } else { lines.join("\n") }
}

/// The lines that bring a journal back to these settings.
fn as_before(toml: Option<FileRecord>, settings: Vec<(String, String)>) -> Vec<Entry> {
    let settings = settings.into_iter().map(|(key, value)| Entry::Set { key, value });
    [Entry::Toml(toml, Vec::new())].into_iter().chain(settings).collect()
}

/// Sets the permissions of the control socket.
fn set_mode(old: &Config, new: &Config) -> Result<(), CommandError> {
    let mode = new.mode().map_err(unchanged)?;
    if new.socket_mode == old.socket_mode {
        return Ok(());
    }
    fs::set_permissions(&new.socket, Permissions::from_mode(mode))
        .map_err(|error| unchanged(format!("socket_mode: {}: {error}", new.socket.display())))
}

fn unchanged(why: impl Display) -> CommandError {
    CommandError::failed(format_args!("nothing has changed: {why}"))
}
