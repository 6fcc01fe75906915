//! `xvs laddr`: the addresses by which FULLNAT's real servers are reached and answer.

use std::io::Write;
use std::net::IpAddr;

use clap::{Args, Subcommand};
use xvs_model::client::{Director, Failure};
use xvs_model::command::Command;
use xvs_model::local_address::{LocalAddress, LocalReport, LocalRow};
use xvs_model::reply::Reply;
use xvs_model::request::Request;

use super::{DONE, Done};

/// What follows `xvs laddr`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Let connections of FULLNAT come from this address
    Add {
        /// An address of this machine, or one that is routed to it
        address: IpAddr,
        /// From these ports; each can be taken once towards each real server
        #[arg(long, value_name = "LOW-HIGH", value_parser = ports, default_value = "1024-32767")]
        ports: (u16, u16),
    },
    /// Let no new connections come from this address; those that there are go on
    Delete {
        /// As it was added
        address: IpAddr,
    },
    /// Show the addresses, and how many of their ports are taken
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl Action {
    /// The change that it asks for.
    fn command(&self) -> Option<Command> {
        match *self {
            Self::Add { address: addr, ports: (first_port, last_port) } => {
                Some(Command::AddLocal(LocalAddress { addr, first_port, last_port }))
            }
            Self::Delete { address } => Some(Command::DeleteLocal(address)),
            Self::List { .. } => None,
        }
    }
}

pub(super) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    match &arguments.action {
        Action::List { json } => {
            let report = match director.call(Request::LocalUse)? {
                Reply::Report(report) => report,
                other => return Err(Failure::unexpected(&other).into()),
            };
            match json {
                true => writeln!(out, "{report:#}")?,
                false => out.write_all(screen(&serde_json::from_value(report)?).as_bytes())?,
            }
        }
        action => {
            if let Some(command) = action.command() {
                director.call(Request::Change(command))?;
            }
        }
    }
    Ok(DONE)
}

/// The change that a line of a rules file asks for, by its words behind `laddr`.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn command(words: &[&str]) -> Result<Command, String> {
    let arguments: Arguments = super::words("laddr", words)?;
    arguments.action.command().ok_or_else(|| "laddr list changes nothing".to_owned())
}

/// The report as people read it.
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
        text += &line([
            &local.addr.to_string(),
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

/// `1024-32767`.
fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    let read = || {
        let (first, last) = text.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    read().ok_or("ports are two numbers to 65535: LOW-HIGH")
}

#[cfg(test)]
mod tests {
    use super::*;
    use xvs_model::local_address::Busiest;
    use xvs_proto::{Endpoint, Protocol};

    #[test]
    fn what_a_local_address_prints_is_read_back_and_ports_have_a_default() {
        let local = LocalAddress { addr: [192, 0, 2, 1].into(), first_port: 5000, last_port: 6000 };
        let text = format!("add {local}");
        let words: Vec<_> = text.split(' ').collect();
        assert_eq!(command(&words), Ok(Command::AddLocal(local)));
        let (first_port, last_port) = LocalAddress::PORTS.into_inner();
        let whole = LocalAddress { first_port, last_port, ..local };
        assert_eq!(command(&["add", "192.0.2.1"]), Ok(Command::AddLocal(whole)));
        for wrong in [&["add", "192.0.2.1", "--ports", "80"][..], &["list"], &["add"], &["add", "example"]] {
            assert!(command(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_listing_says_how_full_an_address_is_towards_whom_it_is_fullest() {
        let local = |last| LocalAddress { addr: [192, 0, 2, last].into(), first_port: 5000, last_port: 5999 };
        let dest = Endpoint::new([203, 0, 113, 11], 80);
        let busiest = Some(Busiest { ports: 905, dest, protocol: Protocol::TCP });
        let addresses = vec![
            LocalRow { local: local(1), connections: 1205, busiest },
            LocalRow { local: local(2), connections: 0, busiest: None },
        ];
        let expected = "\
Address                     Ports        Connections  Taken  Most towards
192.0.2.1                   5000-5999           1205  90.5%  TCP 203.0.113.11:80
192.0.2.2                   5000-5999              0   0.0%
7 connections found no free port and were refused; add an address, or more ports
";
        assert_eq!(screen(&LocalReport { addresses, exhausted: 7 }), expected);
    }
}
