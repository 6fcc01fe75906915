//! The health of real servers, for `xvs health`, metrics and `xvs top`.
//!
//! Built for each request from the results of the checks. Times are in milliseconds since 1970 (UTC). The effective
//! weight comes from the published snapshot. Cost: some microseconds for each real server.

use std::fmt;

use serde::{Deserialize, Serialize};
use xvs_sched::ServiceKey;

use crate::duration;

/// The virtual servers of a keepalived.conf with the results of their checks.
///
/// The health checks leave [`Weights::feedback`] and [`Weights::in_force`] empty; the control plane fills them in for
/// each request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HealthReport {
    /// The path of keepalived.conf.
    pub file: String,
    /// When the file was last read and accepted, in milliseconds since 1970.
    pub read_at_millis: u64,
    /// Why the last reading was refused, a line for each fault; `None`: it was accepted.
    pub refused: Option<String>,
    /// How often the file was read and accepted since xvsd started.
    pub reads: u64,
    /// How often the file was read and refused since xvsd started.
    pub refusals: u64,
    /// The number of warnings about the file.
    pub faults: usize,
    /// The first of them, each with file and line.
    pub first_faults: Vec<String>,
    /// Commands that undo changes by hand to services of the file.
    pub drift: Vec<String>,
    /// The virtual servers, in the file's order.
    pub virtual_servers: Vec<VirtualServerHealth>,
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VirtualServerHealth {
    /// What follows `virtual_server` in the file.
    pub name: String,
    /// The services as listings print them, such as `TCP 192.0.2.1:80`; at least one.
    pub services: Vec<String>,
    /// Whether it has its quorum.
    pub is_well: bool,
    /// Since when `is_well` has this value, in milliseconds since 1970.
    pub since_millis: u64,
    /// The sum of the weights of its real servers that are up and not disabled.
    pub live_weight: u64,
    /// The live weight that it needs.
    pub quorum: u32,
    /// How much more weight it needs to regain the quorum, and how much less to lose it.
    pub hysteresis: u32,
    /// The sorry server, which serves while there is no quorum; `None`: it has none.
    pub sorry_server: Option<SorryServerHealth>,
    /// The real servers, in the file's order.
    pub real_servers: Vec<RealServerHealth>,
}

/// A sorry server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SorryServerHealth {
    /// The endpoint; port 0: the port of each service.
    pub endpoint: String,
    /// Whether it serves now.
    pub serves: bool,
}

/// A real server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RealServerHealth {
    /// The endpoint; port 0: the port of each service.
    pub endpoint: String,
    /// Whether all its checks pass.
    pub is_up: bool,
    /// Since when `is_up` has this value, in milliseconds since 1970.
    pub since_millis: u64,
    /// The weights in the first of the services.
    pub weights: Weights,
    /// TCP connections in the first of the services whose clients repeated their SYN, or that were refused, since the
    /// last one that was established.
    pub unanswered: u32,
    /// The checks, in the file's order.
    pub checks: Vec<CheckHealth>,
}

/// The weights of a real server in the first of its services, by their source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Weights {
    /// The weight in keepalived.conf.
    pub operator: u32,
    /// The weight after health checks; `None`: it is removed from the service.
    pub health: Option<u32>,
    /// The weight after load reports; `None`: they do not change it.
    pub feedback: Option<u32>,
    /// The weight that schedulers use; `None`: it is not in the service.
    pub in_force: Option<u32>,
    /// The part of its share of new connections that it gets now, in percent; `None`: all of it.
    #[serde(default)]
    pub slow_start_percent: Option<u32>,
    /// Whether an operator has disabled it (`xvs disable`), so that its weight in force is 0.
    pub disabled: bool,
}

/// A check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckHealth {
    /// The kind and the target of the check, such as `TCP 192.0.2.11:80`.
    pub probe: String,
    /// The state after the last runs.
    pub state: CheckState,
    /// When it came up or went down, in milliseconds since 1970.
    pub since_millis: u64,
    /// What its agent has said; `None`: it asks none, or there was no answer since xvsd started.
    pub agent: Option<AgentHealth>,
    /// The last failure; `None`: none yet.
    pub last_error: Option<CheckError>,
    /// Why it could not run the last time, for a reason on this machine; its state stays meanwhile. `None`: it could.
    #[serde(default)]
    pub not_run: Option<String>,
    /// When it runs next, in milliseconds since 1970; `None`: it runs now, or it watches a file.
    pub next_millis: Option<u64>,
    /// Runs since the check exists.
    pub asked: u64,
    /// Runs that failed.
    pub failed: u64,
    /// The duration of the last run; `None`: it has not run yet.
    pub took_micros: Option<u64>,
}

