//! The request of `xvs explain` and its report.
//!
//! Field names are those of commands and listings. Fields that do not apply are absent from the JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{Certainty, Figure};

use crate::config::maintenance::DisabledServers;
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
    /// Its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// Its destination.
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

/// What would happen to a packet, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Report {
    /// The interface that receives it.
    pub interface: String,
    /// Its headers; `None` if they cannot be parsed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The headers of the packet that an ICMP error quotes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<Summary>,
    /// Its firewall mark; 0: none.
    pub mark: u32,
    /// The rule that marked it, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marked_by: Option<String>,
    /// The service that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The connection that it matches, before the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<Entry>,
    /// Its direction in that connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<Direction>,
    /// The template of its connection, after the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Entry>,
    /// The scheduler's choice; `None` if no scheduler runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// What its QUIC connection ID chooses, and why, in words; `None` without QUIC configurations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quic: Option<String>,
    /// A sentence for each real server of the service that is down; without a choice only for the one that the packet
    /// is forwarded to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// Its connection, after the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Entry>,
    /// Whether the connection that it matches is offloaded, and why not, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<String>,
    /// The next hop that it is sent to.
    #[serde(rename = "way", skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// The changes to the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// Its verdict.
    pub verdict: Verdict,
    /// The reason of a drop, or of waiting for the next hop, by the name of its counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is dropped or passed, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The next step after a drop, if the reason's sentence names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The frames that are sent: the packet or its fragments, or a reply to its sender.
    pub sent: Vec<SentFrame>,
    /// Circumstances that could change the result.
    pub caveats: Vec<CaveatReport>,
}

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is forwarded.
    Transmit,
    /// It is passed to the kernel.
    Pass,
    /// It is dropped.
    Drop,
    /// It is consumed: an ICMP error that had its effect, a fragment that waits for the others, or the reply to a
    /// health check.
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
    /// Its protocol.
    pub protocol: Protocol,
    /// Its source.
    pub from: Endpoint,
    /// Its destination.
    pub to: Endpoint,
    /// TCP flags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Length in bytes, from the network header on.
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
    /// Whether it exists already or the packet creates it.
    pub origin: Origin,
    /// Its protocol; `IP` for the template of a mark.
    pub protocol: Protocol,
    /// The client's end; port 0 in a template.
    pub client: Endpoint,
    /// The virtual end; in a mark's template the mark, written as an address.
    pub virtual_endpoint: Endpoint,
    /// The real server's end.
    pub dest: Endpoint,
    /// The director's end towards the real server, under FULLNAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// How packets reach it, as listings print it.
    pub method: String,
    /// Its state as listings print it.
    pub state: String,
    /// When it expires, in milliseconds from now.
    pub expires_millis: u64,
    /// Packets from the client so far.
    pub packets: u32,
    /// The Call-ID of a template of the `sip` persistence engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

/// A scheduler's choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Choice {
    /// The service.
    pub service: String,
    /// The scheduler's name.
    pub scheduler: String,
    /// The scheduler's rule, in words.
    pub rule: String,
    /// Whether the choice is certain or random.
    pub certainty: Certainty,
    /// The real servers in the scheduler's order.
    pub candidates: Vec<CandidateReport>,
}

/// Whether a real server is chosen, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CandidateState {
    /// It is chosen.
    Chosen,
    /// Its weight is 0.
    Quiescent,
    /// An operator has disabled it (`xvs disable`), so its weight in force is 0.
    Disabled,
    /// It has reached its upper threshold.
    Overloaded,
    /// The scheduler has chosen another one.
    PassedOver,
}

/// A real server that could be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CandidateReport {
    /// Its endpoint.
    pub server: Endpoint,
    /// How packets reach it, as listings print it.
    pub method: String,
    /// Its weight in force.
    pub weight: u32,
    /// Connections in an active state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// Whether it is chosen, or why not.
    pub standing: CandidateState,
    /// Its upper threshold, if it has one.
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
    /// The next hop: a gateway, or the real server or client itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// The outgoing interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The next hop's link address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet on this route, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The policy rule that chose the route, as `ip rule` prints it, if there are others than the default rules.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is changed of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rewrite {
    /// The forwarding method, as listings print it.
    pub method: String,
    /// Its new source, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// Its new destination, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Endpoint>,
    /// The outer packet, if it is sent through a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// Its time to live, or hop limit, when it leaves.
    pub ttl: u8,
    /// The number of fragments in which it leaves.
    pub pieces: usize,
}

/// The outer packet of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Tunnel {
    /// `ipip`, `gre` or `gue`.
    pub kind: String,
    /// Its source, an address of the director.
    pub from: IpAddr,
    /// Its destination, the real server's address.
    pub to: IpAddr,
}

/// A frame that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SentFrame {
    /// The outgoing interface.
    pub interface: String,
    /// The packet in it; for a tunnel the outer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The frame as hexadecimal digits.
    pub frame: String,
}

/// A circumstance that could change the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaveatReport {
    /// Its name.
    pub name: String,
    /// It, in a sentence.
    pub what: String,
}

impl Report {
    /// Notes which real servers an operator has disabled.
    pub fn add_disabled(&mut self, disabled: &DisabledServers) {
        let Some(choice) = &mut self.choice else { return };
        let Ok(service) = choice.service.parse() else { return };
        let is_disabled = |server: &&mut CandidateReport| disabled.includes(service, server.server);
        choice
            .candidates
            .iter_mut()
            .filter(is_disabled)
            .for_each(|server| server.standing = CandidateState::Disabled);
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
