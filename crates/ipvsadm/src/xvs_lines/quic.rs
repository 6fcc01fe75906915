//! `xvs quic`: QUIC configurations and server IDs of a service.

use std::path::PathBuf;

use clap::Subcommand;
use xvs_model::config::command::Command;
use xvs_model::objects::quic::{QuicConfig, QuicKey, QuicObject, QuicRule, ServiceQuic};
use xvs_model::objects::{Object, Rule};
use xvs_proto::quic::ServerId;

use crate::error::LineError;
use crate::grammar::real_server;
use crate::resolver::Resolver;
use crate::xvs_lines::arguments::{Line, ServiceArgument};

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
}
