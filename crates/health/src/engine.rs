//! Health checks at work: their thread, its runtime, and the messages to it.
//!
//! One thread with a runtime of its own. As many checks run at once as there are descriptors for; the limit of the process
//! is raised to its maximum. Not here: the checks (`runner.rs`) and what follows from them (`manager.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, oneshot};
use xvs_model::command::CommandError;
use xvs_model::health::HealthReport;

use crate::board::Board;
use crate::command::{DESCRIPTORS, faults};
use crate::environment::Environment;
use crate::manager::{Manager, Message};
use crate::prepare::Prepared;
use crate::runner::Runner;

/// Health checks at work; dropped, they end.
pub struct Engine {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// What gives the checks something to do, from any thread.
#[derive(Clone)]
pub struct Handle {
    board: Arc<Board>,
    manager: UnboundedSender<Message>,
    runtime: runtime::Handle,
}

impl Engine {
    /// Starts without a configuration. `file` is the name of the file in reports; `spawn` starts the thread.
    ///
    /// # Errors
    /// The system has no room for a runtime or a thread.
    pub fn start(
        file: PathBuf,
        environment: impl Environment,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (changed, changes) = unbounded_channel();
        let (manager, messages) = unbounded_channel();
        let board = Arc::new(Board::default());
        board.lock().file = file;
        let runner = Runner { environment, permits: Semaphore::new(at_once()), changed };
        let task = Manager::new(board.clone(), Arc::new(runner), changes, messages).run();
        let handle = Handle { board, manager, runtime: runtime.handle().clone() };
        let thread = spawn(Box::new(move || {
            runtime.block_on(task);
            // A search for a pattern may not have come to its end.
            runtime.shutdown_background();
        }))?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// What gives the checks something to do.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // It may have ended by a fault.
        let _ = self.handle.manager.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its own thread.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// Replaces the configuration that runs; waits until its services are in force. Returns what has changed.
    ///
    /// # Errors
    /// The services could not be made; or the checks are ending.
    pub fn replace(&self, mut read: Prepared) -> Result<String, CommandError> {
        let more = faults(&read.configuration);
        read.configuration.faults.extend(more);
        let ending = || CommandError::Failed { why: "xvs: the daemon is ending".to_owned() };
        let (answer, answered) = oneshot::channel();
        self.manager.send(Message::TakeOver(Box::new(read), answer)).map_err(|_| ending())?;
        answered.blocking_recv().map_err(|_| ending())?
    }

    /// Notes in the report that the file was read and cannot be used.
    pub fn refuse(&self, why: &str) {
        self.board.lock().refuse(why);
    }

    /// Whether there are virtual servers.
    pub fn has_virtual_servers(&self) -> bool {
        !self.board.lock().groups.is_empty()
    }

    /// All but what the control thread and workers know: drift, and the weights by which packets are scheduled.
    pub fn report(&self) -> HealthReport {
        self.board.report()
    }

    /// The runtime of the checks.
    pub fn runtime(&self) -> &runtime::Handle {
        &self.runtime
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
