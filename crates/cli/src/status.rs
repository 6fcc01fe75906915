//! `xvs status`: whether all is well, on one screen.

use std::io::Write;

use clap::Args;
use serde_json::Value;
use xvs_model::client::{Director, Failure};
use xvs_model::duration;
use xvs_model::health::Counts;
use xvs_model::reply::Reply;
use xvs_model::request::Request;

use crate::exit::{DONE, Done};
use crate::health;
use crate::text::{counted, line};

/// What follows `xvs status`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let report = match director.call(Request::Status)? {
        Reply::Report(report) => report,
        other => return Err(Failure::unexpected(&other).into()),
    };
    if arguments.json {
        writeln!(out, "{report:#}")?;
    } else {
        out.write_all(screen(&report).as_bytes())?;
    }
    Ok(DONE)
}

/// The report as people read it. The first word is `ok` or `warning`; what is to be seen to comes next.
fn screen(report: &Value) -> String {
    let warnings = list(&report["warnings"]);
    let below = match warnings.len() {
        0 => String::new(),
        1 => "; one thing to see to:".to_owned(),
        many => format!("; {many} things to see to:"),
    };
    let mut lines = vec![line(
        text(&report["state"]),
        &format!(
            "xvsd {}, up {}, configuration {}{below}",
            text(&report["version"]),
            duration::in_words(report["uptime_seconds"].as_u64().unwrap_or(0)),
            report["epoch"],
        ),
    )];
    lines.extend(warnings.iter().map(|warning| line("warning", text(warning))));
    lines.extend(list(&report["interfaces"]).iter().map(interface));
    lines.extend(list(&report["workers"]).iter().enumerate().map(worker));
    let without = match report["services_without_destination"].as_u64() {
        None | Some(0) => String::new(),
        Some(services) => format!(" ({services} without a usable real server)"),
    };
    let services = counted(&report["services"], "virtual service", "virtual services");
    let servers = counted(&report["destinations"], "real server", "real servers");
    lines.push(line("services", &format!("{services}{without}, {servers}")));
    let health: Option<Counts> = serde_json::from_value(report["health"].clone()).ok();
    lines.extend(health.map(|counts| line("health", &health::counted(counts))));
    lines.extend(rules(report));
    let table = &report["table"];
    lines.push(line(
        "table",
        &format!(
            "{} of {} connections ({} %), {}",
            table["connections"],
            table["size"],
            table["percent"],
            text(&table["pages"])
        ),
    ));
    lines.extend(drops(&report["recent_drops"]));
    lines.concat()
}

fn interface(interface: &Value) -> String {
    let why = interface["why_not_native"].as_str();
    let why = why.map(|why| format!(" (native refused: {why})")).unwrap_or_default();
    let (name, mode, state) = (text(&interface["name"]), text(&interface["mode"]), text(&interface["state"]));
    let queues = counted(&interface["queues"], "queue", "queues");
    let again = match interface["attached_again"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => ", attached again once".to_owned(),
        Some(times) => format!(", attached again {times} times"),
    };
    line("interface", &format!("{name}: {state}, {mode} XDP{why}, {queues}{again}"))
}

fn worker((number, worker): (usize, &Value)) -> String {
    let core = worker["core"].as_u64().map_or("not pinned".to_owned(), |core| format!("core {core}"));
    let busy = worker["busy_percent"].as_f64().map(|busy| format!(", {busy:.1} % busy")).unwrap_or_default();
    let count = |name: &str| worker["counters"][name].as_u64().unwrap_or(0);
    let told = format!(
        "{core}{busy}, {}, {}; received {}, sent {}, passed to the kernel {}",
        share(&worker["queues"]),
        text(&worker["copy_mode"]),
        count("rx_packets"),
        count("tx_packets"),
        count("passed_to_kernel"),
    );
    line(&format!("worker {number}"), &told)
}

/// What there is to say of the file of rules, and of rules that wait to be confirmed.
fn rules(report: &Value) -> Vec<String> {
    let rules = &report["rules"];
    let file = text(&rules["file"]);
    let drift = match (&rules["error"], &rules["faults"], &rules["differences"]) {
        (Value::String(error), ..) => Some(format!("{file}: {error}")),
        (_, faults @ Value::Number(_), _) => {
            Some(format!("{} in {file}; see `xvs check {file}`", counted(faults, "fault", "faults")))
        }
        (.., differences @ Value::Number(_)) if *differences != 0 => {
            let differences = counted(differences, "difference", "differences");
            Some(format!("{differences} to {file}; see `xvs plan {file}`"))
        }
        _ => None,
    };
    let waits = report["unconfirmed_seconds"].as_u64();
    let waits = waits.map(|left| format!("applied, and taken back in {left} s; `xvs confirm` keeps them"));
    drift.iter().chain(&waits).map(|told| line("rules", told)).collect()
}

