//! `xvs laddr`: local addresses, the source addresses of FULLNAT connections.

use std::net::IpAddr;

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::local::{LocalAddress, LocalReport, LocalRow};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use crate::error::LineError;
use crate::nouns::arguments::{Line, NoOptions};
use crate::resolver::Resolver;

/// A change of the local addresses.
#[derive(Debug, Subcommand)]
pub enum LocalAddressChange {
    /// Use this address as the source of FULLNAT connections
    Add {
        /// An address of this machine, or one that is routed to it
        address: IpAddr,
        /// Source ports; each serves one connection to each real server
        #[arg(long, value_name = "LOW-HIGH", value_parser = ports, default_value = "1024-32767")]
        ports: (u16, u16),
        /// The address belongs to another director: its synchronized connections continue, new ones do not use it
        #[arg(long)]
        standby: bool,
    },
    /// Use this address for no new connections; existing connections continue
    Delete {
        /// The address, as it was added
        address: IpAddr,
    },
}

impl Line for LocalAddressChange {
    const WORD: &str = "laddr";
    type Options = NoOptions;
    type Report = LocalReport;
    const HELP: &str = "Show the addresses, and how many of their ports are taken";

    fn command(&self, _: &dyn Resolver) -> Result<Command, LineError> {
        Ok(match *self {
            Self::Add { address: addr, ports: (first_port, last_port), standby } => {
                Command::Add(Rule::Local(LocalAddress { addr, first_port, last_port, standby }))
            }
            Self::Delete { address } => Command::Delete(Object::Local(address)),
        })
    }

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<LocalReport, Failure> {
        question::local_use().ask(director)
    }

    fn screen(report: &LocalReport) -> String {
        if report.addresses.is_empty() {
            return "no local addresses; FULLNAT needs one: `xvs laddr add --help` says how\n".to_owned();
        }
        let line = |[address, ports, connections, taken, towards]: [&str; 5]| {
            let text = format!("{address:<27} {ports:<12} {connections:>11} {taken:>6}  {towards}");
            text.trim_end().to_owned() + "\n"
        };
        let mut text = line(["Address", "Ports", "Connections", "Taken", "Most towards"]);
        for row in &report.addresses {
            let LocalRow { local, connections, busiest } = row;
            let (taken, towards) = match busiest {
                Some(most) => {
                    let share = 100.0 * most.ports as f64 / local.ports().len() as f64;
                    (format!("{share:.1}%"), format!("{} {}", most.protocol, most.dest))
                }
                None => ("0.0%".to_owned(), String::new()),
            };
            let use_of_it = if local.standby { " standby" } else { "" };
            text += &line([
                &format!("{}{use_of_it}", local.addr),
                &format!("{}-{}", local.first_port, local.last_port),
                &connections.to_string(),
                &taken,
                &towards,
            ]);
        }
        if report.exhausted > 0 {
            text += &format!(
                "{} connections found no free port and were refused; add an address, or more ports\n",
                report.exhausted
            );
        }
        text
    }
}

/// `1024-32767`.
fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    text.split_once('-')
        .and_then(|(first, last)| first.parse().ok().zip(last.parse().ok()))
        .ok_or("ports are two numbers up to 65535: LOW-HIGH")
}

#[cfg(test)]
mod tests {
    use crate::nouns::arguments::command;
    use crate::nouns::laddr::*;
    use crate::resolver::FixedNames;

    #[test]
    fn a_printed_local_address_is_parsed_back_and_ports_have_a_default() {
        let addr = [192, 0, 2, 1].into();
        let local = LocalAddress { addr, first_port: 5000, last_port: 6000, standby: false };
        for local in [local, LocalAddress { standby: true, ..local }] {
            let text = format!("add {local}");
            let words: Vec<_> = text.split(' ').collect();
            assert_eq!(
                command::<LocalAddressChange>(&words, &FixedNames::default()),
                Ok(Command::Add(Rule::Local(local)))
            );
        }
        let (first_port, last_port) = LocalAddress::PORTS.into_inner();
        let whole = LocalAddress { first_port, last_port, ..local };
        assert_eq!(
            command::<LocalAddressChange>(&["add", "192.0.2.1"], &FixedNames::default()),
            Ok(Command::Add(Rule::Local(whole)))
        );
        for wrong in [&["add", "192.0.2.1", "--ports", "80"][..], &["list"], &["add"], &["add", "example"]] {
            assert!(command::<LocalAddressChange>(wrong, &FixedNames::default()).is_err(), "{wrong:?}");
        }
    }

    use xvs_model::objects::local::{Busiest, LocalAddress};
    use xvs_proto::{Endpoint, Protocol};

    #[test]
    fn the_listing_shows_the_share_of_ports_in_use_towards_the_busiest_destination() {
        let local = |last| LocalAddress {
            addr: [192, 0, 2, last].into(),
            first_port: 5000,
            last_port: 5999,
            standby: last == 2,
        };
        let dest = Endpoint::new([203, 0, 113, 11], 80);
        let busiest = Some(Busiest { ports: 905, dest, protocol: Protocol::TCP });
        let addresses = vec![
            LocalRow { local: local(1), connections: 1205, busiest },
            LocalRow { local: local(2), connections: 0, busiest: None },
        ];
        let expected = "\
Address                     Ports        Connections  Taken  Most towards
192.0.2.1                   5000-5999           1205  90.5%  TCP 203.0.113.11:80
192.0.2.2 standby           5000-5999              0   0.0%
7 connections found no free port and were refused; add an address, or more ports
";
        assert_eq!(LocalAddressChange::screen(&LocalReport { addresses, exhausted: 7 }), expected);
    }
}
