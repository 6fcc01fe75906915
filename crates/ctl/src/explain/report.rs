//! The document that answers `xvs explain`: what programs read, and people by `cli/explain.rs`.
//!
//! Names are those of commands and listings. What does not apply is left out.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use xvs_dataplane::burst::classify::Class;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Copied, Direction};
use xvs_dataplane::egress::{Egress, Path, RouteTo};
use xvs_dataplane::explain::{Candidate, Caveat, Decision, Explanation, Live, Origin, Route};
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_proto::{Endpoint, Packet, Parsed, Protocol, ethernet, parse};
use xvs_sched::{Certainty, Figure, ForwardingMethod};
use xvs_xdp::LinkId;

use super::question::FLAGS;
use super::rule;
use crate::connections::{detached, state_name, template_state};
use crate::health::report::HealthReport;

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
    /// To whom it is sent, and by what way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub way: Option<NextHop>,
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
    /// That of an explanation.
    pub(super) fn of(explanation: &Explanation, live: &Live<'_>) -> Self {
        let Explanation { link, class, quote, mark, verdict, .. } = explanation;
        let (snapshot, now) = (live.snapshot, live.now);
        let egress = &snapshot.egress;
        let packet = match class {
            Class::Flow(packet) | Class::Fragment(packet) | Class::Error(packet) => Some(*packet),
            Class::Decided(_) => None,
        };
        let met = explanation.met.as_ref();
        let entry = |(origin, copied): &(Origin, Copied)| Entry::of(*origin, copied, now);
        let (name, reason, why) = match verdict {
            Verdict::Transmit(_) | Verdict::Fragment { .. } if explanation.resets => {
                ("transmit", None, Some(RESETS))
            }
            Verdict::Transmit(_) | Verdict::Fragment { .. } => ("transmit", None, None),
            Verdict::PassToKernel => ("pass", None, explanation.why_passed),
            Verdict::Consumed => ("consumed", None, Some("it has done what it was for: the client is told")),
            Verdict::Held => ("consumed", None, Some("it waits for the rest of its datagram")),
            Verdict::Drop(reason) => ("drop", Some(reason.name().to_owned()), Some(reason.sentence())),
        };
        let direction = |direction: &Direction| match direction {
            Direction::Inbound => "inbound".to_owned(),
            Direction::Outbound => "outbound".to_owned(),
        };
        Self {
            interface: name_of(*link, egress),
            packet: packet.map(|packet| Summary::of(&packet)),
            about: quote.map(|quote| Summary::of(&quote)),
            mark: *mark,
            marked_by: explanation.marked_by.as_ref().map(|step| rule::in_words(step, egress)),
            service: explanation.service.map(|key| key.to_string()),
            met: met.map(|(copied, _)| Entry::of(Origin::Found, copied, now)),
            direction: met.map(|(_, way)| direction(way)),
            template: explanation.template.as_ref().map(entry),
            choice: explanation.decision.as_ref().map(Choice::of),
            health: Vec::new(),
            connection: explanation.connection.as_ref().map(entry),
            way: explanation.route.map(|route| NextHop::of(&route, snapshot)),
            rewrite: packet
                .filter(|_| name == "transmit")
                .and_then(|packet| Rewrite::of(&packet, explanation)),
            verdict: name.to_owned(),
            reason,
            why: why.map(str::to_owned),
            advice: match verdict {
                Verdict::Drop(reason) => advice(*reason).map(str::to_owned),
                _ => None,
            },
            sent: explanation.sent.iter().map(|sent| Sent::of(sent.link, &sent.frame, egress)).collect(),
            caveats: explanation.caveats.iter().map(Doubt::of).collect(),
        }
    }

    /// Tells what checks have made of the real servers that the scheduler was to choose from, or of the one whom a template
    /// or the connection leads to.
    pub(crate) fn tell_health(&mut self, health: &HealthReport, now_millis: u64) {
        let service = self.choice.as_ref().map(|choice| &choice.service).or(self.service.as_ref());
        let server = service.and_then(|service| health.of_service(service));
        self.health = server.map(|server| server.troubles(now_millis)).unwrap_or_default();
        if self.choice.is_none() {
            let led_to = self.connection.as_ref().map(|connection| format!("{} ", connection.dest));
            self.health.retain(|told| led_to.as_ref().is_some_and(|dest| told.starts_with(dest)));
        }
    }
}

