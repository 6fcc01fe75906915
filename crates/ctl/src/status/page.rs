//! The status page: a file for a browser, and the document that the file fetches every two seconds.
//!
//! The thread of metrics reads services, counters and health at most once in [`AGE`], for all viewers together, and
//! without the control thread or a worker. A viewer gets one page of the services that match its search, so what it
//! costs does not depend on the number of services. Memory: some 500 bytes for each real server, once somebody has
//! looked. Not here: the HTTP server (`metrics/exporter.rs`), the fields (`report/page.rs` of `model`).

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::counters::StatsValues;
use xvs_dataplane::snapshot::{Member, Service, Snapshot};
use xvs_model::config::maintenance::DisabledServers;
use xvs_model::report::health::{
    CheckHealth, CheckState, RealServerHealth, VirtualServerHealth, ago,
};
use xvs_model::report::listing::Rates;
use xvs_model::report::page::{PageServer, PageService, ServerState, ServiceState, StatusPage};
use xvs_model::report::status::StatusReport;
use xvs_model::report::unanswered::REPORTED;
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use crate::status::health::{by_service, real_server_indices};
use crate::status::shared::Shared;
use crate::status::warnings::no_quorum;
use crate::status::{Obstacle, obstacle, report, why_unusable};

/// The file for the browser. It needs no other.
pub const FILE: &str = include_str!("page.html");

/// How long a look at the director serves all viewers.
const AGE: Duration = Duration::from_secs(1);
/// The longest time that rates are computed over.
const RATES: Duration = Duration::from_secs(30);
/// A page ends with the service with which it has so many real servers and services.
const ROWS: usize = 300;
/// The documents that are kept for viewers with the same search.
const DOCUMENTS: usize = 32;

/// The last look at the director, and the documents that were made from it.
#[derive(Default)]
pub struct Viewers(Mutex<Option<(Look, HashMap<String, String>)>>);

impl Viewers {
    /// The document for this query of a URL: `search=TEXT`, `problems`, `page=NUMBER`, each of which may be absent.
    /// `date` is in milliseconds since 1970.
    pub fn document(&self, shared: &Shared, query: &str, date: u64) -> String {
        // A panic leaves at worst an older look.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = shared.now();
        if last.as_ref().is_none_or(|(look, _)| look.at.until(now) >= AGE) {
            let look = Look::take(shared, last.as_ref().map(|(look, _)| look), date);
            *last = Some((look, HashMap::new()));
        }
        let (look, documents) = last.as_mut().expect("it was taken above");
        if let Some(document) = documents.get(query) {
            return document.clone();
        }
        let page = look.page(&Query::parse(query));
        let document = serde_json::to_string(&page).expect("no field refuses to be text");
        if documents.len() < DOCUMENTS {
            documents.insert(query.to_owned(), document.clone());
        }
        document
    }
}

/// What a viewer wants to see.
#[derive(Debug, Default, PartialEq)]
struct Query {
    /// Words in lower case that a service or one of its real servers must all have.
    words: Vec<String>,
    /// Whether only services with a problem are wanted.
    only_problems: bool,
    /// The number of the page, from 1.
    page: usize,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for part in text.split('&') {
            match part.split_once('=').unwrap_or((part, "")) {
                ("search", words) => {
                    let words = decoded(words).to_lowercase();
                    query.words = words.split_whitespace().map(str::to_owned).collect();
                }
                ("problems", _) => query.only_problems = true,
                ("page", number) => query.page = number.parse().unwrap_or(0),
                _ => {}
            }
        }
        query
    }
}