impl CheckHealth {
    /// What is said of its real server while it cannot run; `None`: it can.
    pub fn cannot_run(&self) -> Option<String> {
        let why = self.not_run.as_ref()?;
        let state = if self.state.is_up() { "up" } else { "down" };
        Some(format!("stays {state} unchecked: the check {} cannot run: {why}", self.probe))
    }
}

/// What an agent has said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct AgentHealth {
    /// The agent's last line, in printable characters, at most 80 bytes of it.
    pub answer: String,
    /// When that line came, in milliseconds since 1970.
    pub at_millis: u64,
    /// The share of the real server's weight that the agent grants; more than 100 is possible. A line without a share
    /// leaves it as it was.
    pub weight_percent: u32,
    /// The share that the agent has demanded, if it is more than an agent can get; `None`: it is not.
    #[serde(default)]
    pub excessive_percent: Option<u32>,
    /// The mode of the real server. A line without a mode leaves it as it was.
    pub mode: AgentMode,
}

impl AgentHealth {
    /// What is said of the real server if its agent demands more than it can get.
    pub fn excess(&self) -> Option<String> {
        let Self { weight_percent, .. } = self;
        let demanded = self.excessive_percent?;
        Some(format!(
            "its agent demands {demanded} % of its weight and gets {weight_percent} %; correct the agent, or find out \
             whether another program answers on its port"
        ))
    }

    /// The share of its weight that it grants: 0 in any mode but ready.
    pub fn weight_ratio(&self) -> f64 {
        if self.mode == AgentMode::Ready { f64::from(self.weight_percent) / 100.0 } else { 0.0 }
    }
}

/// The mode of a real server, as its agent says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AgentMode {
    /// It takes new connections.
    #[default]
    Ready,
    /// It takes none: its weight is 0.
    Drain,
    /// It takes none, for maintenance: its weight is 0.
    Maint,
}

impl fmt::Display for AgentMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A failure and its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CheckError {
    /// The failure, as text.
    pub what: String,
    /// When it happened, in milliseconds since 1970.
    pub at_millis: u64,
}

/// The state of a check after its last runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CheckState {
    /// It counts as up, and has not run yet.
    AssumedUp,
    /// It counts as down, and has not run yet.
    AssumedDown,
    /// It is up, and its last run passed.
    Up,
    /// It is up, and its last runs failed.
    Failing {
        /// Failures in a row.
        failures: u32,
        /// Failures in a row that take it down.
        fall: u32,
    },
    /// It is down, and its last run failed.
    Down,
    /// It is down, and its last runs passed.
    Rising {
        /// Successes in a row.
        successes: u32,
        /// Successes in a row that bring it up.
        rise: u32,
    },
    /// It is not run while the virtual address is on another machine.
    Suspended {
        /// Whether it counts as up meanwhile.
        is_up: bool,
    },
}

/// Numbers of real servers and virtual servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Counts {
    /// The number of real servers of keepalived.conf; one in two virtual servers counts twice.
    pub real_servers: usize,
    /// The number of those real servers that are up.
    pub real_servers_up: usize,
    /// The number of virtual servers of keepalived.conf.
    pub virtual_servers: usize,
    /// The number of those virtual servers that have their quorum.
    pub virtual_servers_well: usize,
}

impl HealthReport {
    /// The numbers of real servers and virtual servers, and of those that are up or have their quorum.
    pub fn counts(&self) -> Counts {
        let servers: Vec<_> = self.virtual_servers.iter().flat_map(|server| &server.real_servers).collect();
        Counts {
            real_servers: servers.len(),
            real_servers_up: servers.iter().filter(|server| server.is_up).count(),
            virtual_servers: self.virtual_servers.len(),
            virtual_servers_well: self.virtual_servers.iter().filter(|server| server.is_well).count(),
        }
    }

