//! The frames of a burst, each with the results of the stages so far.
//!
//! Each stage is a loop over the burst, so that the memory for the next stage is fetched meanwhile. Nothing allocates
//! after [`Burst::new`].

use xvs_xdp::BURST;

use super::classify::{Class, classify};
use super::flows::Flows;
use super::framed_packet::FramedPacket;
use crate::port::{Port, Received};
use crate::slow_path::reassembly::Reassembly;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// The frames of the present burst.
pub struct Burst {
    frames: Vec<Received>,
    steps: Vec<Step>,
}

/// The results for one frame so far.
pub struct Step {
    /// Its class.
    pub class: Class,
    /// The hash of its connection's key; 0 where the class has none.
    pub hash: u64,
    /// The verdict. It is [`Verdict::Held`] for frames that are processed after the rest of the burst is decided.
    pub verdict: Verdict,
}

impl Burst {
    /// Room for one burst.
    pub fn new() -> Self {
        Self { frames: Vec::with_capacity(BURST), steps: Vec::with_capacity(BURST) }
    }

    /// Receives frames that other workers have handed over, and then frames from the port. Returns the number of copies
    /// from other workers, which come first.
    pub fn receive(&mut self, reassembly: &mut Reassembly, port: &mut impl Port) -> usize {
        let copies = reassembly.receive(&mut self.frames, port);
        port.receive(&mut self.frames);
        copies
    }

    /// The frames in the order in which they were received.
    pub fn frames(&self) -> &[Received] {
        &self.frames
    }

    /// Classifies each frame and computes the hash of its connection's key.
    pub fn classify(&mut self, flows: &Flows, snapshot: &Snapshot) {
        self.steps.clear();
        for Received { link, frame } in &mut self.frames {
            let class = classify(frame, *link, snapshot, &flows.counters);
            let (hash, verdict) = match class {
                Class::Flow(packet) => (flows.hash(&packet.connection_key()), Verdict::PassToKernel),
                Class::Decided(verdict) => (0, verdict),
                Class::Fragment(_) | Class::Error(_) => (0, Verdict::Held),
            };
            self.steps.push(Step { class, hash, verdict });
        }
    }

    /// Prefetches the buckets of all packets, and then the entries that these point to.
    pub fn prefetch(&self, flows: &Flows) {
        let packets = || self.steps.iter().filter(|step| matches!(step.class, Class::Flow(_)));
        packets().for_each(|step| flows.prefetch_buckets(step.hash));
        packets().for_each(|step| flows.prefetch_entries(step.hash));
    }

    /// Runs `decide` for each packet of a flow and stores its verdict.
    pub(crate) fn decide(&mut self, mut decide: impl FnMut(FramedPacket<'_>) -> Verdict) {
        for (Received { link, frame }, step) in self.frames.iter_mut().zip(&mut self.steps) {
            if let Class::Flow(packet) = &step.class {
                step.verdict = decide(FramedPacket { frame, link: *link, packet, hash: step.hash });
            }
        }
    }

    /// Removes the frames, in their order.
    pub fn drain(&mut self) -> impl Iterator<Item = (Received, &Step)> {
        self.frames.drain(..).zip(&self.steps)
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}
