//! Changes of the desired state, and the steps that every change takes in this order.
//!
//! 1. [`prepare`](Control::prepare): the command is checked, and files that it names are read. Nothing has changed.
//! 2. [`extend_steering`](Control::extend_steering): packets that the command needs are steered.
//! 3. [`carry_out`](Control::carry_out): the desired state changes, and the data that each feature keeps beside it.
//! 4. [`note`](Control::note): the journal gets the command.
//! 5. [`publish`](Control::publish): workers get the snapshot.
//!
//! A batch takes each step for all its commands, or the first and the third step for each command, if a refused command
//! stops no other command.

use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::{Accepted, State};
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::quic::{QuicKey, QuicObject};
use xvs_model::objects::{Object, Rule};

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::list_sources::Contents;
use crate::quic_key::QuicKeys;

/// A command that nothing but the sockets of a synchronization daemon can refuse any more.
pub(super) struct Prepared<'a> {
    accepted: Accepted<'a>,
    /// The networks of the file that it gives to a list.
    contents: Contents,
    /// The key in the file of a QUIC configuration.
    quic_keys: QuicKeys,
}

impl<'a> Prepared<'a> {
    /// The command.
    pub(super) fn command(&self) -> &'a Command {
        self.accepted.command()
    }
}

impl<D: Datapath> Control<D> {
    /// Checks a command, and reads the file that it names.
    ///
    /// # Errors
    /// Why the command is refused.
    pub(super) fn prepare<'a>(&mut self, command: &'a Command) -> Result<Prepared<'a>, CommandError> {
        let accepted = self.admit(&self.state, command)?;
        self.read_file_of(accepted)
    }

    /// Checks a command against this desired state and the network.
    ///
    /// # Errors
    /// Why the command is refused.
    pub(super) fn admit<'a>(
        &self,
        state: &State,
        command: &'a Command,
    ) -> Result<Accepted<'a>, CommandError> {
        let accepted = self.with_device(command, state.check(command))?;
        self.refuse_broadcast(command)?;
        self.refuse_own_peer(command)?;
        self.refuse_wide_local_nat(state, command)?;
        Ok(accepted)
    }

    /// Reads the file that an accepted command names.
    ///
    /// # Errors
    /// The file's fault.
    pub(super) fn read_file_of<'a>(&mut self, accepted: Accepted<'a>) -> Result<Prepared<'a>, CommandError> {
        let contents = self.read_list_file(accepted.command())?;
        Ok(Prepared { accepted, contents, quic_keys: self.read_quic_key(accepted.command())? })
    }

    /// Carries out a prepared command. [`Self::publish`] publishes the snapshot.
    ///
    /// # Errors
    /// A daemon of synchronization could not be started; then nothing has changed.
    pub(super) fn carry_out(&mut self, prepared: Prepared<'_>, now: Millis) -> Result<(), CommandError> {
        let Prepared { accepted, contents, quic_keys } = prepared;
        self.enter(accepted, now)?;
        self.lists.enter(contents);
        if let Some(Object::Quic(QuicKey { object: QuicObject::Config { .. }, .. })) =
            accepted.command().object()
        {
            self.enter_quic_keys(quic_keys);
        }
        Ok(())
    }

    /// Enters an accepted command in the desired state and in what each feature keeps beside it. The order matters
    /// where one step reads what another has written.
    ///
    /// # Errors
    /// A daemon of synchronization could not be started; then nothing has changed.
    pub(super) fn enter(&mut self, accepted: Accepted<'_>, now: Millis) -> Result<(), CommandError> {
        let command = accepted.command();
        if let Command::Add(Rule::Daemon(daemon)) = command {
            self.start_daemon(daemon, now)?;
        }
        self.steered.note(command, &self.state);
        self.state.enter(accepted);
        self.lists.note(command, &self.state);
        match command.object() {
            Some(Object::Local(_)) => self.enter_local_addresses(),
            Some(Object::Mark(_)) => {
                self.marks.compile(self.state.marks());
                self.enter_marks();
            }
            _ => {}
        }
        if let Command::Delete(Object::Daemon(role)) = command {
            self.stop_daemon(*role);
        }
        self.note_limit(command);
        self.registry.apply(command, &self.state, &mut self.publication.snapshot, now);
        self.owned.note(command);
        self.next_hops.note(command);
        Ok(())
    }

    /// Enters the local addresses of FULLNAT in the working snapshot.
    fn enter_local_addresses(&mut self) {
        let [own, standby] = [false, true].map(|standby| {
            let locals = self.state.locals().iter().filter(move |local| local.standby == standby);
            locals.map(|local| (local.addr, local.ports()))
        });
        self.publication.snapshot.locals = Arc::new(LocalAddresses::new(own, standby));
    }
}
