//! The state of one virtual server: its real servers, its quorum, the services that it wants, and the notices of
//! changes.
//!
//! Input: the results of checks. Pure, without a clock. A real server is up while all of its checks are up. Its status,
//! its weight and the services are computed from the check results each time, so they cannot drift from them. The only
//! other state is whether the quorum is met, because hysteresis makes that depend on the past. Cost of a change: a pass
//! over the virtual server's real servers and checks. Source: keepalived-behaviour, sections 3, 4.4 and 5. Not here:
//! rise and fall of a check (`check_state.rs`), and carrying out the changes (`manager.rs`).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::maintenance::DisabledServers;
use xvs_model::config::reconcile::OwnedService;
use xvs_model::health_checks::check::{Check, Probe, Script, Timing};
use xvs_model::health_checks::fault::Place;
use xvs_model::health_checks::virtual_server::{RealServer, VirtualServer};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::agent::AgentWeight;
use crate::view::{CheckView, RealServerView, VirtualServerView, probe_id};

/// A virtual server with the results of its checks.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServerState {
    virtual_server: Arc<VirtualServer>,
    /// One for each real server, in the order of the configuration.
    servers: Vec<Server>,
    has_quorum: bool,
    disabled: Arc<DisabledServers>,
}

/// The result of a check after rise and fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckResult {
    /// Whether the check is up.
    pub is_up: bool,
    /// The number that the check adds to the real server's weight; 0 while the check is down.
    pub weight_change: i64,
    /// What an agent grants of the weight that the file and all checks give.
    pub agent: AgentWeight,
}

/// The status of a check, a real server or a virtual server; before the first probe, the assumed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// The check passes; the real server may serve; the virtual server has its quorum.
    Up,
    /// The opposite of each.
    Down,
}

impl Status {
    /// The status of a check before its first probe, if its real server is new (`alpha` in keepalived.conf).
    pub fn at_first(timing: &Timing) -> Self {
        (!timing.begins_down).into()
    }

    /// The status of a new or edited check of a real server that was up or down. Only words of an agent take its check
    /// down, so one that takes the place of another kind of check does not.
    fn of_new(check: &Check, server_was_up: bool) -> Self {
        (server_was_up || matches!(check.probe, Probe::Agent(..))).into()
    }
}

/// A real server with the results of its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    /// One for each check, in the order of the configuration.
    checks: Vec<CheckResult>,
    /// Whether the last notice of this real server said that it is down.
    is_reported_down: bool,
}

/// Whether real servers that are assumed up at the start cause notices (`rs_init_notifies`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InitialNotices {
    /// They cause none.
    Omitted,
    /// Each causes one.
    Sent,
}

/// The result of a reload of a virtual server.
#[derive(Debug)]
pub struct Reloaded {
    /// The new state.
    pub state: VirtualServerState,
    /// Notices of the changes that the reload has made, in order.
    pub notices: Vec<Notice>,
    /// The origin of each check of each real server, in the order of the new configuration.
    pub origins: Vec<Vec<Origin>>,
}

/// Where the state of a check after a reload comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// From a check of the old configuration with the same [identity](Probe::identity); its timing may differ.
    Kept {
        /// Index of the real server in the old configuration.
        server: usize,
        /// Index of the check in that real server.
        check: usize,
    },
    /// The check is new and starts with this status.
    New(Status),
    /// The check continues as it was in an earlier process.
    Resumed(CheckView),
}

/// A real server as it was before a reload or a restart, with the checks that it has now.
struct KnownServer {
    is_up: bool,
    is_reported_down: bool,
    checks: Vec<(Origin, CheckResult)>,
}

impl KnownServer {
    /// One that was not there.
    fn new(server: &RealServer) -> Self {
        let at_first = |check: &Check| {
            let status = Status::at_first(&check.timing);
            (Origin::New(status), status.into())
        };
        let checks = server.checks.iter().map(at_first).collect();
        Self { is_up: false, is_reported_down: false, checks }
    }
}

impl Server {
    fn is_up(&self) -> bool {
        self.checks.iter().all(|result| result.is_up)
    }
}

impl VirtualServerState {
    /// The state before any check has run, and its notices. `disabled`: what operators keep from new connections.
    pub fn start(
        virtual_server: Arc<VirtualServer>,
        initial_notices: InitialNotices,
        disabled: Arc<DisabledServers>,
    ) -> (Self, Vec<Notice>) {
        let servers = virtual_server.real_servers.iter().map(|server| {
            let checks = server.checks.iter().map(|check| Status::at_first(&check.timing).into()).collect();
            Server { checks, is_reported_down: false }
        });
        let mut state = Self { servers: servers.collect(), has_quorum: false, virtual_server, disabled };
        let mut notices = Vec::new();
        if initial_notices == InitialNotices::Sent {
            notices.extend(state.notices_of_up(Status::Up));
        }
        notices.extend(state.update_quorum());
        if !state.has_quorum && state.virtual_server.sorry_server.is_some() {
            notices.push(state.notice(None, Status::Down));
        }
        (state, notices)
    }

    /// Applies check results, each with the index of its real server and of its check. Returns the notices, in order.
    ///
    /// The quorum is computed once, after all results. Indices that do not exist are ignored.
    pub fn apply(&mut self, results: impl IntoIterator<Item = (usize, usize, CheckResult)>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (server, check, result) in results {
            let Some(real_server) = self.servers.get_mut(server) else { continue };
            let was_up = real_server.is_up();
            let Some(place) = real_server.checks.get_mut(check) else { continue };
            *place = result;
            let is_up = real_server.is_up();
            // A real server that starts down causes a notice with its first failure too.
            if was_up != is_up || !(result.is_up || real_server.is_reported_down) {
                real_server.is_reported_down = !is_up;
                notices.push(self.notice(Some(server), is_up.into()));
            }
        }
        notices.extend(self.update_quorum());
        notices
    }

    /// Applies a new configuration of the same virtual server.
    ///
    /// A check with the identity of an old one keeps its state. A new or edited check starts with the status of its
    /// real server, except for an agent's. So editing a check never brings a failed server back without a successful
    /// probe.
    pub fn reload(self, virtual_server: Arc<VirtualServer>, initial_notices: InitialNotices) -> Reloaded {
        let known: HashSet<_> = virtual_server.real_servers.iter().map(|server| server.endpoint).collect();
        let before = &self.virtual_server.real_servers;
        let gone =
            (0..before.len()).filter(|old| !known.contains(&before[*old].endpoint) && self.is_up(*old));
        let mut notices: Vec<_> = gone.map(|old| self.notice(Some(old), Status::Down)).collect();
        let index: HashMap<_, _> = before.iter().enumerate().map(|(old, one)| (one.endpoint, old)).collect();
        let known = |server: &RealServer| {
            let old = *index.get(&server.endpoint)?;
            let checks = self.origins(old, &server.checks);
            let is_reported_down = self.servers[old].is_reported_down;
            Some(KnownServer { is_up: self.is_up(old), is_reported_down, checks })
        };
        let (has_quorum, disabled) = (self.has_quorum, self.disabled.clone());
        let mut reloaded = Self::continued(virtual_server, has_quorum, disabled, initial_notices, known);
        notices.append(&mut reloaded.notices);
        Reloaded { notices, ..reloaded }
    }

    /// The state after a restart, from the view of an earlier process. As with [`Self::reload`], a check that was there
    /// keeps its state, and there are notices only of what the file has changed; but none of real servers that it does
    /// not have any more, as after a restart without a view.
    pub fn resume(
        virtual_server: Arc<VirtualServer>,
        former: &VirtualServerView,
        initial_notices: InitialNotices,
        disabled: Arc<DisabledServers>,
    ) -> Reloaded {
        let index: HashMap<_, _> = former.real_servers.iter().map(|one| (one.endpoint, one)).collect();
        let known = |server: &RealServer| {
            let old = *index.get(&server.endpoint)?;
            let views: HashMap<u64, CheckView> = old.checks.iter().copied().collect();
            let continued = |check: &Check| match views.get(&probe_id(&check.probe)) {
                Some(view) => (Origin::Resumed(*view), (*view).into()),
                None => {
                    let status = Status::of_new(check, old.is_up);
                    (Origin::New(status), status.into())
                }
            };
            let checks = server.checks.iter().map(continued).collect();
            Some(KnownServer { is_up: old.is_up, is_reported_down: old.is_reported_down, checks })
        };
        Self::continued(virtual_server, former.has_quorum, disabled, initial_notices, known)
    }

