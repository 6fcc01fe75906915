//! The warnings about a keepalived.conf, its virtual servers and its checks.

use xvs_model::report::health::{CheckHealth, HealthReport, SorryServerHealth, VirtualServerHealth};
use xvs_model::report::warning::Warning;
use xvs_model::report::warning::WarningKind::{self, *};

use crate::status::warnings::first_of;

/// The warning about a keepalived.conf that was refused.
pub(super) fn refused_warning(health: &HealthReport) -> Option<Warning> {
    let HealthReport { file, refused, .. } = health;
    let why = "was refused when it was last read, and the former one stays in force; see `xvs health`, then `xvs reload`";
    refused.is_some().then(|| Warning::new(KeepalivedRefused, file, format!("{file} {why}")))
}

/// The warnings about virtual servers without quorum.
pub(super) fn quorum_warnings(health: Option<&HealthReport>) -> Vec<Warning> {
    let lost: Vec<_> = without_quorum(health).collect();
    first_of(NoQuorum, "virtual servers have no quorum; see `xvs health --down`", lost, |server| {
        (server.title(), format!("{} {}", server.title(), no_quorum(server)))
    })
}

/// What is wrong with a virtual server without quorum.
pub(in crate::status) fn no_quorum(server: &VirtualServerHealth) -> String {
    let VirtualServerHealth { live_weight, quorum, sorry_server, .. } = server;
    let sorry = match sorry_server {
        Some(SorryServerHealth { endpoint, serves: true }) => {
            format!("; its sorry server {endpoint} serves")
        }
        _ => String::new(),
    };
    format!("has no quorum: live weight {live_weight}, quorum {quorum}{sorry}; see `xvs health --down`")
}

pub(super) fn without_quorum(health: Option<&HealthReport>) -> impl Iterator<Item = &VirtualServerHealth> {
    health.into_iter().flat_map(|health| &health.virtual_servers).filter(|server| !server.is_well)
}

/// The warnings about real servers whose checks fail, and that no operator has disabled. Real servers of a virtual
/// server without quorum are left out: it has a warning.
pub(super) fn down_warnings(health: Option<&HealthReport>) -> Vec<Warning> {
    let mut all = Vec::new();
    for server in health.into_iter().flat_map(|health| &health.virtual_servers) {
        for real in &server.real_servers {
            if server.is_well && !real.is_up && !real.weights.disabled {
                let (title, endpoint) = (server.title(), &real.endpoint);
                let text = format!("{title}: {endpoint} is down; see `xvs health --down`");
                all.push((format!("{title} {endpoint}"), text));
            }
        }
    }
    first_of(ServerDown, "real servers are down; see `xvs health --down`", all, |one| one)
}

/// The warnings about checks that cannot run: their real servers stay as they are, whatever happens to them.
pub(super) fn unchecked_warnings(health: Option<&HealthReport>) -> Vec<Warning> {
    of_checks(CheckCannotRun, "checks cannot run; see `xvs health`", health, |check| {
        Some(format!(" {}", check.cannot_run()?))
    })
}

/// The warnings about agents that demand more than they can get.
pub(super) fn agent_warnings(health: Option<&HealthReport>) -> Vec<Warning> {
    of_checks(AgentExcess, "agents demand too much; see `xvs health`", health, |check| {
        Some(format!(": {}", check.agent.as_ref()?.excess()?))
    })
}

/// The warnings of this kind about checks. `problem` is the end of the sentence about a check, after its virtual server
/// and its real server.
fn of_checks(
    kind: WarningKind,
    more: &str,
    health: Option<&HealthReport>,
    problem: impl Fn(&CheckHealth) -> Option<String>,
) -> Vec<Warning> {
    let mut all = Vec::new();
    for server in health.into_iter().flat_map(|health| &health.virtual_servers) {
        for real in &server.real_servers {
            let (title, endpoint) = (server.title(), &real.endpoint);
            all.extend(real.checks.iter().filter_map(|check| {
                let text = format!("{title}: {endpoint}{}", problem(check)?);
                // A real server may have several checks.
                Some((format!("{title} {endpoint} {}", check.probe), text))
            }));
        }
    }
    first_of(kind, more, all, |one| one)
}

/// The warning about statements of a keepalived.conf that are not in force.
pub(super) fn fault_warning(health: Option<&HealthReport>) -> Option<Warning> {
    let HealthReport { file, faults, first_faults, .. } = health?;
    let warnings = if *faults == 1 { "warning" } else { "warnings" };
    let text = format!(
        "{file} has {faults} {warnings}: {}; `xvs check --keepalived {file}` names all",
        first_faults.first()?
    );
    Some(Warning::new(KeepalivedFaults, file, text))
}

#[cfg(test)]
mod tests {
    use xvs_model::report::health::{AgentHealth, AgentMode, CheckState, RealServerHealth, sample};
    use xvs_model::report::warning::texts;

    use super::*;

    #[test]
    fn a_check_that_cannot_run_is_a_warning_with_the_reason_also_if_its_server_is_down() {
        let states = [CheckState::AssumedUp, CheckState::Up, CheckState::Down];
        let servers = states.map(|state| sample::real_server("192.0.2.11", state)).to_vec();
        let mut report = sample::report(vec![sample::virtual_server("192.0.2.5", servers)]);
        assert_eq!(texts(&unchecked_warnings(Some(&report))), [""; 0]);
        for real in [0, 2] {
            let check = &mut report.virtual_servers[0].real_servers[real].checks[0];
            check.not_run = Some("no socket: Too many open files (os error 24)".to_owned());
        }
        let expected = ["up", "down"].map(|state| {
            format!(
                "TCP 192.0.2.5:80: 192.0.2.11:80 stays {state} unchecked: the check TCP 192.0.2.11:80 cannot run: no \
                 socket: Too many open files (os error 24)"
            )
        });
        assert_eq!(texts(&unchecked_warnings(Some(&report))), expected);
    }

    #[test]
    fn an_agent_that_demands_more_than_it_can_get_is_a_warning() {
        let mut server = sample::real_server("192.0.2.11", CheckState::Up);
        let agent = AgentHealth {
            answer: "4294967295%".to_owned(),
            at_millis: sample::NOW,
            weight_percent: 256,
            excessive_percent: Some(u32::MAX),
            mode: AgentMode::Ready,
        };
        server.checks[0].agent = Some(agent.clone());
        let report = |server: &RealServerHealth| {
            sample::report(vec![sample::virtual_server("192.0.2.5", vec![server.clone()])])
        };
        let expected = "TCP 192.0.2.5:80: 192.0.2.11:80: its agent demands 4294967295 % of its weight and gets 256 %; \
                        correct the agent, or find out whether another program answers on its port";
        assert_eq!(texts(&agent_warnings(Some(&report(&server)))), [expected]);
        server.checks[0].agent = Some(AgentHealth { excessive_percent: None, ..agent });
        assert_eq!(texts(&agent_warnings(Some(&report(&server)))), [""; 0]);
    }

    #[test]
    fn faults_of_a_keepalived_conf_are_a_warning_with_their_number_and_the_first_one() {
        let mut report = sample::report(Vec::new());
        assert_eq!(fault_warning(Some(&report)), None);
        (report.faults, report.first_faults) = (6, vec!["k.conf:7: unknown word `fall_back`".to_owned()]);
        let expected = "/etc/keepalived/keepalived.conf has 6 warnings: k.conf:7: unknown word `fall_back`; `xvs check \
                        --keepalived /etc/keepalived/keepalived.conf` names all";
        assert_eq!(fault_warning(Some(&report)).unwrap().text, expected);
    }
}