/// A value of a URL's query as text.
fn decoded(value: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let [byte, behind @ ..] = rest {
        rest = behind;
        bytes.push(match (byte, digit(behind.first()), digit(behind.get(1))) {
            (b'%', Some(high), Some(low)) => {
                rest = &behind[2..];
                (high << 4 | low) as u8
            }
            (b'+', ..) => b' ',
            _ => *byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The director at one moment.
struct Look {
    at: Millis,
    status: StatusReport,
    total: StatsValues,
    rates: Option<Rates>,
    /// The services, by their keys.
    services: Vec<Looked>,
}

/// A service with its totals.
struct Looked {
    key: ServiceKey,
    stats: StatsValues,
    servers: Vec<(Endpoint, StatsValues)>,
    /// What is searched, in lower case: a line for the service, and for each of its real servers.
    text: String,
    shown: PageService,
}

impl Look {
    fn take(shared: &Shared, before: Option<&Self>, date: u64) -> Self {
        let (snapshot, health, facts, at) =
            (shared.published.load_full(), shared.health(), shared.facts(), shared.now());
        let before = before.filter(|before| before.at.until(at) <= RATES);
        let watched = health.as_ref().map(by_service).unwrap_or_default();
        let reading = Reading {
            snapshot: &snapshot,
            disabled: &facts.disabled,
            seconds: before.map_or(1.0, |before| before.at.until(at).as_secs_f64()),
            now: at,
            date,
        };
        let mut services: Vec<_> = snapshot.services.iter().collect();
        services.sort_unstable_by_key(|service| service.key);
        let looked = |service: &&Service| {
            let before = before.and_then(|before| before.find(&service.key));
            reading.service(service, watched.get(&service.key).copied(), before)
        };
        let services = services.iter().map(looked).collect();
        let total = shared.total.sum();
        let rates = before.map(|before| reading.rates(before.total, total));
        Self { at, status: report(shared, health.as_ref()), total, rates, services }
    }

    fn find(&self, key: &ServiceKey) -> Option<&Looked> {
        let place = self.services.binary_search_by_key(key, |looked| looked.key).ok()?;
        self.services.get(place)
    }

    fn page(&self, query: &Query) -> StatusPage<'_> {
        let problems = || self.services.iter().filter(|looked| looked.shown.state != ServiceState::Ok);
        let is_wanted = |looked: &&Looked| {
            let is_like = |line: &str| query.words.iter().all(|word| line.contains(word));
            (!query.only_problems || looked.shown.state != ServiceState::Ok)
                && looked.text.lines().any(is_like)
        };
        let mut pages = vec![Vec::new()];
        let (mut matching, mut rows) = (0, 0);
        for looked in self.services.iter().filter(is_wanted) {
            if rows >= ROWS {
                pages.push(Vec::new());
                rows = 0;
            }
            pages.last_mut().expect("there is always one").push(&looked.shown);
            matching += 1;
            rows += 1 + looked.shown.servers.len();
        }
        let (page, count) = (query.page.clamp(1, pages.len()), pages.len());
        StatusPage {
            status: &self.status,
            rates: self.rates,
            with_problem: problems().count(),
            matching,
            page,
            pages: count,
            services: pages.swap_remove(page - 1),
        }
    }
}

/// What the rows of a look are made from.
struct Reading<'a> {
    snapshot: &'a Snapshot,
    disabled: &'a DisabledServers,
    /// The time since the look before.
    seconds: f64,
    now: Millis,
    date: u64,
}

impl Reading<'_> {
    fn service(
        &self,
        service: &Service,
        health: Option<&VirtualServerHealth>,
        before: Option<&Looked>,
    ) -> Looked {
        let indices = health.map(|health| real_server_indices(health, service)).unwrap_or_default();
        let mut absent: Vec<_> = health.iter().flat_map(|health| &health.real_servers).map(Some).collect();
        let (mut rows, mut totals, mut usable) = (Vec::new(), Vec::new(), 0);
        for (place, member) in service.members.iter().enumerate() {
            let health = indices.get(place).copied().flatten().and_then(|index| absent[index].take());
            let stats = member.live.stats.sum();
            // Its place is the same, unless real servers were added or deleted.
            let is_it = |(endpoint, _): &&(Endpoint, _)| *endpoint == member.endpoint;
            let former = before.and_then(|before| {
                before.servers.get(place).filter(is_it).or_else(|| before.servers.iter().find(is_it))
            });
            let rates = former.map(|(_, former)| self.rates(*former, stats));
            usable += usize::from(obstacle(member, self.snapshot).is_none());
            rows.push(self.member(service.key, member, health, rates));
            totals.push((member.endpoint, stats));
        }
        if let Some(sorry) = health.and_then(|health| health.sorry_server.as_ref()) {
            let words = if sorry.serves { "serves, because there is no quorum" } else { "stands by" };
            let is_it = |row: &&mut PageServer| sorry.serves && row.server == sorry.endpoint;
            match rows.iter_mut().find(is_it) {
                Some(row) => (row.state, row.words) = (ServerState::Sorry, words.to_owned()),
                None => rows.push(absent_server(&sorry.endpoint, ServerState::Sorry, words.to_owned())),
            }
        }
        rows.extend(absent.into_iter().flatten().map(|server| {
            let (state, mut words) = self.checked(server);
            if server.is_up {
                words.push("not in the service".to_owned());
            }
            absent_server(server.name(), state, words.join("; "))
        }));
        let lost = health.filter(|health| !health.is_well).map(no_quorum);
        let why = lost.or_else(|| {
            why_unusable(service, self.snapshot, self.disabled).map(|(_, why)| why.to_owned())
        });
        let state = match why {
            Some(_) => ServiceState::Down,
            None if rows.iter().any(|row| row.state.is_problem()) => ServiceState::Warning,
            None => ServiceState::Ok,
        };
        let stats = service.live.stats();
        let shown = PageService {
            service: service.key.to_string(),
            state,
            why,
            usable,
            active: rows.iter().map(|row| u64::from(row.active)).sum(),
            inactive: rows.iter().map(|row| u64::from(row.inactive)).sum(),
            rates: before.map(|before| self.rates(before.stats, stats)),
            servers: rows,
        };
        Looked { key: service.key, stats, servers: totals, text: searched(&shown), shown }
    }

    /// A real server that is in the service.
    fn member(
        &self,
        service: ServiceKey,
        member: &Member,
        health: Option<&RealServerHealth>,
        rates: Option<Rates>,
    ) -> PageServer {
        let (checked, mut words) = health.map_or((ServerState::Unchecked, Vec::new()), |health| self.checked(health));
        let unanswered = member.live.recently_unanswered(self.now);
        let (state, more) = match obstacle(member, self.snapshot) {
            _ if self.disabled.includes(service, member.endpoint) => {
                (ServerState::Disabled, "by an operator; `xvs enable` ends that")
            }
            _ if checked == ServerState::Down => (checked, ""),
            Some(Obstacle::NoRoute) => {
                (ServerState::Unreachable, "no route by an attached interface; see `ip route`")
            }
            Some(Obstacle::NoNeighbour) => {
                (ServerState::Unreachable, "its next hop does not answer; see `ip neigh`")
            }
            _ if checked == ServerState::Failing => (checked, ""),
            _ if unanswered >= REPORTED => {
                words.push(format!("{unanswered} connections"));
                (ServerState::Unanswered, "none answered; see `xvs status`")
            }
            Some(Obstacle::Overloaded) => {
                (ServerState::Overloaded, "its upper threshold keeps new connections away")
            }
            Some(Obstacle::Quiescent | Obstacle::Disabled) => {
                (ServerState::Quiescent, "weight 0: no new connections")
            }
            None => (checked, ""),
        };
        words.extend((!more.is_empty()).then(|| more.to_owned()));
        let load = member.live.load();
        PageServer {
            server: member.endpoint.to_string(),
            state,
            words: words.join("; "),
            method: Some(member.method.listed()),
            weight: Some(member.weight.0),
            active: load.active,
            inactive: load.inactive,
            rates,
        }
    }
    /// What the checks of a real server say.
    fn checked(&self, server: &RealServerHealth) -> (ServerState, Vec<String>) {
        let state = match server.trouble() {
            _ if server.checks.is_empty() => return (ServerState::Unchecked, Vec::new()),
            None => ServerState::Up,
            Some(CheckState::Failing { .. }) => ServerState::Failing,
            Some(_) => ServerState::Down,
        };
        let since = format!("for {}", ago(server.since_millis, self.date));
        let is_told = |check: &&CheckHealth| server.is_up || !check.state.is_up();
        let checks = server.checks.iter().filter(is_told).map(check_words);
        (state, iter::once(since).chain(checks).collect())
    }

    /// The rates since the look before.
    fn rates(&self, before: StatsValues, now: StatsValues) -> Rates {
        let rate = |field: fn(&StatsValues) -> u64| {
            // A service that was deleted and added again begins at 0.
            (field(&now).saturating_sub(field(&before)) as f64 / self.seconds).round() as u64
        };
        Rates {
            connections: rate(|stats| stats.connections),
            in_packets: rate(|stats| stats.in_packets),
            out_packets: rate(|stats| stats.out_packets),
            in_bytes: rate(|stats| stats.in_bytes),
            out_bytes: rate(|stats| stats.out_bytes),
        }
    }
}

/// The result of a check's last run: `passed in 1.5 ms`, or `TCP 192.0.2.1:80: failing 1/3, no answer`.
fn check_words(check: &CheckHealth) -> String {
    let CheckHealth { probe, state, last_error, took_micros, .. } = check;
    match (state, last_error, took_micros) {
        (CheckState::Up, _, Some(took)) => format!("passed in {:.1} ms", *took as f64 / 1000.0),
        (CheckState::Down, Some(error), _) => format!("{probe}: {}", error.what),
        (CheckState::Failing { .. } | CheckState::Rising { .. }, Some(error), _) => {
            format!("{probe}: {state}, {}", error.what)
        }
        _ => format!("{probe}: {state}"),
    }
}

/// A real server that is not in the service.
fn absent_server(server: &str, state: ServerState, words: String) -> PageServer {
    let (server, active, inactive) = (server.to_owned(), 0, 0);
    PageServer { server, state, words, method: None, weight: None, active, inactive, rates: None }
}

/// A line for the service, and for each of its real servers one that has the service's name too.
fn searched(service: &PageService) -> String {
    let PageService { service: name, why, servers, .. } = service;
    let mut text = format!("{name} {}\n", why.as_deref().unwrap_or_default());
    for PageServer { server, state, words, method, .. } in servers {
        text += &format!("{name} {server} {state} {} {words}\n", method.unwrap_or_default());
    }
    text.to_lowercase()
}
