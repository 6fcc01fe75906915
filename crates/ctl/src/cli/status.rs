//! `xvs status`: whether all is well, on one screen.

use std::io::Write;

use clap::Args;
use serde_json::Value;

use super::{DONE, Done};
use crate::client::{Director, Failure};
use crate::message::{Reply, Request};

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

/// The report as people read it.
fn screen(report: &Value) -> String {
    let mut lines = vec![format!(
        "xvsd {}, up {}",
        text(&report["version"]),
        duration(report["uptime_seconds"].as_u64().unwrap_or(0))
    )];
    for interface in list(&report["interfaces"]) {
        let why = interface["why_not_native"].as_str();
        let why = why.map(|why| format!(" (native refused: {why})")).unwrap_or_default();
        let (name, mode, state) =
            (text(&interface["name"]), text(&interface["mode"]), text(&interface["state"]));
        let queues = counted(&interface["queues"], "queue", "queues");
        let again = match interface["attached_again"].as_u64() {
            None | Some(0) => String::new(),
            Some(1) => ", attached again once".to_owned(),
            Some(times) => format!(", attached again {times} times"),
        };
        lines.push(format!("interface  {name}: {state}, {mode} XDP{why}, {queues}{again}"));
    }
    for (number, worker) in list(&report["workers"]).iter().enumerate() {
        let core = worker["core"].as_u64().map_or("not pinned".to_owned(), |core| format!("core {core}"));
        let count = |name: &str| worker["counters"][name].as_u64().unwrap_or(0);
        lines.push(format!(
            "worker {number}   {core}, {}, {}; received {}, sent {}, passed to the kernel {}",
            share(&worker["queues"]),
            text(&worker["copy_mode"]),
            count("rx_packets"),
            count("tx_packets"),
            count("passed_to_kernel"),
        ));
    }
    lines.push(format!(
        "services   {}, {}",
        counted(&report["services"], "virtual service", "virtual services"),
        counted(&report["destinations"], "real server", "real servers"),
    ));
    lines.extend(rules_lines(report));
    let table = &report["table"];
    lines.push(format!(
        "table      {} of {} connections, {}",
        table["connections"],
        table["size"],
        text(&table["pages"])
    ));
    let drops = list(&report["drops"]);
    if drops.is_empty() {
        lines.push("drops      none".to_owned());
    }
    lines.extend(drops.iter().map(|drop| {
        format!("drops      {} {}: {}", drop["packets"], text(&drop["reason"]), text(&drop["what"]))
    }));
    lines.extend(list(&report["warnings"]).iter().map(|warning| format!("warning    {}", text(warning))));
    lines.join("\n") + "\n"
}

/// What there is to say of the file of rules, and of rules that wait to be confirmed.
fn rules_lines(report: &Value) -> Vec<String> {
    let rules = &report["rules"];
    let file = text(&rules["file"]);
    let mut lines = Vec::new();
    if let Some(error) = rules["error"].as_str() {
        lines.push(format!("rules      {file}: {error}"));
    } else if rules["faults"].is_number() {
        let faults = counted(&rules["faults"], "fault", "faults");
        lines.push(format!("rules      {faults} in {file}; see `xvs check {file}`"));
    } else if rules["differences"].as_u64().is_some_and(|differences| differences > 0) {
        let differences = counted(&rules["differences"], "difference", "differences");
        lines.push(format!("rules      {differences} to {file}; see `xvs plan {file}`"));
    }
    if let Some(seconds) = report["unconfirmed_seconds"].as_u64() {
        lines.push(format!("rules      applied, and taken back in {seconds} s; `xvs confirm` keeps them"));
    }
    lines
}

/// A worker's queues of each interface.
fn share(queues: &Value) -> String {
    let of = |(name, numbers): (&String, &Value)| {
        let list: Vec<_> = list(numbers).iter().map(Value::to_string).collect();
        format!("{name} {} {}", if list.len() == 1 { "queue" } else { "queues" }, list.join(","))
    };
    queues.as_object().map(|queues| queues.iter().map(of).collect::<Vec<_>>().join(", ")).unwrap_or_default()
}

fn counted(number: &Value, one: &str, many: &str) -> String {
    format!("{number} {}", if *number == 1 { one } else { many })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_screen_counts_one_as_one_and_shows_each_interfaces_state_and_queues() {
        let report = json!({
            "version": "1", "uptime_seconds": 59, "services": 1, "destinations": 2,
            "interfaces": [
                { "name": "lan", "mode": "native", "why_not_native": null, "queues": 1, "state": "up" },
                { "name": "wan", "mode": "generic", "why_not_native": "busy", "queues": 2, "state": "gone" },
            ],
            "workers": [
                { "core": 1, "queues": { "lan": [0], "wan": [0, 1] }, "copy_mode": "zero-copy", "counters": {} },
            ],
            "table": { "size": 1024, "connections": 3, "pages": "small pages" },
            "drops": [{ "reason": "kernel_ring_full", "packets": 7, "what": "too slow" }],
            "warnings": ["wan is gone; restart xvsd"],
        });
        let expected = "xvsd 1, up 59 s\n\
            interface  lan: up, native XDP, 1 queue\n\
            interface  wan: gone, generic XDP (native refused: busy), 2 queues\n\
            worker 0   core 1, lan queue 0, wan queues 0,1, zero-copy; received 0, sent 0, passed to the kernel 0\n\
            services   1 virtual service, 2 real servers\n\
            table      3 of 1024 connections, small pages\n\
            drops      7 kernel_ring_full: too slow\n\
            warning    wan is gone; restart xvsd\n";
        assert_eq!(screen(&report), expected);
    }

    #[test]
    fn rules_are_told_of_when_they_differ_have_faults_or_wait_to_be_confirmed() {
        let told = |rules: Value, seconds: Value| {
            rules_lines(&json!({ "rules": rules, "unconfirmed_seconds": seconds }))
        };
        assert!(told(json!(null), json!(null)).is_empty());
        assert!(told(json!({ "file": "r", "differences": 0 }), json!(null)).is_empty());
        for (rules, line) in [
            (json!({ "file": "r", "differences": 3 }), "rules      3 differences to r; see `xvs plan r`"),
            (json!({ "file": "r", "faults": 1 }), "rules      1 fault in r; see `xvs check r`"),
            (json!({ "file": "r", "error": "not there" }), "rules      r: not there"),
        ] {
            assert_eq!(told(rules, json!(null)), [line]);
        }
        let waiting = told(json!(null), json!(7));
        assert_eq!(waiting, ["rules      applied, and taken back in 7 s; `xvs confirm` keeps them"]);
    }
}
