//! One virtual server: which real servers are up, whether it has its quorum, what its services have, and who is told.
//!
//! Told of what checks have come to; pure, without a clock. A server is up while all of its checks are; whether it is, its
//! weight and the table are worked out anew from them each time, so that nothing can drift. What is kept beside them is
//! whether there is a quorum, which hysteresis lets depend on what was before. Costs what the virtual server has. Source:
//! keepalived's behaviour as it is written down (sections 3, 4.4 and 5). Not here: answers of a check (`course.rs`), and
//! carrying any of it out.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::control::GovernedService;
use crate::keepalived::checks::{Check, Probe, Timing};
use crate::keepalived::reader::Place;
use crate::keepalived::services::VirtualServer;
use crate::keepalived::values::Script;
use crate::state::DestinationOptions;

/// A virtual server as its checks have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    virtual_server: Arc<VirtualServer>,
    /// Of each real server, in its order.
    servers: Vec<Server>,
    is_well: bool,
}

/// What a check has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it passes.
    pub is_up: bool,
    /// What it adds to its server's weight; 0 while it does not pass.
    pub weight_change: i64,
}

/// What a server or a check is, or counts as while that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Well enough to serve; of a virtual server: it has its quorum.
    Up,
    /// Not.
    Down,
}

impl Standing {
    /// What a check counts as until it was asked, if its server is new.
    pub fn at_first(timing: &Timing) -> Self {
        (!timing.begins_down).into()
    }
}

/// A real server as its checks have it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    /// Of each check, in its order.
    checks: Vec<Verdict>,
    /// Whether it was told of last as one that is down.
    is_told_down: bool,
}

/// Whether servers that count as up from the beginning are told of (`rs_init_notifies`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// They are not.
    Silent,
    /// They are.
    Told,
}

/// A virtual server after another reading of the file.
#[derive(Debug)]
pub struct Reloaded {
    /// As it is now.
    pub pool: Pool,
    /// Who is told of what the reading has changed.
    pub notices: Vec<Notice>,
    /// What each check of each real server goes on from, in their order.
    pub origins: Vec<Vec<Origin>>,
}

/// What a check goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This check of this real server, in their order before. What is not its [identity](Probe::identity) may have changed.
    Kept {
        /// Which real server.
        server: usize,
        /// Which of its checks.
        check: usize,
    },
    /// Nothing.
    New(Standing),
}

impl Server {
    fn is_up(&self) -> bool {
        self.checks.iter().all(|verdict| verdict.is_up)
    }
}

impl Pool {
    /// A virtual server no check of which was made, and who is told of that.
    pub fn begin(virtual_server: Arc<VirtualServer>, beginning: Beginning) -> (Self, Vec<Notice>) {
        let servers = virtual_server.real_servers.iter().map(|server| {
            let checks = server.checks.iter().map(|check| Standing::at_first(&check.timing).into()).collect();
            Server { checks, is_told_down: false }
        });
        let mut pool = Self { servers: servers.collect(), is_well: false, virtual_server };
        let mut notices = Vec::new();
        if beginning == Beginning::Told {
            notices.extend(pool.notices_of_up(Standing::Up));
        }
        notices.extend(pool.weigh());
        if !pool.is_well && pool.virtual_server.sorry_server.is_some() {
            notices.push(pool.notice(None, Standing::Down));
        }
        (pool, notices)
    }

    /// Takes what a check of a real server has come to, both by their order.
    pub fn take(&mut self, server: usize, check: usize, verdict: Verdict) -> Vec<Notice> {
        let Some(taken) = self.servers.get_mut(server) else { return Vec::new() };
        let was_up = taken.is_up();
        let Some(place) = taken.checks.get_mut(check) else { return Vec::new() };
        *place = verdict;
        let is_up = taken.is_up();
        // The first failure of one that begins down is told too.
        let is_told = was_up != is_up || !(verdict.is_up || taken.is_told_down);
        let mut notices = Vec::new();
        if is_told {
            taken.is_told_down = !is_up;
            notices.push(self.notice(Some(server), is_up.into()));
        }
        notices.extend(self.weigh());
        notices
    }

