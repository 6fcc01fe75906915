//! Health in a running daemon: its thread, what it asks and changes, what it is asked.
//!
//! One thread with a runtime of its own. When it has started, all services are in force and no check was made yet. As
//! many checks ask at once as there are descriptors for; the limit of the process is raised to what it may be. Not here:
//! the checks (`runner.rs`) and what follows from them (`manager.rs`).

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::{fs, io};

use crossbeam::channel::Sender;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use xvs_model::check::Probe;
use xvs_model::command::{Command, CommandError};
use xvs_model::event::Kind;
use xvs_model::reconcile::{Governed, Reach};
use xvs_model::reply::Reply;
use xvs_model::request::Request;
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::VirtualServer;
use xvs_sched::ServiceKey;

use super::board::Board;
use super::command::{DESCRIPTORS, Program, faults};
use super::manager::{Manager, Message};
use super::prepare::Prepared;
use super::runner::{Place, Runner};
use super::{Answer, Outside, Wanted, dns, http, icmp, script, smtp, tcp, udp};
use crate::config::Keepalived;
use crate::control_thread::Handle;
use crate::keepalived_conf::read_usable;
use crate::threads;

/// Why health does not start.
#[derive(Debug, Error)]
pub enum HealthError {
    /// The system has no room for it.
    #[error("health: {0}")]
    System(#[from] io::Error),
    /// The services cannot be made.
    #[error("keepalived.conf: {0}")]
    Refused(#[from] CommandError),
}

/// Health at work; dropped, it ends.
pub struct Health {
    manager: UnboundedSender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl Health {
    /// Starts with a file that was read; returns when its services are in force.
    ///
    /// # Errors
    /// [`HealthError`]; nothing is asked then.
    pub fn start(
        keepalived: &Keepalived,
        read: Prepared,
        daemon: Handle,
        ended: &Sender<String>,
    ) -> Result<Self, HealthError> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (changed, changes) = unbounded_channel();
        let (manager, messages) = unbounded_channel();
        let file = keepalived.file.clone().unwrap_or_default();
        let board = Arc::new(Board::default());
        board.lock().file.clone_from(&file);
        let runner =
            Runner { outside: Director(daemon.clone()), permits: Semaphore::new(at_once()), changed };
        let task = Manager::new(board.clone(), Arc::new(runner), changes, messages).run();
        let runs = runtime.handle().clone();
        let thread = threads::spawn("xvs-health", ended, move || {
            runtime.block_on(task);
            // A search for a pattern may not have come to its end.
            runtime.shutdown_background();
        })?;
        let health = Self { manager: manager.clone(), thread: Some(thread) };
        tracing::info!("{}: {}", file.display(), take_over(&manager, read)?);
        let shared = daemon.shared();
        let reported = board.clone();
        let report = move || reported.report();
        // There is one of it in a process, so these are the first.
        let _ = shared.health.set(Arc::new(report));
        let _ = shared.health_thread.set(runs);
        let files = Files {
            file,
            config_id: keepalived.config_id.clone(),
            board,
            manager,
            reading: Mutex::default(),
        };
        let _ = shared.reload.set(Arc::new(move || files.reload()));
        Ok(health)
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        // It may have ended by a fault.
        let _ = self.manager.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

/// Reads the file anew.
struct Files {
    file: PathBuf,
    config_id: Option<String>,
    board: Arc<Board>,
    manager: UnboundedSender<Message>,
    /// Held from the first line that is read until what it says is in force.
    reading: Mutex<()>,
}

impl Files {
    fn reload(&self) -> Result<String, CommandError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let read = read_usable(&self.file, self.config_id.as_deref()).and_then(|read| {
            // Such a file was half written, more likely than meant.
            let is_empty =
                read.configuration.virtual_servers.is_empty() && !self.board.lock().groups.is_empty();
            let (file, next) = (self.file.display(), "a restart of xvsd takes those away that run");
            if is_empty { Err(format!("{file}: no virtual_server; {next}")) } else { Ok(read) }
        });
        match read {
            Ok(read) => take_over(&self.manager, read),
            Err(text) => {
                self.board.lock().refuse(&text);
                let why = format!("xvs: nothing has changed, for the file cannot be used:\n{text}");
                Err(CommandError::Failed { why })
            }
        }
    }
}

/// Has the manager take over a file; waits until it has.
fn take_over(manager: &UnboundedSender<Message>, mut read: Prepared) -> Result<String, CommandError> {
    let more = faults(&read.configuration);
    read.configuration.faults.extend(more);
    let ending = || CommandError::Failed { why: "xvs: the daemon is ending".to_owned() };
    let (answer, answered) = oneshot::channel();
    manager.send(Message::TakeOver(Box::new(read), answer)).map_err(|_| ending())?;
    answered.blocking_recv().map_err(|_| ending())?
}

/// The director as checks meet it.
struct Director(Handle);

impl Outside for Director {
    async fn ask(&self, place: Place, url: usize, deadline: Instant) -> Answer {
        match &place.check().probe {
            Probe::Tcp(target) => tcp::ask(target, deadline).await,
            Probe::Udp(target, udp) => udp::ask(target, udp, deadline).await,
            Probe::Dns(target, dns) => dns::ask(target, dns, deadline).await,
            Probe::Smtp(target, name) => smtp::ask(target, name, deadline).await,
            Probe::Ping(target) => icmp::ask(target, deadline).await,
            Probe::Script(script, weighing) => {
                let program = Program::new(script, &place.globals, place.turn.clone());
                script::ask(&program, *weighing, place.server().options.weight.0, deadline).await
            }
            Probe::Http(target, http) => match &place.prepared {
                Some(prepared) => http::ask(target, http, prepared, url, deadline).await,
                None => unreachable!("an HTTP check is prepared when its configuration is"),
            },
            Probe::File(_) => unreachable!("a file is not asked, it tells by itself"),
        }
    }

    fn is_here(&self, virtual_server: &VirtualServer) -> bool {
        let snapshot = self.0.shared().published.load();
        let is_here = |key: &ServiceKey| match key {
            ServiceKey::Address { endpoint, .. } => snapshot.egress.is_local(endpoint.addr),
            ServiceKey::Mark { .. } => true,
        };
        virtual_server.services.iter().any(|(key, _)| is_here(key))
    }

    fn govern(&self, wanted: Wanted, reach: Reach) -> Result<Governed, CommandError> {
        self.0.govern(wanted, reach)
    }

    fn timeouts(&self) -> Result<Timeouts, CommandError> {
        match self.0.ask(Request::Timeouts)? {
            Reply::Timeouts(timeouts) => Ok(timeouts),
            other => unreachable!("asked for timeouts, it says {other:?}"),
        }
    }

    fn change(&self, command: Command) -> Result<(), CommandError> {
        self.0.ask(Request::Change(command)).map(|_| ())
    }

    fn tell(&self, what: Vec<String>) {
        what.iter().for_each(|line| tracing::info!("{line}"));
        let (shared, lines) = (self.0.shared(), what.into_iter().map(|line| (line, None)));
        shared.events.tell_all(Kind::Health, shared.published.load().epoch, None, lines);
    }
}

/// How many checks may ask at once, with as many descriptors as the process may have and has not yet.
fn at_once() -> usize {
    let limits = getrlimit(Resource::Nofile);
    // There is one of it in a process, so it is the first.
    let _ = DESCRIPTORS.set(limits);
    // What it may have is what it has if this is refused.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let taken = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let free = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(taken);
    // Each check has one or two, a script some more for a moment, and some are for who asks xvsd.
    (free / 4).clamp(1, AT_ONCE)
}

/// At most so many checks ask at once, however many descriptors there are.
const AT_ONCE: usize = 4096;
