//! Connections: who talks to which destination by which service, and how long that is remembered.
//!
//! [`Connection`] is a view of one entry of the [`Table`], got by a packet's flow or by a walk. It reads atomics and
//! costs what they cost; it cannot outlive the burst it was got in, because the entry may be reused after. Endpoints
//! and references never change while the connection lives; state, deadline, flags and counts do, by any worker.
//! Not here: the states themselves and their timeouts (`tcp.rs`, `udp.rs`, `sctp.rs`).

mod buckets;
mod call_ids;
mod copy;
mod entry;
mod quiescence;
mod reader;
mod seat;
mod slab;
mod table;
mod template;
mod wheel;

pub mod sctp;
pub mod tcp;
pub mod udp;

use std::ops::BitOr;

use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use crate::clock::Millis;
use crate::shm::atomic::Ordering;

use entry::{Kind, Record};

pub use call_ids::CallIds;
pub use copy::Copied;
pub(crate) use copy::Sought;
pub use reader::TableReader;
pub use seat::{Inserted, Removal, TableWorker, Timers};
pub use table::{Epoch, Table, TableConfig, TableCounts, random_secret};
pub use template::ASSURED;
pub use wheel::TIMER_TICK;

/// A connection's place in the table. It names the same connection until the holder's next quiescent point; later
/// only together with the generation ([`TableWorker::recall`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub(crate) u32);

impl ConnId {
    /// The number by which walks count: below [`Table::extent`].
    pub fn index(self) -> u32 {
        self.0
    }
}

/// Which way a packet of a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the client, to the virtual endpoint.
    Inbound,
    /// To the client: from the destination where the method is NAT, from the virtual endpoint otherwise.
    Outbound,
}

/// Which way a packet goes, as far as the director can see both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// From the client; replies pass the director too.
    Input,
    /// A reply.
    Output,
    /// From the client; replies go past the director (direct routing, tunnel).
    InputOnly,
}

/// Properties of a connection, in the bits of the kernel's sync messages.
///
/// Source: `include/uapi/linux/ip_vs.h`, `IP_VS_CONN_F_*`. The method is not among them here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// Came by synchronisation.
    pub const SYNC: Self = Self(0x0020);
    /// No reply was seen and none is expected.
    pub const NO_OUTPUT: Self = Self(0x0080);
    /// Its destination is told the client's address by a TCP option. No bit of sync messages.
    pub const TOA: Self = Self(0x0010);
    /// Both ends are reset at its next packet. No bit of sync messages.
    pub const RESET: Self = Self(0x0008);
    /// Counted among the inactive connections of its destination.
    pub const INACTIVE: Self = Self(0x0100);
    /// Its destination is told the client's address by a PROXY header, so the client's sequence numbers are shifted.
    pub const PROXY: Self = Self(0x0400);
    /// A persistence template. Fixed when the entry is made: a template is another identity.
    pub const TEMPLATE: Self = Self(0x1000);
    /// Lives for one packet only; a template: what it controls does.
    pub const ONE_PACKET: Self = Self(0x2000);
    /// The destination has acknowledged the PROXY header. No bit of sync messages.
    pub const TOLD: Self = Self(0x4000);
    /// A template that nobody finds any more ([`TableWorker::detach`]). No bit of sync messages.
    pub const DETACHED: Self = Self(0x8000);

    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A connection to be inserted. Protocol, client, virtual endpoint and [`Flags::TEMPLATE`] are its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection {
    /// The transport protocol.
    pub protocol: Protocol,
    /// Who connects; port 0 in a template.
    pub client: Endpoint,
    /// To what; of the client's family.
    pub virtual_endpoint: Endpoint,
    /// The real server's endpoint, which may be of the other family.
    pub dest: Endpoint,
    /// The director's own endpoint from which the real server sees the client's packets (FULLNAT), of the real server's
    /// family: then replies go from `dest` to this, whatever the method, and no two connections may have both alike.
    pub local: Option<Endpoint>,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Flags at the start.
    pub flags: Flags,
    /// The protocol's state, as sync messages number it.
    pub state: u8,
    /// When it expires unless refreshed.
    pub expires: Millis,
    /// How long a template lasts after a connection, in seconds; 0 in others, whose state says.
    pub timeout_seconds: u32,
    /// Number of the destination's live object.
    pub dest_ref: u32,
    /// Firewall mark of the service; 0: none. A template, whose endpoint says the mark, keeps here what tells it from
    /// others between the same endpoints.
    pub mark: u32,
    /// The template that controls it. Whoever inserts has taken its share first ([`Connection::add_controlled`])
    /// and gives it back if the insertion makes no new connection.
    pub controller: Option<ConnId>,
}

impl NewConnection {
    /// The flow of the client's packets.
    fn request_flow(&self) -> FlowKey {
        FlowKey { protocol: self.protocol, source: self.client, dest: self.virtual_endpoint }
    }

    /// The flow of replies, if they are found by a key of their own: not from the virtual endpoint itself to the client,
    /// and not of a template.
    fn reply_flow(&self) -> Option<FlowKey> {
        let masqueraded = self.local.is_some() || self.method == ForwardingMethod::Nat;
        let source = if masqueraded { self.dest } else { self.virtual_endpoint };
        let dest = self.local.unwrap_or(self.client);
        let own = (source, dest) != (self.virtual_endpoint, self.client);
        (own && self.kind() == Kind::Connection).then_some(FlowKey { protocol: self.protocol, source, dest })
    }

