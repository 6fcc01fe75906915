//! The services that can use the SYN proxy.

use xvs_proto::Protocol;
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::config::refusal::CommandError;

/// The option that enables the SYN proxy for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxied {
    /// `--syn-proxy` of the service.
    Service,
    /// `--above syn-proxy` of its clients' limit.
    AboveRate,
}

/// Refuses the SYN proxy for protocols without SYN, and with real servers whose replies do not pass the director.
pub(crate) fn check_proxied(
    key: &ServiceKey,
    proxied: Proxied,
    methods: impl IntoIterator<Item = ForwardingMethod>,
) -> Result<(), CommandError> {
    let is_tcp = match key {
        ServiceKey::Address { protocol, .. } => *protocol == Protocol::TCP,
        ServiceKey::Mark { .. } => true,
    };
    if is_tcp && methods.into_iter().all(ForwardingMethod::masquerades) {
        return Ok(());
    }
    let (option, other) = match proxied {
        Proxied::Service => ("--syn-proxy", "the service --syn-proxy off"),
        Proxied::AboveRate => ("--above syn-proxy", "the limit --above drop"),
    };
    let (what, next) = match is_tcp {
        false => (format!("{option} for another protocol than TCP is"), "leave it out".to_owned()),
        true => (
            format!("{option} with real servers whose replies do not pass the director is"),
            format!("give them -m or --fullnat, or {other}"),
        ),
    };
    Err(CommandError::NotSupported { object: format!("service {key}"), what, next })
}
