//! The status page: a file for a browser, and the documents that the file fetches: the state every two seconds, the
//! counts over the last hour every ten.
//!
//! The thread of metrics reads services, counters and health at most once a second, for all viewers together, and
//! without the control thread or a worker. A viewer gets one page of whole services that match its search, so its
//! document does not grow with their number; a new search reads the texts of all services. Memory: some 500 bytes for
//! each real server, from the first request on.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::body::Bytes;
use xvs_ctl::registry::estimator::totals;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::local_addresses::LocalAddresses;
use xvs_model::report::health::{CheckHealth, CheckState, RealServerHealth, SorryServerHealth, ago};
use xvs_model::report::listing::{Rates, Stats};
use xvs_model::report::page::{PageServer, PageService, ServerState, ServiceState, StatusPage};
use xvs_model::report::response::ResponseTimes;
use xvs_model::report::status::StatusReport;
use xvs_model::report::unanswered::REPORTED;
use xvs_sched::{ClientLimit, ServiceKey};

use crate::shared::Shared;
use crate::status::report;
use crate::status::services::{Obstacle, ServerReport, ServiceReport, Services};
use crate::status::warnings::health::no_quorum;

/// The file for the browser. It needs no other.
pub const FILE: &str = include_str!("page.html");

/// The time for which one reading of the director serves all viewers.
const AGE: Duration = Duration::from_secs(1);
/// The longest time that rates are computed over.
const RATES: Duration = Duration::from_secs(30);
/// A page ends with the service that brings its real servers and services to this number.
const ROWS: usize = 300;
/// Maximum number of search terms that count, so that no search occupies the thread for long.
const WORDS: usize = 8;
/// The documents that are kept for viewers with the same search.
const DOCUMENTS: usize = 32;

/// The last reading of the director, and the documents that were created from it.
#[derive(Default)]
pub struct Viewers(Mutex<Option<(Look, Documents)>>);

/// The documents by kind and query.
type Documents = HashMap<(Document, String), Bytes>;

/// The document that a viewer requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Document {
    /// `/status.json`.
    Status,
    /// `/history.json`.
    LastHour,
}

impl Viewers {
    /// A document for this query of a URL: `search=TEXT`, `problems`, `page=NUMBER`, each of which may be absent.
    /// `date` is in milliseconds since 1970.
    pub fn document(&self, shared: &Shared, document: Document, query: &str, date: u64) -> Bytes {
        // A panic leaves at worst an older reading.
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = shared.now();
        if last.as_ref().is_none_or(|(look, _)| look.taken.until(now) >= AGE) {
            let look = Look::take(shared, last.as_ref().map(|(look, _)| look), date);
            *last = Some((look, HashMap::new()));
        }
        let (look, documents) = last.as_mut().expect("it was taken above");
        let key = (document, query.to_owned());
        if let Some(made) = documents.get(&key) {
            return made.clone();
        }
        let (page, services) = look.page(&Query::parse(query));
        let made = match document {
            Document::Status => serde_json::to_vec(&page),
            Document::LastHour => {
                let names = services.iter().map(|looked| (&looked.key, &*looked.shown.service));
                serde_json::to_vec(&shared.last_hour.report(names))
            }
        };
        let made = Bytes::from(made.expect("no field refuses to be text"));
        if documents.len() < DOCUMENTS {
            documents.insert(key, made.clone());
        }
        made
    }
}

/// A viewer's query.
#[derive(Default)]
struct Query {
    /// Terms in lower case that a service or one of its real servers must all contain.
    words: Vec<String>,
    /// Whether only services with a problem are wanted.
    only_problems: bool,
    /// The number of the page, from 1.
    page: usize,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(text.as_bytes()) {
            match &*key {
                "search" => {
                    query.words =
                        value.to_lowercase().split_whitespace().take(WORDS).map(str::to_owned).collect();
                }
                "problems" => query.only_problems = true,
                "page" => query.page = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        query
    }

    fn is_for(&self, looked: &Looked) -> bool {
        (!self.only_problems || looked.has_problem())
            && looked.text.lines().any(|line| self.words.iter().all(|word| line.contains(word)))
    }
}

/// The director at one moment.
struct Look {
    at: Millis,
    /// When it was complete.
    taken: Millis,
    status: StatusReport,
    totals: Stats,
    rates: Option<Rates>,
    sloppy_tcp: bool,
    locals: Arc<LocalAddresses>,
    /// The services, by their keys.
    services: Vec<Looked>,
}

/// A service.
struct Looked {
    key: ServiceKey,
    /// The searched text, in lower case: a line for the service, and for each of its real servers.
    text: String,
    shown: PageService,
}

impl Looked {
    fn has_problem(&self) -> bool {
        self.shown.state != ServiceState::Ok
    }

