//! `xvs quic`: QUIC configurations and server IDs of a service.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::quic::{
    QuicConfig, QuicConfigRow, QuicKey, QuicObject, QuicRow, QuicRule, ServerIdRow, ServiceQuic,
};
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question;
use xvs_proto::quic::ServerId;

use crate::error::LineError;
use crate::grammar::real_server;
use crate::nouns::arguments::{Line, NoOptions, ServiceArgument};
use crate::resolver::Resolver;

/// A change of the QUIC configurations or server IDs of a service.
#[derive(Debug, Subcommand)]
#[allow(
    missing_docs,
    reason = "clap would take a sentence about the service's options as one about the subcommand"
)]
pub enum QuicLine {
    /// Add a configuration: how the service's real servers encode server IDs in their connection IDs
    Add {
        #[command(flatten)]
        service: ServiceArgument,
        /// The configuration's number, 0 to 6, which is in each connection ID
        #[arg(long, value_name = "N")]
        config: u8,
        /// Length of server IDs in bytes, at least 1
        #[arg(long, value_name = "BYTES")]
        server_id_length: u8,
        /// Length of the nonce in bytes, at least 4; with the server ID at most 19
        #[arg(long, value_name = "BYTES")]
        nonce_length: u8,
        /// The file with the key of the encryption, 32 hexadecimal digits; without it nothing is encrypted
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
    },
    /// Delete a configuration; server IDs stay
    Delete {
        #[command(flatten)]
        service: ServiceArgument,
        /// The configuration's number
        #[arg(long, value_name = "N")]
        config: u8,
    },
    /// Give a real server an ID, for all configurations with IDs of its length
    ServerId {
        #[command(flatten)]
        service: ServiceArgument,
        /// The real server
        #[arg(short, long, value_name = "ADDRESS:PORT")]
        real_server: String,
        /// The ID in hexadecimal digits, as the server has it
        id: ServerId,
    },
    /// Delete the ID of a real server
    DeleteServerId {
        #[command(flatten)]
        service: ServiceArgument,
        /// The ID
        id: ServerId,
    },
}

impl Line for QuicLine {
    const WORD: &str = "quic";
    type Options = NoOptions;
    type Report = Vec<QuicRow>;
    const HELP: &str = "Show the configurations and server IDs";

    fn command(&self, resolver: &dyn Resolver) -> Result<Command, LineError> {
        let (Self::Add { service: named, .. }
        | Self::Delete { service: named, .. }
        | Self::ServerId { service: named, .. }
        | Self::DeleteServerId { service: named, .. }) = self;
        let service = named.required(Self::WORD, "-u or -f", resolver)?;
        Ok(match self {
            Self::Add { config, server_id_length, nonce_length, key_file, .. } => {
                let options = QuicConfig {
                    server_id_length: *server_id_length,
                    nonce_length: *nonce_length,
                    key_file: key_file.clone(),
                };
                let rule = QuicRule::Config { config: *config, options };
                Command::Add(Rule::Quic(ServiceQuic { service, rule }))
            }
            Self::ServerId { real_server: text, id, .. } => {
                let (_, server) = real_server(&[named.words(), vec!["-r", text]].concat(), resolver)?;
                Command::Add(Rule::Quic(ServiceQuic {
                    service,
                    rule: QuicRule::ServerId { server, id: *id },
                }))
            }
            Self::Delete { config, .. } => Command::Delete(Object::Quic(QuicKey {
                service,
                object: QuicObject::Config { config: *config },
            })),
            Self::DeleteServerId { id, .. } => {
                Command::Delete(Object::Quic(QuicKey { service, object: QuicObject::ServerId { id: *id } }))
            }
        })
    }

    fn report(_: &NoOptions, director: &mut dyn Director) -> Result<Vec<QuicRow>, Failure> {
        question::quic().ask(director)
    }

    fn screen(rows: &Vec<QuicRow>) -> String {
        let mut text = String::new();
        if rows.is_empty() {
            text += "no QUIC configurations; `xvs quic add --help` says how to add one\n";
        }
        for QuicRow { service, configs, server_ids } in rows {
            let _ = writeln!(text, "{service}");
            for QuicConfigRow { config, options, fault } in configs {
                let QuicConfig { server_id_length, nonce_length, key_file } = options;
                let key =
                    key_file.as_ref().map_or("not encrypted".to_owned(), |path| path.display().to_string());
                let fault =
                    fault.as_ref().map(|fault| format!("; not in force: {fault}")).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "  configuration {config}: server ID {server_id_length} bytes, nonce {nonce_length}, {key}{fault}"
                );
            }
            for ServerIdRow { id, server, fault } in server_ids {
                let fault =
                    fault.as_ref().map(|fault| format!("; not in force: {fault}")).unwrap_or_default();
                let _ = writeln!(text, "  {id}  {server}{fault}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use xvs_proto::Endpoint;

    use crate::nouns::quic::*;

    #[test]
    fn the_listing_shows_each_service_with_its_configurations_and_the_servers_of_its_ids() {
        let config = |config, key_file: Option<&str>, fault: Option<&str>| QuicConfigRow {
            config,
            options: QuicConfig { server_id_length: 3, nonce_length: 13, key_file: key_file.map(Into::into) },
            fault: fault.map(str::to_owned),
        };
        let server = Endpoint::new([192, 0, 2, 1], 443);
        let row = QuicRow {
            service: "UDP 198.51.100.1:443".parse().unwrap(),
            configs: vec![
                config(0, None, None),
                config(6, Some("/etc/xvs/key"), Some("QUIC key /etc/xvs/key: gone")),
            ],
            server_ids: vec![
                ServerIdRow { id: "0a0b0c".parse().unwrap(), server, fault: None },
                ServerIdRow {
                    id: "0a0b".parse().unwrap(),
                    server,
                    fault: Some("no configuration has server IDs of 2 bytes".to_owned()),
                },
            ],
        };
        let expected = "\
UDP 198.51.100.1:443
  configuration 0: server ID 3 bytes, nonce 13, not encrypted
  configuration 6: server ID 3 bytes, nonce 13, /etc/xvs/key; not in force: QUIC key /etc/xvs/key: gone
  0a0b0c  192.0.2.1:443
  0a0b  192.0.2.1:443; not in force: no configuration has server IDs of 2 bytes
";
        assert_eq!(QuicLine::screen(&vec![row]), expected);
        assert!(QuicLine::screen(&Vec::new()).contains("`xvs quic add --help`"));
    }
}
