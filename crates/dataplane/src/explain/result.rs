//! The result of a dry run: the explanation of its packet.

use std::net::IpAddr;
use std::sync::Arc;

use xvs_proto::LinkId;
use xvs_proto::network::RouteKey;
use xvs_sched::{Certainty, ServiceKey};

use super::dry_run::DryRun;
use super::{Caveat, Explanation, Live, Origin, Route, pass_reason};
use crate::burst::classify::Class;
use crate::burst::context::Context;
use crate::conn::{ConnId, Copied, Direction, Flags, NewConnection};
use crate::egress::Path;
use crate::new_connection::{quic, service};
use crate::snapshot::copy::Decision;
use crate::snapshot::marks::Step;
use crate::snapshot::{DestinationId, Service, Snapshot};
use crate::verdict::{DropReason, Verdict};

impl DryRun {
    /// The explanation of the packet.
    pub(super) fn into_explanation(mut self, live: &Live<'_>) -> Explanation {
        let snapshot = live.snapshot;
        let decision = self.decision();
        let lasts = self.lasts();
        let connection = self.connection();
        let template = self.template(connection.as_ref());
        let met = self.met.take().map(|(_, met, direction)| (met, direction));
        let (mark, marked_by) = self.mark(snapshot);
        let begun_for = if lasts { None } else { self.service(mark, snapshot) };
        let (service, mark, marked_by) = match &met {
            Some((met, _)) if lasts => (service_of(met, snapshot), met.connection.mark, None),
            _ => (begun_for, mark, marked_by),
        };
        let direction = met.as_ref().filter(|_| lasts).map(|(_, direction)| *direction);
        let chosen = decision
            .as_ref()
            .and_then(|decision| Some(decision.candidates[decision.chosen?].endpoint.addr))
            .or(template.as_ref().map(|(_, template)| template.connection.dest.addr));
        let route = self.route(connection.as_ref(), chosen, direction.unwrap_or(Direction::Inbound));
        let is_delivered = matches!(self.verdict, Verdict::Transmit(link) if link.is_own());
        let passes = is_delivered || self.verdict == Verdict::PassToKernel;
        let is_own_client = self.link == LinkId::LOOPBACK
            && connection.as_ref().is_some_and(|(_, copied)| !copied.connection.method.masquerades());
        let why_passed = passes.then(|| match route.is_some_and(|route| route.path == Path::Local) {
            _ if is_own_client => pass_reason::OWN_CLIENT,
            true if direction == Some(Direction::Outbound) => {
                "its client is this machine itself, whose kernel delivers it"
            }
            true => "its real server is this machine itself, whose kernel delivers it",
            false => pass_reason::why(&self, direction, snapshot),
        });
        let syn_proxy = self.syn_proxy(met.as_ref());
        let offloaded = match (&self.class, live.offload) {
            (Class::Flow(packet), Some(offload)) => {
                let cx = Context::new(snapshot, live.now);
                offload.standing(&mut live.reader(), &packet.flow, self.link, cx)
            }
            _ => None,
        };
        let made: Vec<_> = connection.iter().chain(&template).collect();
        let caveats = self.caveats(live, begun_for, decision.as_ref(), &made);
        Explanation {
            link: self.link,
            class: self.class,
            quote: self.quote(),
            met,
            offloaded,
            mark,
            marked_by,
            service,
            quic: begun_for.and_then(|key| self.quic(snapshot.services.find(&key)?)),
            decision,
            template,
            connection,
            route,
            verdict: self.verdict,
            why_passed,
            syn_proxy,
            resets: self.pipeline.transmitter.counters().resets.value() > 0,
            sent: if is_delivered { self.port.take_passed() } else { self.port.take_transmitted() },
            caveats,
        }
    }