    /// The virtual server of a service, given as printed.
    pub fn of_service(&self, service: &str) -> Option<&VirtualServerHealth> {
        self.virtual_servers.iter().find(|server| server.services.iter().any(|name| name == service))
    }
}

impl VirtualServerHealth {
    /// The service if it has one, else its name.
    pub fn title(&self) -> &str {
        match &self.services[..] {
            [service] => service,
            _ => &self.name,
        }
    }

    /// The keys of its services.
    pub fn keys(&self) -> impl Iterator<Item = ServiceKey> {
        self.services.iter().filter_map(|name| name.parse().ok())
    }

    /// A sentence for each real server that is down, with duration and reason, and for a sorry server that serves.
    pub fn problems(&self, now_millis: u64) -> Vec<String> {
        let down = self.real_servers.iter().filter(|server| !server.is_up).map(|server| {
            let why = server.why_down().map(|why| format!(": {why}")).unwrap_or_default();
            format!("{} has been down for {}{why}", server.name(), ago(server.since_millis, now_millis))
        });
        let sorry = self.sorry_server.iter().filter(|sorry| sorry.serves);
        let sorry = sorry.map(|sorry| format!("{} serves because there is no quorum", sorry.endpoint));
        down.chain(sorry).collect()
    }
}

impl RealServerHealth {
    /// The endpoint, without a port if it uses the port of each service.
    pub fn name(&self) -> &str {
        self.endpoint.strip_suffix(":0").unwrap_or(&self.endpoint)
    }

    /// The failure of the first of its checks that is down.
    fn why_down(&self) -> Option<&str> {
        let mut errors = self.checks.iter().filter(|check| !check.state.is_up());
        errors.find_map(|check| check.last_error.as_ref()).map(|error| error.what.as_str())
    }

    /// The state that needs attention: down, or that of the first failing check; `None`: there is none.
    pub fn trouble(&self) -> Option<CheckState> {
        if !self.is_up {
            return Some(CheckState::Down);
        }
        let mut states = self.checks.iter().map(|check| check.state);
        states.find(|state| matches!(state, CheckState::Failing { .. }))
    }
}

impl CheckState {
    /// Whether the check counts as up.
    pub fn is_up(self) -> bool {
        match self {
            Self::AssumedUp | Self::Up | Self::Failing { .. } => true,
            Self::AssumedDown | Self::Down | Self::Rising { .. } => false,
            Self::Suspended { is_up } => is_up,
        }
    }

    /// The name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::AssumedUp => "assumed_up",
            Self::AssumedDown => "assumed_down",
            Self::Up => "up",
            Self::Failing { .. } => "failing",
            Self::Down => "down",
            Self::Rising { .. } => "rising",
            Self::Suspended { .. } => "suspended",
        }
    }
}

impl fmt::Display for CheckState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AssumedUp => f.write_str("assumed up"),
            Self::AssumedDown => f.write_str("assumed down"),
            Self::Failing { failures, fall } => write!(f, "failing {failures}/{fall}"),
            Self::Rising { successes, rise } => write!(f, "rising {successes}/{rise}"),
            Self::Suspended { is_up } => {
                f.write_str(if *is_up { "suspended, up" } else { "suspended, down" })
            }
            Self::Up | Self::Down => f.write_str(self.name()),
        }
    }
}

/// The time between both, as text.
pub fn ago(then_millis: u64, now_millis: u64) -> String {
    duration::in_words(now_millis.saturating_sub(then_millis) / 1000)
}

#[cfg(test)]
mod tests {
    use crate::report::health::sample::{NOW, check, real_server, report, seconds_ago, virtual_server};
    use crate::report::health::*;

    #[test]
    fn problems_name_servers_that_are_down_with_duration_and_reason_and_the_sorry_server_that_serves() {
        let down = real_server("192.0.2.12", CheckState::Rising { successes: 1, rise: 2 });
        let mut unknown = real_server("192.0.2.13", CheckState::AssumedDown);
        unknown.endpoint = "192.0.2.13:0".to_owned();
        unknown.checks.push(check("TCP", CheckState::Failing { failures: 1, fall: 2 }, seconds_ago(1)));
        let up = real_server("192.0.2.11", CheckState::Suspended { is_up: true });
        let mut server = virtual_server("198.51.100.1", vec![up, down, unknown]);
        let sentences = [
            "192.0.2.12:80 has been down for 12 s: connection refused by 192.0.2.12:80",
            "192.0.2.13 has been down for 12 s",
            "192.0.2.99:80 serves because there is no quorum",
        ];
        assert_eq!(server.problems(NOW), sentences[..2]);
        server.sorry_server = Some(SorryServerHealth { endpoint: "192.0.2.99:80".to_owned(), serves: true });
        assert_eq!(server.problems(NOW), sentences);
    }

