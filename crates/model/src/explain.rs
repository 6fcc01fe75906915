//! The question of `xvs explain` and its answer.
//!
//! Names are those of commands and listings. Fields that do not apply are left out of the JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{Certainty, Figure};

use crate::health::HealthReport;

/// What is asked: a packet described by `proto`, `from` and `to`, or a whole frame.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// By which interface it comes in; by default the one by which its source is reached, or whose address a frame has.
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The frame from its Ethernet header on, as hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// Of a described packet, the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<Proto>,
    /// Who sends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Endpoint>,
    /// Whom to.
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

/// What would become of a packet, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where it comes in.
    pub interface: String,
    /// What it is; nothing if it is no packet that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// What an ICMP error is about.
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
    /// The connection that it meets, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<Entry>,
    /// Which way it goes in that connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direction: Option<String>,
    /// The template that its connection follows, as it then is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<Entry>,
    /// What the scheduler was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choice: Option<Choice>,
    /// Real servers of that service that were no choice because of their health, a sentence each; without a choice the one
    /// that the packet goes to, if it is down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub health: Vec<String>,
    /// Its connection, as it then is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Entry>,
    /// The next hop that it is sent to.
    #[serde(rename = "way", skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<NextHop>,
    /// What is changed of it on its way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<Rewrite>,
    /// `transmit`, `pass`, `drop` or `consumed`.
    pub verdict: String,
    /// The reason of a drop, by the name of its counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is dropped or passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What to do about a drop, where the reason does not say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What leaves: it, or what its sender is told.
    pub sent: Vec<Sent>,
    /// What may be otherwise.
    pub caveats: Vec<Doubt>,
}

/// A packet's headers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who sends it.
    pub from: Endpoint,
    /// Whom to.
    pub to: Endpoint,
    /// Control bits of TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<String>,
    /// Time to live, or hop limit.
    pub ttl: u8,
    /// Bytes with its network header.
    pub bytes: usize,
    /// Whether it is a part of a datagram.
    pub fragment: bool,
}

/// A connection or template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Whether it was there before: `found`, or `made` by the packet.
    pub origin: String,
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
    /// Whom it takes.
    pub rule: String,
    /// Whether it could be another one.
    pub certainty: Certainty,
    /// The real servers in the scheduler's order.
    pub candidates: Vec<Contender>,
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
    /// Whether it is the one, or why not: `chosen`, `quiescent`, `overloaded` or `passed_over`.
    pub standing: String,
    /// Its upper threshold, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upper_threshold: Option<u32>,
    /// What the scheduler looks at.
    pub figures: Vec<Figure>,
}

/// The way to a real server or client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// To whom.
    pub to: IpAddr,
    /// Over whom: itself, or a gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<IpAddr>,
    /// By which interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The next hop's link address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The largest packet that the way takes, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What is changed of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// By which method, as listings print it.
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
    /// In how many pieces it leaves.
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

/// A frame that leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// By which interface.
    pub interface: String,
    /// The packet in it: of a tunnel the outer one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packet: Option<Summary>,
    /// The frame as hexadecimal digits.
    pub frame: String,
}

/// Something that may be otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doubt {
    /// Its name.
    pub name: String,
    /// What it is.
    pub what: String,
}

impl Report {
    /// Tells what checks have made of the real servers that the scheduler was to choose from, or of the one whom a template
    /// or the connection leads to.
    pub fn add_health(&mut self, health: &HealthReport, now_millis: u64) {
        let service = self.choice.as_ref().map(|choice| &choice.service).or(self.service.as_ref());
        let server = service.and_then(|service| health.of_service(service));
        self.health = server.map(|server| server.troubles(now_millis)).unwrap_or_default();
        if self.choice.is_none() {
            let led_to = self.connection.as_ref().map(|connection| format!("{} ", connection.dest));
            self.health.retain(|told| led_to.as_ref().is_some_and(|dest| told.starts_with(dest)));
        }
    }
}
