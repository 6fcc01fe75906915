//! Random histories of a virtual server, compared with a model that performs one step at a time as keepalived does.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::virtual_server::*;

use super::{UP, lines, reloaded, started, virtual_server};

/// A random configuration.
#[derive(Debug, Clone)]
struct File {
    quorum: u32,
    hysteresis: u32,
    sorry: Option<(u8, bool)>,
    /// For each: last component of the address, weight, `inhibit_on_failure`, checks.
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
        for (last, weight, inhibit, checks) in &self.servers {
            let inhibit = on(*inhibit);
            text +=
                &format!("real_server 10.1.0.{last} 80 {{\nweight {weight}\ninhibit_on_failure {inhibit}\n");
            for (port, alpha) in checks {
                text += &format!("TCP_CHECK {{\nconnect_port {port}\nalpha {}\n}}\n", on(*alpha));
            }
            text += "}\n";
        }
        virtual_server(&text)
    }
}

fn on(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
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
    let result = (any::<bool>(), prop_oneof![3 => Just(0), 1 => -4..4_i64]).prop_map(|(is_up, change)| {
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
            let checks: Vec<_> =
                real.checks.iter().map(|check| (check.probe.clone(), !check.timing.begins_down, 0)).collect();
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

    /// Fills the table for the state in which the real servers serve.
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
        let quorum = i64::from(self.file.quorum);
        let hysteresis = i64::from(self.file.hysteresis);
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
            let now =
                real.checks.iter().map(|check| match checks.iter().position(|old| old.0 == check.probe) {
                    Some(same) => checks.remove(same),
                    None if was_there => (check.probe.clone(), was_alive, 0),
                    None => (check.probe.clone(), !check.timing.begins_down, 0),
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
    let table: BTreeMap<_, _> =
        service.destinations.into_iter().map(|(endpoint, options)| (endpoint, options.weight.0)).collect();
    assert_eq!(table.len(), count, "no endpoint occurs twice");
    table
}

/// Asserts the invariants of every state.
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
    let live = state.live_weight();
    let quorum = u64::from(file.quorum);
    let hysteresis = u64::from(file.hysteresis);
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
        let Reloaded { mut state, notices, .. } = VirtualServerState::start(Arc::clone(&file), InitialNotices::Omitted, Arc::default());
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
