//! A new connection enters the table and its destination's count; under FULLNAT with a local endpoint of its own.
//!
//! Runs once for each connection that is remembered. A local port is tried by looking for its reply key; the first that
//! nobody has towards the destination is taken with the insertion, so no two connections have one, whichever worker makes
//! them. Cost: an insertion; under FULLNAT beside it one look-up for each port that is taken, at most [`PORTS_TRIED`].

use xvs_proto::{FlowKey, Packet};
use xvs_sched::ForwardingMethod;

use super::{Begun, FIRST_TIMEOUT, Flows};
use crate::clock::Millis;
use crate::conn::{Flags, Inserted, NewConnection};
use crate::schedule::Chosen;
use crate::snapshot::{Activity, Snapshot};
use crate::verdict::{DropReason, Verdict};

/// How many ports are looked at for one connection. With nine tenths of them taken one connection in a thousand finds
/// none; its client asks again, and others are looked at.
const PORTS_TRIED: usize = 64;
/// How many of them may be lost to other workers at the moment of insertion, each of which holds an entry for a burst.
const RACES_LOST: usize = 4;

impl Flows {
    /// Enters the connection that a packet begins.
    pub(super) fn enter(
        &mut self,
        packet: &Packet,
        chosen: Chosen<'_>,
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
            flags: if method.masquerades() { Flags::NONE } else { Flags::NO_OUTPUT },
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
        let mut races = 0;
        for _ in 0..PORTS_TRIED {
            let local = snapshot.locals.next(new.dest.family(), &mut self.locals);
            let local = local.ok_or(DropReason::NoLocalAddress)?;
            let replies = FlowKey { protocol: new.protocol, source: new.dest, dest: local };
            if self.table.find(&replies, self.table.hash(&replies)).is_some() {
                continue;
            }
            new.local = Some(local);
            match self.pressure.insert(&mut self.table, new, snapshot, &self.counters, now) {
                Inserted::LocalTaken if races == RACES_LOST => break,
                Inserted::LocalTaken => races += 1,
                inserted => return Ok(inserted),
            }
        }
        Err(DropReason::NoLocalPort)
    }
}
