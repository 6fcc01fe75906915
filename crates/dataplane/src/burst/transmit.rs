//! Transmission: carries out the verdict on a frame and counts it, and sends packets that the director originates.
//!
//! Runs once for each frame. A frame that its link or the kernel refuses becomes a drop.

use std::sync::Arc;

use xvs_proto::{LinkId, ethernet};
use xvs_xdp::{BURST, Frame};

use super::context::Context;
use crate::clock::Millis;
use crate::counters::WorkerCounters;
use crate::egress::{Unresolved, UnresolvedHop};
use crate::forward::Identification;
use crate::general_path::fragmentation::Fragmentation;
use crate::general_path::icmp_originate::{IcmpError, RateLimit};
use crate::general_path::neighbour_queue::NeighbourQueue;
use crate::general_path::tcp_originate::Answer;
use crate::port::{Port, Received};
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// Maximum number of fragments of a packet: more than the largest packet has on links with an MTU of 576 bytes.
const MAX_FRAGMENTS: usize = 128;

/// Transmission of one worker's frames, with its counters.
pub struct Transmitter {
    counters: Arc<WorkerCounters>,
    limit: RateLimit,
    unresolved: Arc<Unresolved>,
    ids: Identification,
    verdicts: Vec<Verdict>,
    /// Packets whose next hop is not resolved.
    waiting: NeighbourQueue,
    /// The number of fragments that wait.
    fragments_held: usize,
    /// The time of the burst.
    now: Millis,
    /// Fragments of the packet that is being sent.
    fragments: Vec<Frame>,
}

impl Transmitter {
    /// Transmission with the counters in `counters`, whose only writer is the caller's thread.
    pub fn new(counters: Arc<WorkerCounters>, unresolved: Arc<Unresolved>, ids: Identification) -> Self {
        Self {
            counters,
            limit: RateLimit::default(),
            unresolved,
            ids,
            verdicts: Vec::with_capacity(BURST),
            waiting: NeighbourQueue::new(),
            fragments_held: 0,
            now: Millis(0),
            fragments: Vec::with_capacity(MAX_FRAGMENTS),
        }
    }

    /// Begins a burst: sends packets whose next hop has been resolved, and drops those that have waited too long. The
    /// verdicts of the last burst are discarded.
    pub fn begin(&mut self, cx: Context<'_>, port: &mut impl Port) {
        self.verdicts.clear();
        self.now = cx.now;
        if self.waiting.is_empty() {
            return;
        }
        while let Some((received, verdict)) = self.waiting.release(cx.snapshot, cx.now) {
            self.settle(received, verdict, port);
        }
        self.count_held();
    }

    /// Counts the frames of a burst: those received, and the copies from other workers.
    pub fn count_received(&self, received: usize, copies: usize) {
        self.counters.received.add(received as u64);
        self.counters.originated.add(copies as u64);
    }

    /// Drops all waiting packets, for a worker that ends.
    pub fn abandon(&mut self, port: &mut impl Port) {
        while let Some(received) = self.waiting.abandon() {
            self.settle(received, Verdict::Drop(DropReason::NoNeighbour), port);
        }
        self.count_held();
    }

