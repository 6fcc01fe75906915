//! `xvs laddr`: local addresses, the source addresses of FULLNAT connections.

use std::net::IpAddr;

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::local::LocalAddress;
use xvs_model::objects::{Object, Rule};

use crate::error::LineError;
use crate::resolver::Resolver;
use crate::xvs_lines::arguments::Line;

/// A change of the local addresses.
#[derive(Debug, Subcommand)]
pub enum LocalAddressChange {
    /// Use this address as source of FULLNAT connections
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

    fn command(&self, _: &dyn Resolver) -> Result<Command, LineError> {
        Ok(match *self {
            Self::Add { address: addr, ports: (first_port, last_port), standby } => {
                Command::Add(Rule::Local(LocalAddress { addr, first_port, last_port, standby }))
            }
            Self::Delete { address } => Command::Delete(Object::Local(address)),
        })
    }
}

/// `1024-32767`.
fn ports(text: &str) -> Result<(u16, u16), &'static str> {
    let ports = text.split_once('-').and_then(|(first, last)| first.parse().ok().zip(last.parse().ok()));
    ports.ok_or("ports are two numbers up to 65535: LOW-HIGH")
}

#[cfg(test)]
mod tests {
    use crate::resolver::FixedNames;
    use crate::xvs_lines::arguments::command;
    use crate::xvs_lines::laddr::*;

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
}
