//! What IPVS has and xvs cannot carry out yet.
//!
//! Asked by the control thread for each command after [`State::check`](crate::state::State::check) has accepted it,
//! and before it is applied: what the data plane would treat wrongly must be refused, never taken and ignored.
//! Pure. Each capability that is added deletes its lines here.

use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ServiceKey, scheduler};

use crate::message::{Command, CommandError};
use crate::state::{DestinationOptions, SchedulerFlags, ServiceOptions, Tunnel};

/// Whether the data plane can do what a command asks for.
///
/// # Errors
/// [`CommandError::NotSupported`] with the object, what about it is not supported, and what to do instead;
/// [`CommandError::SchedulerNotFound`] with the schedulers there are.
pub fn supported(command: &Command) -> Result<(), CommandError> {
    match command {
        Command::AddService { key, options } | Command::EditService { key, options } => {
            key_supported(key)?;
            service_supported(key, options)
        }
        Command::AddDestination { service, endpoint, options }
        | Command::EditDestination { service, endpoint, options } => {
            key_supported(service)?;
            destination_supported(*endpoint, options)
        }
        Command::StartDaemon(daemon) => Err(refusal(
            format!("{} daemon", daemon.role.name()),
            "connection synchronization is",
            "run without it; after a failover clients connect anew",
        )),
        Command::DeleteService(_)
        | Command::DeleteDestination { .. }
        | Command::Flush
        | Command::Zero(_)
        | Command::SetTimeouts(_)
        | Command::StopDaemon(_) => Ok(()),
    }
}

fn key_supported(key: &ServiceKey) -> Result<(), CommandError> {
    match key {
        ServiceKey::Mark { .. } => {
            Err(refusal(key, "firewall marks are", "add a service for each address and port"))
        }
        ServiceKey::Address { .. } if key.family() == Family::V6 => {
            Err(refusal(key, "IPv6 services are", "use an IPv4 address"))
        }
        ServiceKey::Address { protocol: Protocol::SCTP, .. } => {
            Err(refusal(key, "SCTP is", "use a TCP or UDP service"))
        }
        ServiceKey::Address { .. } => Ok(()),
    }
}

fn service_supported(key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
    if !scheduler::names().any(|name| name == options.scheduler) {
        return Err(CommandError::SchedulerNotFound {
            name: options.scheduler.clone(),
            known: scheduler::names().map(str::to_owned).collect(),
        });
    }
    if options.persistence_timeout_seconds.is_some() {
        return Err(refusal(key, "persistence (-p) is", "add the service without it"));
    }
    if options.persistence_engine.is_some() {
        return Err(refusal(key, "persistence engines (--pe) are", "add the service without one"));
    }
    if options.one_packet {
        return Err(refusal(key, "one-packet scheduling (-o) is", "add the service without it"));
    }
    if options.flags != SchedulerFlags::default() {
        return Err(refusal(key, "scheduler flags (-b) are", "add the service without them"));
    }
    Ok(())
}

fn destination_supported(endpoint: Endpoint, options: &DestinationOptions) -> Result<(), CommandError> {
    if endpoint.family() == Family::V6 {
        return Err(refusal(endpoint, "IPv6 destinations are", "use an IPv4 address"));
    }
    if options.upper_threshold != 0 || options.lower_threshold != 0 {
        let next = "add the destination without them";
        return Err(refusal(endpoint, "thresholds (-x, -y) are", next));
    }
    if options.tunnel != Tunnel::Ipip {
        return Err(refusal(endpoint, "tunnel types gue and gre are", "use --tun-type ipip"));
    }
    Ok(())
}

fn refusal(object: impl ToString, what: &str, next: &str) -> CommandError {
    CommandError::NotSupported { object: object.to_string(), what: what.to_owned(), next: next.to_owned() }
}
