//! Transmission: carries out the verdict on a frame and counts it, and sends packets that the director originates.
//!
//! Runs once for each frame. A frame that its link or the kernel refuses becomes a drop here.

use std::sync::Arc;

use xvs_proto::LinkId;
use xvs_proto::ethernet;
use xvs_xdp::{BURST, Frame};

use super::context::Context;
use crate::counters::WorkerCounters;
use crate::egress::Unresolved;
use crate::forward::Identification;
use crate::port::{Port, Received};
use crate::slow_path::fragmentation::Fragmentation;
use crate::slow_path::icmp_originate::{IcmpError, RateLimit};
use crate::slow_path::reset::Reset;
use crate::snapshot::Snapshot;
use crate::verdict::{DropReason, Verdict};

/// The most fragments of a packet: more than the largest packet has on links with an MTU of 576 bytes.
const MAX_FRAGMENTS: usize = 128;

/// Transmission of one worker's frames, with its counters.
pub struct Transmitter {
    counters: Arc<WorkerCounters>,
    limit: RateLimit,
    unresolved: Arc<Unresolved>,
    ids: Identification,
    verdicts: Vec<Verdict>,
    /// Fragments of the packet that is being sent.
    fragments: Vec<Frame>,
}

impl Transmitter {
    /// Transmission that counts in `counters`, whose only writer is the caller's thread.
    pub fn new(counters: Arc<WorkerCounters>, unresolved: Arc<Unresolved>, ids: Identification) -> Self {
        let (verdicts, fragments) = (Vec::with_capacity(BURST), Vec::with_capacity(MAX_FRAGMENTS));
        Self { unresolved, counters, limit: RateLimit::default(), ids, verdicts, fragments }
    }

    /// Begins a burst with so many received frames and so many copies from other workers. The verdicts of the last
    /// burst are discarded.
    pub fn begin(&mut self, received: usize, copies: usize) {
        self.verdicts.clear();
        self.counters.received.add(received as u64);
        self.counters.originated.add(copies as u64);
    }

    /// The counters of frames.
    pub fn counters(&self) -> &WorkerCounters {
        &self.counters
    }

    /// The verdicts on the last burst, in its order.
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// Sends an ICMP error about a dropped packet, if the rate limit allows it. Returns the bytes of the message.
    pub fn send_icmp_error(
        &mut self,
        error: &IcmpError<'_>,
        at: Context<'_>,
        port: &mut impl Port,
    ) -> Option<usize> {
        let rate = at.snapshot.settings.icmp_msgs_per_sec;
        let allowed = !error.is_limited() || self.limit.allows(at.now, rate);
        let made =
            if allowed { error.emit(at.snapshot, port, &mut self.ids, &self.unresolved) } else { None };
        self.originate(made, port)
    }

    /// Sends a reset to one end of a connection.
    pub fn reset(&mut self, reset: &Reset, snapshot: &Snapshot, port: &mut impl Port) {
        let made = reset.emit(snapshot, port, &self.unresolved);
        if self.originate(made, port).is_some() {
            self.counters.resets.add(1);
        }
    }

    /// Sends a packet that the director has made, if it could be made. Returns its bytes.
    fn originate(&mut self, made: Option<(LinkId, Frame)>, port: &mut impl Port) -> Option<usize> {
        let Some((link, frame)) = made else {
            self.counters.answers_withheld.add(1);
            return None;
        };
        let bytes = frame.len() - ethernet::HEADER_LEN;
        self.send_made(link, frame, port).then_some(bytes)
    }

    /// Sends a frame that the director has made. Returns whether the link accepted it.
    pub(crate) fn send_made(&mut self, link: LinkId, frame: Frame, port: &mut impl Port) -> bool {
        self.counters.originated.add(1);
        self.send(link, frame, port)
    }

    /// Carries out the verdict on a frame of the burst and records it.
    pub fn carry_out(&mut self, received: Received, verdict: Verdict, port: &mut impl Port) {
        let verdict = self.settle(received, verdict, port);
        self.record(verdict, port);
    }

    /// Records the verdict on a frame of the burst that was already disposed of.
    pub fn record(&mut self, verdict: Verdict, port: &mut impl Port) {
        self.verdicts.push(verdict);
        port.settled(verdict);
    }

    /// Sends a packet in fragments of at most `limit` bytes, each in its own frame: all or none.
    pub fn send_copies(
        &mut self,
        packet: &[u8],
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

    /// Sends the packet of a frame in fragments of at most `mtu` bytes: all, or none and the frame is returned.
    fn send_fragmented(
        &mut self,
        mut frame: Frame,
        link: LinkId,
        mtu: u32,
        port: &mut impl Port,
    ) -> Result<Verdict, Frame> {
        let Some(plan) = Fragmentation::of(frame.bytes(), mtu as usize, &mut self.ids) else {
            return Err(frame);
        };
        if !self.copy_fragments(plan, frame.bytes(), 1, port) {
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
        packet: &[u8],
        from: usize,
        port: &mut impl Port,
    ) -> bool {
        let count = plan.count();
        for number in from..count {
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

    /// Carries out the verdict on a frame and counts it. Returns the final verdict.
    pub fn settle(&mut self, received: Received, verdict: Verdict, port: &mut impl Port) -> Verdict {
        let Received { link, frame } = received;
        let done = match verdict {
            Verdict::Fragment { link, mtu } => match self.send_fragmented(frame, link, mtu, port) {
                // Its fragments are counted already.
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
            Verdict::Transmit(_) | Verdict::Fragment { .. } => &self.counters.transmitted,
            Verdict::PassToKernel => &self.counters.passed,
            Verdict::Consumed | Verdict::Held => &self.counters.consumed,
            Verdict::Drop(reason) => self.counters.dropped(reason),
        }
        .add(1);
    }
}
