//! What IPVS has and xvs cannot carry out yet.
//!
//! Asked by the control thread for each command after [`State::check`](crate::state::State::check) has accepted it,
//! and before it is applied: what the data plane would treat wrongly must be refused, never taken and ignored.
//! Pure. Each capability that is added deletes its lines here.

use xvs_proto::{Endpoint, Family};
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
        | Command::StopDaemon(_)
        | Command::AddMark(_)
        | Command::DeleteMark(_) => Ok(()),
    }
}

fn key_supported(key: &ServiceKey) -> Result<(), CommandError> {
    match key.family() {
        Family::V6 => Err(refusal(key, "IPv6 services are", "use an IPv4 address")),
        Family::V4 => Ok(()),
    }
}

fn service_supported(key: &ServiceKey, options: &ServiceOptions) -> Result<(), CommandError> {
    if !scheduler::names().any(|name| name == options.scheduler) {
        return Err(CommandError::SchedulerNotFound {
            name: options.scheduler.clone(),
            known: scheduler::names().map(str::to_owned).collect(),
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Netmask, SchedulerFlags, TunnelChecksum};
    use xvs_proto::Protocol;
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
        // Also without persistence, where they mean nothing.
        let mask = ServiceOptions { netmask: Netmask::V4([255, 255, 255, 0].into()), ..plain };
        assert_eq!(supported(&with(mask.clone())), Ok(()));
        let persistent = ServiceOptions { persistence_timeout_seconds: Some(360), ..mask };
        let by_call = ServiceOptions { persistence_engine: Some("sip".to_owned()), ..persistent.clone() };
        assert_eq!((supported(&with(persistent)), supported(&with(by_call))), (Ok(()), Ok(())));
        for method in [ForwardingMethod::DirectRouting, ForwardingMethod::Nat, ForwardingMethod::Tunnel] {
            let options = DestinationOptions { method, weight: Weight(0), ..DestinationOptions::default() };
            assert_eq!(supported(&dest(options)), Ok(()));
        }
        let endpoint = Endpoint::new([192, 0, 2, 1], 3868);
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            assert_eq!(supported(&of(ServiceKey::Address { protocol, endpoint })), Ok(()));
        }
        assert_eq!(supported(&of(ServiceKey::Mark { mark: 7, family: Family::V4 })), Ok(()));
        for command in [Command::Flush, Command::Zero(None), Command::DeleteService(key())] {
            assert_eq!(supported(&command), Ok(()));
        }
    }

    #[test]
    fn a_refusal_names_the_object_what_is_missing_and_the_next_step() {
        let v6 = Endpoint::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 80);
        let plain = || ServiceOptions::of(Family::V4);
        let server = DestinationOptions::default;
        for (command, object, what) in [
            (of(ServiceKey::tcp(v6)), "TCP [2001:db8::1]:80", "IPv6 services are"),
            (of(ServiceKey::Mark { mark: 7, family: Family::V6 }), "FWM 7 IPv6", "IPv6 services are"),
            (
                with(ServiceOptions { flags: SchedulerFlags(1), ..plain() }),
                "TCP 192.0.2.100:80",
                "scheduler flags (-b) are",
            ),
            (
                dest(DestinationOptions { upper_threshold: 1, ..server() }),
                "192.0.2.1:80",
                "thresholds (-x, -y) are",
            ),
            (
                dest(DestinationOptions {
                    tunnel: Tunnel::Gre { checksum: TunnelChecksum::Without },
                    ..server()
                }),
                "192.0.2.1:80",
                "tunnel types gue and gre are",
            ),
            (
                Command::AddDestination { service: key(), endpoint: v6, options: server() },
                "[2001:db8::1]:80",
                "IPv6 destinations are",
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

    #[test]
    fn a_scheduler_that_is_missing_is_refused_with_those_there_are() {
        let options = ServiceOptions { scheduler: "none".to_owned(), ..ServiceOptions::of(Family::V4) };
        let Err(CommandError::SchedulerNotFound { name, known }) = supported(&with(options)) else {
            panic!()
        };
        assert_eq!(name, "none");
        assert!(known.iter().any(|known| known == "wlc"), "{known:?}");
    }
}
