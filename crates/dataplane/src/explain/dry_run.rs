//! A dry run: one packet passes through a separate pipeline, whose state can then be inspected.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use xvs_proto::{FlowKey, HashSecret, LinkId, Packet, icmp, quoted};
use xvs_xdp::FrameLayout;

use super::{LAYOUT, Live, SHORTEST_FRAGMENT};
use crate::burst::Context;
use crate::burst::classify::{Class, classify};
use crate::burst::flows::Flows;
use crate::burst::transmit::Transmitter;
use crate::conn::{ConnId, Copied, Direction, Sought, Table, TableConfig};
use crate::counters::{SharedStats, WorkerCounters};
use crate::egress::{Egress, Unresolved};
use crate::forward::Identification;
use crate::general_path::reassembly::Reassembly;
use crate::general_path::reassembly::handoff::Handoff;
use crate::pipeline::Pipeline;
use crate::port::memory::MemoryPort;
use crate::port::vlan_and_bond::Tagged;
use crate::port::{Port, Received};
use crate::shm::Memory;
use crate::snapshot::Snapshot;
use crate::snapshot::copy::Decision;
use crate::verdict::Verdict;

/// More entries than one packet finds or creates.
const TABLE: TableConfig = TableConfig { capacity: 1024, workers: 1, memory: Memory::SmallPages };

/// The state of the pipeline after a packet.
pub(super) struct DryRun {
    pub(super) pipeline: Pipeline,
    pub(super) port: MemoryPort,
    pub(super) snapshot: Snapshot,
    pub(super) table: Arc<Table>,
    decisions: Arc<Mutex<Vec<Decision>>>,
    /// The connections before the packet, by id and generation.
    before: Vec<(ConnId, u32)>,
    /// The link on which the packet was received, after VLAN tags were removed.
    pub(super) link: LinkId,
    pub(super) class: Class,
    /// The frame to which `class` refers.
    pub(super) bytes: Vec<u8>,
    pub(super) met: Option<(ConnId, Copied, Direction)>,
    pub(super) verdict: Verdict,
}

impl DryRun {
    /// Runs a frame through a pipeline with these connections.
    pub(super) fn run(live: &Live<'_>, known: &[Copied], link: LinkId, frame: &[u8]) -> io::Result<Self> {
        let (mut snapshot, decisions) = live.snapshot.separate_copy();
        // Whether `drop_packet` drops this packet depends on the worker.
        snapshot.settings.drop_packet_rate = 0;
        let secret = *live.reader().table().secret();
        let table = Table::keyed(TABLE, secret)?;
        let mut handle =
            table.handle(0).ok_or_else(|| io::Error::other("a new table has its handles free"))?;
        for copied in known {
            copied.enter(&mut handle, &snapshot.call_ids);
        }
        let counters = Arc::new(WorkerCounters::default());
        // An explanation may show identifications, so they must not depend on the table's secret.
        let [ids, own_ids] = [0, 1].map(|number| Identification::numbered(HashSecret([0; 3]), number));
        handle.note_misses();
        let fragments_at_most = frame.len() as u32 / SHORTEST_FRAGMENT;
        let layout = FrameLayout { frames: LAYOUT.frames + fragments_at_most, ..LAYOUT };
        let mut port = MemoryPort::new(layout, links(&snapshot.egress));
        let (inner, class, bytes) = look(&mut port, link, frame, &snapshot)?;
        let mut run = Self {
            pipeline: Pipeline::new(
                Flows::new(0, handle, counters.clone(), SharedStats::new(1), ids),
                Transmitter::new(counters, Arc::new(Unresolved::new(1)), own_ids),
                Reassembly::new(0, Arc::new(Handoff::new(1)), secret),
            ),
            port,
            before: Vec::new(),
            met: None,
            link: inner,
            class,
            bytes,
            verdict: Verdict::Held,
            snapshot,
            table,
            decisions,
        };
        run.before = run.all().into_iter().map(|(id, generation, _)| (id, generation)).collect();
        run.met = run.meet();
        inject(&mut run.port, link, frame)?;
        run.pipeline.run(Context::new(&run.snapshot, live.now), &mut run.port);
        run.verdict = run.pipeline.transmitter.verdicts().first().copied().unwrap_or(Verdict::Held);
        Ok(run)
    }