/// What was dropped of late.
fn drops(recent: &Value) -> Vec<String> {
    let reasons = list(&recent["reasons"]);
    let when = match recent["seconds"].as_u64() {
        Some(seconds) if seconds < 60 => format!("in the {seconds} s since the start"),
        _ => "in the last minute".to_owned(),
    };
    if reasons.is_empty() {
        return vec![line("drops", &format!("none {when}"))];
    }
    let rows = reasons.iter().map(|drop| {
        line("drops", &format!("{} {}: {}", drop["packets"], text(&drop["reason"]), text(&drop["what"])))
    });
    std::iter::once(line("drops", &format!("{when}:"))).chain(rows).collect()
}

/// A worker's queues of each interface.
fn share(queues: &Value) -> String {
    let of = |(name, numbers): (&String, &Value)| {
        let list: Vec<_> = list(numbers).iter().map(Value::to_string).collect();
        format!("{name} {} {}", if list.len() == 1 { "queue" } else { "queues" }, list.join(","))
    };
    queues.as_object().map(|queues| queues.iter().map(of).collect::<Vec<_>>().join(", ")).unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::status::*;

    #[test]
    fn the_screen_counts_one_as_one_and_shows_each_interfaces_state_and_queues() {
        let report = json!({
            "state": "warning", "warnings": ["wan is gone; restart xvsd"],
            "version": "1", "uptime_seconds": 59, "epoch": 4,
            "services": 1, "services_without_destination": 0, "destinations": 2,
            "health": { "real_servers": 13, "real_servers_up": 12,
                        "virtual_servers": 3, "virtual_servers_well": 2 },
            "interfaces": [
                { "name": "lan", "mode": "native", "why_not_native": null, "queues": 1, "state": "up" },
                { "name": "wan", "mode": "generic", "why_not_native": "busy", "queues": 2, "state": "gone" },
            ],
            "workers": [
                { "core": 1, "queues": { "lan": [0], "wan": [0, 1] }, "copy_mode": "zero-copy",
                  "busy_percent": 12.5, "counters": {} },
            ],
            "table": { "size": 1024, "connections": 3, "percent": 0.3, "pages": "small pages" },
            "recent_drops": { "seconds": 61, "reasons": [
                { "reason": "kernel_ring_full", "packets": 7, "what": "too slow" },
            ] },
        });
        let expected = "warning    xvsd 1, up 59 s, configuration 4; one thing to see to:\n\
            warning    wan is gone; restart xvsd\n\
            interface  lan: up, native XDP, 1 queue\n\
            interface  wan: gone, generic XDP (native refused: busy), 2 queues\n\
            worker 0   core 1, 12.5 % busy, lan queue 0, wan queues 0,1, zero-copy; received\n           \
            0, sent 0, passed to the kernel 0\n\
            services   1 virtual service, 2 real servers\n\
            health     12 of 13 real servers up, 2 of 3 virtual servers well\n\
            table      3 of 1024 connections (0.3 %), small pages\n\
            drops      in the last minute:\n\
            drops      7 kernel_ring_full: too slow\n";
        assert_eq!(screen(&report), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_word_that_is_longer_than_a_line_has_one_for_itself_and_keeps_all_its_letters() {
        let word = "x".repeat(90);
        let text = line("warning", &format!("{word} and {word}"));
        assert_eq!(text, format!("warning    {word}\n{0:11}and\n{0:11}{word}\n", ""));
    }

    #[test]
    fn drops_before_there_was_a_minute_are_those_since_the_start() {
        let none = drops(&json!({ "seconds": 12, "reasons": [] }));
        assert_eq!(none, ["drops      none in the 12 s since the start\n"]);
    }

    #[test]
    fn rules_are_told_of_when_they_differ_have_faults_or_wait_to_be_confirmed() {
        let told =
            |told: Value, seconds: Value| rules(&json!({ "rules": told, "unconfirmed_seconds": seconds }));
        assert!(told(json!(null), json!(null)).is_empty());
        assert!(told(json!({ "file": "r", "differences": 0 }), json!(null)).is_empty());
        for (rules, line) in [
            (json!({ "file": "r", "differences": 3 }), "rules      3 differences to r; see `xvs plan r`\n"),
            (json!({ "file": "r", "faults": 1 }), "rules      1 fault in r; see `xvs check r`\n"),
            (json!({ "file": "r", "error": "not there" }), "rules      r: not there\n"),
        ] {
            assert_eq!(told(rules, json!(null)), [line]);
        }
        let waiting = told(json!(null), json!(7));
        assert_eq!(waiting, ["rules      applied, and taken back in 7 s; `xvs confirm` keeps them\n"]);
    }
}