    /// The totals of a real server, whose index is `place` unless real servers were added or deleted.
    fn totals(&self, place: usize, server: &str) -> Option<Stats> {
        let servers = &self.shown.servers;
        servers
            .get(place)
            .filter(|one| one.server == server)
            .or_else(|| servers.iter().find(|one| one.server == server))?
            .totals
    }
}

impl Look {
    fn take(shared: &Shared, before: Option<&Self>, date: u64) -> Self {
        let snapshot = shared.published.load_full();
        let health = shared.health();
        let facts = shared.facts();
        let at = shared.now();
        let before = before.filter(|before| before.at.until(at) <= RATES);
        let responses = shared.responses.last();
        let reading = Reading {
            services: Services::new(&snapshot, health.as_ref(), &facts.disabled, &responses, at),
            seconds: before.map_or(1.0, |before| before.at.until(at).as_secs_f64()),
            date,
        };
        let mut services: Vec<_> = reading
            .services
            .reports()
            .map(|report| {
                reading.service(&report, before.and_then(|before| before.find(&report.service.key)))
            })
            .collect();
        services.sort_unstable_by_key(|looked| looked.key);
        let totals = totals(shared.total.sum());
        Self {
            at,
            status: report(shared, health.as_ref()),
            taken: shared.now(),
            totals,
            rates: before.map(|before| reading.rates(&before.totals, &totals)),
            sloppy_tcp: snapshot.settings.sloppy_tcp,
            locals: snapshot.locals.clone(),
            services,
        }
    }

    fn find(&self, key: &ServiceKey) -> Option<&Looked> {
        let index = self.services.binary_search_by_key(key, |looked| looked.key).ok()?;
        Some(&self.services[index])
    }

    /// A page, and its services.
    fn page(&self, query: &Query) -> (StatusPage<'_>, Vec<&Looked>) {
        let mut pages = vec![Vec::new()];
        let mut matching = 0;
        let mut rows = 0;
        for looked in self.services.iter().filter(|looked| query.is_for(looked)) {
            if rows >= ROWS {
                pages.push(Vec::new());
                rows = 0;
            }
            pages.last_mut().expect("there is always one").push(looked);
            matching += 1;
            rows += 1 + looked.shown.servers.len();
        }
        let count = pages.len();
        let page = query.page.clamp(1, count);
        let [local_addresses, standby_addresses] = self.locals.addresses();
        let services = pages.swap_remove(page - 1);
        let page = StatusPage {
            status: &self.status,
            rates: self.rates,
            totals: self.totals,
            active: self.services.iter().map(|looked| looked.shown.active).sum(),
            inactive: self.services.iter().map(|looked| looked.shown.inactive).sum(),
            with_problem: self.services.iter().filter(|looked| looked.has_problem()).count(),
            matching,
            page,
            pages: count,
            sloppy_tcp: self.sloppy_tcp,
            local_addresses,
            standby_addresses,
            services: services.iter().map(|looked| &looked.shown).collect(),
        };
        (page, services)
    }
}

/// The data for the rows of a reading.
struct Reading<'a> {
    services: Services<'a>,
    /// The time since the previous reading.
    seconds: f64,
    date: u64,
}

