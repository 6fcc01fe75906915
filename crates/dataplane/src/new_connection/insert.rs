//! A new connection enters the table and its destination's count; under FULLNAT with a local endpoint of its own.
//!
//! Runs once for each connection that is remembered. A local port is taken by the insertion, which fails if somebody
//! has it towards the destination, so no two connections have one, whichever worker makes them. Cost: an insertion; under
//! FULLNAT a second one if the first port was taken, and a look-up for each further port, at most [`PORTS_TRIED`].

use xvs_proto::{FlowKey, Packet, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod};

use super::schedule::Chosen;
use crate::burst::flows::{Begun, FIRST_TIMEOUT, Flows};
use crate::clock::Millis;
use crate::conn::{Flags, Inserted, NewConnection};
use crate::snapshot::{Activity, Service, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// How many ports are looked at for one connection. With nine tenths of them taken one connection in a thousand finds
/// none; its client asks again, and others are looked at.
const PORTS_TRIED: usize = 64;
/// How many of them in the order in which they were not used for longest; the others are drawn.
const IN_ORDER: usize = 4;
/// How many insertions may fail, each of which holds an entry for a burst: the first, and those that another worker was
/// faster with.
const INSERTIONS_LOST: usize = 4;

impl Flows {
    /// Enters the connection that a packet begins.
    pub(crate) fn enter(
        &mut self,
        packet: &Packet,
        chosen: Chosen<'_>,
        service: &Service,
        mark: u32,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Result<Begun, Verdict> {
        let Chosen { id, dest, method, live, template } = chosen;
        let mut new = NewConnection {
            protocol: packet.flow.protocol,
            client: packet.flow.source,
            virtual_endpoint: packet.flow.dest,
            dest,
            local: None,
            method,
            flags: if method.masquerades() { told(packet, method, service) } else { Flags::NO_OUTPUT },
            state: 0,
            expires: now + FIRST_TIMEOUT,
            timeout_seconds: 0,
            dest_ref: id.0,
            mark,
            controller: template,
        };
        // Counted before anybody can find it, so that nobody moves a count that is not there.
        live.enter(Activity::Inactive);
        let inserted = match method {
            ForwardingMethod::FullNat => self.insert_with_local(&mut new, snapshot, now),
            _ => Ok(self.pressure.insert(&mut self.table, &new, snapshot, &self.counters, now)),
        };
        match inserted {
            Ok(Inserted::New(_)) => live.bound(),
            _ => {
                live.leave(Activity::Inactive);
                self.leave_template(template);
            }
        }
        match inserted.map_err(Verdict::Drop)? {
            Inserted::New(connection) => {
                self.counters.connections.add(1);
                let counted = snapshot.destinations.find(id);
                counted.inspect(|destination| self.count(destination, |stats| stats.connections.add(1)));
                Ok(Begun::Connection(connection))
            }
            Inserted::Existing(connection) => Ok(Begun::Connection(connection)),
            // Only where none was asked for is a local endpoint not taken.
            Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
        }
    }

    /// Inserts a connection with a local endpoint that no other has towards its destination.
    fn insert_with_local(
        &mut self,
        new: &mut NewConnection,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Result<Inserted, DropReason> {
        let mut lost = 0;
        for tried in 0..PORTS_TRIED {
            if tried >= IN_ORDER {
                self.locals.jump(self.dice.draw() as u32);
            }
            let local = snapshot.locals.next(new.dest.family(), &mut self.locals);
            let local = local.ok_or(DropReason::NoLocalAddress)?;
            let replies = FlowKey { protocol: new.protocol, source: new.dest, dest: local };
            // The first is mostly free: its insertion looks anyway.
            if tried > 0 && self.table.find(&replies, self.table.hash(&replies)).is_some() {
                continue;
            }
            new.local = Some(local);
            match self.pressure.insert(&mut self.table, new, snapshot, &self.counters, now) {
                Inserted::LocalTaken if lost == INSERTIONS_LOST => break,
                Inserted::LocalTaken => lost += 1,
                inserted => return Ok(inserted),
            }
        }
        Err(DropReason::NoLocalPort)
    }
}

/// How the connection's destination is told of its client. Only TCP has a first byte, and options.
fn told(packet: &Packet, method: ForwardingMethod, service: &Service) -> Flags {
    match service.client_address {
        _ if method != ForwardingMethod::FullNat || packet.flow.protocol != Protocol::TCP => Flags::NONE,
        ClientAddress::Hidden => Flags::NONE,
        ClientAddress::Proxy => Flags::PROXY,
        ClientAddress::Toa => Flags::TOA,
    }
}
