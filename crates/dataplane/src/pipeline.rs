//! The pipeline: every stage through which a packet may pass until its verdict, in order. No other file knows this
//! order; a new connection has its own stages (`new_connection/connect.rs`).
//!
//! It allocates nothing and waits for nothing. The functions of `general_path` return at once for packets that they do
//! not concern. `pipeline/run.rs` runs the stages of a whole burst, before and after a packet's own.

mod run;

pub use self::run::Pipeline;
use crate::burst::flows::Flows;
use crate::burst::lookup::{self, Found};
use crate::burst::{Context, FramedPacket, handshake, state};
use crate::conn::{ConnId, Direction};
use crate::forward::{self, Ends, is_refused};
use crate::general_path::syn_proxy::{self, Step};
use crate::general_path::{client_address, ftp, mss, no_destination, reset, vip_probe};
use crate::new_connection::connect::{Begun, connect};
use crate::new_connection::{bypass, limit, one_packet, service};
use crate::offload;
use crate::verdict::Verdict;

/// Processes a whole packet: unless a list or a limit on SYNs refuses it, its connection is looked up, or created.
fn process(flows: &mut Flows, p: &mut FramedPacket<'_>, cx: Context<'_>) -> Verdict {
    mss::clamp_own(p);
    let refused = cx.snapshot.refuses(p.link, p.packet, || flows.is_reply(p.packet, p.hash));
    if let Some(reason) = refused.or_else(|| limit::refuses_syn(p, cx)) {
        return Verdict::Drop(reason);
    }
    match lookup::find(flows, p, cx) {
        Found::Request(id) => from_client(flows, p, id, cx),
        Found::Reply(id) => to_client(flows, p, id, cx),
        Found::Nothing => begin_connection(flows, p, cx),
        Found::NoDestination(id) => no_destination::refuse(flows, p, id, cx),
        Found::Kernel => vip_probe::take_reply(p, cx).unwrap_or(Verdict::PassToKernel),
    }
}

/// Processes a packet without a connection, which may begin one to the service for its mark or destination.
fn begin_connection(flows: &mut Flows, p: &mut FramedPacket<'_>, cx: Context<'_>) -> Verdict {
    if syn_proxy::may_take(p.packet, cx)
        && let Some(verdict) = shake_hands(flows, p, None, cx)
    {
        return verdict;
    }
    let begun = service::find(p.packet, p.link, cx.snapshot).and_then(|marked| {
        connect(flows, p, marked, cx).or_else(|verdict| bypass::begin(flows, p.packet, marked, verdict, cx))
    });
    match begun {
        Ok(Begun::Connection(id) | Begun::Existing(id)) => {
            let verdict = from_client(flows, p, id, cx);
            offload::begin::begin_first(flows, id, p.link, p.packet, cx);
            verdict
        }
        Ok(Begun::OnePacket(ends, id)) => one_packet::send(flows, p, &ends, id, cx),
        Err(verdict) => vip_probe::take_reply(p, cx).unwrap_or_else(|| service::refuse(p, verdict)),
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
    Some(match syn_proxy::take(flows, p, id, cx)? {
        Step::Decided(verdict) => verdict,
        Step::Written(id, written) => from_proxy(flows, &mut written.packet(p.frame, p.link), id, cx),
    })
}

/// Sends a destination a packet that the SYN proxy has written.
fn from_proxy(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    let verdict = to_destination(flows, p, id, cx);
    syn_proxy::wait(&mut flows.table, id, cx.now);
    verdict
}

/// Processes a packet from the client of a connection. While the SYN proxy waits for the destination, it ends here.
fn from_client(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    if syn_proxy::is_awaited(flows, id) { Verdict::Consumed } else { to_destination(flows, p, id, cx) }
}

/// Sends a client's packet to the destination of its connection.
fn to_destination(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    let connection = flows.table.connection(id);
    let Some(destination) = cx.snapshot.destination_for(p.link, &connection) else {
        return no_destination::send(flows, p, id, cx);
    };
    let ends = Ends::of(&connection);
    connection.count_in_packet();
    flows.count_request(destination, p.packet);
    flows.tally(id, Direction::Inbound, p.packet.length(), cx.now);
    handshake::request(p, &connection, destination, cx);
    let reset = reset::apply(&mut flows.answers, p, &connection, cx);
    let mut p = p.with(reset.as_ref());
    state::advance(flows, id, p.packet, Direction::Inbound, Some(destination), cx);
    mss::clamp_request(&mut p, &ends, destination, cx);
    syn_proxy::to_server(&mut p, &flows.table.connection(id));
    ftp::request(flows, &mut p, id, cx);
    let connection = flows.table.connection(id);
    let changed = client_address::add(&mut p, &connection, destination, cx.now, &flows.counters);
    flows.announce(id, cx);
    match changed {
        Ok(changed) => flows.forward(&mut p.with(changed.as_ref()), &ends, destination, cx),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Sends a destination's packet to the client of its connection.
fn to_client(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) -> Verdict {
    if syn_proxy::is_awaited(flows, id)
        && let Some(verdict) = shake_hands(flows, p, Some(id), cx)
    {
        return verdict;
    }
    let connection = flows.table.connection(id);
    let ends = Ends::of(&connection);
    let destination = cx.snapshot.destinations.of(&connection);
    handshake::reply(flows, p, &connection, destination, cx);
    let reset = reset::apply(&mut flows.answers, p, &connection, cx);
    let path = cx.snapshot.path_to_client(p.link, p.packet, &ends, p.hash);
    let mut p = p.with(reset.as_ref());
    mss::clamp_reply(&mut p, &ends, destination, path, cx);
    client_address::remove(&mut p, &connection);
    let changed = ftp::reply(flows, &mut p, id, path, cx);
    let mut p = p.with(changed.as_ref());
    let connection = flows.table.connection(id);
    syn_proxy::to_client(&mut p, &connection);
    let verdict = forward::reply(p.frame, p.link, p.packet, &ends, path, &mut flows.ids);
    match is_refused(verdict) {
        true => syn_proxy::restore(&mut p, &connection),
        false => state::advance_on_reply(flows, id, p.packet, destination, cx),
    }
    verdict
}