    /// The state of a file whose real servers may be known from before.
    fn continued(
        virtual_server: Arc<VirtualServer>,
        has_quorum: bool,
        disabled: Arc<DisabledServers>,
        initial_notices: InitialNotices,
        known: impl Fn(&RealServer) -> Option<KnownServer>,
    ) -> Reloaded {
        let mut state = Self { virtual_server, servers: Vec::new(), has_quorum, disabled };
        let (mut notices, mut origins) = (Vec::new(), Vec::new());
        let file = Arc::clone(&state.virtual_server);
        for (place, server) in file.real_servers.iter().enumerate() {
            let (is_new, old) = match known(server) {
                Some(old) => (false, old),
                None => (true, KnownServer::new(server)),
            };
            let (from, checks) = old.checks.into_iter().unzip();
            let mut now = Server { checks, is_reported_down: false };
            now.is_reported_down = !now.is_up() && old.is_reported_down;
            let has_notice = if is_new { initial_notices == InitialNotices::Sent } else { !old.is_up };
            if now.is_up() && has_notice {
                notices.push(state.notice(Some(place), Status::Up));
            }
            state.servers.push(now);
            origins.push(from);
        }
        notices.extend(state.update_quorum());
        Reloaded { state, notices, origins }
    }

    /// What a later process begins with. `check` is the view of a check, by the indices of its real server and of
    /// itself.
    pub fn view(&self, check: impl Fn(usize, usize) -> CheckView) -> VirtualServerView {
        let servers = self.virtual_server.real_servers.iter().zip(&self.servers).enumerate();
        let real_servers = servers.map(|(server, (file, now))| {
            let checks = file.checks.iter().zip(&now.checks).enumerate();
            RealServerView {
                endpoint: file.endpoint,
                is_up: now.is_up(),
                is_reported_down: now.is_reported_down,
                checks: checks
                    .map(|(index, (file, now))| {
                        let CheckResult { is_up, weight_change, agent } = *now;
                        let view = CheckView { is_up, weight_change, agent, ..check(server, index) };
                        (probe_id(&file.probe), view)
                    })
                    .collect(),
            }
        });
        VirtualServerView { has_quorum: self.has_quorum, real_servers: real_servers.collect() }
    }

    /// Replaces what operators keep from new connections. Returns a notice if the quorum is gained or lost by that.
    pub fn set_disabled(&mut self, disabled: Arc<DisabledServers>) -> Option<Notice> {
        self.disabled = disabled;
        self.update_quorum()
    }

    /// The notices when the daemon stops: none, unless the file says `omega`.
    pub fn stop(self) -> Vec<Notice> {
        if self.virtual_server.omega { self.remove() } else { Vec::new() }
    }

    /// The notices when the virtual server is removed from the file.
    pub fn remove(self) -> Vec<Notice> {
        let lost = self.has_quorum.then(|| self.notice(None, Status::Down));
        self.notices_of_up(Status::Down).chain(lost).collect()
    }

    /// The services that the virtual server wants now, in the order of the file.
    pub fn desired_services(&self) -> Vec<(ServiceKey, OwnedService)> {
        let services = self.virtual_server.services.iter();
        let desired = services.map(|(key, options)| {
            let mut seen = HashSet::new();
            let all = self.destinations(*key).into_iter().map(|one| (one.endpoint, one.options));
            let destinations = all.filter(|(endpoint, _)| seen.insert(*endpoint)).collect();
            (*key, OwnedService { options: options.clone(), destinations })
        });
        desired.collect()
    }

    /// Its configuration.
    pub fn virtual_server(&self) -> &Arc<VirtualServer> {
        &self.virtual_server
    }

    /// Whether the quorum is met, hysteresis included.
    pub fn has_quorum(&self) -> bool {
        self.has_quorum
    }

    /// Sum of the weights of the real servers that are up and not disabled.
    pub fn live_weight(&self) -> u64 {
        let live = (0..self.servers.len()).filter(|server| self.is_up(*server) && !self.is_disabled(*server));
        live.map(|server| u64::from(self.effective_weight(server).0)).sum()
    }

    /// Whether the real server of this index is up. A real server without checks is always up.
    pub fn is_up(&self, server: usize) -> bool {
        self.servers[server].is_up()
    }

    /// Whether an operator has disabled the real server of this index, in the first of the services.
    pub(crate) fn is_disabled(&self, server: usize) -> bool {
        let file = &self.virtual_server;
        let Some((key, _)) = file.services.first().filter(|_| !self.disabled.is_empty()) else {
            return false;
        };
        let server = &file.real_servers[server];
        self.disabled.includes(*key, endpoint_in_service(server.endpoint, *key, server.options.method))
    }

    /// The weight in the services of the real server of this index; `None`: it is not a destination now.
    pub fn weight(&self, server: usize) -> Option<Weight> {
        let file = &self.virtual_server;
        let serves = self.is_up(server) && (self.has_quorum || file.sorry_server.is_none());
        match serves {
            true => Some(self.effective_weight(server)),
            false => file.real_servers[server].inhibit_on_failure.then_some(Weight(0)),
        }
    }

    /// Whether the sorry server serves now.
    pub fn uses_sorry_server(&self) -> bool {
        !self.has_quorum && self.virtual_server.sorry_server.is_some()
    }

    /// The destinations of a service now. Several may have the same endpoint; the first of them is used.
    pub(crate) fn destinations(&self, key: ServiceKey) -> Vec<ServiceDestination<'_>> {
        let file = &self.virtual_server;
        let there = file.real_servers.iter().enumerate().filter_map(|(server, one)| {
            Some(ServiceDestination::new(&one.place, one.endpoint, &one.options, self.weight(server)?, key))
        });
        let mut servers: Vec<_> = there.collect();
        if let Some(sorry) = file.sorry_server.as_ref().filter(|sorry| !self.has_quorum || sorry.inhibit) {
            let weight = Weight(u32::from(!self.has_quorum));
            let sorry = ServiceDestination::new(&sorry.place, sorry.endpoint, &sorry.options, weight, key);
            // A sorry server that is a real server too is one destination: the one that serves.
            if !self.has_quorum {
                servers.retain(|one| one.endpoint != sorry.endpoint);
            }
            if servers.iter().all(|one| one.endpoint != sorry.endpoint) {
                servers.push(sorry);
            }
        }
        servers
    }

    /// The configured weight plus the weight changes of the checks, limited to the range of a weight, and of that what
    /// agents grant.
    fn effective_weight(&self, server: usize) -> Weight {
        let file = i64::from(self.virtual_server.real_servers[server].options.weight.0);
        let changes = self.servers[server].checks.iter().map(|result| result.weight_change);
        let effective = changes.fold(file, i64::saturating_add).clamp(0, i64::from(Weight::MAX.0));
        let effective = Weight(u32::try_from(effective).unwrap_or(Weight::MAX.0));
        self.servers[server].checks.iter().fold(effective, |weight, result| result.agent.of(weight))
    }

    /// The origins of `checks`, the new checks of the real server whose old index is `server`.
    fn origins(&self, server: usize, checks: &[Check]) -> Vec<(Origin, CheckResult)> {
        let before = self.virtual_server.real_servers[server].checks.iter().enumerate();
        let mut known: HashMap<Probe, Vec<usize>> = HashMap::new();
        for (index, check) in before.rev() {
            known.entry(check.probe.identity()).or_default().push(index);
        }
        let origin = |check: &Check| match known.get_mut(&check.probe.identity()).and_then(Vec::pop) {
            Some(check) => (Origin::Kept { server, check }, self.servers[server].checks[check]),
            None => {
                let status = Status::of_new(check, self.is_up(server));
                (Origin::New(status), status.into())
            }
        };
        checks.iter().map(origin).collect()
    }

    /// Compares the live weight with the quorum. Returns a notice if the quorum was gained or lost.
    fn update_quorum(&mut self) -> Option<Notice> {
        let live = self.live_weight();
        let [quorum, hysteresis] =
            [self.virtual_server.quorum, self.virtual_server.hysteresis].map(u64::from);
        let needed = if self.has_quorum { quorum.saturating_sub(hysteresis) } else { quorum + hysteresis };
        let has_quorum = live > 0 && live >= needed;
        let changes = std::mem::replace(&mut self.has_quorum, has_quorum) != has_quorum;
        changes.then(|| self.notice(None, has_quorum.into()))
    }

    fn notice(&self, server: Option<usize>, status: Status) -> Notice {
        Notice { virtual_server: Arc::clone(&self.virtual_server), server, status }
    }

    fn notices_of_up(&self, status: Status) -> impl Iterator<Item = Notice> {
        (0..self.servers.len())
            .filter(|server| self.is_up(*server))
            .map(move |server| self.notice(Some(server), status))
    }
}

