//! Services as options of a command line.

use xvs_proto::{Family, Protocol};
use xvs_sched::ServiceKey;

use crate::listing::Naming;

/// The option that identifies a service.
pub(crate) fn service_option(key: &ServiceKey, names: &Naming<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, endpoint } => {
            let option = match protocol {
                Protocol::UDP => "-u",
                Protocol::SCTP => "--sctp-service",
                _ => "-t",
            };
            format!("{option} {}", names.endpoint(endpoint, Some(protocol)))
        }
        // ipvsadm saves marks as signed numbers.
        ServiceKey::Mark { mark, family: Family::V4 } => format!("-f {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::V6 } => format!("-f {} -6", mark as i32),
    }
}

/// The options that name a service.
pub fn named_service(key: &ServiceKey) -> String {
    match *key {
        // Unsigned: `-S` prints marks as signed numbers, and ipvsadm refuses negative ones.
        ServiceKey::Mark { mark, family } => {
            format!("-f {mark}{}", if family == Family::V6 { " -6" } else { "" })
        }
        ServiceKey::Address { .. } => service_option(key, &Naming::NUMERIC),
    }
}

/// The option that names a service, behind a blank; nothing without a service.
pub(crate) fn named(service: Option<ServiceKey>) -> String {
    service.map(|key| format!(" {}", named_service(&key))).unwrap_or_default()
}
