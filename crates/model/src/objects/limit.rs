//! Client limits: the limits that can be set, and the report of `xvs limit list` and `xvs top --clients`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use xvs_proto::{Prefix, Protocol};
use xvs_sched::{Above, ClientLimit, ForwardingMethod, ServiceKey};

use crate::config::refusal::CommandError;
use crate::config::service::check_key;
use crate::config::service_option::{as_listed, named_service};
use crate::config::syn_proxy::{Proxied, check_proxied};
use crate::objects::noun::{Noun, Services, Turn};

/// The limits for each client of a service and for all its clients together, whether or not the service exists now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceLimit {
    /// The service.
    pub service: ServiceKey,
    /// The limit.
    pub limit: ClientLimit,
}

impl Noun for ServiceLimit {
    type Key = ServiceKey;
    type All = BTreeMap<ServiceKey, ClientLimit>;
    const IS_REPLACED: bool = false;

    fn key(&self) -> ServiceKey {
        self.service
    }

    fn check_add(&self, all: &Self::All, services: &dyn Services) -> Result<(), CommandError> {
        check_key(&self.service)?;
        if all.len() >= LIMITS_MAX && !all.contains_key(&self.service) {
            let why =
                format!("{LIMITS_MAX} services have limits already, the largest number; delete one first");
            return Err(CommandError::invalid(why));
        }
        check(&self.service, self.limit, services.methods(&self.service))
    }

    fn check_delete(service: &ServiceKey, all: &Self::All) -> Result<(), CommandError> {
        if all.contains_key(service) { Ok(()) } else { Err(CommandError::NoSuchLimit(*service)) }
    }

    fn add(&self, all: &mut Self::All) {
        all.insert(self.service, self.limit);
    }

    fn delete(service: &ServiceKey, all: &mut Self::All) {
        all.remove(service);
    }

    fn each(all: &Self::All) -> impl Iterator<Item = Self> {
        all.iter().map(|(service, limit)| Self { service: *service, limit: *limit })
    }

    fn added(&self) -> String {
        let ClientLimit { connections, rate, burst, above, syn_rate, syn_burst } = self.limit;
        let mut text = format!("limit set {}", named_service(&self.service));
        text += &(number("connections", connections) + &number("rate", rate) + &number("burst", burst));
        if above != Above::Drop {
            text += &format!(" --above {}", above.name());
        }
        text + &number("syn-rate", syn_rate) + &number("syn-burst", syn_burst)
    }

    fn deleted(service: &ServiceKey) -> String {
        format!("limit delete {}", named_service(service))
    }

    fn service(service: &ServiceKey) -> Option<ServiceKey> {
        Some(*service)
    }

    fn turn(&self) -> Turn {
        if self.limit.above == Above::SynProxy { Turn::Last } else { Turn::Any }
    }
}

/// An option of `xvs limit set`, unless its value is the default.
fn number(name: &str, value: u32) -> String {
    if value == 0 { String::new() } else { format!(" --{name} {value}") }
}

/// The largest number of services with limits.
const LIMITS_MAX: usize = 1024;

/// The limits of all services, and the clients that they concern most.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LimitReport {
    /// The limits, in the order of their services.
    pub limits: Vec<LimitRow>,
    /// The clients that the limits concern most: those with the most refused connections first, then those with the
    /// most connections.
    pub clients: Vec<ClientRow>,
    /// Connections that were made without a limit, because the table of clients was full.
    pub unlimited: u64,
}

impl LimitReport {
    /// These limits, without clients.
    pub fn of(limits: &BTreeMap<ServiceKey, ClientLimit>) -> Self {
        let limits = limits.iter().map(|(service, limit)| LimitRow {
            service: *service,
            limit: *limit,
            syns_dropped: 0,
        });
        Self { limits: limits.collect(), ..Self::default() }
    }
}

/// The limit of a service's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct LimitRow {
    /// The service that has the limit.
    #[serde(with = "as_listed")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::ServiceText"))]
    pub service: ServiceKey,
    /// The limits for each client and for all clients together.
    #[serde(flatten)]
    pub limit: ClientLimit,
    /// SYNs that were dropped because of `syn_rate` since it was set, or since xvsd started.
    pub syns_dropped: u64,
}

/// The limit of a service's SYNs, with its effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SynLimitSummary {
    /// The service that has the limit.
    #[serde(with = "as_listed")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::ServiceText"))]
    pub service: ServiceKey,
    /// SYNs a second that the service gets of all clients together.
    pub rate: u32,
    /// SYNs that were dropped because of the limit since it was set, or since xvsd started.
    pub dropped: u64,
}

impl fmt::Display for SynLimitSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, rate, dropped } = self;
        write!(f, "{service}: {rate} SYNs a second, {dropped} dropped")
    }
}

/// A client of a service with a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ClientRow {
    /// The client: a network of the length that `[limits]` in xvs.toml gives.
    pub client: Prefix,
    /// The service that the client uses.
    #[serde(with = "as_listed")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::ServiceText"))]
    pub service: ServiceKey,
    /// Connections that the client has; 0 if the service does not limit them.
    pub connections: u32,
    /// Connections that were refused since the client appeared, or whose SYN was answered with a cookie because of
    /// `rate`.
    pub refused: u64,
}

/// Refuses a limit that says nothing or contradicts itself, or that a service with these methods cannot have.
///
/// # Errors
/// The reason.
fn check(
    service: &ServiceKey,
    limit: ClientLimit,
    methods: impl IntoIterator<Item = ForwardingMethod>,
) -> Result<(), CommandError> {
    let ClientLimit { connections, rate, burst, above, syn_rate, syn_burst } = limit;
    let why = match () {
        () if connections == 0 && rate == 0 && syn_rate == 0 => {
            "a limit needs a number of connections or a rate; `xvs limit delete` ends one".to_owned()
        }
        () if rate == 0 && (burst > 0 || above == Above::SynProxy) => {
            "--burst and --above need a --rate".to_owned()
        }
        () if syn_rate == 0 && syn_burst > 0 => "--syn-burst needs a --syn-rate".to_owned(),
        () if [connections, rate, burst, syn_rate, syn_burst].iter().any(|number| *number > LIMIT_MAX) => {
            format!("a number of a limit is at most {LIMIT_MAX}")
        }
        () if syn_rate > 0 && !matches!(service, ServiceKey::Address { protocol: Protocol::TCP, .. }) => {
            return Err(CommandError::NotSupported {
                object: format!("service {service}"),
                what: "--syn-rate for another service than one of a TCP address is".to_owned(),
                next: "leave it out; --rate and --connections limit each client".to_owned(),
            });
        }
        () if above == Above::SynProxy => return check_proxied(service, Proxied::AboveRate, methods),
        () => return Ok(()),
    };
    Err(CommandError::invalid(why))
}

/// The largest number of a limit.
const LIMIT_MAX: u32 = 1_000_000;