impl Summary {
    fn of(packet: &Packet) -> Self {
        let flags = (packet.flow.protocol == Protocol::TCP).then(|| {
            let set = FLAGS.iter().filter(|(_, bit)| packet.tcp_flags.has(*bit));
            set.map(|(name, _)| *name).collect::<Vec<_>>().join(",")
        });
        Self {
            protocol: packet.flow.protocol,
            from: packet.flow.source,
            to: packet.flow.dest,
            flags,
            ttl: packet.ttl,
            bytes: packet.length(),
            fragment: packet.fragment != xvs_proto::Fragment::Whole,
        }
    }
}

impl Entry {
    fn of(origin: Origin, copied: &Copied, now: Millis) -> Self {
        let connection = &copied.connection;
        let (port, state) = match copied.is_template() {
            true => (0, template_state(connection.state)),
            false => (connection.client.port, state_name(connection.protocol, connection.state)),
        };
        let shown = |endpoint| if copied.is_detached() { detached(endpoint) } else { endpoint };
        Self {
            origin: match origin {
                Origin::Found => "found".to_owned(),
                Origin::Made => "made".to_owned(),
            },
            protocol: connection.protocol,
            client: Endpoint { port, ..connection.client },
            virtual_endpoint: shown(connection.virtual_endpoint),
            dest: shown(connection.dest),
            local: connection.local,
            method: connection.method.listed().to_owned(),
            state: state.to_owned(),
            expires_millis: now.until(connection.expires).as_millis() as u64,
            packets: copied.in_packets,
            call_id: copied.call_id.as_ref().map(|id| String::from_utf8_lossy(id).into_owned()),
        }
    }
}

impl Choice {
    fn of(decision: &Decision) -> Self {
        let Decision { service, account, candidates, chosen } = decision;
        let contender = |(position, candidate): (usize, &Candidate)| Contender {
            server: candidate.endpoint,
            method: candidate.method.listed().to_owned(),
            weight: candidate.weight.0,
            active: candidate.load.active,
            inactive: candidate.load.inactive,
            standing: match () {
                () if *chosen == Some(position) => "chosen",
                () if candidate.weight.is_quiescent() => "quiescent",
                () if candidate.overloaded => "overloaded",
                () => "passed_over",
            }
            .to_owned(),
            upper_threshold: Some(candidate.upper_threshold).filter(|upper| *upper > 0),
            figures: account.candidates.get(position).cloned().unwrap_or_default(),
        };
        Self {
            service: service.to_string(),
            scheduler: account.scheduler.to_owned(),
            rule: account.rule.clone(),
            certainty: account.certainty,
            candidates: candidates.iter().enumerate().map(contender).collect(),
        }
    }
}

impl NextHop {
    fn of(route: &Route, snapshot: &Snapshot) -> Self {
        let egress = &snapshot.egress;
        let (link, via) = match route.result {
            RouteTo::Via { link, next_hop } => (Some(link), Some(next_hop)),
            RouteTo::Local | RouteTo::Unreachable | RouteTo::NoRoute => (None, None),
        };
        let hop = match route.path {
            Path::To(hop) => Some(hop),
            Path::NoNeighbour { .. } | Path::Local | Path::NoRoute => None,
        };
        let problem = match (route.path, route.result) {
            (Path::To(_), _) => None,
            (Path::Local, _) => Some("it is this machine itself"),
            (Path::NoNeighbour { .. }, _) => Some("its link address is not known yet; see `ip neigh`"),
            (Path::NoRoute, RouteTo::Via { .. }) => Some("the interface is down; see `ip link`"),
            (Path::NoRoute, RouteTo::Unreachable) => Some("a route refuses it; see `ip route`"),
            (Path::NoRoute, _) => Some("there is no route by an attached interface; see `ip route`"),
        };
        Self {
            to: route.to,
            via,
            interface: link.map(|link| name_of(link, egress)),
            mac: hop.map(|hop| hop.dest_mac.to_string()),
            mtu: hop.map(|hop| hop.mtu),
            problem: problem.map(str::to_owned),
        }
    }
}

