//! What an admitted command changes: the desired state, and what each feature keeps beside it.
//!
//! One step for each feature. The order matters where one step reads what another has written. Not here: the check of a
//! command, and the publication of what has changed.

use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_model::config::command::{Command, CommandError};

use crate::control::Control;
use crate::control::datapath::Datapath;

impl<D: Datapath> Control<D> {
    /// Enters an admitted command in the desired state. [`Self::publish`] publishes the snapshot.
    ///
    /// # Errors
    /// A daemon of synchronization could not be started; then nothing has changed.
    pub(super) fn change(&mut self, command: &Command, now: Millis) -> Result<(), CommandError> {
        if let Command::StartDaemon(daemon) = command {
            self.start_daemon(daemon, now)?;
        }
        self.steered.note(command, &self.state);
        self.state.apply(command)?;
        self.lists.note(command, &self.state);
        self.note_quic(command);
        if let Command::StopDaemon(role) = command {
            self.stop_daemon(*role);
        }
        self.note_local_address(command);
        self.note_limit(command);
        self.registry.apply(command, &self.state, &mut self.publication.snapshot, now);
        self.owned.note(command);
        self.note_mark(command);
        self.next_hops.note(command);
        Ok(())
    }

    /// Enters the local addresses of FULLNAT in the working snapshot, if a command changes them.
    fn note_local_address(&mut self, command: &Command) {
        if matches!(command, Command::AddLocal(_) | Command::DeleteLocal(_)) {
            let [own, standby] = [false, true].map(|standby| {
                let locals = self.state.locals().iter().filter(move |local| local.standby == standby);
                locals.map(|local| (local.addr, local.ports()))
            });
            self.publication.snapshot.locals = Arc::new(LocalAddresses::new(own, standby));
        }
    }

    /// Enters mark rules that a command changes in the working snapshot.
    fn note_mark(&mut self, command: &Command) {
        if matches!(command, Command::AddMark(_) | Command::DeleteMark(_)) {
            self.marks.compile(self.state.marks());
            self.enter_marks();
        }
    }
}
