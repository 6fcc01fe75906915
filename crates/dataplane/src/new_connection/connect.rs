//! The stages of a new connection, in order: the `drop_packet` defence, the client's limit, the choice of a destination
//! (by the packet's QUIC connection ID, the client's template or the scheduler), the table, the destination's counts.
//!
//! Runs for each packet that begins a connection to a service. No other file knows this order. Cost: one insertion,
//! except for one-packet connections.

use std::time::Duration;

use xvs_proto::{FlowKey, Packet, Protocol};
use xvs_sched::{ClientAddress, ClientLimit, ForwardingMethod, Request};

use super::schedule::Chosen;
use super::service::{self, Marked};
use super::{limit, local_port, one_packet, persistence, quic, schedule};
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::burst::handshake;
use crate::conn::{Complete, ConnId, Flags, Inserted, NewConnection};
use crate::forward::Ends;
use crate::snapshot::{Activity, Change, DestinationId, Service};
use crate::verdict::{DropReason, Verdict};

/// The result of a packet that begins a connection.
pub(crate) enum Begun {
    /// A connection in the table.
    Connection(ConnId),
    /// A connection that another worker has just begun, or another director has just announced.
    Existing(ConnId),
    /// A single packet to this destination, without a connection (`--ops`).
    OnePacket(Ends, DestinationId),
}

/// Creates a connection to a service, unless `drop_packet` drops the packet, and if its client's limit allows one. If
/// the table is full, the insertion evicts another connection.
///
/// # Errors
///
/// The verdict on a packet that begins none.
pub(crate) fn connect<'s>(
    flows: &mut Flows,
    p: &FramedPacket<'_>,
    marked: Marked<'s>,
    cx: Context<'s>,
) -> Result<Begun, Verdict> {
    flows.defence.admit(&cx.snapshot.settings)?;
    connect_complete(flows, p, marked, marked.service.client_limit, None, cx)
}

/// Creates a connection like [`connect`], but for any packet, with this limit; `complete` writes the connection's
/// remaining data.
pub(crate) fn connect_complete<'s>(
    flows: &mut Flows,
    FramedPacket { frame, packet, .. }: &FramedPacket<'_>,
    marked: Marked<'s>,
    limit: Option<ClientLimit>,
    complete: Complete<'_>,
    cx: Context<'s>,
) -> Result<Begun, Verdict> {
    service::refuse_ftp_data(packet, cx.snapshot)?;
    let limited = limit::admit(packet, marked, limit, cx)?;
    let FlowKey { source, dest, .. } = packet.flow;
    let request = Request { source, dest, now_millis: cx.now.0, random: flows.random.next_u64() };
    let named = quic::choose(flows, frame, packet, marked.service);
    let chosen = match (&marked.service.persistence, named) {
        (None, named) => schedule::choose(flows.worker, packet, marked.service, named, &request),
        (Some(_), Some(member)) => Ok(persistence::without_template(packet, marked.service, member)),
        (Some(kept), None) => persistence::choose(flows, frame, packet, marked.service, kept, &request, cx),
    }
    .inspect_err(|_| limit::withdraw(limited, packet, marked, cx))?;
    enter(flows, packet, chosen, limited, marked, complete, cx)
}

/// Inserts the connection that a packet begins; a one-packet connection is only counted. `limited` is the flag with
/// which the client's limit admitted it. `complete` writes its remaining data.
fn enter(
    flows: &mut Flows,
    packet: &Packet,
    chosen: Chosen<'_>,
    limited: Flags,
    marked: Marked<'_>,
    complete: Complete<'_>,
    cx: Context<'_>,
) -> Result<Begun, Verdict> {
    let Chosen { id, dest, method, live, template } = chosen;
    if marked.service.one_packet
        && packet.flow.protocol == Protocol::UDP
        && method != ForwardingMethod::FullNat
    {
        limit::withdraw(limited, packet, marked, cx);
        return Ok(Begun::OnePacket(one_packet::begin(flows, packet, &chosen, cx), id));
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
        expires: cx.now + FIRST_TIMEOUT,
        spare: handshake::spare(packet),
        dest_ref: id.0,
        mark: marked.mark,
        controller: template,
    };
    // Counted before other workers can find it, so that no limit is exceeded in the meantime.
    flows.deferred.change(id, live, Change::Begin(Activity::Inactive), cx.snapshot);
    let inserted = match method {
        ForwardingMethod::FullNat => local_port::insert(flows, &mut new, complete, cx),
        _ => Ok(flows.insert(&new, complete, cx)),
    };
    if let Ok(Inserted::New(connection)) = inserted {
        live.check_limit();
        if handshake::is_request(packet) {
            let generation = flows.table.connection(connection).generation();
            flows.table.table().note_request(connection, generation, cx.micros);
        }
        flows.counters.connections.add(1);
        flows.count_connection(id, cx.snapshot);
        return Ok(Begun::Connection(connection));
    }
    flows.deferred.change(id, live, Change::End(Activity::Inactive), cx.snapshot);
    flows.release_template(template);
    limit::withdraw(limited, packet, marked, cx);
    match inserted {
        Ok(Inserted::Existing(connection)) => Ok(Begun::Existing(connection)),
        // `LocalTaken` is impossible without a local endpoint.
        Ok(_) => Err(Verdict::Drop(DropReason::TableFull)),
        Err(reason) => Err(Verdict::Drop(reason)),
    }
}

/// How the connection's destination receives the client's address. Only TCP has options.
fn client_address_flags(packet: &Packet, method: ForwardingMethod, service: &Service) -> Flags {
    match service.client_address {
        _ if method != ForwardingMethod::FullNat => Flags::NONE,
        ClientAddress::Hidden => Flags::NONE,
        ClientAddress::Proxy if packet.flow.protocol == Protocol::UDP => Flags::PROXY_DATAGRAMS,
        _ if packet.flow.protocol != Protocol::TCP => Flags::NONE,
        ClientAddress::Proxy => Flags::PROXY,
        ClientAddress::Toa => Flags::TOA,
    }
}

/// The timeout of a connection until its first packet has changed its state.
pub(crate) const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
