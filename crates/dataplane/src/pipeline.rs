//! The stages that a burst of frames goes through, in order. No other file knows this order.
//!
//! Runs on a worker for every burst. Allocates nothing, waits for nothing, and leaves each frame in exactly one
//! place; each stage is a loop over the burst, so that the memory which the next stage needs is on its way.

use xvs_xdp::BURST;

use crate::burst::classify::{Class, classify};
use crate::burst::dispatch::{self, Ending};
use crate::burst::flows::Flows;
use crate::burst::transmit::Outcome;
use crate::capture::watched::{Watch, Watched};
use crate::clock::Millis;
use crate::counters::WorkerCounters;
use crate::port::tagged::Tagged;
use crate::port::{Port, Received};
use crate::slow_path::reassembly::Fragments;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// A worker's stages with what they remember from burst to burst.
pub struct Pipeline {
    flows: Flows,
    outcome: Outcome,
    fragments: Fragments,
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
    pub fn new(flows: Flows, outcome: Outcome, fragments: Fragments) -> Self {
        let (burst, steps) = (Vec::with_capacity(BURST), Vec::with_capacity(BURST));
        Self { flows, outcome, fragments, burst, steps }
    }

    /// Takes a burst from the port through all stages. Returns how many frames it was. [`Flows::quiescent`] is due when
    /// the snapshot has been left.
    pub fn run(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) -> usize {
        let mut port = Tagged::new(port, &snapshot.egress);
        if snapshot.captures.is_empty() {
            return self.stages(snapshot, &mut port, now);
        }
        let worker = self.flows.worker();
        self.stages(snapshot, &mut Watched::new(&mut port, snapshot, worker), now)
    }

    /// The same by a port that somebody watches, or nobody.
    fn stages(&mut self, snapshot: &Snapshot, port: &mut impl Watch, now: Millis) -> usize {
        let copies = self.fragments.receive(&mut self.burst, port);
        port.receive(&mut self.burst);
        port.arrived(&self.burst, copies, &self.flows);
        let frames = self.burst.len();
        self.outcome.begin(frames - copies, copies);
        self.classify(snapshot);
        self.prefetch();
        self.decide(snapshot, now);
        self.carry_out(snapshot, port, now);
        port.flush();
        port.ended(&self.flows);
        frames
    }

    /// What each frame is, and where the table would have its connection.
    fn classify(&mut self, snapshot: &Snapshot) {
        self.steps.clear();
        for Received { link, frame } in &mut self.burst {
            let class = classify(frame, *link, snapshot);
            let hash = match class {
                Class::Flow(packet) => self.flows.hash(&packet.connection_key()),
                Class::Fragment(_) | Class::Error(_) | Class::Decided(_) => 0,
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
        for (Received { link, frame }, step) in self.burst.iter_mut().zip(&mut self.steps) {
            step.verdict = match &step.class {
                Class::Decided(verdict) => *verdict,
                // Rare enough to be looked at when the rest of the burst is through.
                Class::Fragment(_) | Class::Error(_) => Verdict::Held,
                Class::Flow(packet) => self.flows.take(frame, *link, packet, step.hash, snapshot, now),
            };
        }
    }

    /// Hands every frame to where its verdict says, and counts it; fragments to their datagrams, errors to theirs.
    fn carry_out(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) {
        let Self { flows, outcome, fragments, burst, steps } = self;
        let mut ending = Ending { fragments, flows, outcome, snapshot, now };
        ending.give_up(port);
        for (received, Step { class, hash, verdict }) in burst.drain(..).zip(steps) {
            match class {
                Class::Decided(_) => ending.outcome.carry_out(received, *verdict, port),
                Class::Flow(packet) => ending.packet(received, packet, *hash, *verdict, port),
                Class::Fragment(packet) => ending.fragment(received, packet, port),
                Class::Error(packet) => ending.error(received, packet, port),
            }
        }
        ending.reset(port);
    }

    /// When there is something to do next though no frame comes; `None`: not before.
    pub fn next_due(&self, now: Millis) -> Option<Millis> {
        self.flows.next_due().into_iter().chain(self.fragments.next_due(now)).min()
    }

    /// Drops what waits for others, for a worker that ends.
    pub fn abandon(&mut self, port: &mut impl Port) {
        dispatch::abandon(&mut self.fragments, &mut self.outcome, port);
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
