//! How a connection is packed into its entry.
//!
//! The words that identify a connection are compared whole, so a look-up costs two loads and two comparisons. `life`
//! holds phase, state and deadline in one word; a removed entry keeps its endpoints readable, for the packets in
//! hand, and uses `life` to name the next of its chain. Not here: who may enter which phase when (`table.rs`).

use std::net::{IpAddr, Ipv4Addr};

use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};
use xvs_sched::ForwardingMethod;

use super::{Direction, Flags, NewConnection};
use crate::clock::Millis;
use crate::shm::atomic::Ordering;
use crate::shm::layout::Entry;

/// The value of `controlled` that lets nobody take a share any more.
pub(super) const REMOVED: u32 = u32::MAX;

/// Whether an entry stands for a packet's connection or for a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection = 0,
    Template = 1,
}

/// What no two connections have in common, packed as in an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    client: u64,
    virtual_endpoint: u64,
}

impl Identity {
    /// The identity of a template or connection between these; `None` unless both are IPv4.
    pub(super) fn of(flow: &FlowKey, kind: Kind) -> Option<Self> {
        let client = packed(flow.source)? | u64::from(flow.protocol.0) << 8 | kind as u64;
        Some(Self { client, virtual_endpoint: packed(flow.dest)? })
    }
}

/// A packet's flow, packed; matches in both directions.
#[derive(Debug, Clone, Copy)]
pub(super) struct PackedFlow {
    source: u64,
    dest: u64,
    protocol: u64,
}

impl PackedFlow {
    /// `None` unless it is IPv4.
    pub(super) fn of(flow: &FlowKey) -> Option<Self> {
        let protocol = u64::from(flow.protocol.0) << 8;
        Some(Self { source: packed(flow.source)?, dest: packed(flow.dest)?, protocol })
    }
}

/// Where an entry is in its life. Never used is 0, as fresh memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Taken, filled, perhaps already found by others, but its insertion is not over.
    Pending = 1,
    /// Unlinked, in limbo or free.
    Removed = 2,
    /// In the table. `Pending` with one more bit, so that the change keeps what others have written meanwhile.
    Live = 3,
}

/// The word `life`: phase in bits 62 and 63, state in 48 to 55, deadline in milliseconds in 0 to 47.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life(pub(super) u64);

impl Life {
    pub(super) fn new(phase: Phase, state: u8, deadline: Millis) -> Self {
        Self((phase as u64) << 62 | u64::from(state) << 48 | deadline.0.min(DEADLINE_MAX))
    }

    /// A removed entry that is followed by another of its chain (its index plus one; 0: by none).
    pub(super) fn removed(next: u32) -> Self {
        Self((Phase::Removed as u64) << 62 | u64::from(next))
    }

    pub(super) fn is_live(self) -> bool {
        self.0 >> 62 == Phase::Live as u64
    }

    /// Live or about to be.
    pub(super) fn is_current(self) -> bool {
        self.0 >> 62 & 1 == 1
    }

    pub(super) fn state(self) -> u8 {
        if self.is_current() { (self.0 >> 48) as u8 } else { 0 }
    }

    pub(super) fn deadline(self) -> Millis {
        if self.is_current() { Millis(self.0 & DEADLINE_MAX) } else { Millis(0) }
    }

    /// What follows in the chain of a removed entry.
    pub(super) fn next(self) -> u32 {
        self.0 as u32
    }

    /// The same phase with another state and deadline.
    pub(super) fn with(self, state: u8, deadline: Millis) -> Self {
        Self(self.0 & !(u64::MAX >> 2) | u64::from(state) << 48 | deadline.0.min(DEADLINE_MAX))
    }
}

