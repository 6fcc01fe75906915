//! Whether a command may be carried out as things are: by the desired state, the network, and what xvs can do.
//!
//! Asked before each command; pure. Not here: what is wrong with a command whatever the machine (`state.rs`).

use std::net::IpAddr;

use xvs_sched::{ForwardingMethod, ServiceKey};

use super::{Control, Plant};
use crate::message::{Command, CommandError};
use crate::state::State;
use crate::support::supported;

impl<P: Plant> Control<P> {
    /// Whether a command may be carried out as things are, once the desired state is `state`.
    pub(super) fn admit(&self, state: &State, command: &Command) -> Result<(), CommandError> {
        state.check(command)?;
        if let Command::StartDaemon(daemon) = command
            && !self.devices.contains(&daemon.interface)
        {
            return Err(CommandError::NoSuchDevice(daemon.interface.clone()));
        }
        self.refuse_broadcast(command)?;
        supported(command)?;
        self.refuse_local_nat(state, command)
    }

    /// Refuses the broadcast address of a network that the director is in, as IPVS does; what stands for every machine is
    /// none.
    fn refuse_broadcast(&self, command: &Command) -> Result<(), CommandError> {
        let Command::AddDestination { endpoint, .. } = command else { return Ok(()) };
        let mut own = self.links.iter().flat_map(|link| &link.addresses);
        let is_its_broadcast = |(addr, len): &(IpAddr, u8)| match (*addr, endpoint.addr) {
            // Networks of one or two addresses have none (RFC 3021).
            (IpAddr::V4(own), IpAddr::V4(dest)) if *len < 31 => {
                u32::from(own) | (u32::MAX >> len) == u32::from(dest)
            }
            _ => false,
        };
        let why = format!("destination {endpoint} is the broadcast address of a network of the director's");
        if own.any(is_its_broadcast) { Err(CommandError::InvalidOperation { why }) } else { Ok(()) }
    }

    /// To a destination that is this machine itself a packet goes as it came: what its stack answers leaves by the
    /// kernel, where nobody would translate it back.
    fn refuse_local_nat(&self, state: &State, command: &Command) -> Result<(), CommandError> {
        let (Command::AddDestination { service, endpoint, options }
        | Command::EditDestination { service, endpoint, options }) = command
        else {
            return Ok(());
        };
        let unchanged = matches!(service, ServiceKey::Address { endpoint: virt, .. } if virt == endpoint);
        let rewrites = options.method == ForwardingMethod::Nat && !unchanged;
        // What is for a loopback address is dropped, as under IPVS.
        let is_loopback = endpoint.addr.is_loopback();
        // What has become so may be edited: to quiesce it, for one.
        let known = state.service(service).and_then(|service| service.destination(*endpoint));
        let was_so = known.is_some_and(|known| known.options.method == options.method);
        if !rewrites || is_loopback || was_so || !self.snapshot.egress.is_local(endpoint.addr) {
            return Ok(());
        }
        Err(CommandError::NotSupported {
            object: format!("real server {endpoint}"),
            what: "NAT (-m) to another endpoint of the director itself is".to_owned(),
            next: "use -g, and have the server listen at the virtual address".to_owned(),
        })
    }
}