    /// The packet that an ICMP error quotes.
    pub(super) fn quote(&self) -> Option<Packet> {
        let Class::Error(packet) = &self.class else { return None };
        quoted(&self.bytes, packet.transport + icmp::HEADER_LEN..packet.end, packet.family())
    }

    /// The key of the look-up for the packet's connection.
    pub(super) fn key(&self) -> Option<FlowKey> {
        match &self.class {
            Class::Flow(packet) => Some(packet.connection_key()),
            Class::Error(_) => self.quote().map(|quote| quote.connection_key().reversed()),
            Class::Fragment(_) | Class::Decided(_) => None,
        }
    }

    /// The look-ups that found nothing here. The first local endpoint that is tried is added: the pipeline inserts it
    /// without a look-up, and it may be in use in the live table.
    pub(super) fn missed(&mut self) -> Vec<Sought> {
        let mut missed = self.pipeline.flows.table().misses();
        for (id, generation, copied) in self.all() {
            if !self.was_there(id, generation) {
                missed.extend(copied.local_replies().map(Sought::Connection));
            }
        }
        missed
    }

    /// Whether this connection existed before the packet.
    pub(super) fn was_there(&self, id: ConnId, generation: u32) -> bool {
        self.before.contains(&(id, generation))
    }

    /// All connections and templates, with id and generation.
    pub(super) fn all(&mut self) -> Vec<(ConnId, u32, Copied)> {
        let mut places = Vec::new();
        if let Some(mut reader) = self.table.reader() {
            reader.for_each(0..u32::MAX, |view| places.push((view.id(), view.generation())));
        }
        let table = self.pipeline.flows.table();
        let call_ids = &self.snapshot.call_ids;
        places.into_iter().map(|(id, generation)| (id, generation, table.copied(id, call_ids))).collect()
    }

    /// The current connection of a key, and the key's direction.
    pub(super) fn find(&mut self, key: &FlowKey) -> Option<(ConnId, Copied, Direction)> {
        let table = self.pipeline.flows.table();
        let (id, direction) = table.find(key, table.hash(key))?;
        Some((id, table.copied(id, &self.snapshot.call_ids), direction))
    }

    /// The packet's connection before the run. For an error about a tunnel's packet the key of the inner packet would
    /// find it; it is the only connection in the table.
    fn meet(&mut self) -> Option<(ConnId, Copied, Direction)> {
        let key = self.key()?;
        self.find(&key).or_else(|| {
            let Class::Error(_) = self.class else { return None };
            let (id, _, copied) = self.all().into_iter().find(|(.., copied)| !copied.is_template())?;
            Some((id, copied, Direction::Inbound))
        })
    }

    /// The scheduler's last decision.
    pub(super) fn decision(&self) -> Option<Decision> {
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }
}

/// The link, class and bytes of a frame after the first stages.
fn look(
    port: &mut MemoryPort,
    link: LinkId,
    frame: &[u8],
    snapshot: &Snapshot,
) -> io::Result<(LinkId, Class, Vec<u8>)> {
    inject(port, link, frame)?;
    let mut burst = Vec::new();
    let mut tagged = Tagged::new(port, &snapshot.egress);
    tagged.receive(&mut burst);
    let Some(Received { link, mut frame }) = burst.pop() else { return Err(no_frame()) };
    let class = classify(&mut frame, link, snapshot, &WorkerCounters::default());
    let bytes = frame.bytes().to_vec();
    tagged.recycle(frame);
    Ok((link, class, bytes))
}

fn inject(port: &mut MemoryPort, link: LinkId, frame: &[u8]) -> io::Result<()> {
    if port.inject(link, frame) { Ok(()) } else { Err(no_frame()) }
}

fn no_frame() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the frame does not fit")
}

/// One more than the highest link id.
fn links(egress: &Egress) -> u16 {
    egress.links().map(|(id, _)| id.0.saturating_add(1)).max().unwrap_or(0)
}
