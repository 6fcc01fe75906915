//! The pipeline: every stage through which a packet may pass until its verdict, in order. No other file knows this
//! order; a new connection has its own stages (`new_connection/connect.rs`).
//!
//! It allocates nothing and waits for nothing. The functions of `general_path` return at once for packets that they do
//! not concern. `pipeline/run.rs` runs the stages of a whole burst, before and after a packet's own.

mod run;

pub use self::run::Pipeline;
use crate::burst::flows::Flows;
use crate::burst::lookup::{self, Found};
use crate::burst::{Context, FramedPacket, forward, proof, response, state, unanswered};
use crate::conn::{ConnId, Direction};
use crate::forward::{Ends, is_refused};
use crate::general_path::syn_proxy::handshake::{self, Step};
use crate::general_path::{client_address, ftp, mss, no_destination, reset, syn_proxy, vip_probe};
use crate::new_connection::connect::connect;
use crate::new_connection::insert::Begun;
use crate::new_connection::{bypass, limit, one_packet, service};
use crate::offload;
use crate::verdict::Verdict;

/// Processes a whole packet: unless a list or a limit on SYNs refuses it, its connection is looked up, or created.
fn process(flows: &mut Flows, mut p: FramedPacket<'_>, cx: Context<'_>) -> Verdict {
    mss::clamp_own(&mut p);
    let refused = cx.snapshot.refuses(p.link, p.packet, || flows.is_reply(p.packet, p.hash));
    if let Some(reason) = refused.or_else(|| limit::refuses_syn(&p, cx)) {
        return Verdict::Drop(reason);
    }
    match lookup::find(flows, &p, cx) {
        Found::Request(id) => request(flows, p, id, cx),
        Found::Reply(id) => reply(flows, p, id, cx),
        Found::Nothing => begin(flows, p, cx),
        Found::NoDestination(id) => no_destination::refuse(flows, p, id, cx),
        Found::Kernel => vip_probe::take_reply(&p, cx).unwrap_or(Verdict::PassToKernel),
    }
}

/// Processes a packet without a connection, which may begin one to the service for its mark or destination.
fn begin(flows: &mut Flows, mut p: FramedPacket<'_>, cx: Context<'_>) -> Verdict {
    if handshake::may_take(p.packet, cx)
        && let Some(verdict) = shake_hands(flows, &mut p, None, cx)
    {
        return verdict;
    }
    let begun = service::find(p.packet, p.link, cx.snapshot).and_then(|marked| {
        let admitted = flows.defence.admit(&cx.snapshot.settings);
        admitted
            .and_then(|()| connect(flows, p.frame, p.packet, marked, marked.service.client_limit, cx))
            .or_else(|verdict| bypass::begin(flows, p.packet, marked, verdict, cx))
    });
    match begun {
        Ok(Begun::Connection(id) | Begun::Existing(id)) => {
            let link = p.link;
            let packet = p.packet;
            let verdict = request(flows, p, id, cx);
            offload::begin::begin_first(flows, id, link, packet, cx);
            verdict
        }
        Ok(Begun::OnePacket(ends, id)) => one_packet::send(flows, p, &ends, id, cx),
        Err(verdict) => {
            vip_probe::take_reply(&p, cx).unwrap_or_else(|| service::refuse(p.frame, p.packet, verdict))
        }
    }
}

/// Processes a packet that the SYN proxy may handle: a client's, or the answer for connection `id`.
// Not inlined, so that other packets need little stack.
#[inline(never)]
fn shake_hands(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: Option<ConnId>,
    cx: Context<'_>,
) -> Option<Verdict> {
    Some(match handshake::take(flows, p, id, cx)? {
        Step::Decided(verdict) => verdict,
        Step::Written(id, written) => send_written(flows, written.packet(p.frame, p.link), id, cx),
    })
}

/// Sends a destination a packet that the SYN proxy has written.
fn send_written(flows: &mut Flows, p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    let verdict = send_request(flows, p, id, cx);
    syn_proxy::wait(&mut flows.table, id, cx.now);
    verdict
}

/// Processes a packet from the client of a connection.
fn request(flows: &mut Flows, p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    if handshake::is_awaited(flows, id) { Verdict::Consumed } else { send_request(flows, p, id, cx) }
}

fn send_request(flows: &mut Flows, mut p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    let connection = flows.table.connection(id);
    let Some(destination) = cx.snapshot.destination_for(p.link, &connection) else {
        return no_destination::request(flows, p, id, cx);
    };
    let ends = Ends::of(&connection);
    connection.count_in_packet();
    flows.count_request(destination, p.packet);
    flows.tally(id, Direction::Inbound, p.packet.length(), cx.now);
    proof::request(&p, &connection);
    unanswered::count(&p, &connection, destination, cx);
    let reset = reset::apply(&mut flows.answers, &mut p, &connection, cx);
    let packet = reset.as_ref().unwrap_or(p.packet);
    state::advance(flows, id, packet, Direction::Inbound, Some(&destination.live), cx);
    mss::clamp_request(p.frame, packet, &ends, destination, cx);
    syn_proxy::to_server(p.frame, packet, &flows.table.connection(id));
    ftp::request(flows, p.frame, packet, id, cx);
    let connection = flows.table.connection(id);
    let changed = client_address::add(p.frame, packet, &connection, destination, cx.now, &flows.counters);
    flows.announce(id, cx);
    match changed {
        Ok(changed) => {
            let packet = changed.as_ref().unwrap_or(packet);
            forward::request(flows, p.frame, p.link, packet, &ends, destination, cx)
        }
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Processes a packet to the client of a connection.
fn reply(flows: &mut Flows, mut p: FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    if handshake::is_awaited(flows, id)
        && let Some(verdict) = shake_hands(flows, &mut p, Some(id), cx)
    {
        return verdict;
    }
    let connection = flows.table.connection(id);
    let ends = Ends::of(&connection);
    let destination = cx.snapshot.destinations.of(&connection);
    proof::reply(&p, &connection);
    response::reply(flows, p.packet, id, destination, cx);
    let reset = reset::apply(&mut flows.answers, &mut p, &connection, cx);
    let packet = reset.as_ref().unwrap_or(p.packet);
    let path = forward::path_to_client(&p, &ends, cx);
    mss::clamp_reply(p.frame, packet, &ends, destination, path, cx);
    client_address::remove(p.frame, packet, &connection);
    let changed = ftp::reply(flows, p.frame, packet, id, path, cx);
    let packet = changed.as_ref().unwrap_or(packet);
    let connection = flows.table.connection(id);
    syn_proxy::to_client(p.frame, packet, &connection);
    let verdict = crate::forward::reply(p.frame, p.link, packet, &ends, path, &mut flows.ids);
    match is_refused(verdict) {
        true => syn_proxy::restore(p.frame, packet, &connection),
        false => state::advance_on_reply(flows, id, packet, destination, cx),
    }
    verdict
}
