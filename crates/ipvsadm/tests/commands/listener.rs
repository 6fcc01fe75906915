//! A director for tests of command lines: accepts every change and lists nothing.

use std::io;

use xvs_model::config::command::Command;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::ConnectionRow;

/// Accepts every change and keeps the last one.
#[derive(Default)]
pub(crate) struct Listener {
    /// The last change.
    pub(crate) requested: Option<Command>,
}

impl Director for Listener {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        Ok(match request {
            Request::Control(ControlRequest::ListServices)
            | Request::Control(ControlRequest::ListService(_)) => Reply::Services(Vec::new()),
            Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(Timeouts::default()),
            Request::Control(ControlRequest::Rules) => Reply::rules_of(&[], []),
            Request::Control(ControlRequest::Daemons) => Reply::Daemons(Vec::new()),
            Request::Control(ControlRequest::Change(command)) => {
                self.requested = Some(command);
                Reply::Done
            }
            _ => Reply::Done,
        })
    }

    fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        Ok(())
    }
}
