//! The director's forwarding method, as a real server sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the director forwards packets to this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Direct routing (ipvsadm's `-g`): only the link address is changed.
    Dr,
    /// Tunnel (ipvsadm's `-i`): encapsulated in IP, GRE or GUE.
    Tunnel,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dr => "dr",
            Self::Tunnel => "tunnel",
        })
    }
}