impl Entry {
    /// Writes everything about a new connection into an entry that nobody else can reach; `timer` is the tick of its
    /// first link.
    pub(super) fn fill(&self, new: &NewConnection, identity: Identity, dest: u64, timer: u32) {
        // Relaxed: the compare-and-swap that puts the index into a bucket releases all of it.
        let order = Ordering::Relaxed;
        self.client.store(identity.client, order);
        self.virtual_endpoint.store(identity.virtual_endpoint | new.method as u64, order);
        self.dest_addr.store((dest >> 32) as u32, order);
        self.dest_port.store((dest >> 16) as u16, order);
        self.flags.store(new.flags.0, order);
        self.timeout_seconds.store(new.timeout_seconds, order);
        self.dest.store(new.dest_ref, order);
        self.controller.store(new.controller.map_or(0, |controller| controller.0 + 1), order);
        self.controlled.store(0, order);
        self.in_packets.store(0, order);
        self.mark.store(new.mark, order);
        self.timer.store(timer, order);
        self.life.store(Life::new(Phase::Pending, new.state, new.expires).0, order);
    }

    /// Ends an insertion that has won.
    pub(super) fn publish(&self) {
        // Release: a walk that sees the entry live sees it filled. An addition of a bit, because a packet on
        // another worker may have refreshed the connection already.
        let bit = Phase::Live as u64 - Phase::Pending as u64;
        self.life.fetch_or(bit << 62, Ordering::Release);
    }

    /// Phase, state and deadline.
    pub(super) fn life(&self) -> Life {
        // Acquire: pairs with `publish`, for walks, which reach the entry by no bucket.
        Life(self.life.load(Ordering::Acquire))
    }

    /// Whether this is the connection or template of that identity.
    pub(super) fn is(&self, identity: Identity) -> bool {
        self.client.load(Ordering::Relaxed) == identity.client
            && self.virtual_word() & !METHOD == identity.virtual_endpoint
    }

    /// Which way a packet of this flow goes, if it belongs to this connection. Templates match no packet.
    ///
    /// Source: kernel, `net/netfilter/ipvs/ip_vs_conn.c`: a reply comes from the destination where the method is
    /// masquerading and from the virtual endpoint for every other.
    pub(super) fn direction(&self, flow: PackedFlow) -> Option<Direction> {
        let client = self.client.load(Ordering::Relaxed);
        if client == flow.source | flow.protocol && self.virtual_word() & !METHOD == flow.dest {
            return Some(Direction::Inbound);
        }
        let replies = client == flow.dest | flow.protocol && self.replier() == flow.source;
        replies.then_some(Direction::Outbound)
    }

    /// Whether packets of both would match by one reply key of their own, and they are not of one identity: then
    /// one of them loses the insertion and should not have stood in front of the other.
    pub(super) fn shares_reply_key(&self, other: &Self) -> bool {
        self.virtual_word() != other.virtual_word()
            && self.client.load(Ordering::Relaxed) == other.client.load(Ordering::Relaxed)
            && self.reply_flow().is_some()
            && other.reply_flow().is_some()
            && self.replier() == other.replier()
    }

    /// The hash of the client's packets.
    pub(super) fn client_hash(&self, secret: &HashSecret) -> u64 {
        let flow =
            FlowKey { protocol: self.protocol(), source: self.client(), dest: self.virtual_endpoint() };
        flow.hash(secret)
    }

    /// The hash of the replies, where it is not that of the client's packets too.
    pub(super) fn reply_hash(&self, secret: &HashSecret) -> Option<u64> {
        self.reply_flow().map(|flow| flow.hash(secret))
    }

    pub(super) fn protocol(&self) -> Protocol {
        Protocol((self.client.load(Ordering::Relaxed) >> 8) as u8)
    }

    pub(super) fn client(&self) -> Endpoint {
        unpacked(self.client.load(Ordering::Relaxed))
    }

    pub(super) fn virtual_endpoint(&self) -> Endpoint {
        unpacked(self.virtual_word())
    }

    pub(super) fn dest(&self) -> Endpoint {
        unpacked(self.packed_dest())
    }

