//! The health engine: the thread of the checks, its runtime, and the requests to it.
//!
//! One thread with a separate tokio runtime. The number of concurrent probes follows from the free descriptors; the
//! descriptor limit of the process is raised to its maximum. `runner.rs` runs the checks, and `manager.rs` applies
//! their results.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, Semaphore, oneshot};
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::disabled::DisabledServers;
use xvs_model::report::health::HealthReport;
use xvs_sched::ServiceKey;

use crate::blocking;
use crate::environment::Environment;
use crate::manager::{Manager, Message};
use crate::prepare::{Prepared, examine_scripts};
use crate::results::SharedResults;
use crate::runner::Runner;
use crate::view::View;

/// The running health engine. Dropping it ends the checks and the thread.
pub struct Engine {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

/// A handle on the engine, for any thread.
#[derive(Clone)]
pub struct Handle {
    results: Arc<SharedResults>,
    manager: UnboundedSender<Message>,
    runtime: runtime::Handle,
}

impl Engine {
    /// Starts the engine without a configuration. `file` is the file name in reports; `former` is the view of an
    /// earlier process, with which the first configuration begins; `spawn` starts the thread. Until [`Handle::begin`]
    /// no check runs, no notice is sent and no view is kept: the earlier process may still do so.
    ///
    /// # Errors
    ///
    /// The system cannot create a runtime or a thread.
    pub fn start(
        file: PathBuf,
        environment: impl Environment,
        former: View,
        spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>>,
    ) -> io::Result<Self> {
        let runtime = blocking::runtime()?;
        let (changed, changes) = unbounded_channel();
        let (manager, messages) = unbounded_channel();
        let results = Arc::new(SharedResults::default());
        results.lock().file = file;
        let runner = Runner { environment, permits: Semaphore::new(0), changed, view_changed: Notify::new() };
        let task = Manager::new(results.clone(), Arc::new(runner), changes, messages, former).run();
        let handle = Handle { results, manager, runtime: runtime.handle().clone() };
        let thread = spawn(Box::new(move || {
            runtime.block_on(task);
            // A pattern search on a blocking thread may still be running.
            runtime.shutdown_background();
        }))?;
        Ok(Self { handle, thread: Some(thread) })
    }

    /// A handle on the engine.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The manager may have ended by a panic.
        let _ = self.handle.manager.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // The thread has reported its panic itself.
            let _ = thread.join();
        }
    }
}

impl Handle {
    /// Replaces the running configuration. Blocks until its services are in force. Returns a summary of the changes.
    ///
    /// # Errors
    /// The control thread refused the services, or the daemon is stopping.
    pub fn replace(&self, mut prepared: Prepared) -> Result<String, CommandError> {
        examine_scripts(&mut prepared.configuration);
        let (reply, replied) = oneshot::channel();
        self.manager.send(Message::Load(Box::new(prepared), reply)).map_err(|_| CommandError::ending())?;
        replied.blocking_recv().map_err(|_| CommandError::ending())?
    }

    /// Begins with the checks, and sends the notices that have waited. Called once.
    pub fn begin(&self) {
        // The daemon may be stopping.
        let _ = self.manager.send(Message::Begin { probes: concurrent_probes() });
    }

    /// Replaces the disabled real servers, which do not count for a quorum. Does not wait.
    pub fn set_disabled(&self, disabled: DisabledServers) {
        // The daemon may be stopping.
        let _ = self.manager.send(Message::Disabled(Arc::new(disabled)));
    }

    /// Sets the file name in reports.
    pub fn set_file(&self, file: PathBuf) {
        self.results.lock().file = file;
    }

    /// Records in the report that the file was read and refused.
    pub fn refuse(&self, why: &str) {
        self.results.lock().refuse(why);
    }

    /// The services of the virtual servers.
    pub fn services(&self) -> Vec<ServiceKey> {
        self.results
            .lock()
            .virtual_servers
            .iter()
            .flat_map(|one| &one.state.virtual_server().services)
            .map(|(key, _)| *key)
            .collect()
    }

    /// The report, without the data that the control thread and the workers add: drift and the weights in force.
    pub fn report(&self) -> HealthReport {
        self.results.report()
    }

    /// The runtime of the checks.
    pub fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }
}

/// The number of probes that may run at once, from the number of free descriptors.
fn concurrent_probes() -> usize {
    let limits = getrlimit(Resource::Nofile);
    // If this is refused, the limit does not change, and is read below.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits });
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let taken = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let free = usize::try_from(descriptors).unwrap_or(usize::MAX).saturating_sub(taken + CLIENT_FILES);
    // A probe needs one or two descriptors, the start of a script more.
    (free / 4).clamp(1, CONCURRENT_PROBES_MAX)
}

/// The number of descriptors that are left for the clients of xvsd.
const CLIENT_FILES: usize = 256;

/// The number of concurrent probes if descriptors do not limit it.
const CONCURRENT_PROBES_MAX: usize = 4096;
