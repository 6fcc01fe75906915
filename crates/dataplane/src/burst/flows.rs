//! A packet and its connection: found or made, counted, its state advanced, its deadline moved, then forwarded.
//!
//! Runs once per packet that may belong to a service. Follows IPVS's order: a client's packet is counted and moves
//! its connection's state before it is known whether it can be sent; a reply only if it can. Cost: one line of the
//! index for the look-up, one for the connection, one for its destination. Not here: which packets begin a
//! connection (`schedule.rs`).

use std::sync::Arc;
use std::time::Duration;

use xvs_proto::{Family, FlowKey, Packet, Protocol};
use xvs_sched::ForwardingMethod;
use xvs_xdp::{BURST, Frame, LinkId};

use crate::clock::Millis;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{ConnId, Connection, Direction, Flags, Removal, TIMER_TICK, TableWorker, Timers};
use crate::counters::{Stats, WorkerCounters};
use crate::egress::{Path, Unresolved};
use crate::forward::{self, Ends, Identification, Outer};
use crate::new_connection::eviction::{Pressure, count_out};
use crate::new_connection::persistence::Templates;
use crate::new_connection::schedule::{
    self, Chosen, Defence, choose, is_first, is_ftp_data, is_reset, service,
};
use crate::random::Dice;
use crate::slow_path::bypass::may_bypass;
use crate::slow_path::reset::Reset;
use crate::slow_path::{client_address, mss};
use crate::snapshot::local_addresses::LocalCursor;
use crate::snapshot::{
    Activity, ConnReuse, Destination, DestinationId, DestinationLive, Encapsulation, Service, ServiceLive,
    Settings, Snapshot,
};
use crate::verdict::{DropReason, Verdict};

/// What a connection is remembered for before its first packet was judged.
pub(crate) const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a destination carries a connection that gave way: until the next of these, as the kernel's clock ticks.
const LEAVING_TICK: Duration = Duration::from_millis(10);
/// How many such connections a worker remembers; more of them are taken out of the count at once.
const LEAVING: usize = 256;
/// How much longer a template lives while it controls connections, each time that its own time is over.
const CONTROLLING_SECONDS: u32 = 60;

/// One worker's way to the connections.
pub struct Flows {
    pub(crate) worker: usize,
    pub(crate) table: TableWorker,
    pub(crate) counters: Arc<WorkerCounters>,
    pub(crate) total: Arc<ServiceLive>,
    pub(crate) unresolved: Arc<Unresolved>,
    pub(crate) ids: Identification,
    pub(crate) defence: Defence,
    pub(crate) pressure: Pressure,
    pub(crate) dice: Dice,
    pub(crate) locals: LocalCursor,
    /// Connections that gave way to new ones and are still counted, and until when.
    pub(crate) leaving: Vec<(Arc<DestinationLive>, Activity)>,
    pub(crate) leave_at: Millis,
    /// What senders of packets of the burst are to get.
    pub(crate) resets: Vec<Reset>,
}

impl Flows {
    /// The connections as this worker reaches them. `total` counts over all services; next hops that packets were
    /// dropped for go to `unresolved`.
    pub fn new(
        worker: usize,
        table: TableWorker,
        counters: Arc<WorkerCounters>,
        total: Arc<ServiceLive>,
        unresolved: Arc<Unresolved>,
        ids: Identification,
    ) -> Self {
        // Real servers see local ports: nothing of what keys the table is in them.
        let mut dice = Dice::new(ids.seed());
        Self {
            worker,
            pressure: Pressure::new(worker, &table),
            locals: LocalCursor::new(dice.draw() as u32),
            dice,
            table,
            counters,
            total,
            unresolved,
            ids,
            defence: Defence::default(),
            leaving: Vec::with_capacity(LEAVING),
            leave_at: Millis(0),
            resets: Vec::with_capacity(BURST),
        }
    }

    /// The worker's number.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The worker's seat at the table.
    pub fn table(&mut self) -> &mut TableWorker {
        &mut self.table
    }

    /// The hash by which a packet's connection is found.
    pub fn hash(&self, flow: &FlowKey) -> u64 {
        self.table.hash(flow)
    }

    /// Brings the buckets for a hash into the cache.
    pub fn prefetch_buckets(&self, hash: u64) {
        self.table.prefetch_buckets(hash);
    }

    /// Brings the entries that these buckets point to into the cache.
    pub fn prefetch_entries(&self, hash: u64) {
        self.table.prefetch_entries(hash);
    }

