//! The rows and header of `xvs top`: rates between two sets of totals, sorted and filtered, as lines of text. No
//! terminal, no clock.

use std::cmp::Ordering;
use std::collections::HashMap;

use xvs_model::duration;
use xvs_model::report::health::CheckState;
use xvs_model::report::listing::{Rates, Stats};
use xvs_model::report::response::{ResponseSummary, short_time};
use xvs_model::report::status::WorkerStatus;
use xvs_model::report::traffic::{DestinationTraffic, ServiceTraffic, Traffic};
use xvs_model::report::unanswered::REPORTED;

use crate::output::text::counted;

/// The sort key of rows; numbers in descending, names in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Sort {
    /// New connections a second.
    Connections,
    /// Packets a second, both directions.
    Packets,
    /// Bytes a second, both directions.
    Bytes,
    /// Active connections.
    Active,
    /// Inactive connections.
    Inactive,
    /// The median time until the first reply.
    Response,
    /// Protocol and address.
    Name,
}

/// The keyboard's keys for the sort keys.
pub(super) const SORT_KEYS: [(char, Sort); 7] = [
    ('c', Sort::Connections),
    ('p', Sort::Packets),
    ('b', Sort::Bytes),
    ('a', Sort::Active),
    ('i', Sort::Inactive),
    ('r', Sort::Response),
    ('n', Sort::Name),
];

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    /// The service or the endpoint of the real server, with the mark of its checks.
    name: String,
    /// The method and the weight of a real server.
    method: String,
    /// The problems to show.
    notes: String,
    pub(super) level: Level,
    pub(super) rates: Rates<f64>,
    active: u64,
    inactive: u64,
    /// The response times of a real server, if they were measured.
    response: Option<ResponseSummary>,
}

/// The object that a line describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Total,
    Service,
    Destination,
}

/// The rates between two totals; 0 without earlier ones.
fn rates(before: Option<&Stats>, now: &Stats, seconds: f64) -> Rates<f64> {
    match before {
        Some(before) if seconds > 0.0 => now.rates_since(before, seconds),
        _ => Rates::default(),
    }
}

impl Row {
    fn of_service(service: &ServiceTraffic, before: Option<&ServiceTraffic>, seconds: f64) -> Self {
        Self {
            name: service.key.to_string(),
            method: String::new(),
            notes: match service.down {
                0 => String::new(),
                down => format!(" {down} down"),
            },
            level: Level::Service,
            rates: rates(before.map(|before| &before.stats), &service.stats, seconds),
            active: service.destinations.iter().map(|dest| u64::from(dest.active)).sum(),
            inactive: service.destinations.iter().map(|dest| u64::from(dest.inactive)).sum(),
            response: None,
        }
    }

    fn of_destination(dest: &DestinationTraffic, before: Option<&DestinationTraffic>, seconds: f64) -> Self {
        let (mark, failing) = match dest.trouble {
            None if dest.unanswered >= REPORTED => ('!', format!(" {} unanswered", dest.unanswered)),
            None => (' ', String::new()),
            Some(CheckState::Failing { failures, fall }) => ('!', format!(" {failures}/{fall}")),
            Some(_) => ('x', String::new()),
        };
        let disabled = if dest.disabled { " disabled" } else { "" };
        Self {
            name: format!("{mark} {}", dest.endpoint),
            method: format!(" {} {}", dest.method.listed(), dest.weight.0),
            notes: failing + disabled,
            level: Level::Destination,
            rates: rates(before.map(|before| &before.stats), &dest.stats, seconds),
            active: dest.active.into(),
            inactive: dest.inactive.into(),
            response: dest.response,
        }
    }

    fn is_like(&self, filter: &str) -> bool {
        self.label().to_lowercase().contains(filter)
    }

    /// The order of two rows.
    fn compare(&self, other: &Self, sort: Sort) -> Ordering {
        other.number(sort).total_cmp(&self.number(sort)).then_with(|| self.name.cmp(&other.name))
    }

