//! A new connection enters the table and its destination's count; under FULLNAT with a local endpoint of its own.
//!
//! Runs once for each connection that is remembered. A local port is taken by the insertion, which fails if somebody
//! has it towards the destination, so no two connections have one, whichever worker makes them. Cost: an insertion; under
//! FULLNAT a second one if the first port was taken, and a look-up for each further port, at most [`PORTS_TRIED`].

use std::time::Duration;

use xvs_proto::{FlowKey, Packet, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod};

use super::one_packet;
use super::schedule::Chosen;
use super::service::Marked;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::{ConnId, Flags, Inserted, NewConnection};
use crate::forward::Ends;
use crate::snapshot::{Activity, DestinationId, Service};
use crate::verdict::{DropReason, Verdict};

/// What a packet has begun.
pub(crate) enum Begun {
    /// A connection in the table.
    Connection(ConnId),
    /// Nothing that is remembered: a single packet to this destination (`--ops`).
    OnePacket(Ends, DestinationId),
}

/// Enters the connection that a packet begins; one of a single packet is only counted.
pub(crate) fn enter(
    flows: &mut Flows,
    packet: &Packet,
    chosen: Chosen<'_>,
    marked: Marked<'_>,
    at: Context<'_>,
) -> Result<Begun, Verdict> {
    let Chosen { id, dest, method, live, template } = chosen;
    let is_single = marked.service.one_packet && packet.flow.protocol == Protocol::UDP;
    if is_single && method != ForwardingMethod::FullNat {
        return Ok(Begun::OnePacket(one_packet::begin(flows, packet, &chosen, at), id));
    }
    let mut new = NewConnection {
        protocol: packet.flow.protocol,
        client: packet.flow.source,
        virtual_endpoint: packet.flow.dest,
        dest,
        local: None,
        method,
        flags: if method.masquerades() {
            client_address_flags(packet, method, marked.service)
        } else {
            Flags::NO_OUTPUT
        },
        state: 0,
        expires: at.now + FIRST_TIMEOUT,
        timeout_seconds: 0,
        dest_ref: id.0,
        mark: marked.mark,
        controller: template,
    };
    // Counted before anybody can find it, so that nobody moves a count that is not there.
    live.increment(Activity::Inactive);
    let inserted = match method {
        ForwardingMethod::FullNat => insert_with_local(flows, &mut new, at),
        _ => Ok(insert(flows, &new, at)),
    };
    match inserted {
        Ok(Inserted::New(_)) => live.check_limit(),
        _ => {
            live.decrement(Activity::Inactive);
            flows.release_template(template);
        }
    }
    match inserted.map_err(Verdict::Drop)? {
        Inserted::New(connection) => {
            flows.counters.connections.add(1);
            flows.count_connection(id, at.snapshot);
            Ok(Begun::Connection(connection))
        }
        Inserted::Existing(connection) => Ok(Begun::Connection(connection)),
        // Only where none was asked for is a local endpoint not taken.
        Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
    }
}

/// Inserts a connection or template, in a full table in the place of another.
pub(crate) fn insert(flows: &mut Flows, new: &NewConnection, at: Context<'_>) -> Inserted {
    flows.eviction.insert(&mut flows.table, new, &flows.counters, at)
}

/// Inserts a connection with a local endpoint that no other has towards its destination.
fn insert_with_local(
    flows: &mut Flows,
    new: &mut NewConnection,
    at: Context<'_>,
) -> Result<Inserted, DropReason> {
    let mut lost = 0;
    for tried in 0..PORTS_TRIED {
        if tried >= IN_ORDER {
            flows.locals.jump(flows.random.next_u64() as u32);
        }
        let local = at.snapshot.locals.next(new.dest.family(), &mut flows.locals);
        let local = local.ok_or(DropReason::NoLocalAddress)?;
        let replies = FlowKey { protocol: new.protocol, source: new.dest, dest: local };
        // The first is mostly free: its insertion looks anyway.
        if tried > 0 && flows.table.find(&replies, flows.table.hash(&replies)).is_some() {
            continue;
        }
        new.local = Some(local);
        match insert(flows, new, at) {
            Inserted::LocalTaken if lost == INSERTIONS_LOST => break,
            Inserted::LocalTaken => lost += 1,
            inserted => return Ok(inserted),
        }
    }
    Err(DropReason::NoLocalPort)
}

/// How the connection's destination is told of its client. Only TCP has a first byte, and options.
fn client_address_flags(packet: &Packet, method: ForwardingMethod, service: &Service) -> Flags {
    match service.client_address {
        _ if method != ForwardingMethod::FullNat || packet.flow.protocol != Protocol::TCP => Flags::NONE,
        ClientAddress::Hidden => Flags::NONE,
        ClientAddress::Proxy => Flags::PROXY,
        ClientAddress::Toa => Flags::TOA,
    }
}

/// What a connection is remembered for before its first packet was judged.
pub(crate) const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// How many ports are looked at for one connection. With nine tenths of them taken one connection in a thousand finds
/// none; its client asks again, and others are looked at.
const PORTS_TRIED: usize = 64;
/// How many of them in the order in which they were not used for longest; the others are drawn.
const IN_ORDER: usize = 4;
/// How many insertions may fail, each of which holds an entry for a burst: the first, and those that another worker was
/// faster with.
const INSERTIONS_LOST: usize = 4;
