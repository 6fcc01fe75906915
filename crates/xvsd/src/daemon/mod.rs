//! The daemon `xvsd`: start and shutdown, in order.
//!
//! Start: the socket (so that a second daemon changes nothing), the XDP program on each interface, the connection
//! table, a worker for each share of the queues, the control thread, the network and mark rules, health checks, the
//! replacement of XDP programs that an earlier process has pinned, readiness. Shutdown, in reverse: requests end, the
//! XDP program is detached (the kernel gets the packets again) unless it is pinned, the workers end with their last
//! burst, sockets close. A failed start ends everything that it has started.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, panic, thread};

use crossbeam::channel::{Receiver, Sender, bounded};
use xvs_ctl::config::Keepalived;
use xvs_ctl::config::fleet::Fleet;
use xvs_ctl::config::kernel::{Kernel, KernelMode};
use xvs_ctl::control::saving::Begun;
use xvs_ctl::journal::Journal;
use xvs_ctl::journal::start::{Beginning, Files};
use xvs_health::engine::Engine;
use xvs_health::prepare::Prepared;
use xvs_host::follower_thread::FollowerThread;
use xvs_host::network::{Latest, Slot};
use xvs_host::state_directory::{Others, StateDirectory};
use xvs_ipvsadm::command_line;
use xvs_model::config::command::Command;
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::Rule;
use xvs_model::protocol::question;

use crate::connection_log::Logging;
use crate::control_thread::Input;
use crate::daemon::ending::Ending;
use crate::error::{DaemonError, system};
use crate::fleet::Following;
use crate::handle::Handle;
use crate::health_checks;
use crate::health_checks::HealthError;
use crate::keepalived_conf::Loss;
use crate::kernel_rules::FollowingKernel;
use crate::restart::kept_health::KeptHealth;
use crate::restart::take_over::TakeOver;
use crate::rights::seccomp::{self, Kind};
use crate::shared::Shared;
use crate::threads::EndNotice;
use crate::workers::system::SystemDatapath;

pub mod ending;
pub(crate) mod liveness;
mod start;
pub mod watchdog;

/// A running daemon.
pub struct Daemon {
    inputs: Sender<Input>,
    control: Option<JoinHandle<SystemDatapath>>,
    network: Option<FollowerThread>,
    netfilter: Option<FollowerThread>,
    health: Option<Engine>,
    fleet: Option<Following>,
    kernel: Option<FollowingKernel>,
    /// The thread of the log of connections; `None` if there is no log.
    logging: Option<Logging>,
    /// Whether the daemon began with a journal, and none of its rules was refused.
    is_as_kept: bool,
    shared: Arc<Shared>,
    notices: Sender<String>,
    ended: Receiver<String>,
    /// The settings of `xvs set` and the journal, which begins when the former xvsd has ended.
    begun: Option<(Vec<(String, String)>, Journal)>,
    /// Owned by this process until everything has ended.
    directory: Option<StateDirectory>,
}

impl Daemon {
    /// Receives the name of a thread that has ended without being stopped.
    pub fn ended(&self) -> &Receiver<String> {
        &self.ended
    }

    /// A handle for requests, for the server of the socket.
    pub fn handle(&self) -> Handle {
        Handle::new(self.inputs.clone(), self.shared.clone())
    }

