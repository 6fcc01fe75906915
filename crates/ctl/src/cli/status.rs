//! `xvs status`: whether all is well, on one screen.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::Done;
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
    Ok(ExitCode::SUCCESS)
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
        let (name, mode, queues) = (text(&interface["name"]), text(&interface["mode"]), &interface["queues"]);
        lines.push(format!("interface  {name}: {mode} XDP{why}, {queues} queues"));
    }
    for (number, worker) in list(&report["workers"]).iter().enumerate() {
        let core = worker["core"].as_u64().map_or("not pinned".to_owned(), |core| format!("core {core}"));
        let count = |name: &str| worker["counters"][name].as_u64().unwrap_or(0);
        lines.push(format!(
            "worker {number}   {core}, queues {}, {}; received {}, sent {}, passed to the kernel {}",
            worker["queues"],
            text(&worker["copy_mode"]),
            count("rx_packets"),
            count("tx_packets"),
            count("passed_to_kernel"),
        ));
    }
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
