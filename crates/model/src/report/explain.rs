//! The request of `xvs explain` and its report.
//!
//! Field names are those of commands and listings. Fields that do not apply are absent from the JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{Certainty, Figure};

use crate::foreign_text::ForeignText;
use crate::objects::disabled::DisabledServers;
use crate::report::health::HealthReport;

/// The packet in question: described by `proto`, `from` and `to`, or a whole frame.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// The interface that receives it. Default: that of the route to its source, or for a frame the one that has the
    /// frame's destination link address.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The frame from its Ethernet header on, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// The protocol of a described packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// The source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// The destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Endpoint>,
    /// TCP flags by name, separated by commas or blanks; `none` for none. Default: `syn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bytes of payload. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    /// Time to live, or hop limit. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// The protocol of a described packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Proto {
    /// TCP; a SYN unless `flags` say otherwise.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, an INIT.
    Sctp,
}

impl Proto {
    /// The protocols by name.
    pub const NAMES: [(&str, Self); 3] = [("tcp", Self::Tcp), ("udp", Self::Udp), ("sctp", Self::Sctp)];
}

/// The fate of a packet, and its reasons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// The interface that receives the packet.
    pub interface: String,
    /// The packet's headers; `None`: they cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The headers of the packet that an ICMP error quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<Summary>,
    /// The firewall mark of the packet; 0: none.
    pub mark: u32,
    /// The rule that set the mark, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marked_by: Option<String>,
    /// The service of the packet, as listings print it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The connection that the packet matches, as it was before the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<Entry>,
    /// The direction of the packet in that connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The persistence template of the connection, after the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Entry>,
    /// The scheduler's choice; `None`: no scheduler runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// What its QUIC connection ID chooses, and why; `None`: its service has no QUIC configurations, its connection
    /// exists, or the question has no frame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<String>,
    /// The real servers of the service that are down by their checks, a sentence each with the reason; without a choice
    /// only the one that the packet goes to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// The connection, after the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Entry>,
    /// Whether the connection that the packet matches is offloaded, and why not; `None`: it matches none, or offload is
    /// off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<String>,
    /// The next hop that the packet is sent to.
    #[serde(rename = "way", skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// The changes to the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The name of the reason why it is dropped, such as `no_route`, or waits, `no_neighbour`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is dropped, passed, consumed or answered, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The next step after a drop, if `why` has none; or why the client gets no reply, and the next step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The frames that are sent: the packet or its fragments, or a reply to its sender.
    pub sent: Vec<SentFrame>,
    /// What could make the result different.
    pub caveats: Vec<CaveatReport>,
}

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is forwarded.
    Transmit,
    /// The kernel gets it.
    Pass,
    /// It is dropped.
    Drop,
    /// It ends here, as an ICMP error that has its effect or the reply to a health check, or it waits, which `xvs
    /// capture` calls `held`.
    Consumed,
}

/// The direction of a packet in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the real server.
    Inbound,
    /// From the real server to the client.
    Outbound,
}

/// A packet's headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Summary {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The source.
    pub from: Endpoint,
    /// The destination.
    pub to: Endpoint,
    /// TCP flags, with commas between them; `None`: it is not TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// The length in bytes, from the network header on.
    pub bytes: usize,
    /// Whether it is a fragment.
    pub fragment: bool,
}

/// Whether a connection or template exists before the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It exists already.
    Found,
    /// The packet creates it.
    Made,
}

/// A connection or template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Entry {
    /// Where it comes from.
    pub origin: Origin,
    /// The transport protocol; `IP` in the template of a firewall mark.
    pub protocol: Protocol,
    /// The client's end; port 0 in a template.
    pub client: Endpoint,
    /// The virtual end; in the template of a firewall mark the mark, written as an address.
    pub virtual_endpoint: Endpoint,
    /// The real server's end.
    pub dest: Endpoint,
    /// The director's endpoint towards the real server; `None`: the method is not FULLNAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// How packets reach the real server: `Masq`, `Local`, `Tunnel`, `Route` or `FullNat`.
    pub method: String,
    /// The state, as `ipvsadm -Lc` prints it.
    pub state: String,
    /// Time until it expires.
    pub expires_millis: u64,
    /// Packets from the client so far.
    pub packets: u32,
    /// The Call-ID of a template, under the persistence engine `sip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<ForeignText>,
}

