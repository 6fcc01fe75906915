//! The report of `xvs explain`, for programs; `explain.rs` in `xvs` prints it.
//!
//! Names are those of commands and listings. Fields that do not apply are left out.

use xvs_dataplane::burst::classify::Class;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Copied, Direction, NewConnection, detached};
use xvs_dataplane::egress::{Egress, Path, RouteTo};
use xvs_dataplane::explain::{Candidate, Caveat, Decision, Explanation, Live, Origin, Route};
use xvs_dataplane::new_connection::eviction::is_half_open;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_ipvsadm::fallback_command;
use xvs_model::report::explain;
use xvs_model::report::explain::{
    CandidateReport, CandidateState, CaveatReport, Choice, Entry, NextHop, Report, Rewrite, SentFrame,
    Summary, Tunnel,
};
use xvs_model::report::unanswered::neighbour_cause;
use xvs_proto::{Endpoint, LinkId, Packet, Parsed, Protocol, ethernet, parse};
use xvs_sched::ForwardingMethod;

use crate::api::connections::{state_name, template_state_name};
use crate::api::explain::question::FLAGS;
use crate::api::explain::rule;
use crate::unattached::Attachment;

/// The reason why a packet on a connection that must be reset is forwarded.
const RESETS: &str = "its connection is reset (`xvs drain`): the packet is forwarded as a RST, and its sender gets a \
                      RST too, the last packet under `sent`";

/// The next step after a hash selected a real server that is not usable, while others are: the command that adds the
/// fallback.
fn hash_advice(explanation: &Explanation, snapshot: &Snapshot) -> Option<String> {
    let Decision { service, account, candidates, chosen: None } = explanation.decision.as_ref()? else {
        return None;
    };
    let is_usable = |candidate: &Candidate| !candidate.weight.is_quiescent() && !candidate.overloaded;
    let command = fallback_command(&snapshot.services.find(service)?.rule)?;
    let mut figures = candidates.iter().zip(&account.candidates);
    let (own, figure) = figures.find_map(|(candidate, figures)| Some((candidate, figures.first()?)))?;
    candidates.iter().any(is_usable).then(|| {
        format!(
            "the client has {} {} of {}, and no other is tried: `{command}` gives such clients another real server",
            figure.name, figure.value, own.endpoint
        )
    })
}

/// The next step for an operator, if the reason's sentence has none.
fn advice(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::NoDestination => {
            "add a real server, or raise a weight or a threshold: `xvsadm -Ln --thresholds`"
        }
        DropReason::DestinationLocal => {
            "use -m with another address of the director, or -g and give the director the virtual address"
        }
        DropReason::TtlExpired => "unless it is traceroute, look for a routing loop",
        DropReason::TooBig { .. } => {
            "if it is frequent: set a smaller MSS on the real servers (`ip route change … advmss`)"
        }
        DropReason::NeedsFragmenting => "raise the MTU towards the real servers",
        DropReason::Unsolicited => {
            "no request of a client matches it; check whether its connection has expired: `xvsadm -Lnc`"
        }
        DropReason::NoCallId => {
            "`--pe sip` is for SIP over UDP alone: remove it from a service of anything else"
        }
        DropReason::IcmpChecksum => "check the router that sent it",
        DropReason::Malformed(_) => "check the sender, the cable and the driver",
        _ => return None,
    })
}

