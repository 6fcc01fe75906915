//! What IPVS has and xvs cannot carry out yet.
//!
//! Asked by the control thread for each command after [`State::check`](crate::state::State::check) has accepted it,
//! and before it is applied: what the data plane would treat wrongly must be refused, never taken and ignored.
//! Pure. Each capability that is added deletes its lines here.

use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::message::{Command, CommandError};
use crate::state::{DestinationOptions, ServiceOptions};

/// Whether the data plane can do what a command asks for.
///
/// # Errors
/// [`CommandError::NotSupported`] with the object, what about it is not supported, and what to do instead.
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
        ServiceKey::Address { .. } => Ok(()),
    }
}

fn service_supported(key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
    if options.persistence_timeout_seconds.is_some() {
        return Err(refusal(key, "persistence (-p) is", "add the service without it"));
    }
    if options.persistence_engine.is_some() {
        return Err(refusal(key, "persistence engines (--pe) are", "add the service without one"));
    }
    Ok(())
}

fn destination_supported(endpoint: Endpoint, options: &DestinationOptions) -> Result<(), CommandError> {
    if options.upper_threshold != 0 || options.lower_threshold != 0 {
        let next = "add the destination without them";
        return Err(refusal(endpoint, "thresholds (-x, -y) are", next));
    }
    Ok(())
}

fn refusal(object: impl ToString, what: &str, next: &str) -> CommandError {
    CommandError::NotSupported { object: object.to_string(), what: what.to_owned(), next: next.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Netmask, SchedulerFlags};
    use xvs_proto::{Family, Protocol};
    use xvs_sched::{ForwardingMethod, Weight};

    fn key() -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([192, 0, 2, 100], 80))
    }

    fn with(options: ServiceOptions) -> Command {
        Command::AddService { key: key(), options }
    }

    fn of(key: ServiceKey) -> Command {
        Command::AddService { key, options: ServiceOptions::of(key.family()) }
    }

    fn dest(options: DestinationOptions) -> Command {
        Command::EditDestination { service: key(), endpoint: Endpoint::new([192, 0, 2, 1], 80), options }
    }

    #[test]
    fn what_every_director_does_is_supported() {
        let plain = ServiceOptions::of(Family::V4);
        assert_eq!(supported(&with(plain.clone())), Ok(()));
        // Without persistence a netmask means nothing and does no harm.
        let mask = ServiceOptions { netmask: Netmask::V4([255, 255, 255, 0].into()), ..plain };
        assert_eq!(supported(&with(mask)), Ok(()));
        let flags = ServiceOptions { flags: SchedulerFlags(3), ..ServiceOptions::of(Family::V4) };
        assert_eq!(supported(&with(flags)), Ok(()));
        for method in [ForwardingMethod::DirectRouting, ForwardingMethod::Nat, ForwardingMethod::Tunnel] {
            let options = DestinationOptions { method, weight: Weight(0), ..DestinationOptions::default() };
            assert_eq!(supported(&dest(options)), Ok(()));
        }
        let endpoint = Endpoint::new([192, 0, 2, 1], 3868);
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            assert_eq!(supported(&of(ServiceKey::Address { protocol, endpoint })), Ok(()));
        }
        for command in [Command::Flush, Command::Zero(None), Command::DeleteService(key())] {
            assert_eq!(supported(&command), Ok(()));
        }
    }

    #[test]
    fn a_refusal_names_the_object_what_is_missing_and_the_next_step() {
        let plain = || ServiceOptions::of(Family::V4);
        let server = DestinationOptions::default;
        for (command, object, what) in [
            (of(ServiceKey::Mark { mark: 7, family: Family::V4 }), "FWM 7", "firewall marks are"),
            (
                with(ServiceOptions { persistence_timeout_seconds: Some(360), ..plain() }),
                "TCP 192.0.2.100:80",
                "persistence (-p) is",
            ),
            (
                with(ServiceOptions { persistence_engine: Some("sip".to_owned()), ..plain() }),
                "TCP 192.0.2.100:80",
                "persistence engines (--pe) are",
            ),
            (
                dest(DestinationOptions { upper_threshold: 1, ..server() }),
                "192.0.2.1:80",
                "thresholds (-x, -y) are",
            ),
        ] {
            let refused = supported(&command).unwrap_err();
            let CommandError::NotSupported { object: named, what: missing, next } = &refused else {
                panic!("{refused:?}")
            };
            assert_eq!((named.as_str(), missing.as_str()), (object, what));
            assert!(refused.to_string().starts_with(&format!("xvs: {object}: {what} not supported yet; ")));
            assert!(!next.is_empty());
        }
    }
}