impl Reading<'_> {
    fn rates(&self, before: &Stats, now: &Stats) -> Rates {
        now.rates_since(before, self.seconds).rounded()
    }

    fn service(&self, report: &ServiceReport<'_>, before: Option<&Looked>) -> Looked {
        let ServiceReport { service, health, servers, absent } = report;
        let mut rows = Vec::new();
        for (place, server) in servers.iter().enumerate() {
            let mut row = self.server(server);
            let former = before.and_then(|before| before.totals(place, &row.server));
            row.rates = former.zip(row.totals).map(|(former, totals)| self.rates(&former, &totals));
            rows.push(row);
        }
        if let Some(sorry) = health.and_then(|health| health.sorry_server.as_ref()) {
            add_sorry(&mut rows, sorry, report.place_of(sorry));
        }
        rows.extend(absent.iter().map(|server| {
            let (state, mut words) = self.checked(server);
            if server.is_up {
                words.push("not in the service".to_owned());
            }
            absent_server(server.name(), state, words.join("; "))
        }));
        let why = health
            .filter(|health| !health.is_well)
            .map(no_quorum)
            .or_else(|| report.why_unusable(|server| server.obstacle).map(str::to_owned));
        let state = match why {
            Some(_) => ServiceState::Down,
            None if rows.iter().any(|row| row.state.is_problem()) => ServiceState::Warning,
            None => ServiceState::Ok,
        };
        let totals = totals(service.live.stats());
        let shown = PageService {
            service: service.key.to_string(),
            rule: service.rule.to_string(),
            state,
            why,
            usable: servers.iter().filter(|server| server.obstacle.is_none()).count(),
            active: rows.iter().filter_map(|row| row.active).map(u64::from).sum(),
            inactive: rows.iter().filter_map(|row| row.inactive).map(u64::from).sum(),
            rates: before.map(|before| self.rates(&before.shown.totals, &totals)),
            totals,
            limit: service.client_limit.or_else(|| self.syn_limit(service.key)),
            servers: rows,
        };
        Looked { key: service.key, text: searched(&shown), shown }
    }

    /// A real server that is in the service, without rates.
    fn server(&self, report: &ServerReport<'_>) -> PageServer {
        let ServerReport { member, health, unanswered, .. } = *report;
        let (checked, mut words) =
            health.map_or((ServerState::Unchecked, Vec::new()), |health| self.checked(health));
        let (state, more) = match report.obstacle {
            _ if report.disabled => (ServerState::Disabled, "by an operator; `xvs enable` ends that"),
            _ if checked == ServerState::Down => (checked, ""),
            Some(Obstacle::NoRoute) => {
                (ServerState::Unreachable, "no route by an attached interface; see `ip route`")
            }
            Some(Obstacle::NoNeighbour) => {
                (ServerState::Unreachable, "its next hop does not answer; see `ip neigh`")
            }
            _ if checked == ServerState::Failing => (checked, ""),
            _ if unanswered >= REPORTED => {
                words.push(format!("{unanswered} connections, none answered"));
                (ServerState::Unanswered, "see `xvs status`")
            }
            Some(Obstacle::Overloaded) => {
                (ServerState::Overloaded, "its upper threshold keeps new connections away")
            }
            Some(Obstacle::Quiescent | Obstacle::Disabled) => {
                (ServerState::Quiescent, "weight 0: no new connections")
            }
            None => (checked, ""),
        };
        // The time is that of the checks.
        if let Some(since) = words.first_mut().filter(|_| ![state, ServerState::Unchecked].contains(&checked))
        {
            *since = format!("{checked} {since}");
        }
        words.extend(
            member
                .slow_start_percent(self.services.now)
                .map(|percent| format!("slow start: {percent} % of its share")),
        );
        words.extend((!more.is_empty()).then(|| more.to_owned()));
        let load = member.live.load();
        let (upper, lower) = member.live.thresholds();
        PageServer {
            method: Some(member.method.listed()),
            weight: Some(member.weight.0),
            active: Some(load.active),
            inactive: Some(load.inactive),
            totals: Some(totals(member.live.stats.sum())),
            response: report.responses.and_then(ResponseTimes::summary),
            upper_threshold: (upper > 0).then_some(upper),
            lower_threshold: (upper > 0).then_some(lower),
            ..absent_server(&member.endpoint.to_string(), state, words.join("; "))
        }
    }

    /// The limit of a service that limits only the SYNs of all clients together.
    fn syn_limit(&self, service: ServiceKey) -> Option<ClientLimit> {
        let rate = self.services.snapshot.syn_limits.as_ref()?.get(&service)?.rate;
        Some(ClientLimit { syn_rate: rate.rate, syn_burst: rate.burst, ..ClientLimit::default() })
    }

    /// The result of a real server's checks.
    fn checked(&self, server: &RealServerHealth) -> (ServerState, Vec<String>) {
        let state = match server.trouble() {
            _ if server.checks.is_empty() => return (ServerState::Unchecked, Vec::new()),
            None => ServerState::Up,
            Some(CheckState::Failing { .. }) => ServerState::Failing,
            Some(_) => ServerState::Down,
        };
        let mut words = vec![format!("for {}", ago(server.since_millis, self.date))];
        words.extend(
            server.checks.iter().filter(|check| server.is_up || !check.state.is_up()).map(check_words),
        );
        (state, words)
    }
}

