//! Connections as listings show them, and the filter that selects them.
//!
//! `xvs connections` sends the filter to the daemon, which sends only the rows that match.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::{Endpoint, Prefix, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use crate::foreign_text::ForeignText;

/// A filter of connections or templates; the default matches every connection and no template.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Filter {
    /// The kind of entry.
    pub kind: Kind,
    /// The range of the client's endpoint.
    pub client: Option<EndpointRange>,
    /// The range of the real server's endpoint.
    pub dest: Option<EndpointRange>,
    /// The service that it belongs to.
    pub service: Option<ServiceKey>,
    /// The destination that it is counted for, by its endpoint in the service.
    pub server: Option<Endpoint>,
    /// The accepted states by their names in listings; empty: any state.
    pub states: Vec<String>,
}

/// The kind of an entry of the connection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A connection.
    #[default]
    Connections,
    /// A persistence template.
    Templates,
}

/// As events print it: `connections of TCP 198.51.100.100:80, real server 192.0.2.11:80`.
impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Connections => "connections",
            Kind::Templates => "templates",
        })?;
        let Self { service, server, client, dest, .. } = self;
        let parts = [
            service.map(|service| format!("of {service}")),
            server.map(|server| format!("real server {server}")),
            client.map(|client| format!("from {client}")),
            dest.map(|dest| format!("to {dest}")),
            (!self.states.is_empty()).then(|| format!("in {}", self.states.join(" or "))),
        ];
        let parts: Vec<_> = parts.into_iter().flatten().collect();
        if parts.is_empty() { Ok(()) } else { write!(f, " {}", parts.join(", ")) }
    }
}

impl Filter {
    /// Whether a row matches; a row without detail never does.
    pub fn matches(&self, row: &ConnectionRow) -> bool {
        let Some(detail) = &row.detail else { return false };
        let kind = if detail.template { Kind::Templates } else { Kind::Connections };
        kind == self.kind
            && self.client.is_none_or(|wanted| wanted.contains(row.client))
            && self.dest.is_none_or(|wanted| wanted.contains(row.dest))
            && self.service.is_none_or(|service| detail.service == Some(service))
            && self.server.is_none_or(|server| detail.server == Some(server))
            && (self.states.is_empty() || self.states.contains(&row.state))
    }
}

/// A range of endpoints, a network with every port or one port: `192.0.2.0/24`, `192.0.2.1:80`, `[2001:db8::/32]:80`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub struct EndpointRange {
    network: Prefix,
    port: Option<u16>,
}

impl EndpointRange {
    /// The range of this endpoint alone.
    pub fn one(endpoint: Endpoint) -> Self {
        Self { network: Prefix::host(endpoint.addr), port: Some(endpoint.port) }
    }

    fn contains(self, endpoint: Endpoint) -> bool {
        self.network.contains(endpoint.addr) && self.port.is_none_or(|port| port == endpoint.port)
    }
}

impl fmt::Display for EndpointRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.network, self.port) {
            (network, None) => write!(f, "{network}"),
            (network, Some(port)) if network.addr().is_ipv6() => write!(f, "[{network}]:{port}"),
            (network, Some(port)) => write!(f, "{network}:{port}"),
        }
    }
}

/// The error for a text that is not a range of endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it takes ADDRESS, ADDRESS/LEN, ADDRESS:PORT or ADDRESS/LEN:PORT; with IPv6 [ADDRESS/LEN]:PORT")]
pub struct EndpointRangeError;

impl FromStr for EndpointRange {
    type Err = EndpointRangeError;

    fn from_str(text: &str) -> Result<Self, EndpointRangeError> {
        if let Ok(network) = text.parse() {
            return Ok(Self { network, port: None });
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            return Ok(Self::one(Endpoint::new(socket.ip(), socket.port())));
        }
        let (network, port) = text.rsplit_once(':').ok_or(EndpointRangeError)?;
        let bare = network.strip_prefix('[').and_then(|network| network.strip_suffix(']'));
        let network: Prefix = bare.unwrap_or(network).parse().map_err(|_| EndpointRangeError)?;
        // Without brackets the port could be read as a group of an IPv6 address.
        if bare.is_some() != network.addr().is_ipv6() {
            return Err(EndpointRangeError);
        }
        Ok(Self { network, port: Some(port.parse().map_err(|_| EndpointRangeError)?) })
    }
}

impl TryFrom<String> for EndpointRange {
    type Error = EndpointRangeError;

    fn try_from(text: String) -> Result<Self, EndpointRangeError> {
        text.parse()
    }
}

impl From<EndpointRange> for String {
    fn from(range: EndpointRange) -> Self {
        range.to_string()
    }
}