/// A scheduler's choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Choice {
    /// The service whose real servers are candidates, as listings print it.
    pub service: String,
    /// The name of the scheduler.
    pub scheduler: String,
    /// How it chooses, as text.
    pub rule: String,
    /// Whether the choice is certain.
    pub certainty: Certainty,
    /// The real servers, in the scheduler's order.
    pub candidates: Vec<CandidateReport>,
}

/// Whether a real server is chosen, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    /// It is chosen.
    Chosen,
    /// The weight is 0.
    Quiescent,
    /// An operator has disabled it (`xvs disable`), so its weight in force is 0.
    Disabled,
    /// It has reached its upper threshold.
    Overloaded,
    /// It starts slowly, and this connection exceeds its share.
    SlowStart,
    /// The scheduler chose another real server.
    PassedOver,
}

/// A real server that could be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CandidateReport {
    /// The endpoint of the real server.
    pub server: Endpoint,
    /// How packets reach it: `Masq`, `Local`, `Tunnel`, `Route` or `FullNat`.
    pub method: String,
    /// The effective weight.
    pub weight: u32,
    /// The active connections.
    pub active: u32,
    /// The other connections.
    pub inactive: u32,
    /// Whether it is chosen, or why not.
    pub standing: CandidateState,
    /// The part of its share of new connections that it gets now, in percent, if this connection is not of that part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start_percent: Option<u32>,
    /// The upper threshold, in connections; `None`: it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_threshold: Option<u32>,
    /// The figures that the scheduler compares.
    pub figures: Vec<Figure>,
}

/// The next hop to a real server or client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NextHop {
    /// The real server or client.
    pub to: IpAddr,
    /// The address of the gateway, or of the real server or client itself; `None`: no route leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// The outgoing interface; `None`: no route leads there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The link address of the next hop; `None`: it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet on this route, in bytes; `None`: the next hop cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The policy rule that chose the route, as `ip rule` prints it; `None`: there are the default rules alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why the packet cannot be sent there; `None`: it can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is changed of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rewrite {
    /// The forwarding method: `Masq`, `Local`, `Tunnel`, `Route` or `FullNat`.
    pub method: String,
    /// The endpoint that becomes the source; `None`: the source stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// The endpoint that becomes the destination; `None`: the destination stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Endpoint>,
    /// The outer packet; `None`: the packet is not sent through a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// The time to live, or hop limit, of the packet that is sent.
    pub ttl: u8,
    /// The number of fragments that are sent; 1: it is not fragmented.
    pub pieces: usize,
}

/// The outer packet of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tunnel {
    /// The kind of the tunnel: `ipip`, `gre` or `gue`.
    pub kind: String,
    /// The outer source, an address of the director.
    pub from: IpAddr,
    /// The outer destination, the address of the real server.
    pub to: IpAddr,
}

/// A frame that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SentFrame {
    /// The outgoing interface.
    pub interface: String,
    /// The headers of the packet in it, of a tunnel the outer ones; `None`: they cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The frame as hexadecimal digits.
    pub frame: String,
}

/// A circumstance that could change the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaveatReport {
    /// The name of the caveat: `drop_packet`, `drawn`, `local_port`, `table_full`, `fragment` or `rate_limit`.
    pub name: String,
    /// The caveat, in a sentence.
    pub what: String,
}

impl Report {
    /// Notes which real servers an operator has disabled.
    pub fn add_disabled(&mut self, disabled: &DisabledServers) {
        let Some(choice) = &mut self.choice else { return };
        let Ok(service) = choice.service.parse() else { return };
        for server in &mut choice.candidates {
            if disabled.includes(service, server.server) {
                server.standing = CandidateState::Disabled;
            }
        }
    }

    /// Adds the problems that health checks found with the service's real servers or, without a choice, with the real
    /// server of the connection.
    pub fn add_health(&mut self, health: &HealthReport, now_millis: u64) {
        let service = self.choice.as_ref().map(|choice| &choice.service).or(self.service.as_ref());
        let server = service.and_then(|service| health.of_service(service));
        self.health = server.map(|server| server.problems(now_millis)).unwrap_or_default();
        if self.choice.is_none() {
            let dest = self.connection.as_ref().map(|connection| format!("{} ", connection.dest));
            self.health.retain(|sentence| dest.as_ref().is_some_and(|dest| sentence.starts_with(dest)));
        }
    }
}