/// The result of a check's last run: `passed in 1.5 ms`, `the agent says "drain": 0 % of the weight`, or
/// `TCP 192.0.2.1:80: failing 1/3, no answer`.
fn check_words(check: &CheckHealth) -> String {
    let CheckHealth { probe, state, last_error, took_micros, agent, .. } = check;
    match (state, last_error, took_micros, agent) {
        (CheckState::Up, _, Some(_), Some(agent)) => {
            format!(
                "the agent says \"{}\": {:.0} % of the weight",
                agent.answer,
                100.0 * agent.weight_ratio()
            )
        }
        (CheckState::Up, Some(error), None, _) | (CheckState::Down, Some(error), _, _) => {
            format!("{probe}: {}", error.what)
        }
        (CheckState::Up, _, Some(took), None) => format!("passed in {:.1} ms", *took as f64 / 1000.0),
        (CheckState::Failing { .. } | CheckState::Rising { .. }, Some(error), _, _) => {
            format!("{probe}: {state}, {}", error.what)
        }
        _ => format!("{probe}: {state}"),
    }
}

/// Adds the activity of a sorry server to its row, which is the one at `place`, or a new one.
fn add_sorry(rows: &mut Vec<PageServer>, sorry: &SorryServerHealth, place: Option<usize>) {
    let words = if sorry.serves { "serves, because there is no quorum" } else { "stands by" };
    match place.map(|place| &mut rows[place]) {
        // The reason that keeps it from serving is more important.
        Some(row) if row.state.is_problem() => {}
        Some(row) => {
            row.state = ServerState::Sorry;
            words.clone_into(&mut row.words);
        }
        None => rows.push(absent_server(&sorry.endpoint, ServerState::Sorry, words.to_owned())),
    }
}

/// A real server that is not in the service.
fn absent_server(server: &str, state: ServerState, words: String) -> PageServer {
    PageServer {
        server: server.to_owned(),
        state,
        words,
        method: None,
        weight: None,
        active: None,
        inactive: None,
        rates: None,
        totals: None,
        response: None,
        upper_threshold: None,
        lower_threshold: None,
    }
}