    /// The same virtual server by another reading of the file.
    ///
    /// A check that asks what one did before goes on as that did. One that asks something else counts as up, unless it
    /// begins down and its server was not up.
    pub fn reload(self, virtual_server: Arc<VirtualServer>, beginning: Beginning) -> Reloaded {
        let known: HashSet<_> = virtual_server.real_servers.iter().map(|server| server.endpoint).collect();
        let before = &self.virtual_server.real_servers;
        let gone =
            (0..before.len()).filter(|old| !known.contains(&before[*old].endpoint) && self.is_up(*old));
        let mut notices: Vec<_> = gone.map(|old| self.notice(Some(old), Standing::Down)).collect();
        let index: HashMap<_, _> = before.iter().enumerate().map(|(old, one)| (one.endpoint, old)).collect();
        let mut pool = Self { virtual_server, servers: Vec::new(), is_well: self.is_well };
        let mut origins = Vec::new();
        let after = Arc::clone(&pool.virtual_server);
        for (new, server) in after.real_servers.iter().enumerate() {
            let old = index.get(&server.endpoint).copied();
            let from = match old {
                Some(old) => self.origins(old, &server.checks),
                None => {
                    server.checks.iter().map(|check| Origin::New(Standing::at_first(&check.timing))).collect()
                }
            };
            let verdict = |origin: &Origin| match *origin {
                Origin::Kept { server, check } => self.servers[server].checks[check],
                Origin::New(standing) => standing.into(),
            };
            let mut now = Server { checks: from.iter().map(verdict).collect(), is_told_down: false };
            let is_told = match old {
                Some(old) => now.is_up() && !self.is_up(old),
                None => now.is_up() && beginning == Beginning::Told,
            };
            now.is_told_down = !now.is_up() && old.is_some_and(|old| self.servers[old].is_told_down);
            pool.servers.push(now);
            origins.push(from);
            if is_told {
                notices.push(pool.notice(Some(new), Standing::Up));
            }
        }
        notices.extend(pool.weigh());
        Reloaded { pool, notices, origins }
    }

    /// Who is told when the daemon ends: nobody, unless the file says `omega`.
    pub fn end(self) -> Vec<Notice> {
        if self.virtual_server.omega { self.remove() } else { Vec::new() }
    }

    /// Who is told when the file has the virtual server no more.
    pub fn remove(self) -> Vec<Notice> {
        let lost = self.is_well.then(|| self.notice(None, Standing::Down));
        self.notices_of_up(Standing::Down).chain(lost).collect()
    }

    /// Its services with what each is to have now, in the file's order.
    pub fn table(&self) -> Vec<(ServiceKey, GovernedService)> {
        let services = self.virtual_server.services.iter();
        let governed = services.map(|(key, options)| {
            let mut known = HashSet::new();
            let present = self.present(*key).into_iter().map(|one| (one.endpoint, one.options));
            let destinations = present.filter(|(endpoint, _)| known.insert(*endpoint)).collect();
            (*key, GovernedService { options: options.clone(), destinations })
        });
        governed.collect()
    }

    /// What the file says of it.
    pub fn virtual_server(&self) -> &Arc<VirtualServer> {
        &self.virtual_server
    }

    /// Whether it has its quorum.
    pub fn is_well(&self) -> bool {
        self.is_well
    }

    /// Weight of its real servers that are up.
    pub fn live_weight(&self) -> u64 {
        let live = (0..self.servers.len()).filter(|server| self.is_up(*server));
        live.map(|server| u64::from(self.effective_weight(server).0)).sum()
    }

    /// Whether a real server is up, by its order: one without checks is.
    pub fn is_up(&self, server: usize) -> bool {
        self.servers[server].is_up()
    }

