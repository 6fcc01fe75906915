//! `xvs laddr`: the local addresses, which FULLNAT real servers see instead of clients.

use xvs_ipvsadm::LocalAddressChange;
use xvs_model::objects::local::{LocalReport, LocalRow};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;

use super::{Listed, NoOptions};

impl Listed for LocalAddressChange {
    type Options = NoOptions;
    type Report = LocalReport;
    const HELP: &str = "Show the addresses, and how many of their ports are taken";

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

#[cfg(test)]
mod tests {
    use xvs_model::objects::local::{Busiest, LocalAddress};
    use xvs_proto::{Endpoint, Protocol};

    use crate::extensions::laddr::*;

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
