//! What becomes of fragments: they wait, and what they are together takes the way of any packet.
//!
//! Runs for each fragment, at the end of a burst. A whole datagram goes to its connection once, is counted once with
//! all its bytes, and leaves in fragments no larger than the largest in which it came; its own fragments are consumed
//! then. If it is not a service's, the kernel gets them as they came. Not here: which fragments belong together
//! (`fragments.rs`), how a packet is cut (`pieces.rs`).

use xvs_proto::{Family, Fragment, Packet, Parsed, parse};

use crate::answer::Offence;
use crate::clock::Millis;
use crate::flow::Flows;
use crate::fragments::{Datagram, Fragments, Gathered};
use crate::outcome::Outcome;
use crate::port::{Port, Received};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// What a fragment meets.
pub struct Gathering<'a> {
    /// Those that wait.
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

impl Gathering<'_> {
    /// Takes a fragment to where it belongs. The verdict is that on its datagram, if it was the last one missing.
    pub fn take(&mut self, received: Received, packet: &Packet, port: &mut impl Port) -> Verdict {
        self.give_up(port);
        let verdict = match self.fragments.take(received, packet, self.now) {
            Gathered::Waits => Verdict::Held,
            Gathered::HandedOver => Verdict::Consumed,
            Gathered::Refused(reason) => Verdict::Drop(reason),
            Gathered::Whole(datagram) => self.forward(datagram, port),
        };
        let verdict = match verdict {
            Verdict::Transmit(_) => {
                self.dispose(Verdict::Consumed, port);
                verdict
            }
            verdict => self.dispose(verdict, port).unwrap_or(verdict),
        };
        self.outcome.counters().held.set(self.fragments.held() as u64);
        verdict
    }

    /// Drops those whose time is over, and the oldest if there is no room for one more.
    pub fn give_up(&mut self, port: &mut impl Port) {
        while let Some(reason) = self.fragments.give_up(self.now) {
            self.tell(reason, port);
            self.dispose(Verdict::Drop(reason), port);
            self.outcome.counters().held.set(self.fragments.held() as u64);
        }
    }

    /// Tells the sender of an incomplete datagram, if its first fragment is here (RFC 792).
    fn tell(&mut self, reason: DropReason, port: &mut impl Port) {
        for received in self.fragments.released().iter() {
            if let Ok(Parsed::Ip(packet)) = parse(received.frame.bytes())
                && packet.fragment == Fragment::First
                && let Some(offence) =
                    Offence::of(&packet, &received.frame, received.link, Verdict::Drop(reason))
            {
                self.outcome.answer(&offence, self.snapshot, port, self.now);
            }
        }
    }

    /// Carries a verdict out on the fragments that wait no longer; the one on the last of them.
    fn dispose(&mut self, verdict: Verdict, port: &mut impl Port) -> Option<Verdict> {
        let released = self.fragments.released().drain(..);
        released.map(|received| self.outcome.settle(received, verdict, port)).last()
    }

    fn forward(&mut self, mut datagram: Datagram, port: &mut impl Port) -> Verdict {
        let verdict = match parse(datagram.frame.bytes()) {
            Ok(Parsed::Ip(packet)) => {
                // Routers may not fragment IPv6, but what came in fragments leaves in fragments.
                let dont_fragment = packet.dont_fragment && packet.family() == Family::V4;
                self.decide(&mut datagram, &Packet { dont_fragment, ..packet }, port)
            }
            Ok(Parsed::Other) => Verdict::PassToKernel,
            Err(malformed) => Verdict::Drop(DropReason::Malformed(malformed)),
        };
        let sent = match verdict {
            Verdict::Transmit(link) => Some((link, datagram.largest)),
            Verdict::Fragment { link, mtu } => Some((link, datagram.largest.min(mtu as usize))),
            _ => None,
        };
        let verdict = match sent {
            Some((link, limit)) => self.outcome.send_copies(datagram.frame.bytes(), link, limit, port),
            None => verdict,
        };
        self.fragments.put_back(datagram);
        verdict
    }

    /// Finds or makes the datagram's connection and edits it on its way; its sender is told of a drop.
    fn decide(&mut self, datagram: &mut Datagram, packet: &Packet, port: &mut impl Port) -> Verdict {
        let hash = self.flows.hash(&packet.connection_key());
        let verdict =
            self.flows.take(&mut datagram.frame, datagram.link, packet, hash, self.snapshot, self.now);
        if let Some(offence) = Offence::of(packet, &datagram.frame, datagram.link, verdict)
            && let Some(bytes) = self.outcome.answer(&offence, self.snapshot, port, self.now)
        {
            self.flows.count_answer(packet, hash, bytes, self.snapshot);
        }
        verdict
    }
}