    /// The weight that a real server is to have now, by its order; `None`: it is taken out.
    pub fn weight(&self, server: usize) -> Option<Weight> {
        let file = &self.virtual_server;
        let serves = self.is_up(server) && (self.is_well || file.sorry_server.is_none());
        match serves {
            true => Some(self.effective_weight(server)),
            false => file.real_servers[server].inhibit_on_failure.then_some(Weight(0)),
        }
    }

    /// Whether its sorry server serves now.
    pub fn is_sorry(&self) -> bool {
        !self.is_well && self.virtual_server.sorry_server.is_some()
    }

    /// The servers that a service has now, each with the place that it has in the file. Several may have one endpoint, of
    /// which the first holds.
    pub(crate) fn present(&self, key: ServiceKey) -> Vec<Present<'_>> {
        let file = &self.virtual_server;
        let there = file.real_servers.iter().enumerate().filter_map(|(server, one)| {
            Some(Present::new(&one.place, one.endpoint, &one.options, self.weight(server)?, key))
        });
        let mut servers: Vec<_> = there.collect();
        if let Some(sorry) = file.sorry_server.as_ref().filter(|sorry| !self.is_well || sorry.inhibit) {
            let weight = Weight(u32::from(!self.is_well));
            let sorry = Present::new(&sorry.place, sorry.endpoint, &sorry.options, weight, key);
            // One that is a real server too is there once: as the one that serves.
            if !self.is_well {
                servers.retain(|one| one.endpoint != sorry.endpoint);
            }
            if servers.iter().all(|one| one.endpoint != sorry.endpoint) {
                servers.push(sorry);
            }
        }
        servers
    }

    /// Its file's weight and what its checks add to that, as far as a weight can be that.
    fn effective_weight(&self, server: usize) -> Weight {
        let file = i64::from(self.virtual_server.real_servers[server].options.weight.0);
        let changes = self.servers[server].checks.iter().map(|verdict| verdict.weight_change);
        let effective = changes.fold(file, i64::saturating_add).clamp(0, i64::from(Weight::MAX.0));
        Weight(u32::try_from(effective).unwrap_or(Weight::MAX.0))
    }

    /// What the checks of a real server go on from which was this one before.
    fn origins(&self, server: usize, checks: &[Check]) -> Vec<Origin> {
        let before = self.virtual_server.real_servers[server].checks.iter().enumerate();
        let mut known: HashMap<Probe, Vec<usize>> = HashMap::new();
        for (index, check) in before.rev() {
            known.entry(check.probe.identity()).or_default().push(index);
        }
        let origin = |check: &Check| match known.get_mut(&check.probe.identity()).and_then(Vec::pop) {
            Some(check) => Origin::Kept { server, check },
            None if self.is_up(server) => Origin::New(Standing::Up),
            None => Origin::New(Standing::at_first(&check.timing)),
        };
        checks.iter().map(origin).collect()
    }

    /// Has it gain or lose its quorum by the weight that it has.
    fn weigh(&mut self) -> Option<Notice> {
        let live = self.live_weight();
        let [quorum, hysteresis] =
            [self.virtual_server.quorum, self.virtual_server.hysteresis].map(u64::from);
        let needed = if self.is_well { quorum.saturating_sub(hysteresis) } else { quorum + hysteresis };
        let is_well = live > 0 && live >= needed;
        let changes = std::mem::replace(&mut self.is_well, is_well) != is_well;
        changes.then(|| self.notice(None, is_well.into()))
    }

    fn notice(&self, server: Option<usize>, standing: Standing) -> Notice {
        Notice { virtual_server: Arc::clone(&self.virtual_server), server, standing }
    }

    fn notices_of_up(&self, standing: Standing) -> impl Iterator<Item = Notice> {
        (0..self.servers.len())
            .filter(|server| self.is_up(*server))
            .map(move |server| self.notice(Some(server), standing))
    }
}

impl From<bool> for Standing {
    fn from(is_up: bool) -> Self {
        if is_up { Self::Up } else { Self::Down }
    }
}

