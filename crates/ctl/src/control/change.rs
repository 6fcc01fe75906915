//! Changes of the desired state, and the steps of every change, in this order.
//!
//! 1. [`prepare`](Control::prepare): the command is checked, and files that it names are read. Nothing has changed.
//! 2. [`extend_steering`](Control::extend_steering): packets that the command needs are steered.
//! 3. [`carry_out`](Control::carry_out): the desired state changes, and the data that each feature keeps in addition.
//! 4. [`note`](Control::note): the journal gets the command.
//! 5. [`publish`](Control::publish): workers get the snapshot.
//!
//! A batch takes each step for all its commands, or takes the first and the third step command by command
//! ([`prepare_and_carry_out`](Control::prepare_and_carry_out)) if a refused command stops no other command.

use std::slice;

use xvs_dataplane::clock::Millis;
use xvs_model::config::command::Command;
use xvs_model::config::desired_state::{Accepted, State};
use xvs_model::config::refusal::CommandError;
use xvs_model::objects::quic::{QuicKey, QuicObject};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::question::Reply;
use xvs_model::report::setting::Source;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::control::Control;
use crate::control::datapath::Datapath;
use crate::control::follow::{Change, Follow, Locals};
use crate::control::list_sources::Contents;
use crate::quic_key::QuicKeys;
use crate::steering::takes_any_port;

/// A command that only the sockets of a synchronization daemon can still refuse.
pub(super) struct Prepared<'a> {
    pub(super) accepted: Accepted<'a>,
    /// The networks of the file that the command gives to a list.
    contents: Contents,
    /// The key in the file of a QUIC configuration.
    quic_keys: QuicKeys,
}

impl<D: Datapath> Control<D> {
    /// Takes all steps for one command from this source.
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

    /// Checks one command of a batch and carries it out.
    ///
    /// # Errors
    /// The reason why the command is refused; then nothing has changed.
    pub(super) fn prepare_and_carry_out(
        &mut self,
        command: &Command,
        now: Millis,
    ) -> Result<(), CommandError> {
        let prepared = self.prepare(command)?;
        self.carry_out(prepared, now)
    }

    /// Checks a command, and reads the file that it names.
    ///
    /// # Errors
    /// The reason why the command is refused.
    pub(super) fn prepare<'a>(&mut self, command: &'a Command) -> Result<Prepared<'a>, CommandError> {
        self.read_file_of(self.admit(&self.state, command)?)
    }

    /// Checks a command against this desired state and the network.
    ///
    /// # Errors
    /// The reason why the command is refused.
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

    /// Refuses the broadcast address of a network that the director is in, as IPVS does. The limited broadcast
    /// address is not refused.
    fn refuse_broadcast(&self, command: &Command) -> Result<(), CommandError> {
        match command {
            Command::Add(Rule::Destination { endpoint, .. }) if self.broadcasts.contains(&endpoint.addr) => {
                Err(CommandError::invalid(format!(
                    "destination {endpoint} is the broadcast address of a network of the director's"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses NAT to any port of the director itself. Otherwise all packets from such an address would be replies.
    fn refuse_wide_local_nat(&self, state: &State, command: &Command) -> Result<(), CommandError> {
        let (Command::Add(Rule::Destination { service, endpoint, options })
        | Command::EditDestination { service, endpoint, options }) = command
        else {
            return Ok(());
        };
        let keeps_endpoint =
            matches!(service, ServiceKey::Address { endpoint: virt, .. } if virt == endpoint);
        let is_rewritten =
            options.method == ForwardingMethod::Nat && takes_any_port(*service) && !keeps_endpoint;
        // A destination whose address became local later can still be edited, for example to quiesce it.
        let has_method = state
            .service(service)
            .and_then(|service| service.destination(*endpoint))
            .is_some_and(|dest| dest.options.method == options.method);
        // Packets to a loopback address are dropped, as under IPVS.
        if !is_rewritten
            || has_method
            || endpoint.addr.is_loopback()
            || !self.publication.snapshot.egress.is_own(endpoint.addr)
        {
            return Ok(());
        }
        Err(CommandError::NotSupported {
            object: format!("real server {endpoint}"),
            what: "NAT (-m) to the director itself, for a service of a mark, of port 0 or of FTP, is"
                .to_owned(),
            next: "use -g, and have the server listen at the virtual address".to_owned(),
        })
    }

    /// Reads the file that an accepted command names.
    ///
    /// # Errors
    /// The file's fault.
    pub(super) fn read_file_of<'a>(&mut self, accepted: Accepted<'a>) -> Result<Prepared<'a>, CommandError> {
        Ok(Prepared {
            accepted,
            contents: self.read_list_file(accepted.command())?,
            quic_keys: self.read_quic_key(accepted.command())?,
        })
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

    /// Enters an accepted command in the desired state and in the data that each feature keeps in addition. Steering
    /// also reads the state before the command.
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