    fn number(&self, sort: Sort) -> f64 {
        match sort {
            Sort::Connections => self.rates.connections,
            Sort::Packets => self.rates.in_packets + self.rates.out_packets,
            Sort::Bytes => self.rates.in_bytes + self.rates.out_bytes,
            Sort::Active => self.active as f64,
            Sort::Inactive => self.inactive as f64,
            Sort::Response => self.response.map_or(0.0, |response| response.median_micros as f64),
            Sort::Name => 0.0,
        }
    }

    fn label(&self) -> String {
        format!("{}{}{}", self.name, self.method, self.notes)
    }

    /// The label in this many characters: without method and weight where they have no room.
    fn label_within(&self, most: usize) -> String {
        let label = self.label();
        if label.chars().count() <= most {
            return label;
        }
        shortened(&format!("{}{}", self.name, self.notes), most)
    }

    /// The row as a line.
    pub(super) fn line(&self, columns: &Columns) -> String {
        let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = self.rates;
        let mut numbers = [connections, in_packets, out_packets, in_bytes, out_bytes].map(short).to_vec();
        numbers.extend([self.active, self.inactive].map(|count| match count {
            0..1000 => count.to_string(),
            many => short(many as f64),
        }));
        numbers.extend(match self.response {
            Some(times) => [times.median_micros, times.percentile_99_micros].map(short_time),
            None => [String::new(), String::new()],
        });
        columns.line(&self.label_within(columns.room()), &numbers)
    }
}

/// All rows in their order: services, each with its destinations.
#[derive(Debug)]
pub(super) struct Rows {
    /// The sum of all services, whatever the filter.
    pub(super) total: Row,
    /// The length of the longest name with its notes.
    longest: usize,
    pub(super) rows: Vec<Row>,
}

impl Rows {
    /// The rows to show. A service that matches the filter keeps all its destinations; a destination that matches is
    /// shown with its service.
    pub(super) fn new(before: Option<&Traffic>, now: &Traffic, sort: Sort, filter: &str) -> Self {
        let before = before.filter(|before| before.at_millis < now.at_millis);
        let seconds = seconds_between(before, now);
        let known: HashMap<_, _> =
            before.iter().flat_map(|before| &before.services).map(|service| (service.key, service)).collect();
        let filter = filter.to_lowercase();
        let mut total = Row {
            name: "all services".to_owned(),
            method: String::new(),
            notes: String::new(),
            level: Level::Total,
            rates: Rates::default(),
            active: 0,
            inactive: 0,
            response: None,
        };
        let mut groups = Vec::new();
        for service in &now.services {
            let before = known.get(&service.key).copied();
            let row = Row::of_service(service, before, seconds);
            total.rates += row.rates;
            total.active += row.active;
            total.inactive += row.inactive;
            let known: HashMap<_, _> = before
                .iter()
                .flat_map(|before| &before.destinations)
                .map(|dest| (dest.endpoint, dest))
                .collect();
            let mut members: Vec<_> = service
                .destinations
                .iter()
                .map(|dest| Row::of_destination(dest, known.get(&dest.endpoint).copied(), seconds))
                .collect();
            if !row.is_like(&filter) {
                members.retain(|member| member.is_like(&filter));
                if members.is_empty() {
                    continue;
                }
            }
            members.sort_by(|one, other| one.compare(other, sort));
            groups.push((row, members));
        }
        groups.sort_by(|(one, _), (other, _)| one.compare(other, sort));
        let mut rows = Vec::new();
        for (service, members) in groups {
            rows.push(service);
            rows.extend(members);
        }
        let longest = rows
            .iter()
            .chain([&total])
            .map(|row| row.name.chars().count() + row.notes.chars().count())
            .max()
            .unwrap_or(0);
        Self { total, longest, rows }
    }
}

/// The lines above the table: the director's state, the busiest workers, dropped packets.
pub(super) fn header(before: Option<&Traffic>, now: &Traffic, width: usize) -> [String; 3] {
    let status = &now.status;
    let state = match status.warnings.len() {
        0 => "ok".to_owned(),
        1 => "1 warning (xvs status)".to_owned(),
        many => format!("{many} warnings (xvs status)"),
    };
    let servers = match status.health {
        Some(counts) => format!("{} of {} real servers up", counts.real_servers_up, counts.real_servers),
        None => counted(status.destinations, "real server", "real servers"),
    };
    [
        format!(
            "{state}   {}, {servers}, table {:.1} %, xvsd {}, up {}",
            counted(status.services, "service", "services"),
            status.table.percent,
            status.version,
            duration::in_words(status.uptime_seconds)
        ),
        format!("workers  {}", listed(workers(before, now), width.saturating_sub(9))),
        format!("drops/s  {}", listed(drops(before, now), width.saturating_sub(9))),
    ]
    .map(|line| cut(&line, width))
}

