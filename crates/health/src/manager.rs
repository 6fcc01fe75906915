//! The manager of all checks: it applies their results, changes the services, and reloads the configuration.
//!
//! One task for all checks. Queued results are applied together, and the services that they change go to the control
//! thread in one request, one request at a time. Notices are sent after that. A request that the control thread could
//! not carry out is repeated until it succeeds. Cost of a result: a pass over the servers of its virtual server; of a
//! reload: one pass over all servers. `virtual_server/mod.rs` interprets the results.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use xvs_model::config::command::Command;
use xvs_model::config::reconcile::{ReconcileScope, Reconciled};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::health_checks::virtual_server::{Configuration, Globals, VirtualServer};
use xvs_model::objects::Rule;
use xvs_model::objects::disabled::DisabledServers;
use xvs_model::report::event::millis_since_1970;
use xvs_sched::ServiceKey;

use crate::check_ref::CheckRef;
use crate::check_state::CheckStateMachine;
use crate::command::RunLock;
use crate::environment::Environment;
use crate::file_timeouts::FileTimeouts;
use crate::notify::Notifier;
use crate::prepare::{Prepared, PreparedCheck};
use crate::probes::file::Files;
use crate::reload_summary::{Count, ReloadSummary};
use crate::results::{RealServerResults, SharedResults, VirtualServerResults};
use crate::runner::{CheckRecord, Runner, RunningCheck};
use crate::view::View;
use crate::virtual_server::{InitialNotices, Notice, Origin, Reloaded, Status, VirtualServerState};

/// A request to the manager.
pub(super) enum Message {
    /// Replace the configuration. The reply is sent when the new services are in force; it is a summary of the changes.
    Load(Box<Prepared>, oneshot::Sender<Result<String, CommandError>>),
    /// Replace the disabled real servers.
    Disabled(Arc<DisabledServers>),
    /// Permit at most `probes` to run at once, send notices, and keep the view.
    Begin { probes: usize },
    /// End every check, and send the notices about the stop.
    Stop,
}

/// The manager.
pub(super) struct Manager<E> {
    results: Arc<SharedResults>,
    runner: Arc<Runner<E>>,
    changed: UnboundedReceiver<Arc<CheckRecord>>,
    messages: UnboundedReceiver<Message>,
    /// Indices of the virtual servers whose services the control thread does not have yet.
    pending: BTreeSet<usize>,
    /// Services that the control thread must still remove.
    removed: Vec<ServiceKey>,
    scope: ReconcileScope,
    /// Whether probes through virtual addresses have to be prepared, while that is not in force.
    vip_probes: Option<bool>,
    disabled: Arc<DisabledServers>,
    files: Files,
    timeouts: FileTimeouts,
    /// `None` before the first configuration.
    notifier: Option<Notifier>,
    /// The time of the next attempt after a failed request.
    retry_at: Instant,
    /// The view of an earlier process, until the first configuration has begun with it.
    former: View,
    /// When the view is kept; `None` if it has not changed.
    keep_at: Option<Instant>,
    /// Notices that wait for [`Message::Begin`]; `None` afterwards.
    waiting: Option<Vec<(Option<String>, Notice)>>,
}

impl<E: Environment> Manager<E> {
    /// A manager without a configuration.
    pub(super) fn new(
        results: Arc<SharedResults>,
        runner: Arc<Runner<E>>,
        changed: UnboundedReceiver<Arc<CheckRecord>>,
        messages: UnboundedReceiver<Message>,
        former: View,
    ) -> Self {
        Self {
            results,
            runner,
            changed,
            messages,
            pending: BTreeSet::new(),
            removed: Vec::new(),
            scope: ReconcileScope::Changes,
            vip_probes: None,
            disabled: Arc::default(),
            files: Files::default(),
            timeouts: FileTimeouts { configured: Timeouts::UNSET, before: Timeouts::UNSET },
            notifier: None,
            retry_at: Instant::now(),
            former,
            keep_at: None,
            waiting: Some(Vec::new()),
        }
    }

