//! A worker's pipeline: the state of its stages between bursts, and the port that a burst passes through.
//!
//! Not here: the stages and their order (`pipeline.rs`).

use crate::burst::flows::Flows;
use crate::burst::transmit::Transmitter;
use crate::burst::{Burst, Context};
use crate::capture::watched::Watched;
use crate::clock::Millis;
use crate::port::Port;
use crate::port::tagged::Tagged;
use crate::slow_path::reassembly::Reassembly;
use crate::snapshot::Snapshot;

/// A worker's stages, with their state between bursts.
pub struct Pipeline {
    /// The connections.
    pub flows: Flows,
    /// Transmission and the counters of frames.
    pub transmitter: Transmitter,
    /// Fragments of incomplete datagrams.
    pub reassembly: Reassembly,
    pub(super) burst: Burst,
}

impl Pipeline {
    /// Stages of one worker.
    pub fn new(flows: Flows, transmitter: Transmitter, reassembly: Reassembly) -> Self {
        Self { flows, transmitter, reassembly, burst: Burst::new() }
    }

    /// Whether packets of steady connections go the short way, as they do at first. The results are the same.
    pub fn set_short_way(&mut self, allowed: bool) {
        self.burst.short_way = allowed;
    }

    /// The number of frames of the last burst that went the general way.
    pub fn general_way(&self) -> usize {
        self.burst.general()
    }

    /// Receives a burst and runs it through all stages. Returns its number of frames. [`Flows::quiescent`] is due when
    /// the snapshot is no longer used.
    pub fn run(&mut self, snapshot: &Snapshot, port: &mut impl Port, now: Millis) -> usize {
        let (at, mut port) = (Context { snapshot, now }, Tagged::new(port, &snapshot.egress));
        if snapshot.captures.is_empty() {
            return super::stages(self, at, &mut port);
        }
        let worker = self.flows.worker();
        super::stages(self, at, &mut Watched::new(&mut port, snapshot, worker))
    }
}