/// A line for the service, and a line for each of its real servers that also has the service's name.
fn searched(service: &PageService) -> String {
    let PageService { service: name, state, why, servers, .. } = service;
    // As the page shows it.
    let state = if *state == ServiceState::Down { "down" } else { "" };
    let mut text = format!("{name} {state} {}\n", why.as_deref().unwrap_or_default());
    for PageServer { server, state, words, method, .. } in servers {
        text += &format!("{name} {server} {state} {} {words}\n", method.unwrap_or_default());
    }
    text.to_lowercase()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use xvs_ctl::config::fleet::host_name;
    use xvs_dataplane::clock::Clock;
    use xvs_model::report::health::sample::{NOW, real_server, report as health_report, virtual_server};
    use xvs_model::report::health::{AgentHealth, AgentMode, CheckError};
    use xvs_proto::network::Network;

    use crate::restart::kept_hour::KeptHour;
    use crate::status::page::*;
    use crate::status::tests::daemon_in;

    /// A daemon with these rules and a clock that stands still; 192.0.2.1 to .9 are its neighbours.
    fn still(rules: &str) -> Shared {
        let mut network = Network::default();
        let mac = "02:00:00:00:00:01".parse().unwrap();
        network.add_link("lan", mac, &[([192, 0, 2, 254].into(), 24)], 1500).unwrap();
        (1..10).for_each(|host| network.add_neighbour([192, 0, 2, host].into(), mac, "lan").unwrap());
        Shared { clock: Arc::new(Clock::by_hand()), ..daemon_in(&network, rules) }
    }

    fn document(viewers: &Viewers, shared: &Shared, query: &str) -> Value {
        serde_json::from_slice(&viewers.document(shared, Document::Status, query, NOW)).unwrap()
    }

    #[test]
    fn the_words_of_a_check_say_what_an_agent_grants_and_that_a_check_did_not_run() {
        let mut check = real_server("192.0.2.1", CheckState::Up).checks.remove(0);
        (check.state, check.took_micros, check.last_error) = (CheckState::Up, Some(1500), None);
        assert_eq!(check_words(&check), "passed in 1.5 ms");
        let (answer, mode) = ("drain".to_owned(), AgentMode::Drain);
        check.agent =
            Some(AgentHealth { answer, at_millis: NOW, weight_percent: 50, excessive_percent: None, mode });
        assert_eq!(check_words(&check), "the agent says \"drain\": 0 % of the weight");
        let what = "no answer within 5 s".to_owned();
        (check.took_micros, check.last_error) = (None, Some(CheckError { what, at_millis: NOW }));
        assert_eq!(check_words(&check), format!("{}: no answer within 5 s", check.probe));
    }

    /// The services of a document.
    fn names(document: &Value) -> Vec<&str> {
        let services = document["services"].as_array().unwrap();
        services.iter().map(|service| service["service"].as_str().unwrap()).collect()
    }

    #[test]
    fn each_real_server_has_its_state_and_the_reason_in_words_also_if_it_is_not_in_the_service() {
        let service = "-t 198.51.100.1:80";
        let server = |rest: &str| format!("-a {service} -r {rest}\n");
        let servers = [
            "192.0.2.5 -g",
            "192.0.2.4 -g -w 0",
            "203.0.113.13 -g",
            "192.0.2.13 -g",
            "192.0.2.2 -g",
            "192.0.2.1 -g",
        ];
        let rules = format!("-A {service} -s rr\n{}", servers.map(server).concat());
        let shared = still(&rules);
        let failing = CheckState::Failing { failures: 1, fall: 3 };
        let rising = CheckState::Rising { successes: 1, rise: 2 };
        let servers = vec![
            real_server("192.0.2.1", CheckState::Up),
            real_server("192.0.2.2", failing),
            real_server("192.0.2.12", CheckState::Down),
            real_server("192.0.2.14", rising),
            real_server("192.0.2.15", CheckState::Up),
        ];
        let mut one = virtual_server("198.51.100.1", servers);
        one.sorry_server = Some(SorryServerHealth { endpoint: "192.0.2.99:80".to_owned(), serves: false });
        let report = health_report(vec![one]);
        let _ = shared.report.set(report);
        let document = document(&Viewers::default(), &shared, "");
        let service = &document["services"][0];
        let texts =
            |server: &Value| ["server", "state", "words"].map(|key| server[key].as_str().unwrap().to_owned());
        let found: Vec<_> = service["servers"].as_array().unwrap().iter().map(texts).collect();
        let expected = [
            ["192.0.2.1:80", "up", "for 1 h 0 min; passed in 1.5 ms"],
            [
                "192.0.2.2:80",
                "failing",
                "for 1 h 0 min; TCP 192.0.2.2:80: failing 1/3, connection refused by 192.0.2.12:80",
            ],
            ["192.0.2.13:80", "unreachable", "its next hop does not answer; see `ip neigh`"],
            ["203.0.113.13:80", "unreachable", "no route by an attached interface; see `ip route`"],
            ["192.0.2.4:80", "quiescent", "weight 0: no new connections"],
            ["192.0.2.5:80", "unchecked", ""],
            ["192.0.2.99:80", "sorry", "stands by"],
            ["192.0.2.12:80", "down", "for 12 s; TCP 192.0.2.12:80: connection refused by 192.0.2.12:80"],
            [
                "192.0.2.14:80",
                "down",
                "for 12 s; TCP 192.0.2.14:80: rising 1/2, connection refused by 192.0.2.12:80",
            ],
            ["192.0.2.15:80", "up", "for 1 h 0 min; passed in 1.5 ms; not in the service"],
        ];
        assert_eq!(found, expected.map(|row| row.map(str::to_owned)));
        assert_eq!(
            (&service["state"], &service["usable"], &service["why"]),
            (&"warning".into(), &3.into(), &Value::Null)
        );
        assert_eq!(
            (&service["servers"][0]["method"], &service["servers"][0]["weight"]),
            (&"Route".into(), &1.into())
        );
        assert_eq!(
            (&service["servers"][7]["method"], &service["servers"][7]["weight"]),
            (&Value::Null, &Value::Null)
        );
    }

    #[test]
    fn totals_and_limits_stand_beside_the_counts_and_the_host_beside_the_version() {
        let rules = "-A -t 198.51.100.1:80 -s rr\n-a -t 198.51.100.1:80 -r 192.0.2.1 -g -x 100\n\
                     -a -t 198.51.100.1:80 -r 192.0.2.2 -g\n-A -t 198.51.100.1:81 -s rr\n\
                     #xvs limit set -t 198.51.100.1:80 --connections 50\n\
                     #xvs limit set -t 198.51.100.1:81 --syn-rate 5000\n";
        let shared = still(rules);
        let snapshot = shared.published.load();
        let live = &snapshot.services.iter().find(|service| service.port() == 80).unwrap().members[1].live;
        [live.stats.of_worker(0), shared.total.of_worker(0)].iter().for_each(|stats| stats.count_in(60));
        let page = document(&Viewers::default(), &shared, "");
        let (service, servers) = (&page["services"][0], &page["services"][0]["servers"]);
        for totals in [&page["totals"], &service["totals"], &servers[1]["totals"]] {
            assert_eq!((&totals["in_packets"], &totals["in_bytes"]), (&1.into(), &60.into()));
        }
        assert_eq!((&page["active"], &page["inactive"]), (&0.into(), &0.into()));
        let thresholds =
            |server: &Value| ["upper_threshold", "lower_threshold"].map(|key| server[key].clone());
        assert_eq!(thresholds(&servers[0]), [Value::Null, Value::Null]);
        assert_eq!(thresholds(&servers[1]), [Value::from(100), Value::from(75)]);
        let limits =
            [(0, "connections"), (1, "syn_rate")].map(|(place, key)| &page["services"][place]["limit"][key]);
        assert_eq!(limits, [&Value::from(50), &Value::from(5000)]);
        assert_eq!(page["status"]["host"], host_name());
    }

    #[test]
    fn the_time_that_checks_count_is_not_given_for_another_state() {
        let shared = still("-A -t 198.51.100.1:80 -s rr\n-a -t 198.51.100.1:80 -r 192.0.2.1 -g -w 0\n");
        let one = virtual_server("198.51.100.1", vec![real_server("192.0.2.1", CheckState::Up)]);
        let report = health_report(vec![one]);
        let _ = shared.report.set(report);
        let document = document(&Viewers::default(), &shared, "");
        let server = &document["services"][0]["servers"][0];
        assert_eq!(server["state"], "quiescent");
        assert_eq!(server["words"], "up for 1 h 0 min; passed in 1.5 ms; weight 0: no new connections");
    }

    #[test]
    fn a_page_has_what_the_directors_of_a_fleet_must_agree_about() {
        let rules = "#xvs laddr add 192.0.2.51\n#xvs laddr add 192.0.2.52 --standby\n\
                     -A -t 198.51.100.1:80 -s mh -b mh-port -p 300\n\
                     -A -t 198.51.100.1:81 -s sh\n#xvs -E -t 198.51.100.1:81 -s sh --syn-proxy on\n";
        let page = document(&Viewers::default(), &still(rules), "");
        let rules: Vec<_> =
            page["services"].as_array().unwrap().iter().map(|service| service["rule"].clone()).collect();
        assert_eq!(
            rules,
            ["-t 198.51.100.1:80 -s mh -p 300 -b mh-port", "-t 198.51.100.1:81 -s sh --syn-proxy on",]
        );
        let told = ["sloppy_tcp", "local_addresses", "standby_addresses"].map(|key| page[key].clone());
        assert_eq!(
            told,
            [false.into(), serde_json::json!(["192.0.2.51"]), serde_json::json!(["192.0.2.52"])]
        );
    }

    #[test]
    fn a_service_without_quorum_is_down_and_shows_its_sorry_server() {
        let shared = still("-A -t 198.51.100.1:80 -s rr\n-a -t 198.51.100.1:80 -r 192.0.2.9 -g\n");
        let mut one = virtual_server("198.51.100.1", vec![real_server("192.0.2.12", CheckState::Down)]);
        one.sorry_server = Some(SorryServerHealth { endpoint: "192.0.2.9:80".to_owned(), serves: true });
        let report = health_report(vec![one]);
        let _ = shared.report.set(report);
        let document = document(&Viewers::default(), &shared, "");
        let service = &document["services"][0];
        let why = "has no quorum: live weight 0, quorum 1; its sorry server 192.0.2.9:80 serves; see `xvs health --down`";
        assert_eq!((&service["state"], &service["why"]), (&"down".into(), &why.into()));
        let states: Vec<_> =
            service["servers"].as_array().unwrap().iter().map(|server| &server["state"]).collect();
        assert_eq!(states, ["sorry", "down"]);
        assert_eq!(service["servers"][0]["words"], "serves, because there is no quorum");
        assert_eq!(service["servers"][0]["weight"], 1);
        assert_eq!(document["status"]["warnings"][0], format!("TCP 198.51.100.1:80 {why}"));
    }

    #[test]
    fn one_look_serves_all_viewers_for_a_second_and_rates_are_those_since_the_look_before() {
        let shared = still("-A -t 198.51.100.1:80 -s rr\n-a -t 198.51.100.1:80 -r 192.0.2.1 -g\n");
        let viewers = Viewers::default();
        let count = |packets| {
            let snapshot = shared.published.load();
            let live = &snapshot.services.iter().next().unwrap().members[0].live;
            let totals = [live.stats.of_worker(0), shared.total.of_worker(0)];
            totals.iter().for_each(|stats| (0..packets).for_each(|_| stats.count_in(60)));
        };
        let first = document(&viewers, &shared, "");
        let rates = |document: &Value| {
            let service = &document["services"][0];
            [&document["rates"], &service["rates"], &service["servers"][0]["rates"]].map(Value::clone)
        };
        assert_eq!(rates(&first), [Value::Null, Value::Null, Value::Null]);
        count(8);
        shared.clock.advance(AGE - Duration::from_millis(1));
        assert_eq!(document(&viewers, &shared, ""), first);
        shared.clock.advance(Duration::from_millis(1001));
        for rates in rates(&document(&viewers, &shared, "search=192")) {
            assert_eq!((&rates["in_packets"], &rates["in_bytes"]), (&4.into(), &240.into()));
            assert_eq!((&rates["out_packets"], &rates["connections"]), (&0.into(), &0.into()));
        }
        shared.clock.advance(RATES + Duration::from_millis(1));
        assert_eq!(rates(&document(&viewers, &shared, "")), [Value::Null, Value::Null, Value::Null]);
    }

    #[test]
    fn the_last_hour_has_the_totals_and_the_services_of_the_same_page() {
        let rules = (1..=3).map(|port| {
            format!(
                "-A -t 198.51.100.1:{port} -s rr\n-a -t 198.51.100.1:{port} -r 192.0.2.{port} -g -w {}\n",
                port % 2
            )
        });
        let shared = still(&rules.collect::<String>());
        let viewers = Viewers::default();
        let lines = |query: &str| -> Value {
            serde_json::from_slice(&viewers.document(&shared, Document::LastHour, query, NOW)).unwrap()
        };
        assert_eq!(lines("")["services"]["connections"]["TCP 198.51.100.1:1"], serde_json::json!([]));
        KeptHour::default().record(&shared);
        let snapshot = shared.published.load_full();
        let service = snapshot.services.iter().find(|service| service.port() == 2).unwrap();
        service.members[0].live.stats.of_worker(0).connections.add(5);
        shared.total.of_worker(0).connections.add(5);
        shared.total.of_worker(0).count_in(60);
        shared.workers()[0].kernel_ring_full.add(7);
        shared.clock.advance(Duration::from_secs(60));
        KeptHour::default().record(&shared);
        let all = lines("page=1");
        let totals = &all["totals"];
        assert_eq!((&totals["step_seconds"], &all["services"]["step_seconds"]), (&10.into(), &60.into()));
        // Six steps in one reading: each has its share.
        assert_eq!(totals["connections"], serde_json::json!([1, 1, 1, 1, 1, 1]));
        assert_eq!(totals["in_packets"], serde_json::json!([0, 0, 0, 0, 0, 0]));
        assert_eq!(totals["dropped_packets"], serde_json::json!([1, 1, 1, 1, 1, 1]));
        let found = |lines: &Value| lines["services"]["connections"].clone();
        let counts = |port, count| (format!("TCP 198.51.100.1:{port}"), serde_json::json!([count]));
        assert_eq!(found(&all), Value::from_iter([counts(1, 0), counts(2, 5), counts(3, 0)]));
        assert_eq!(found(&lines("search=:3")), Value::from_iter([counts(3, 0)]));
        assert_eq!(found(&lines("problems")), Value::from_iter([counts(2, 5)]));
    }

    #[test]
    fn a_search_finds_rows_that_have_all_its_words_and_pages_end_with_a_whole_service() {
        let rules: String = (1..=200)
            .map(|port| {
                let weight = usize::from(port != 7);
                format!(
                    "-A -t 198.51.100.1:{port} -s rr\n-a -t 198.51.100.1:{port} -r 192.0.2.1 -g -w {weight}\n"
                )
            })
            .collect();
        let shared = still(&format!("{rules}-a -t 198.51.100.1:9 -r 192.0.2.2 -g -w 0\n"));
        let viewers = Viewers::default();
        let of = |query: &str| document(&viewers, &shared, query);
        let numbers = |document: &Value| {
            ["matching", "with_problem", "page", "pages"].map(|key| document[key].as_u64().unwrap())
        };
        let first = of("");
        assert_eq!(numbers(&first), [200, 1, 1, 2]);
        assert_eq!((names(&first).len(), names(&first)[0]), (150, "TCP 198.51.100.1:1"));
        for (query, page) in [("page=2", 2), ("page=3", 2), ("page=0", 1), ("page=x", 1), ("other=1", 1)] {
            assert_eq!(numbers(&of(query)), [200, 1, page, 2], "{query}");
        }
        assert_eq!(names(&of("page=2"))[0], "TCP 198.51.100.1:151");
        assert_eq!(names(&of("problems")), ["TCP 198.51.100.1:7"]);
        for (search, expected) in [
            ("quiescent", &["TCP 198.51.100.1:7", "TCP 198.51.100.1:9"][..]),
            ("Quiescent%20%20192.0.2.2", &["TCP 198.51.100.1:9"]),
            ("quiescent+192.0.2.1", &["TCP 198.51.100.1:7"]),
            ("%3A19+route", &["TCP 198.51.100.1:19", "TCP 198.51.100.1:190"]),
            ("tcp%20%3cb%3E", &[]),
            ("%FF%zz%", &[]),
        ] {
            assert!(names(&of(&format!("search={search}"))).starts_with(expected), "{search}");
            let matching = of(&format!("search={search}"))["matching"].clone();
            assert_eq!(matching == 0, expected.is_empty(), "{search}");
        }
        (0..2 * DOCUMENTS).for_each(|number| drop(of(&format!("search={number}"))));
        assert!(viewers.0.lock().unwrap().as_ref().unwrap().1.len() <= DOCUMENTS);
    }
}