/// The names of the columns, as in `xvsadm -L --rate`, and their sort keys. The last two are the median and the 99th
/// percentile of the time until the first reply, in the last full minute.
const COLUMNS: [(&str, Sort); 9] = [
    ("CPS", Sort::Connections),
    ("InPPS", Sort::Packets),
    ("OutPPS", Sort::Packets),
    ("InBPS", Sort::Bytes),
    ("OutBPS", Sort::Bytes),
    ("Active", Sort::Active),
    ("InAct", Sort::Inactive),
    ("Resp50", Sort::Response),
    ("Resp99", Sort::Response),
];

/// The columns in the order of their importance, as positions.
const IMPORTANCE: [usize; 9] = [0, 5, 1, 3, 6, 2, 4, 7, 8];

/// The columns that a screen has room for.
pub(super) struct Columns {
    shown: Vec<usize>,
    sort: Sort,
    /// Columns of the screen.
    width: usize,
}

impl Columns {
    /// As many columns as leave room for the longest name, the most important ones first, and always the column by
    /// which rows are sorted.
    pub(super) fn within(width: usize, rows: &Rows, sort: Sort) -> Self {
        let mut fitting = (width.saturating_sub(rows.longest + 1) / COLUMN).max(1);
        // Either both times or neither.
        if fitting + 1 == COLUMNS.len() {
            fitting -= 1;
        }
        let by = COLUMNS.iter().position(|(_, key)| *key == sort);
        let others = IMPORTANCE.into_iter().filter(|column| Some(*column) != by);
        let mut shown: Vec<_> = by.into_iter().chain(others).take(fitting).collect();
        shown.sort_unstable();
        Self { shown, sort, width }
    }

    /// All columns, and room for the longest name; not less than `width`.
    pub(super) fn all(width: usize, rows: &Rows, sort: Sort) -> Self {
        let width = width.max(rows.longest + 1 + COLUMN * COLUMNS.len());
        Self { shown: (0..COLUMNS.len()).collect(), sort, width }
    }

    /// The characters that a label may have.
    fn room(&self) -> usize {
        self.width.saturating_sub(COLUMN * self.shown.len() + 1)
    }

    /// The column names; that of the sort key is marked.
    pub(super) fn titles(&self) -> String {
        let titles =
            COLUMNS.map(|(name, by)| if by == self.sort { format!(">{name}") } else { name.to_owned() });
        let first = if self.sort == Sort::Name { ">Service, real servers" } else { "Service, real servers" };
        self.line(&shortened(first, self.room()), &titles)
    }

    /// A label followed by right-aligned columns.
    fn line(&self, label: &str, cells: &[String]) -> String {
        let cells: String = self.shown.iter().map(|column| format!("{:>COLUMN$}", cells[*column])).collect();
        format!("{label:<0$} {cells}", self.room())
    }
}

/// A text that is too long loses its middle: the end of a label has the port.
fn shortened(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let tail = most / 2;
    let end: String = text.chars().skip(length - tail).collect();
    cut(text, most - tail) + &end
}

/// Utilization and packet rates of each worker, the busiest first.
fn workers(before: Option<&Traffic>, now: &Traffic) -> Vec<String> {
    let seconds = seconds_between(before, now);
    let mut workers: Vec<_> = now
        .status
        .workers
        .iter()
        .enumerate()
        .map(|(number, worker)| {
            let busy = worker.busy_percent.unwrap_or(0.0);
            let [received, sent] = [WorkerStatus::received, WorkerStatus::sent].map(|count| match before {
                Some(before) if seconds > 0.0 => {
                    let earlier = before.status.workers.get(number).map_or(0, count);
                    short(count(worker).saturating_sub(earlier) as f64 / seconds)
                }
                _ => short(0.0),
            });
            (busy, format!("{number}: {busy:.1} % busy, {received} in/s, {sent} out/s"))
        })
        .collect();
    workers.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    workers.into_iter().map(|(_, text)| text).collect()
}