    /// Carries out the initial rules, or the journal, as one snapshot, and begins the journal. What is refused is
    /// logged, and the rest is carried out.
    ///
    /// # Errors
    /// The control thread refuses the whole request, or the journal of a running xvsd cannot be used. Then the journal
    /// stays as it was.
    pub fn begin(&mut self, files: Files) -> Result<(), DaemonError> {
        let others = self.others();
        let Beginning { commands, settings, timeouts, saved_at_millis, journal, said } = match &self.directory
        {
            Some(directory) => Beginning::of_directory(directory.path(), files, others)
                .map_err(|why| DaemonError::TakeOver(format!("its journal is refused: {why}")))?,
            None => Beginning::of_files(files),
        };
        said.iter().for_each(|line| tracing::warn!("{line}"));
        let handle = self.handle();
        // Before the rules: a daemon of synchronization reads some when it starts.
        let mut in_force = Vec::new();
        for (key, value) in settings {
            let answer = handle.ask(question::set(key.clone(), value.clone()));
            match answer.as_ref().err().and_then(CommandError::refusal) {
                Some(error) => tracing::error!("journal: xvs set {key} {value}: refused: {error}"),
                None => in_force.push((key, value)),
            }
        }
        let mut refused = Vec::new();
        self.is_as_kept = saved_at_millis.is_some();
        if !commands.is_empty() {
            let all = commands.iter().map(|(_, command)| command.clone()).collect();
            let results = handle.ask(question::restore(all)).map_err(DaemonError::Begin)?;
            log_begun(&commands, &results);
            for ((_, command), result) in commands.into_iter().zip(results) {
                let Some(refusal) = result.as_ref().err().and_then(CommandError::refusal) else { continue };
                match command {
                    // Tried again.
                    Command::Add(Rule::Daemon(daemon)) => refused.push((daemon, refusal.clone())),
                    _ => self.is_as_kept = false,
                }
            }
        }
        let (now, later) = if others == Others::Ended { (journal, None) } else { (None, journal) };
        self.begun = later.map(|journal| (in_force.clone(), journal));
        let begun = Begun { timeouts, settings: in_force, refused, journal: now };
        let kept = handle.run(|thread| thread.control.begin_journal(begun, thread.shared.now()));
        self.shared.facts_mut().journal_saved_at_millis = saved_at_millis;
        kept.map_err(DaemonError::Begin)
    }

    /// Starts to follow the rules of a fleet, if there is one. Returns when they are in force, or after a short time.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn follow_fleet(&mut self, fleet: &Fleet) -> Result<(), DaemonError> {
        if !fleet.etcd.is_empty() {
            let kept = (self.directory.as_ref().map(StateDirectory::path), self.is_as_kept);
            self.fleet =
                Some(Following::start(fleet, kept, self.others(), self.handle()).map_err(no_thread())?);
        }
        Ok(())
    }

    /// Starts to follow the kernel's IPVS, if the configuration wants that. Returns when its rules are in force, or
    /// cannot be read.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub fn follow_kernel(&mut self, kernel: &Kernel) -> Result<(), DaemonError> {
        if kernel.rules == KernelMode::Follow {
            self.kernel = Some(FollowingKernel::start(self.handle()).map_err(no_thread())?);
        }
        Ok(())
    }

    /// Starts the health checks in keepalived.conf. Returns when its services are in force.
    ///
    /// # Errors
    ///
    /// The reason why the checks cannot start.
    pub fn start_health_checks(
        &mut self,
        keepalived: &Keepalived,
        read: Option<Prepared>,
        loss: Loss,
    ) -> Result<(), HealthError> {
        let Some(read) = read else { return Ok(()) };
        let kept = self.directory.as_ref().map(|directory| KeptHealth::new(directory.path()));
        let (others, handle) = (self.others(), self.handle());
        let start = || {
            // The thread's child threads inherit it.
            seccomp::limit_thread(Kind::Reader);
            health_checks::start(keepalived, read, kept, others, (&handle, &self.notices), loss)
        };
        let started = thread::scope(|scope| {
            thread::Builder::new().spawn_scoped(scope, start).map(thread::ScopedJoinHandle::join)
        })?;
        self.health = Some(started.unwrap_or_else(|panic| panic::resume_unwind(panic))?);
        Ok(())
    }

    /// Whether another xvsd runs, from which this one takes over.
    fn others(&self) -> Others {
        self.directory.as_ref().map_or(Others::Ended, StateDirectory::others)
    }

    /// Begins to forward (`restart/serve.rs`). Called when all services of the start are in force: then no frame
    /// for a service reaches the kernel in the meantime. A running xvsd is paused before that, and ended afterwards.
    ///
    /// # Errors
    ///
    /// An interface or a socket that the kernel refuses, or in a take-over a list whose file has a fault; a running
    /// xvsd then continues.
    pub fn serve(&mut self, take_over: Option<TakeOver>) -> Result<(), DaemonError> {
        // Without a reply the control thread has ended by a bug, which `ended` reports.
        let Ok(served) = self.handle().run(|thread| Ok(thread.serve(take_over))) else { return Ok(()) };
        let Some(take_over) = served? else { return Ok(()) };
        tracing::info!("the former xvsd is taken over; nobody forwarded for {:?}", take_over.pause_time());
        take_over.end_former();
        // The former xvsd has ended, so this one must continue in any case.
        if let Some(Err(error)) = self.directory.as_mut().map(StateDirectory::take) {
            tracing::error!("state_directory: {error}");
        }
        if let Some((settings, journal)) = self.begun.take() {
            let begun = Begun { settings, journal: Some(journal), ..Begun::default() };
            self.handle()
                .run(|thread| thread.control.begin_journal(begun, thread.shared.now()))
                .unwrap_or_else(|error| tracing::error!("journal: {error}"));
        }
        if let Some(fleet) = &self.fleet {
            fleet.begin_journal();
        }
        if let Some(checks) = self.shared.checks.get() {
            checks.begin();
        }
        Ok(())
    }

    /// Ends every thread. The kernel has the packets of the interfaces at once, or after the hold.
    pub fn stop(mut self, ending: Ending) {
        drop(self.fleet.take());
        drop(self.kernel.take());
        drop(self.health.take());
        drop(self.network.take());
        drop(self.netfilter.take());
        let _ = self.inputs.send(Input::Stop);
        if let Some(Ok(mut datapath)) = self.control.take().map(JoinHandle::join)
            && ending == Ending::Release
        {
            datapath.workers.release();
            // The mapped table stays until the process has ended.
            if let Some(Err(error)) = self.directory.as_ref().map(StateDirectory::remove_all) {
                tracing::error!("state_directory: {error}");
            }
        }
        // The workers have ended, so the thread has all their records.
        drop(self.logging.take());
    }
}