    /// Finds or makes the connection of a packet and edits its frame on its way.
    pub fn take(
        &mut self,
        frame: &mut Frame,
        link: LinkId,
        packet: &Packet,
        hash: u64,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Verdict {
        match self.table.find(&packet.connection_key(), hash) {
            Some((id, Direction::Outbound)) => self.reply(frame, packet, id, hash, snapshot, now),
            _ if snapshot.settings.requests_stay => Verdict::PassToKernel,
            Some((id, Direction::Inbound)) => match self.standing(id, packet, snapshot) {
                Standing::Lasts => self.request(frame, packet, id, snapshot, now),
                Standing::GivesWay if self.give_way(id, snapshot, now) => {
                    self.begin(frame, link, packet, snapshot, now)
                }
                Standing::GivesWay => self.request(frame, packet, id, snapshot, now),
                Standing::Orphaned => {
                    Self::reset(&mut self.resets, frame, packet, &self.table.connection(id));
                    Verdict::Drop(DropReason::DestinationUnavailable)
                }
            },
            None => self.begin(frame, link, packet, snapshot, now),
        }
    }

    /// Whether a connection goes on with a client's packet. Source: ipvs-behaviour, sections 2.2 and 3.6.
    fn standing(&self, id: ConnId, packet: &Packet, snapshot: &Snapshot) -> Standing {
        let connection = self.table.connection(id);
        let settings = &snapshot.settings;
        let destination = snapshot.destinations.available_for(&connection);
        if is_first(packet) {
            let drained = destination.is_some_and(|destination| destination.weight.is_quiescent());
            let is_over = is_over(&connection, settings.conn_reuse_mode);
            if is_over || drained && settings.expire_nodest_conn || connection.flags().contains(Flags::RESET)
            {
                return Standing::GivesWay;
            }
        }
        let moves_on = packet.flow.protocol == Protocol::UDP && settings.udp_nodest_reschedule;
        match destination {
            Some(_) => Standing::Lasts,
            None if connection.is_bypass() => Standing::Lasts,
            None if connection.flags().contains(Flags::RESET) => Standing::Orphaned,
            None if settings.expire_nodest_conn || moves_on => Standing::GivesWay,
            None => Standing::Orphaned,
        }
    }

    /// Takes a connection out of the table before its time. `false` if it controls others and has to stay.
    ///
    /// As under IPVS, which has it expire by its timer, its destination carries it until the next tick: whoever is
    /// scheduled meanwhile is scheduled by that count.
    fn give_way(&mut self, id: ConnId, snapshot: &Snapshot, now: Millis) -> bool {
        if self.leaving.len() == self.leaving.capacity() {
            self.let_go();
        }
        let removal = self.table.remove(id);
        if let Removal::Done(state) = removal {
            let connection = self.table.connection(id);
            if let Some(live) = snapshot.destinations.of(&connection).map(|destination| &destination.live) {
                if self.leaving.is_empty() {
                    self.leave_at = next_tick(now);
                }
                self.leaving.push((live.clone(), Activity::of(connection.protocol(), state)));
            }
        }
        removal != Removal::Controls
    }

    /// Takes those that gave way out of their destinations' counts.
    fn let_go(&mut self) {
        self.leaving.drain(..).for_each(|(live, activity)| live.leave(activity));
    }

    /// A packet that belongs to no connection: begins one if it may.
    fn begin(
        &mut self,
        frame: &mut Frame,
        link: LinkId,
        packet: &Packet,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Verdict {
        match self.schedule(frame, link, packet, snapshot, now) {
            Ok(Begun::Connection(id)) => self.request(frame, packet, id, snapshot, now),
            Ok(Begun::OnePacket(ends, id)) => {
                let Some(destination) = snapshot.destinations.find(id) else {
                    return Verdict::Drop(DropReason::DestinationUnavailable);
                };
                self.count(destination, |stats| stats.count_in(packet.length()));
                let outer = self.outer(packet, destination, &snapshot.settings, now);
                let verdict =
                    forward::request(frame, packet, &ends, destination.path, &snapshot.egress, outer);
                self.report_unresolved(verdict, destination.path);
                verdict
            }
            Err(verdict) => {
                if verdict == Verdict::Drop(DropReason::Unasked) {
                    // The kernel's forwarding has taken one off when IPVS tells the sender.
                    forward::decrement_ttl(frame, packet);
                }
                verdict
            }
        }
    }

    /// Chooses a destination and enters the connection in the table, unless it is for this one packet only.
    fn schedule(
        &mut self,
        frame: &Frame,
        link: LinkId,
        packet: &Packet,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Result<Begun, Verdict> {
        let (service, mark) = match service(packet, link, snapshot) {
            Ok(found) => found,
            Err(_) if unasked(packet, snapshot) => return Err(Verdict::Drop(DropReason::Unasked)),
            Err(verdict) => return Err(verdict),
        };
        match self.begin_for(frame, packet, service, mark, snapshot, now) {
            Err(Verdict::Drop(DropReason::NoDestination)) if may_bypass(service, packet, snapshot) => {
                self.begin_bypass(packet, mark, snapshot, now)
            }
            begun => begun,
        }
    }

    /// The same for a packet of this service.
    pub(crate) fn begin_for(
        &mut self,
        frame: &Frame,
        packet: &Packet,
        service: &Service,
        mark: u32,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Result<Begun, Verdict> {
        if self.defence.drops(snapshot.settings.drop_packet_rate) {
            return Err(Verdict::Drop(DropReason::Defence));
        }
        if is_ftp_data(packet) {
            let unasked = unasked(packet, snapshot);
            return Err(if unasked { Verdict::Drop(DropReason::Unasked) } else { Verdict::PassToKernel });
        }
        let request = schedule::request(packet, now, self.dice.draw());
        let chosen = match &service.persistence {
            None => choose(packet, service, &request),
            Some(persistence) => {
                let Self { worker, ref mut table, ref mut pressure, ref counters, .. } = *self;
                let mut templates = Templates { worker, table, pressure, counters, now };
                templates.choose(packet, frame.bytes(), service, persistence, &request, snapshot)
            }
        };
        let Chosen { id, dest, method, live, template } = chosen?;
        let counted = snapshot.destinations.find(id);
        if service.one_packet && packet.flow.protocol == Protocol::UDP && method != ForwardingMethod::FullNat
        {
            self.leave_template(template);
            counted.inspect(|destination| self.count(destination, |stats| stats.connections.add(1)));
            live.pass();
            let FlowKey { source: client, dest: virtual_endpoint, .. } = packet.flow;
            let ends = Ends { client, virtual_endpoint, dest, local: None, method };
            return Ok(Begun::OnePacket(ends, id));
        }
        self.enter(packet, Chosen { id, dest, method, live, template }, service, mark, snapshot, now)
    }

    /// Has a template count one connection less: the one that was chosen for is not in the table.
    pub(crate) fn leave_template(&self, template: Option<ConnId>) {
        template.inspect(|template| self.table.connection(*template).drop_controlled());
    }

    /// A packet from the client.
    fn request(
        &mut self,
        frame: &mut Frame,
        packet: &Packet,
        id: ConnId,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Verdict {
        let connection = self.table.connection(id);
        let Some(destination) = snapshot.destinations.available_for(&connection) else {
            return match connection.is_bypass() {
                true => self.bypass(frame, packet, id, snapshot, now),
                false => Verdict::Drop(DropReason::DestinationUnavailable),
            };
        };
        let ends = Ends::of(&connection);
        connection.count_in_packet();
        self.count(destination, |stats| stats.count_in(packet.length()));
        let reset = Self::reset(&mut self.resets, frame, packet, &connection);
        let packet = reset.as_ref().unwrap_or(packet);
        self.advance(id, packet, Direction::Inbound, Some(&destination.live), &snapshot.settings, now);
        if snapshot.settings.mss_clamp.concerns(packet, ends.method) {
            let back = Path::find(&snapshot.egress, packet.flow.source.addr, 0);
            mss::clamp(frame, packet, &ends, destination, back);
        }
        let connection = self.table.connection(id);
        let told = client_address::request(frame, packet, &connection, destination, now, &self.counters);
        let packet = told.as_ref().unwrap_or(packet);
        let outer = self.outer(packet, destination, &snapshot.settings, now);
        let verdict = forward::request(frame, packet, &ends, destination.path, &snapshot.egress, outer);
        self.report_unresolved(verdict, destination.path);
        verdict
    }

    /// What a tunnel to a destination writes around a packet.
    pub(crate) fn outer<'a>(
        &'a mut self,
        packet: &Packet,
        destination: &'a Destination,
        settings: &Settings,
        now: Millis,
    ) -> Outer<'a> {
        let flow_hash = match destination.tunnel.encapsulation {
            Encapsulation::Gue { .. } => self.table.hash(&packet.flow),
            Encapsulation::Ip | Encapsulation::Gre(_) => 0,
        };
        Outer {
            tunnel: destination.tunnel,
            pmtu_disc: settings.pmtu_disc,
            path_mtu: &destination.path_mtu,
            now,
            flow_hash,
            ids: &mut self.ids,
        }
    }

    /// A packet to the client.
    fn reply(
        &mut self,
        frame: &mut Frame,
        packet: &Packet,
        id: ConnId,
        hash: u64,
        snapshot: &Snapshot,
        now: Millis,
    ) -> Verdict {
        let connection = self.table.connection(id);
        if !connection.method().masquerades() && packet.family() == Family::V4 {
            // From the virtual address itself: the kernel refuses that from the wire in IPv4, and routes it in IPv6.
            return Verdict::PassToKernel;
        }
        let ends = Ends::of(&connection);
        let reset = Self::reset(&mut self.resets, frame, packet, &connection);
        let packet = reset.as_ref().unwrap_or(packet);
        let path = Path::find(&snapshot.egress, ends.client.addr, hash);
        if snapshot.settings.mss_clamp.concerns(packet, ends.method)
            && let Some(destination) = snapshot.destinations.available_for(&connection)
        {
            mss::clamp(frame, packet, &ends, destination, path);
        }
        client_address::reply(frame, packet, &connection);
        let verdict = forward::reply(frame, packet, &ends, path);
        self.report_unresolved(verdict, path);
        // A router refuses a packet before its forwarding hooks, so IPVS does not see it.
        let refused = matches!(verdict, Verdict::Drop(DropReason::TtlExpired | DropReason::TooBig { .. }));
        if !refused
            && let Some(live) = snapshot.destinations.of(&connection).map(|destination| &destination.live)
        {
            if let Some(destination) = snapshot.destinations.available_for(&connection) {
                self.count(destination, |stats| stats.count_out(packet.length()));
            }
            self.advance(id, packet, Direction::Outbound, Some(live), &snapshot.settings, now);
        }
        verdict
    }

    /// What is known of the connection that packets of a flow are of.
    pub fn known(&self, flow: &FlowKey) -> Option<Known> {
        let (id, _) = self.table.find(flow, self.table.hash(flow))?;
        let connection = self.table.connection(id);
        Some(Known { protocol: connection.protocol(), ends: Ends::of(&connection), mark: connection.mark() })
    }

    /// The connection that a packet is the client's of.
    pub fn asked(&self, packet: &Packet, hash: u64) -> Option<ConnId> {
        let found = self.table.find(&packet.connection_key(), hash);
        found.filter(|(_, direction)| *direction == Direction::Inbound).map(|(id, _)| id)
    }

    /// Counts an ICMP error to the client of a connection: as IPVS does where such errors pass for replies.
    pub fn count_answer(&self, connection: Option<ConnId>, bytes: usize, snapshot: &Snapshot) {
        let Some(id) = connection else { return };
        let connection = self.table.connection(id);
        if !connection.method().masquerades()
            && let Some(destination) = snapshot.destinations.available_for(&connection)
        {
            self.count(destination, |stats| stats.count_out(bytes));
        }
    }

    pub(crate) fn count(&self, destination: &Destination, count: impl Fn(&Stats)) {
        for stats in [&destination.live.stats, &destination.service.stats, &self.total.stats] {
            count(stats.of_worker(self.worker));
        }
    }

    pub(crate) fn report_unresolved(&self, verdict: Verdict, path: Path) {
        if let (Verdict::Drop(DropReason::NoNeighbour), Path::NoNeighbour { link, next_hop }) =
            (verdict, path)
        {
            // Full: others wait to be resolved, and the next packet brings this one again.
            let _ = self.unresolved.push((link, next_hop));
        }
    }

    /// Ends the connections whose time has come.
    pub fn expire(&mut self, snapshot: &Snapshot, now: Millis) -> Timers {
        if now >= self.leave_at {
            self.let_go();
        }
        let counters = &self.counters;
        self.table.advance_timers(now, |table, id| expire(table, id, snapshot, counters, now))
    }

    /// When [`Self::expire`] has something to do next; `None`: not before a packet comes.
    pub fn next_due(&self) -> Option<Millis> {
        let leaving = (!self.leaving.is_empty()).then_some(self.leave_at);
        self.table.next_timer().into_iter().chain(leaving).min()
    }

    /// Ends a burst.
    pub fn quiescent(&mut self) {
        self.table.quiescent();
    }
}

/// What tells connections apart for who asks for some of them.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its ends.
    pub ends: Ends,
    /// The firewall mark that it began with; 0 is none.
    pub mark: u32,
}

/// What becomes of a connection that a client's packet met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It takes the packet.
    Lasts,
    /// It ends, and the packet is treated as if it had met none.
    GivesWay,
    /// Its destination was removed: the packet is dropped, and the time left is not extended.
    Orphaned,
}

/// Whether a connection has ended as far as can be seen, so that a first packet begins a new one. One that a template
/// controls goes on.
///
/// Source: ipvs-behaviour, section 3.6; of CLOSE, the kernel's recording `tcp-nat-server-refuses`, step 9.
fn is_over(connection: &Connection<'_>, reuse: ConnReuse) -> bool {
    if connection.controller().is_some() {
        return false;
    }
    match connection.protocol() {
        Protocol::SCTP => reuse.closed() && SctpState::of(connection.state()) == SctpState::Closed,
        _ => match TcpState::of(connection.state()) {
            TcpState::TimeWait | TcpState::Close => reuse.closed(),
            TcpState::FinWait => reuse.half_seen() && connection.flags().contains(Flags::NO_OUTPUT),
            _ => false,
        },
    }
}

/// What a packet has begun.
pub(crate) enum Begun {
    /// A connection in the table.
    Connection(ConnId),
    /// Nothing that is remembered.
    OnePacket(Ends, DestinationId),
}

/// Whether a masqueraded destination speaks to somebody who did not ask, and is to be told so. What it says to the
/// director itself is between the two of them.
fn unasked(packet: &Packet, snapshot: &Snapshot) -> bool {
    snapshot.settings.nat_icmp_send
        && !is_reset(packet)
        && snapshot.nat_destinations.contains(&(packet.flow.protocol, packet.flow.source))
        && !snapshot.egress.is_local(packet.flow.dest.addr)
}

/// Ends a connection whose time has come; a template that controls others then goes on for a minute. What began with it
/// may be due in the very tick, in any order and on any worker, so it is left alone for one.
fn expire(table: &mut TableWorker, id: ConnId, snapshot: &Snapshot, counters: &WorkerCounters, now: Millis) {
    // A packet on another worker may have refreshed it since its timer was looked at: then it stays.
    match table.remove_if(id, |_, expires| expires <= now) {
        Removal::Done(state) => {
            count_out(&table.connection(id), state, snapshot);
            counters.expired.add(1);
        }
        // Unless a new connection was faster and has set it already.
        Removal::Controls if table.connection(id).expires() + TIMER_TICK <= now => {
            table.connection(id).set_timeout_seconds(CONTROLLING_SECONDS);
            let timeout = Duration::from_secs(CONTROLLING_SECONDS.into());
            table.transition(id, |state| (state, now + timeout));
        }
        Removal::Controls | Removal::NotOurs | Removal::Lasts => {}
    }
}

/// The first tick after `now`.
fn next_tick(now: Millis) -> Millis {
    let tick = LEAVING_TICK.as_millis() as u64;
    Millis((now.0 / tick + 1) * tick)
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::net::Ipv4Addr;

    use xvs_proto::Endpoint;

    use super::*;
    use crate::conn::{Inserted, NewConnection, Table, TableConfig};
    use crate::shm::Memory;

    #[test]
    fn what_another_worker_refreshed_while_its_timer_was_looked_at_stays() {
        let config = TableConfig { capacity: 10, workers: 2, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let [mut one, mut other] = [0, 1].map(|worker| table.handle(worker).unwrap());
        let inserted = one.insert(&NewConnection {
            protocol: Protocol::UDP,
            client: Endpoint::new(Ipv4Addr::new(192, 0, 2, 10), 1000),
            virtual_endpoint: Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 53),
            dest: Endpoint::new(Ipv4Addr::new(203, 0, 113, 11), 53),
            local: None,
            method: ForwardingMethod::DirectRouting,
            flags: Flags::NONE,
            state: 0,
            expires: Millis(60_000),
            timeout_seconds: 0,
            dest_ref: 0,
            mark: 0,
            controller: None,
        });
        let Inserted::New(id) = inserted else { panic!("{inserted:?}") };
        let (snapshot, counters) = (Snapshot::empty(), WorkerCounters::default());
        one.advance_timers(Millis(60_000), |one, due| {
            assert_eq!(due, id);
            other.refresh(id, 0, Millis(120_000));
            expire(one, id, &snapshot, &counters, Millis(60_000));
        });
        assert_eq!((table.live(), counters.expired.value()), (1, 0));
        one.advance_timers(Millis(120_000), |one, id| expire(one, id, &snapshot, &counters, Millis(120_000)));
        assert_eq!((table.live(), counters.expired.value()), (0, 1));
    }
}