/// Drop reasons with their rates, the most frequent first.
fn drops(before: Option<&Traffic>, now: &Traffic) -> Vec<String> {
    let rates = drop_rates(before, now);
    if rates.is_empty() {
        return vec!["none".to_owned()];
    }
    rates.into_iter().map(|(rate, reason)| format!("{reason} {}", short(rate))).collect()
}

/// Dropped packets a second, for all reasons.
pub(super) fn drop_rate(before: Option<&Traffic>, now: &Traffic) -> f64 {
    drop_rates(before, now).iter().map(|(rate, _)| rate).sum()
}

/// The reasons for drops between two samples, with packets a second, the most frequent first.
fn drop_rates(before: Option<&Traffic>, now: &Traffic) -> Vec<(f64, String)> {
    let seconds = seconds_between(before, now);
    let Some(before) = before.filter(|_| seconds > 0.0) else { return Vec::new() };
    let mut dropped = Vec::new();
    let reasons: HashMap<_, _> =
        before.status.drops.iter().map(|drops| (&drops.reason, drops.packets)).collect();
    for drops in &now.status.drops {
        // The counts of lists and limits include what workers drop for these reasons.
        if !["denied", "not_allowed", "syn_rate"].contains(&drops.reason.as_str()) {
            let earlier = reasons.get(&drops.reason).copied().unwrap_or(0);
            dropped.push((drops.packets.saturating_sub(earlier), drops.reason.clone()));
        }
    }
    for list in &now.status.lists {
        let earlier = before.status.lists.iter().find(|earlier| earlier.list == list.list);
        let packets = list.dropped.saturating_sub(earlier.map_or(0, |earlier| earlier.dropped));
        dropped.push((packets, list.list.to_string()));
    }
    let limits: HashMap<_, _> =
        before.status.syn_limits.iter().map(|limit| (limit.service, limit.dropped)).collect();
    for limit in &now.status.syn_limits {
        let earlier = limits.get(&limit.service).copied().unwrap_or(0);
        dropped.push((limit.dropped.saturating_sub(earlier), format!("SYN limit of {}", limit.service)));
    }
    dropped.retain(|(packets, _)| *packets > 0);
    dropped.sort_by(|one, other| other.0.cmp(&one.0).then_with(|| one.1.cmp(&other.1)));
    dropped.into_iter().map(|(packets, reason)| (packets as f64 / seconds, reason)).collect()
}

fn seconds_between(before: Option<&Traffic>, now: &Traffic) -> f64 {
    before.map_or(0, |before| now.at_millis.saturating_sub(before.at_millis)) as f64 / 1000.0
}

/// As many items as fit, followed by the number of the other items.
fn listed(all: Vec<String>, width: usize) -> String {
    let mut text = String::new();
    for (number, one) in all.iter().enumerate() {
        let more = format!("   … {} more", all.len() - number);
        let gap = if text.is_empty() { "" } else { "   " };
        let rest = if number + 1 < all.len() { more.chars().count() } else { 0 };
        if number > 0 && text.chars().count() + gap.len() + one.chars().count() + rest > width {
            return text + &more;
        }
        text += gap;
        text += one;
    }
    text
}

/// A text cut to `width` characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    text.chars().take(room).chain(['…']).collect()
}

