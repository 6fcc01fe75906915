//! The question of `xvs explain` and its report.
//!
//! Names are those of commands and listings. Fields that do not apply are left out of the JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{Certainty, Figure};

use crate::health::HealthReport;

/// The packet in question: described by `proto`, `from` and `to`, or a whole frame.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// The interface that it comes in on; by default that of the route to its source, or the one whose link address a
    /// frame has.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The frame from its Ethernet header on, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Of a described packet, the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Its source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// Its destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Endpoint>,
    /// Control bits of TCP by name, with commas or blanks between; `none` for none. Default: `syn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Bytes of data behind the headers. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u16>,
    /// Time to live, or hop limit. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
}

/// The protocol of a described packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Each by its name.
    pub const NAMES: [(&str, Self); 3] = [("tcp", Self::Tcp), ("udp", Self::Udp), ("sctp", Self::Sctp)];
}

/// What would happen to a packet, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The interface that it comes in on.
    pub interface: String,
    /// Its headers; `None` if they cannot be read.
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
    /// The connection that it matches, as it is.
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
    /// Real servers of that service that cannot be chosen because of their health, a sentence each; without a choice
    /// the one that the packet is forwarded to, if it is down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// Its connection, after the packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Entry>,
    /// The next hop that it is sent to.
    #[serde(rename = "way", skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// What is changed in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// What happens to it.
    pub verdict: Verdict,
    /// The reason of a drop, by the name of its counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is dropped or passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The next step after a drop, where the reason has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// The frames that are sent: the packet, or the reply to its sender.
    pub sent: Vec<Sent>,
    /// What could make the result different.
    pub caveats: Vec<Doubt>,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is sent on.
    Transmit,
    /// It is passed to the kernel.
    Pass,
    /// It is dropped.
    Drop,
    /// It ends here: it was an error that has its effect, or waits for further fragments.
    Consumed,
}

/// The direction of a packet in its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the client to the real server.
    Inbound,
    /// From the real server to the client.
    Outbound,
}

/// A packet's headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its source.
    pub from: Endpoint,
    /// Its destination.
    pub to: Endpoint,
    /// Control bits of TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Bytes with its network header.
    pub bytes: usize,
    /// Whether it is a fragment.
    pub fragment: bool,
}

/// Whether a connection or template exists before the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It exists already.
    Found,
    /// The packet creates it.
    Made,
}

/// A connection or template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whether the packet creates it.
    pub origin: Origin,
    /// Its protocol; `IP` of a mark's template.
    pub protocol: Protocol,
    /// The client's end; port 0 in a template.
    pub client: Endpoint,
    /// The virtual end; in a mark's template the mark as an address.
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
    /// The Call-ID that a template stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
}

/// A scheduler's choice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// For which service.
    pub service: String,
    /// By which scheduler.
    pub scheduler: String,
    /// How it chooses.
    pub rule: String,
    /// Whether chance takes part.
    pub certainty: Certainty,
    /// The real servers in the scheduler's order.
    pub candidates: Vec<Contender>,
}

/// Whether a real server is chosen, or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is chosen.
    Chosen,
    /// Its weight is 0.
    Quiescent,
    /// It has reached its upper threshold.
    Overloaded,
    /// The scheduler has chosen another one.
    PassedOver,
}

/// A real server that could be chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Contender {
    /// Which.
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
    pub standing: Standing,
    /// Its upper threshold, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_threshold: Option<u32>,
    /// The figures that the scheduler compares.
    pub figures: Vec<Figure>,
}

/// The next hop to a real server or client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is changed of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The forwarding method, as listings print it.
    pub method: String,
    /// Its new source, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// Its new destination, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Endpoint>,
    /// The packet around it, if it is in a tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<Tunnel>,
    /// Its time to live, or hop limit, when it leaves.
    pub ttl: u8,
    /// In how many fragments it leaves.
    pub pieces: usize,
}

/// The packet around another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// `ipip`, `gre` or `gue`.
    pub kind: String,
    /// The director's address.
    pub from: IpAddr,
    /// The real server's.
    pub to: IpAddr,
}

/// A frame that is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// The outgoing interface.
    pub interface: String,
    /// The packet in it: of a tunnel the outer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The frame as hexadecimal digits.
    pub frame: String,
}

/// Something that could make the result different.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: String,
}

impl Report {
    /// Adds what health checks say about the candidates of the scheduler or, without a choice, about the real server of
    /// the connection.
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
