//! What follows from answers: services for the control thread, then events and scripts; and a file that is read anew.
//!
//! One task for all checks. Changes that wait are taken together, and given to the control thread as one, in their order
//! and one at a time; who is to be told is told after that. What the control thread could not take is given to it again
//! until it has it. Cost of a change: a look at the servers of its virtual server; of a file: at all of them once. Not
//! here: what a change means (`pool.rs`), and asking (`runner.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fmt, mem};

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use xvs_model::check::Check;
use xvs_model::command::{Command, CommandError};
use xvs_model::event::millis_since_1970;
use xvs_model::health::CheckState;
use xvs_model::reconcile::{ReconcileScope, Reconciled};
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::{Configuration, Globals, VirtualServer};
use xvs_sched::{ServiceKey, Weight};

use crate::board::{Board, Group, Server};
use crate::command::Turn;
use crate::course::Course;
use crate::environment::Environment;
use crate::file::Files;
use crate::notify::Notifier;
use crate::place::Place;
use crate::pool::{Beginning, Notice, Origin, Pool, Reloaded, Standing, Verdict};
use crate::prepare::{Prepared, PreparedCheck};
use crate::runner::{Runner, Watched};

/// What the manager is asked.
pub(super) enum Message {
    /// To make a file hold that was read and may be used; answered when it does, by what has changed.
    TakeOver(Box<Prepared>, oneshot::Sender<Result<String, CommandError>>),
    /// To end every check, and tell whom the file wants to be told of the end.
    Stop,
}

/// The manager.
pub(super) struct Manager<O> {
    board: Arc<Board>,
    runner: Arc<Runner<O>>,
    changed: UnboundedReceiver<Arc<Watched>>,
    messages: UnboundedReceiver<Message>,
    /// What the control thread is still to be given: virtual servers, by their number, and services that go.
    unsettled: BTreeSet<usize>,
    gone: Vec<ServiceKey>,
    scope: ReconcileScope,
    files: Files,
    timeouts: FileTimeouts,
    /// Who is told, from the first file on.
    notifier: Option<Notifier>,
    /// When it is given again what it could not take.
    again: Instant,
}

impl<O: Environment> Manager<O> {
    /// Without a file.
    pub(super) fn new(
        board: Arc<Board>,
        runner: Arc<Runner<O>>,
        changed: UnboundedReceiver<Arc<Watched>>,
        messages: UnboundedReceiver<Message>,
    ) -> Self {
        let (unsettled, gone) = (BTreeSet::new(), Vec::new());
        let (scope, files, again) = (ReconcileScope::Changes, Files::default(), Instant::now());
        let (timeouts, notifier) = (FileTimeouts { said: Timeouts::UNSET, before: Timeouts::UNSET }, None);
        Self { board, runner, changed, messages, unsettled, gone, scope, files, timeouts, notifier, again }
    }

