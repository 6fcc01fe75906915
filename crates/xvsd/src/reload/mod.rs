//! `xvs reload`: applies every changed key of xvs.toml and keepalived.conf, or nothing.
//!
//! A key changes in the running process, or with a successor that takes over without losing a connection; then the
//! successor begins with all keys. A key that needs a restart makes the reload fail. Everything that can fail comes
//! before the first change. One reload runs at a time, on the thread of its client or of SIGHUP. `difference.rs` finds
//! the changed keys; `health/src/manager.rs` compares keepalived.conf with the running checks.

mod difference;

use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use crossbeam::channel::bounded;
use xvs_ctl::arguments::Arguments;
use xvs_ctl::config::{Config, InForce};
use xvs_ctl::control::list_sources::read_list;
use xvs_ctl::control::quic::read_key;
use xvs_ctl::control::reload_settings::Reloaded;
use xvs_ctl::journal::format::{Entry, FileRecord};
use xvs_ctl::unattached::Attachment;
use xvs_health::engine;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_model::objects::list_file::ListFile;
use xvs_model::protocol::question;
use xvs_model::report::event::Kind;
use xvs_model::report::setting::{Setting, Source};
use xvs_model::report::warning::Warning;

use crate::date::date_millis;
use crate::fleet::check_files;
use crate::handle::Handle;
use crate::health_checks::read_again;
use crate::keepalived_conf::Loss;
use crate::lock::lock;
use crate::log::SetLog;
use crate::metrics;
use crate::metrics::Destinations;
use crate::metrics::admission::Admission;
use crate::metrics::exporter::{Exporter, ExporterError, Listener, StatusPage};
use crate::reload::difference::{Difference, differences, shown};
use crate::restart::handing_over::Limits;
use crate::restart::successor;
use crate::status::page::Viewers;
use crate::status::virtual_addresses;

/// How long a successor may take beyond its preparation and its two later steps. The running xvsd gives up earlier on a
/// successor that hangs at a step.
const PATIENCE: Duration = Duration::from_secs(40);

/// Carries out reloads of a running daemon.
pub struct Reloader {
    arguments: Arguments,
    daemon: Handle,
    /// `None` without keepalived.conf.
    checks: Option<engine::Handle>,
    log: SetLog,
    destinations: Arc<AtomicUsize>,
    response_times: Arc<AtomicBool>,
    /// Whether the status page is served.
    status_page: Arc<AtomicBool>,
    /// A reload that panics has changed the process, but not this.
    running: Mutex<Running>,
}

/// The configuration that the last reload, or the start, has put in force.
struct Running {
    config: Config,
    exporter: Option<Exporter>,
    /// The admission of the exporter.
    admission: Arc<ArcSwap<Admission>>,
}

