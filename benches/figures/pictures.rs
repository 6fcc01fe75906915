//! The pictures of the documents, each of one part of the figures. Pure.
//!
//! Not here: how a chart looks (`chart.rs`), the tables (`tables.rs`).

use crate::chart::{Axis, Bar, Group, Line, Lines, Scale, Tint, bars, grouped, lines, panels};
use crate::data::{Part, Row};

/// A picture: its file's name without `.svg`, its part, and how it is drawn.
pub(crate) type Picture = (&'static str, &'static str, fn(&Part) -> String);

pub(crate) const PICTURES: [Picture; 6] = [
    ("packets", "offload", packets),
    ("connections", "memory", connections),
    ("requests", "requests", requests),
    ("round-trips", "latency", round_trips),
    ("disturbances", "disturbances", disturbances),
    ("flood", "disturbances", flood),
];

/// What all other rows of a table are compared with.
pub(crate) const BASE: &str = "kernel, nftables DNAT";
/// Seconds of a value of `benches/answers.rs`, and the number of those before the event.
const STEP: f64 = 0.1;
const BEFORE: usize = 20;

pub(crate) const PACKETS: [(&str, &str); 2] = [
    ("1000 flows, 360000 packets a second", "360,000 packets a second: CPU ns a packet"),
    ("1000 flows, as many packets as can be offered", "As many as can be offered: CPU ns a packet"),
];
pub(crate) const REQUESTS: [(&str, &str); 2] = [
    ("lasting connections", "Requests over lasting connections: CPU µs a request"),
    ("a connection for each request", "A connection for each request: CPU µs a request"),
];
pub(crate) const DISTURBANCES: [&str; 8] = [
    "xvs: kill -9, start after a second",
    "xvs: take-over",
    "xvs: reload with a successor",
    "xvs: failover by keepalived",
    "HAProxy: restart",
    "HAProxy: reload",
    "nftables DNAT: restart",
    "nftables DNAT: reload",
];
pub(crate) const FLOODS: [&str; 4] =
    ["xvs, NAT: flood", "xvs, NAT, SYN proxy: flood", "nftables DNAT: flood", "HAProxy: flood"];
pub(crate) const LASTING: &str = "lasting connections";
pub(crate) const NEW: &str = "new connections";

fn packets(part: &Part) -> String {
    bars(&PACKETS.map(|(table, title)| group(part, table, title, 1.0)))
}

fn requests(part: &Part) -> String {
    bars(&REQUESTS.map(|(table, title)| group(part, table, title, 1e-3)))
}

/// The rows of a table, with their ratio to the base.
fn group(part: &Part, table: &str, title: &str, scale: f64) -> Group {
    let base = part.row(table, BASE).median();
    let bar = |row: &Row| {
        let (least, most) = row.range();
        let value = row.median() * scale;
        Bar {
            label: row.name.clone(),
            value,
            range: (least * scale, most * scale),
            texts: [short(value), format!("{:.2} ×", row.median() / base)],
            tint: tint(&row.name),
        }
    };
    let rows = part.rows.iter().filter(|row| row.table == table);
    Group { title: title.to_owned(), bars: rows.map(bar).collect() }
}

fn tint(name: &str) -> Tint {
    match name {
        _ if name.contains("offloaded") => Tint::Blue,
        _ if name.starts_with("xvsd") => Tint::Orange,
        _ => Tint::Grey,
    }
}

/// Three digits, or more of a larger number.
fn short(value: f64) -> String {
    match value {
        100.0.. => grouped(value.round()),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn connections(part: &Part) -> String {
    const SERIES: [(&str, Tint); 5] = [
        ("port and MAC addresses (base)", Tint::Grey),
        ("base and a lean table", Tint::Green),
        ("DR", Tint::Blue),
        ("DR, small pages", Tint::Orange),
        ("NAT", Tint::Violet),
    ];
    let points = |name: &str| {
        let rows = part.rows.iter().filter(|row| row.name == name);
        let points = rows.map(|row| (row.table.parse().expect("a number of connections"), row.median()));
        let points: Vec<_> = points.collect();
        assert!(!points.is_empty(), "no row has the name «{name}»");
        points
    };
    let series = SERIES.map(|(name, tint)| Line { label: name.to_owned(), tint, points: points(name) });
    let across = Axis { label: "connections".to_owned(), range: 1e3..1e7, scale: Scale::Decade };
    let most = greatest(&series);
    lines(&Lines {
        title: "A packet of a random connection".to_owned(),
        across,
        up: Axis::linear("CPU ns", 0.0..most),
        lines: series.into(),
    })
}

fn round_trips(part: &Part) -> String {
    const TINTS: [Tint; 4] = [Tint::Grey, Tint::Green, Tint::Orange, Tint::Blue];
    let line = |(row, tint): (&Row, Tint)| {
        let percentiles = row.medians();
        let points = (1..).zip(&percentiles).map(|(percent, ns)| (ns / 1e3, f64::from(percent)));
        Line { label: row.name.clone(), tint, points: points.collect() }
    };
    let all: Vec<_> = part.rows.iter().zip(TINTS).map(line).collect();
    let times = || all.iter().flat_map(|line| line.points.iter().map(|(time, _)| *time));
    let (least, most) = (times().fold(f64::MAX, f64::min), times().fold(0.0, f64::max));
    lines(&Lines {
        title: "A request and its answer, one at a time".to_owned(),
        across: Axis::linear("µs", least..most),
        up: Axis::linear("% answered", 0.0..100.0),
        lines: all,
    })
}

fn disturbances(part: &Part) -> String {
    panels(&DISTURBANCES.map(|event| timeline(part, event)))
}

fn flood(part: &Part) -> String {
    panels(&FLOODS.map(|event| timeline(part, event)))
}

/// Answers of the first round, as a percentage of those before the event.
fn timeline(part: &Part, event: &str) -> Lines {
    let line = |(name, tint): (&str, Tint)| {
        let answers = &part.row(event, name).rounds[0];
        let usual = answers[..BEFORE].iter().sum::<f64>() / BEFORE as f64;
        let points = answers.iter().enumerate();
        let points =
            points.map(|(step, count)| ((step as f64 - BEFORE as f64) * STEP, 100.0 * count / usual));
        Line { label: name.to_owned(), tint, points: points.collect() }
    };
    let all = [(LASTING, Tint::Blue), (NEW, Tint::Orange)].map(line);
    let end = part.row(event, LASTING).rounds[0].len() - BEFORE;
    Lines {
        title: event.to_owned(),
        across: Axis::linear("seconds", -(BEFORE as f64 * STEP)..end as f64 * STEP),
        up: Axis::linear("% of answers", 0.0..greatest(&all)),
        lines: all.into(),
    }
}

/// A bit more than the greatest value.
fn greatest(lines: &[Line]) -> f64 {
    1.1 * lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).fold(1.0, f64::max)
}
