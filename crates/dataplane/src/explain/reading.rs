//! What a packet did on its way through the stages.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use xvs_proto::{FlowKey, Packet};
use xvs_sched::{Certainty, ServiceKey};

use super::stage::Stage;
use super::{Caveat, Explanation, Live, Origin, Way, passing};
use crate::classify::Class;
use crate::conn::{ConnId, Copied, Direction};
use crate::schedule;
use crate::snapshot::{Asked, DestinationId, Path, Snapshot};
use crate::verdict::{DropReason, Verdict};

impl Stage {
    /// Tells it.
    pub(super) fn read(mut self, live: &Live<'_>) -> Explanation {
        let (request, asked) = (self.request(), self.asked());
        let lasts = self.lasts();
        let connection = self.connection();
        let template = self.template(connection.as_ref());
        let snapshot = live.snapshot;
        let belongs = request.map(|packet| (packet, schedule::service(&packet, self.link, snapshot)));
        let met = self.met.take().map(|(_, met, direction)| (met, direction));
        let (service, mark) = match (&met, &belongs) {
            (Some((met, _)), _) if lasts => (service_of(met, snapshot), met.connection.mark),
            (_, Some((_, Ok((service, mark))))) => (Some(service.key), *mark),
            (_, Some((packet, Err(_)))) => (None, snapshot.marks.of(self.link, packet)),
            _ => (None, 0),
        };
        let marked_by = match self.class {
            Class::Flow(packet) if !lasts => snapshot.marks.last_of(self.link, &packet).cloned(),
            _ => None,
        };
        let begins = match belongs {
            Some((_, Ok(_))) if !lasts => Begins::Some,
            _ => Begins::None,
        };
        let made: Vec<_> = connection.iter().chain(&template).collect();
        let caveats = self.caveats(live, begins, asked.as_ref(), &made);
        let direction = met.as_ref().filter(|_| lasts).map(|(_, direction)| *direction);
        let chosen = asked.as_ref().and_then(|asked| Some(asked.candidates[asked.chosen?].endpoint.addr));
        let chosen = chosen.or(template.as_ref().map(|(_, template)| template.connection.dest.addr));
        let way = self.way(connection.as_ref(), chosen, direction.unwrap_or(Direction::Inbound));
        let passes = self.verdict == Verdict::PassToKernel;
        let why_passed = passes.then(|| passing::why(&self, direction, live.snapshot));
        Explanation {
            link: self.link,
            class: self.class,
            quote: self.quote(),
            met,
            mark,
            marked_by,
            service,
            asked,
            template,
            connection,
            way,
            verdict: self.verdict,
            why_passed,
            sent: self.port.take_transmitted(),
            caveats,
        }
    }

    /// The packet as it would begin a connection: an error stands for what the receiver of its quote has sent.
    fn request(&self) -> Option<Packet> {
        match self.class {
            Class::Flow(packet) => Some(packet),
            Class::Error(_) if self.snapshot.settings.schedule_icmp => {
                let quote = self.quote()?;
                Some(Packet { flow: quote.flow.reversed(), ..quote })
            }
            _ => None,
        }
    }

    /// Whether the connection that the packet met is still there.
    fn lasts(&mut self) -> bool {
        let Some((met, ..)) = self.met else { return false };
        self.all().iter().any(|(id, generation, _)| *id == met && self.was_there(*id, *generation))
    }

    /// The packet's connection as it is now.
    fn connection(&mut self) -> Option<(Origin, Copied)> {
        let met = self.met.as_ref().map(|(id, ..)| *id);
        let key = self.key()?;
        let found = self.find(&key).map(|(id, ..)| id).or(met)?;
        let all = self.all();
        let (id, generation, copied) = all.into_iter().find(|(id, ..)| *id == found)?;
        Some((self.origin(id, generation), copied))
    }

    /// The template of its connection; of a packet that has none, as single datagrams have not, the one that is left.
    fn template(&mut self, connection: Option<&(Origin, Copied)>) -> Option<(Origin, Copied)> {
        let controller = connection.map(|(_, connection)| connection.controller.as_deref().cloned());
        let all = self.all();
        let is_it = |copied: &Copied| match &controller {
            Some(Some(controller)) => copied == controller,
            Some(None) => false,
            None => copied.is_template() && !copied.is_detached(),
        };
        let (id, generation, copied) = all.into_iter().find(|(.., copied)| is_it(copied))?;
        Some((self.origin(id, generation), copied))
    }

    fn origin(&self, id: ConnId, generation: u32) -> Origin {
        if self.was_there(id, generation) { Origin::Found } else { Origin::Made }
    }

    /// The way to a destination, or to the client of a reply.
    fn way(
        &mut self,
        connection: Option<&(Origin, Copied)>,
        chosen: Option<IpAddr>,
        direction: Direction,
    ) -> Option<Way> {
        let (Class::Flow(packet) | Class::Error(packet)) = self.class else { return None };
        let about = self.quote().map_or(packet.flow, |quote| quote.flow);
        let hash = |stage: &mut Self, flow: &FlowKey| stage.pipeline.flows().hash(flow);
        let (to, hash) = match (direction, connection) {
            (Direction::Outbound, Some((_, copied))) => (copied.connection.client.addr, hash(self, &about)),
            (_, Some((_, copied))) if copied.connection.dest.addr.is_unspecified() => {
                (packet.flow.dest.addr, hash(self, &packet.flow))
            }
            (_, Some((_, copied))) => (copied.connection.dest.addr, 0),
            (_, None) => (chosen?, 0),
        };
        let egress = &self.snapshot.egress;
        Some(Way { to, route: egress.route(to, hash), path: Path::find(egress, to, hash) })
    }

    fn caveats(
        &self,
        live: &Live<'_>,
        begins: Begins,
        asked: Option<&Asked>,
        made: &[&(Origin, Copied)],
    ) -> Vec<Caveat> {
        let settings = &live.snapshot.settings;
        let rate = settings.drop_packet_rate;
        let is_full = || {
            let reader = live.reader.lock().unwrap_or_else(PoisonError::into_inner);
            reader.table().live() >= reader.table().config().capacity
        };
        let mut made = made.iter().filter(|(origin, _)| *origin == Origin::Made).peekable();
        let makes = made.peek().is_some();
        let answers = match self.verdict {
            Verdict::Transmit(_) | Verdict::Fragment { .. } | Verdict::Drop(DropReason::TooBig { .. }) => {
                false
            }
            _ => self.pipeline.counters().transmitted.value() > 0,
        };
        let all = [
            (rate > 0 && begins == Begins::Some, Caveat::DropPacket { rate }),
            (asked.is_some_and(|asked| asked.account.certainty == Certainty::Chance), Caveat::Drawn),
            (made.any(|(_, copied)| copied.connection.local.is_some()), Caveat::LocalPort),
            (makes && is_full(), Caveat::TableFull),
            (matches!(self.class, Class::Fragment(_)), Caveat::Fragment),
            (answers && settings.icmp_msgs_per_sec > 0, Caveat::RateLimit),
        ];
        all.into_iter().filter(|(holds, _)| *holds).map(|(_, caveat)| caveat).collect()
    }
}

/// Whether the packet would begin a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begins {
    Some,
    None,
}

/// The service of a connection's destination, if it is still there.
fn service_of(copied: &Copied, snapshot: &Snapshot) -> Option<ServiceKey> {
    let destination = snapshot.destinations.find(DestinationId(copied.connection.dest_ref))?;
    let mut services = snapshot.services.iter();
    services.find(|service| Arc::ptr_eq(&service.live, &destination.service)).map(|service| service.key)
}
