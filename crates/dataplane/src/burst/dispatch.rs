//! The end of a burst: what becomes of each frame by its class, and who is told.
//!
//! Runs for each frame when the whole burst is decided. Packets of flows go by their verdicts; fragments (`datagram.rs`)
//! and ICMP errors, which are rare, are looked at only here. Not here: sending and counting (`outcome.rs`).

use xvs_proto::Packet;

use super::flows::Flows;
use super::transmit::Outcome;
use crate::clock::Millis;
use crate::port::{Port, Received};
use crate::slow_path::icmp_error::Followed;
use crate::slow_path::icmp_reply::Offence;
use crate::slow_path::reassembly::Fragments;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// What a frame meets.
pub struct Ending<'a> {
    /// The fragments that wait.
    pub fragments: &'a mut Fragments,
    /// The connections.
    pub flows: &'a mut Flows,
    /// The end of all ways.
    pub outcome: &'a mut Outcome,
    /// What is in force.
    pub snapshot: &'a Snapshot,
    /// The time.
    pub now: Millis,
}

impl Ending<'_> {
    /// Carries out the verdict on a packet, whose sender is told of a drop.
    pub fn packet(
        &mut self,
        received: Received,
        packet: &Packet,
        hash: u64,
        verdict: Verdict,
        port: &mut impl Port,
    ) {
        if let Some(offence) = Offence::of(packet, &received.frame, received.link, verdict) {
            self.answer(offence, hash, port);
        }
        self.outcome.carry_out(received, verdict, port);
    }

    /// Follows an ICMP error to whom it concerns.
    pub fn error(&mut self, mut received: Received, packet: &Packet, port: &mut impl Port) {
        let Received { link, frame } = &mut received;
        let verdict = match self.flows.follow(frame, *link, packet, self.snapshot, self.now) {
            Followed::Itself(verdict) => verdict,
            Followed::Instead(relay) => {
                let offence = relay.offence(frame, *link);
                if let Some(bytes) = self.outcome.answer(&offence, self.snapshot, port, self.now) {
                    self.flows.count_relay(&relay, bytes, self.snapshot);
                }
                Verdict::Consumed
            }
        };
        self.outcome.carry_out(received, verdict, port);
    }

    /// Resets the senders of packets whose connections are to be reset.
    pub fn reset(&mut self, port: &mut impl Port) {
        for reset in self.flows.resets().drain(..) {
            self.outcome.reset(&reset, self.snapshot, port);
        }
    }

    /// Tells the sender of a packet why it was dropped, if that is due.
    pub fn answer(&mut self, offence: Offence<'_>, hash: u64, port: &mut impl Port) {
        let connection = self.flows.asked(offence.packet, hash);
        if let Some(offence) = self.flows.admit(offence, connection)
            && let Some(bytes) = self.outcome.answer(&offence, self.snapshot, port, self.now)
        {
            self.flows.count_answer(connection, bytes, self.snapshot);
        }
    }
}

/// Drops all that wait for others, for a worker that ends.
pub fn abandon(fragments: &mut Fragments, outcome: &mut Outcome, port: &mut impl Port) {
    while fragments.abandon() {
        for received in fragments.released().drain(..) {
            outcome.settle(received, Verdict::Drop(DropReason::FragmentTimeout), port);
        }
    }
    outcome.counters().held.set(0);
}
