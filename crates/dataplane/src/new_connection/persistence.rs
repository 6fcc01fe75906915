//! Persistence: templates, which assign a client's connections to one destination.
//!
//! Runs for each new connection to a persistent service, before the scheduler. A template contains the destination for
//! the next connections of its clients. It counts the connections that it controls, so it outlives them, and it lasts
//! for the service's timeout after the last of them began. If its destination was removed, it is detached: it keeps its
//! connections, and a new template replaces it. If two workers create a template for the same clients at the same time,
//! one of them finds the template of the other: the table admits only one with each identity.
//!
//! Cost: one more look-up for a connection (32 for a new SIP call); for the first connection of a client also an entry.
//! `conn/template.rs` operates on templates in the table; `burst/expiry.rs` expires them.
//!
//! Source: ipvs-behaviour, sections 3.1 and 6.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use xvs_proto::{Endpoint, FlowKey, Packet, Protocol, ftp, sip, udp};
use xvs_sched::{Request, ServiceKey};
use xvs_xdp::Frame;

use super::eviction::evict_call;
use super::schedule::{Chosen, member};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::clock::Millis;
use crate::conn::{ConnId, Flags, Inserted, NewConnection, Spare};
use crate::snapshot::{
    Activity, Change, Destination, DestinationId, Member, Persistence, PersistenceScope, Service,
};
use crate::verdict::{DropReason, Verdict};

/// Chooses the destination of a packet's connection: by the client's template, or by the scheduler together with a new
/// template. The template already counts the connection; the caller reverts that if it creates none.
pub(crate) fn choose<'s>(
    flows: &mut Flows,
    frame: &Frame,
    packet: &Packet,
    service: &'s Service,
    persistence: &Persistence,
    request: &Request,
    cx: Context<'s>,
) -> Result<Chosen<'s>, Verdict> {
    let call_id = match persistence.scope {
        PersistenceScope::Client => None,
        PersistenceScope::Call => {
            Some(call_id(packet, frame.bytes()).ok_or(Verdict::Drop(DropReason::NoCallId))?)
        }
    };
    let client = key(packet, service, persistence);
    // Another round is necessary only if another worker has created or ended the template in the meantime.
    loop {
        let (key, found) = find_template(flows, client, call_id, cx)?;
        let (template, destination, id) = match found {
            Some(template) => match join(flows, template, cx) {
                Some((destination, id)) => (template, destination, id),
                None => {
                    flows.table.detach(template);
                    continue;
                }
            },
            None => {
                let id = member(flows.worker, packet, service, request)?.id;
                let destination = cx
                    .snapshot
                    .destinations
                    .find(id)
                    .ok_or(Verdict::Drop(DropReason::DestinationUnavailable))?;
                let new = template(&key, packet, service, persistence, destination, id, cx.now);
                match make(flows, new, call_id, destination, cx)? {
                    Some(template) => (template, destination, id),
                    None => continue,
                }
            }
        };
        return Ok(Chosen {
            id,
            dest: endpoint(packet, service, destination.endpoint),
            method: destination.method,
            live: &destination.live,
            template: Some(template),
        });
    }
}

/// The choice of a destination that the packet itself names. No template is involved, neither an existing one nor a new
/// one for this client.
pub(crate) fn without_template<'s>(packet: &Packet, service: &Service, member: &'s Member) -> Chosen<'s> {
    let dest = endpoint(packet, service, member.endpoint);
    Chosen { id: member.id, dest, method: member.method, live: &member.live, template: None }
}

/// The template with this identity or, for a call, the one with this Call-ID among the templates of the client's calls.
/// If there is none, the identity for a new template. The templates of a client's calls differ in the client's port,
/// which is 0 in other templates.
pub(crate) fn find_template(
    flows: &Flows,
    client: FlowKey,
    call_id: Option<&[u8]>,
    cx: Context<'_>,
) -> Result<(FlowKey, Option<ConnId>), Verdict> {
    let table = &flows.table;
    let call_ids = &cx.snapshot.call_ids;
    let Some(call_id) = call_id else {
        return Ok((client, table.find_template(&client, table.hash(&client))));
    };
    let hash = call_ids.hash(call_id);
    // An odd step: all ports that are tried for a call are different, and calls with the same first port continue
    // with different ones.
    let first = hash as u16;
    let step = (hash >> 16) as u16 | 1;
    let mut free = None;
    for number in 0..PLACES {
        let port = first.wrapping_add(step.wrapping_mul(number));
        if port == 0 {
            continue;
        }
        let key = FlowKey { source: Endpoint { port, ..client.source }, ..client };
        match table.find_template(&key, table.hash(&key)) {
            Some(id) if call_ids.is(table.connection(id).mark(), call_id) => return Ok((key, Some(id))),
            Some(_) => {}
            None => free = free.or(Some(key)),
        }
    }
    free.map(|key| (key, None)).ok_or(Verdict::Drop(DropReason::CallsFull))
}

