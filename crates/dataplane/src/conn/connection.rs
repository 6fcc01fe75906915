//! A view of one connection in the table.
//!
//! Got by a packet's flow or by a walk. It reads atomics and costs what they cost; it cannot outlive the burst it was got
//! in, because the entry may be reused after. Endpoints and references never change while the connection lives; state,
//! deadline, flags and counts do, by any worker.

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ForwardingMethod;

use super::entry::{REMOVED, Record};
use super::flags::Flags;
use super::id::ConnId;
use crate::clock::Millis;
use crate::shm::atomic::Ordering;

/// A view of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    pub(super) id: ConnId,
    pub(super) record: Record<'a>,
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

    /// Whether it leads to where its client wanted to go (`cache_bypass`): no destination has the address that it names.
    #[inline]
    pub fn is_bypass(&self) -> bool {
        self.dest().addr.is_unspecified()
    }

    /// The director's own endpoint from which the real server sees the client's packets (FULLNAT).
    pub fn local(&self) -> Option<Endpoint> {
        self.record.local()
    }

    /// How packets reach the real server.
    #[inline]
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
    #[inline]
    pub fn dest_ref(&self) -> u32 {
        self.record.entry.dest.load(Ordering::Relaxed)
    }

    /// Firewall mark of the service; 0: none. Of a template: see [`NewConnection::mark`](crate::conn::insertion::NewConnection::mark).
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
    #[inline]
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
            REMOVED => 0,
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
        debug_assert!(before != 0 && before != REMOVED, "a share was taken before it is given back");
    }
}