    /// Until it is told to stop.
    pub(super) async fn run(mut self) {
        loop {
            let is_unsettled = !(self.unsettled.is_empty() && self.gone.is_empty());
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(Message::TakeOver(read, answer)) => {
                        let done = self.take_over(*read).await;
                        // Who asked may have gone.
                        let _ = answer.send(done);
                    }
                    Some(Message::Stop) | None => return self.stop().await,
                },
                Some(watched) = self.changed.recv() => self.hear(watched).await,
                () = sleep_until(self.again), if is_unsettled => {
                    // It is tried again.
                    let _ = self.settle().await;
                }
            }
        }
    }

    /// Takes what this check, and others that wait, have come to.
    async fn hear(&mut self, first: Arc<Watched>) {
        let (mut next, mut heard) = (Some(first), BTreeMap::<_, Vec<_>>::new());
        while let Some(watched) = next {
            let (place, verdict) = watched.heard();
            heard.entry(place.pool).or_default().push((place, verdict));
            next = self.changed.try_recv().ok();
        }
        let (board, mut told) = (self.board.clone(), Vec::new());
        for (number, mut heard) in heard {
            let mut watching = board.lock();
            let Some(group) = watching.groups.get_mut(number) else { continue };
            // One that is gone may still have been heard.
            heard.retain(|(place, _)| Arc::ptr_eq(group.pool.virtual_server(), &place.virtual_server));
            if group.take(&heard, &mut told) {
                self.unsettled.insert(number);
            }
        }
        if !self.unsettled.is_empty() {
            // It is tried again.
            let _ = self.settle().await;
        }
        self.tell(told);
    }

    /// Gives the control thread what it was not given yet.
    async fn settle(&mut self) -> Result<Reconciled, CommandError> {
        let mut wanted = self.board.lock().tables(&self.unsettled);
        wanted.extend(self.gone.iter().map(|key| (*key, None)));
        let (runner, scope) = (self.runner.clone(), self.scope);
        let done = spawn_blocking(move || runner.environment.reconcile(wanted, scope))
            .await
            .unwrap_or_else(|_| Err(fault()));
        match &done {
            Ok(_) => {
                self.unsettled.clear();
                self.gone.clear();
                self.scope = ReconcileScope::Changes;
            }
            Err(error) => {
                tracing::error!("health: {error}; it is tried again");
                self.again = Instant::now() + AGAIN;
            }
        }
        done
    }

    /// Tells who is to be told, each with a reason if there is one.
    fn tell(&mut self, told: impl IntoIterator<Item = (Option<String>, Notice)>) {
        let mut lines = Vec::new();
        for (reason, notice) in told {
            if let Some(notifier) = &mut self.notifier {
                notifier.tell(&notice.line());
                if let Some(script) = notice.script() {
                    notifier.run(&notice.virtual_server.name, script, notice.to_string());
                }
            }
            lines.push(match reason {
                Some(reason) => format!("{notice}: {reason}"),
                None => notice.to_string(),
            });
        }
        self.runner.environment.tell(lines);
    }

    /// Makes a file hold that was read; says what has changed.
    async fn take_over(
        &mut self,
        Prepared { configuration: read, checks }: Prepared,
    ) -> Result<String, CommandError> {
        read.faults.iter().take(FAULTS_LOGGED).for_each(|fault| tracing::warn!("{fault}"));
        match read.faults.len().saturating_sub(FAULTS_LOGGED) {
            0 => {}
            more => tracing::warn!("and {more} more faults, see `xvs check --keepalived`"),
        }
        let flush = read.globals.lvs_flush && self.board.lock().reads == 0;
        let (runner, said, mut timeouts) = (self.runner.clone(), read.timeouts, self.timeouts);
        let change = move || {
            let environment = &runner.environment;
            let wanted = timeouts.follow(said, environment.timeouts()?);
            let set = (wanted != Timeouts::UNSET).then_some(Command::SetTimeouts(wanted));
            let mut commands = flush.then_some(Command::Flush).into_iter().chain(set);
            commands.try_for_each(|command| environment.change(command))?;
            Ok(timeouts)
        };
        let changed = spawn_blocking(change).await.unwrap_or_else(|_| Err(fault()));
        let changed = changed.map(|timeouts| self.timeouts = timeouts);
        match &mut self.notifier {
            Some(notifier) => notifier.reload(&read.globals).await,
            none => *none = Some(Notifier::begin(&read.globals).await),
        }
        let faults = match read.faults.len() {
            0 => String::new(),
            1 => "; one fault, see `xvs health`".to_owned(),
            number => format!("; {number} faults, see `xvs health`"),
        };
        let (exchanged, notices) = self.exchange(read, checks);
        let done = changed.and(self.settle().await);
        self.files.forget_unwatched();
        self.tell(notices.into_iter().map(|notice| (None, notice)));
        let Reconciled { changed, refused } = done?;
        let refused = match refused.len() {
            0 => String::new(),
            number => format!(", {number} refused: `xvs status` shows why"),
        };
        let changes = if changed == 1 { "change" } else { "changes" };
        Ok(format!("{exchanged}; the table: {changed} {changes}{refused}{faults}"))
    }

    /// Watches what a file says instead of what was watched.
    fn exchange(
        &mut self,
        read: Configuration,
        prepared: Vec<Vec<Vec<PreparedCheck>>>,
    ) -> (Exchanged, Vec<Notice>) {
        let board = self.board.clone();
        let mut watching = board.lock();
        watching.refused = None;
        watching.reads += 1;
        watching.read_at_millis = millis_since_1970(SystemTime::now());
        watching.faults = read.faults.iter().map(ToString::to_string).collect();
        let before = mem::take(&mut watching.groups);
        let mut exchanged = Exchanged::default();
        let keys = |server: &VirtualServer| server.services.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let named: HashSet<_> = read.virtual_servers.iter().flat_map(keys).collect();
        let old = before.iter().flat_map(|group| keys(group.pool.virtual_server()));
        self.gone.extend(old);
        self.gone.retain(|key| !named.contains(key));
        let identified =
            |(number, group): (usize, Group)| (group.pool.virtual_server().identity(), (number, group));
        let mut before: HashMap<_, _> = before.into_iter().enumerate().map(identified).collect();
        let globals = Arc::new(read.globals);
        let mut notices = Vec::new();
        for (number, (virtual_server, prepared)) in read.virtual_servers.into_iter().zip(prepared).enumerate()
        {
            let virtual_server = Arc::new(virtual_server);
            let old = before.remove(&virtual_server.identity()).map(|(_, group)| group);
            exchanged.virtual_servers.count(old.is_some());
            let new = (number, virtual_server, &prepared[..], &globals);
            let (group, told) = self.group(new, old, &mut exchanged.checks);
            watching.groups.push(group);
            notices.extend(told);
        }
        let mut gone: Vec<_> = before.into_values().collect();
        gone.sort_by_key(|(number, _)| *number);
        exchanged.virtual_servers.gone = gone.len();
        let mut told: Vec<_> = Vec::new();
        for (_, Group { pool, servers, .. }) in gone {
            exchanged.checks.gone += servers.iter().map(|server| server.checks.len()).sum::<usize>();
            told.extend(pool.remove());
        }
        told.extend(notices);
        self.unsettled = (0..watching.groups.len()).collect();
        self.scope = ReconcileScope::Everything;
        (exchanged, told)
    }

    /// A virtual server that goes on from what it was, if it was there.
    fn group(
        &mut self,
        (number, virtual_server, prepared, globals): (
            usize,
            Arc<VirtualServer>,
            &[Vec<PreparedCheck>],
            &Arc<Globals>,
        ),
        old: Option<Group>,
        count: &mut Count,
    ) -> (Group, Vec<Notice>) {
        let now = millis_since_1970(SystemTime::now());
        let beginning = match globals.rs_init_notifies {
            true => Beginning::Told,
            false => Beginning::Silent,
        };
        let mut since = HashMap::new();
        let (reloaded, mut running) = match old {
            Some(Group { pool, since_millis, servers }) => {
                since.insert((None, pool.is_well()), since_millis);
                for (place, server) in servers.iter().enumerate() {
                    let endpoint = pool.virtual_server().real_servers[place].endpoint;
                    since.insert((Some(endpoint), pool.is_up(place)), server.since_millis);
                }
                let running: Vec<Vec<_>> =
                    servers.into_iter().map(|server| server.checks.into_iter().map(Some).collect()).collect();
                (pool.reload(virtual_server.clone(), beginning), running)
            }
            None => (begun(virtual_server.clone(), beginning), Vec::new()),
        };
        let Reloaded { pool, notices, origins } = reloaded;
        let mut check = |server: usize, (check, origin): (usize, Origin)| {
            let (virtual_server, globals) = (virtual_server.clone(), globals.clone());
            let turn = Turn::default();
            let prepared = prepared[server][check].clone();
            let place = Place { virtual_server, pool: number, server, check, prepared, globals, turn };
            let kept = match origin {
                Origin::Kept { server, check } => running[server][check].take(),
                Origin::New(_) => None,
            };
            count.count(kept.is_some());
            if let Some(kept) = kept {
                kept.watched.adopt(place);
                return kept;
            }
            let counts_as = match origin {
                Origin::New(counts_as) => counts_as,
                Origin::Kept { .. } => Standing::at_first(&place.check().timing),
            };
            let course = Course::new(place.check(), counts_as);
            self.runner.begin(place, course, &mut self.files)
        };
        let mut servers = Vec::new();
        for (server, origins) in origins.into_iter().enumerate() {
            let endpoint = virtual_server.real_servers[server].endpoint;
            let since_millis = since.get(&(Some(endpoint), pool.is_up(server))).copied().unwrap_or(now);
            let checks = origins.into_iter().enumerate().map(|origin| check(server, origin)).collect();
            servers.push(Server { since_millis, checks });
        }
        count.gone += running.iter().flatten().flatten().count();
        let since_millis = since.get(&(None, pool.is_well())).copied().unwrap_or(now);
        (Group { pool, since_millis, servers }, notices)
    }

    async fn stop(mut self) {
        let groups = mem::take(&mut self.board.lock().groups);
        let notices: Vec<_> = groups.into_iter().flat_map(|group| group.pool.end()).collect();
        self.tell(notices.into_iter().map(|notice| (None, notice)));
        if let Some(notifier) = self.notifier {
            notifier.finish(Instant::now() + END_TIME).await;
        }
    }
}