/// Adds one more connection to a template, and restarts its timeout. `None` if the template is no longer valid.
fn join<'s>(flows: &mut Flows, id: ConnId, cx: Context<'s>) -> Option<(&'s Destination, DestinationId)> {
    let Context { snapshot, now, .. } = cx;
    let template = flows.table.connection(id);
    let number = DestinationId(template.dest_ref());
    let destination = snapshot.destinations.find(number).filter(|known| known.available)?;
    if destination.weight.is_quiescent() && snapshot.settings.expire_quiescent_template
        || template.is_detached()
        || !flows.table.share(id)
    {
        return None;
    }
    let timeout = Duration::from_secs(template.timeout_seconds().into());
    flows.table.transition(id, |state| (state, now + timeout));
    Some((destination, number))
}

/// Inserts a template that controls one connection. `None` if another worker was faster.
fn make(
    flows: &mut Flows,
    mut new: NewConnection,
    call_id: Option<&[u8]>,
    destination: &Destination,
    cx: Context<'_>,
) -> Result<Option<ConnId>, Verdict> {
    let call_ids = &cx.snapshot.call_ids;
    if let Some(call_id) = call_id {
        let Flows { worker, table, counters, .. } = flows;
        new.mark = call_ids
            .write(*worker, call_id, table, |table, id| evict_call(table, id, cx.snapshot, counters))
            .ok_or(Verdict::Drop(DropReason::CallsFull))?;
    }
    let dest = DestinationId(new.dest_ref);
    let live = &destination.live;
    flows.deferred.change(dest, live, Change::Begin(Activity::Template), cx.snapshot);
    let inserted = flows.insert(&new, None, cx);
    let Inserted::New(id) = inserted else {
        flows.deferred.change(dest, live, Change::End(Activity::Template), cx.snapshot);
        return match inserted {
            Inserted::Full | Inserted::LocalTaken => Err(Verdict::Drop(DropReason::TableFull)),
            Inserted::New(_) | Inserted::Existing(_) => Ok(None),
        };
    };
    let template = flows.table.connection(id);
    call_ids.settle(new.mark, &template);
    Ok(template.add_controlled().then_some(id))
}

/// The identity of the template for a packet's connection.
fn key(packet: &Packet, service: &Service, persistence: &Persistence) -> FlowKey {
    let client = Endpoint { addr: persistence.mask.of(packet.flow.source.addr), port: 0 };
    let (protocol, dest) = match service.key {
        ServiceKey::Mark { mark, .. } => {
            (Protocol::IP, Endpoint { addr: marked(mark, client.addr), port: 0 })
        }
        ServiceKey::Address { .. } => {
            let port = if is_for_one_port(packet, service) { packet.flow.dest.port } else { 0 };
            (packet.flow.protocol, Endpoint { port, ..packet.flow.dest })
        }
    };
    FlowKey { protocol, source: client, dest }
}

/// A mark encoded as an address of the client's family.
fn marked(mark: u32, client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => IpAddr::V4(mark.into()),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(u128::from(mark) << 96)),
    }
}

/// Whether a packet's template is for the service's port only. An FTP template is for every port, so that data
/// connections use it.
fn is_for_one_port(packet: &Packet, service: &Service) -> bool {
    let port = service.port();
    port == packet.flow.dest.port && port != ftp::CONTROL_PORT
}

fn template(
    key: &FlowKey,
    packet: &Packet,
    service: &Service,
    persistence: &Persistence,
    destination: &Destination,
    id: DestinationId,
    now: Millis,
) -> NewConnection {
    let port = if is_for_one_port(packet, service) { destination.endpoint.port } else { 0 };
    let one_packet = if service.one_packet { Flags::ONE_PACKET } else { Flags::NONE };
    NewConnection {
        protocol: key.protocol,
        client: key.source,
        virtual_endpoint: key.dest,
        dest: Endpoint { port, ..destination.endpoint },
        local: None,
        method: destination.method,
        flags: Flags::TEMPLATE | one_packet,
        state: 0,
        expires: now + Duration::from_secs(persistence.timeout_seconds.into()),
        spare: Spare::template(persistence.timeout_seconds),
        dest_ref: id.0,
        mark: 0,
        controller: None,
    }
}

/// The endpoint at the destination. Its port is the configured one for packets to the service's port, otherwise the
/// packet's own.
fn endpoint(packet: &Packet, service: &Service, configured: Endpoint) -> Endpoint {
    let port = packet.flow.dest.port;
    match configured.port {
        own if own != 0 && port == service.port() => configured,
        _ => Endpoint { port, ..configured },
    }
}

/// The Call-ID of a SIP message. SIP over protocols other than UDP is not parsed, as in IPVS.
fn call_id<'f>(packet: &Packet, frame: &'f [u8]) -> Option<&'f [u8]> {
    let message = frame.get(packet.transport + udp::HEADER_LEN..packet.end)?;
    if packet.flow.protocol == Protocol::UDP { sip::call_id(message) } else { None }
}

/// The number of ports that may be tried for a call, among all ports of its client's templates.
const PLACES: u16 = 32;