/// The report of an explanation.
pub(super) fn report(explanation: &Explanation, live: &Live<'_>, attachment: &Attachment<'_>) -> Report {
    let Explanation { link, class, quote, mark, verdict, .. } = explanation;
    let now = live.now;
    let egress = &live.snapshot.egress;
    let packet = match class {
        Class::Flow(packet) | Class::Fragment(packet) | Class::Error(packet) => Some(*packet),
        Class::Decided(_) => None,
    };
    let met = explanation.met.as_ref();
    let (happens, reason, why) = match verdict {
        Verdict::Transmit(link) if link.is_own() => (explain::Verdict::Pass, None, explanation.why_passed),
        Verdict::Transmit(_) | Verdict::Fragment { .. } if explanation.resets => {
            (explain::Verdict::Transmit, None, Some(RESETS))
        }
        Verdict::Transmit(_) | Verdict::Fragment { .. } => {
            (explain::Verdict::Transmit, None, explanation.syn_proxy)
        }
        Verdict::PassToKernel => (explain::Verdict::Pass, None, explanation.why_passed),
        Verdict::Consumed => {
            let why = match class {
                Class::Flow(_) => explanation
                    .syn_proxy
                    .unwrap_or("its port is that of health checks through virtual addresses (`through_vip`)"),
                _ => "it is consumed: the client gets an ICMP error instead",
            };
            (explain::Verdict::Consumed, None, Some(why))
        }
        Verdict::Held => {
            (explain::Verdict::Consumed, None, Some("it waits for further fragments of its datagram"))
        }
        Verdict::Waiting(_) => {
            let reason = DropReason::NoNeighbour.name().to_owned();
            (
                explain::Verdict::Consumed,
                Some(reason),
                Some("it waits a second for its next hop; see `ip neigh`"),
            )
        }
        Verdict::Drop(reason) => {
            (explain::Verdict::Drop, Some(reason.name().to_owned()), Some(reason.sentence()))
        }
    };
    Report {
        interface: egress.name_of(*link),
        packet: packet.map(|packet| summary(&packet)),
        about: quote.map(|quote| summary(&quote)),
        mark: *mark,
        marked_by: explanation.marked_by.as_ref().map(|step| rule::in_words(step, egress)),
        service: explanation.service.map(|key| key.to_string()),
        met: met.map(|(copied, _)| entry(Origin::Found, copied, now)),
        direction: met.map(|(_, direction)| match direction {
            Direction::Inbound => explain::Direction::Inbound,
            Direction::Outbound => explain::Direction::Outbound,
        }),
        template: explanation.template.as_ref().map(|(origin, copied)| entry(*origin, copied, now)),
        choice: explanation.decision.as_ref().map(choice),
        quic: explanation.quic.clone(),
        health: Vec::new(),
        connection: explanation.connection.as_ref().map(|(origin, copied)| entry(*origin, copied, now)),
        offload: explanation.offloaded.map(|offloaded| match offloaded {
            Ok(()) => "the XDP program forwards plain packets of this connection".to_owned(),
            Err(why) => format!("workers forward this connection: {why}"),
        }),
        next_hop: explanation.route.map(|route| next_hop(&route, egress, attachment)),
        rewrite: packet
            .filter(|_| matches!(verdict, Verdict::Transmit(_) | Verdict::Fragment { .. }))
            // Another packet is sent instead.
            .filter(|_| explanation.syn_proxy.is_none())
            .and_then(|packet| rewrite(&packet, explanation)),
        verdict: happens,
        reason,
        why: why.map(str::to_owned),
        advice: match verdict {
            Verdict::Drop(DropReason::NoDestination) => hash_advice(explanation, live.snapshot)
                .or_else(|| advice(DropReason::NoDestination).map(str::to_owned)),
            Verdict::Drop(reason) => advice(*reason).map(str::to_owned),
            _ if met.is_some_and(|(_, towards)| *towards == Direction::Outbound) => None,
            _ => explanation.connection.as_ref().and_then(|(_, copied)| neighbour(copied, egress)),
        },
        sent: match happens {
            // A frame that goes to the kernel is not sent.
            explain::Verdict::Pass => Vec::new(),
            _ => explanation.sent.iter().map(|bytes| sent(bytes.link, &bytes.frame, egress)).collect(),
        },
        caveats: explanation.caveats.iter().map(caveat_report).collect(),
    }
}

/// The reason why the real server of this connection answers its client directly, if it does as far as is known: it may
/// route its own network through this director, as an established connection shows.
fn neighbour(copied: &Copied, egress: &Egress) -> Option<String> {
    let NewConnection { method, protocol, state, client, dest, .. } = &copied.connection;
    let is_open = *protocol == Protocol::TCP && !is_half_open(*protocol, *state);
    let is_direct = *method == ForwardingMethod::Nat && egress.are_neighbours(client.addr, dest.addr);
    (is_direct && !is_open).then(|| neighbour_cause(client.addr))
}

fn summary(packet: &Packet) -> Summary {
    let flags = (packet.flow.protocol == Protocol::TCP).then(|| {
        FLAGS
            .iter()
            .filter(|(_, bit)| packet.tcp_flags.has(*bit))
            .map(|(name, _)| *name)
            .collect::<Vec<_>>()
            .join(",")
    });
    Summary {
        protocol: packet.flow.protocol,
        from: packet.flow.source,
        to: packet.flow.dest,
        flags,
        ttl: packet.ttl,
        bytes: packet.length(),
        fragment: packet.fragment != xvs_proto::Fragment::Whole,
    }
}

fn entry(origin: Origin, copied: &Copied, now: Millis) -> Entry {
    let connection = &copied.connection;
    let (port, state) = match copied.is_template() {
        true => (0, template_state_name(connection.state)),
        false => (connection.client.port, state_name(connection.protocol, connection.state)),
    };
    let ends = [connection.virtual_endpoint, connection.dest];
    let [virtual_endpoint, dest] = if copied.is_detached() { ends.map(detached) } else { ends };
    Entry {
        origin: match origin {
            Origin::Found => explain::Origin::Found,
            Origin::Made => explain::Origin::Made,
        },
        protocol: connection.protocol,
        client: Endpoint { port, ..connection.client },
        virtual_endpoint,
        dest,
        local: connection.local,
        method: connection.method.listed().to_owned(),
        state: state.to_owned(),
        expires_millis: now.until(connection.expires).as_millis() as u64,
        packets: copied.in_packets,
        call_id: copied.call_id.as_ref().map(|id| String::from_utf8_lossy(id).into()),
    }
}

