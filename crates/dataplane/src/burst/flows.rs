//! One worker's access to the connection table, with its counters, random numbers and other state.
//!
//! Each stage from the look-up on is a function in a separate file, which takes this value as an argument.

use std::sync::Arc;

use xvs_proto::{FlowKey, LinkId, Packet, Protocol};
use xvs_xdp::BURST;

use super::context::{Context, FramedPacket};
use super::deferred::Deferred;
use super::replaced::Replaced;
use crate::clock::Millis;
use crate::conn::{Complete, ConnId, Direction, Inserted, NewConnection, TableWorker};
use crate::counters::{SharedStats, Stats, StatsValues, WorkerCounters};
use crate::forward::{Ends, Identification, Outer, by_method};
use crate::general_path::tcp_originate::Answer;
use crate::new_connection::eviction::Eviction;
use crate::new_connection::limit::Defence;
use crate::offload::{Offload, Offloader};
use crate::random::Random;
use crate::snapshot::local_addresses::LocalCursor;
use crate::snapshot::{Destination, DestinationId, Encapsulation, Snapshot};
use crate::verdict::Verdict;

/// One worker's connections and its state beside the table.
pub struct Flows {
    pub(crate) worker: usize,
    pub(crate) table: TableWorker,
    pub(crate) counters: Arc<WorkerCounters>,
    /// The totals over all services.
    total: SharedStats,
    pub(crate) ids: Identification,
    pub(crate) defence: Defence,
    pub(crate) eviction: Eviction,
    pub(crate) random: Random,
    pub(crate) locals: LocalCursor,
    pub(crate) replaced: Replaced,
    pub(crate) deferred: Deferred,
    /// The director's own packets to the ends of connections, sent after this burst: resets, and the last segments of
    /// handshakes.
    pub(crate) answers: Vec<Answer>,
    /// Connections whose destination gets another SYN after this burst.
    pub(crate) unanswered_syns: Vec<ConnId>,
    /// The connections that this worker has offloaded; `None` if the port has no XDP program that forwards.
    pub(crate) offloader: Option<Offloader>,
}

impl Flows {
    /// A worker's connections. `total` counts over all services.
    pub fn new(
        worker: usize,
        table: TableWorker,
        counters: Arc<WorkerCounters>,
        total: SharedStats,
        ids: Identification,
    ) -> Self {
        // Real servers see local ports, so the random numbers are not derived from the table's key.
        let mut random = Random::new(ids.seed());
        Self {
            worker,
            eviction: Eviction::new(worker, &table),
            locals: LocalCursor::new(random.next_u64() as u32),
            random,
            table,
            counters,
            total,
            ids,
            defence: Defence::default(),
            replaced: Replaced::new(),
            deferred: Deferred::new(worker),
            answers: Vec::with_capacity(BURST),
            unanswered_syns: Vec::with_capacity(BURST),
            offloader: None,
        }
    }

    /// Lets the worker offload connections.
    pub fn set_offload(&mut self, shared: Arc<Offload>) {
        self.offloader = Some(Offloader::new(shared));
    }

    /// The worker's number.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The worker's handle of the table.
    pub fn table(&mut self) -> &mut TableWorker {
        &mut self.table
    }

    /// Leaves the table ([`TableWorker::leave`]) and the counts of destinations in a state from which another process
    /// can continue: the counts are those of the connections in the table.
    pub fn leave(&mut self) {
        self.replaced.count_out();
        self.table.leave();
    }

