//! `xvs limit`: limits of each client of a service, and of all its clients together.

use clap::{Args, Subcommand};
use xvs_model::config::command::Command;
use xvs_model::objects::limit::{ClientRow, LimitReport, LimitRow, ServiceLimit};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_sched::{Above, ClientLimit};

use crate::error::LineError;
use crate::nouns::arguments::{Line, ServiceArgument};
use crate::resolver::Resolver;

/// A change of the limits of clients.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum LimitChange {
    /// Limit each client of a service, and all its clients together; replaces the former limit of the service
    #[command(group = clap::ArgGroup::new("what").args(["connections", "rate", "syn_rate"]).required(true).multiple(true))]
    Set {
        #[command(flatten)]
        service: ServiceArgument,
        /// Maximum number of connections at once; closed connections count until they expire
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        connections: Option<u32>,
        /// Maximum number of new connections a second
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        rate: Option<u32>,
        /// Maximum number of new connections at once after a pause; as many as --rate by default
        #[arg(short, long, value_name = "N", requires = "rate", value_parser = clap::value_parser!(u32).range(1..))]
        burst: Option<u32>,
        /// Action for SYNs above --rate: drop, the default, or syn-proxy, which answers them with cookies
        #[arg(long, value_name = "WHAT", requires = "rate", value_parser = above)]
        above: Option<Above>,
        /// Maximum number of SYNs a second of all clients together
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        syn_rate: Option<u32>,
        /// Maximum number of SYNs of all clients at once after a pause; as many as --syn-rate by default
        #[arg(long, value_name = "N", requires = "syn_rate", value_parser = clap::value_parser!(u32).range(1..))]
        syn_burst: Option<u32>,
    },
    /// Delete the limit of a service; connections stay
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
    },
}

impl LimitChange {
    pub(super) fn service(&self) -> &ServiceArgument {
        let (Self::Set { service, .. } | Self::Delete { service }) = self;
        service
    }

    /// The limit to set; `None`: it is ended.
    pub(super) fn limit(&self) -> Option<ClientLimit> {
        let Self::Set { connections, rate, burst, above, syn_rate, syn_burst, .. } = self else {
            return None;
        };
        let [connections, rate, burst, syn_rate, syn_burst] =
            [connections, rate, burst, syn_rate, syn_burst].map(|number| number.unwrap_or(0));
        let above = above.unwrap_or_default();
        Some(ClientLimit { connections, rate, burst, above, syn_rate, syn_burst })
    }
}

impl Line for LimitChange {
    const WORD: &str = "limit";
    type Options = Clients;
    type Report = LimitReport;
    const HELP: &str = "Show the limits, and the clients that they refuse most";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let service = self.service().required(Self::WORD, "-t, -u, --sctp-service or -f", resolver)?;
        Ok(match self.limit() {
            None => Command::Delete(Object::Limit(service)),
            Some(limit) => Command::Add(Rule::Limit(ServiceLimit { service, limit })),
        })
    }

    fn report(options: &Clients, director: &mut dyn Director) -> Result<LimitReport, Failure> {
        question::limits(options.clients).ask(director)
    }

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
        for LimitRow { service, limit, .. } in &report.limits {
            let ClientLimit { connections, rate, burst, above, .. } = limit;
            let burst = if *burst == 0 { *rate } else { *burst };
            let above = if *rate == 0 { "" } else { above.name() };
            let numbers = [*connections, *rate, burst].map(number);
            text += &line([&service.to_string(), &numbers[0], &numbers[1], &numbers[2], above]);
        }
        let mut of_syns = report.limits.iter().filter(|row| row.limit.syn_rate > 0).peekable();
        if of_syns.peek().is_some() {
            text +=
                &format!("\n{:<40} {:>24} {:>8} {:>12}\n", "Service", "SYNs a second", "At once", "Dropped");
        }
        for LimitRow { service, limit: ClientLimit { syn_rate, syn_burst, .. }, syns_dropped } in of_syns {
            let burst = if *syn_burst == 0 { syn_rate } else { syn_burst };
            text += &format!("{:<40} {syn_rate:>24} {burst:>8} {syns_dropped:>12}\n", service.to_string());
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
}

fn above(text: &str) -> Result<Above, &'static str> {
    Above::ALL
        .into_iter()
        .find(|above| above.name() == text)
        .ok_or("SYNs above the rate get drop or syn-proxy")
}

/// The options of `xvs limit list`.
#[derive(Debug, Args)]
pub struct Clients {
    /// Maximum number of clients
    #[arg(long, value_name = "N", default_value_t = 20)]
    clients: u32,
}

#[cfg(test)]
mod tests {
    use crate::nouns::limit::*;

    #[test]
    fn the_listing_shows_limits_and_the_clients_that_they_refuse_most() {
        let service = "TCP 198.51.100.1:80".parse().unwrap();
        let limit = ClientLimit {
            connections: 50,
            rate: 10,
            burst: 0,
            above: Above::SynProxy,
            syn_rate: 5000,
            syn_burst: 0,
        };
        let client =
            ClientRow { client: "192.0.2.7/32".parse().unwrap(), service, connections: 50, refused: 1234 };
        let report = LimitReport {
            limits: vec![LimitRow { service, limit, syns_dropped: 77 }],
            clients: vec![client],
            unlimited: 3,
        };
        let expected = "\
Service                                  Connections New a second  At once  Above
TCP 198.51.100.1:80                               50           10       10  syn-proxy

Service                                             SYNs a second  At once      Dropped
TCP 198.51.100.1:80                                          5000     5000           77

Client                                   Connections      Refused
192.0.2.7/32                                      50         1234   TCP 198.51.100.1:80
3 connections were made without a limit, because more clients are connected than `clients` of [limits]
";
        assert_eq!(LimitChange::screen(&report), expected.replace("Refused\n", "Refused   Service\n"));
    }
}
