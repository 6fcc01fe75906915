//! Insertion of a new connection into the table and into its destination's counts; under FULLNAT with a local endpoint.
//!
//! Runs once for each connection, except those of a single packet. The insertion reserves the local port: it fails if
//! another connection has the port towards the same destination, so no two connections share one, whichever workers
//! make them. If all inspected ports are in use, the least valuable connection is evicted from its port. Cost: an
//! insertion. Under FULLNAT a second one if the first port was taken, and a look-up for each further port, at most
//! [`PORTS_TRIED`].

use std::time::Duration;

use xvs_proto::{FlowKey, Packet, Protocol};
use xvs_sched::{ClientAddress, ForwardingMethod};

use super::eviction::Candidate;
use super::schedule::Chosen;
use super::service::Marked;
use super::{limit, one_packet};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::{ConnId, Direction, Flags, Inserted, NewConnection};
use crate::forward::Ends;
use crate::snapshot::{Activity, DestinationId, Service};
use crate::verdict::{DropReason, Verdict};

/// The result of a packet that begins a connection.
pub(crate) enum Begun {
    /// A connection in the table.
    Connection(ConnId),
    /// A single packet to this destination, without a connection (`--ops`).
    OnePacket(Ends, DestinationId),
}

/// Inserts the connection that a packet begins; one of a single packet is only counted. `limited` is the flag of a
/// connection that its client was admitted with.
pub(crate) fn enter(
    flows: &mut Flows,
    packet: &Packet,
    chosen: Chosen<'_>,
    limited: Flags,
    marked: Marked<'_>,
    at: Context<'_>,
) -> Result<Begun, Verdict> {
    let Chosen { id, dest, method, live, template } = chosen;
    let is_single = marked.service.one_packet && packet.flow.protocol == Protocol::UDP;
    if is_single && method != ForwardingMethod::FullNat {
        limit::withdraw(limited, packet, marked, at);
        return Ok(Begun::OnePacket(one_packet::begin(flows, packet, &chosen, at), id));
    }
    let mut new = NewConnection {
        protocol: packet.flow.protocol,
        client: packet.flow.source,
        virtual_endpoint: packet.flow.dest,
        dest,
        local: None,
        method,
        flags: limited
            | match method.masquerades() {
                true => {
                    client_address_flags(packet, method, marked.service)
                        | Flags::of_ftp(packet.flow.protocol, packet.flow.dest, method)
                }
                false => Flags::NO_OUTPUT,
            },
        state: 0,
        expires: at.now + FIRST_TIMEOUT,
        timeout_seconds: 0,
        dest_ref: id.0,
        mark: marked.mark,
        controller: template,
    };
    // Counted before other workers can find it, so that none moves it between counts that do not include it.
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
            limit::withdraw(limited, packet, marked, at);
        }
    }
    match inserted.map_err(Verdict::Drop)? {
        Inserted::New(connection) => {
            flows.counters.connections.add(1);
            flows.count_connection(id, at.snapshot);
            Ok(Begun::Connection(connection))
        }
        Inserted::Existing(connection) => Ok(Begun::Connection(connection)),
        // `LocalTaken` is impossible without a local endpoint.
        Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
    }
}

/// Inserts a connection or template. In a full table it evicts another one.
pub(crate) fn insert(flows: &mut Flows, new: &NewConnection, at: Context<'_>) -> Inserted {
    flows.eviction.insert(&mut flows.table, new, &flows.counters, at)
}

/// Inserts a connection with a local endpoint that no other connection has towards its destination.
fn insert_with_local(
    flows: &mut Flows,
    new: &mut NewConnection,
    at: Context<'_>,
) -> Result<Inserted, DropReason> {
    let mut lost = 0;
    let mut least = None;
    for tried in 0..PORTS_TRIED {
        if tried >= IN_ORDER {
            flows.locals.jump(flows.random.next_u64() as u32);
        }
        let local = at.snapshot.locals.next(new.dest.family(), &mut flows.locals);
        let local = local.ok_or(DropReason::NoLocalAddress)?;
        let replies = FlowKey { protocol: new.protocol, source: new.dest, dest: local };
        // The first is mostly free: its insertion looks anyway.
        let holder = |flows: &Flows| flows.table.find(&replies, flows.table.hash(&replies));
        if tried > 0
            && let Some((id, Direction::Outbound)) = holder(flows)
        {
            let holder = Candidate::of(&flows.table, id, at).map(|candidate| (candidate, local));
            least = [least, holder].into_iter().flatten().min_by_key(|(candidate, _)| candidate.worth());
            continue;
        }
        new.local = Some(local);
        match insert(flows, new, at) {
            Inserted::LocalTaken if lost == INSERTIONS_LOST => break,
            Inserted::LocalTaken => lost += 1,
            inserted => return Ok(inserted),
        }
    }
    let (holder, local) = least.ok_or(DropReason::NoLocalPort)?;
    new.local = Some(local);
    match holder.evict(&mut flows.table, &flows.counters, at).then(|| insert(flows, new, at)) {
        Some(Inserted::LocalTaken) | None => Err(DropReason::NoLocalPort),
        Some(inserted) => Ok(inserted),
    }
}

/// How the connection's destination receives the client's address. Only TCP has options and a first data byte.
fn client_address_flags(packet: &Packet, method: ForwardingMethod, service: &Service) -> Flags {
    match service.client_address {
        _ if method != ForwardingMethod::FullNat || packet.flow.protocol != Protocol::TCP => Flags::NONE,
        ClientAddress::Hidden => Flags::NONE,
        ClientAddress::Proxy => Flags::PROXY,
        ClientAddress::Toa => Flags::TOA,
    }
}

/// The timeout of a connection until its first packet has changed its state.
pub(crate) const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// The number of ports that are tried for one connection. With nine tenths of them taken, one connection in a thousand
/// finds none; its client retransmits, and other ports are tried.
const PORTS_TRIED: usize = 64;
/// The number of ports that are tried in the order of least recent use; the others are random.
const IN_ORDER: usize = 4;
/// The number of insertions that may fail, each of which occupies an entry for a burst: the first one, and those where
/// another worker took the port after the look-up.
const INSERTIONS_LOST: usize = 4;
