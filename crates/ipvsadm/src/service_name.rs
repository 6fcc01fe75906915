//! Services as options of a command line.

use xvs_model::config::service_option::option_of;
use xvs_proto::Family;
use xvs_sched::ServiceKey;

use crate::listing::Naming;

/// The option that identifies a service.
pub(crate) fn service_option(key: &ServiceKey, names: &Naming<'_>) -> String {
    match *key {
        ServiceKey::Address { protocol, endpoint } => {
            format!("{} {}", option_of(protocol), names.endpoint(endpoint, Some(protocol)))
        }
        // ipvsadm saves marks as signed numbers.
        ServiceKey::Mark { mark, family: Family::V4 } => format!("-f {}", mark as i32),
        ServiceKey::Mark { mark, family: Family::V6 } => format!("-f {} -6", mark as i32),
    }
}
