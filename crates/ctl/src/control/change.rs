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

use std::slice;

use xvs_dataplane::clock::Millis;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::{Accepted, State};
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::quic::{QuicKey, QuicObject};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::question::Reply;
use xvs_model::report::setting::Source;

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::follow::{Change, Follow, Locals};
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
    /// Takes all steps for one command; `source` is where it comes from.
    ///
    /// # Errors
    /// As for [`Self::handle`].
    pub fn change(&mut self, command: &Command, source: Source, now: Millis) -> Result<Reply, CommandError> {
        let command = &self.with_end(command, now);
        let prepared = self.prepare(command)?;
        self.extend_steering(slice::from_ref(command))?;
        self.carry_out(prepared, now)?;
        self.note([command], source);
        self.publish()?;
        Ok(Reply::Done)
    }

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

    /// Enters an accepted command in the desired state and in what each feature keeps beside it. Steering also reads
    /// the state before the command.
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
        if let Command::Delete(Object::Daemon(role)) = command {
            self.stop_daemon(*role);
        }
        let Self { state, publication, lists, marks, syn_limits, registry, owned, next_hops, .. } = self;
        let mut change = Change { command, state, snapshot: &mut publication.snapshot, now };
        let features: [&mut dyn Follow; 7] =
            [lists, &mut Locals, marks, syn_limits, registry, owned, next_hops];
        for feature in features {
            feature.follow(&mut change);
        }
        Ok(())
    }
}