impl Reloader {
    /// Serves metrics at the address of the start, and carries out reloads from now on.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn start(
        (arguments, config): (Arguments, Config),
        (daemon, checks): (Handle, Option<engine::Handle>),
        log: SetLog,
        (listener, admission): (Option<Listener>, Admission),
    ) -> io::Result<Arc<Self>> {
        let destinations = Arc::new(AtomicUsize::new(config.metrics_destinations));
        let response_times = Arc::new(AtomicBool::new(config.metrics_response_times));
        let status_page = Arc::new(AtomicBool::new(config.status_page));
        let admission = Arc::new(ArcSwap::from_pointee(admission));
        let running = Mutex::new(Running { config, exporter: None, admission: admission.clone() });
        let this = Arc::new(Self {
            arguments,
            daemon,
            checks,
            log,
            destinations,
            response_times,
            status_page,
            running,
        });
        let exporter = listener.map(|listener| this.serve(listener, &admission)).transpose()?;
        lock(&this.running).exporter = exporter;
        let reloader = this.clone();
        // A process has one daemon, so the cell is still empty.
        let _ = this.daemon.shared().reload.set(Arc::new(move |loss| reloader.reload(loss)));
        Ok(this)
    }

    /// Ends the server of metrics, unless a reload runs.
    pub fn stop(&self) {
        if let Ok(mut running) = self.running.try_lock() {
            running.exporter = None;
        }
    }

    fn serve(&self, listener: Listener, admission: &Arc<ArcSwap<Admission>>) -> io::Result<Exporter> {
        let (daemon, most) = (self.daemon.clone(), self.destinations.clone());
        let response_times = self.response_times.clone();
        let page = move || {
            let destinations = Destinations {
                most: most.load(Ordering::Relaxed),
                response_times: response_times.load(Ordering::Relaxed),
            };
            metrics::page(daemon.shared(), destinations)
        };
        let (daemon, viewers) = (self.daemon.clone(), Viewers::default());
        let document =
            move |document, query: &str| viewers.document(daemon.shared(), document, query, date_millis());
        let status = StatusPage { is_on: self.status_page.clone(), document: Box::new(document) };
        listener.serve(page, status, admission.clone())
    }

    /// Returns the changes, a line each.
    fn reload(&self, loss: Loss) -> Result<String, CommandError> {
        let mut running = lock(&self.running);
        let new = match self.arguments.file() {
            Some(_) => self.arguments.clone().config().map_err(unchanged)?,
            None if self.checks.is_some() => running.config.clone(),
            None => {
                let why = "xvsd has no file to read; start it with `--config FILE` or `--keepalived FILE`"
                    .to_owned();
                return Err(unchanged(why));
            }
        };
        let changes = differences(&running.config, &new);
        let has = |in_force| changes.iter().any(|change| change.in_force == in_force);
        if has(InForce::AtRestart) {
            return Err(unchanged(self.needs_restart(&changes, InForce::AtRestart, "this")));
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
        if has(InForce::BySuccessor) {
            if loss == Loss::Accepted {
                let why = "a successor would not know of `--accept-loss`, so this";
                return Err(unchanged(self.needs_restart(&changes, InForce::BySuccessor, why)));
            }
            self.by_successor(&running.config, &new, &changes)
        } else {
            self.in_place(&mut running, (new, admission), &changes, loss)
        }
    }

    /// Changes what the running process can change.
    fn in_place(
        &self,
        running: &mut Running,
        (new, admission): (Config, Admission),
        changes: &[Difference],
        loss: Loss,
    ) -> Result<String, CommandError> {
        let old = &running.config;
        // A successor whose address was in use has no exporter.
        let is_served = new.metrics_address.is_some() == running.exporter.is_some();
        let serves_anew = new.metrics_address != old.metrics_address || !is_served;
        let listener = if serves_anew { listener(old, &new)? } else { None };
        // Another address begins with the new admission, and the former one ends with its own.
        let admission = Arc::new(admission);
        let anew = Arc::new(ArcSwap::new(admission.clone()));
        let exporter = listener.map(|listener| self.serve(listener, &anew)).transpose().map_err(unchanged)?;
        let filter = new.log_filter().map_err(unchanged)?;
        let checks = self.checks.as_ref();
        let checks = match checks {
            Some(checks) => Some((checks, read_again(&new.keepalived, checks, loss)?)),
            None => None,
        };
        set_mode(old, &new)?;
        let mut lines: Vec<_> = changes.iter().map(Difference::line).collect();
        if let Some((checks, read)) = checks {
            lines.push(checks.replace(read).inspect_err(|_| _ = set_mode(&new, old))?);
            checks.set_file(new.keepalived.file.clone().unwrap_or_default());
        }
        let files = new.list_files();
        match self.daemon.run(|thread| thread.control.set_list_files(files)) {
            Ok(read) => lines.extend(read),
            Err(error) => {
                let _ = set_mode(&new, old);
                return Err(error);
            }
        }
        lines.extend(read_again_for_metrics(&new));
        if !serves_anew {
            running.admission.store(admission);
        }
        if new == *old && is_served {
            return Ok(said(&lines));
        }
        // Nothing below fails, unless xvsd ends.
        let reloaded = Reloaded {
            changed: changes.iter().filter_map(Difference::setting).map(str::to_owned).collect(),
            ipvs: new.ipvs,
            feedback: new.feedback.clone(),
            repair: new.keepalived.repair,
            settings: new.settings(self.daemon.shared().counters.len()),
            toml: new.toml.clone(),
        };
        let undone = self.daemon.run(|thread| Ok(thread.reload(reloaded)))?;
        if (&new.log, new.log_format) != (&old.log, old.log_format)
            && let Err(error) = (self.log)(filter, new.log_format)
        {
            tracing::error!("log: {error}");
        }
        if serves_anew {
            (running.exporter, running.admission) = (exporter, anew);
        }
        self.destinations.store(new.metrics_destinations, Ordering::Relaxed);
        self.response_times.store(new.metrics_response_times, Ordering::Relaxed);
        self.status_page.store(new.status_page, Ordering::Relaxed);
        let shared = self.daemon.shared();
        // Without a bpffs there is none.
        if let Some(hold) = shared.hold.as_ref().filter(|hold| !hold.length().is_zero()) {
            hold.set(new.hold.duration(), shared.clock.elapsed());
        }
        shared.facts_mut().rules = new.compared_rules();
        running.config = new;
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
            return Err(unchanged(self.needs_restart(changes, InForce::BySuccessor, why)));
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
            let former = self.write(as_before(old.toml.clone(), undone));
            former.unwrap_or_else(|error| tracing::error!("journal: {error}"));
            unchanged(format!("no successor has taken over:\n{why}"))
        })?;
        Ok(lines.join("\n"))
    }

    /// The warnings about interfaces that packets of services pass and that are not attached any more.
    fn unattached(&self, old: &Config, new: &Config) -> Vec<Warning> {
        let shared = self.daemon.shared();
        let (network, snapshot) = (shared.facts().network, shared.published.load());
        let servers = || {
            snapshot.services.iter().flat_map(|service| &service.members).map(|member| member.endpoint.addr)
        };
        let of = |config: &Config| {
            let names = config.interfaces.iter().map(|(name, _)| name);
            Attachment::new(&network, names).warnings(virtual_addresses(&snapshot), servers())
        };
        let before = of(old);
        of(new).into_iter().filter(|warning| !before.contains(warning)).collect()
    }

    /// Starts a successor. Returns when it has taken over.
    fn successor(&self) -> Result<(), String> {
        let (result, results) = bounded(2);
        self.daemon.shared().handing_over.expect(result.clone());
        let process = successor::start_for_reload(result)
            .map_err(|error| format!("its process cannot be started: {error}"))?;
        let Limits { preparation, step } = self.daemon.shared().hand_over_limits();
        let patience = preparation + 2 * step + PATIENCE;
        let result = results.recv_timeout(patience).unwrap_or_else(|_| Err("it takes too long".to_owned()));
        if result.is_err() {
            process.kill();
        }
        result
    }

    /// The settings of `xvs set` that these changes undo, with their values.
    fn overridden(&self, changes: &[Difference]) -> Vec<(String, String)> {
        let facts = self.daemon.shared().facts();
        let is_undone = |setting: &&Setting| {
            let mut keys = changes.iter().filter_map(Difference::setting);
            setting.source == Source::XvsSet && keys.any(|key| key == setting.key)
        };
        facts
            .settings
            .iter()
            .filter(is_undone)
            .map(|setting| (setting.key.clone(), shown(&setting.value)))
            .collect()
    }

    fn needs_restart(&self, changes: &[Difference], in_force: InForce, why: &str) -> String {
        let lines: Vec<_> =
            changes.iter().filter(|change| change.in_force == in_force).map(Difference::line).collect();
        let file = self.arguments.file().unwrap_or_else(|| "xvs.toml".as_ref()).display();
        format!(
            "{}: {why} needs a restart of xvsd; restart it, or undo the change in {file}",
            lines.join("; ")
        )
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
        let shared = self.daemon.shared();
        let line = format!("xvs.toml: {line}");
        tracing::info!("{line}");
        let epoch = shared.published.load().epoch;
        shared.events.record(Kind::Change, epoch, line);
    }
}

