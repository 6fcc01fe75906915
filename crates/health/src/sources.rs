//! The sources of checks (`bindto`, `bind_if`) that this machine does not have.
//!
//! For `xvs check`. A running xvsd reports such a check while it cannot run: an address may appear later, with the
//! virtual addresses. Cost: a socket for each check with a source.

use std::net::SocketAddr;

use xvs_model::health_checks::check::{Probe, Target};
use xvs_model::health_checks::fault::{Fault, Severity};
use xvs_model::health_checks::virtual_server::Configuration;
use xvs_proto::Endpoint;

use crate::probes::socket::local_fault;

/// Adds a warning for each check that could not run on this machine now, because of its source.
pub fn examine_sources(configuration: &mut Configuration) {
    let servers = configuration.virtual_servers.iter().flat_map(|server| &server.real_servers);
    let mut found = Vec::new();
    for check in servers.flat_map(|server| &server.checks) {
        if let Some(why) = bound_target(&check.probe).and_then(local_fault) {
            let text = format!("the check {} cannot run here now: {why}", check.probe);
            found.push(Fault { place: check.place.clone(), severity: Severity::Warning, text });
        }
    }
    configuration.faults.extend(found);
    configuration.faults.sort_by(|a, b| a.place.cmp(&b.place));
}

/// The target of a probe with a configured source address or interface.
fn bound_target(probe: &Probe) -> Option<Target> {
    let target = match probe {
        Probe::Tcp(target)
        | Probe::Http(target, _)
        | Probe::Dns(target, _)
        | Probe::Smtp(target, _)
        | Probe::Udp(target, _)
        | Probe::Ping(target)
        | Probe::Agent(target, _) => target.clone(),
        Probe::ThroughVip(through) => {
            let Endpoint { addr, port } = *through.endpoints.first()?;
            let endpoint = SocketAddr::new(addr, port);
            Target { endpoint, source: through.source, source_port: None, interface: None, mark: 0 }
        }
        Probe::Script(..) | Probe::File(_) => return None,
    };
    (target.source.is_some() || target.interface.is_some()).then_some(target)
}

#[cfg(test)]
mod tests {
    use crate::sources::*;
    use crate::tests::configuration;

    #[test]
    fn a_source_that_this_machine_does_not_have_is_a_warning_at_its_check() {
        let text = "virtual_server 10.0.0.1 80 {
            protocol TCP
            lvs_sched rr
            lvs_method DR
            real_server 10.1.0.1 80 {
                TCP_CHECK {
                    bindto 192.0.2.7
                }
                PING_CHECK {
                    bindto 127.0.0.1
                    bind_if lo
                }
                UDP_CHECK {
                    bind_if nosuch0
                }
                TCP_CHECK {
                    through_vip
                    bindto 192.0.2.8
                }
                TCP_CHECK {
                }
            }
        }";
        let mut configuration = configuration(text);
        assert!(configuration.faults.is_empty(), "{:?}", configuration.faults);
        examine_sources(&mut configuration);
        let found: Vec<_> = configuration
            .faults
            .iter()
            .map(|fault| format!("{} {:?} {}", fault.place.line, fault.severity, fault.text))
            .collect();
        assert_eq!(
            found,
            [
                "6 Warning the check TCP 10.1.0.1:80 cannot run here now: `bindto 192.0.2.7` is not an address of this \
                 machine; see `ip address`, or leave it out",
                "13 Warning the check UDP 10.1.0.1:80 cannot run here now: no socket on interface nosuch0: No such \
                 device (os error 19)",
                "16 Warning the check TCP through 10.0.0.1:80 cannot run here now: `bindto 192.0.2.8` is not an address \
                 of this machine; see `ip address`, or leave it out",
            ]
        );
    }
}
