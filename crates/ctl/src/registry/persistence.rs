//! The persistence of a service, as workers use it.

use xvs_dataplane::snapshot::{ClientMask, Persistence, PersistenceScope};
use xvs_model::config::service::{Netmask, ServiceOptions};

/// The persistence that these options request; `None` if the service is not persistent.
pub(super) fn of(options: &ServiceOptions) -> Option<Persistence> {
    let mask = match options.netmask {
        Netmask::V4(mask) => ClientMask::V4(mask),
        Netmask::V6(bits) => ClientMask::V6(bits),
    };
    let scope =
        if options.persistence_engine.is_some() { PersistenceScope::Call } else { PersistenceScope::Client };
    let timeout_seconds = options.persistence_timeout_seconds?;
    Some(Persistence { timeout_seconds, mask, scope })
}
