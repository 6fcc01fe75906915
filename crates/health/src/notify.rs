//! Notification of changes: lines for FIFOs, notify scripts, and mails.
//!
//! A line is written to all FIFOs at once. The scripts of one virtual server and of its real servers run one after the
//! other, in the order of the changes, so the last script that runs reports the last change. Scripts of different
//! virtual servers run concurrently. Everything is bounded: a script is ended after [`SCRIPT_TIME`]; when more than
//! [`WAITING_MAX`] scripts of a virtual server wait, the oldest is dropped and logged; at most [`RUNNING_MAX`] run at
//! once. Cost: one process for each script. `virtual_server/mod.rs` decides which changes cause a notice, and `mail.rs`
//! delivers mails.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use xvs_model::health_checks::check::Script;
use xvs_model::health_checks::virtual_server::Globals;

use crate::blocking::run_blocking;
use crate::command::{Outcome, Program, RunLock};
use crate::fifo::Fifo;
use crate::mail::{Letter, Mailer};
use crate::virtual_server::Notice;

/// The FIFOs and the queues of scripts. Exists on the health runtime.
#[derive(Debug)]
pub(super) struct Notifier {
    globals: Globals,
    fifos: Vec<Fifo>,
    /// The queue of each virtual server, by its name.
    queues: HashMap<String, Arc<Queue>>,
    running: Arc<Semaphore>,
    /// `None`: there are no recipients.
    mailer: Option<Mailer>,
    /// One task for each queue that is not empty.
    workers: JoinSet<()>,
}

/// The scripts of one virtual server.
#[derive(Debug, Default)]
struct Queue {
    run_lock: RunLock,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    scripts: VecDeque<(Program, String)>,
    has_worker: bool,
}

impl Notifier {
    /// Opens the FIFOs and starts their readers. A FIFO that cannot be opened is logged and left out.
    pub(super) async fn start(globals: &Globals) -> Self {
        Self {
            fifos: open_fifos(globals.clone()).await,
            globals: globals.clone(),
            queues: HashMap::new(),
            running: Arc::new(Semaphore::new(RUNNING_MAX)),
            mailer: usable(globals.mail.as_ref().map(Mailer::start).transpose()).flatten(),
            workers: JoinSet::new(),
        }
    }

    /// Applies a new configuration. Waiting scripts stay. FIFOs are reopened only if their settings differ.
    pub(super) async fn reload(&mut self, globals: &Globals) {
        if fifo_settings(globals) != fifo_settings(&self.globals) {
            for fifo in self.fifos.drain(..) {
                fifo.close().await;
            }
            self.fifos = open_fifos(globals.clone()).await;
        }
        self.mailer = match (self.mailer.take(), &globals.mail) {
            (Some(mailer), Some(mail)) if mailer.is_of(mail) => Some(mailer),
            (Some(mailer), Some(mail)) => usable(mailer.with_settings(mail)),
            (_, mail) => usable(mail.as_ref().map(Mailer::start).transpose()).flatten(),
        };
        self.globals = globals.clone();
        self.queues.retain(|_, queue| Arc::strong_count(queue) > 1);
    }

    /// Writes a line, given without its line feed, to all FIFOs.
    pub(super) fn write_line(&mut self, line: &str) {
        self.fifos.iter_mut().for_each(|fifo| fifo.write(line));
    }

    /// Queues a mail about a change, if the file configures one. `text` describes the change.
    pub(super) fn mail(&self, notice: &Notice, text: &str) {
        if let Some((mailer, settings)) = self.mailer.as_ref().zip(self.globals.mail.as_ref())
            && notice.is_mailed(&self.globals)
        {
            mailer.send(Letter::now(notice.subject(&settings.router_id), format!("{text}\n")));
        }
    }

    /// Queues a script after those of the same virtual server. `what` describes the change in the log.
    pub(super) fn queue_script(&mut self, virtual_server: &str, script: &Script, what: String) {
        while self.workers.try_join_next().is_some() {}
        let queue = self.queues.entry(virtual_server.to_owned()).or_default();
        let program = Program::new(script, &self.globals, queue.run_lock.clone());
        let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.scripts.push_back((program, what));
        if waiting.scripts.len() > WAITING_MAX {
            let what = waiting.scripts.pop_front().map(|(_, what)| what).unwrap_or_default();
            tracing::error!("virtual_server {virtual_server}: {WAITING_MAX} scripts wait; left out: {what}");
        }
        if !std::mem::replace(&mut waiting.has_worker, true) {
            self.workers.spawn(run_queue(Arc::clone(queue), Arc::clone(&self.running)));
        }
    }

