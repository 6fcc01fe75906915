//! A worker's pipeline: the state of its stages between bursts, and the port that a burst passes through.
//!
//! Not here: the stages and their order (`pipeline.rs`).

use crate::burst::flows::Flows;
use crate::burst::transmit::Transmitter;
use crate::burst::{Burst, Context};
use crate::capture::watched::Watched;
use crate::clock::Millis;
use crate::general_path::reassembly::Reassembly;
use crate::port::Port;
use crate::port::vlan_and_bond::Tagged;
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

    /// Whether packets of steady connections take the fast path; by default they do. The results are the same.
    pub fn set_fast_path(&mut self, allowed: bool) {
        self.burst.fast_path = allowed;
    }

    /// The number of frames of the last burst that took the general path.
    pub fn general_path(&self) -> usize {
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
