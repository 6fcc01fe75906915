//! A worker's pipeline: its state between bursts, and every stage through which a burst passes, in order.
//!
//! A worker runs it for every burst. It allocates nothing, waits for nothing, and leaves each frame in one state.
//! `Dispatch` handles rarer cases: fragments, ICMP errors, packets above the path MTU, probes of health checks, and
//! SYNs that the SYN proxy repeats. `pipeline.rs` runs the stages of a packet until its verdict.

use super::{from_proxy, process};
use crate::burst::dispatch::Dispatch;
use crate::burst::flows::Flows;
use crate::burst::transmit::Transmitter;
use crate::burst::{Burst, Context, Forwarding, FramedPacket};
use crate::capture::watched::{Watch, Watched};
use crate::general_path::reassembly::{Datagram, Reassembly};
use crate::port::Port;
use crate::port::vlan_and_bond::Tagged;

/// A worker's stages, with their state between bursts.
pub struct Pipeline {
    /// The connections.
    pub flows: Flows,
    /// Transmission and the counters of frames.
    pub transmitter: Transmitter,
    /// Fragments of incomplete datagrams.
    pub reassembly: Reassembly,
    burst: Burst,
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

    /// The number of frames in the last burst that took the general path.
    pub fn general_path(&self) -> usize {
        self.burst.general()
    }

    /// Receives a burst and runs it through all stages. Returns its number of frames. [`Flows::quiescent`] is due when
    /// the snapshot is no longer used.
    pub fn run(&mut self, cx: Context<'_>, port: &mut impl Port) -> usize {
        let snapshot = cx.snapshot;
        let mut port = Tagged::new(port, &snapshot.egress);
        if snapshot.captures.is_empty() {
            return stages(self, cx, &mut port);
        }
        let worker = self.flows.worker();
        stages(self, cx, &mut Watched::new(&mut port, snapshot, worker))
    }
}

fn stages(pipeline: &mut Pipeline, cx: Context<'_>, port: &mut impl Watch) -> usize {
    let Pipeline { flows, transmitter, reassembly, burst } = pipeline;
    transmitter.begin(cx, port);
    let copies = burst.receive(reassembly, port);
    port.arrived(burst.frames(), copies, flows);
    let frames = burst.frames().len();
    transmitter.count_received(frames - copies, copies);
    burst.read(flows, cx.snapshot);
    burst.screen(flows, cx.snapshot);
    burst.seek(flows);
    burst.compare(flows, cx.snapshot);
    burst.prefetch_counters(flows, cx.snapshot);
    let mut forwarding = Forwarding::begin(flows, cx);
    while let Some(frame) = burst.forward_steady(&mut forwarding, flows) {
        if let Some(mut undecided) = burst.undecided(frame, flows, reassembly, cx) {
            let verdict = process(flows, &mut undecided.packet(), cx);
            undecided.decide(verdict, reassembly);
        }
    }
    forwarding.end(flows);
    let mut dispatch = Dispatch { reassembly, flows, transmitter, cx };
    dispatch.drop_overdue(port);
    for (received, decided) in burst.drain() {
        if let Some(datagram) = dispatch.frame(received, decided, port) {
            process_datagram(&mut dispatch, datagram, port);
        }
    }
    while let Some((id, mut frame, syn)) = dispatch.next_unanswered_syn(port) {
        let virtual_address = dispatch.flows.table.connection(id).virtual_endpoint().addr;
        let link = cx.snapshot.egress.link_in(cx.snapshot.egress.vrf_of_address(virtual_address));
        let verdict = from_proxy(dispatch.flows, &mut syn.packet(&mut frame, link), id, cx);
        dispatch.transmitter.carry_out_made(frame, verdict, port);
    }
    dispatch.answer(port);
    dispatch.probe(port);
    dispatch.flows.deferred.end(&cx.snapshot.destinations);
    port.flush();
    port.ended(flows);
    frames
}

/// Processes a datagram whose fragments have arrived.
// Not inlined, so that other packets need little stack.
#[inline(never)]
fn process_datagram(dispatch: &mut Dispatch<'_>, mut datagram: Datagram, port: &mut impl Port) {
    let verdict = match datagram.read() {
        Ok(packet) => {
            let hash = dispatch.flows.hash(&packet.connection_key());
            let Datagram { frame, link, .. } = &mut datagram;
            let mut whole = FramedPacket { frame, link: *link, packet: &packet, hash, is_reassembled: true };
            let verdict = process(dispatch.flows, &mut whole, dispatch.cx);
            dispatch.datagram(&datagram, &packet, hash, verdict, port)
        }
        Err(verdict) => verdict,
    };
    dispatch.end_datagram(datagram, verdict, port);
}