    fn kind(&self) -> Kind {
        if self.flags.contains(Flags::TEMPLATE) { Kind::Template } else { Kind::Connection }
    }

    /// Whether its entry needs an extension.
    fn is_wide(&self) -> bool {
        self.client.addr.is_ipv6() || self.dest.addr.is_ipv6() || self.local.is_some()
    }
}

/// A view of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    id: ConnId,
    record: Record<'a>,
}

impl Connection<'_> {
    /// Its place in the table.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// Changes when the connection is removed: with the id, it names this connection for ever.
    pub fn generation(&self) -> u32 {
        self.record.entry.generation.load(Ordering::Relaxed)
    }

    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        self.record.protocol()
    }

    /// The client's endpoint.
    pub fn client(&self) -> Endpoint {
        self.record.client()
    }

    /// The service's endpoint that the client speaks to.
    pub fn virtual_endpoint(&self) -> Endpoint {
        self.record.virtual_endpoint()
    }

    /// The real server's endpoint.
    pub fn dest(&self) -> Endpoint {
        self.record.dest()
    }

    /// The director's own endpoint from which the real server sees the client's packets (FULLNAT).
    pub fn local(&self) -> Option<Endpoint> {
        self.record.local()
    }

    /// How packets reach the real server.
    pub fn method(&self) -> ForwardingMethod {
        self.record.method()
    }

    /// Whether it is a template.
    pub fn is_template(&self) -> bool {
        self.flags().contains(Flags::TEMPLATE)
    }

    /// How long a template lasts after a connection, in seconds.
    pub fn timeout_seconds(&self) -> u32 {
        self.record.entry.timeout_seconds.load(Ordering::Relaxed)
    }

    /// Sets how long a template lasts after the next connection, in seconds.
    pub fn set_timeout_seconds(&self, seconds: u32) {
        self.record.entry.timeout_seconds.store(seconds, Ordering::Relaxed);
    }

    /// The sequence number of the client's first byte of data, of a connection whose destination is told of the client.
    pub fn first_sequence(&self) -> u32 {
        // Such a connection is no template, so the word is free.
        self.record.entry.timeout_seconds.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_first_sequence(&self, number: u32) {
        self.record.entry.timeout_seconds.store(number, Ordering::Relaxed);
    }

    /// Number of the destination's live object.
    pub fn dest_ref(&self) -> u32 {
        self.record.entry.dest.load(Ordering::Relaxed)
    }

    /// Firewall mark of the service; 0: none. Of a template: see [`NewConnection::mark`].
    pub fn mark(&self) -> u32 {
        self.record.entry.mark.load(Ordering::Relaxed)
    }

    /// The template that controls it. Alive as long as this connection is, because it counts it.
    pub fn controller(&self) -> Option<ConnId> {
        self.record.entry.controller.load(Ordering::Relaxed).checked_sub(1).map(ConnId)
    }

    /// The protocol's state; what it was last if the connection has been removed meanwhile is not kept: then 0.
    pub fn state(&self) -> u8 {
        self.record.entry.life().state()
    }

    /// When it expires; time 0 if it has been removed meanwhile.
    pub fn expires(&self) -> Millis {
        self.record.entry.life().deadline()
    }

    /// Flags now.
    pub fn flags(&self) -> Flags {
        Flags(self.record.entry.flags.load(Ordering::Relaxed))
    }

    /// Sets flags. `true` for the one caller that found any of them unset, so that what goes with the transition (a
    /// connection count moved from active to inactive) is done once.
    ///
    /// [`Flags::TEMPLATE`] is no flag to set: it is part of the identity.
    #[must_use]
    pub fn set_flags(&self, flags: Flags) -> bool {
        debug_assert!(!flags.contains(Flags::TEMPLATE));
        // Relaxed: the counts that follow are atomics of their own and nobody infers one from the other.
        let before = self.record.entry.flags.fetch_or(flags.0, Ordering::Relaxed);
        before & flags.0 != flags.0
    }

    /// Clears flags. `true` for the one caller that found any of them set.
    #[must_use]
    pub fn clear_flags(&self, flags: Flags) -> bool {
        debug_assert!(!flags.contains(Flags::TEMPLATE));
        // Relaxed: as in `set_flags`.
        self.record.entry.flags.fetch_and(!flags.0, Ordering::Relaxed) & flags.0 != 0
    }

    /// Packets from the client so far.
    pub fn in_packets(&self) -> u32 {
        self.record.entry.in_packets.load(Ordering::Relaxed)
    }

    /// Counts one more packet from the client: how many there are now. Wraps, as the kernel's count does.
    pub fn count_in_packet(&self) -> u32 {
        self.record.entry.in_packets.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// How many connections name this one as their controller.
    pub fn controlled(&self) -> u32 {
        match self.record.entry.controlled.load(Ordering::Relaxed) {
            entry::REMOVED => 0,
            count => count,
        }
    }

    /// Counts one more connection under this controller, which then cannot be removed. `false`, and nothing counted,
    /// if it is being removed already: then a new template is needed.
    #[must_use]
    pub fn add_controlled(&self) -> bool {
        self.record.entry.add_controlled()
    }

    /// Counts one connection less under this controller; when one is removed, the table does so.
    pub fn drop_controlled(&self) {
        // Release: what the caller did as the holder of its share comes before the removal that this may permit.
        let before = self.record.entry.controlled.fetch_sub(1, Ordering::Release);
        debug_assert!(before != 0 && before != entry::REMOVED, "a share was taken before it is given back");
    }
}
