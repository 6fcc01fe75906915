//! The weights in force and unanswered connections, added to the report of health checks.

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::Snapshot;
use xvs_model::report::health::HealthReport;

use crate::status::services::real_server_indices;

/// Fills in the weights that schedulers use, those that load reports have changed, slow starts and unanswered
/// connections.
pub(crate) fn fill_in(report: &mut HealthReport, snapshot: &Snapshot, now: Millis) {
    for server in &mut report.virtual_servers {
        let Some(key) = server.keys().next() else { continue };
        let Some(service) = snapshot.services.find(&key) else { continue };
        for (index, member) in real_server_indices(server, service).into_iter().zip(service.members.iter()) {
            let Some(index) = index else { continue };
            let server = &mut server.real_servers[index];
            server.unanswered = member.live.recently_unanswered(now);
            let weights = &mut server.weights;
            weights.in_force = Some(member.weight.0);
            weights.slow_start_percent = member.slow_start_percent(now);
            weights.feedback =
                (!weights.disabled && member.weight != member.own_weight).then_some(member.weight.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use xvs_model::report::health::sample::{real_server, report, virtual_server};
    use xvs_model::report::health::{CheckState, RealServerHealth};

    use crate::status::tests::daemon;
    use crate::status::weights_in_force::*;

    #[test]
    fn the_weight_in_force_is_that_of_the_snapshot_with_any_port_in_the_file() {
        let server = |endpoint: &str| RealServerHealth {
            endpoint: endpoint.to_owned(),
            ..real_server("192.0.2.11", CheckState::Down)
        };
        let servers = ["192.0.2.11:80", "192.0.2.12:8080", "192.0.2.13:0", "192.0.2.14:81", "192.0.2.15:80"];
        let in_force = |rules: &str, service: &str| {
            let mut one = virtual_server("198.51.100.1", servers.map(server).into());
            one.services = vec![service.to_owned()];
            let mut report = report(vec![one]);
            fill_in(&mut report, &daemon(rules).published.load(), Millis(0));
            let weights = report.virtual_servers[0].real_servers.iter().map(|server| server.weights.in_force);
            weights.collect::<Vec<_>>()
        };
        let (service, mark) = ("-t 198.51.100.1:80", "-f 7");
        let tcp: String = ["11:80 -g -w 1", "12:8080 -m -w 2", "13:80 -g -w 3", "14:80 -g -w 4"]
            .map(|server| format!("-a {service} -r 192.0.2.{server}\n"))
            .concat();
        let of_mark: String = [11, 12].map(|host| format!("-a {mark} -r 192.0.2.{host} -g -w 9\n")).concat();
        let rules = format!("-A {service} -s rr\n{tcp}-A {mark} -s rr\n{of_mark}");
        assert_eq!(
            in_force(&rules, "TCP 198.51.100.1:80"),
            [Some(1), Some(2), Some(3), Some(4), None],
            "a server outside the service has no weight"
        );
        assert_eq!(in_force(&rules, "FWM 7"), [Some(9), Some(9), None, None, None]);
        assert_eq!(in_force(&rules, "TCP 198.51.100.9:80"), [None; 5], "there is no such service");
    }
}
