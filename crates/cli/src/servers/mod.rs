//! Real servers: their health, their way out of service and back, and the preparation of a machine as a real server.

pub(crate) mod drain;
pub(crate) mod health;
pub(crate) mod maintenance;
pub(crate) mod realserver;

use xvs_model::report::listing::ServiceRow;

/// The clients that a service refuses while one of its real servers gets no new connections, with the command that
/// corrects it; `None` if other real servers serve them.
fn refused_by_hash(service: &ServiceRow) -> Option<String> {
    let rule = xvs_ipvsadm::service_line(&service.key, &service.options);
    let command = xvs_ipvsadm::fallback_command(&rule).filter(|_| service.destinations.len() > 1)?;
    Some(format!(
        "new clients that {} leads to it are refused meanwhile; `{command}` gives them another",
        service.options.scheduler
    ))
}
