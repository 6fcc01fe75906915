//! `xvs limit`: limits of each client's connections and new connections a second, and of all clients' SYNs a second.

use clap::Args;
use xvs_ipvsadm::LimitChange;
use xvs_model::objects::limit::{ClientRow, LimitReport, LimitRow, SynLimitSummary};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_sched::ClientLimit;

use super::Listed;

/// The options of `xvs limit list`.
#[derive(Debug, Args)]
pub(crate) struct Clients {
    /// Maximum number of clients
    #[arg(long, value_name = "N", default_value_t = 20)]
    clients: u32,
}

impl Listed for LimitChange {
    type Options = Clients;
    type Report = LimitReport;
    const HELP: &str = "Show the limits, and the clients that they refuse most";

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

/// The limit of a service's SYNs with its effect.
pub(crate) fn summary(SynLimitSummary { service, rate, dropped }: &SynLimitSummary) -> String {
    format!("{service}: {rate} SYNs a second, {dropped} dropped")
}

#[cfg(test)]
mod tests {
    use xvs_sched::Above;

    use crate::extensions::limit::*;

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