    /// The action of the SYN proxy on the packet, as a sentence.
    fn syn_proxy(&self, met: Option<&(Copied, Direction)>) -> Option<&'static str> {
        let counters = self.pipeline.transmitter.counters();
        let waiting = met.filter(|(met, _)| met.connection.flags.contains(Flags::HANDSHAKE));
        match (waiting, self.verdict) {
            _ if counters.syn_cookies_sent.value() > 0 => {
                Some("it is answered by a SYN cookie, and nothing is stored")
            }
            _ if counters.syn_cookies_accepted.value() > 0 => {
                Some("its SYN cookie is right, so its connection begins: the real server gets a SYN")
            }
            (Some(_), Verdict::Consumed) => Some("its connection waits for the SYN+ACK of the real server"),
            (Some((_, Direction::Outbound)), Verdict::Transmit(_)) => {
                Some("the real server answers the SYN of the director; the client is told")
            }
            _ => None,
        }
    }

    /// The choice that the packet's QUIC connection ID makes, as a sentence, if the packet begins a connection to this
    /// service.
    fn quic(&self, service: &Service) -> Option<String> {
        let Class::Flow(packet) = &self.class else { return None };
        Some(match quic::look(&self.bytes, packet, service)? {
            Ok(member) => format!("its QUIC connection ID chooses {}", member.endpoint),
            Err(unrouted) => format!("its QUIC connection ID chooses no real server: {}", unrouted.why),
        })
    }

    /// The mark of the packet, if it may belong to a service, and the rule that set it.
    fn mark(&self, snapshot: &Snapshot) -> (u32, Option<Step>) {
        let (Class::Flow(packet) | Class::Error(packet)) = &self.class else { return (0, None) };
        (snapshot.marks.of(self.link, packet), snapshot.marks.last_of(self.link, packet).cloned())
    }

    /// The service for which the packet would begin a connection.
    fn service(&self, mark: u32, snapshot: &Snapshot) -> Option<ServiceKey> {
        match &self.class {
            Class::Flow(packet) => {
                service::find(packet, self.link, snapshot).ok().map(|marked| marked.service.key)
            }
            // The quoted packet is a reply, so the service is at its source.
            Class::Error(_) if snapshot.settings.schedule_icmp => {
                let quote = self.quote()?.flow;
                snapshot.services.for_packet(mark, quote.protocol, quote.source).map(|service| service.key)
            }
            _ => None,
        }
    }

    /// Whether the connection that the packet belonged to still exists.
    fn lasts(&mut self) -> bool {
        let Some((met, ..)) = self.met else { return false };
        self.all().iter().any(|(id, generation, _)| *id == met && self.was_there(*id, *generation))
    }

    /// The packet's current connection.
    fn connection(&mut self) -> Option<(Origin, Copied)> {
        let key = self.key()?;
        let found = self.find(&key).or(self.met.clone()).map(|(id, ..)| id)?;
        let (id, generation, copied) = self.all().into_iter().find(|(id, ..)| *id == found)?;
        Some((self.origin(id, generation), copied))
    }

    /// The template of the packet's connection. A packet without a connection, such as a single datagram (`--ops`), has
    /// the one template in the table.
    fn template(&mut self, connection: Option<&(Origin, Copied)>) -> Option<(Origin, Copied)> {
        let controller = connection.map(|(_, connection)| connection.controller.as_deref().cloned());
        let (id, generation, copied) = self.all().into_iter().find(|(.., copied)| match &controller {
            Some(Some(controller)) => copied == controller,
            Some(None) => false,
            None => copied.is_template() && !copied.is_detached(),
        })?;
        Some((self.origin(id, generation), copied))
    }

    fn origin(&self, id: ConnId, generation: u32) -> Origin {
        if self.was_there(id, generation) { Origin::Found } else { Origin::Made }
    }

    /// The route to the destination, or to the client for a reply.
    fn route(
        &mut self,
        connection: Option<&(Origin, Copied)>,
        chosen: Option<IpAddr>,
        direction: Direction,
    ) -> Option<Route> {
        let (Class::Flow(packet) | Class::Error(packet)) = self.class else { return None };
        let about = self.quote().map_or(packet.flow, |quote| quote.flow);
        let vrf = self.snapshot.egress.vrf(self.link);
        let (key, hash) = match (direction, connection) {
            (Direction::Outbound, Some((_, copied))) => {
                let NewConnection { client, virtual_endpoint, .. } = copied.connection;
                let mark = self.snapshot.routing_mark(self.link, &packet);
                let key = RouteKey { dest: client.addr, source: virtual_endpoint.addr, mark, vrf };
                (key, self.pipeline.flows.hash(&about))
            }
            (_, Some((_, copied))) if copied.connection.dest.addr.is_unspecified() => {
                (RouteKey::from(packet.flow.dest.addr).of_vrf(vrf), self.pipeline.flows.hash(&packet.flow))
            }
            (_, Some((_, copied))) => {
                let NewConnection { dest, method, dest_ref, .. } = copied.connection;
                let found = self.snapshot.destinations.find_in(vrf, DestinationId(dest_ref));
                let key = found.map_or(dest.addr.into(), |found| found.tunnel.route_key(dest.addr, method));
                (key.of_vrf(vrf), 0)
            }
            (_, None) => (RouteKey::from(chosen?).of_vrf(vrf), 0),
        };
        let egress = &self.snapshot.egress;
        Some(Route { key, result: egress.route(key, hash), path: Path::find(egress, key, hash) })
    }

    fn caveats(
        &self,
        live: &Live<'_>,
        begun_for: Option<ServiceKey>,
        decision: Option<&Decision>,
        made: &[&(Origin, Copied)],
    ) -> Vec<Caveat> {
        let settings = &live.snapshot.settings;
        let rate = settings.drop_packet_rate;
        let mut made = made.iter().filter(|(origin, _)| *origin == Origin::Made).peekable();
        let makes = made.peek().is_some();
        let answers = match self.verdict {
            Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Drop(DropReason::TooBig { .. }) => {
                false
            }
            // Resets are not limited.
            Verdict::Drop(reason) if reason.icmp_error().is_none() => false,
            _ => self.pipeline.transmitter.counters().transmitted.value() > 0,
        };
        [
            (rate > 0 && begun_for.is_some(), Caveat::DropPacket { rate }),
            (decision.is_some_and(|decision| decision.account.certainty == Certainty::Chance), Caveat::Drawn),
            (made.any(|(_, copied)| copied.connection.local.is_some()), Caveat::LocalPort),
            (makes && is_full(live), Caveat::TableFull),
            (matches!(self.class, Class::Fragment(_)), Caveat::Fragment),
            (answers && settings.icmp_msgs_per_sec > 0, Caveat::RateLimit),
        ]
        .into_iter()
        .filter(|(holds, _)| *holds)
        .map(|(_, caveat)| caveat)
        .collect()
    }
}

fn is_full(live: &Live<'_>) -> bool {
    let reader = live.reader();
    reader.table().live() >= reader.table().config().capacity
}

/// The service of a connection's destination, if it still exists.
fn service_of(copied: &Copied, snapshot: &Snapshot) -> Option<ServiceKey> {
    let destination = snapshot.destinations.find(DestinationId(copied.connection.dest_ref))?;
    snapshot
        .services
        .iter()
        .find(|service| Arc::ptr_eq(&service.live, &destination.service))
        .map(|service| service.key)
}
