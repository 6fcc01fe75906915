//! The stages of a new connection, in order: the client's limit, the choice of a destination (by the packet's QUIC
//! connection ID, the client's template or the scheduler), the table.
//!
//! Runs for each packet that begins a connection to a service. No other file knows this order.

use xvs_proto::Packet;
use xvs_sched::ClientLimit;
use xvs_xdp::Frame;

use super::insert::{self, Begun};
use super::service::{self, Marked};
use super::{limit, persistence, quic, schedule};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::Complete;
use crate::verdict::Verdict;

/// Creates a connection to a service, if this limit of its client allows one. If the table is full, the insertion
/// evicts another connection.
///
/// # Errors
///
/// The verdict on a packet that begins none.
pub(crate) fn connect<'s>(
    flows: &mut Flows,
    frame: &Frame,
    packet: &Packet,
    marked: Marked<'s>,
    limit: Option<ClientLimit>,
    cx: Context<'s>,
) -> Result<Begun, Verdict> {
    connect_complete(flows, frame, packet, marked, limit, None, cx)
}

/// Like [`connect`]; `complete` writes the connection's remaining data.
pub(crate) fn connect_complete<'s>(
    flows: &mut Flows,
    frame: &Frame,
    packet: &Packet,
    marked: Marked<'s>,
    limit: Option<ClientLimit>,
    complete: Complete<'_>,
    cx: Context<'s>,
) -> Result<Begun, Verdict> {
    service::refuse_ftp_data(packet, cx.snapshot)?;
    let limited = limit::admit(packet, marked, limit, cx)?;
    let request = schedule::request(packet, cx.now, flows.random.next_u64());
    let named = quic::choose(flows, frame, packet, marked.service);
    let chosen = match (&marked.service.persistence, named) {
        (None, named) => schedule::choose(flows.worker, packet, marked.service, named, &request),
        (Some(_), Some(member)) => Ok(persistence::without_template(packet, marked.service, member)),
        (Some(kept), None) => persistence::choose(flows, frame, packet, marked.service, kept, &request, cx),
    };
    let chosen = chosen.inspect_err(|_| limit::withdraw(limited, packet, marked, cx))?;
    insert::enter(flows, packet, chosen, limited, marked, complete, cx)
}
