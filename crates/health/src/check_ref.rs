//! A check, identified by its position in a configuration.

use std::sync::Arc;

use xvs_model::health_checks::check::Check;
use xvs_model::health_checks::virtual_server::{Globals, RealServer, VirtualServer};

use crate::command::RunLock;
use crate::prepare::PreparedCheck;

/// One check of a configuration, with the data for running it.
#[derive(Clone)]
pub struct CheckRef {
    /// The virtual server that it belongs to.
    pub(crate) virtual_server: Arc<VirtualServer>,
    /// Index of the virtual server in its configuration.
    pub(crate) virtual_server_index: usize,
    /// Index of the real server in the virtual server.
    pub(crate) server_index: usize,
    /// Index of the check in the real server.
    pub(crate) check_index: usize,
    /// Compiled patterns and TLS settings.
    pub(crate) prepared: PreparedCheck,
    /// The `global_defs` of the file.
    pub(crate) globals: Arc<Globals>,
    /// Held while a script of this check runs, even across a reload.
    pub(crate) run_lock: RunLock,
}

impl CheckRef {
    /// The real server that is checked.
    pub fn real_server(&self) -> &RealServer {
        &self.virtual_server.real_servers[self.server_index]
    }

    /// The real server and its virtual server, for the log.
    pub(crate) fn title(&self) -> String {
        format!("{} of {}", self.real_server().endpoint, self.virtual_server.name)
    }

    /// The configuration of the check.
    pub fn config(&self) -> &Check {
        &self.real_server().checks[self.check_index]
    }
}
