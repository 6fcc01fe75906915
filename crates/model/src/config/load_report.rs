//! The real servers that a load report, `xvs disable` or `xvs enable` names.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::Endpoint;

/// The destinations at an address, or those at one port of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct Server {
    addr: IpAddr,
    port: Option<u16>,
}

impl Server {
    /// Whether it includes a destination.
    pub fn includes(self, endpoint: Endpoint) -> bool {
        self.addr == endpoint.addr && self.port.is_none_or(|port| port == endpoint.port)
    }

    /// Whether it includes every destination that `other` includes.
    pub(crate) fn covers(self, other: Self) -> bool {
        self.addr == other.addr && (self.port.is_none() || self.port == other.port)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.addr, port).fmt(f),
            None => self.addr.fmt(f),
        }
    }
}

/// The error for a text that is not a real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a real server is ADDRESS or ADDRESS:PORT, such as 192.0.2.11 or [2001:db8::1]:80")]
pub struct ServerParseError;

impl FromStr for Server {
    type Err = ServerParseError;

    fn from_str(text: &str) -> Result<Self, ServerParseError> {
        if let Ok(addr) = text.parse() {
            return Ok(Self { addr, port: None });
        }
        let socket: SocketAddr = text.parse().map_err(|_| ServerParseError)?;
        Ok(Self { addr: socket.ip(), port: Some(socket.port()) })
    }
}

impl From<Endpoint> for Server {
    fn from(Endpoint { addr, port }: Endpoint) -> Self {
        Self { addr, port: Some(port) }
    }
}

impl TryFrom<String> for Server {
    type Error = ServerParseError;

    fn try_from(text: String) -> Result<Self, ServerParseError> {
        text.parse()
    }
}

impl From<Server> for String {
    fn from(server: Server) -> Self {
        server.to_string()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::load_report::*;

    #[test]
    fn a_server_is_an_address_or_one_port_of_it() {
        let at = |port| Endpoint::new([192, 0, 2, 11], port);
        let (any, one): (Server, Server) = ("192.0.2.11".parse().unwrap(), "192.0.2.11:80".parse().unwrap());
        assert!(
            any.includes(at(80)) && any.includes(at(81)) && one.includes(at(80)) && !one.includes(at(81))
        );
        for text in ["192.0.2.11", "192.0.2.11:80", "2001:db8::1", "[2001:db8::1]:80"] {
            assert_eq!(text.parse::<Server>().unwrap().to_string(), text);
        }
        for text in ["", "web1", "192.0.2.11:", "192.0.2.11:99999", "192.0.2"] {
            assert_eq!(text.parse::<Server>(), Err(ServerParseError), "{text}");
        }
    }
}
