//! Inputs of the control thread.

use crossbeam::channel::Sender;
use xvs_ctl::journal::Journal;
use xvs_ctl::journal::replay::TimeoutsBySource;
use xvs_model::config::command::CommandError;
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_model::protocol::request::TakeOverStep;

use crate::control_thread::ControlThread;

/// An input of the control thread.
pub(crate) enum Input {
    /// Something to do on the control thread.
    Do(Box<dyn FnOnce(&mut ControlThread) + Send>),
    /// A new network view is in [`Latest`](xvs_host::network::Latest).
    Network,
    /// New mark rules are in [`Latest`](xvs_host::network::Latest).
    Marks,
    Stop,
}

/// What xvsd begins with, beside rules.
#[derive(Default)]
pub(crate) struct Begun {
    /// The timeouts of an earlier xvsd.
    pub(crate) timeouts: TimeoutsBySource,
    /// The settings of `xvs set` that were carried out.
    pub(crate) settings: Vec<(String, String)>,
    /// Daemons of synchronization that could not be started.
    pub(crate) refused: Vec<(SyncDaemon, CommandError)>,
    /// The journal that is kept from now on.
    pub(crate) journal: Option<Journal>,
}

/// A step of a process that takes over, and where its result goes.
pub(crate) type Step = (TakeOverStep, Sender<Result<(), CommandError>>);
