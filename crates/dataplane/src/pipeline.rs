//! The stages that a burst of frames goes through, in order. No other file knows this order.
//!
//! Runs on a worker for every burst. Allocates nothing, waits for nothing, and leaves each frame in exactly one
//! place; each stage is a loop over the burst, so that the memory which the next stage needs is on its way.

use crate::classify::{Class, classify};
use crate::clock::Millis;
use crate::conn::Timers;
use crate::counters::WorkerCounters;
use crate::flow::Flows;
use crate::outcome::Outcome;
use crate::port::{BURST, Port, Received};
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// A worker's stages with what they remember from burst to burst.
pub struct Pipeline {
    flows: Flows,
    outcome: Outcome,
    burst: Vec<Received>,
    steps: Vec<Step>,
}

/// What is known of one frame of the burst so far.
struct Step {
    class: Class,
    hash: u64,
    verdict: Verdict,
}

impl Pipeline {
    /// Stages of one worker.
    pub fn new(flows: Flows, outcome: Outcome) -> Self {
        Self { flows, outcome, burst: Vec::with_capacity(BURST), steps: Vec::with_capacity(BURST) }
    }

    /// Takes a burst from the port through all stages. Returns how many frames it was. [`Self::quiescent`] is due when
    /// the snapshot has been left.
    pub fn run(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) -> usize {
        port.receive(&mut self.burst);
        self.classify(snapshot);
        self.prefetch();
        self.decide(snapshot, now);
        let frames = self.carry_out(snapshot, port, now);
        port.flush();
        frames
    }

    /// What each frame is, and where the table would have its connection.
    fn classify(&mut self, snapshot: &Snapshot) {
        self.steps.clear();
        for Received { link, frame } in &self.burst {
            let class = classify(frame.bytes(), *link, snapshot);
            let hash = match class {
                Class::Flow(packet) => self.flows.hash(&packet.flow),
                Class::Decided(_) => 0,
            };
            self.steps.push(Step { class, hash, verdict: Verdict::PassToKernel });
        }
    }

    /// Sends for the buckets, then for the entries that they point to.
    fn prefetch(&self) {
        let flows = || self.steps.iter().filter(|step| matches!(step.class, Class::Flow(_)));
        flows().for_each(|step| self.flows.prefetch_buckets(step.hash));
        flows().for_each(|step| self.flows.prefetch_entries(step.hash));
    }

    /// Finds or makes each packet's connection and edits the frame on its way.
    fn decide(&mut self, snapshot: &Snapshot, now: Millis) {
        for (received, step) in self.burst.iter_mut().zip(&mut self.steps) {
            step.verdict = match &step.class {
                Class::Decided(verdict) => *verdict,
                Class::Flow(packet) => self.flows.take(received, packet, step.hash, snapshot, now),
            };
        }
    }

    /// Hands every frame to where its verdict says, and counts it.
    fn carry_out(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) -> usize {
        let frames = self.burst.len();
        self.outcome.begin(frames);
        for (received, Step { class, hash, verdict }) in self.burst.drain(..).zip(&self.steps) {
            if let Class::Flow(packet) = class
                && let Some(bytes) = self.outcome.answer(&received, packet, *verdict, snapshot, port, now)
            {
                self.flows.count_answer(packet, *hash, bytes, snapshot);
            }
            self.outcome.carry_out(received, *verdict, port);
        }
        frames
    }

    /// Says that nothing of the last burst is held any more, its snapshot included.
    pub fn quiescent(&mut self) {
        self.flows.quiescent();
    }

    /// Ends the connections whose time has come; to be done first in a burst.
    pub fn expire(&mut self, snapshot: &Snapshot, now: Millis) -> Timers {
        self.flows.expire(snapshot, now)
    }

    /// The packets' connections.
    pub fn flows(&mut self) -> &mut Flows {
        &mut self.flows
    }

    /// What the worker counts.
    pub fn counters(&self) -> &WorkerCounters {
        self.outcome.counters()
    }

    /// The verdicts on the last burst, in its order.
    pub fn verdicts(&self) -> &[Verdict] {
        self.outcome.verdicts()
    }
}