    #[test]
    fn a_report_survives_json_and_its_check_states_have_their_json_names() {
        let states = [CheckState::Up, CheckState::Failing { failures: 1, fall: 3 }];
        let servers = states.map(|state| real_server("192.0.2.11", state));
        let report = report(vec![virtual_server("198.51.100.1", servers.into())]);
        let json = serde_json::json!(report);
        let servers = &json["virtual_servers"][0]["real_servers"];
        assert_eq!(servers[0]["checks"][0]["state"], "up");
        let failing = serde_json::json!({ "failing": { "failures": 1, "fall": 3 } });
        assert_eq!(servers[1]["checks"][0]["state"], failing);
        assert_eq!(serde_json::from_value::<HealthReport>(json).unwrap(), report);
    }
}

/// Sample reports, for the tests of programs that show them.
#[cfg(any(test, feature = "samples"))]
#[allow(missing_docs, reason = "for tests alone")]
pub mod sample {
    use crate::report::health::*;

    /// 2026-11-20T15:23:12.123Z.
    pub const NOW: u64 = 1_795_188_192_123;

    pub fn seconds_ago(seconds: u64) -> u64 {
        NOW - seconds * 1000
    }

    /// A file without faults that was read an hour ago.
    pub fn report(virtual_servers: Vec<VirtualServerHealth>) -> HealthReport {
        HealthReport {
            file: "/etc/keepalived/keepalived.conf".to_owned(),
            read_at_millis: seconds_ago(3600),
            refused: None,
            reads: 1,
            refusals: 0,
            faults: 0,
            first_faults: Vec::new(),
            drift: Vec::new(),
            virtual_servers,
        }
    }

    /// A virtual server of port 80 with a quorum of 1; its state has been the same for an hour.
    pub fn virtual_server(address: &str, real_servers: Vec<RealServerHealth>) -> VirtualServerHealth {
        let weight = |server: &RealServerHealth| u64::from(server.weights.operator);
        let live_weight = real_servers.iter().filter(|server| server.is_up).map(weight).sum();
        VirtualServerHealth {
            name: format!("{address} 80"),
            services: vec![format!("TCP {address}:80")],
            is_well: live_weight >= 1,
            since_millis: seconds_ago(3600),
            live_weight,
            quorum: 1,
            hysteresis: 0,
            sorry_server: None,
            real_servers,
        }
    }

    /// A real server of weight 1 with a TCP check: up for an hour, or down for some seconds.
    pub fn real_server(address: &str, state: CheckState) -> RealServerHealth {
        let endpoint = format!("{address}:80");
        let is_up = state.is_up();
        let since_millis = seconds_ago(if is_up { 3600 } else { 12 });
        let weight = is_up.then_some(1);
        let weights = Weights {
            operator: 1,
            health: weight,
            feedback: None,
            in_force: weight,
            slow_start_percent: None,
            disabled: false,
        };
        let checks = vec![check(&format!("TCP {endpoint}"), state, since_millis)];
        RealServerHealth { endpoint, is_up, since_millis, weights, unanswered: 0, checks }
    }

    /// A check that runs again in some seconds; unless it passes, its last run was refused seconds ago.
    pub fn check(probe: &str, state: CheckState, since_millis: u64) -> CheckHealth {
        let is_well = matches!(state, CheckState::Up | CheckState::AssumedUp | CheckState::AssumedDown);
        let what = "connection refused by 192.0.2.12:80".to_owned();
        let last_error = (!is_well).then(|| CheckError { what, at_millis: seconds_ago(2) });
        CheckHealth {
            probe: probe.to_owned(),
            state,
            since_millis,
            agent: None,
            last_error,
            not_run: None,
            next_millis: Some(NOW + 3500),
            asked: 600,
            failed: u64::from(!is_well),
            took_micros: Some(1500),
        }
    }
}