impl Group {
    /// Takes what checks have come to, and adds who is told why; whether anything was otherwise before.
    fn take(&mut self, heard: &[(Place, Verdict)], told: &mut Vec<(Option<String>, Notice)>) -> bool {
        let before: Vec<_> = heard.iter().map(|(place, _)| self.standing(place.server)).collect();
        let verdicts = heard.iter().map(|(place, verdict)| (place.server, place.check, *verdict));
        let notices = self.pool.take(verdicts);
        told.extend(notices.into_iter().map(|notice| (self.reason(&notice), notice)));
        heard
            .iter()
            .zip(before)
            .fold(false, |changes, ((place, _), before)| self.note(place.server, before) || changes)
    }

    /// Whether a real server is up and whether there is a quorum, and the server's weight in the table.
    fn standing(&self, server: usize) -> (bool, bool, Option<Weight>) {
        (self.pool.is_up(server), self.pool.is_well(), self.pool.weight(server))
    }

    /// Takes down since when a real server and all of them are as they are; whether anything was otherwise before.
    fn note(&mut self, server: usize, before: (bool, bool, Option<Weight>)) -> bool {
        let now = self.standing(server);
        let at_millis = millis_since_1970(SystemTime::now());
        if now.0 != before.0 {
            self.servers[server].since_millis = at_millis;
        }
        if now.1 != before.1 {
            self.since_millis = at_millis;
        }
        now != before
    }