    /// When [`Self::begin`] is due next if no frame arrives. `None` if no packet waits.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        self.waiting.next_due(now)
    }

    /// The counters of frames.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// The verdicts on the last burst, in its order.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Sends an ICMP error about a dropped packet, if the rate limit allows it. Returns the length of the message.
    pub fn send_icmp_error(
        &mut self,
        error: &IcmpError<'_>,
        cx: Context<'_>,
        port: &mut impl Port,
    ) -> Option<usize> {
        let rate = cx.snapshot.settings.icmp_msgs_per_sec;
        let made = match !error.is_limited() || self.limit.allows(cx.now, rate) {
            true => error.emit(cx.snapshot, port, &mut self.ids, &self.unresolved),
            false => None,
        };
        self.originate(made, port)
    }

    /// Sends a packet to one end of a connection.
    pub(crate) fn answer(&mut self, answer: &Answer, snapshot: &Snapshot, port: &mut impl Port) {
        let made = answer.emit(snapshot, port, &self.unresolved);
        if self.originate(made, port).is_some() && answer.is_reset() {
            self.counters.resets.add(1);
        }
    }

    /// Sends a packet that the director created, if there is one. Returns its length.
    fn originate(&mut self, made: Option<(LinkId, Frame)>, port: &mut impl Port) -> Option<usize> {
        let Some((link, frame)) = made else {
            self.counters.answers_withheld.add(1);
            return None;
        };
        let bytes = frame.len() - ethernet::HEADER_LEN;
        self.send_made(link, frame, port).then_some(bytes)
    }

    /// Sends a frame that the director created. Returns whether the link accepted it.
    pub(crate) fn send_made(&mut self, link: LinkId, frame: Frame, port: &mut impl Port) -> bool {
        self.counters.originated.add(1);
        self.send(link, frame, port)
    }

    /// Carries out the verdict on a frame that the director created.
    pub(crate) fn carry_out_made(&mut self, frame: Frame, verdict: Verdict, port: &mut impl Port) {
        self.counters.originated.add(1);
        // No link has received the frame; if it cannot be sent, it is dropped.
        self.settle(Received { link: LinkId(0), frame }, verdict, port);
    }

    /// Carries out the verdict on a frame of the burst and records it.
    pub fn carry_out(&mut self, received: Received, verdict: Verdict, port: &mut impl Port) {
        let verdict = self.settle(received, verdict, port);
        self.record(verdict, port);
    }

    /// Sends a frame of the burst, counts and records it.
    #[inline]
    pub fn forward(&mut self, received: Received, link: LinkId, port: &mut impl Port) {
        let Received { link: from, frame } = received;
        if let Err(frame) = port.transmit(link, frame) {
            let refused = Verdict::Drop(DropReason::TransmitRefused);
            return self.carry_out(Received { link: from, frame }, refused, port);
        }
        self.counters.transmitted.add(1);
        self.record(Verdict::Transmit(link), port);
    }

    /// Records the verdict on a frame of the burst that was already disposed of.
    #[inline]
    pub fn record(&mut self, verdict: Verdict, port: &mut impl Port) {
        self.verdicts.push(verdict);
        port.settled(verdict);
    }

    /// Sends a packet in fragments of at most `limit` bytes, each in a separate frame: all or none.
    pub fn send_copies(
        &mut self,
        packet: &Frame,
        link: LinkId,
        limit: usize,
        port: &mut impl Port,
    ) -> Verdict {
        let plan = Fragmentation::of(packet, limit, &mut self.ids);
        if !plan.is_some_and(|plan| self.copy_fragments(plan, packet, 0, port)) {
            return Verdict::Drop(DropReason::NeedsFragmenting);
        }
        self.send_all(link, port);
        Verdict::Transmit(link)
    }

    /// Sends the packet of a frame in fragments of at most `mtu` bytes: either all, or none and the frame is returned.
    fn send_fragmented(
        &mut self,
        mut frame: Frame,
        link: LinkId,
        mtu: u32,
        port: &mut impl Port,
    ) -> Result<Verdict, Frame> {
        let Some(plan) = Fragmentation::of(&frame, mtu as usize, &mut self.ids) else {
            return Err(frame);
        };
        if !self.copy_fragments(plan, &frame, 1, port) {
            return Err(frame);
        }
        if !plan.keep_first(&mut frame) {
            self.fragments.drain(..).for_each(|fragment| port.recycle(fragment));
            return Err(frame);
        }
        self.send(link, frame, port);
        self.send_all(link, port);
        Ok(Verdict::Transmit(link))
    }

    /// Copies the fragments of a packet, beginning with this one: all or none.
    fn copy_fragments(
        &mut self,
        plan: Fragmentation,
        packet: &Frame,
        from: usize,
        port: &mut impl Port,
    ) -> bool {
        for number in from..plan.count() {
            match plan.copy(packet, number, port) {
                Some(fragment) if self.fragments.len() < MAX_FRAGMENTS => self.fragments.push(fragment),
                other => {
                    self.fragments.drain(..).chain(other).for_each(|fragment| port.recycle(fragment));
                    return false;
                }
            }
        }
        true
    }

    fn send_all(&mut self, link: LinkId, port: &mut impl Port) {
        self.counters.originated.add(self.fragments.len() as u64);
        let mut fragments = std::mem::take(&mut self.fragments);
        for fragment in fragments.drain(..) {
            self.send(link, fragment, port);
        }
        self.fragments = fragments;
    }

    /// Sends a frame and counts it. Returns whether the link accepted it.
    fn send(&mut self, link: LinkId, frame: Frame, port: &mut impl Port) -> bool {
        let sent = port.transmit(link, frame).map_err(|frame| port.recycle(frame)).is_ok();
        self.count(if sent { Verdict::Transmit(link) } else { Verdict::Drop(DropReason::TransmitRefused) });
        sent
    }

    /// Makes the kernel resolve a next hop.
    pub fn resolve(&self, next_hop: UnresolvedHop) {
        // If the queue is full, other next hops are being resolved, and the next packet requests this one again.
        let _ = self.unresolved.push((next_hop.link, next_hop.addr));
    }

    /// Keeps a frame until its next hop is resolved. Returns it if there is no room.
    fn wait(&mut self, received: Received, next_hop: UnresolvedHop) -> Result<(), Received> {
        self.resolve(next_hop);
        self.waiting.hold(received, next_hop, self.now)?;
        self.counters.waited.add(1);
        self.count_held();
        Ok(())
    }

    /// Notes how many fragments wait.
    pub fn set_fragments_held(&mut self, count: usize) {
        self.fragments_held = count;
        self.count_held();
    }

    fn count_held(&self) {
        self.counters.held.set((self.fragments_held + self.waiting.len()) as u64);
    }

    /// Carries out the verdict on a frame and counts it. Returns the final verdict.
    pub fn settle(&mut self, received: Received, verdict: Verdict, port: &mut impl Port) -> Verdict {
        let Received { link, frame } = received;
        let done = match verdict {
            Verdict::Fragment { link, mtu } => match self.send_fragmented(frame, link, mtu, port) {
                // The packet's fragments are already counted.
                Ok(verdict) => return verdict,
                Err(frame) => Err((frame, DropReason::NeedsFragmenting)),
            },
            Verdict::Transmit(out) => {
                port.transmit(out, frame).map_err(|frame| (frame, DropReason::TransmitRefused))
            }
            Verdict::PassToKernel => {
                port.pass_to_kernel(link, frame).map_err(|frame| (frame, DropReason::KernelRefused))
            }
            Verdict::Consumed | Verdict::Held => {
                port.recycle(frame);
                Ok(())
            }
            Verdict::Waiting(next_hop) => match self.wait(Received { link, frame }, next_hop) {
                // It is counted when it leaves.
                Ok(()) => return verdict,
                Err(Received { frame, .. }) => Err((frame, DropReason::NoNeighbour)),
            },
            Verdict::Drop(reason) => Err((frame, reason)),
        };
        let verdict = match done {
            Ok(()) => verdict,
            Err((frame, reason)) => {
                port.discard(Received { link, frame }, reason);
                Verdict::Drop(reason)
            }
        };
        self.count(verdict);
        verdict
    }

    fn count(&self, verdict: Verdict) {
        match verdict {
            Verdict::Transmit(link) if link.is_own() => &self.counters.passed,
            Verdict::Transmit(_) | Verdict::Fragment { .. } => &self.counters.transmitted,
            Verdict::PassToKernel => &self.counters.passed,
            Verdict::Consumed | Verdict::Held => &self.counters.consumed,
            Verdict::Waiting(_) => return,
            Verdict::Drop(reason) => self.counters.dropped(reason),
        }
        .add(1);
    }
}
