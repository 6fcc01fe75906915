//! How packets of the director reach this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How the director's packets reach this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Direct routing (ipvsadm's `-g`): with only the link address changed.
    Dr,
    /// In another packet (ipvsadm's `-i`): IP in IP, GRE or GUE.
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