    /// Runs until [`Message::Stop`].
    pub(super) async fn run(mut self) {
        loop {
            let is_pending =
                !(self.pending.is_empty() && self.removed.is_empty()) || self.vip_probes.is_some();
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(Message::Load(configuration, reply)) => {
                        let done = self.load(*configuration).await;
                        // The requester may be gone.
                        let _ = reply.send(done);
                    }
                    Some(Message::Disabled(disabled)) => self.set_disabled(disabled).await,
                    Some(Message::Begin { probes }) => self.begin(probes),
                    Some(Message::Stop) | None => return self.stop().await,
                },
                Some(record) = self.changed.recv() => self.apply_results(record).await,
                () = self.runner.view_changed.notified() => self.view_has_changed(),
                () = sleep_until(self.keep_at.unwrap_or(self.retry_at)), if self.keep_at.is_some() => {
                    self.keep_view(self.view()).await;
                }
                // A failure is logged and repeated.
                () = sleep_until(self.retry_at), if is_pending => drop(self.send_pending().await),
            }
        }
    }

    /// Carries out [`Message::Begin`].
    fn begin(&mut self, probes: usize) {
        self.runner.permits.add_permits(probes);
        let waiting = self.waiting.take();
        self.notify(waiting.into_iter().flatten());
        self.view_has_changed();
    }

    /// Records that the view has to be kept.
    fn view_has_changed(&mut self) {
        if self.waiting.is_none() {
            self.keep_at = self.keep_at.or(Some(Instant::now() + KEEP_INTERVAL));
        }
    }

    /// The view with which a later process begins.
    fn view(&self) -> View {
        let mut virtual_servers = BTreeMap::new();
        for VirtualServerResults { state, servers, .. } in &self.results.lock().virtual_servers {
            let view = state.view(|server, check| servers[server].checks[check].record.view());
            virtual_servers.insert(state.virtual_server().identity(), view);
        }
        View { virtual_servers }
    }

    /// Keeps a view for a later process.
    async fn keep_view(&mut self, view: View) {
        self.keep_at = None;
        let runner = self.runner.clone();
        // A panic was reported by its thread.
        let _ = spawn_blocking(move || runner.environment.keep(&view)).await;
    }

    /// Applies the result of this check and of all others that are queued.
    async fn apply_results(&mut self, first: Arc<CheckRecord>) {
        let mut changes = BTreeMap::<_, Vec<_>>::new();
        let mut next = Some(first);
        while let Some(record) = next {
            let (check, result) = record.acknowledge();
            changes.entry(check.virtual_server_index).or_default().push((check, result));
            next = self.changed.try_recv().ok();
        }
        let mut notices = Vec::new();
        let at_millis = millis_since_1970(SystemTime::now());
        for (index, mut changes) in changes {
            let mut results = self.results.lock();
            let Some(virtual_server) = results.virtual_servers.get_mut(index) else { continue };
            // A check that a reload has removed may still be queued.
            let current = virtual_server.state.virtual_server();
            changes.retain(|(check, _)| Arc::ptr_eq(current, &check.virtual_server));
            if virtual_server.apply(&changes, at_millis, &mut notices) {
                self.pending.insert(index);
            }
        }
        if !self.pending.is_empty() {
            // A failure is logged and repeated.
            let _ = self.send_pending().await;
        }
        self.notify(notices);
    }

    /// Replaces the disabled real servers.
    async fn set_disabled(&mut self, disabled: Arc<DisabledServers>) {
        self.disabled = disabled;
        let mut notices = Vec::new();
        for (index, server) in self.results.lock().virtual_servers.iter_mut().enumerate() {
            if let Some(notice) = server.state.set_disabled(self.disabled.clone()) {
                server.since_millis = millis_since_1970(SystemTime::now());
                self.pending.insert(index);
                notices.push((None, notice));
            }
        }
        self.view_has_changed();
        if !self.pending.is_empty() {
            // A failure is logged and repeated.
            let _ = self.send_pending().await;
        }
        self.notify(notices);
    }

    /// Sends the pending services to the control thread, and repeats a failed preparation for probes through virtual
    /// addresses.
    async fn send_pending(&mut self) -> Result<Reconciled, CommandError> {
        let mut wanted = self.results.lock().desired_services(&self.pending);
        wanted.extend(self.removed.iter().map(|key| (*key, None)));
        let runner = self.runner.clone();
        let scope = self.scope;
        let vip_probes = self.vip_probes;
        let (prepared, done) = spawn_blocking(move || {
            let environment = &runner.environment;
            let prepared = vip_probes.map_or(Ok(()), |expected| environment.expect_vip_probes(expected));
            (prepared, environment.reconcile(wanted, scope))
        })
        .await
        .unwrap_or_else(|_| (Err(internal_error()), Err(internal_error())));
        if prepared.is_ok() {
            self.vip_probes = None;
        }
        if done.is_ok() {
            self.pending.clear();
            self.removed.clear();
            self.scope = ReconcileScope::Changes;
        }
        for error in prepared.as_ref().err().into_iter().chain(done.as_ref().err()) {
            tracing::error!("health: {error}; the change is tried again");
            self.retry_at = Instant::now() + RETRY_INTERVAL;
        }
        prepared.and(done)
    }

    /// Sends notices to FIFOs, scripts, the event stream and the log, each with its reason if there is one.
    fn notify(&mut self, notices: impl IntoIterator<Item = (Option<String>, Notice)>) {
        if let Some(waiting) = &mut self.waiting {
            return waiting.extend(notices);
        }
        let mut lines = Vec::new();
        for (reason, notice) in notices {
            let text = match reason {
                Some(reason) => format!("{notice}: {reason}"),
                None => notice.to_string(),
            };
            if let Some(notifier) = &mut self.notifier {
                notifier.write_line(&notice.line());
                if let Some(script) = notice.script() {
                    notifier.queue_script(&notice.virtual_server.name, script, notice.to_string());
                }
                notifier.mail(&notice, &text);
            }
            lines.push(text);
        }
        self.runner.environment.emit(lines);
    }

    /// Replaces the configuration. Returns a summary of the changes.
    async fn load(&mut self, Prepared { configuration, checks }: Prepared) -> Result<String, CommandError> {
        configuration.faults.iter().take(FAULTS_LOGGED).for_each(|fault| tracing::warn!("{fault}"));
        match configuration.faults.len().saturating_sub(FAULTS_LOGGED) {
            0 => {}
            more => tracing::warn!("and {more} more faults, see `xvs check --keepalived`"),
        }
        let changed = self.change_settings(&configuration).await.map(|timeouts| self.timeouts = timeouts);
        match &mut self.notifier {
            Some(notifier) => notifier.reload(&configuration.globals).await,
            none => *none = Some(Notifier::start(&configuration.globals).await),
        }
        let faults = match configuration.faults.len() {
            0 => String::new(),
            1 => "; one fault, see `xvs health`".to_owned(),
            number => format!("; {number} faults, see `xvs health`"),
        };
        let (summary, notices) = self.replace_configuration(configuration, checks);
        let done = changed.and(self.send_pending().await);
        self.files.forget_unwatched();
        self.notify(notices.into_iter().map(|notice| (None, notice)));
        let Reconciled { changed, refused } = done?;
        let refused = match refused.len() {
            0 => String::new(),
            number => format!(", {number} refused: `xvs status` shows why"),
        };
        let changes = if changed == 1 { "change" } else { "changes" };
        Ok(format!("{summary}; the table: {changed} {changes}{refused}{faults}"))
    }

    /// Prepares for probes through virtual addresses if the configuration needs that, and sets its timeouts; at the
    /// start in a table without former rules, if the configuration requests that. Returns the resulting timeouts.
    ///
    /// # Errors
    ///
    /// The timeouts cannot be set. A failed preparation is repeated, and its error reported, with the services.
    async fn change_settings(&mut self, configuration: &Configuration) -> Result<FileTimeouts, CommandError> {
        let flush = configuration.globals.lvs_flush && self.results.lock().reads == 0;
        let through_vip = configuration.has_checks_through_vips();
        let configured = configuration.timeouts;
        let timeouts = self.timeouts;
        let runner = self.runner.clone();
        let (prepared, changed) = spawn_blocking(move || {
            let prepared = runner.environment.expect_vip_probes(through_vip);
            (prepared, set_timeouts(&runner.environment, flush, configured, timeouts))
        })
        .await
        .unwrap_or_else(|_| (Err(internal_error()), Err(internal_error())));
        self.vip_probes = prepared.is_err().then_some(through_vip);
        changed
    }

    /// Replaces the virtual servers and their checks. Checks with equal identity keep running.
    fn replace_configuration(
        &mut self,
        new: Configuration,
        prepared: Vec<Vec<Vec<PreparedCheck>>>,
    ) -> (ReloadSummary, Vec<Notice>) {
        let shared = self.results.clone();
        let mut results = shared.lock();
        results.refused = None;
        results.reads += 1;
        results.read_at_millis = millis_since_1970(SystemTime::now());
        results.faults = new.faults.iter().map(ToString::to_string).collect();
        let before = mem::take(&mut results.virtual_servers);
        let mut summary = ReloadSummary::default();
        let named: HashSet<_> = new.virtual_servers.iter().flat_map(keys).collect();
        self.removed.extend(before.iter().flat_map(|one| keys(one.state.virtual_server())));
        self.removed.retain(|key| !named.contains(key));
        let mut before: HashMap<_, _> = before
            .into_iter()
            .enumerate()
            .map(|(index, one)| (one.state.virtual_server().identity(), (index, one)))
            .collect();
        let globals = Arc::new(new.globals);
        let mut later_notices = Vec::new();
        for (index, (virtual_server, prepared)) in new.virtual_servers.into_iter().zip(prepared).enumerate() {
            let old = before.remove(&virtual_server.identity()).map(|(_, old)| old);
            summary.virtual_servers.count(old.is_some());
            let globals = globals.clone();
            let new = NewVirtualServer { index, virtual_server: virtual_server.into(), prepared, globals };
            let (virtual_server, notices) = self.virtual_server(&new, old, &mut summary.checks);
            results.virtual_servers.push(virtual_server);
            later_notices.extend(notices);
        }
        let mut gone: Vec<_> = before.into_values().collect();
        gone.sort_by_key(|(index, _)| *index);
        summary.virtual_servers.gone = gone.len();
        let mut notices: Vec<_> = Vec::new();
        for (_, VirtualServerResults { state, servers, .. }) in gone {
            summary.checks.gone += servers.iter().map(|server| server.checks.len()).sum::<usize>();
            notices.extend(state.remove());
        }
        notices.extend(later_notices);
        self.former = View::default();
        self.view_has_changed();
        self.pending = (0..results.virtual_servers.len()).collect();
        self.scope = ReconcileScope::Everything;
        (summary, notices)
    }

    /// Creates a virtual server of the new configuration. It continues the state of `old`, the former one with equal
    /// identity.
    fn virtual_server(
        &mut self,
        new: &NewVirtualServer,
        old: Option<VirtualServerResults>,
        count: &mut Count,
    ) -> (VirtualServerResults, Vec<Notice>) {
        let now = millis_since_1970(SystemTime::now());
        let mut since = HashMap::new();
        let mut running = Vec::<Vec<_>>::new();
        let Reloaded { state, notices, origins } = match old {
            Some(VirtualServerResults { state, since_millis, servers }) => {
                since.insert((None, state.has_quorum()), since_millis);
                for (index, server) in servers.iter().enumerate() {
                    let endpoint = state.virtual_server().real_servers[index].endpoint;
                    since.insert((Some(endpoint), state.is_up(index)), server.since_millis);
                }
                running =
                    servers.into_iter().map(|server| server.checks.into_iter().map(Some).collect()).collect();
                state.reload(new.virtual_server.clone(), new.initial_notices())
            }
            None => self.begun(new),
        };
        let mut servers = Vec::new();
        for (index, origins) in origins.into_iter().enumerate() {
            let endpoint = new.virtual_server.real_servers[index].endpoint;
            let since_millis = since.get(&(Some(endpoint), state.is_up(index))).copied().unwrap_or(now);
            let mut checks = Vec::new();
            for (check_index, origin) in origins.into_iter().enumerate() {
                let kept = match origin {
                    Origin::Kept { server, check } => running[server][check].take(),
                    Origin::New(_) | Origin::Resumed(_) => None,
                };
                count.count(kept.is_some());
                checks.push(self.running_check(new.check(index, check_index), kept, origin));
            }
            servers.push(RealServerResults { since_millis, checks });
        }
        count.gone += running.iter().flatten().flatten().count();
        let since_millis = since.get(&(None, state.has_quorum())).copied().unwrap_or(now);
        (VirtualServerResults { state, since_millis, servers }, notices)
    }

    /// The state of a virtual server that no configuration of this process contained.
    fn begun(&self, new: &NewVirtualServer) -> Reloaded {
        let virtual_server = new.virtual_server.clone();
        let disabled = self.disabled.clone();
        match self.former.virtual_servers.get(&virtual_server.identity()) {
            Some(former) => {
                VirtualServerState::resume(virtual_server, former, new.initial_notices(), disabled)
            }
            None => VirtualServerState::start(virtual_server, new.initial_notices(), disabled),
        }
    }

    /// Continues a running check with its new configuration, or starts the check.
    fn running_check(
        &mut self,
        check: CheckRef,
        running: Option<RunningCheck>,
        origin: Origin,
    ) -> RunningCheck {
        if let Some(running) = running {
            running.record.reconfigure(check);
            return running;
        }
        let machine = match origin {
            Origin::New(assumed) => CheckStateMachine::new(check.config(), assumed),
            Origin::Kept { .. } => {
                CheckStateMachine::new(check.config(), Status::at_first(&check.config().timing))
            }
            Origin::Resumed(view) => CheckStateMachine::resume(check.config(), view),
        };
        self.runner.start(check, machine, &mut self.files)
    }

    async fn stop(mut self) {
        if self.waiting.is_some() {
            return;
        }
        let mut view = self.view();
        for one in self.results.lock().virtual_servers.iter().map(|one| one.state.virtual_server()) {
            // The notices about the stop report that the whole virtual server is down, so its state is not kept.
            if one.omega {
                view.virtual_servers.remove(&one.identity());
            }
        }
        self.keep_view(view).await;
        let virtual_servers = mem::take(&mut self.results.lock().virtual_servers);
        let notices: Vec<_> = virtual_servers.into_iter().flat_map(|one| one.state.stop()).collect();
        self.notify(notices.into_iter().map(|notice| (None, notice)));
        if let Some(notifier) = self.notifier {
            notifier.finish(Instant::now() + STOP_TIME).await;
        }
    }
}