    /// Waits for the scripts, at most until the deadline. Then ends the scripts that are still running, and closes the
    /// FIFOs.
    pub(super) async fn finish(mut self, deadline: Instant) {
        let finished = async { while self.workers.join_next().await.is_some() {} };
        if timeout_at(deadline, finished).await.is_err() {
            tracing::error!("scripts that still run or wait are ended");
            self.workers.shutdown().await;
        }
        for fifo in self.fifos.drain(..) {
            fifo.close().await;
        }
        if let Some(mailer) = self.mailer {
            mailer.finish(deadline).await;
        }
    }
}

/// A mailer that could start; otherwise logs the reason.
fn usable<T>(mailer: Result<T, String>) -> Option<T> {
    mailer.map_err(|why| tracing::error!("no mails are sent: {why}")).ok()
}

/// The settings on which the FIFOs and their readers depend.
fn fifo_settings(globals: &Globals) -> impl PartialEq {
    let Globals { notify_fifo, lvs_notify_fifo, script_user, enable_script_security, .. } = globals;
    (notify_fifo, lvs_notify_fifo, script_user, enable_script_security)
}

/// Runs the scripts of a virtual server until none waits.
async fn run_queue(queue: Arc<Queue>, running: Arc<Semaphore>) {
    loop {
        let next = {
            let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let next = waiting.scripts.pop_front();
            waiting.has_worker = next.is_some();
            next
        };
        let Some((program, what)) = next else { return };
        let _permit = running.acquire().await.expect("the semaphore is never closed");
        match program.run(Instant::now() + SCRIPT_TIME).await {
            Outcome::Exit(0) => tracing::debug!("{what}: `{program}` has run"),
            outcome => tracing::error!("{what}: `{program}`: {outcome}"),
        }
    }
}

/// Opens the FIFOs of a configuration. Looks up users and files, which may block.
async fn open_fifos(globals: Globals) -> Vec<Fifo> {
    let opening = run_blocking(move || {
        globals
            .notify_fifo
            .iter()
            .chain(&globals.lvs_notify_fifo)
            .filter_map(|fifo| Fifo::open(fifo, &globals).map_err(|why| tracing::error!("{why}")).ok())
            .collect()
    });
    let opened = timeout(OPENING_TIME, opening).await;
    if opened.is_err() {
        tracing::error!("FIFOs are not used: they do not open within {OPENING_TIME:?}");
    }
    opened.ok().and_then(Result::ok).unwrap_or_default()
}

/// The time for opening the FIFOs and for looking up their users. The manager applies no results in the meantime.
const OPENING_TIME: Duration = Duration::from_secs(2);

/// The time that a script may run.
const SCRIPT_TIME: Duration = Duration::from_secs(60);

/// Maximum number of waiting scripts of one virtual server.
const WAITING_MAX: usize = 1024;

