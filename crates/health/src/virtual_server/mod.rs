//! The state of one virtual server: its real servers, its quorum, the services that it wants, and the notices of
//! changes (`notice.rs`).
//!
//! Input: the results of checks. Pure, without a clock. A real server is up while all of its checks are up. Its status,
//! its weight and the services are computed from the check results each time, so they cannot drift from these results.
//! The only other state is whether the quorum is met, because hysteresis makes that depend on the past. Cost of a
//! change: a pass over the virtual server's real servers and checks. Source: keepalived-behaviour, sections 3, 4.4 and
//! 5.

mod notice;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::reconcile::OwnedService;
use xvs_model::health_checks::check::{Check, Probe};
use xvs_model::health_checks::fault::Place;
use xvs_model::health_checks::virtual_server::{RealServer, VirtualServer};
use xvs_model::objects::disabled::DisabledServers;
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

pub use self::notice::{Notice, Status};
use crate::agent::AgentWeight;
use crate::view::{CheckResult, CheckView, RealServerView, VirtualServerView, probe_id};

/// A virtual server with the results of its checks.
#[derive(Debug, Clone, PartialEq)]
pub struct VirtualServerState {
    virtual_server: Arc<VirtualServer>,
    /// One for each real server, in the order of the configuration.
    servers: Vec<Server>,
    has_quorum: bool,
    disabled: Arc<DisabledServers>,
}

/// A real server with the results of its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    /// One for each check, in the order of the configuration.
    checks: Vec<CheckResult>,
    /// Whether the last notice about this real server reported it down.
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

/// The result of a start or a reload of a virtual server.
#[derive(Debug)]
pub struct Reloaded {
    /// The new state.
    pub state: VirtualServerState,
    /// Notices about the changes that were made, in order.
    pub notices: Vec<Notice>,
    /// The origin of each check of each real server, in the order of the new configuration.
    pub origins: Vec<Vec<Origin>>,
}

/// The origin of a check's state after a start or a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A check in the old configuration with the same [identity](Probe::identity); its timing may differ.
    Kept {
        /// Index of the real server in the old configuration.
        server: usize,
        /// Index of the check in that real server.
        check: usize,
    },
    /// The check is new and starts with this status.
    New(Status),
    /// The check continues with the state from an earlier process.
    Resumed(CheckView),
}

/// A real server as it was before a reload or a restart, with its current checks.
struct KnownServer {
    is_up: bool,
    is_reported_down: bool,
    checks: Vec<(Origin, CheckResult)>,
}

impl KnownServer {
    /// One that was not there.
    fn new(server: &RealServer) -> Self {
        let checks = server.checks.iter().map(|check| {
            let status = Status::at_first(&check.timing);
            (Origin::New(status), status.into())
        });
        Self { is_up: false, is_reported_down: false, checks: checks.collect() }
    }
}

impl Server {
    fn is_up(&self) -> bool {
        self.checks.iter().all(|result| result.is_up)
    }
}