/// A number in at most five characters.
pub(super) fn short(mut number: f64) -> String {
    if number == 0.0 {
        return "0".to_owned();
    }
    let mut units = ["", "k", "M", "G", "T", "P", "E"].iter();
    let mut unit = units.next().expect("there are some");
    while number >= 999.5 {
        number /= 1000.0;
        unit = units.next().unwrap_or(unit);
    }
    if number < 9.95 { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// Characters of a column of numbers, the gap before it included.
const COLUMN: usize = 7;

#[cfg(test)]
mod tests {
    use xvs_proto::Endpoint;
    use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

    use crate::top::view::*;
    use xvs_model::report::status::{Drops, StatusReport};
    use xvs_model::sample;

    fn stats(connections: u64, in_packets: u64, in_bytes: u64) -> Stats {
        Stats { connections, in_packets, in_bytes, ..Stats::default() }
    }

    fn dest(last: u8, active: u32, stats: Stats) -> DestinationTraffic {
        let endpoint = Endpoint::new(std::net::Ipv4Addr::new(192, 0, 2, last), 80);
        let (method, weight) = (ForwardingMethod::Nat, Weight(1));
        DestinationTraffic {
            endpoint,
            method,
            weight,
            disabled: false,
            active,
            inactive: 2,
            unanswered: 0,
            trouble: None,
            stats,
            response: None,
        }
    }

    fn traffic(at_millis: u64, services: Vec<(&str, Stats, Vec<DestinationTraffic>)>) -> Traffic {
        let services = services.into_iter().map(|(key, stats, destinations)| {
            let key: ServiceKey = key.parse().unwrap();
            ServiceTraffic { key, stats, down: 0, destinations }
        });
        Traffic { at_millis, status: sample::status(), services: services.collect() }
    }

    /// Two sets of totals, two seconds apart.
    fn samples() -> (Traffic, Traffic) {
        let (web, dns) = ("TCP 198.51.100.1:80", "UDP 198.51.100.1:53");
        let before = traffic(
            1000,
            vec![
                (
                    web,
                    stats(10, 100, 1000),
                    vec![dest(11, 1, stats(5, 50, 500)), dest(12, 1, stats(5, 50, 500))],
                ),
                (dns, stats(0, 0, 0), vec![dest(13, 0, stats(0, 0, 0))]),
            ],
        );
        let now = traffic(
            3000,
            vec![
                (
                    web,
                    stats(14, 104, 9000),
                    vec![dest(11, 1, stats(6, 51, 600)), dest(12, 9, stats(8, 53, 8400))],
                ),
                (
                    dns,
                    stats(2, 400, 4000),
                    vec![dest(13, 3, stats(2, 400, 4000)), dest(14, 0, stats(0, 0, 0))],
                ),
            ],
        );
        (before, now)
    }

    fn labels(sort: Sort, filter: &str) -> Vec<String> {
        let (before, now) = samples();
        let rows = Rows::new(Some(&before), &now, sort, filter).rows;
        rows.into_iter()
            .map(|row| {
                row.label()
                    .trim()
                    .split(' ')
                    .nth(usize::from(row.level == Level::Service))
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn services_and_the_real_servers_of_each_are_sorted_by_the_same_key() {
        let (web, dns) = ("198.51.100.1:80", "198.51.100.1:53");
        let [a, b, c, d] = [11, 12, 13, 14].map(|last| format!("192.0.2.{last}:80"));
        let by_traffic = [web, &b, &a, dns, &c, &d];
        assert_eq!(labels(Sort::Connections, ""), by_traffic);
        assert_eq!(labels(Sort::Bytes, ""), by_traffic);
        assert_eq!(labels(Sort::Packets, ""), [dns, &c, &d, web, &b, &a]);
        assert_eq!(labels(Sort::Active, ""), by_traffic);
        assert_eq!(labels(Sort::Name, ""), [web, &a, &b, dns, &c, &d]);
    }

    #[test]
    fn a_filter_keeps_matching_services_whole_and_other_services_with_their_matching_servers() {
        assert_eq!(labels(Sort::Name, "udp"), ["198.51.100.1:53", "192.0.2.13:80", "192.0.2.14:80"]);
        assert_eq!(labels(Sort::Name, "2.12"), ["198.51.100.1:80", "192.0.2.12:80"]);
        assert_eq!(labels(Sort::Name, "masq").len(), 6);
        assert!(labels(Sort::Name, "absent").is_empty());
    }

    #[test]
    fn rates_are_differences_per_second_and_the_total_counts_all_services_despite_a_filter() {
        let (before, now) = samples();
        let all = Rows::new(Some(&before), &now, Sort::Name, "2.12");
        let columns = Columns::within(80, &all, Sort::Name);
        let Rows { total, rows, .. } = all;
        assert_eq!(
            rows[0].line(&columns),
            "TCP 198.51.100.1:80                2.0    2.0      0   4.0k      0     10      4"
        );
        assert_eq!(rows[1].line(&columns).split_whitespace().collect::<Vec<_>>()[3..6], ["1.5", "1.5", "0"]);
        assert_eq!((total.rates.in_packets, total.active), (202.0, 13));
        assert!(rows.iter().all(|row| row.line(&columns).chars().count() == 80));
    }

    #[test]
    fn there_are_no_rates_without_earlier_totals_or_after_a_restart() {
        let (before, now) = samples();
        for (before, now) in [(None, &now), (Some(&now), &before), (Some(&now), &now)] {
            let total = Rows::new(before, now, Sort::Name, "").total;
            assert_eq!(total.rates, Rates::default());
        }
        // The counters of a service that was deleted and added again restart at 0.
        assert_eq!(rates(Some(&stats(100, 0, 0)), &stats(4, 0, 0), 2.0).connections, 2.0);
    }

    #[test]
    fn numbers_have_at_most_five_characters() {
        for (number, text) in [
            (0.0, "0"),
            (0.04, "0.0"),
            (9.94, "9.9"),
            (9.95, "10"),
            (999.4, "999"),
            (999.5, "1.0k"),
            (12_345.0, "12k"),
            (999_499.0, "999k"),
            (1e9, "1.0G"),
            (1.8e19, "18E"),
        ] {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn the_header_shows_busy_workers_first_and_the_number_that_does_not_fit() {
        let worker = |busy_percent, received| WorkerStatus {
            busy_percent,
            counters: [("rx_packets".to_owned(), received)].into(),
            ..sample::worker()
        };
        let drops = |reason: &str, packets| Drops { reason: reason.to_owned(), packets, what: String::new() };
        let sample = |at_millis, packets: u64| Traffic {
            at_millis,
            status: StatusReport {
                health: None,
                workers: vec![worker(Some(1.0), packets), worker(Some(97.0), 0), worker(None, 0)],
                drops: vec![drops("no_route", packets), drops("unasked", 10)],
                ..sample::status()
            },
            services: Vec::new(),
        };
        let (before, now) = (sample(0, 0), sample(2000, 3000));
        let lines = header(Some(&before), &now, 100);
        assert!(
            lines[0].starts_with("1 warning (xvs status)   ")
                && lines[0].contains("1 service, 2 real servers, table 0.3 %, xvsd 1.2.3, up 59 s"),
            "{lines:?}"
        );
        assert_eq!(
            lines[1],
            "workers  1: 97.0 % busy, 0 in/s, 0 out/s   0: 1.0 % busy, 1.5k in/s, 0 out/s   … 1 more"
        );
        assert_eq!(lines[2], "drops/s  no_route 1.5k");
        assert_eq!(header(None, &now, 80)[2], "drops/s  none");
        assert!(header(Some(&before), &now, 40).iter().all(|line| line.chars().count() <= 40));
    }

    /// The totals of [`samples`], with a real server that has a long address.
    fn long() -> Traffic {
        let (_, mut now) = samples();
        let addr = "2001:db8:2:0:1111:2222:3333:4444".parse().unwrap();
        now.services[0].destinations[1].endpoint = Endpoint { addr, port: 8080 };
        now.services[0].down = 1;
        now
    }

    #[test]
    fn a_narrow_screen_leaves_out_columns_that_matter_least_before_it_cuts_a_name() {
        let (_, now) = samples();
        for (now, width, sort, titles, method) in [
            (&now, 80, Sort::Connections, ">CPS InPPS OutPPS InBPS OutBPS Active InAct", true),
            (&now, 60, Sort::Connections, ">CPS InPPS InBPS Active InAct", true),
            (&now, 60, Sort::Bytes, "CPS InPPS >InBPS Active InAct", true),
            (&now, 40, Sort::Inactive, "CPS >InAct", true),
            (&long(), 80, Sort::Connections, ">CPS InPPS InBPS Active InAct", false),
            (&long(), 60, Sort::Packets, "CPS >InPPS", false),
            (&long(), 50, Sort::Name, "CPS", false),
        ] {
            let all = Rows::new(None, now, sort, "");
            let columns = Columns::within(width, &all, sort);
            let shown = columns.titles();
            assert!(
                shown.ends_with(&titles.split(' ').map(|title| format!("{title:>7}")).collect::<String>()),
                "{shown}"
            );
            for row in &all.rows {
                let line = row.line(&columns);
                assert!(line.starts_with(&row.name) && line.contains(&row.notes), "{line}");
                assert!(row.level == Level::Service || !method || line.contains(" Masq 1 "), "{line}");
                assert_eq!(line.chars().count(), width, "{line}");
            }
        }
    }

    #[test]
    fn a_wide_screen_shows_how_long_real_servers_take_and_sorts_by_the_median() {
        let (_, mut now) = samples();
        now.services[0].destinations[0].response =
            Some(ResponseSummary { connections: 9, median_micros: 1200, percentile_99_micros: 40_000 });
        let all = Rows::new(None, &now, Sort::Response, "");
        let columns = Columns::all(80, &all, Sort::Response);
        assert!(columns.titles().ends_with("  InAct>Resp50>Resp99"), "{}", columns.titles());
        let members: Vec<_> = all
            .rows
            .iter()
            .filter(|row| row.level == Level::Destination)
            .map(|row| row.line(&columns))
            .collect();
        assert!(
            members[0].contains("192.0.2.11:80") && members[0].ends_with("  1.2ms   40ms"),
            "{members:?}"
        );
        assert!(members[1].ends_with("  2              "), "{members:?}");
    }

    #[test]
    fn a_name_that_does_not_fit_beside_one_column_keeps_its_beginning_and_its_port() {
        let all = Rows::new(None, &long(), Sort::Name, "");
        let row = all.rows.iter().find(|row| row.name.contains("2001")).unwrap();
        let line = row.line(&Columns::within(40, &all, Sort::Name));
        assert_eq!(line, "  [2001:db8:2:0…:3333:4444]:8080       0");
        for width in 0..100 {
            let columns = Columns::within(width, &all, Sort::Connections);
            assert_eq!(columns.titles().chars().count(), width.max(COLUMN + 1));
            assert_eq!(row.line(&columns).chars().count(), width.max(COLUMN + 1));
        }
    }

    #[test]
    fn a_plain_frame_has_all_columns_and_whole_names() {
        let all = Rows::new(None, &long(), Sort::Name, "");
        let columns = Columns::all(80, &all, Sort::Name);
        assert!(columns.titles().ends_with("  CPS  InPPS OutPPS  InBPS OutBPS Active  InAct Resp50 Resp99"));
        assert!(all.rows.iter().all(|row| row.line(&columns).starts_with(&row.name)));
    }

    #[test]
    fn servers_that_are_down_or_failing_are_marked_and_counted() {
        let (_, mut now) = samples();
        let web = &mut now.services[0];
        web.down = 2;
        web.destinations[0].trouble = Some(CheckState::Failing { failures: 1, fall: 3 });
        web.destinations[1].trouble = Some(CheckState::Down);
        let all = Rows::new(None, &now, Sort::Name, "198.51.100.1:80");
        let columns = Columns::within(80, &all, Sort::Name);
        let told = ["TCP 198.51.100.1:80 2 down ", "! 192.0.2.11:80 Masq 1 1/3 ", "x 192.0.2.12:80 Masq 1 "];
        for (row, told) in all.rows.iter().zip(told) {
            let line = row.line(&columns);
            assert!(line.starts_with(told) && line.chars().count() == 80, "{line}");
        }
        assert!(header(None, &now, 80)[0].contains("12 of 13 real servers up, table"));
    }

    #[test]
    fn the_column_that_rows_are_sorted_by_is_marked() {
        let (_, now) = samples();
        for (_, sort) in SORT_KEYS {
            let titles = Columns::within(80, &Rows::new(None, &now, sort, ""), sort).titles();
            assert!(titles.contains('>') && titles.chars().count() == 80, "{titles}");
        }
    }
}
