//! Health: whether real servers answer, and what follows from it for the services of a keepalived.conf.
//!
//! Each check asks again and again, on a runtime of its own, so that no probe delays a command. What its answers mean for
//! it is counted by itself; what that means for a virtual server is worked out in one place, and what the table should
//! then hold goes to the control thread as a whole. Not here: what a file says (`keepalived/`), and what becomes of
//! packets.

mod board;
mod command;
pub mod course;
mod dns;
pub mod engine;
mod fifo;
mod file;
mod http;
mod icmp;
mod manager;
mod notify;
pub mod outcome;
mod pattern;
pub mod pool;
pub mod prepare;
mod probe;
mod runner;
mod script;
mod smtp;
mod socket;
mod tcp;
mod tls;
mod tls_config;
mod udp;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;

use runner::Place;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::Instant;
use xvs_model::command::{Command, CommandError};
use xvs_model::reconcile::{Governed, GovernedService, Reach};
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::VirtualServer;
use xvs_sched::ServiceKey;

/// What came of asking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is well. What it adds to the server's weight, which is not 0 only for scripts and files that say so.
    Well(i64),
    /// It is not, in words: what was seen and what was wanted.
    Unwell(String),
    /// It could not be asked, for a reason that lies here and says nothing of the server, in words.
    Unasked(String),
}

/// What services are to be, by their key; `None`: the service goes.
pub type Wanted = Vec<(ServiceKey, Option<GovernedService>)>;

/// What checks ask, and what they have changed: the director and the network, or a test's.
pub trait Outside: Send + Sync + 'static {
    /// What comes of the check at this place, by then; `url` is the number of the object that it asks for.
    fn ask(&self, place: Place, url: usize, deadline: Instant) -> impl Future<Output = Answer> + Send {
        probe::ask(place, url, deadline)
    }

    /// Whether an address of this virtual server's services is this machine's now.
    fn is_here(&self, virtual_server: &VirtualServer) -> bool;

    /// Has services be so; waits until they are.
    ///
    /// # Errors
    /// Nothing has changed.
    fn govern(&self, wanted: Wanted, reach: Reach) -> Result<Governed, CommandError>;

    /// The timeouts in force.
    ///
    /// # Errors
    /// Nobody says.
    fn timeouts(&self) -> Result<Timeouts, CommandError>;

    /// Carries out a command.
    ///
    /// # Errors
    /// It was refused.
    fn change(&self, command: Command) -> Result<(), CommandError>;

    /// Tells events and the log what has come at once.
    fn tell(&self, what: Vec<String>);
}

/// Does what may hang, such as a look at a file that is far away, on a thread that may wait. What goes to the control
/// thread needs one too: no more than [`HANGING_MAX`] are taken by this, and others wait for one of these.
async fn apart<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    // There is one thread of health in a process, and each test has its own.
    thread_local!(static ROOM: Arc<Semaphore> = Arc::new(Semaphore::new(HANGING_MAX)));
    let permit = ROOM.with(Arc::clone).acquire_owned().await;
    let done = move || {
        let _permit = permit;
        what()
    };
    spawn_blocking(done).await
}

/// Half of the threads that tokio has for it.
const HANGING_MAX: usize = 256;
