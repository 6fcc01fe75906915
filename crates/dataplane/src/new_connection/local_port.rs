//! The local port of a FULLNAT connection.
//!
//! The insertion itself reserves the port: it fails if another connection has the port towards the same destination, so
//! no two connections share a port, whichever workers create them. If all inspected ports are in use, the least
//! valuable connection is evicted from its port. Cost: an insertion, a second one if the first port was taken, and a
//! look-up for each further port, at most [`PORTS_TRIED`]. `snapshot/local_addresses.rs` determines the addresses and
//! the order of their ports.

use std::net::IpAddr;

use xvs_proto::FlowKey;

use super::eviction::Candidate;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::conn::{Complete, Direction, Inserted, NewConnection};
use crate::verdict::DropReason;

/// Inserts a connection with a local endpoint that no other connection has towards its destination.
// Not inlined, to keep the path of other methods short.
#[inline(never)]
pub(super) fn insert(
    flows: &mut Flows,
    new: &mut NewConnection,
    complete: Complete<'_>,
    cx: Context<'_>,
) -> Result<Inserted, DropReason> {
    if new.client.family() != new.dest.family() && is_link_local(new.client.addr) {
        return Err(DropReason::Untranslatable);
    }
    let mut lost = 0;
    let mut least = None;
    for tried in 0..PORTS_TRIED {
        if tried >= IN_ORDER {
            flows.locals.jump(flows.random.next_u64() as u32);
        }
        let local = cx
            .snapshot
            .locals
            .next(new.dest.family(), &mut flows.locals)
            .ok_or(DropReason::NoLocalAddress)?;
        let replies = FlowKey { protocol: new.protocol, source: new.dest, dest: local };
        // The first port is usually free, and its insertion checks that anyway.
        if tried > 0
            && let Some((id, Direction::Outbound)) = flows.table.find(&replies, flows.table.hash(&replies))
        {
            let holder = Candidate::of(&flows.table, id, cx).map(|candidate| (candidate, local));
            least = [least, holder].into_iter().flatten().min_by_key(|(candidate, _)| candidate.worth());
            continue;
        }
        new.local = Some(local);
        match flows.insert(new, complete, cx) {
            Inserted::LocalTaken if lost == INSERTIONS_LOST => break,
            Inserted::LocalTaken => lost += 1,
            inserted => return Ok(inserted),
        }
    }
    let (holder, local) = least.ok_or(DropReason::NoLocalPort)?;
    new.local = Some(local);
    if !holder.evict(&mut flows.table, &flows.counters, cx) {
        return Err(DropReason::NoLocalPort);
    }
    match flows.insert(new, complete, cx) {
        Inserted::LocalTaken => Err(DropReason::NoLocalPort),
        inserted => Ok(inserted),
    }
}

/// Whether an address is valid only on one link (RFC 3927, RFC 4291 §2.5.6), so that the other family cannot express
/// it.
fn is_link_local(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => addr.is_link_local(),
        IpAddr::V6(addr) => addr.is_unicast_link_local(),
    }
}

/// The number of ports that are tried for one connection. With nine tenths of them taken, one connection in a thousand
/// finds none; its client retransmits, and other ports are tried.
const PORTS_TRIED: usize = 64;
/// The number of ports that are tried in least-recently-used order; the others are random.
const IN_ORDER: usize = 4;
/// The number of insertions that may fail, each of which occupies an entry for a burst: the first one, and those for
/// which another worker took the port after the look-up.
const INSERTIONS_LOST: usize = 4;