impl From<bool> for Status {
    fn from(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

impl From<CheckView> for CheckResult {
    fn from(CheckView { is_up, weight_change, agent, .. }: CheckView) -> Self {
        Self { is_up, weight_change, agent }
    }
}

impl From<Status> for CheckResult {
    fn from(status: Status) -> Self {
        Self { is_up: status == Status::Up, weight_change: 0, agent: AgentWeight::default() }
    }
}

/// A real server or sorry server as a destination of one service.
pub(crate) struct ServiceDestination<'a> {
    /// Its position in the file.
    pub(crate) place: &'a Place,
    /// Its endpoint in the service.
    pub(crate) endpoint: Endpoint,
    /// Its options, with the weight that it has now.
    pub(crate) options: DestinationOptions,
}

impl<'a> ServiceDestination<'a> {
    fn new(
        place: &'a Place,
        endpoint: Endpoint,
        options: &DestinationOptions,
        weight: Weight,
        service: ServiceKey,
    ) -> Self {
        let endpoint = endpoint_in_service(endpoint, service, options.method);
        Self { place, endpoint, options: DestinationOptions { weight, ..options.clone() } }
    }
}

/// A server's endpoint in one service.
///
/// With NAT and FULLNAT it has its own port. With the other methods it has the port of the service, or 0 in a
/// firewall-mark service.
fn endpoint_in_service(endpoint: Endpoint, service: ServiceKey, method: ForwardingMethod) -> Endpoint {
    let port = match service {
        _ if method.masquerades() => endpoint.port,
        ServiceKey::Address { endpoint: at, .. } => at.port,
        ServiceKey::Mark { .. } => 0,
    };
    Endpoint { port, ..endpoint }
}

/// A change of status, reported to scripts, FIFOs, the event stream and the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The virtual server.
    pub virtual_server: Arc<VirtualServer>,
    /// Index of the real server; `None`: the notice is about the quorum of the virtual server.
    pub server: Option<usize>,
    /// The new status.
    pub status: Status,
}

impl Notice {
    /// The script that the file configures for this change.
    pub fn script(&self) -> Option<&Script> {
        let file = &self.virtual_server;
        let (up, down) = match self.server {
            Some(server) => {
                let server = &file.real_servers[server];
                (&server.notify_up, &server.notify_down)
            }
            None => (&file.quorum_up, &file.quorum_down),
        };
        if self.status == Status::Up { up.as_ref() } else { down.as_ref() }
    }

    /// The line for FIFOs, without a line feed: `RS [10.1.0.1]:tcp:80 [10.0.0.1]:tcp:80 UP` or
    /// `VS [10.0.0.1]:tcp:80 DOWN`.
    ///
    /// Source: keepalived-behaviour, section 5.5.
    pub fn line(&self) -> String {
        let file = &self.virtual_server;
        let status = if self.status == Status::Up { "UP" } else { "DOWN" };
        let virtual_server = match (file.group(), file.services.first()) {
            (None, Some((ServiceKey::Mark { mark, .. }, _))) => format!("FWM {mark}"),
            (None, Some((ServiceKey::Address { endpoint, .. }, _))) => {
                fifo_endpoint(*endpoint, file.protocol())
            }
            (group, _) => format!("[{}]:{}", group.unwrap_or_default(), file.ordinal),
        };
        match self.server {
            Some(server) => {
                let endpoint = file.real_servers[server].endpoint;
                format!("RS {} {virtual_server} {status}", fifo_endpoint(endpoint, file.protocol()))
            }
            None => format!("VS {virtual_server} {status}"),
        }
    }
}

/// The text for the log and the event stream.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.virtual_server.name;
        let is_up = self.status == Status::Up;
        match self.server {
            Some(server) => {
                let endpoint = self.virtual_server.real_servers[server].endpoint;
                write!(f, "{endpoint} of {name} is {}", if is_up { "up" } else { "down" })
            }
            None => write!(f, "{name} has {} quorum", if is_up { "its" } else { "no" }),
        }
    }
}

