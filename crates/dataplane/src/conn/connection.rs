//! A view of one connection in the table.
//!
//! It is the result of a look-up or of a walk. Reading it costs the loads of its atomics. It cannot outlive the burst
//! in which it was created, because the entry may be reused afterwards. Endpoints and references never change while the
//! connection lives. State, deadline, flags and counts do, and any worker may change them.

use std::sync::{Arc, OnceLock};

use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ForwardingMethod;

use super::entry::{REMOVED, Record};
use super::flags::Flags;
use super::id::ConnId;
use super::life::Life;
use super::offloaded::{Offloaded, State, told};
use super::spare::Spare;
use crate::clock::Millis;
use crate::shm::atomic::Ordering;

/// The number that no destination has (`DestinationId::NONE`).
pub(crate) const NO_DESTINATION: u32 = u32::MAX;

/// A view of one connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    pub(super) id: ConnId,
    pub(super) record: Record<'a>,
    /// The records of the XDP program.
    pub(super) offloaded: &'a OnceLock<Arc<Offloaded>>,
}

/// Writes the data of a new connection that a [`NewConnection`](crate::conn::insertion::NewConnection) does not contain
/// (numbers, shifts), before another thread can find the connection; `None` if there are none.
pub(crate) type Complete<'a> = Option<&'a dyn Fn(&Connection<'_>)>;

impl Connection<'_> {
    /// The id of the connection in the table.
    pub fn id(&self) -> ConnId {
        self.id
    }

    /// A number that changes when the connection is removed. Id and generation together identify a connection
    /// permanently.
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

    /// The service's endpoint, to which the client sends.
    pub fn virtual_endpoint(&self) -> Endpoint {
        self.record.virtual_endpoint()
    }

    /// The real server's endpoint.
    pub fn dest(&self) -> Endpoint {
        self.record.dest()
    }

    /// Whether the connection goes to the client's original destination (`cache_bypass`): its destination address is
    /// unspecified.
    #[inline]
    pub fn is_bypass(&self) -> bool {
        self.dest().addr.is_unspecified()
    }

    /// Whether the connection was received from another director, and its real server is not configured here.
    #[inline]
    pub fn is_unbound(&self) -> bool {
        self.dest_ref() == NO_DESTINATION && !self.is_bypass()
    }

    /// The director's own endpoint, which the real server sees as the source of the client's packets (FULLNAT).
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

    /// The integer, for a copy.
    pub fn spare(&self) -> Spare {
        Spare(self.record.entry.spare.load(Ordering::Relaxed))
    }

    fn set_spare(&self, Spare(integer): Spare) {
        self.record.entry.spare.store(integer, Ordering::Relaxed);
    }

    /// How long a template lasts after a connection, in seconds.
    pub fn timeout_seconds(&self) -> u32 {
        self.spare().0
    }

    /// Sets the time that a template lasts after the next connection, in seconds.
    pub fn set_timeout_seconds(&self, seconds: u32) {
        self.set_spare(Spare::template(seconds));
    }

    /// The sequence number of the client's first data byte; 0: unknown. Only for TCP connections whose destination
    /// receives the client's address, or whose replies do not pass the director.
    pub fn first_sequence(&self) -> u32 {
        self.spare().0
    }

    /// Sets [`Self::first_sequence`].
    pub fn set_first_sequence(&self, number: u32) {
        self.set_spare(Spare::first_sequence(number));
    }

    /// The acknowledgement number that proves that the client received the destination's SYN+ACK; 0 if none has passed.
    /// Not for a connection with a [`Self::first_sequence`].
    pub fn destination_sequence(&self) -> u32 {
        self.spare().0
    }

    /// Sets the [`Self::destination_sequence`].
    pub fn set_destination_sequence(&self, number: u32) {
        self.set_spare(Spare(number));
    }

    /// Whether no reply has passed, of UDP.
    #[inline]
    pub(crate) fn awaits_reply(&self) -> bool {
        self.spare() == Spare::AWAITS_REPLY
    }

    /// Notes that a reply has passed, of UDP.
    pub(crate) fn set_replied(&self) {
        self.set_spare(Spare::NONE);
    }

    /// Number of the destination's [`DestinationLive`](crate::snapshot::DestinationLive).
    #[inline]
    pub fn dest_ref(&self) -> u32 {
        self.record.entry.dest.load(Ordering::Relaxed)
    }

    /// Firewall mark of the service; 0 if there is none. For templates see
    /// [`NewConnection::mark`](crate::conn::insertion::NewConnection::mark).
    pub fn mark(&self) -> u32 {
        self.record.entry.mark.load(Ordering::Relaxed)
    }

    /// The template that controls the connection, or the control connection of an FTP data connection. The controller
    /// counts this connection and lives at least as long.
    pub fn controller(&self) -> Option<ConnId> {
        self.record.entry.controller.load(Ordering::Relaxed).checked_sub(1).map(ConnId)
    }

    /// The protocol state; 0 if the connection has since been removed.
    pub fn state(&self) -> u8 {
        self.told().state()
    }

    /// The deadline; time 0 if the connection has since been removed.
    pub fn expires(&self) -> Millis {
        self.told().deadline()
    }

    /// State and deadline according to the XDP program, if it forwards the connection.
    fn told(&self) -> Life {
        told(self.offloaded, self.id, self.record.entry.life())
    }

    /// The state of the connection's record; `None` if it has none.
    fn record_state(&self) -> Option<State> {
        let offloaded = self.offloaded.get()?;
        offloaded.of(self.id).map(|record| offloaded.state(record))
    }

    /// Marks the connection as one whose record may be more recent than its entry, if it is live and in this state.
    pub(crate) fn mark_offloaded(&self, state: u8) -> bool {
        self.record.entry.mark_offloaded(state)
    }

    /// Whether the XDP program forwards packets by the connection's record, if there is one.
    pub(crate) fn is_forwarded(&self) -> bool {
        self.record_state().is_some_and(|state| state.has(State::IN_FORCE))
    }

    /// Whether the connection's record contains the time of its first reply.
    pub(crate) fn has_recorded_response(&self) -> bool {
        self.record_state().is_some_and(|state| state.response_micros().is_some())
    }

    /// Whether the client has acknowledged the sequence number of the destination's SYN.
    pub fn is_proven(&self) -> bool {
        self.flags().contains(Flags::PROVEN)
            || self.record.entry.life().is_offloaded()
                && self.record_state().is_some_and(|state| state.has(State::PROVEN))
    }

    /// The current flags.
    #[inline]
    pub fn flags(&self) -> Flags {
        Flags(self.record.entry.flags.load(Ordering::Relaxed))
    }

    /// Sets flags. Returns `true` to the one caller that found any of them unset, so that the consequence of the
    /// transition (a connection that moves from active to inactive) is counted once.
    ///
    /// [`Flags::TEMPLATE`] must not be among them: it is part of the identity.
    #[must_use]
    pub fn set_flags(&self, flags: Flags) -> bool {
        debug_assert!(!flags.contains(Flags::TEMPLATE));
        // Relaxed: the counts that follow are separate atomics, and no thread infers one from the other.
        self.record.entry.flags.fetch_or(flags.0, Ordering::Relaxed) & flags.0 != flags.0
    }

    /// Clears flags. Returns `true` to the one caller that found any of them set.
    #[must_use]
    pub fn clear_flags(&self, flags: Flags) -> bool {
        debug_assert!(!flags.contains(Flags::TEMPLATE));
        // Relaxed: as in `set_flags`.
        self.record.entry.flags.fetch_and(!flags.0, Ordering::Relaxed) & flags.0 != 0
    }

    /// Whether the connection is known only from another director's unsigned message.
    #[inline]
    pub fn is_unseen(&self) -> bool {
        let unseen = Flags::SYNC | Flags::UNSEEN;
        self.flags().0 & (unseen | Flags::TEMPLATE).0 == unseen.0
    }

    /// A packet of it passes.
    #[inline]
    pub(crate) fn note_seen(&self) {
        if self.is_unseen() {
            let _ = self.clear_flags(Flags::UNSEEN);
        }
    }

    /// Counts a connection that another director announced as active or inactive. Returns `true` to the one caller that
    /// has changed it; `false` also if the connection is no longer counted.
    #[must_use]
    pub fn count_as(&self, inactive: bool) -> bool {
        // Relaxed: as in `set_flags`.
        self.record
            .entry
            .flags
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |flags| {
                let flags = Flags(flags);
                (!flags.contains(Flags::COUNTED_OUT) && flags.contains(Flags::INACTIVE) != inactive)
                    .then_some(flags.0 ^ Flags::INACTIVE.0)
            })
            .is_ok()
    }

    /// Removes such a connection from the counts. Returns whether it counted as inactive.
    #[must_use]
    pub fn count_out(&self) -> bool {
        // Relaxed: as in `set_flags`.
        Flags(self.record.entry.flags.fetch_or(Flags::COUNTED_OUT.0, Ordering::Relaxed))
            .contains(Flags::INACTIVE)
    }

    /// The number of packets from the client so far.
    pub fn in_packets(&self) -> u32 {
        self.record.entry.in_packets.load(Ordering::Relaxed)
    }

    /// Sets the number of packets from the client.
    pub fn set_in_packets(&self, packets: u32) {
        self.record.entry.in_packets.store(packets, Ordering::Relaxed);
    }

    /// Counts one more packet from the client and returns the new count. It wraps, as the kernel's count does. If two
    /// workers count a packet at the same moment, one may be lost.
    #[inline]
    pub fn count_in_packet(&self) -> u32 {
        // No atomic exchange: it would cost more than anything else that a packet does to the entry, and the packets of
        // a flow arrive on one queue.
        let count = self.in_packets().wrapping_add(1);
        self.record.entry.in_packets.store(count, Ordering::Relaxed);
        count
    }

    /// The number of connections whose controller this one is.
    pub fn controlled(&self) -> u32 {
        match self.record.entry.controlled.load(Ordering::Relaxed) {
            REMOVED => 0,
            count => count,
        }
    }

    /// Counts one more connection under this controller, which cannot be removed while it has any. Returns `false` and
    /// counts nothing if it is already being removed: then a new template is needed.
    #[must_use]
    pub fn add_controlled(&self) -> bool {
        self.record.entry.add_controlled()
    }

    /// Counts one connection less under this controller. The table calls this when a connection is removed.
    pub fn drop_controlled(&self) {
        // Release: the caller's accesses while its connection was counted precede the removal that this may permit.
        let before = self.record.entry.controlled.fetch_sub(1, Ordering::Release);
        debug_assert!(before != 0 && before != REMOVED, "each decrement follows an increment");
    }
}
