//! Changes of the QUIC configurations and server IDs of a service.

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

/// A change of the QUIC configurations or server IDs of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum QuicChange {
    /// A new configuration; no error if the service has the same one. Its key is read when the change is carried out,
    /// and at each reload.
    Add {
        /// Its number.
        config: u8,
        /// How it encodes server IDs.
        options: QuicConfig,
    },
    /// Deletes a configuration; server IDs stay.
    Delete {
        /// Its number.
        config: u8,
    },
    /// A new server ID of a real server, whether or not that exists now; no error if the real server has it.
    AddId {
        /// The real server.
        server: Endpoint,
        /// The ID.
        id: ServerId,
    },
    /// Deletes a server ID.
    DeleteId {
        /// The ID.
        id: ServerId,
    },
}

impl QuicChange {
    /// The change that deletes what this one adds or deletes.
    pub(crate) fn deletion(&self) -> Self {
        match *self {
            Self::Add { config, .. } | Self::Delete { config } => Self::Delete { config },
            Self::AddId { id, .. } | Self::DeleteId { id } => Self::DeleteId { id },
        }
    }
}