    /// The hash of a packet's connection key.
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        self.table.hash(flow)
    }

    /// The description of the connection of a flow.
    pub fn describe(&self, flow: &FlowKey) -> Option<Description> {
        let (id, _) = self.table.find(flow, self.table.hash(flow))?;
        let connection = self.table.connection(id);
        Some(Description {
            protocol: connection.protocol(),
            ends: Ends::of(&connection),
            mark: connection.mark(),
        })
    }

    /// The connection of a client's packet.
    pub fn find_request(&self, packet: &Packet, hash: u64) -> Option<ConnId> {
        self.table
            .find(&packet.connection_key(), hash)
            .filter(|(_, direction)| *direction == Direction::Inbound)
            .map(|(id, _)| id)
    }

    /// Whether a packet is a connection's reply to its client.
    pub(crate) fn is_reply(&self, packet: &Packet, hash: u64) -> bool {
        matches!(self.table.find(&packet.connection_key(), hash), Some((_, Direction::Outbound)))
    }

    /// Inserts a connection or template. If the table is full, evicts another one.
    pub(crate) fn insert(
        &mut self,
        new: &NewConnection,
        complete: Complete<'_>,
        cx: Context<'_>,
    ) -> Inserted {
        self.eviction.insert(&mut self.table, new, complete, &self.counters, cx)
    }

    /// Forwards a client's packet to a destination.
    #[inline]
    pub(crate) fn forward(
        &mut self,
        p: &mut FramedPacket<'_>,
        ends: &Ends,
        destination: &Destination,
        cx: Context<'_>,
    ) -> Verdict {
        if p.link == LinkId::LOOPBACK && !ends.method.masquerades() {
            // A client on the director has the virtual address, so a reply to the client would not leave the real
            // server.
            return Verdict::PassToKernel;
        }
        let outer = Outer {
            tunnel: destination.tunnel,
            pmtu_disc: cx.snapshot.settings.pmtu_disc,
            path_mtu: &destination.path_mtu,
            now: cx.now,
            flow_hash: match destination.tunnel.encapsulation {
                Encapsulation::Gue { .. } => self.table.hash(&p.packet.flow),
                Encapsulation::Ip | Encapsulation::Gre(_) => 0,
            },
            ids: &mut self.ids,
        };
        by_method(p.frame, p.link, p.packet, ends, destination.path, &cx.snapshot.egress, outer)
    }

    /// Counts an ICMP error sent to the client of a connection, as IPVS does for the director's errors that pass its
    /// hooks like replies.
    pub fn count_icmp_error(&self, id: Option<ConnId>, bytes: usize, snapshot: &Snapshot) {
        let Some(id) = id else { return };
        let connection = self.table.connection(id);
        if !connection.method().masquerades()
            && let Some(destination) = snapshot.destinations.available_for(&connection)
        {
            self.count(destination, |stats| stats.count_out(bytes));
        }
    }

    /// Counts a new connection of a destination, if the snapshot still has the destination.
    pub(crate) fn count_connection(&self, id: DestinationId, snapshot: &Snapshot) {
        snapshot
            .destinations
            .find(id)
            .inspect(|destination| self.count(destination, |stats| stats.connections.add(1)));
    }

    /// Counts a client's packet.
    #[inline]
    pub(crate) fn count_request(&self, destination: &Destination, packet: &Packet) {
        self.count(destination, |stats| stats.count_in(packet.length()));
    }

    /// Counts a packet to the client of a connection, if the destination is still configured.
    #[inline]
    pub(crate) fn count_reply(&self, destination: &Destination, packet: &Packet) {
        if destination.available {
            self.count(destination, |stats| stats.count_out(packet.length()));
        }
    }

    /// Counts a packet for the log of connections.
    #[inline]
    pub(crate) fn tally(&self, id: ConnId, direction: Direction, bytes: usize, now: Millis) {
        if let Some(log) = self.table.table().log() {
            log.tally(id, direction, 1, bytes as u64, now);
        }
    }

    /// Decrements a template's count of connections, because the counted connection is not in the table.
    pub(crate) fn release_template(&self, template: Option<ConnId>) {
        template.inspect(|template| self.table.connection(*template).drop_controlled());
    }

    /// Counts at a destination and over all services.
    #[inline]
    pub(crate) fn count(&self, destination: &Destination, count: impl Fn(&Stats)) {
        for stats in [&destination.live.stats, &self.total] {
            count(stats.of_worker(self.worker));
        }
    }

    /// Adds packets that were already counted at their destinations to the total over all services.
    pub(crate) fn count_total(&self, counted: &StatsValues) {
        self.total.of_worker(self.worker).add(counted);
    }

    /// When [`Self::expire`] is due next. `None` means not before a packet arrives.
    pub fn next_due(&self) -> Option<Millis> {
        let sweep = self.offloader.as_ref().and_then(Offloader::next_due);
        [self.table.next_timer(), self.replaced.next_due(), sweep].into_iter().flatten().min()
    }

    /// Marks the quiescent point at the end of a burst.
    pub fn quiescent(&mut self) {
        self.table.quiescent();
    }
}

/// The properties by which connections are selected.
#[derive(Debug, Clone, Copy)]
pub struct Description {
    /// The protocol.
    pub protocol: Protocol,
    /// The endpoints.
    pub ends: Ends,
    /// The firewall mark of the first packet; 0 if there is none.
    pub mark: u32,
}