/// The number of scripts that run at once.
const RUNNING_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use crate::blocking::BLOCKING_MAX;
    use crate::command::testing::{Folder, in_time, runs, until};
    use crate::notify::*;
    use xvs_model::health_checks::virtual_server::Fifo as Wanted;

    const A: &str = "10.0.0.1 80";
    const B: &str = "10.0.0.2 80";

    async fn notifier() -> Notifier {
        Notifier::start(&Globals::default()).await
    }

    #[tokio::test]
    async fn scripts_of_a_virtual_server_run_in_the_order_of_what_happened() {
        let folder = Folder::new();
        let mut notifier = notifier().await;
        // The first scripts take longest.
        for number in 0..10 {
            let text = format!("sleep 0.0{}; echo {number} >>out", 9 - number);
            notifier.queue_script(A, &folder.script(&text), format!("{number}"));
        }
        notifier.finish(in_time()).await;
        assert_eq!(folder.read("out"), "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    }

    #[tokio::test]
    async fn scripts_of_another_virtual_server_do_not_wait_and_a_failure_delays_none() {
        let folder = Folder::new();
        let mut notifier = notifier().await;
        notifier.queue_script(
            A,
            &folder.script("until [ -e go ]; do sleep 0.01; done; exit 1"),
            "a".to_owned(),
        );
        notifier.queue_script(A, &folder.script("echo a >out"), "a".to_owned());
        notifier.queue_script(B, &folder.script("echo b >go"), "b".to_owned());
        notifier.finish(in_time()).await;
        assert_eq!(folder.read("out"), "a\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_that_hangs_is_ended_and_the_next_runs_after_its_end() {
        let folder = Folder::new();
        let mut notifier = notifier().await;
        let text = "trap 'rmdir here; exit' TERM; mkdir here; echo $$ >leader; while :; do sleep 0.01; done";
        notifier.queue_script(A, &folder.script(text), "a".to_owned());
        until(|| folder.read("leader").ends_with('\n')).await;
        notifier.queue_script(A, &folder.script("mkdir here && echo b >out"), "b".to_owned());
        tokio::time::advance(SCRIPT_TIME).await;
        tokio::time::resume();
        notifier.finish(in_time()).await;
        assert_eq!(folder.read("out"), "b\n");
        assert!(!runs(&folder.read("leader")));
    }

    #[tokio::test]
    async fn the_oldest_waiting_script_is_dropped_when_the_queue_is_full() {
        let folder = Folder::new();
        let mut notifier = notifier().await;
        // All permits are taken, so no script runs.
        let _permits = Arc::clone(&notifier.running).acquire_many_owned(RUNNING_MAX as u32).await.unwrap();
        for number in 0..WAITING_MAX + 2 {
            notifier.queue_script(A, &folder.script(""), format!("{number}"));
        }
        let waiting = notifier.queues[A].waiting.lock().unwrap();
        let what = |at: Option<&(Program, String)>| at.unwrap().1.clone();
        assert_eq!(waiting.scripts.len(), WAITING_MAX);
        assert_eq!(what(waiting.scripts.front()), "2");
        assert_eq!(what(waiting.scripts.back()), format!("{}", WAITING_MAX + 1));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_stop_scripts_have_some_time_and_are_ended_after_it() {
        let folder = Folder::new();
        let mut notifier = notifier().await;
        notifier.queue_script(A, &folder.script("echo $$ >leader; sleep 1000"), "a".to_owned());
        notifier.queue_script(A, &folder.script("echo b >out"), "b".to_owned());
        until(|| folder.read("leader").ends_with('\n')).await;
        notifier.finish(Instant::now() + Duration::from_secs(1)).await;
        until(|| !runs(&folder.read("leader"))).await;
        assert_eq!(folder.read("out"), "");
    }

    #[tokio::test(start_paused = true)]
    async fn fifos_that_do_not_open_in_time_are_left_out() {
        let folder = Folder::new();
        let (end, ended) = crossbeam::channel::bounded::<()>(0);
        let began = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        for _ in 0..BLOCKING_MAX {
            let (ended, began) = (ended.clone(), began.clone());
            tokio::spawn(async move {
                began.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                run_blocking(move || ended.recv().is_err()).await
            });
        }
        until(|| began.load(std::sync::atomic::Ordering::Relaxed) == BLOCKING_MAX).await;
        let path = folder.path("a").display().to_string();
        let globals =
            Globals { notify_fifo: Some(Wanted { path, ..Wanted::default() }), ..Globals::default() };
        let mut starting = Box::pin(Notifier::start(&globals));
        assert!(timeout(Duration::ZERO, &mut starting).await.is_err());
        tokio::time::advance(OPENING_TIME).await;
        assert!(starting.await.fifos.is_empty());
        drop(end);
    }

    #[tokio::test]
    async fn both_fifos_get_the_lines_and_a_reload_opens_others() {
        let folder = Folder::new();
        let fifo = |name: &str| {
            let script = Some(folder.script(&format!("exec cat >>{name}.out <\"$0\"")));
            Some(Wanted { path: folder.path(name).display().to_string(), script, ..Wanted::default() })
        };
        let globals = Globals { notify_fifo: fifo("a"), lvs_notify_fifo: fifo("b"), ..Globals::default() };
        let mut notifier = Notifier::start(&globals).await;
        notifier.write_line("VS b UP");
        until(|| folder.read("a.out") == "VS b UP\n" && folder.read("b.out") == "VS b UP\n").await;
        notifier.reload(&globals).await;
        assert_eq!(notifier.fifos.len(), 2);
        notifier.reload(&Globals { notify_fifo: None, lvs_notify_fifo: fifo("c"), ..globals }).await;
        notifier.write_line("VS b DOWN");
        until(|| folder.read("c.out") == "VS b DOWN\n").await;
        notifier.finish(in_time()).await;
        assert_eq!(folder.read("a.out"), "VS b UP\n");
        assert!(["a", "b", "c"].iter().all(|name| !folder.path(name).exists()));
    }
}
