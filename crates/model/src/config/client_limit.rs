//! Limits of clients: which can be set, and the report of `xvs limit list` and `xvs top --clients`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_proto::Prefix;
use xvs_sched::{Above, ClientLimit, ForwardingMethod, ServiceKey};

use crate::config::command::CommandError;
use crate::config::syn_proxy::{Proxied, check_proxied};

/// The limits of all services, and the clients that they concern most.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LimitReport {
    /// The limits, in the order of their services.
    pub limits: Vec<LimitRow>,
    /// The clients with the most refused connections, then with the most connections, the largest first.
    pub clients: Vec<ClientRow>,
    /// Connections that were made without a limit, because the table of clients had no place.
    pub unlimited: u64,
}

impl LimitReport {
    /// These limits, without clients.
    pub fn of(limits: &BTreeMap<ServiceKey, ClientLimit>) -> Self {
        let limits = limits.iter().map(|(service, limit)| LimitRow { service: *service, limit: *limit });
        Self { limits: limits.collect(), ..Self::default() }
    }
}

/// The limit of a service's clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitRow {
    /// The service.
    #[serde(with = "as_listed")]
    pub service: ServiceKey,
    /// What each of its clients may do.
    #[serde(flatten)]
    pub limit: ClientLimit,
}

/// A client of a service with a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRow {
    /// The client: a network of the length that `[limits]` in xvs.toml gives.
    pub client: Prefix,
    /// The service.
    #[serde(with = "as_listed")]
    pub service: ServiceKey,
    /// Its connections; 0 if the service does not limit them.
    pub connections: u32,
    /// Its connections that were refused since it is known.
    pub refused: u64,
}

/// Refuses a limit that says nothing or contradicts itself, or that a service with these methods cannot have.
///
/// # Errors
/// The reason.
pub(super) fn check(
    service: &ServiceKey,
    limit: ClientLimit,
    methods: impl IntoIterator<Item = ForwardingMethod>,
) -> Result<(), CommandError> {
    let ClientLimit { connections, rate, burst, above } = limit;
    let why = match () {
        () if connections == 0 && rate == 0 => {
            "a limit needs a number of connections or a rate; `xvs limit delete` ends one".to_owned()
        }
        () if rate == 0 && (burst > 0 || above == Above::SynProxy) => {
            "--burst and --above need a --rate".to_owned()
        }
        () if connections.max(rate).max(burst) > LIMIT_MAX => {
            format!("a number of a limit is at most {LIMIT_MAX}")
        }
        () if above == Above::SynProxy => return check_proxied(service, Proxied::AboveRate, methods),
        () => return Ok(()),
    };
    Err(CommandError::InvalidOperation { why })
}

/// The largest number of a limit.
const LIMIT_MAX: u32 = 1_000_000;

/// A service as listings print it.
mod as_listed {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use xvs_sched::ServiceKey;

    pub(super) fn serialize<S: Serializer>(key: &ServiceKey, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(key)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<ServiceKey, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}