impl From<Standing> for Verdict {
    fn from(standing: Standing) -> Self {
        Self { is_up: standing == Standing::Up, weight_change: 0 }
    }
}

/// A server as a service has it.
pub(crate) struct Present<'a> {
    /// Where it stands in the file.
    pub(crate) place: &'a Place,
    /// Its endpoint in the service.
    pub(crate) endpoint: Endpoint,
    /// How packets reach it, and its share of them now.
    pub(crate) options: DestinationOptions,
}

impl<'a> Present<'a> {
    fn new(
        place: &'a Place,
        endpoint: Endpoint,
        options: &DestinationOptions,
        weight: Weight,
        service: ServiceKey,
    ) -> Self {
        let endpoint = of_service(endpoint, service, options.method);
        Self { place, endpoint, options: DestinationOptions { weight, ..options.clone() } }
    }
}

/// A server's endpoint in one service: only by NAT and FULLNAT it may have another port than the service, and by a mark
/// only by them it has one.
fn of_service(endpoint: Endpoint, service: ServiceKey, method: ForwardingMethod) -> Endpoint {
    let port = match service {
        _ if method.masquerades() => endpoint.port,
        ServiceKey::Address { endpoint: at, .. } => at.port,
        ServiceKey::Mark { .. } => 0,
    };
    Endpoint { port, ..endpoint }
}

/// Something that scripts, FIFOs and people are told, in the order in which it is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// The virtual server.
    pub virtual_server: Arc<VirtualServer>,
    /// Its real server, by its order; `None`: it is the virtual server itself.
    pub server: Option<usize>,
    /// Whether it is up now, or the virtual server has its quorum.
    pub standing: Standing,
}

impl Notice {
    /// The script that the file has for it.
    pub fn script(&self) -> Option<&Script> {
        let file = &self.virtual_server;
        let (up, down) = match self.server {
            Some(server) => {
                let server = &file.real_servers[server];
                (&server.notify_up, &server.notify_down)
            }
            None => (&file.quorum_up, &file.quorum_down),
        };
        if self.standing == Standing::Up { up.as_ref() } else { down.as_ref() }
    }

    /// The line that FIFOs are told, without its end: `RS [10.1.0.1]:tcp:80 [10.0.0.1]:tcp:80 UP` or
    /// `VS [10.0.0.1]:tcp:80 DOWN`.
    ///
    /// Source: keepalived's behaviour as it is written down (section 5.5).
    pub fn line(&self) -> String {
        let file = &self.virtual_server;
        let standing = if self.standing == Standing::Up { "UP" } else { "DOWN" };
        let virtual_server = match (file.group(), file.services.first()) {
            (None, Some((ServiceKey::Mark { mark, .. }, _))) => format!("FWM {mark}"),
            (None, Some((ServiceKey::Address { endpoint, .. }, _))) => trio(*endpoint, file.protocol()),
            (group, _) => format!("[{}]:{}", group.unwrap_or_default(), file.ordinal),
        };
        match self.server {
            Some(server) => {
                let endpoint = file.real_servers[server].endpoint;
                format!("RS {} {virtual_server} {standing}", trio(endpoint, file.protocol()))
            }
            None => format!("VS {virtual_server} {standing}"),
        }
    }
}

/// As people are told.
impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.virtual_server.name;
        let is_up = self.standing == Standing::Up;
        match self.server {
            Some(server) => {
                let endpoint = self.virtual_server.real_servers[server].endpoint;
                write!(f, "{endpoint} of {name} is {}", if is_up { "up" } else { "down" })
            }
            None => write!(f, "{name} has {} quorum", if is_up { "its" } else { "no" }),
        }
    }
}

/// An endpoint as FIFOs are told it: `[10.0.0.1]:tcp:80`.
fn trio(Endpoint { addr, port }: Endpoint, protocol: Option<Protocol>) -> String {
    let protocol = protocol.map_or("none".to_owned(), |protocol| protocol.to_string().to_lowercase());
    format!("[{addr}]:{protocol}:{port}")
}