    /// Why a real server is down.
    fn reason(&self, notice: &Notice) -> Option<String> {
        let server = &self.servers[notice.server.filter(|_| notice.standing == Standing::Down)?];
        let mut rows = server.checks.iter().map(|running| running.watched.row());
        let failed = rows.find(|row| row.state == CheckState::Down)?;
        Some(format!("{}: {}", failed.probe, failed.last_error?.what))
    }
}

/// What a file says of the timeouts of connections.
#[derive(Clone, Copy)]
struct FileTimeouts {
    said: Timeouts,
    /// What was in force when it began to say them.
    before: Timeouts,
}

impl FileTimeouts {
    /// What another file wants: what it says, and of what was said and is not any more what was in force before.
    fn follow(&mut self, mut said: Timeouts, mut in_force: Timeouts) -> Timeouts {
        let fields: [fn(&mut Timeouts) -> &mut u32; 3] =
            [|all| &mut all.tcp_seconds, |all| &mut all.tcp_fin_seconds, |all| &mut all.udp_seconds];
        let mut wanted = said;
        for field in fields {
            match (*field(&mut self.said), *field(&mut said)) {
                (0, 1..) => *field(&mut self.before) = *field(&mut in_force),
                (1.., 0) => *field(&mut wanted) = *field(&mut self.before),
                (0, 0) | (1.., 1..) => {}
            }
        }
        self.said = said;
        wanted
    }
}

/// A virtual server that is new.
fn begun(virtual_server: Arc<VirtualServer>, beginning: Beginning) -> Reloaded {
    let new = |check: &Check| Origin::New(Standing::at_first(&check.timing));
    let servers = virtual_server.real_servers.iter();
    let origins = servers.map(|server| server.checks.iter().map(new).collect()).collect();
    let (pool, notices) = Pool::begin(virtual_server, beginning);
    Reloaded { pool, notices, origins }
}

/// What could have been done ran into a fault.
fn fault() -> CommandError {
    CommandError::Failed { why: "xvs: a fault of xvsd; its log tells more".to_owned() }
}

/// How a file differs from the one before.
#[derive(Default)]
struct Exchanged {
    virtual_servers: Count,
    checks: Count,
}

/// How many there are, and how many of them were not there before; how many are not there any more.
#[derive(Default)]
struct Count {
    all: usize,
    new: usize,
    gone: usize,
}

impl Count {
    /// Counts one that is there.
    fn count(&mut self, was_there: bool) {
        self.all += 1;
        self.new += usize::from(!was_there);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} new, {} gone)", self.all, self.new, self.gone)
    }
}

impl fmt::Display for Exchanged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virtual servers: {}, checks: {}", self.virtual_servers, self.checks)
    }
}

/// As many faults of a file are logged.
const FAULTS_LOGGED: usize = 100;

/// How long scripts have that are told of the end.
const END_TIME: Duration = Duration::from_secs(5);

/// How long after the control thread could not take something it is given it again.
const AGAIN: Duration = Duration::from_secs(1);
