//! The frames of a burst, each with what is known of it.
//!
//! Each stage is a loop over the burst, so that the memory which the next stage needs is being fetched meanwhile. Nothing
//! allocates after [`Burst::new`].

use xvs_xdp::BURST;

use super::classify::{Class, classify};
use super::flows::Flows;
use super::framed_packet::FramedPacket;
use crate::port::{Port, Received};
use crate::slow_path::reassembly::Reassembly;
use crate::snapshot::Snapshot;
use crate::verdict::Verdict;

/// The frames in hand.
pub struct Burst {
    frames: Vec<Received>,
    steps: Vec<Step>,
}

/// What is known of one frame so far.
pub struct Step {
    /// What it is.
    pub class: Class,
    /// The hash of its connection's key; 0 where the class has none.
    pub hash: u64,
    /// What becomes of it; [`Verdict::Held`] for what is looked at when the rest of the burst is decided.
    pub verdict: Verdict,
}

impl Burst {
    /// Room for one burst.
    pub fn new() -> Self {
        Self { frames: Vec::with_capacity(BURST), steps: Vec::with_capacity(BURST) }
    }

    /// Takes in what other workers have handed over, and then what has come to this one's port. Returns how many are
    /// copies from other workers: they come first.
    pub fn receive(&mut self, reassembly: &mut Reassembly, port: &mut impl Port) -> usize {
        let copies = reassembly.receive(&mut self.frames, port);
        port.receive(&mut self.frames);
        copies
    }

    /// The frames in the order in which they came.
    pub fn frames(&self) -> &[Received] {
        &self.frames
    }

    /// What each frame is, and where the table would have its connection.
    pub fn classify(&mut self, flows: &Flows, snapshot: &Snapshot) {
        self.steps.clear();
        for Received { link, frame } in &mut self.frames {
            let class = classify(frame, *link, snapshot);
            let (hash, verdict) = match class {
                Class::Flow(packet) => (flows.hash(&packet.connection_key()), Verdict::PassToKernel),
                Class::Decided(verdict) => (0, verdict),
                Class::Fragment(_) | Class::Error(_) => (0, Verdict::Held),
            };
            self.steps.push(Step { class, hash, verdict });
        }
    }

    /// Fetches the buckets of all packets, and then the entries that they point to.
    pub fn prefetch(&self, flows: &Flows) {
        let packets = || self.steps.iter().filter(|step| matches!(step.class, Class::Flow(_)));
        packets().for_each(|step| flows.prefetch_buckets(step.hash));
        packets().for_each(|step| flows.prefetch_entries(step.hash));
    }

    /// Has each packet of a flow decided.
    pub(crate) fn decide(&mut self, mut decide: impl FnMut(FramedPacket<'_>) -> Verdict) {
        for (Received { link, frame }, step) in self.frames.iter_mut().zip(&mut self.steps) {
            if let Class::Flow(packet) = &step.class {
                step.verdict = decide(FramedPacket { frame, link: *link, packet, hash: step.hash });
            }
        }
    }

    /// Hands the frames out, in their order.
    pub fn drain(&mut self) -> impl Iterator<Item = (Received, &Step)> {
        self.frames.drain(..).zip(&self.steps)
    }
}

impl Default for Burst {
    fn default() -> Self {
        Self::new()
    }
}
