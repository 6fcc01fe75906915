//! Arguments and results of insertions and removals.

use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use super::flags::Flags;
use super::id::ConnId;
use super::spare::Spare;
use crate::clock::Millis;

/// A connection to be inserted. Protocol, client, virtual endpoint and [`Flags::TEMPLATE`] identify it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewConnection {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The client's endpoint; port 0 in a template.
    pub client: Endpoint,
    /// The virtual endpoint, of the client's family.
    pub virtual_endpoint: Endpoint,
    /// The real server's endpoint, which may be of the other family.
    pub dest: Endpoint,
    /// The director's own endpoint, which the real server sees as the source of the client's packets (FULLNAT), in the
    /// real server's family. Replies then go from `dest` to this endpoint, whatever the method, and no two connections
    /// may have both in common.
    pub local: Option<Endpoint>,
    /// How packets reach the real server.
    pub method: ForwardingMethod,
    /// Flags at the start.
    pub flags: Flags,
    /// The protocol state, numbered as in sync messages.
    pub state: u8,
    /// The time when the connection expires unless a packet refreshes it.
    pub expires: Millis,
    /// What its kind of connection has besides.
    pub spare: Spare,
    /// Number of the destination's [`DestinationLive`](crate::snapshot::DestinationLive).
    pub dest_ref: u32,
    /// Firewall mark of the service; 0 if there is none. A template has the mark in its virtual endpoint; this field
    /// then contains a number that distinguishes it from other templates between the same endpoints.
    pub mark: u32,
    /// The template that controls the connection, or the control connection of an FTP data connection. The caller has
    /// counted the connection there
    /// ([`Connection::add_controlled`](crate::conn::connection::Connection::add_controlled)), and reverts that if the
    /// insertion creates no new connection.
    pub controller: Option<ConnId>,
}

impl NewConnection {
    /// The flow of the client's packets.
    pub(super) fn request_flow(&self) -> FlowKey {
        FlowKey { protocol: self.protocol, source: self.client, dest: self.virtual_endpoint }
    }

    /// The flow of replies, if they have a separate key. Templates have none, nor do connections whose replies go from
    /// the virtual endpoint to the client.
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
        self.client.addr.is_ipv6()
            || self.dest.addr.is_ipv6()
            || self.local.is_some()
            || self.flags.contains(Flags::FTP)
    }
}

/// Whether an entry is a connection or a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Connection = 0,
    Template = 1,
}

/// The result of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The connection is in the table, and this worker times it.
    New(ConnId),
    /// This connection with the same identity already exists, possibly just inserted by another worker. The new one was
    /// discarded.
    Existing(ConnId),
    /// There is no room in the slab, or in the buckets for one of the connection's keys. Counted.
    Full,
    /// Another connection of this protocol has the same destination and local endpoint ([`NewConnection::local`]). The
    /// caller may try other ports, a few in a burst: each attempt occupies an entry until the quiescent point.
    LocalTaken,
}

/// The result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The connection was removed; this was its last state. Only this caller gets this result, and it updates the
    /// counts. The entry stays readable until the caller's quiescent point.
    Done(u8),
    /// The connection controls others and was not removed.
    Controls,
    /// Another caller has removed the connection, or another worker is inserting it.
    NotLive,
    /// The connection does not meet, or no longer meets, the condition
    /// ([`TableWorker::remove_if`](crate::conn::handle::TableWorker::remove_if)).
    Kept,
}

#[cfg(test)]
impl NewConnection {
    /// A NAT connection for tests: TCP from 192.0.2.10:1000 to 198.51.100.1:80, which expires after a minute.
    pub(crate) fn example() -> Self {
        Self {
            protocol: Protocol::TCP,
            client: Endpoint::new([192, 0, 2, 10], 1000),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
            dest: Endpoint::new([203, 0, 113, 11], 8080),
            local: None,
            method: ForwardingMethod::Nat,
            flags: Flags::NONE,
            state: 0,
            expires: Millis(60_000),
            spare: Spare::NONE,
            dest_ref: 0,
            mark: 0,
            controller: None,
        }
    }
}