/// A connection or template as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectionRow {
    /// The transport protocol; `IP` in the template of a firewall mark.
    pub protocol: Protocol,
    /// Time until it expires, if no packet refreshes it.
    pub expires_seconds: u32,
    /// The state, as `ipvsadm -Lc` prints it.
    pub state: String,
    /// The client's end; port 0 in a template.
    pub client: Endpoint,
    /// The virtual end; in the template of a firewall mark the mark, written as an address.
    pub virtual_endpoint: Endpoint,
    /// The real server's end.
    pub dest: Endpoint,
    /// The director's endpoint towards the real server; `None`: the method is not FULLNAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// What a persistence engine keeps, in a template; `None`: there is nothing.
    pub engine: Option<EngineData>,
    /// What `ipvsadm` does not list, if it was requested, as `xvs connections` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<ConnectionDetail>,
}

/// Detail of a connection or template that ipvsadm's listings do not show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ConnectionDetail {
    /// The service of the connection; `None`: it was deleted.
    pub service: Option<ServiceKey>,
    /// The endpoint of the real server, as its service has it; `None`: it was deleted.
    pub server: Option<Endpoint>,
    /// How packets reach the real server.
    pub method: ForwardingMethod,
    /// Packets from the client.
    pub packets: u32,
    /// The number of connections that a template controls.
    pub controls: u32,
    /// Whether it is a persistence template.
    pub template: bool,
    /// The properties: `received` (from another director), `no-replies` (none passes the director), `one-packet` (it is
    /// for one packet alone), `proxy` and `toa` (how the real server learns the client's address), `told` (the real
    /// server has acknowledged the PROXY header), `unseen` (known only from an unsigned message), `detached` (a
    /// template that is not used any more), `reset` (both ends are reset at its next packet).
    pub flags: Vec<String>,
}

/// The data that a persistence engine stores for a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EngineData {
    /// The engine's name, `sip`.
    pub name: String,
    /// The engine's data, such as a Call-ID.
    pub data: ForeignText,
}

/// Connections that were ended or are to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Ended {
    /// Connections and templates that were ended.
    pub ended: u64,
    /// Connections that are reset at their next packet.
    pub marked: u64,
}

#[cfg(test)]
mod tests {
    use xvs_proto::Protocol;
    use xvs_sched::ForwardingMethod;

    use crate::report::connection::*;

    fn range(text: &str) -> EndpointRange {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_are_read_as_they_are_printed_and_a_port_of_ipv6_needs_brackets() {
        for (text, printed) in [
            ("192.0.2.1", "192.0.2.1/32"),
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.1:80", "192.0.2.1/32:80"),
            ("192.0.2.0/24:80", "192.0.2.0/24:80"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("[2001:db8::1]:80", "[2001:db8::1/128]:80"),
            ("[2001:db8::/32]:80", "[2001:db8::/32]:80"),
        ] {
            assert_eq!(range(text).to_string(), printed);
            assert_eq!(range(printed), range(text));
        }
        for text in
            ["", "x", ":80", "192.0.2.1:", "192.0.2.1:http", "192.0.2.1/33", "[192.0.2.0/24]:80", "[::1]"]
        {
            assert_eq!(text.parse::<EndpointRange>(), Err(EndpointRangeError), "{text}");
        }
    }

    #[test]
    fn a_connection_matches_when_every_given_field_matches() {
        let end = |last, port| Endpoint::new([192, 0, 2, last], port);
        let service = ServiceKey::tcp(end(100, 80));
        let row = ConnectionRow {
            protocol: Protocol::TCP,
            expires_seconds: 60,
            state: "ESTABLISHED".to_owned(),
            client: end(7, 4096),
            virtual_endpoint: end(100, 80),
            dest: end(11, 8080),
            local: None,
            engine: None,
            detail: Some(ConnectionDetail {
                service: Some(service),
                server: Some(end(11, 8080)),
                method: ForwardingMethod::Nat,
                packets: 3,
                controls: 0,
                template: false,
                flags: Vec::new(),
            }),
        };
        let all = Filter {
            kind: Kind::Connections,
            client: Some(range("192.0.2.0/28")),
            dest: Some(range("192.0.2.11:8080")),
            service: Some(service),
            server: Some(end(11, 8080)),
            states: vec!["CLOSE".to_owned(), "ESTABLISHED".to_owned()],
        };
        assert!(Filter::default().matches(&row) && all.matches(&row));
        let printed = "connections of TCP 192.0.2.100:80, real server 192.0.2.11:8080, from 192.0.2.0/28, \
                    to 192.0.2.11/32:8080, in CLOSE or ESTABLISHED";
        assert_eq!(all.to_string(), printed);
        let another = Some(ServiceKey::udp(end(100, 80)));
        for wrong in [
            Filter { kind: Kind::Templates, ..all.clone() },
            Filter { client: Some(range("192.0.2.16/28")), ..all.clone() },
            Filter { client: Some(range("192.0.2.7:4097")), ..all.clone() },
            Filter { dest: Some(range("192.0.2.11:80")), ..all.clone() },
            Filter { service: another, ..all.clone() },
            Filter { server: Some(end(11, 80)), ..all.clone() },
            Filter { states: vec!["CLOSE".to_owned()], ..all.clone() },
        ] {
            assert!(!wrong.matches(&row), "{wrong:?}");
        }
        assert!(!Filter::default().matches(&ConnectionRow { detail: None, ..row }));
    }
}
