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

use xvs_model::check::{Check, Probe, Script, Timing};
use xvs_model::destination::DestinationOptions;
use xvs_model::fault::Place;
use xvs_model::reconcile::OwnedService;
use xvs_model::virtual_server::VirtualServer;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

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

    /// Takes what checks have come to, each by the order of its real server and its own in that. The quorum is looked at
    /// once, when all are taken.
    pub fn take(&mut self, verdicts: impl IntoIterator<Item = (usize, usize, Verdict)>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for (server, check, verdict) in verdicts {
            let Some(taken) = self.servers.get_mut(server) else { continue };
            let was_up = taken.is_up();
            let Some(place) = taken.checks.get_mut(check) else { continue };
            *place = verdict;
            let is_up = taken.is_up();
            // The first failure of one that begins down is told too.
            if was_up != is_up || !(verdict.is_up || taken.is_told_down) {
                taken.is_told_down = !is_up;
                notices.push(self.notice(Some(server), is_up.into()));
            }
        }
        notices.extend(self.weigh());
        notices
    }

    /// The same virtual server by another reading of the file.
    ///
    /// A check that asks what one did before goes on as that did. One that asks something else counts as its server did, so
    /// that nobody comes back unasked because a check was edited.
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
    pub fn table(&self) -> Vec<(ServiceKey, OwnedService)> {
        let services = self.virtual_server.services.iter();
        let owned = services.map(|(key, options)| {
            let mut known = HashSet::new();
            let present = self.present(*key).into_iter().map(|one| (one.endpoint, one.options));
            let destinations = present.filter(|(endpoint, _)| known.insert(*endpoint)).collect();
            (*key, OwnedService { options: options.clone(), destinations })
        });
        owned.collect()
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
        #[allow(
            clippy::mutable_key_type,
            reason = "what makes a handshake never changes, and is told apart by its words"
        )]
        let mut known: HashMap<Probe, Vec<usize>> = HashMap::new();
        for (index, check) in before.rev() {
            known.entry(check.probe.identity()).or_default().push(index);
        }
        let origin = |check: &Check| match known.get_mut(&check.probe.identity()).and_then(Vec::pop) {
            Some(check) => Origin::Kept { server, check },
            None => Origin::New(self.is_up(server).into()),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use crate::answer::Answer;
    use crate::course::Course;
    use crate::pool::*;
    use crate::tests::configuration;

    /// The first virtual server of a file.
    fn read(text: &str) -> Arc<VirtualServer> {
        Arc::new(configuration(text).virtual_servers.swap_remove(0))
    }

    /// One of TCP by direct routing with these lines.
    fn virtual_server(lines: &str) -> Arc<VirtualServer> {
        let head = "virtual_server 10.0.0.1 80 {\nlvs_sched rr\nlvs_method DR\nprotocol TCP\n";
        read(&format!("{head}{lines}\n}}\n"))
    }

    /// A file of keepalived's tests.
    fn case(name: &str) -> Arc<VirtualServer> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../keepalived/src/cases");
        read(&fs::read_to_string(folder.join(name).with_extension("conf")).unwrap())
    }

    fn begun(virtual_server: &Arc<VirtualServer>) -> Pool {
        Pool::begin(Arc::clone(virtual_server), Beginning::Silent).0
    }

    fn reloaded(pool: Pool, virtual_server: &Arc<VirtualServer>) -> Reloaded {
        pool.reload(Arc::clone(virtual_server), Beginning::Silent)
    }

    /// What its first service has: the last part of each address and the weight.
    fn servers(pool: &Pool) -> String {
        let (_, service) = &pool.table()[0];
        let one = |(endpoint, options): &(Endpoint, DestinationOptions)| {
            let addr = endpoint.addr.to_string();
            format!("{}={}", addr.rsplit('.').next().unwrap(), options.weight.0)
        };
        service.destinations.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Who is told, without the virtual server: `RS 1 UP`, `VS DOWN`.
    fn lines(notices: &[Notice]) -> Vec<String> {
        let line = |notice: &Notice| {
            let change = if notice.standing == Standing::Up { "UP" } else { "DOWN" };
            let Some(server) = notice.server else { return format!("VS {change}") };
            let addr = notice.virtual_server.real_servers[server].endpoint.addr.to_string();
            format!("RS {} {change}", addr.rsplit('.').next().unwrap())
        };
        notices.iter().map(line).collect()
    }

    const UP: Verdict = Verdict { is_up: true, weight_change: 0 };
    const DOWN: Verdict = Verdict { is_up: false, weight_change: 0 };

    /// Two servers with a check each, and these lines before them.
    fn pair(before: &str) -> Arc<VirtualServer> {
        let checked = "TCP_CHECK {\n}\n}";
        virtual_server(&format!(
            "{before}\nreal_server 10.1.0.1 80 {{\nweight 2\n{checked}\nreal_server 10.1.0.2 80 {{\nweight 3\n{checked}"
        ))
    }

    #[test]
    fn a_server_that_begins_down_and_is_inhibited_has_its_weight_with_its_first_pass() {
        let mut pool = begun(&case("begins-down"));
        assert_eq!(servers(&pool), "1=0");
        assert_eq!(lines(&pool.take([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        assert_eq!(servers(&pool), "1=1");
    }

    #[test]
    fn a_script_that_gives_the_weight_moves_the_quorum_and_the_sorry_server_with_it() {
        let file = case("sorry-server");
        let (mut pool, told) = Pool::begin(Arc::clone(&file), Beginning::Silent);
        assert_eq!((lines(&told), servers(&pool)), (vec!["VS DOWN".to_owned()], "1=0 99=1".to_owned()));
        let check = &file.real_servers[0].checks[0];
        let mut course = Course::new(check, Standing::at_first(&check.timing));
        let failed = || Answer::Unwell("exit code 1".to_owned());
        // Exit codes 0, 7, 1, 3: by weight 2 the last adds -1, by which the quorum of 2 is lost.
        for (answer, want, said) in [
            (Answer::Well(0), "1=2 99=0", &["RS 1 UP", "VS UP"][..]),
            (Answer::Well(7 - 2 - 2), "1=5 99=0", &[]),
            (failed(), "1=0 99=1", &["RS 1 DOWN", "VS DOWN"]),
            (Answer::Well(0), "1=2 99=0", &["RS 1 UP", "VS UP"]),
            (Answer::Well(3 - 2 - 2), "1=0 99=1", &["VS DOWN"]),
            (Answer::Well(2 - 2 - 2), "1=0 99=1", &[]),
            (Answer::Well(0), "1=2 99=0", &["VS UP"]),
        ] {
            let change = course.take(&answer);
            assert_eq!(lines(&pool.take([(0, 0, change.verdict)])), said, "{answer:?}");
            assert_eq!(servers(&pool), want, "{answer:?}");
        }
    }

    #[test]
    fn a_server_is_up_while_all_of_its_checks_are() {
        let text = "real_server 10.1.0.1 80 {\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}\n\
                    real_server 10.1.0.2 80 {\n}";
        let mut pool = begun(&virtual_server(text));
        for (check, verdict, told, there) in [
            (0, DOWN, &["RS 1 DOWN"][..], "2=1"),
            (1, DOWN, &[], "2=1"),
            (0, UP, &[], "2=1"),
            (1, UP, &["RS 1 UP"], "1=1 2=1"),
        ] {
            assert_eq!(lines(&pool.take([(0, check, verdict)])), told);
            assert_eq!(servers(&pool), there);
        }
    }

    #[test]
    fn weights_that_checks_add_are_summed_anew_and_stay_within_what_a_weight_can_be() {
        let text = "real_server 10.1.0.1 80 {\nweight 4\nTCP_CHECK {\n}\nTCP_CHECK {\nconnect_port 81\n}\n}";
        let mut pool = begun(&virtual_server(text));
        let mut weight = |check, weight_change| {
            pool.take([(0, check, Verdict { is_up: true, weight_change })]);
            servers(&pool)
        };
        assert_eq!(weight(0, 3), "1=7");
        assert_eq!(weight(1, -2), "1=5");
        assert_eq!(weight(0, i64::MIN), "1=0");
        assert_eq!(weight(0, i64::MAX), "1=2147483647");
        assert_eq!(weight(0, 0), "1=2");
    }

    #[test]
    fn verdicts_that_come_together_are_told_one_by_one_and_the_quorum_by_all_of_them() {
        let mut pool = begun(&pair("quorum 2"));
        pool.take([(0, 0, DOWN)]);
        // The one that goes and the one that comes leave the quorum as it is.
        let notices = pool.take([(1, 0, DOWN), (0, 0, UP), (7, 0, DOWN), (0, 7, DOWN)]);
        assert_eq!(lines(&notices), ["RS 2 DOWN", "RS 1 UP"]);
        assert_eq!((servers(&pool).as_str(), pool.is_well()), ("1=2", true));
        let notices = pool.take([(0, 0, DOWN), (1, 0, DOWN)]);
        assert_eq!(lines(&notices), ["RS 1 DOWN", "VS DOWN"]);
    }

    #[test]
    fn without_a_sorry_server_a_lost_quorum_takes_nobody_out() {
        let mut pool = begun(&pair("quorum 4"));
        assert_eq!(lines(&pool.take([(1, 0, DOWN)])), ["RS 2 DOWN", "VS DOWN"]);
        assert_eq!((servers(&pool), pool.is_well(), pool.live_weight()), ("1=2".to_owned(), false, 2));
        assert_eq!(lines(&pool.take([(0, 0, DOWN)])), ["RS 1 DOWN"]);
        assert_eq!(servers(&pool), "");
        assert_eq!(lines(&pool.take([(0, 0, UP)])), ["RS 1 UP"]);
        assert_eq!(lines(&pool.take([(1, 0, UP)])), ["RS 2 UP", "VS UP"]);
        assert_eq!(servers(&pool), "1=2 2=3");
    }

    #[test]
    fn a_sorry_server_serves_alone_from_the_loss_of_the_quorum_to_its_gain() {
        let mut pool = begun(&pair("quorum 3\nhysteresis 2\nsorry_server 10.1.0.9 80"));
        assert_eq!(servers(&pool), "1=2 2=3");
        // At least 1 to stay well, at least 5 to be well again.
        assert_eq!(lines(&pool.take([(1, 0, DOWN)])), ["RS 2 DOWN"]);
        assert_eq!(servers(&pool), "1=2");
        assert_eq!(lines(&pool.take([(0, 0, DOWN)])), ["RS 1 DOWN", "VS DOWN"]);
        assert_eq!((servers(&pool), pool.is_sorry(), pool.weight(0)), ("9=1".to_owned(), true, None));
        assert_eq!(lines(&pool.take([(1, 0, UP)])), ["RS 2 UP"]);
        assert_eq!(servers(&pool), "9=1");
        assert_eq!(lines(&pool.take([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        assert_eq!((servers(&pool), pool.is_sorry()), ("1=2 2=3".to_owned(), false));
    }

    #[test]
    fn a_sorry_server_that_is_a_real_server_too_is_there_once() {
        let mut pool =
            begun(&pair("quorum 4\ninhibit_on_failure\nsorry_server 10.1.0.1 80\nsorry_server_inhibit"));
        assert_eq!(servers(&pool), "1=2 2=3");
        pool.take([(1, 0, DOWN)]);
        assert_eq!(servers(&pool), "2=0 1=1");
        pool.take([(0, 0, DOWN)]);
        assert_eq!(servers(&pool), "2=0 1=1");
        pool.take([(1, 0, UP)]);
        pool.take([(0, 0, UP)]);
        assert_eq!(servers(&pool), "1=2 2=3");
    }

    #[test]
    fn by_a_group_a_sorry_server_without_a_port_is_a_real_server_with_one() {
        let text = "virtual_server_group G {\n10.0.0.1 80\n10.0.0.2 81\n}\nvirtual_server group G {\nlvs_method DR\n\
                    protocol TCP\nalpha\ninhibit_on_failure\nsorry_server 10.1.0.1\nreal_server 10.1.0.1 80 {\nTCP_CHECK {\n}\n}\n}\n";
        let pool = begun(&read(text));
        let ports: Vec<_> = pool
            .table()
            .iter()
            .flat_map(|(_, service)| &service.destinations)
            .map(|(endpoint, options)| (endpoint.port, options.weight.0))
            .collect();
        assert_eq!(ports, [(80, 1), (81, 1)]);
    }

    #[test]
    fn at_the_beginning_the_quorum_is_told_and_servers_are_if_that_is_wanted() {
        let told = |before: &str, beginning| lines(&Pool::begin(pair(before), beginning).1);
        assert_eq!(told("", Beginning::Silent), ["VS UP"]);
        assert_eq!(told("", Beginning::Told), ["RS 1 UP", "RS 2 UP", "VS UP"]);
        assert!(told("alpha", Beginning::Told).is_empty());
        assert_eq!(told("alpha\nsorry_server 10.1.0.9 80", Beginning::Told), ["VS DOWN"]);
    }

    #[test]
    fn of_a_server_that_begins_down_its_first_failure_is_told_once() {
        let mut pool = begun(&pair("alpha"));
        assert_eq!(lines(&pool.take([(0, 0, DOWN)])), ["RS 1 DOWN"]);
        assert!(pool.take([(0, 0, DOWN)]).is_empty());
        let mut pool = reloaded(pool, &pair("alpha\nquorum 2")).pool;
        assert!(pool.take([(0, 0, DOWN)]).is_empty());
        assert_eq!(lines(&pool.take([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
    }

    #[test]
    fn the_end_is_told_only_with_omega_and_a_removal_always() {
        let pool = begun(&pair(""));
        assert!(pool.clone().end().is_empty());
        assert_eq!(lines(&pool.remove()), ["RS 1 DOWN", "RS 2 DOWN", "VS DOWN"]);
        let mut pool = begun(&pair("omega"));
        pool.take([(0, 0, DOWN)]);
        assert_eq!(lines(&pool.clone().end()), ["RS 2 DOWN", "VS DOWN"]);
        pool.take([(1, 0, DOWN)]);
        assert!(pool.end().is_empty());
    }

    #[test]
    fn a_server_that_is_down_stays_down_over_a_reload_and_another_weight_counts_at_once() {
        let mut pool = begun(&pair("inhibit_on_failure"));
        pool.take([(0, 0, DOWN)]);
        let weights = |first, second| {
            let checked = "TCP_CHECK {\nretry 9\nalpha\n}\n}";
            virtual_server(&format!(
                "inhibit_on_failure\nreal_server 10.1.0.2 80 {{\nweight {second}\n{checked}\n\
                 real_server 10.1.0.1 80 {{\nweight {first}\n{checked}"
            ))
        };
        let Reloaded { mut pool, notices, origins } = reloaded(pool, &weights(7, 8));
        assert!(notices.is_empty());
        let kept = |server| vec![Origin::Kept { server, check: 0 }];
        assert_eq!(origins, [kept(1), kept(0)]);
        assert_eq!(servers(&pool), "2=8 1=0");
        assert_eq!(lines(&pool.take([(1, 0, UP)])), ["RS 1 UP"]);
        assert_eq!(servers(&pool), "2=8 1=7");
        assert_eq!(servers(&reloaded(pool, &weights(0, 1)).pool), "2=1 1=0");
    }

    #[test]
    fn a_new_check_counts_as_its_server_did_and_an_edited_one_brings_nobody_back_unasked() {
        let file = |checks: &str| virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"));
        let check = |port: u16, lines: &str| format!("TCP_CHECK {{\nconnect_port {port}\n{lines}\n}}\n");
        let (one, two, edited) = (check(81, ""), check(82, "alpha"), check(83, ""));
        let both = file(&format!("{two}{one}"));
        // It was up.
        let Reloaded { pool, notices, origins } = reloaded(begun(&file(&one)), &both);
        let kept = Origin::Kept { server: 0, check: 0 };
        assert_eq!((pool.is_up(0), notices.len()), (true, 0));
        assert_eq!(origins, [[Origin::New(Standing::Up), kept]]);
        // It was down.
        let mut pool = begun(&file(&one));
        pool.take([(0, 0, DOWN)]);
        let Reloaded { pool: mut other, notices, origins } = reloaded(pool.clone(), &file(&edited));
        assert_eq!((other.is_up(0), notices.len()), (false, 0));
        assert_eq!(origins, [[Origin::New(Standing::Down)]]);
        assert!(other.take([(0, 0, DOWN)]).is_empty(), "it was told of before");
        assert_eq!(lines(&other.take([(0, 0, UP)])), ["RS 1 UP", "VS UP"]);
        let Reloaded { mut pool, origins, .. } = reloaded(pool, &both);
        assert_eq!(origins, [[Origin::New(Standing::Down), kept]]);
        pool.take([(0, 1, UP)]);
        assert!(!pool.is_up(0));
        // What had failed is gone, and nothing else has.
        let Reloaded { pool, notices, .. } = reloaded(pool, &file(&one));
        assert_eq!((pool.is_up(0), lines(&notices)), (true, vec!["RS 1 UP".to_owned(), "VS UP".to_owned()]));
    }

    #[test]
    fn checks_that_ask_the_same_are_kept_in_their_order_whatever_their_times_are() {
        let checks = |lines: [&str; 4]| {
            let checks = lines.map(|line| format!("TCP_CHECK {{\n{line}\n}}\n")).concat();
            virtual_server(&format!("real_server 10.1.0.1 80 {{\n{checks}\n}}"))
        };
        let pool = begun(&checks(["", "connect_port 81", "", "fwmark 3"]));
        let kept = |check| Origin::Kept { server: 0, check };
        let again = checks(["retry 3", "delay_loop 3", "fwmark 3\nconnect_timeout 1", ""]);
        assert_eq!(reloaded(pool, &again).origins, [[kept(0), kept(2), kept(3), Origin::New(Standing::Up)]]);
    }

    #[test]
    fn what_changes_how_a_server_is_asked_and_not_what_makes_no_other_check() {
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
    fn the_quorum_is_looked_at_anew_by_what_the_new_file_says_and_told_by_its_scripts() {
        let pool = begun(&pair("quorum 2\nquorum_down /x/old"));
        let Reloaded { pool, notices, .. } =
            reloaded(pool, &pair("quorum 5\nhysteresis 4\nquorum_up /x/up\nquorum_down /x/new"));
        assert!(notices.is_empty(), "5 - 4 is enough to stay well");
        let mut pool = pool;
        pool.take([(0, 0, DOWN)]);
        let Reloaded { pool, notices, .. } = reloaded(pool, &pair("quorum 5\nquorum_down /x/new"));
        assert_eq!(lines(&notices), ["VS DOWN"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/new"));
        let Reloaded { notices, .. } = reloaded(pool, &pair("quorum 3\nquorum_up /x/up"));
        assert_eq!(lines(&notices), ["VS UP"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/up"));
    }

    #[test]
    fn servers_that_all_are_replaced_are_told_in_order_and_the_quorum_only_if_it_is_lost() {
        let file = |first: u8, lines: &str| {
            virtual_server(&format!(
                "{lines}\nsorry_server 10.1.0.99 80\nreal_server 10.1.0.{first} 80 {{\nnotify_down /x/{first}\nTCP_CHECK {{\n}}\n}}\n\
                 real_server 10.1.0.{} 80 {{\nTCP_CHECK {{\n}}\n}}",
                first + 1
            ))
        };
        let Reloaded { pool, notices, origins } = reloaded(begun(&file(1, "")), &file(3, ""));
        assert_eq!(lines(&notices), ["RS 1 DOWN", "RS 2 DOWN"]);
        assert_eq!(notices[0].script().map(ToString::to_string).as_deref(), Some("/x/1"));
        assert_eq!((servers(&pool).as_str(), pool.is_well()), ("3=1 4=1", true));
        assert_eq!(origins, [[Origin::New(Standing::Up)], [Origin::New(Standing::Up)]]);
        let Reloaded { mut pool, notices, .. } = reloaded(pool, &file(5, "alpha"));
        assert_eq!(lines(&notices), ["RS 3 DOWN", "RS 4 DOWN", "VS DOWN"]);
        assert_eq!(servers(&pool), "99=1");
        assert_eq!(lines(&pool.take([(1, 0, UP)])), ["RS 6 UP", "VS UP"]);
        assert_eq!(servers(&pool), "6=1");
    }

    #[test]
    fn a_sorry_server_that_comes_or_goes_with_a_reload_takes_or_leaves_the_place_of_the_others() {
        let mut pool = begun(&pair("quorum 4"));
        pool.take([(1, 0, DOWN)]);
        let pool = reloaded(pool, &pair("quorum 4\nsorry_server 10.1.0.9 80")).pool;
        assert_eq!(servers(&pool), "9=1");
        let pool = reloaded(pool, &pair("quorum 4\nsorry_server 10.1.0.8 80")).pool;
        assert_eq!(servers(&pool), "8=1");
        let pool = reloaded(pool, &pair("quorum 4")).pool;
        assert_eq!(servers(&pool), "1=2");
    }

    #[test]
    fn fifos_are_told_addresses_marks_and_groups_as_keepalived_writes_them() {
        let told = |head: &str| {
            let text = format!(
                "virtual_server_group G {{\n10.0.0.7 80\nfwmark 9\n}}\nvirtual_server group G {{\nprotocol TCP\n\
                 real_server 10.1.0.5 80 {{\n}}\n}}\n{head} {{\nlvs_method TUN\nreal_server 2001:db8::5 80 {{\n}}\n}}\n"
            );
            let file = configuration(&text).virtual_servers.swap_remove(1);
            let (_, notices) = Pool::begin(Arc::new(file), Beginning::Told);
            notices.iter().map(Notice::line).collect::<Vec<_>>()
        };
        assert_eq!(
            told("virtual_server 2001:db8::1 53"),
            ["RS [2001:db8::5]:udp:53 [2001:db8::1]:udp:53 UP", "VS [2001:db8::1]:udp:53 UP"]
        );
        assert_eq!(told("virtual_server fwmark 7"), ["RS [2001:db8::5]:none:0 FWM 7 UP", "VS FWM 7 UP"]);
        assert_eq!(told("virtual_server group G"), ["RS [2001:db8::5]:udp:80 [G]:1 UP", "VS [G]:1 UP"]);
    }

    #[test]
    fn people_are_told_in_words() {
        let mut pool = begun(&pair("quorum 4"));
        let told: Vec<_> = [DOWN, UP].map(|verdict| pool.take([(1, 0, verdict)])).concat();
        let told: Vec<_> = told.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "10.1.0.2:80 of 10.0.0.1 80 is down",
                "10.0.0.1 80 has no quorum",
                "10.1.0.2:80 of 10.0.0.1 80 is up",
                "10.0.0.1 80 has its quorum"
            ]
        );
    }

    #[test]
    fn a_virtual_server_is_the_same_by_its_service_or_by_its_group_and_protocol() {
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

    /// What a file says, as random as it may be.
    #[derive(Debug, Clone)]
    struct File {
        quorum: u32,
        hysteresis: u32,
        sorry: Option<(u8, bool)>,
        /// Each with the last part of its address, its weight, whether it is inhibited.
        servers: Vec<(u8, u32, bool, Checks)>,
    }

    /// A port each, and whether it begins down.
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
        /// By numbers that stand for a real server that is there and one of its checks.
        Take(usize, usize, Verdict),
        Reload(File),
        /// The same file.
        Again,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = (any::<bool>(), prop_oneof![3 => Just(0), 1 => -4..4_i64])
            .prop_map(|(is_up, change)| Verdict { is_up, weight_change: if is_up { change } else { 0 } });
        let take = (0..12_usize, 0..6_usize, verdict)
            .prop_map(|(server, check, verdict)| Step::Take(server, check, verdict));
        vec(prop_oneof![12 => take, 1 => files().prop_map(Step::Reload), 1 => Just(Step::Again)], 0..40)
    }

    /// The same as [`Pool`] in the way that keepalived does it: step by step, by what is in the table.
    struct Naive {
        file: Arc<VirtualServer>,
        servers: Vec<NaiveServer>,
        is_well: bool,
        table: BTreeMap<Endpoint, u32>,
        told: Vec<String>,
    }

    struct NaiveServer {
        checks: Vec<(Probe, bool, i64)>,
        is_alive: bool,
        was_told: bool,
    }

    impl Naive {
        fn begin(file: &Arc<VirtualServer>) -> Self {
            let mut naive = Self {
                file: Arc::clone(file),
                servers: Vec::new(),
                is_well: false,
                table: BTreeMap::new(),
                told: Vec::new(),
            };
            for real in &file.real_servers {
                let checks: Vec<_> = real
                    .checks
                    .iter()
                    .map(|check| (check.probe.clone(), !check.timing.begins_down, 0))
                    .collect();
                let is_alive = checks.iter().all(|check| check.1);
                naive.servers.push(NaiveServer { checks, is_alive, was_told: false });
            }
            naive.program();
            naive.weigh();
            if !naive.is_well && file.sorry_server.is_some() {
                naive.displace();
                naive.told.push("VS DOWN".to_owned());
            }
            naive
        }

        fn say(&mut self, server: usize, what: &str) {
            let addr = self.file.real_servers[server].endpoint.addr.to_string();
            self.told.push(format!("RS {} {what}", addr.rsplit('.').next().unwrap()));
        }

        fn weight(&self, server: usize) -> u32 {
            let changes: i64 = self.servers[server].checks.iter().map(|check| check.2).sum();
            (i64::from(self.file.real_servers[server].options.weight.0) + changes).max(0) as u32
        }

        fn is_displaced(&self) -> bool {
            self.file.sorry_server.is_some() && !self.is_well
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

        /// All that is there while the real servers serve.
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

        fn weigh(&mut self) {
            let alive = (0..self.servers.len()).filter(|server| self.servers[*server].is_alive);
            let live: i64 = alive.map(|server| i64::from(self.weight(server))).sum();
            let (quorum, hysteresis) = (i64::from(self.file.quorum), i64::from(self.file.hysteresis));
            if self.is_well && (live == 0 || live < quorum - hysteresis) {
                self.is_well = false;
                if self.file.sorry_server.is_some() {
                    self.displace();
                }
                self.told.push("VS DOWN".to_owned());
            } else if !self.is_well && live > 0 && live >= quorum + hysteresis {
                self.is_well = true;
                self.program();
                self.told.push("VS UP".to_owned());
            }
        }

        fn take(&mut self, server: usize, check: usize, verdict: Verdict) {
            let one = &mut self.servers[server];
            (one.checks[check].1, one.checks[check].2) = (verdict.is_up, verdict.weight_change);
            let failed = one.checks.iter().filter(|check| !check.1).count();
            match (one.is_alive, failed == 0) {
                (true, false) => {
                    (one.is_alive, one.was_told) = (false, true);
                    if !self.is_displaced() {
                        self.take_out(server);
                    }
                    self.say(server, "DOWN");
                }
                (false, true) => {
                    (one.is_alive, one.was_told) = (true, false);
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
                    if !verdict.is_up && !one.was_told {
                        one.was_told = true;
                        self.say(server, "DOWN");
                    }
                }
            }
            self.weigh();
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
                let (was_there, was_alive, was_told, mut checks) =
                    match place.and_then(|old| before[old].take()) {
                        Some(old) => (true, old.is_alive, old.was_told, old.checks),
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
                self.servers.push(NaiveServer { checks, is_alive, was_told: was_told && !is_alive });
                if is_alive && was_there && !was_alive {
                    self.say(server, "UP");
                }
            }
            self.program();
            if self.is_displaced() {
                self.displace();
            }
            self.weigh();
        }
    }

    /// What its only service has.
    fn destinations(pool: &Pool) -> BTreeMap<Endpoint, u32> {
        let (_, service) = pool.table().swap_remove(0);
        let count = service.destinations.len();
        let table: BTreeMap<_, _> = service
            .destinations
            .into_iter()
            .map(|(endpoint, options)| (endpoint, options.weight.0))
            .collect();
        assert_eq!(table.len(), count, "each is there once");
        table
    }

    /// What holds whatever has happened.
    fn assert_sound(pool: &Pool) {
        let file = pool.virtual_server();
        let table = destinations(pool);
        let sorry = file.sorry_server.as_ref().map(|sorry| sorry.endpoint);
        for (server, real) in file.real_servers.iter().enumerate() {
            let is_other = Some(real.endpoint) != sorry;
            match table.get(&real.endpoint) {
                Some(weight) if is_other => {
                    assert!(*weight == 0 || (pool.is_up(server) && !pool.is_sorry()), "{table:?}");
                    assert_eq!(Some(Weight(*weight)), pool.weight(server));
                }
                None => assert!(!real.inhibit_on_failure && (!pool.is_up(server) || pool.is_sorry())),
                Some(_) => {}
            }
        }
        let (live, quorum, hysteresis) =
            (pool.live_weight(), u64::from(file.quorum), u64::from(file.hysteresis));
        match pool.is_well() {
            true => assert!(live > 0 && live + hysteresis >= quorum),
            false => assert!(live == 0 || live < quorum + hysteresis),
        }
        if pool.is_sorry() {
            let serving: Vec<_> = table.iter().filter(|(_, weight)| **weight > 0).collect();
            assert_eq!(serving, [(&sorry.unwrap(), &1)]);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_the_table_and_who_is_told_are_as_step_by_step(
            first in files(),
            steps in steps(),
        ) {
            let mut file = first.virtual_server();
            let (mut pool, told) = Pool::begin(Arc::clone(&file), Beginning::Silent);
            let mut naive = Naive::begin(&file);
            let mut told = lines(&told);
            for step in steps {
                match step {
                    Step::Take(server, check, verdict) => {
                        let server = server % file.real_servers.len();
                        let checks = file.real_servers[server].checks.len();
                        if checks == 0 {
                            continue;
                        }
                        told.extend(lines(&pool.take([(server, check % checks, verdict)])));
                        naive.take(server, check % checks, verdict);
                    }
                    Step::Reload(new) => {
                        file = new.virtual_server();
                        let reloaded = reloaded(pool, &file);
                        told.extend(lines(&reloaded.notices));
                        pool = reloaded.pool;
                        naive.reload(&file);
                    }
                    Step::Again => {
                        let before = pool.clone();
                        let Reloaded { pool: after, notices, origins } = reloaded(pool, &file);
                        prop_assert!(notices.is_empty());
                        prop_assert_eq!(&after, &before);
                        for (server, origins) in origins.iter().enumerate() {
                            for (check, origin) in origins.iter().enumerate() {
                                prop_assert_eq!(*origin, Origin::Kept { server, check });
                            }
                        }
                        pool = after;
                    }
                }
                prop_assert_eq!(destinations(&pool), naive.table.clone());
                prop_assert_eq!(&told, &naive.told);
                assert_sound(&pool);
            }
            let mut quorums = told.iter().filter(|line| line.starts_with("VS")).collect::<Vec<_>>();
            let count = quorums.len();
            quorums.dedup();
            prop_assert_eq!(quorums.len(), count, "each in turn: {:?}", told);
        }

        #[test]
        fn without_hysteresis_the_table_follows_from_what_the_checks_say_and_not_from_what_was(
            file in files(),
            steps in steps(),
        ) {
            let file = File { hysteresis: 0, ..file }.virtual_server();
            let mut pool = begun(&file);
            let mut last = BTreeMap::new();
            for step in steps {
                let Step::Take(server, check, verdict) = step else { continue };
                let server = server % file.real_servers.len();
                if let Some(check) = check.checked_rem(file.real_servers[server].checks.len()) {
                    pool.take([(server, check, verdict)]);
                    last.insert((server, check), verdict);
                }
            }
            let mut other = begun(&file);
            for ((server, check), verdict) in last.into_iter().rev() {
                other.take([(server, check, verdict)]);
            }
            prop_assert_eq!(pool.table(), other.table());
        }
    }
}
