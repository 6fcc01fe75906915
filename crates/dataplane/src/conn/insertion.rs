//! What goes into the table, and what becomes of it: insertions and removals.

use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use super::flags::Flags;
use super::id::ConnId;
use crate::clock::Millis;

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
    /// The template that controls it. Whoever inserts has taken its share first ([`Connection::add_controlled`](crate::conn::connection::Connection::add_controlled))
    /// and gives it back if the insertion makes no new connection.
    pub controller: Option<ConnId>,
}

impl NewConnection {
    /// The flow of the client's packets.
    pub(super) fn request_flow(&self) -> FlowKey {
        FlowKey { protocol: self.protocol, source: self.client, dest: self.virtual_endpoint }
    }

    /// The flow of replies, if they are found by a key of their own: not from the virtual endpoint itself to the client,
    /// and not of a template.
    pub(super) fn reply_flow(&self) -> Option<FlowKey> {
        let masqueraded = self.local.is_some() || self.method == ForwardingMethod::Nat;
        let source = if masqueraded { self.dest } else { self.virtual_endpoint };
        let dest = self.local.unwrap_or(self.client);
        let own = (source, dest) != (self.virtual_endpoint, self.client);
        (own && self.kind() == Kind::Connection).then_some(FlowKey { protocol: self.protocol, source, dest })
    }

    pub(super) fn kind(&self) -> Kind {
        if self.flags.contains(Flags::TEMPLATE) { Kind::Template } else { Kind::Connection }
    }

    /// Whether its entry needs an extension.
    pub(super) fn is_wide(&self) -> bool {
        self.client.addr.is_ipv6() || self.dest.addr.is_ipv6() || self.local.is_some()
    }
}

/// Whether an entry stands for a packet's connection or for a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection = 0,
    Template = 1,
}

/// What became of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The connection is in the table, and timed by this worker.
    New(ConnId),
    /// It was there already, or another worker was faster: this is it, and the new one was discarded.
    Existing(ConnId),
    /// There is no room, in the slab or in the buckets of one of its keys. Counted.
    Full,
    /// Another connection of this protocol has the same destination and local endpoint ([`NewConnection::local`]). The
    /// caller may try another port, a few times in a burst: what was tried holds an entry until the quiescent point.
    LocalTaken,
}

/// What became of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The connection is out; it was in this state at its end. The caller, and nobody else, is told so, and does what
    /// the end entails; the entry stays readable until the caller's quiescent point.
    Done(u8),
    /// It controls others and stays.
    Controls,
    /// Another caller removes it, or another worker is at this moment inserting it.
    NotOurs,
    /// It is not, or not any more, what was to be removed ([`TableWorker::remove_if`](crate::conn::handle::TableWorker::remove_if)).
    Lasts,
}
