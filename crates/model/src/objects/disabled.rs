//! Disabled real servers, which an operator keeps from new connections until they are enabled again.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::config::load_report::Server;
use crate::config::refusal::CommandError;
use crate::config::service_option::named;
use crate::objects::noun::{Noun, Services};

/// The real servers that one `xvs disable` concerns: those of an address, or at one port of it, in all services or in
/// one. They are disabled whether or not a service has them now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Disabled {
    /// The real servers.
    pub server: Server,
    /// Their service; `None`: all services, also those added later.
    pub service: Option<ServiceKey>,
}

impl Disabled {
    /// Whether it concerns a real server of this service.
    pub fn includes(self, service: ServiceKey, endpoint: Endpoint) -> bool {
        self.server.includes(endpoint) && self.service.is_none_or(|only| only == service)
    }

    /// The arguments of `xvs disable` and `xvs enable`.
    pub fn arguments(self) -> String {
        format!("{}{}", self.server, named(self.service))
    }

    /// Whether it concerns every real server that `other` concerns.
    fn covers(self, other: Self) -> bool {
        self.server.covers(other.server) && (self.service.is_none() || self.service == other.service)
    }
}

impl fmt::Display for Disabled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.service {
            None => self.server.fmt(f),
            Some(service) => write!(f, "{} of {service}", self.server),
        }
    }
}

/// All disabled real servers. None of the elements covers another one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct DisabledServers(BTreeSet<Disabled>);

impl DisabledServers {
    /// Whether a real server of this service is disabled.
    pub fn includes(&self, service: ServiceKey, endpoint: Endpoint) -> bool {
        self.0.iter().any(|disabled| disabled.includes(service, endpoint))
    }

    /// The elements, in the order of their addresses.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Disabled> {
        self.0.iter().copied()
    }

    /// Whether no real server is disabled.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether [`Self::insert`] would make more elements of them.
    fn grows(&self, new: Disabled) -> bool {
        self.broader(new).is_none() && !self.can_remove(new)
    }

    /// Adds an element, which replaces those that it covers.
    fn insert(&mut self, new: Disabled) {
        if self.broader(new).is_none() {
            self.0.retain(|known| !new.covers(*known));
            self.0.insert(new);
        }
    }

    /// Removes this element and all that it covers.
    fn remove(&mut self, enabled: Disabled) {
        self.0.retain(|known| !enabled.covers(*known));
    }

    /// Whether [`Self::remove`] would remove anything.
    fn can_remove(&self, enabled: Disabled) -> bool {
        self.0.iter().any(|known| enabled.covers(*known))
    }

    /// The element that disables all that `narrower` concerns.
    fn broader(&self, narrower: Disabled) -> Option<Disabled> {
        self.iter().find(|known| known.covers(narrower))
    }
}

impl Noun for Disabled {
    type Key = Self;
    type All = DisabledServers;
    const IS_REPLACED: bool = false;

    fn key(&self) -> Self {
        *self
    }

    fn check_add(&self, all: &DisabledServers, _: &dyn Services) -> Result<(), CommandError> {
        if all.iter().len() >= DISABLED_MAX && all.grows(*self) {
            let why = format!(
                "{DISABLED_MAX} entries of disabled real servers exist already, the largest number; enable one first"
            );
            return Err(CommandError::invalid(why));
        }
        Ok(())
    }

    fn check_delete(enabled: &Self, all: &DisabledServers) -> Result<(), CommandError> {
        let server = enabled.server;
        match all.broader(*enabled) {
            _ if all.can_remove(*enabled) => Ok(()),
            Some(broader) => Err(CommandError::DisabledAsPart { server, broader: broader.to_string() }),
            None => Err(CommandError::NotDisabled(server)),
        }
    }

    fn add(&self, all: &mut DisabledServers) {
        all.insert(*self);
    }

    fn delete(enabled: &Self, all: &mut DisabledServers) {
        all.remove(*enabled);
    }

    fn each(all: &DisabledServers) -> impl Iterator<Item = Self> {
        all.iter()
    }

    fn added(&self) -> String {
        format!("disable {}", self.arguments())
    }

    fn deleted(enabled: &Self) -> String {
        format!("enable {}", enabled.arguments())
    }
}

/// The largest number of elements.
const DISABLED_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use crate::objects::disabled::*;

    fn disabled(server: &str, service: Option<&str>) -> Disabled {
        Disabled { server: server.parse().unwrap(), service: service.map(|service| service.parse().unwrap()) }
    }

    #[test]
    fn a_whole_address_replaces_its_ports_and_services_and_enabling_it_enables_them() {
        let (web, dns) = ("TCP 198.51.100.1:80", "UDP 198.51.100.1:53");
        let mut all = DisabledServers::default();
        for part in [("192.0.2.1:80", None), ("192.0.2.1", Some(web)), ("192.0.2.2:80", Some(dns))] {
            all.insert(disabled(part.0, part.1));
        }
        let at = |last, port| Endpoint::new([192, 0, 2, last], port);
        let [web, dns]: [ServiceKey; 2] = [web, dns].map(|service| service.parse().unwrap());
        assert!(
            all.includes(web, at(1, 81)) && all.includes(dns, at(1, 80)) && !all.includes(dns, at(1, 81))
        );
        assert!(all.includes(dns, at(2, 80)) && !all.includes(web, at(2, 80)));
        all.insert(disabled("192.0.2.1", None));
        all.insert(disabled("192.0.2.1:53", None));
        assert_eq!(all.iter().len(), 2, "{all:?}");
        assert!(!all.can_remove(disabled("192.0.2.1:80", None)));
        let growing = ["192.0.2.2", "192.0.2.1", "192.0.2.1:80", "192.0.2.3"];
        assert_eq!(growing.map(|server| all.grows(disabled(server, None))), [false, false, false, true]);
        assert_eq!(all.broader(disabled("192.0.2.1:80", None)), Some(disabled("192.0.2.1", None)));
        all.remove(disabled("192.0.2.1", None));
        assert_eq!(all.iter().collect::<Vec<_>>(), [disabled("192.0.2.2:80", Some("UDP 198.51.100.1:53"))]);
    }
}