/// The answer of these lines.
fn said(lines: &[String]) -> String {
    if lines.is_empty() { "no key of xvs.toml has changed".to_owned() } else { lines.join("\n") }
}

/// The line about files whose content may have changed without a changed key.
fn read_again_for_metrics(config: &Config) -> Option<String> {
    let keys = [
        ("metrics_certificate", &config.metrics_certificate),
        ("metrics_private_key", &config.metrics_private_key),
        ("metrics_token_file", &config.metrics_token_file),
    ];
    let given: Vec<_> = keys.into_iter().filter_map(|(key, file)| file.as_ref().map(|_| key)).collect();
    (!given.is_empty()).then(|| format!("{}: read again", given.join(", ")))
}

/// The lines that bring a journal back to these settings.
fn as_before(toml: Option<FileRecord>, settings: Vec<(String, String)>) -> Vec<Entry> {
    let settings = settings.into_iter().map(|(key, value)| Entry::Set { key, value });
    [Entry::Toml(toml, Vec::new())].into_iter().chain(settings).collect()
}

/// Binds the new address of metrics.
fn listener(old: &Config, new: &Config) -> Result<Option<Listener>, CommandError> {
    let is_own =
        |address: std::net::SocketAddr| old.metrics_address.map(|own| own.port()) == Some(address.port());
    new.metrics_address.map(Listener::bind).transpose().map_err(|error| match error {
        ExporterError::InUse(address) if is_own(address) => unchanged(format!(
            "metrics_address {address}: xvsd serves this port; restart it, or choose another port"
        )),
        error => unchanged(error),
    })
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
