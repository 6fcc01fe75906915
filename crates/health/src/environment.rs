//! What checks ask and change: the director and the network, or those of a test.

use std::future::Future;

use tokio::time::Instant;
use xvs_model::command::{Command, CommandError};
use xvs_model::reconcile::{OwnedService, ReconcileScope, Reconciled};
use xvs_model::timeouts::Timeouts;
use xvs_model::virtual_server::VirtualServer;
use xvs_sched::ServiceKey;

use crate::answer::Answer;
use crate::place::Place;

/// What services are to be, by their key; `None`: the service goes.
pub type Wanted = Vec<(ServiceKey, Option<OwnedService>)>;

/// What checks ask, and what they have changed: the director and the network, or a test's.
pub trait Environment: Send + Sync + 'static {
    /// What comes of the check at this place, by then; `url` is the number of the object that it asks for.
    fn ask(&self, place: Place, url: usize, deadline: Instant) -> impl Future<Output = Answer> + Send {
        crate::probe::ask(place, url, deadline)
    }

    /// Whether an address of this virtual server's services is this machine's now.
    fn is_here(&self, virtual_server: &VirtualServer) -> bool;

    /// Has services be so; waits until they are.
    ///
    /// # Errors
    /// Nothing has changed.
    fn reconcile(&self, wanted: Wanted, scope: ReconcileScope) -> Result<Reconciled, CommandError>;

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
