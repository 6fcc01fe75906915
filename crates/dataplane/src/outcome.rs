//! The end of a packet's way: its frame goes where the verdict says and is counted, and its sender is told what
//! has to be told.
//!
//! Runs once per frame. The last word on a verdict is spoken here: a frame that its link or the kernel refuses
//! becomes a drop.

use std::net::IpAddr;
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;
use xvs_proto::{Packet, ethernet};

use crate::answer::{Offence, RateLimit};
use crate::clock::Millis;
use crate::counters::WorkerCounters;
use crate::forward::Identification;
use crate::port::{BURST, LinkId, Port, Received};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// Next hops whose link address was missing, for the control thread to have resolved. Full, it forgets the newest:
/// the next packet brings it again.
pub type Unresolved = ArrayQueue<(LinkId, IpAddr)>;

/// Hands out frames and counts what became of them.
pub struct Outcome {
    counters: Arc<WorkerCounters>,
    limit: RateLimit,
    unresolved: Arc<Unresolved>,
    ids: Identification,
    verdicts: Vec<Verdict>,
}

impl Outcome {
    /// Counts into `counters`, of which the caller's thread is the one writer.
    pub fn new(counters: Arc<WorkerCounters>, unresolved: Arc<Unresolved>, ids: Identification) -> Self {
        Self { unresolved, counters, limit: RateLimit::default(), ids, verdicts: Vec::with_capacity(BURST) }
    }

    /// Forgets the last burst's verdicts; `frames` more follow.
    pub fn begin(&mut self, frames: usize) {
        self.verdicts.clear();
        self.counters.received.add(frames as u64);
    }

    /// Where it counts.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// The verdicts on the last burst, in its order.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Tells the sender of a dropped packet why, if that is due. Returns the bytes of the ICMP error that it was sent.
    pub fn answer(
        &mut self,
        received: &Received,
        packet: &Packet,
        verdict: Verdict,
        snapshot: &Snapshot,
        port: &mut impl Port,
        now: Millis,
    ) -> Option<usize> {
        let Verdict::Drop(reason) = verdict else { return None };
        let error = reason.answer()?;
        let offence = Offence { packet, frame: &received.frame, link: received.link, error };
        let allowed = self.limit.allows(now, snapshot.settings.icmp_msgs_per_sec);
        let answer =
            if allowed { offence.answer(snapshot, port, &mut self.ids, &self.unresolved) } else { None };
        let Some((link, frame)) = answer else {
            self.counters.answers_withheld.add(1);
            return None;
        };
        let bytes = frame.len() - ethernet::HEADER_LEN;
        self.counters.originated.add(1);
        match port.transmit(link, frame) {
            Ok(()) => {
                self.counters.transmitted.add(1);
                Some(bytes)
            }
            Err(frame) => {
                port.recycle(frame);
                self.counters.dropped(DropReason::TransmitRefused).add(1);
                None
            }
        }
    }

    /// Carries out one verdict.
    pub fn carry_out(&mut self, received: Received, verdict: Verdict, port: &mut impl Port) {
        let Received { link, frame } = received;
        let done = match verdict {
            Verdict::Transmit(out) => {
                port.transmit(out, frame).map_err(|frame| (frame, DropReason::TransmitRefused))
            }
            Verdict::PassToKernel => {
                port.pass_to_kernel(link, frame).map_err(|frame| (frame, DropReason::KernelRefused))
            }
            Verdict::Consumed => {
                port.recycle(frame);
                Ok(())
            }
            Verdict::Drop(reason) => Err((frame, reason)),
        };
        let verdict = match done {
            Ok(()) => verdict,
            Err((frame, reason)) => {
                port.recycle(frame);
                Verdict::Drop(reason)
            }
        };
        self.count(verdict);
        self.verdicts.push(verdict);
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Transmit(_) => &self.counters.transmitted,
            Verdict::PassToKernel => &self.counters.passed,
            Verdict::Consumed => &self.counters.consumed,
            Verdict::Drop(reason) => self.counters.dropped(reason),
        }
        .add(1);
    }
}