impl VirtualServerState {
    /// The state before any check has run, and its notices. `disabled`: the disabled real servers.
    pub fn start(
        virtual_server: Arc<VirtualServer>,
        initial_notices: InitialNotices,
        disabled: Arc<DisabledServers>,
    ) -> Reloaded {
        let state = Self { virtual_server, servers: Vec::new(), has_quorum: false, disabled };
        let mut started = state.continued(initial_notices, |_| None);
        if started.state.uses_sorry_server() {
            started.notices.push(started.state.notice(None, Status::Down));
        }
        started
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
            // A real server that starts down causes a notice with its first failure, too.
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
    /// real server, except for an agent's. Editing a check therefore never brings a failed server back without a
    /// successful probe.
    pub fn reload(self, virtual_server: Arc<VirtualServer>, initial_notices: InitialNotices) -> Reloaded {
        let known: HashSet<_> = virtual_server.real_servers.iter().map(|server| server.endpoint).collect();
        let before = &self.virtual_server.real_servers;
        let mut notices: Vec<_> = (0..before.len())
            .filter(|old| !known.contains(&before[*old].endpoint) && self.is_up(*old))
            .map(|old| self.notice(Some(old), Status::Down))
            .collect();
        let index: HashMap<_, _> = before.iter().enumerate().map(|(old, one)| (one.endpoint, old)).collect();
        let disabled = self.disabled.clone();
        let state = Self { virtual_server, servers: Vec::new(), has_quorum: self.has_quorum, disabled };
        let mut reloaded = state.continued(initial_notices, |server| {
            let old = *index.get(&server.endpoint)?;
            Some(KnownServer {
                is_up: self.is_up(old),
                is_reported_down: self.servers[old].is_reported_down,
                checks: self.origins(old, &server.checks),
            })
        });
        notices.append(&mut reloaded.notices);
        Reloaded { notices, ..reloaded }
    }

    /// The state after a restart, from the view of an earlier process. As with [`Self::reload`], a check that existed
    /// keeps its state, and there are notices only about changes in the file; but there are none about real servers
    /// that it no longer contains, as after a restart without a view.
    pub fn resume(
        virtual_server: Arc<VirtualServer>,
        former: &VirtualServerView,
        initial_notices: InitialNotices,
        disabled: Arc<DisabledServers>,
    ) -> Reloaded {
        let index: HashMap<_, _> = former.real_servers.iter().map(|one| (one.endpoint, one)).collect();
        let state = Self { virtual_server, servers: Vec::new(), has_quorum: former.has_quorum, disabled };
        state.continued(initial_notices, |server| {
            let old = *index.get(&server.endpoint)?;
            let views: HashMap<u64, CheckView> = old.checks.iter().copied().collect();
            let checks = server.checks.iter().map(|check| match views.get(&probe_id(&check.probe)) {
                Some(view) => (Origin::Resumed(*view), view.result),
                None => {
                    let status = Status::of_new(check, old.is_up);
                    (Origin::New(status), status.into())
                }
            });
            Some(KnownServer {
                is_up: old.is_up,
                is_reported_down: old.is_reported_down,
                checks: checks.collect(),
            })
        })
    }

    /// Adds the real servers in the file to a state that has none. They may be known from before.
    fn continued(
        mut self,
        initial_notices: InitialNotices,
        known: impl Fn(&RealServer) -> Option<KnownServer>,
    ) -> Reloaded {
        let mut notices = Vec::new();
        let mut origins = Vec::new();
        let file = Arc::clone(&self.virtual_server);
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
                notices.push(self.notice(Some(place), Status::Up));
            }
            self.servers.push(now);
            origins.push(from);
        }
        notices.extend(self.update_quorum());
        Reloaded { state: self, notices, origins }
    }

    /// The view with which a later process begins. `check` returns the view of a check, by the indices of its real
    /// server and of the check.
    pub fn view(&self, check: impl Fn(usize, usize) -> CheckView) -> VirtualServerView {
        let real_servers = self.virtual_server.real_servers.iter().zip(&self.servers).enumerate().map(
            |(server, (file, now))| {
                let checks = file.checks.iter().zip(&now.checks).enumerate();
                RealServerView {
                    endpoint: file.endpoint,
                    is_up: now.is_up(),
                    is_reported_down: now.is_reported_down,
                    checks: checks
                        .map(|(index, (file, now))| {
                            (probe_id(&file.probe), CheckView { result: *now, ..check(server, index) })
                        })
                        .collect(),
                }
            },
        );
        VirtualServerView {
            services: self.virtual_server.services.iter().map(|(key, _)| *key).collect(),
            has_quorum: self.has_quorum,
            real_servers: real_servers.collect(),
        }
    }

    /// Replaces the disabled real servers. Returns a notice if this gains or loses the quorum.
    pub fn set_disabled(&mut self, disabled: Arc<DisabledServers>) -> Option<Notice> {
        self.disabled = disabled;
        self.update_quorum()
    }

    /// The notices when the daemon stops: none, unless the file contains `omega`.
    pub fn stop(self) -> Vec<Notice> {
        if self.virtual_server.omega { self.remove() } else { Vec::new() }
    }

    /// The notices when the virtual server is removed from the file.
    pub fn remove(self) -> Vec<Notice> {
        let lost = self.has_quorum.then(|| self.notice(None, Status::Down));
        (0..self.servers.len())
            .filter(|server| self.is_up(*server))
            .map(|server| self.notice(Some(server), Status::Down))
            .chain(lost)
            .collect()
    }

    /// The services that the virtual server wants now, in the order of the file.
    pub fn desired_services(&self) -> Vec<(ServiceKey, OwnedService)> {
        let VirtualServer { services, limit, .. } = &*self.virtual_server;
        let mut desired = Vec::new();
        for (key, options) in services {
            let mut seen = HashSet::new();
            let destinations = self
                .destinations(*key)
                .into_iter()
                .map(|one| (one.endpoint, one.options))
                .filter(|(endpoint, _)| seen.insert(*endpoint))
                .collect();
            desired.push((*key, OwnedService { options: options.clone(), destinations, limit: *limit }));
        }
        desired
    }

    /// The configuration of the virtual server.
    pub fn virtual_server(&self) -> &Arc<VirtualServer> {
        &self.virtual_server
    }

    /// Whether the quorum is met, hysteresis included.
    pub fn has_quorum(&self) -> bool {
        self.has_quorum
    }

    /// Sum of the weights of the real servers that are up and not disabled.
    pub fn live_weight(&self) -> u64 {
        (0..self.servers.len())
            .filter(|server| self.is_up(*server) && !self.is_disabled(*server))
            .map(|server| u64::from(self.effective_weight(server).0))
            .sum()
    }

    /// Whether the real server with this index is up. A real server without checks is always up.
    pub fn is_up(&self, server: usize) -> bool {
        self.servers[server].is_up()
    }

    /// Whether an operator has disabled the real server with this index, in the first of the services.
    pub(crate) fn is_disabled(&self, server: usize) -> bool {
        let file = &self.virtual_server;
        let Some((key, _)) = file.services.first().filter(|_| !self.disabled.is_empty()) else {
            return false;
        };
        let server = &file.real_servers[server];
        self.disabled.includes(*key, endpoint_in_service(server.endpoint, *key, server.options.method))
    }

    /// The weight in the services of the real server with this index; `None` if it is currently not a destination.
    pub fn weight(&self, server: usize) -> Option<Weight> {
        let file = &self.virtual_server;
        if self.is_up(server) && (self.has_quorum || file.sorry_server.is_none()) {
            Some(self.effective_weight(server))
        } else {
            file.real_servers[server].inhibit_on_failure.then_some(Weight(0))
        }
    }

    /// Whether the sorry server serves now.
    pub fn uses_sorry_server(&self) -> bool {
        !self.has_quorum && self.virtual_server.sorry_server.is_some()
    }

    /// The current destinations of a service. Several may have the same endpoint; the first of them is used.
    pub(crate) fn destinations(&self, key: ServiceKey) -> Vec<ServiceDestination<'_>> {
        let file = &self.virtual_server;
        let mut servers: Vec<_> = file
            .real_servers
            .iter()
            .enumerate()
            .filter_map(|(server, one)| {
                Some(ServiceDestination::new(
                    &one.place,
                    one.endpoint,
                    &one.options,
                    self.weight(server)?,
                    key,
                ))
            })
            .collect();
        if let Some(sorry) = file.sorry_server.as_ref().filter(|sorry| !self.has_quorum || sorry.inhibit) {
            let weight = Weight(u32::from(!self.has_quorum));
            let sorry = ServiceDestination::new(&sorry.place, sorry.endpoint, &sorry.options, weight, key);
            // A sorry server that is also a real server is one destination: the one that serves.
            if !self.has_quorum {
                servers.retain(|one| one.endpoint != sorry.endpoint);
            }
            if servers.iter().all(|one| one.endpoint != sorry.endpoint) {
                servers.push(sorry);
            }
        }
        servers
    }

    /// The configured weight plus the weight changes of the checks, limited to the range of a weight, and of that the
    /// share that agents grant.
    fn effective_weight(&self, server: usize) -> Weight {
        let configured = i64::from(self.virtual_server.real_servers[server].options.weight.0);
        let checks = &self.servers[server].checks;
        let changed = checks
            .iter()
            .map(|result| result.weight_change)
            .fold(configured, i64::saturating_add)
            .clamp(0, i64::from(Weight::MAX.0)) as u32;
        checks.iter().fold(Weight(changed), |weight, result| result.agent.of(weight))
    }

    /// The origins of `checks`, the new checks of the real server whose old index is `server`.
    fn origins(&self, server: usize, checks: &[Check]) -> Vec<(Origin, CheckResult)> {
        let mut known: HashMap<Probe, Vec<usize>> = HashMap::new();
        for (index, check) in self.virtual_server.real_servers[server].checks.iter().enumerate().rev() {
            known.entry(check.probe.identity()).or_default().push(index);
        }
        checks
            .iter()
            .map(|check| match known.get_mut(&check.probe.identity()).and_then(Vec::pop) {
                Some(check) => (Origin::Kept { server, check }, self.servers[server].checks[check]),
                None => {
                    let status = Status::of_new(check, self.is_up(server));
                    (Origin::New(status), status.into())
                }
            })
            .collect()
    }

    /// Compares the live weight with the quorum. Returns a notice if the quorum was gained or lost.
    fn update_quorum(&mut self) -> Option<Notice> {
        let live = self.live_weight();
        let [quorum, hysteresis] =
            [self.virtual_server.quorum, self.virtual_server.hysteresis].map(u64::from);
        let needed = if self.has_quorum { quorum.saturating_sub(hysteresis) } else { quorum + hysteresis };
        let has_quorum = live > 0 && live >= needed;
        let had_quorum = std::mem::replace(&mut self.has_quorum, has_quorum);
        (had_quorum != has_quorum).then(|| self.notice(None, has_quorum.into()))
    }

    fn notice(&self, server: Option<usize>, status: Status) -> Notice {
        Notice { virtual_server: Arc::clone(&self.virtual_server), server, status }
    }
}

impl From<Status> for CheckResult {
    fn from(status: Status) -> Self {
        Self { is_up: status == Status::Up, weight_change: 0, agent: AgentWeight::default() }
    }
}

/// A real server or sorry server as a destination of one service.
pub(crate) struct ServiceDestination<'a> {
    /// The position in the file.
    pub(crate) place: &'a Place,
    /// The endpoint in the service.
    pub(crate) endpoint: Endpoint,
    /// The options, with the current weight.
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
