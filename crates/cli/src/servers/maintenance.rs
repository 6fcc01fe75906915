//! `xvs disable` and `xvs enable`: keep a real server from new connections during maintenance.
//!
//! A disabled real server has an effective weight of 0, whatever its configured weight, and whatever health checks,
//! load reports or a reload set. Its connections continue. `drain.rs` waits for their end; `registry/mod.rs` of `ctl`
//! combines the weights.

use std::io::Write;

use clap::Args;
use xvs_ipvsadm::{DisabledArgument, SystemResolver};
use xvs_model::config::command::Command;
use xvs_model::objects::disabled::Disabled;
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use crate::output::exit::{DONE, Done};
use crate::output::text::counted;
use crate::servers::refused_by_hash;

/// The arguments of `xvs disable` and `xvs enable`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    servers: DisabledArgument,
}

/// The two subcommands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Disable,
    Enable,
}

pub(crate) fn run(
    change: Change,
    arguments: &Arguments,
    director: &mut dyn Director,
    out: &mut dyn Write,
) -> Done {
    let servers = arguments.servers.named(&SystemResolver::default())?;
    let command = match change {
        Change::Disable => Command::Add(Rule::Disabled(servers)),
        Change::Enable => Command::Delete(Object::Disabled(servers)),
    };
    question::change(command).ask(director)?;
    if report(servers, director, out)? == 0 {
        let (service, word) = match change {
            Change::Disable => ("it is disabled in any that gets it", "disabled"),
            Change::Enable => ("it gets connections in any that gets it", "enabled"),
        };
        writeln!(out, "{word}: {servers}; no virtual service has it now, and {service}")?;
    }
    Ok(DONE)
}

/// Prints a line for each real server that is concerned, and returns their number.
fn report(servers: Disabled, director: &mut dyn Director, out: &mut dyn Write) -> Result<usize, Failure> {
    let mut lines = Vec::new();
    for service in question::services().ask(director)? {
        for row in service.destinations.iter().filter(|row| servers.includes(service.key, row.endpoint)) {
            let (configured, in_force) = (row.options.weight.0, row.weight_in_force.0);
            let active = counted(row.active.into(), "active connection", "active connections");
            let refused = refused_by_hash(&service)
                .filter(|_| in_force == 0)
                .map(|refused| format!("; {refused}"))
                .unwrap_or_default();
            lines.push(format!(
                "real server {} of {}: weight {configured}, {in_force} in force; {active}{refused}",
                row.endpoint, service.key
            ));
        }
    }
    lines.sort();
    lines.iter().try_for_each(|line| writeln!(out, "{line}")).map_err(Failure::Printing)?;
    Ok(lines.len())
}