/// A virtual server of the new configuration.
struct NewVirtualServer {
    index: usize,
    virtual_server: Arc<VirtualServer>,
    /// The prepared checks, by real server and check.
    prepared: Vec<Vec<PreparedCheck>>,
    globals: Arc<Globals>,
}

impl NewVirtualServer {
    fn initial_notices(&self) -> InitialNotices {
        if self.globals.rs_init_notifies { InitialNotices::Sent } else { InitialNotices::Omitted }
    }

    fn check(&self, server_index: usize, check_index: usize) -> CheckRef {
        CheckRef {
            virtual_server: self.virtual_server.clone(),
            virtual_server_index: self.index,
            server_index,
            check_index,
            prepared: self.prepared[server_index][check_index].clone(),
            globals: self.globals.clone(),
            run_lock: RunLock::default(),
        }
    }
}

/// Sets the timeouts of a file, in an empty table if `flush`. Returns them with the former ones.
fn set_timeouts(
    environment: &impl Environment,
    flush: bool,
    configured: Timeouts,
    mut timeouts: FileTimeouts,
) -> Result<FileTimeouts, CommandError> {
    let wanted = timeouts.update(configured, environment.timeouts()?);
    if flush {
        environment.execute(Command::Flush)?;
    }
    if wanted != Timeouts::UNSET {
        environment.execute(Command::Add(Rule::Timeouts(wanted)))?;
    }
    Ok(timeouts)
}

/// The keys of a virtual server's services.
fn keys(server: &VirtualServer) -> impl Iterator<Item = ServiceKey> {
    server.services.iter().map(|(key, _)| *key)
}

/// A request to the control thread has panicked.
fn internal_error() -> CommandError {
    CommandError::failed("internal error of xvsd; see its log")
}

/// The number of faults of a file that are logged.
const FAULTS_LOGGED: usize = 100;

/// The time that scripts have when xvsd stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Maximum time from a change of the view until it is kept.
const KEEP_INTERVAL: Duration = Duration::from_millis(500);

/// Delay before a request that the control thread could not execute is repeated.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