    pub(super) fn method(&self) -> ForwardingMethod {
        match self.virtual_word() & METHOD {
            method if method == ForwardingMethod::Nat as u64 => ForwardingMethod::Nat,
            method if method == ForwardingMethod::Local as u64 => ForwardingMethod::Local,
            method if method == ForwardingMethod::Tunnel as u64 => ForwardingMethod::Tunnel,
            _ => ForwardingMethod::DirectRouting,
        }
    }

    /// See [`super::Connection::add_controlled`].
    pub(super) fn add_controlled(&self) -> bool {
        let more = |count: u32| count.checked_add(1).filter(|&count| count != REMOVED);
        // Relaxed: the share itself is all that is passed on, and `close` competes for the same word.
        self.controlled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Lets nobody become controlled by it any more; succeeds once in a connection's life, and only while it
    /// controls none. Otherwise what the count is.
    pub(super) fn close(&self) -> Result<u32, u32> {
        // Acquire: pairs with the Release of `drop_controlled`.
        self.controlled.compare_exchange(0, REMOVED, Ordering::Acquire, Ordering::Relaxed)
    }

    /// Takes [`close`](Self::close) back: only for the one it succeeded for.
    pub(super) fn reopen(&self) {
        // Release: for symmetry with `drop_controlled`; nobody else writes the word in between.
        self.controlled.store(0, Ordering::Release);
    }

    /// The flow of replies, if they are found by a key of their own: masqueraded, not from the virtual endpoint
    /// itself, and not of a template.
    fn reply_flow(&self) -> Option<FlowKey> {
        let template = self.flags.load(Ordering::Relaxed) & Flags::TEMPLATE.0 != 0;
        let own = self.method() == ForwardingMethod::Nat && self.dest() != self.virtual_endpoint();
        (own && !template).then(|| FlowKey {
            protocol: self.protocol(),
            source: self.dest(),
            dest: self.client(),
        })
    }

    fn virtual_word(&self) -> u64 {
        self.virtual_endpoint.load(Ordering::Relaxed)
    }

    fn packed_dest(&self) -> u64 {
        u64::from(self.dest_addr.load(Ordering::Relaxed)) << 32
            | u64::from(self.dest_port.load(Ordering::Relaxed)) << 16
    }

    /// Who answers the client.
    fn replier(&self) -> u64 {
        let word = self.virtual_word();
        if word & METHOD == ForwardingMethod::Nat as u64 { self.packed_dest() } else { word & !METHOD }
    }
}

/// Address in bits 32 to 63, port in 16 to 31; `None` unless IPv4.
pub(super) fn packed(endpoint: Endpoint) -> Option<u64> {
    match endpoint.addr {
        IpAddr::V4(addr) => Some(u64::from(u32::from(addr)) << 32 | u64::from(endpoint.port) << 16),
        IpAddr::V6(_) => None,
    }
}

fn unpacked(word: u64) -> Endpoint {
    Endpoint::new(Ipv4Addr::from((word >> 32) as u32), (word >> 16) as u16)
}

/// The bits of `virtual_endpoint` that hold the method.
const METHOD: u64 = 0xffff;
const DEADLINE_MAX: u64 = (1 << 48) - 1;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn life_keeps_state_and_deadline_and_publishing_keeps_both() {
        let life = Life::new(Phase::Pending, 0xa5, Millis(123_456_789));
        assert!(life.is_current() && !life.is_live());
        let entry = Entry::default();
        entry.life.store(life.with(7, Millis(u64::MAX)).0, Ordering::Relaxed);
        entry.publish();
        assert!(entry.life().is_live());
        assert_eq!((entry.life().state(), entry.life().deadline()), (7, Millis(DEADLINE_MAX)));
    }

    #[test]
    fn a_removed_entry_has_neither_state_nor_deadline_and_stays_removed_when_published() {
        let entry = Entry::default();
        entry.life.store(Life::removed(9).0, Ordering::Relaxed);
        entry.publish();
        assert_eq!(entry.life().next(), 9);
        assert_eq!((entry.life().state(), entry.life().deadline()), (0, Millis(0)));
    }
}
