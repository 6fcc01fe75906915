//! `xvs doctor`: faults of a director's machine, and the commands that correct them.
//!
//! [`gather`](gather::gather) reads the facts, once and within two seconds; [`examine`] evaluates them, with one small
//! pure function per check, so each is tested with facts alone. Nothing is changed, with three visible effects: the
//! kernel resolves next hops, ARP requests for the virtual addresses are sent, and ICMP timestamp requests are sent to
//! the other directors. Runs with or without a daemon. With `--fleet` it compares directors instead ([`fleet`]), whose
//! documents [`fetch`] reads. With `--tune` it examines settings of network cards instead ([`tune`]), and with
//! `--apply` sets them. With `--report` it tries the modes of one card and writes a file about it ([`report`]).

mod addresses;
mod arp;
mod clocks;
mod facts;
mod fetch;
mod finding;
mod firewall;
mod fleet;
mod gather;
mod interfaces;
mod machine;
pub(crate) mod report;
mod servers;
mod trial;
mod tunables;
mod tune;

use std::io::Write;

use clap::Args;
use facts::Facts;
use fetch::Fleet;
use finding::{Finding, Level, worst};
use serde::Serialize;

use crate::doctor::gather::Asked;
use crate::doctor::tune::Apply;
use crate::output::exit::Done;
use crate::output::text::{counted, print_json};

/// The arguments of `xvs doctor`.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Arguments {
    #[command(flatten)]
    asked: Asked,
    #[command(flatten)]
    fleet: Fleet,
    /// Instead of these checks, print the recommended settings of network cards and workers' cores, and the commands
    #[arg(long, conflicts_with_all = ["fleet", "addresses", "directors"])]
    tune: bool,
    /// Run the commands of --tune for network cards
    #[arg(long, requires = "tune")]
    apply: bool,
    #[command(flatten)]
    wanted: report::Wanted,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Failures have the same code as clap's for a wrong command line, 2.
const EXIT_CODES: &str = "\
Exit codes:
  0  all is well
  1  there are warnings
  2  something fails; or the command line is wrong";

/// Evaluates the facts: every check, in the order of a packet's path.
fn examine(facts: &Facts) -> Vec<Finding> {
    let checks: &[fn(&Facts) -> Vec<Finding>] = &[
        |facts| facts.faults.clone(),
        machine::kernel,
        machine::daemon,
        machine::memory_lock,
        machine::huge_pages,
        machine::memory_limit,
        machine::steering,
        machine::kernel_services,
        machine::real_server,
        interfaces::all,
        addresses::present,
        addresses::answered_by_the_director,
        arp::answered_by_others,
        addresses::forwarding,
        addresses::redirects,
        addresses::source_check,
        firewall::firewall,
        servers::routes,
        servers::tunnels,
        servers::ports,
        servers::local_addresses,
        servers::neighbours,
        clocks::clocks,
    ];
    checks.iter().flat_map(|check| check(facts)).collect()
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let findings = if !arguments.fleet.fleet.is_empty() {
        fleet::examine(&arguments.fleet.fetch()?)
    } else if let Some(file) = &arguments.wanted.report {
        report::run(&arguments.asked, &arguments.wanted, file)?
    } else if arguments.tune {
        tune::run(&arguments.asked, if arguments.apply { Apply::Yes } else { Apply::No })?
    } else {
        examine(&gather::gather(&arguments.asked)?)
    };
    if arguments.json {
        print_json(&Document { level: worst(&findings), findings: &findings }, out)?;
    } else {
        findings.iter().try_for_each(|finding| write!(out, "{finding}"))?;
        writeln!(out, "{}", summary(&findings))?;
    }
    Ok(worst(&findings) as u8)
}

/// The document that `--json` prints.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Document<'a> {
    /// The worst level of the findings.
    level: Level,
    /// The findings, in the order of a packet's path; with `--fleet` those of each director and service; with
    /// `--tune` those of each interface, then of the machine; with `--report` those of each mode.
    findings: &'a [Finding],
}

fn summary(findings: &[Finding]) -> String {
    let words =
        [(Level::Ok, "ok", "ok"), (Level::Warn, "warning", "warnings"), (Level::Fail, "failure", "failures")];
    words
        .map(|(level, one, many)| {
            counted(findings.iter().filter(|finding| finding.level == level).count() as u64, one, many)
        })
        .join(", ")
}