impl Rewrite {
    /// What is different between a packet and what leaves of it.
    fn of(packet: &Packet, explanation: &Explanation) -> Option<Self> {
        let Explanation { connection, template, decision, sent, .. } = explanation;
        let Parsed::Ip(out) = parse(&sent.first()?.frame).ok()? else { return None };
        let chosen = decision.as_ref().and_then(|asked| Some(asked.candidates.get(asked.chosen?)?.method));
        let entry = connection.as_ref().or(template.as_ref());
        let method = entry.map(|(_, copied)| copied.connection.method).or(chosen)?;
        let tunnel =
            (method == ForwardingMethod::Tunnel && out.flow.dest != packet.flow.dest).then(|| Tunnel {
                kind: match out.flow.protocol {
                    Protocol::GRE => "gre",
                    Protocol::UDP => "gue",
                    _ => "ipip",
                }
                .to_owned(),
                from: out.flow.source.addr,
                to: out.flow.dest.addr,
            });
        // Of what is in a tunnel only the time to live changes; an error's ends are those of its outer header.
        let changed = |new: Endpoint, old: Endpoint| Some(new).filter(|new| tunnel.is_none() && *new != old);
        Some(Self {
            method: method.listed().to_owned(),
            from: changed(out.flow.source, packet.flow.source),
            to: changed(out.flow.dest, packet.flow.dest),
            ttl: out.ttl,
            pieces: sent.len() - usize::from(explanation.resets),
            tunnel,
        })
    }
}

impl Sent {
    /// A frame as it leaves; one of a VLAN has a tag by then.
    fn of(link: LinkId, frame: &[u8], egress: &Egress) -> Self {
        let packet = match parse(frame) {
            Ok(Parsed::Ip(packet)) => Some(Summary::of(&packet)),
            Ok(Parsed::Other) | Err(_) => None,
        };
        let link = ethernet::vlan(frame).and_then(|vlan| egress.untagged(link, vlan)).unwrap_or(link);
        let frame = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { interface: name_of(link, egress), packet, frame }
    }
}

impl Doubt {
    fn of(caveat: &Caveat) -> Self {
        let what = match caveat {
            Caveat::DropPacket { rate } => format!(
                "`drop_packet` is in force: one of {rate} packets that would begin a connection is dropped instead"
            ),
            Caveat::Drawn => "chance decides: the next packet like it may get another real server".to_owned(),
            Caveat::LocalPort => {
                "the local port is the next free one of the worker that meets the packet; this is one of them"
                    .to_owned()
            }
            Caveat::TableFull => {
                "the connection table is full: a new connection takes the place of one that has expired or never got \
                 an answer, or is dropped; raise `conn_table_size` in xvs.toml"
                    .to_owned()
            }
            Caveat::Fragment => {
                "what other fragments of its datagram wait is not known; ask about the whole packet".to_owned()
            }
            Caveat::RateLimit => {
                "the sender is told unless too many were told in this second (`icmp_msgs_per_sec`)".to_owned()
            }
        };
        Self { name: caveat.name().to_owned(), what }
    }
}

/// What is special about a packet of a connection that is to be reset.
const RESETS: &str = "its connection is reset (`xvs drain`): it goes on as a reset, and its sender gets the last \
                      of what is sent";

/// The next step, for reasons whose sentence has none.
fn advice(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::NoDestination => {
            "add a real server, or raise a weight or a threshold: `xvsadm -Ln --thresholds`"
        }
        DropReason::DestinationLocal => "use -g, and give the director the virtual address",
        DropReason::TtlExpired => "look for a routing loop, if it is not traceroute",
        DropReason::TooBig { .. } => {
            "lots of it: a smaller MSS on the real servers (`ip route change … advmss`)"
        }
        DropReason::NeedsFragmenting => "raise the MTU towards the real servers",
        DropReason::Unsolicited => {
            "the client speaks first; see whether its connection has expired: `xvsadm -Lnc`"
        }
        DropReason::NoCallId => "is it SIP over UDP? Other services do without --pe",
        DropReason::IcmpChecksum => "look at the router that sent it",
        DropReason::Malformed(_) => "look at the machine that sent it, and at the cable or driver between",
        _ => return None,
    })
}

pub(super) fn name_of(link: LinkId, egress: &Egress) -> String {
    egress.link(link).map_or_else(|| format!("link {}", link.0), |info| info.name.clone())
}
