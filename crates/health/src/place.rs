//! A check by its place in a configuration.

use std::sync::Arc;

use xvs_model::check::Check;
use xvs_model::virtual_server::{Globals, RealServer, VirtualServer};

use crate::command::Turn;
use crate::prepare::PreparedCheck;

/// Which check of a configuration.
#[derive(Clone)]
pub struct Place {
    /// Its virtual server.
    pub(crate) virtual_server: Arc<VirtualServer>,
    /// The number of that in its file.
    pub(crate) pool: usize,
    /// The number of its real server in that.
    pub(crate) server: usize,
    /// Its own number in that.
    pub(crate) check: usize,
    /// What it needs beside what the file says.
    pub(crate) prepared: PreparedCheck,
    /// What the file says for all.
    pub(crate) globals: Arc<Globals>,
    /// By which it is known whether a script of it still runs.
    pub(crate) turn: Turn,
}

impl Place {
    /// Whom it asks about.
    pub fn server(&self) -> &RealServer {
        &self.virtual_server.real_servers[self.server]
    }

    /// What it is.
    pub fn check(&self) -> &Check {
        &self.server().checks[self.check]
    }
}