/// Logs which of the first commands are refused, and how many are in force.
fn log_begun(commands: &[(Option<usize>, Command)], results: &[Result<(), CommandError>]) {
    let mut in_force = commands.len();
    for ((line, command), result) in commands.iter().zip(results) {
        if let Some(error) = result.as_ref().err().and_then(CommandError::refusal) {
            in_force -= 1;
            let place = line.map_or("journal".to_owned(), |number| format!("rules, line {number}"));
            tracing::error!("{place}: {}: refused: {error}", command_line(command));
        }
    }
    if commands.iter().any(|(line, _)| line.is_some()) {
        tracing::info!("rules: {in_force} of {} lines are in force", commands.len());
    } else {
        tracing::info!("journal: {in_force} of {} objects are in force", commands.len());
    }
}

/// The machine's memory.
fn machine_memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    // The fields have the machine's word size.
    u64::from(machine.mem_unit) * machine.totalram as u64
}

/// A callback for a follower's thread with this name. It puts each view into `latest` and sends `input` to the control
/// thread. The receiver gets one message, for the first view.
fn follower_callback<T: Send + 'static>(
    thread: &str,
    latest: Latest<T>,
    input: fn() -> Input,
    inputs: &Sender<Input>,
    notices: &Sender<String>,
) -> (impl FnMut(T) + Send + 'static, Receiver<()>) {
    let (seen, first) = bounded(1);
    let (notice, inputs) = (EndNotice::new(thread, notices), inputs.clone());
    let report = move |view| {
        // Moved into the closure, so that it is dropped when the thread ends.
        let _ = &notice;
        if latest.put(view) == Slot::Empty {
            // The control thread ends first only when the daemon stops.
            let _ = inputs.send(input());
        }
        // The channel is full after the first view.
        let _ = seen.try_send(());
    };
    (report, first)
}

fn no_thread() -> impl FnOnce(io::Error) -> DaemonError {
    system("a thread")
}
