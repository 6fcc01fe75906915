//! The QUIC configurations and server IDs of a service, each as a rule.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xvs_proto::Endpoint;
use xvs_proto::quic::ServerId;

/// How a configuration encodes server IDs in connection IDs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct QuicConfig {
    /// The length of its server IDs, in bytes.
    pub server_id_length: u8,
    /// The length of the nonce behind a server ID, in bytes.
    pub nonce_length: u8,
    /// The file of the key; `None`: nothing is encrypted.
    pub key_file: Option<PathBuf>,
}

/// A QUIC configuration or a server ID of a service, with its options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuicRule {
    /// A configuration; no error if the service has an equal one. Its key is read when the command is carried out, and
    /// at each reload.
    #[serde(rename = "add")]
    Config {
        /// Its number.
        config: u8,
        /// How it encodes server IDs.
        options: QuicConfig,
    },
    /// A server ID of a real server, whether or not that exists now; no error if the real server has it.
    #[serde(rename = "add_id")]
    ServerId {
        /// The real server.
        server: Endpoint,
        /// The ID.
        id: ServerId,
    },
}

/// Which configuration or server ID of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QuicObject {
    /// A configuration. Its deletion leaves the server IDs.
    #[serde(rename = "delete")]
    Config {
        /// Its number.
        config: u8,
    },
    /// A server ID.
    #[serde(rename = "delete_id")]
    ServerId {
        /// The ID.
        id: ServerId,
    },
}

impl QuicRule {
    /// The object that it describes.
    pub(crate) fn object(&self) -> QuicObject {
        match *self {
            Self::Config { config, .. } => QuicObject::Config { config },
            Self::ServerId { id, .. } => QuicObject::ServerId { id },
        }
    }
}