/// An endpoint in a line for FIFOs: `[10.0.0.1]:tcp:80`.
fn fifo_endpoint(Endpoint { addr, port }: Endpoint, protocol: Option<Protocol>) -> String {
    let protocol = protocol.map_or("none".to_owned(), |protocol| protocol.to_string().to_lowercase());
    format!("[{addr}]:{protocol}:{port}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use crate::check_state::CheckStateMachine;
    use crate::probes::probe_result::ProbeResult;
    use crate::tests::configuration;
    use crate::virtual_server::*;
    use xvs_model::config::command::Command;
    use xvs_model::config::desired_state::State;
    use xvs_model::config::maintenance::Disabled;
    use xvs_model::report::health::AgentMode;

    /// The first virtual server of a configuration.
    fn read(text: &str) -> Arc<VirtualServer> {
        Arc::new(configuration(text).virtual_servers.swap_remove(0))
    }

    /// A TCP virtual server with direct routing and these lines.
    fn virtual_server(lines: &str) -> Arc<VirtualServer> {
        let head = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method DR\nprotocol TCP\n";
        read(&format!("{head}{lines}\n}}\n"))
    }

    /// A configuration of the tests of `keepalived`.
    fn case(name: &str) -> Arc<VirtualServer> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keepalived/src/cases");
        read(&fs::read_to_string(folder.join(name).with_extension("conf")).unwrap())
    }

    fn started(virtual_server: &Arc<VirtualServer>) -> VirtualServerState {
        VirtualServerState::start(Arc::clone(virtual_server), InitialNotices::Omitted, Arc::default()).0
    }

    fn reloaded(state: VirtualServerState, virtual_server: &Arc<VirtualServer>) -> Reloaded {
        state.reload(Arc::clone(virtual_server), InitialNotices::Omitted)
    }

    /// The destinations of the first service: last part of the address, `=`, weight.
    fn servers(state: &VirtualServerState) -> String {
        let (_, service) = &state.desired_services()[0];
        let one = |(endpoint, options): &(Endpoint, DestinationOptions)| {
            let addr = endpoint.addr.to_string();
            format!("{}={}", addr.rsplit('.').next().unwrap(), options.weight.0)
        };
        service.destinations.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// The notices without the virtual server: `RS 1 UP`, `VS DOWN`.
    fn lines(notices: &[Notice]) -> Vec<String> {
        let line = |notice: &Notice| {
            let change = if notice.status == Status::Up { "UP" } else { "DOWN" };
            let Some(server) = notice.server else { return format!("VS {change}") };
            let addr = notice.virtual_server.real_servers[server].endpoint.addr.to_string();
            format!("RS {} {change}", addr.rsplit('.').next().unwrap())
        };
        notices.iter().map(line).collect()
    }

    const WHOLE: AgentWeight = AgentWeight { percent: 100, mode: AgentMode::Ready };
    const UP: CheckResult = CheckResult { is_up: true, weight_change: 0, agent: WHOLE };
    const DOWN: CheckResult = CheckResult { is_up: false, ..UP };

    /// Two real servers with a check each, after the lines of `before`.
    fn pair(before: &str) -> Arc<VirtualServer> {
        let checked = "TCP_CHECK {\n}\n}";
        virtual_server(&format!(
            "{before}\nreal_server 10.1.0.1 80 {{\nweight 2\n{checked}\nreal_server 10.1.0.2 80 {{\nweight 3\n{checked}"
        ))
    }

    #[test]
    fn an_inhibited_server_that_starts_down_gets_its_weight_with_its_first_pass() {
        let mut state = started(&case("begins-down"));
        assert_eq!(servers(&state), "1=0");
        assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        assert_eq!(servers(&state), "1=1");
    }

    #[test]
    fn a_weight_from_a_script_changes_the_quorum_and_the_sorry_server() {
        let file = case("sorry-server");
        let (mut state, notices) =
            VirtualServerState::start(Arc::clone(&file), InitialNotices::Omitted, Arc::default());
        assert_eq!((lines(&notices), servers(&state)), (vec!["VS DOWN".to_owned()], "1=0 99=1".to_owned()));
        let check = &file.real_servers[0].checks[0];
        let mut machine = CheckStateMachine::new(check, Status::at_first(&check.timing));
        let failed = || ProbeResult::Failed("exit code 1".to_owned());
        // Exit codes 0, 7, 1, 3. At weight 2 the last one adds -1, so the quorum of 2 is lost.
        for (answer, want, said) in [
            (ProbeResult::Passed(0), "1=2 99=0", &["RS 1 UP", "VS UP"][..]),
            (ProbeResult::Passed(7 - 2 - 2), "1=5 99=0", &[]),
            (failed(), "1=0 99=1", &["RS 1 DOWN", "VS DOWN"]),
            (ProbeResult::Passed(0), "1=2 99=0", &["RS 1 UP", "VS UP"]),
            (ProbeResult::Passed(3 - 2 - 2), "1=0 99=1", &["VS DOWN"]),
            (ProbeResult::Passed(2 - 2 - 2), "1=0 99=1", &[]),
            (ProbeResult::Passed(0), "1=2 99=0", &["VS UP"]),
        ] {
            let change = machine.apply(&answer);
            assert_eq!(lines(&state.apply([(0, 0, change.result)])), said, "{answer:?}");
            assert_eq!(servers(&state), want, "{answer:?}");
        }
    }

    /// These disabled real servers.
    fn disabled(servers: &[&str]) -> Arc<DisabledServers> {
        let mut all = State::default();
        for server in servers {
            let server = Disabled { server: server.parse().unwrap(), service: None };
            all.apply(&Command::Disable(server)).unwrap();
        }
        Arc::new(all.disabled().clone())
    }

    #[test]
    fn a_disabled_server_does_not_count_for_the_quorum_so_a_sorry_server_serves_if_all_are_disabled() {
        let file = pair("sorry_server 10.1.0.99 80");
        let mut state = started(&file);
        assert_eq!(lines(&Vec::from_iter(state.set_disabled(disabled(&["10.1.0.1"])))), [""; 0]);
        assert_eq!((state.live_weight(), &*servers(&state)), (3, "1=2 2=3"));
        let all = disabled(&["10.1.0.1", "10.1.0.2:80"]);
        assert_eq!(lines(&Vec::from_iter(state.set_disabled(all.clone()))), ["VS DOWN"]);
        assert_eq!(servers(&state), "99=1");
        let Reloaded { state: mut after, notices, .. } = reloaded(state, &file);
        assert_eq!((lines(&notices), &*servers(&after)), (Vec::new(), "99=1"), "over a reload, too");
        assert_eq!(lines(&Vec::from_iter(after.set_disabled(disabled(&["10.1.0.1"])))), ["VS UP"]);
        let (state, notices) = VirtualServerState::start(file, InitialNotices::Omitted, all);
        assert_eq!((lines(&notices), &*servers(&state)), (vec!["VS DOWN".to_owned()], "99=1"));
    }

    #[test]
    fn of_two_servers_at_one_address_the_one_with_the_disabled_port_is_disabled() {
        let servers = "real_server 10.1.0.1 80 {\n}\nreal_server 10.1.0.1 8080 {\n}";
        let head = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method NAT\nprotocol TCP";
        let mut state = started(&read(&format!("{head}\n{servers}\n}}\n")));
        state.set_disabled(disabled(&["10.1.0.1:8080"]));
        assert_eq!([0, 1].map(|server| state.is_disabled(server)), [false, true]);
    }

    #[test]
    fn a_server_is_up_while_all_of_its_checks_are() {
        let text = "real_server 10.1.0.1 80 {\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}\n\
                    real_server 10.1.0.2 80 {\n}";
        let mut state = started(&virtual_server(text));
        for (check, result, notices, there) in [
            (0, DOWN, &["RS 1 DOWN"][..], "2=1"),
            (1, DOWN, &[], "2=1"),
            (0, UP, &[], "2=1"),
            (1, UP, &["RS 1 UP"], "1=1 2=1"),
        ] {
            assert_eq!(lines(&state.apply([(0, check, result)])), notices);
            assert_eq!(servers(&state), there);
        }
    }

    #[test]
    fn weight_changes_of_all_checks_are_summed_and_limited_to_the_range_of_a_weight() {
        let text = "real_server 10.1.0.1 80 {\nweight 4\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}";
        let mut state = started(&virtual_server(text));
        let mut weight = |check, weight_change| {
            state.apply([(0, check, CheckResult { is_up: true, weight_change, ..UP })]);
            servers(&state)
        };
        assert_eq!(weight(0, 3), "1=7");
        assert_eq!(weight(1, -2), "1=5");
        assert_eq!(weight(0, i64::MIN), "1=0");
        assert_eq!(weight(0, i64::MAX), "1=2147483647");
        assert_eq!(weight(0, 0), "1=2");
    }

    #[test]
    fn results_of_one_batch_cause_a_notice_each_and_the_quorum_is_computed_after_all() {
        let mut state = started(&pair("quorum 2"));
        state.apply([(0, 0, DOWN)]);
        // One server goes down and one comes up, so the quorum stays.
        let notices = state.apply([(1, 0, DOWN), (0, 0, UP), (7, 0, DOWN), (0, 7, DOWN)]);
        assert_eq!(lines(&notices), ["RS 2 DOWN", "RS 1 UP"]);
        assert_eq!((servers(&state).as_str(), state.has_quorum()), ("1=2", true));
        let notices = state.apply([(0, 0, DOWN), (1, 0, DOWN)]);
        assert_eq!(lines(&notices), ["RS 1 DOWN", "VS DOWN"]);
    }

    #[test]
    fn an_agent_grants_a_share_of_the_weight_of_file_and_scripts_and_a_drain_counts_as_weight_0() {
        let agent =
            "TCP_CHECK {\nagent_check\nconnect_port 8001\n}\nMISC_CHECK {\nmisc_path /x\nmisc_dynamic\n}";
        let real = |number| format!("real_server 10.1.0.{number} 80 {{\nweight 100\n{agent}\n}}\n");
        let file = virtual_server(&format!(
            "alpha\nquorum 150\n{}real_server 10.1.0.2 80 {{\nweight 100\n}}\nsorry_server 10.1.0.99 80",
            real(1)
        ));
        let mut state = started(&file);
        assert_eq!(
            lines(&state.apply([(0, 1, UP)])),
            ["RS 1 UP", "VS UP"],
            "an agent is up until it says more"
        );
        let granted = |percent, mode| CheckResult { agent: AgentWeight { percent, mode }, ..UP };
        let half = granted(50, AgentMode::Ready);
        assert_eq!((lines(&state.apply([(0, 0, half)])), servers(&state)), (vec![], "1=50 2=100".to_owned()));
        state.apply([(0, 1, CheckResult { weight_change: 300, ..UP })]);
        assert_eq!(servers(&state), "1=200 2=100");
        let drained = CheckResult { is_up: true, ..granted(50, AgentMode::Drain) };
        assert_eq!(
            (lines(&state.apply([(0, 0, drained)])), servers(&state)),
            (vec!["VS DOWN".to_owned()], "99=1".to_owned())
        );
        assert_eq!(
            (lines(&state.apply([(0, 0, half)])), servers(&state)),
            (vec!["VS UP".to_owned()], "1=200 2=100".to_owned())
        );
        // With another weight in the file the share is that of the new weight.
        let heavier = virtual_server(&format!("quorum 150\n{}", real(1).replace("100", "500")));
        let state = reloaded(state, &heavier).state;
        assert_eq!(servers(&state), "1=400");
        let CheckResult { is_up, weight_change, agent } = UP;
        let view =
            state.view(|_, _| CheckView { is_up, weight_change, agent, has_run: true, has_failed: false });
        let resumed = VirtualServerState::resume(heavier, &view, InitialNotices::Omitted, Arc::default());
        assert_eq!(servers(&resumed.state), "1=400");
    }

    #[test]
    fn a_new_or_edited_agent_of_a_server_that_is_down_keeps_it_down_no_longer_than_its_other_checks() {
        let file = |port| {
            let agent = format!("TCP_CHECK {{\nagent_check\nconnect_port {port}\n}}");
            virtual_server(&format!("real_server 10.1.0.1 80 {{\nTCP_CHECK {{\n}}\n{agent}\n}}"))
        };
        let mut state = started(&file(8001));
        state.apply([(0, 0, DOWN)]);
        let mut state = reloaded(state, &file(8002)).state;
        assert_eq!(servers(&state), "");
        assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        // What it has said is about the server, wherever it is asked.
        state.apply([(0, 1, DOWN)]);
        let state = reloaded(state, &file(8003)).state;
        assert_eq!(servers(&state), "");
    }

    #[test]
    fn without_a_sorry_server_a_lost_quorum_removes_no_destination() {
        let mut state = started(&pair("quorum 4"));
        assert_eq!(lines(&state.apply([(1, 0, DOWN)])), ["RS 2 DOWN", "VS DOWN"]);
        assert_eq!((servers(&state), state.has_quorum(), state.live_weight()), ("1=2".to_owned(), false, 2));
        assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN"]);
        assert_eq!(servers(&state), "");
        assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP"]);
        assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 2 UP", "VS UP"]);
        assert_eq!(servers(&state), "1=2 2=3");
    }

    #[test]
    fn a_sorry_server_serves_alone_from_the_loss_of_the_quorum_to_its_gain() {
        let mut state = started(&pair("quorum 3\nhysteresis 2\nsorry_server 10.1.0.9 80"));
        assert_eq!(servers(&state), "1=2 2=3");
        // The quorum is kept with a live weight of at least 1, and gained again with at least 5.
        assert_eq!(lines(&state.apply([(1, 0, DOWN)])), ["RS 2 DOWN"]);
        assert_eq!(servers(&state), "1=2");
        assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN", "VS DOWN"]);
        assert_eq!(
            (servers(&state), state.uses_sorry_server(), state.weight(0)),
            ("9=1".to_owned(), true, None)
        );
        assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 2 UP"]);
        assert_eq!(servers(&state), "9=1");
        assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        assert_eq!((servers(&state), state.uses_sorry_server()), ("1=2 2=3".to_owned(), false));
    }

    #[test]
    fn a_sorry_server_that_is_a_real_server_too_is_one_destination() {
        let mut state =
            started(&pair("quorum 4\ninhibit_on_failure\nsorry_server 10.1.0.1 80\nsorry_server_inhibit"));
        assert_eq!(servers(&state), "1=2 2=3");
        state.apply([(1, 0, DOWN)]);
        assert_eq!(servers(&state), "2=0 1=1");
        state.apply([(0, 0, DOWN)]);
        assert_eq!(servers(&state), "2=0 1=1");
        state.apply([(1, 0, UP)]);
        state.apply([(0, 0, UP)]);
        assert_eq!(servers(&state), "1=2 2=3");
    }

    #[test]
    fn in_a_group_a_sorry_server_without_a_port_equals_a_real_server_with_the_services_port() {
        let text = "virtual_server_group G {\n10.0.0.1 80\n10.0.0.2 81\n}\nvirtual_server group G {\nlvs_method DR\n\
                    protocol TCP\nalpha\ninhibit_on_failure\nsorry_server 10.1.0.1\nreal_server 10.1.0.1 80 {\nTCP_CHECK {\n}\n}\n}\n";
        let state = started(&read(text));
        let ports: Vec<_> = state
            .desired_services()
            .iter()
            .flat_map(|(_, service)| &service.destinations)
            .map(|(endpoint, options)| (endpoint.port, options.weight.0))
            .collect();
        assert_eq!(ports, [(80, 1), (81, 1)]);
    }

    #[test]
    fn at_the_start_the_quorum_causes_a_notice_and_servers_do_with_rs_init_notifies() {
        let notices = |before: &str, initial_notices| {
            lines(&VirtualServerState::start(pair(before), initial_notices, Arc::default()).1)
        };
        assert_eq!(notices("", InitialNotices::Omitted), ["VS UP"]);
        assert_eq!(notices("", InitialNotices::Sent), ["RS 1 UP", "RS 2 UP", "VS UP"]);
        assert!(notices("alpha", InitialNotices::Sent).is_empty());
        assert_eq!(notices("alpha\nsorry_server 10.1.0.9 80", InitialNotices::Sent), ["VS DOWN"]);
    }

    #[test]
    fn the_first_failure_of_a_server_that_starts_down_causes_one_notice() {
        let mut state = started(&pair("alpha"));
        assert_eq!(lines(&state.apply([(0, 0, DOWN)])), ["RS 1 DOWN"]);
        assert!(state.apply([(0, 0, DOWN)]).is_empty());
        let mut state = reloaded(state, &pair("alpha\nquorum 2")).state;
        assert!(state.apply([(0, 0, DOWN)]).is_empty());
        assert_eq!(lines(&state.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    }

    #[test]
    fn a_stop_causes_notices_only_with_omega_and_a_removal_always() {
        let state = started(&pair(""));
        assert!(state.clone().stop().is_empty());
        assert_eq!(lines(&state.remove()), ["RS 1 DOWN", "RS 2 DOWN", "VS DOWN"]);
        let mut state = started(&pair("omega"));
        state.apply([(0, 0, DOWN)]);
        assert_eq!(lines(&state.clone().stop()), ["RS 2 DOWN", "VS DOWN"]);
        state.apply([(1, 0, DOWN)]);
        assert!(state.stop().is_empty());
    }

    #[test]
    fn a_server_that_is_down_stays_down_over_a_reload_and_a_new_weight_applies_at_once() {
        let mut state = started(&pair("inhibit_on_failure"));
        state.apply([(0, 0, DOWN)]);
        let weights = |first, second| {
            let checked = "TCP_CHECK {\nretry 9\nalpha\n}\n}";
            virtual_server(&format!(
                "inhibit_on_failure\nreal_server 10.1.0.2 80 {{\nweight {second}\n{checked}\n\
                 real_server 10.1.0.1 80 {{\nweight {first}\n{checked}"
            ))
        };
        let Reloaded { mut state, notices, origins } = reloaded(state, &weights(7, 8));
        assert!(notices.is_empty());
        let kept = |server| vec![Origin::Kept { server, check: 0 }];
        assert_eq!(origins, [kept(1), kept(0)]);
        assert_eq!(servers(&state), "2=8 1=0");
        assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 1 UP"]);
        assert_eq!(servers(&state), "2=8 1=7");
        assert_eq!(servers(&reloaded(state, &weights(0, 1)).state), "2=1 1=0");
    }

    #[test]
    fn a_new_check_starts_with_its_servers_status_and_an_edited_one_brings_no_server_up_before_a_probe() {
        let file = |checks: &str| virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"));
        let check = |port: u16, lines: &str| format!("TCP_CHECK {{\nconnect_port {port}\n{lines}\n}}\n");
        let (one, two, edited) = (check(81, ""), check(82, "alpha"), check(83, ""));
        let both = file(&format!("{two}{one}"));
        // The server was up.
        let Reloaded { state, notices, origins } = reloaded(started(&file(&one)), &both);
        let kept = Origin::Kept { server: 0, check: 0 };
        assert_eq!((state.is_up(0), notices.len()), (true, 0));
        assert_eq!(origins, [[Origin::New(Status::Up), kept]]);
        // The server was down.
        let mut state = started(&file(&one));
        state.apply([(0, 0, DOWN)]);
        let Reloaded { state: mut other, notices, origins } = reloaded(state.clone(), &file(&edited));
        assert_eq!((other.is_up(0), notices.len()), (false, 0));
        assert_eq!(origins, [[Origin::New(Status::Down)]]);
        assert!(other.apply([(0, 0, DOWN)]).is_empty(), "its notice was sent before");
        assert_eq!(lines(&other.apply([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        let Reloaded { mut state, origins, .. } = reloaded(state, &both);
        assert_eq!(origins, [[Origin::New(Status::Down), kept]]);
        state.apply([(0, 1, UP)]);
        assert!(!state.is_up(0));
        // The failed check is removed; no other check has failed.
        let Reloaded { state, notices, .. } = reloaded(state, &file(&one));
        assert_eq!((state.is_up(0), lines(&notices)), (true, vec!["RS 1 UP".to_owned(), "VS UP".to_owned()]));
    }

    #[test]
    fn checks_of_equal_identity_are_kept_in_their_order_whatever_their_timing() {
        let checks = |lines: [&str; 4]| {
            let checks = lines.map(|line| format!("TCP_CHECK {{\n{line}\n}}\n")).concat();
            virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"))
        };
        let state = started(&checks(["", "connect_port 81", "", "fwmark 3"]));
        let kept = |check| Origin::Kept { server: 0, check };
        let again = checks(["retry 3", "delay_loop 3", "fwmark 3\nconnect_timeout 1", ""]);
        assert_eq!(reloaded(state, &again).origins, [[kept(0), kept(2), kept(3), Origin::New(Status::Up)]]);
    }

    #[test]
    fn an_identity_covers_the_probes_settings_and_not_its_protocol_version_recovery_or_user() {
        let identity = |checker: &str| {
            let file = virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checker}\n}}"));
            file.real_servers[0].checks[0].probe.identity()
        };
        let url = "url {\npath /a\n}";
        let http = identity(&format!("HTTP_GET {{\n{url}\n}}"));
        assert_eq!(http, identity(&format!("HTTP_GET {{\nhttp_protocol 1.1\nfast_recovery\n{url}\n}}")));
        assert_ne!(http, identity("HTTP_GET {\nurl {\npath /b\n}\n}"));
        assert_ne!(http, identity(&format!("SSL_GET {{\n{url}\n}}")));
        assert_ne!(http, identity(&format!("HTTP_GET {{\nvirtualhost a.example\n{url}\n}}")));
        assert_eq!(identity("UDP_CHECK {\npayload 01\n}"), identity("UDP_CHECK {\nrequire_reply\n}"));
        assert_ne!(identity("UDP_CHECK {\n}"), identity("UDP_CHECK {\nbindto 10.1.0.8\n}"));
        let script = |lines: &str| identity(&format!("MISC_CHECK {{\nmisc_path \"/x a\"\n{lines}\n}}"));
        assert_eq!(script(""), script("user nobody"));
        assert_ne!(script(""), script("misc_dynamic"));
    }

    #[test]
    fn a_reload_computes_the_quorum_by_the_new_file_and_uses_its_scripts() {
        let state = started(&pair("quorum 2\nquorum_down /x/old"));
        let Reloaded { state, notices, .. } =
            reloaded(state, &pair("quorum 5\nhysteresis 4\nquorum_up /x/up\nquorum_down /x/new"));
        assert!(notices.is_empty(), "5 - 4 is enough to keep the quorum");
        let mut state = state;
        state.apply([(0, 0, DOWN)]);
        let Reloaded { state, notices, .. } = reloaded(state, &pair("quorum 5\nquorum_down /x/new"));
        assert_eq!(lines(&notices), ["VS DOWN"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/new"));
        let Reloaded { notices, .. } = reloaded(state, &pair("quorum 3\nquorum_up /x/up"));
        assert_eq!(lines(&notices), ["VS UP"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/up"));
    }

    #[test]
    fn replaced_servers_cause_notices_in_order_and_the_quorum_only_if_it_is_lost() {
        let file = |first: u8, lines: &str| {
            virtual_server(&format!(
                "{lines}\nsorry_server 10.1.0.99 80\nreal_server 10.1.0.{first} 80 {{\nnotify_down /x/{first}\nTCP_CHECK {{\n}}\n}}\n\
                 real_server 10.1.0.{} 80 {{\nTCP_CHECK {{\n}}\n}}",
                first + 1
            ))
        };
        let Reloaded { state, notices, origins } = reloaded(started(&file(1, "")), &file(3, ""));
        assert_eq!(lines(&notices), ["RS 1 DOWN", "RS 2 DOWN"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/1"));
        assert_eq!((servers(&state).as_str(), state.has_quorum()), ("3=1 4=1", true));
        assert_eq!(origins, [[Origin::New(Status::Up)], [Origin::New(Status::Up)]]);
        let Reloaded { mut state, notices, .. } = reloaded(state, &file(5, "alpha"));
        assert_eq!(lines(&notices), ["RS 3 DOWN", "RS 4 DOWN", "VS DOWN"]);
        assert_eq!(servers(&state), "99=1");
        assert_eq!(lines(&state.apply([(1, 0, UP)])), ["RS 6 UP", "VS UP"]);
        assert_eq!(servers(&state), "6=1");
    }

    #[test]
    fn a_reload_that_adds_or_removes_the_sorry_server_replaces_or_restores_the_real_servers() {
        let mut state = started(&pair("quorum 4"));
        state.apply([(1, 0, DOWN)]);
        let state = reloaded(state, &pair("quorum 4\nsorry_server 10.1.0.9 80")).state;
        assert_eq!(servers(&state), "9=1");
        let state = reloaded(state, &pair("quorum 4\nsorry_server 10.1.0.8 80")).state;
        assert_eq!(servers(&state), "8=1");
        let state = reloaded(state, &pair("quorum 4")).state;
        assert_eq!(servers(&state), "1=2");
    }

    #[test]
    fn lines_for_fifos_name_addresses_marks_and_groups_as_keepalived_does() {
        let notices = |head: &str| {
            let text = format!(
                "virtual_server_group G {{\n10.0.0.7 80\nfwmark 9\n}}\nvirtual_server group G {{\nprotocol TCP\n\
                 real_server 10.1.0.5 80 {{\n}}\n}}\n{head} {{\nlvs_method TUN\nreal_server 2001:db8::5 80 {{\n}}\n}}\n"
            );
            let file = configuration(&text).virtual_servers.swap_remove(1);
            let (_, notices) =
                VirtualServerState::start(Arc::new(file), InitialNotices::Sent, Arc::default());
            notices.iter().map(Notice::line).collect::<Vec<_>>()
        };
        assert_eq!(
            notices("virtual_server 2001:db8::1 53"),
            ["RS [2001:db8::5]:udp:53 [2001:db8::1]:udp:53 UP", "VS [2001:db8::1]:udp:53 UP"]
        );
        assert_eq!(notices("virtual_server fwmark 7"), ["RS [2001:db8::5]:none:0 FWM 7 UP", "VS FWM 7 UP"]);
        assert_eq!(notices("virtual_server group G"), ["RS [2001:db8::5]:udp:80 [G]:1 UP", "VS [G]:1 UP"]);
    }

    #[test]
    fn notices_for_the_log_are_sentences() {
        let mut state = started(&pair("quorum 4"));
        let notices: Vec<_> = [DOWN, UP].map(|result| state.apply([(1, 0, result)])).concat();
        let notices: Vec<_> = notices.iter().map(ToString::to_string).collect();
        assert_eq!(
            notices,
            [
                "10.1.0.2:80 of 10.0.0.1 80 is down",
                "10.0.0.1 80 has no quorum",
                "10.1.0.2:80 of 10.0.0.1 80 is up",
                "10.0.0.1 80 has its quorum"
            ]
        );
    }

    #[test]
    fn the_identity_of_a_virtual_server_is_its_service_or_its_group_and_protocol() {
        let identities = |text: &str| -> Vec<String> {
            let servers = configuration(text).virtual_servers;
            servers.iter().map(VirtualServer::identity).collect()
        };
        let server = "{\nreal_server 10.1.0.1 80 {\n}\n}\n";
        let groups = |entries: &str, protocols: [&str; 2]| {
            let servers = protocols.map(|one| {
                format!("virtual_server group G {{\nprotocol {one}\nreal_server 10.1.0.1 80 {{\n}}\n}}\n")
            });
            identities(&format!("virtual_server_group G {{\n{entries}\n}}\n{}", servers.concat()))
        };
        let mut exchanged = groups("10.0.0.2 80", ["UDP", "TCP"]);
        exchanged.reverse();
        assert_eq!(groups("10.0.0.1 80\n10.0.0.2 80", ["TCP", "UDP"]), exchanged);
        let [one, other] = ["2001:db8::1", "2001:DB8:0::1"].map(|addr| {
            identities(&format!("virtual_server {addr} 80 {}", server.replace("10.1.0.1", "2001:db8::5")))
        });
        assert_eq!((one.len(), &one), (1, &other));
        let marks = identities(&format!("virtual_server fwmark 1 {server}virtual_server fwmark 2 {server}"));
        assert_eq!(marks.iter().collect::<HashSet<_>>().len(), 2);
    }

    /// A random configuration.
    #[derive(Debug, Clone)]
    struct File {
        quorum: u32,
        hysteresis: u32,
        sorry: Option<(u8, bool)>,
        /// For each: last part of the address, weight, `inhibit_on_failure`, checks.
        servers: Vec<(u8, u32, bool, Checks)>,
    }

    /// For each: port, and whether it starts down (`alpha`).
    type Checks = Vec<(u16, bool)>;

    impl File {
        fn virtual_server(&self) -> Arc<VirtualServer> {
            let mut text = format!("quorum {}\nhysteresis {}\n", self.quorum, self.hysteresis);
            if let Some((last, inhibit)) = self.sorry {
                let inhibit = if inhibit { "sorry_server_inhibit\n" } else { "" };
                text += &format!("sorry_server 10.1.0.{last} 80\n{inhibit}");
            }
            let on = |is_on: &bool| if *is_on { "on" } else { "off" };
            for (last, weight, inhibit, checks) in &self.servers {
                let inhibit = on(inhibit);
                text += &format!(
                    "real_server 10.1.0.{last} 80 {{\nweight {weight}\ninhibit_on_failure {inhibit}\n"
                );
                for (port, alpha) in checks {
                    text += &format!("TCP_CHECK {{\nconnect_port {port}\nalpha {}\n}}\n", on(alpha));
                }
                text += "}\n";
            }
            virtual_server(&text)
        }
    }

    fn files() -> impl Strategy<Value = File> {
        let checks = vec((80..83_u16, any::<bool>()), 0..3);
        let server = (1..5_u8, 0..4_u32, any::<bool>(), checks);
        let sorry = proptest::option::of((prop::sample::select(vec![1, 2, 98, 99]), any::<bool>()));
        (1..6_u32, 0..4_u32, sorry, vec(server, 1..5)).prop_map(|(quorum, hysteresis, sorry, mut servers)| {
            let mut known = HashSet::new();
            servers.retain(|server| known.insert(server.0));
            File { quorum, hysteresis, sorry, servers }
        })
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// A result. The numbers are taken modulo the numbers of real servers and checks.
        Take(usize, usize, CheckResult),
        Reload(File),
        /// A reload of the same configuration.
        Again,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let result =
            (any::<bool>(), prop_oneof![3 => Just(0), 1 => -4..4_i64]).prop_map(|(is_up, change)| {
                CheckResult { is_up, weight_change: if is_up { change } else { 0 }, ..UP }
            });
        let take = (0..12_usize, 0..6_usize, result)
            .prop_map(|(server, check, result)| Step::Take(server, check, result));
        vec(prop_oneof![12 => take, 1 => files().prop_map(Step::Reload), 1 => Just(Step::Again)], 0..40)
    }

    /// A model of [`VirtualServerState`] that works as keepalived does: it changes the table step by step.
    struct Naive {
        file: Arc<VirtualServer>,
        servers: Vec<NaiveServer>,
        has_quorum: bool,
        table: BTreeMap<Endpoint, u32>,
        notices: Vec<String>,
    }

    struct NaiveServer {
        checks: Vec<(Probe, bool, i64)>,
        is_alive: bool,
        was_reported: bool,
    }

    impl Naive {
        fn begin(file: &Arc<VirtualServer>) -> Self {
            let mut naive = Self {
                file: Arc::clone(file),
                servers: Vec::new(),
                has_quorum: false,
                table: BTreeMap::new(),
                notices: Vec::new(),
            };
            for real in &file.real_servers {
                let checks: Vec<_> = real
                    .checks
                    .iter()
                    .map(|check| (check.probe.clone(), !check.timing.begins_down, 0))
                    .collect();
                let is_alive = checks.iter().all(|check| check.1);
                naive.servers.push(NaiveServer { checks, is_alive, was_reported: false });
            }
            naive.program();
            naive.update_quorum();
            if !naive.has_quorum && file.sorry_server.is_some() {
                naive.displace();
                naive.notices.push("VS DOWN".to_owned());
            }
            naive
        }

        fn say(&mut self, server: usize, what: &str) {
            let addr = self.file.real_servers[server].endpoint.addr.to_string();
            self.notices.push(format!("RS {} {what}", addr.rsplit('.').next().unwrap()));
        }

        fn weight(&self, server: usize) -> u32 {
            let changes: i64 = self.servers[server].checks.iter().map(|check| check.2).sum();
            (i64::from(self.file.real_servers[server].options.weight.0) + changes).max(0) as u32
        }

        fn is_displaced(&self) -> bool {
            self.file.sorry_server.is_some() && !self.has_quorum
        }

        fn add(&mut self, server: usize) {
            self.table.insert(self.file.real_servers[server].endpoint, self.weight(server));
        }

        fn take_out(&mut self, server: usize) {
            let real = &self.file.real_servers[server];
            match real.inhibit_on_failure {
                true => self.table.insert(real.endpoint, 0),
                false => self.table.remove(&real.endpoint),
            };
        }

        /// Fills the table as it is while the real servers serve.
        fn program(&mut self) {
            self.table.clear();
            for server in 0..self.servers.len() {
                if self.servers[server].is_alive { self.add(server) } else { self.take_out(server) }
            }
            if let Some(sorry) = self.file.sorry_server.as_ref().filter(|sorry| sorry.inhibit) {
                self.table.entry(sorry.endpoint).or_insert(0);
            }
        }

        fn displace(&mut self) {
            (0..self.servers.len()).for_each(|server| self.take_out(server));
            let sorry = self.file.sorry_server.as_ref().unwrap().endpoint;
            self.table.insert(sorry, 1);
        }

        fn update_quorum(&mut self) {
            let alive = (0..self.servers.len()).filter(|server| self.servers[*server].is_alive);
            let live: i64 = alive.map(|server| i64::from(self.weight(server))).sum();
            let (quorum, hysteresis) = (i64::from(self.file.quorum), i64::from(self.file.hysteresis));
            if self.has_quorum && (live == 0 || live < quorum - hysteresis) {
                self.has_quorum = false;
                if self.file.sorry_server.is_some() {
                    self.displace();
                }
                self.notices.push("VS DOWN".to_owned());
            } else if !self.has_quorum && live > 0 && live >= quorum + hysteresis {
                self.has_quorum = true;
                self.program();
                self.notices.push("VS UP".to_owned());
            }
        }

        fn take(&mut self, server: usize, check: usize, result: CheckResult) {
            let one = &mut self.servers[server];
            (one.checks[check].1, one.checks[check].2) = (result.is_up, result.weight_change);
            let failed = one.checks.iter().filter(|check| !check.1).count();
            match (one.is_alive, failed == 0) {
                (true, false) => {
                    (one.is_alive, one.was_reported) = (false, true);
                    if !self.is_displaced() {
                        self.take_out(server);
                    }
                    self.say(server, "DOWN");
                }
                (false, true) => {
                    (one.is_alive, one.was_reported) = (true, false);
                    if !self.is_displaced() {
                        self.add(server);
                    }
                    self.say(server, "UP");
                }
                (true, true) => {
                    if !self.is_displaced() {
                        self.add(server);
                    }
                }
                (false, false) => {
                    if !result.is_up && !one.was_reported {
                        one.was_reported = true;
                        self.say(server, "DOWN");
                    }
                }
            }
            self.update_quorum();
        }

        fn reload(&mut self, file: &Arc<VirtualServer>) {
            let old = Arc::clone(&self.file);
            let mut before: Vec<_> = self.servers.drain(..).map(Some).collect();
            for (server, real) in old.real_servers.iter().enumerate() {
                let is_gone = file.real_servers.iter().all(|new| new.endpoint != real.endpoint);
                if is_gone && before[server].take().is_some_and(|server| server.is_alive) {
                    self.say(server, "DOWN");
                }
            }
            self.file = Arc::clone(file);
            for (server, real) in file.real_servers.iter().enumerate() {
                let place = old.real_servers.iter().position(|one| one.endpoint == real.endpoint);
                let (was_there, was_alive, was_reported, mut checks) =
                    match place.and_then(|old| before[old].take()) {
                        Some(old) => (true, old.is_alive, old.was_reported, old.checks),
                        None => (false, false, false, Vec::new()),
                    };
                let now = real.checks.iter().map(|check| {
                    match checks.iter().position(|old| old.0 == check.probe) {
                        Some(same) => checks.remove(same),
                        None if was_there => (check.probe.clone(), was_alive, 0),
                        None => (check.probe.clone(), !check.timing.begins_down, 0),
                    }
                });
                let checks: Vec<_> = now.collect();
                let is_alive = checks.iter().all(|check| check.1);
                self.servers.push(NaiveServer { checks, is_alive, was_reported: was_reported && !is_alive });
                if is_alive && was_there && !was_alive {
                    self.say(server, "UP");
                }
            }
            self.program();
            if self.is_displaced() {
                self.displace();
            }
            self.update_quorum();
        }
    }

    /// The destinations of the only service, with their weights.
    fn destinations(state: &VirtualServerState) -> BTreeMap<Endpoint, u32> {
        let (_, service) = state.desired_services().swap_remove(0);
        let count = service.destinations.len();
        let table: BTreeMap<_, _> = service
            .destinations
            .into_iter()
            .map(|(endpoint, options)| (endpoint, options.weight.0))
            .collect();
        assert_eq!(table.len(), count, "no endpoint occurs twice");
        table
    }

    /// Asserts what holds in every state.
    fn assert_sound(state: &VirtualServerState) {
        let file = state.virtual_server();
        let table = destinations(state);
        let sorry = file.sorry_server.as_ref().map(|sorry| sorry.endpoint);
        for (server, real) in file.real_servers.iter().enumerate() {
            let is_other = Some(real.endpoint) != sorry;
            match table.get(&real.endpoint) {
                Some(weight) if is_other => {
                    assert!(*weight == 0 || (state.is_up(server) && !state.uses_sorry_server()), "{table:?}");
                    assert_eq!(Some(Weight(*weight)), state.weight(server));
                }
                None => {
                    assert!(!real.inhibit_on_failure && (!state.is_up(server) || state.uses_sorry_server()))
                }
                Some(_) => {}
            }
        }
        let (live, quorum, hysteresis) =
            (state.live_weight(), u64::from(file.quorum), u64::from(file.hysteresis));
        match state.has_quorum() {
            true => assert!(live > 0 && live + hysteresis >= quorum),
            false => assert!(live == 0 || live < quorum + hysteresis),
        }
        if state.uses_sorry_server() {
            let serving: Vec<_> = table.iter().filter(|(_, weight)| **weight > 0).collect();
            assert_eq!(serving, [(&sorry.unwrap(), &1)]);
        }
    }

    proptest! {
        #[test]
        fn after_any_history_services_and_notices_equal_those_of_the_step_by_step_model(
            first in files(),
            steps in steps(),
        ) {
            let mut file = first.virtual_server();
            let (mut state, notices) = VirtualServerState::start(Arc::clone(&file), InitialNotices::Omitted, Arc::default());
            let mut naive = Naive::begin(&file);
            let mut notices = lines(&notices);
            for step in steps {
                match step {
                    Step::Take(server, check, result) => {
                        let server = server % file.real_servers.len();
                        let checks = file.real_servers[server].checks.len();
                        if checks == 0 {
                            continue;
                        }
                        notices.extend(lines(&state.apply([(server, check % checks, result)])));
                        naive.take(server, check % checks, result);
                    }
                    Step::Reload(new) => {
                        file = new.virtual_server();
                        let reloaded = reloaded(state, &file);
                        notices.extend(lines(&reloaded.notices));
                        state = reloaded.state;
                        naive.reload(&file);
                    }
                    Step::Again => {
                        let before = state.clone();
                        let Reloaded { state: after, notices, origins } = reloaded(state, &file);
                        prop_assert!(notices.is_empty());
                        prop_assert_eq!(&after, &before);
                        for (server, origins) in origins.iter().enumerate() {
                            for (check, origin) in origins.iter().enumerate() {
                                prop_assert_eq!(*origin, Origin::Kept { server, check });
                            }
                        }
                        state = after;
                    }
                }
                prop_assert_eq!(destinations(&state), naive.table.clone());
                prop_assert_eq!(&notices, &naive.notices);
                assert_sound(&state);
            }
            let mut quorums = notices.iter().filter(|line| line.starts_with("VS")).collect::<Vec<_>>();
            let count = quorums.len();
            quorums.dedup();
            prop_assert_eq!(quorums.len(), count, "gain and loss of the quorum alternate: {:?}", notices);
        }

        #[test]
        fn without_hysteresis_the_services_depend_on_the_current_check_results_alone(
            file in files(),
            steps in steps(),
        ) {
            let file = File { hysteresis: 0, ..file }.virtual_server();
            let mut state = started(&file);
            let mut last = BTreeMap::new();
            for step in steps {
                let Step::Take(server, check, result) = step else { continue };
                let server = server % file.real_servers.len();
                if let Some(check) = check.checked_rem(file.real_servers[server].checks.len()) {
                    state.apply([(server, check, result)]);
                    last.insert((server, check), result);
                }
            }
            let mut other = started(&file);
            for ((server, check), result) in last.into_iter().rev() {
                other.apply([(server, check, result)]);
            }
            prop_assert_eq!(state.desired_services(), other.desired_services());
        }
    }
}