fn choice(decision: &Decision) -> Choice {
    let Decision { service, account, candidates, chosen } = decision;
    Choice {
        service: service.to_string(),
        scheduler: account.scheduler.to_owned(),
        rule: account.rule.clone(),
        certainty: account.certainty,
        candidates: candidates
            .iter()
            .enumerate()
            .map(|(position, candidate)| CandidateReport {
                server: candidate.endpoint,
                method: candidate.method.listed().to_owned(),
                weight: candidate.weight.0,
                active: candidate.load.active,
                inactive: candidate.load.inactive,
                standing: match () {
                    () if *chosen == Some(position) => CandidateState::Chosen,
                    () if candidate.weight.is_quiescent() => CandidateState::Quiescent,
                    () if candidate.overloaded => CandidateState::Overloaded,
                    () if candidate.slow_start_percent.is_some() => CandidateState::SlowStart,
                    () => CandidateState::PassedOver,
                },
                slow_start_percent: candidate.slow_start_percent,
                upper_threshold: Some(candidate.upper_threshold).filter(|upper| *upper > 0),
                figures: account.candidates.get(position).cloned().unwrap_or_default(),
            })
            .collect(),
    }
}

fn next_hop(route: &Route, egress: &Egress, attachment: &Attachment<'_>) -> NextHop {
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
        (Path::NoRoute, RouteTo::Unreachable) => Some(
            "its route or policy rule is unreachable, prohibit or blackhole; see `ip route` and `ip rule`",
        ),
        (Path::NoRoute, _) => Some("there is no route by an attached interface; see `ip route`"),
    };
    NextHop {
        to: route.key.dest,
        via,
        interface: link.map(|link| egress.name_of(link)),
        mac: hop.map(|hop| hop.dest_mac.to_string()),
        mtu: hop.map(|hop| hop.mtu),
        rule: egress.rule_of(route.key).map(|rule| rule.to_string()),
        problem: unattached(route, attachment).or_else(|| problem.map(str::to_owned)),
    }
}

/// A clause about the unattached interface of a packet without a route.
fn unattached(route: &Route, attachment: &Attachment<'_>) -> Option<String> {
    let Path::NoRoute = route.path else { return None };
    let link = attachment.towards(route.key)?;
    Some(format!("its route is by {}, to which xvsd is not attached; {}", link.name, attachment.step(link)))
}

/// The differences between a packet and the frame that leaves; `None` if none leaves.
fn rewrite(packet: &Packet, explanation: &Explanation) -> Option<Rewrite> {
    let Explanation { connection, template, decision, sent, .. } = explanation;
    let Parsed::Ip(out) = parse(&sent.first()?.frame).ok()? else { return None };
    let chosen =
        decision.as_ref().and_then(|decision| Some(decision.candidates.get(decision.chosen?)?.method));
    let method =
        connection.as_ref().or(template.as_ref()).map(|(_, copied)| copied.connection.method).or(chosen)?;
    let tunnel = (method == ForwardingMethod::Tunnel && out.flow.dest != packet.flow.dest).then(|| Tunnel {
        kind: match out.flow.protocol {
            Protocol::GRE => "gre",
            Protocol::UDP => "gue",
            _ => "ipip",
        }
        .to_owned(),
        from: out.flow.source.addr,
        to: out.flow.dest.addr,
    });
    // Inside a tunnel only the packet's time to live changes; an ICMP error has the endpoints of its outer header.
    let is_visible = tunnel.is_none();
    Some(Rewrite {
        method: method.listed().to_owned(),
        from: (is_visible && out.flow.source != packet.flow.source).then_some(out.flow.source),
        to: (is_visible && out.flow.dest != packet.flow.dest).then_some(out.flow.dest),
        ttl: out.ttl,
        pieces: sent.len() - usize::from(explanation.resets),
        tunnel,
    })
}

/// A frame as it leaves. Frames on a VLAN are already tagged, those on a bond already have a member.
fn sent(link: LinkId, frame: &[u8], egress: &Egress) -> SentFrame {
    let packet = match parse(frame) {
        Ok(Parsed::Ip(packet)) => Some(summary(&packet)),
        Ok(Parsed::Other) | Err(_) => None,
    };
    let above = egress.above(link);
    let link = ethernet::vlan(frame).and_then(|vlan| egress.untagged(above, vlan)).unwrap_or(above);
    SentFrame {
        interface: egress.name_of(link),
        packet,
        frame: frame.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn caveat_report(caveat: &Caveat) -> CaveatReport {
    let what = match caveat {
        Caveat::DropPacket { rate } => format!(
            "`drop_packet` is in force: one of {rate} packets that would create a connection is dropped instead"
        ),
        Caveat::Drawn => "the scheduler draws at random: an equal packet may get another real server".to_owned(),
        Caveat::LocalPort => {
            "the local port is the next free one of the worker that receives the packet; this is one of them"
                .to_owned()
        }
        Caveat::TableFull => {
            "the connection table is full: a new connection takes the place of one that has expired or never got \
             an answer, or is dropped; raise `conn_table_size` in xvs.toml"
                .to_owned()
        }
        Caveat::Fragment => {
            "other fragments of its datagram that may wait are unknown; explain the whole packet".to_owned()
        }
        Caveat::RateLimit => {
            "the ICMP error is sent unless this second's limit is reached (`icmp_msgs_per_sec`)".to_owned()
        }
    };
    CaveatReport { name: caveat.name().to_owned(), what }
}
