//! `xvs disable` and `xvs enable`: real servers that get no new connections.

use clap::Args;
use xvs_model::config::command::Command;
use xvs_model::objects::Rule;
use xvs_model::objects::disabled::Disabled;

use crate::error::LineError;
use crate::nouns::arguments::{RealServerArgument, ServiceArgument, arguments};
use crate::resolver::Resolver;

/// The real servers that `xvs disable` or `xvs enable` names: without a port on every port, without a service in every
/// service.
#[derive(Debug, Args)]
pub struct DisabledArgument {
    #[command(flatten)]
    server: RealServerArgument,
    #[command(flatten)]
    service: ServiceArgument,
}

impl DisabledArgument {
    /// The real servers.
    ///
    /// # Errors
    /// The first line of ipvsadm's message about the service, or what is wrong with the real server.
    pub fn named(&self, resolver: &dyn Resolver) -> Result<Disabled, LineError> {
        let service = self.service.key(resolver)?;
        let word = self.server.word();
        let server = word.parse().map_err(|why| LineError::usage(format!("real server {word:?}: {why}")))?;
        Ok(Disabled { server, service })
    }
}

/// The change that a line requests by its words behind `disable`.
pub(crate) fn disable_command(words: &[&str], resolver: &dyn Resolver) -> Result<Command, LineError> {
    arguments::<DisabledArgument>("disable", words)?
        .named(resolver)
        .map(|servers| Command::Add(Rule::Disabled(servers)))
}

#[cfg(test)]
mod tests {
    use crate::nouns::disabled::*;
    use crate::resolver::FixedNames;

    #[test]
    fn a_printed_disabled_server_is_parsed_back_with_and_without_a_service() {
        let names = FixedNames::default().host("web1", [198, 51, 100, 1]);
        let services = ["TCP 198.51.100.1:80", "SCTP [2001:db8::1]:0", "FWM 7", "FWM 4294967295 IPv6"];
        let services = services.iter().map(|service| Some(service.parse().unwrap())).chain([None]);
        for service in services {
            for server in ["192.0.2.11", "192.0.2.11:80", "[2001:db8::11]:80"] {
                let command =
                    Command::Add(Rule::Disabled(Disabled { server: server.parse().unwrap(), service }));
                let line = crate::command_line(&command);
                let words: Vec<_> = line.split(' ').skip(2).collect();
                assert_eq!(disable_command(&words, &names), Ok(command), "{line}");
            }
        }
        let named = Disabled {
            server: "192.0.2.11".parse().unwrap(),
            service: Some("TCP 198.51.100.1:80".parse().unwrap()),
        };
        let words = ["192.0.2.11", "-t", "web1:80"];
        assert_eq!(disable_command(&words, &names), Ok(Command::Add(Rule::Disabled(named))));
        assert_eq!(named.arguments(), "192.0.2.11 -t 198.51.100.1:80");
        for wrong in
            [&[][..], &["web1"], &["192.0.2.11", "-t", "web1:x"], &["192.0.2.11", "-t", "a", "-u", "b"]]
        {
            assert!(disable_command(wrong, &names).is_err(), "{wrong:?}");
        }
    }
}
