//! `xvs limit`: how many connections each client of a service may have, and how many it may begin in a second.

use std::io::Write;

use clap::{Args, Subcommand};
use xvs_ipvsadm::{LimitChange, SystemResolver};
use xvs_model::config::client_limit::{ClientRow, LimitReport, LimitRow};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::Request;
use xvs_sched::ClientLimit;

use crate::output::exit::{DONE, Done};
use crate::output::text::print;

/// The arguments of `xvs limit`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    #[command(flatten)]
    Change(LimitChange),
    /// Show the limits, and the clients that they refuse most
    List {
        /// The most clients
        #[arg(long, value_name = "N", default_value_t = 20)]
        clients: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match &arguments.action {
        Action::List { clients, json } => {
            let report = match director.call(Request::Limits { clients: *clients })? {
                Reply::Limits(report) => report,
                other => return Err(Failure::unexpected(&other).into()),
            };
            print(&report, *json, screen, out)?;
        }
        Action::Change(change) => {
            director.call(Request::Change(change.command(&SystemResolver::default())?))?;
        }
    }
    Ok(DONE)
}

/// The report as text.
fn screen(report: &LimitReport) -> String {
    if report.limits.is_empty() {
        return "no limits; `xvs limit set --help` says how to set one\n".to_owned();
    }
    let line = |[first, second, third, fourth, last]: [&str; 5]| {
        let text = format!("{first:<40} {second:>11} {third:>12} {fourth:>8}  {last}");
        text.trim_end().to_owned() + "\n"
    };
    let number = |number: u32| if number == 0 { "any".to_owned() } else { number.to_string() };
    let mut text = line(["Service", "Connections", "New a second", "At once", "Above"]);
    for LimitRow { service, limit: ClientLimit { connections, rate, burst, above } } in &report.limits {
        let burst = if *burst == 0 { *rate } else { *burst };
        let above = if *rate == 0 { "" } else { above.name() };
        let numbers = [*connections, *rate, burst].map(number);
        text += &line([&service.to_string(), &numbers[0], &numbers[1], &numbers[2], above]);
    }
    if !report.clients.is_empty() {
        text += &format!("\n{:<40} {:>11} {:>12}   Service\n", "Client", "Connections", "Refused");
    }
    for ClientRow { client, service, connections, refused } in &report.clients {
        text += &format!("{:<40} {connections:>11} {refused:>12}   {service}\n", client.to_string());
    }
    if report.unlimited > 0 {
        text += &format!(
            "{} connections were made without a limit, because more clients are connected than `clients` of [limits]\n",
            report.unlimited
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use xvs_sched::Above;

    use crate::extensions::limit::*;

    #[test]
    fn the_listing_shows_limits_and_the_clients_that_they_refuse_most() {
        let service = "TCP 198.51.100.1:80".parse().unwrap();
        let limit = ClientLimit { connections: 50, rate: 10, burst: 0, above: Above::SynProxy };
        let client =
            ClientRow { client: "192.0.2.7/32".parse().unwrap(), service, connections: 50, refused: 1234 };
        let report =
            LimitReport { limits: vec![LimitRow { service, limit }], clients: vec![client], unlimited: 3 };
        let expected = "\
Service                                  Connections New a second  At once  Above
TCP 198.51.100.1:80                               50           10       10  syn-proxy

Client                                   Connections      Refused
192.0.2.7/32                                      50         1234   TCP 198.51.100.1:80
3 connections were made without a limit, because more clients are connected than `clients` of [limits]
";
        assert_eq!(screen(&report), expected.replace("Refused\n", "Refused   Service\n"));
    }
}
