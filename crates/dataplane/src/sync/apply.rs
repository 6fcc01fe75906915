//! Enters connections that another director has sent, or refreshes known connections.
//!
//! Runs on a worker between two bursts, for a bounded number of connections at a time. It follows the kernel's backup
//! daemon: the connection belongs to its real server if that is configured here; otherwise it is kept, and forwarded by
//! the method in the message, unless the message is not signed. The connection gets the state in the message, and the
//! full timeout. Templates and connections arrive independently, so a connection has no template here. Data that a
//! kernel cannot send are taken over unchanged: FULLNAT's local endpoint, how the destination receives the client's
//! address, the SYN proxy's translation of numbers, and, from a whole table, the remaining time. A known connection may
//! be newer than its copy from a whole table: it does not change, unless the sender has seen a packet later by more
//! than the time that messages take. Cost: a look-up; for a new connection an insertion. `new_connection/eviction.rs`
//! limits the share of the table that received connections may fill.
//!
//! Source: ipvs-behaviour, section 12.5.

use std::time::Duration;

use xvs_proto::sync::{ClientAddress, Entry, flag, method};
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use super::announce;
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::clock::Millis;
use crate::conn::tcp::TcpState;
use crate::conn::{
    ASSURED, Complete, ConnId, Connection, Direction, Flags, Inserted, NewConnection, Numbers, Shift, Spare,
};
use crate::new_connection::eviction::{end, evict_call};
use crate::new_connection::persistence;
use crate::snapshot::sync_backup::{Received, SyncBackup, Trust};
use crate::snapshot::{Activity, Destination, DestinationId, Snapshot};

impl Flows {
    /// Enters some of the connections that this worker has received. Returns whether there may be more.
    pub fn receive_synchronized(&mut self, snapshot: &Snapshot, now: Millis) -> bool {
        let Some(backup) = &snapshot.sync_backup else { return false };
        for _ in 0..AT_A_TIME {
            let Some(received) = backup.inbox.take(self.worker) else { return false };
            backup.inbox.count(enter(self, backup, &received, Context::new(snapshot, now)));
        }
        true
    }
}

/// Enters or refreshes a connection. Returns `false` if it is left out.
fn enter(flows: &mut Flows, backup: &SyncBackup, received: &Received, cx: Context<'_>) -> bool {
    let Received { entry, call_id } = received;
    let is_template = entry.flags & flag::TEMPLATE != 0;
    let Some(state) = state(entry, is_template) else { return false };
    let timeout = timeout(entry, state, is_template, cx);
    let remaining = entry.remaining_millis.map(|millis| Duration::from_millis(millis.into()).min(timeout));
    let wanted = Wanted {
        entry,
        is_template,
        state,
        expires: cx.now + remaining.unwrap_or(timeout),
        idle: remaining.map(|remaining| timeout - remaining),
    };
    // Without a service with `--pe sip` a call is stored by the client's address and port.
    let call_id = call_id.as_deref().filter(|_| is_template && !cx.snapshot.call_ids.is_empty());
    let (key, found) = match call_id {
        Some(_) => match persistence::find_template(flows, wanted.key(), call_id, cx) {
            Ok(found) => found,
            Err(_) => return false,
        },
        None => (wanted.key(), wanted.find(flows)),
    };
    if let Some(id) = found {
        if !wanted.is_later(flows, id, cx) {
            return true;
        }
        match wanted.compare(flows, id, cx) {
            Found::Same => {
                wanted.refresh(flows, id, backup.packets, timeout, cx);
                return true;
            }
            Found::Ended => return true,
            Found::Other if !end(&mut flows.table, id, cx.snapshot) => return false,
            Found::Other => {}
        }
    }
    match wanted.connection(key, timeout, backup.inbox.trust, cx) {
        Some(new) => insert(flows, new, &wanted, call_id, backup.packets, cx),
        None => false,
    }
}

/// A received connection, and the data derived from it.
struct Wanted<'a> {
    entry: &'a Entry<'static>,
    is_template: bool,
    state: u8,
    expires: Millis,
    /// The time since its last packet; `None` if it is in a message about that packet.
    idle: Option<Duration>,
}

/// The relation of a known connection with the same identity.
enum Found {
    /// The connection of the message.
    Same,
    /// Another one, with another real server or with other numbers.
    Other,
    /// The received one has ended at the sender, and another has begun here.
    Ended,
}

impl Wanted<'_> {
    /// The flow of the client's packets, or the identity of the template.
    fn key(&self) -> FlowKey {
        let Entry { protocol, client, virtual_endpoint, .. } = *self.entry;
        FlowKey { protocol, source: client, dest: virtual_endpoint }
    }

    /// Shifts the server's sequence numbers as the sender does, if it is an FTP control connection.
    fn shift(&self, connection: &Connection<'_>) {
        if connection.flags().contains(Flags::FTP) {
            connection.set_shift(self.entry.reply_shift.and_then(Shift::received).unwrap_or_default());
        }
    }

    /// How the sender translates numbers, if it does.
    fn numbers(&self) -> Option<Numbers> {
        self.entry.numbers.filter(|_| !self.is_template).map(Numbers::of)
    }

    fn is_inactive(&self) -> bool {
        self.entry.flags & flag::INACTIVE != 0
    }

    fn find(&self, flows: &Flows) -> Option<ConnId> {
        let key = self.key();
        let hash = flows.table.hash(&key);
        match self.is_template {
            true => flows.table.find_template(&key, hash),
            false => flows
                .table
                .find(&key, hash)
                .filter(|(_, direction)| *direction == Direction::Inbound)
                .map(|(id, _)| id),
        }
    }

    /// Whether it is newer than the known connection: by a later packet, or because its real server is now configured.
    fn is_later(&self, flows: &Flows, id: ConnId, cx: Context<'_>) -> bool {
        let Some(received) = self.idle else { return true };
        let connection = flows.table.connection(id);
        let idle = announce::timeout(&connection, connection.state(), &cx.snapshot.settings)
            .saturating_sub(cx.now.until(connection.expires()));
        idle > received + DELAY || connection.is_unbound() && self.destination(cx).is_some()
    }

    fn compare(&self, flows: &Flows, id: ConnId, cx: Context<'_>) -> Found {
        let connection = flows.table.connection(id);
        // The numbers of a connection through the SYN proxy never change: with others it is another connection.
        let is_its = connection.dest() == self.entry.dest
            && connection.local() == self.entry.local
            && connection.numbers() == self.numbers();
        match is_its {
            false if self.is_template => Found::Same,
            false if self.is_inactive() => Found::Ended,
            // A real server that is now configured takes it.
            true if connection.is_unbound() && self.destination(cx).is_some() => Found::Other,
            true => Found::Same,
            false => Found::Other,
        }
    }

    fn refresh(&self, flows: &mut Flows, id: ConnId, packets: u32, timeout: Duration, cx: Context<'_>) {
        let connection = flows.table.connection(id);
        if self.is_template {
            connection.set_timeout_seconds(timeout.as_secs() as u32);
        } else if let Some(address) = self.entry.client_address
            && connection.flags().intersects(flags_of(self.entry.protocol, address))
        {
            connection.set_first_sequence(address.first_sequence);
            let _ = connection.set_flags(flags_of(self.entry.protocol, address));
        }
        self.shift(&connection);
        flows.table.table().end_offload(id);
        let live = cx.snapshot.destinations.of(&connection).map(|destination| &destination.live);
        let is_received = connection.flags().contains(Flags::SYNC);
        connection.set_in_packets(packets);
        let moved = flows.table.transition(id, |_| (self.state, self.expires));
        let Some((before, after)) = moved.filter(|_| !self.is_template) else { return };
        let connection = flows.table.connection(id);
        let to = if self.is_inactive() { Activity::Inactive } else { Activity::Active };
        let (has_moved, to) = match is_received {
            true => (connection.count_as(to == Activity::Inactive), to),
            // A connection that began here is counted by its state.
            false => {
                let [from, to] = [before, after].map(|state| Activity::of(self.entry.protocol, state));
                (from != to, to)
            }
        };
        if has_moved {
            live.inspect(|live| live.move_to(to));
        }
    }

    /// The real server that is configured here for it.
    fn destination<'s>(&self, cx: Context<'s>) -> Option<(DestinationId, &'s Destination)> {
        let Entry { protocol, virtual_endpoint, dest, mark, flags, .. } = *self.entry;
        let service = cx.snapshot.services.for_packet(mark, protocol, virtual_endpoint)?;
        let is_masquerading = flags & flag::METHOD == method::MASQUERADING;
        let any_port = Endpoint { port: 0, ..dest };
        let endpoints = match mark != 0 && !is_masquerading {
            true => [any_port, dest],
            false => [dest, any_port],
        };
        endpoints.into_iter().find_map(|endpoint| {
            service.members.iter().find_map(|member| {
                let destination = cx.snapshot.destinations.find(member.id)?;
                (destination.available && destination.endpoint == endpoint)
                    .then_some((member.id, destination))
            })
        })
    }

    /// The connection to be inserted, with this identity. `None` if its packets could not be forwarded here, because
    /// the local endpoint does not belong to this director, or the real server that receives the client's address is
    /// not known; or if they would be forwarded to a server that only an unsigned message names.
    fn connection(
        &self,
        key: FlowKey,
        timeout: Duration,
        trust: Trust,
        cx: Context<'_>,
    ) -> Option<NewConnection> {
        let Entry { dest, local, mark, client_address, .. } = *self.entry;
        let bound = self.destination(cx);
        let is_foreign = local.is_some_and(|local| !cx.snapshot.locals.has(local));
        let is_forgeable = trust == Trust::Unsigned && !dest.addr.is_unspecified();
        if is_foreign || bound.is_none() && (client_address.is_some() || is_forgeable) {
            return None;
        }
        let is_unseen = trust == Trust::Unsigned && !self.is_template && key.protocol != Protocol::UDP;
        let method = match (bound, local) {
            (_, Some(_)) => ForwardingMethod::FullNat,
            (Some((_, destination)), None) if destination.method != ForwardingMethod::FullNat => {
                destination.method
            }
            _ => method_of(self.entry.flags),
        };
        let is_unanswered = match bound {
            Some(_) => !method.masquerades(),
            None => self.entry.flags & flag::NO_OUTPUT != 0,
        };
        // Another director has seen its handshake.
        let is_proven = method.masquerades()
            && key.protocol == Protocol::TCP
            && self.state == TcpState::Established as u8;
        Some(NewConnection {
            protocol: key.protocol,
            client: key.source,
            virtual_endpoint: key.dest,
            dest,
            local,
            method,
            flags: Flags::SYNC
                | set(Flags::TEMPLATE, self.is_template)
                | set(Flags::NO_OUTPUT, is_unanswered)
                | set(Flags::PROVEN, is_proven && !self.is_template)
                | set(Flags::INACTIVE, self.is_inactive())
                | set(Flags::UNSEEN, is_unseen)
                | if self.is_template { Flags::NONE } else { Flags::of_ftp(key.protocol, key.dest, method) }
                | client_address.map_or(Flags::NONE, |address| flags_of(key.protocol, address)),
            state: self.state,
            expires: self.expires,
            spare: match self.is_template {
                true => Spare::template(timeout.as_secs() as u32),
                false => Spare::first_sequence(client_address.map_or(0, |address| address.first_sequence)),
            },
            dest_ref: bound.map_or(DestinationId::NONE, |(id, _)| id).0,
            mark: if self.is_template { 0 } else { mark },
            controller: None,
        })
    }
}

fn set(flag: Flags, is_set: bool) -> Flags {
    if is_set { flag } else { Flags::NONE }
}

/// Inserts a connection, or a template with its Call-ID, and counts it at its real server.
fn insert(
    flows: &mut Flows,
    mut new: NewConnection,
    wanted: &Wanted<'_>,
    call_id: Option<&[u8]>,
    packets: u32,
    cx: Context<'_>,
) -> bool {
    let call_ids = &cx.snapshot.call_ids;
    if !flows.eviction.admits_received(&mut flows.table, &flows.counters, cx) {
        return false;
    }
    if let Some(call_id) = call_id {
        let Flows { worker, table, counters, .. } = &mut *flows;
        let Some(mark) =
            call_ids.write(*worker, call_id, table, |table, id| evict_call(table, id, cx.snapshot, counters))
        else {
            return false;
        };
        new.mark = mark;
    }
    let activity = match new.flags {
        flags if flags.contains(Flags::TEMPLATE) => Activity::Template,
        flags if flags.contains(Flags::INACTIVE) => Activity::Inactive,
        _ => Activity::Active,
    };
    let live =
        cx.snapshot.destinations.find(DestinationId(new.dest_ref)).map(|destination| &destination.live);
    live.inspect(|live| live.increment(activity));
    let complete: Complete<'_> = Some(&|connection| {
        connection.set_in_packets(packets);
        wanted.shift(connection);
        wanted.numbers().inspect(|numbers| connection.receive_numbers(*numbers));
    });
    match flows.insert(&new, complete, cx) {
        Inserted::New(id) => {
            if call_id.is_some() {
                call_ids.settle(new.mark, &flows.table.connection(id));
            }
            live.inspect(|live| live.check_limit());
            true
        }
        Inserted::Existing(_) | Inserted::Full | Inserted::LocalTaken => {
            live.inspect(|live| live.decrement(activity));
            false
        }
    }
}

/// The state here; `None` if the protocol is unknown, or has no such state.
fn state(entry: &Entry<'_>, is_template: bool) -> Option<u8> {
    let states = match entry.protocol {
        _ if is_template => return Some(if entry.state == ASSURED { ASSURED } else { 0 }),
        Protocol::TCP => 11,
        Protocol::UDP => 1,
        Protocol::SCTP => 14,
        _ => return None,
    };
    (entry.state < states).then_some(entry.state)
}

/// The timeout in the message, or, for version 0, which carries none, the timeout that applies here.
fn timeout(entry: &Entry<'_>, state: u8, is_template: bool, cx: Context<'_>) -> Duration {
    match entry.timeout_seconds {
        0 if is_template => TEMPLATE_TIMEOUT,
        0 => cx.snapshot.settings.timeout(entry.protocol, state),
        seconds => Duration::from_secs(seconds.into()).min(LONGEST),
    }
}

fn method_of(flags: u32) -> ForwardingMethod {
    match flags & flag::METHOD {
        method::LOCAL => ForwardingMethod::Local,
        method::TUNNEL => ForwardingMethod::Tunnel,
        method::ROUTE | method::BYPASS => ForwardingMethod::DirectRouting,
        _ => ForwardingMethod::Nat,
    }
}

fn flags_of(protocol: Protocol, address: ClientAddress) -> Flags {
    match (address.in_header, address.is_acknowledged) {
        _ if protocol == Protocol::UDP => Flags::PROXY_DATAGRAMS,
        (true, true) => Flags::PROXY | Flags::PROXY_ACKNOWLEDGED,
        (true, false) => Flags::PROXY,
        (false, _) => Flags::TOA,
    }
}

/// The maximum delay of a message: the last packet of a copied connection seems later by up to this.
const DELAY: Duration = Duration::from_secs(4);
/// The number of connections that a worker enters between two bursts.
const AT_A_TIME: usize = 64;
/// The timeout of a template whose message has none.
const TEMPLATE_TIMEOUT: Duration = Duration::from_secs(180);
/// A longer timeout in a message is reduced to this.
const LONGEST: Duration = Duration::from_secs(31 * 86_400);

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use xvs_proto::sync::ReplyShift;

    use super::*;
    use crate::conn::{Table, TableConfig, TableWorker};
    use crate::counters::{SharedStats, WorkerCounters};
    use crate::forward::Identification;
    use crate::shm::Memory;
    use crate::snapshot::sync_backup::Inbox;

    /// The first of two workers, the handle of the second, and a snapshot with a backup daemon.
    fn two_workers(trust: Trust) -> (Flows, TableWorker, Snapshot) {
        let table =
            Table::create(TableConfig { capacity: 100, workers: 2, memory: Memory::OnDemand }).unwrap();
        let [one, other] = [0, 1].map(|worker| table.handle(worker).unwrap());
        let ids = Identification::numbered(*table.secret(), 0);
        let flows = Flows::new(0, one, Arc::new(WorkerCounters::default()), SharedStats::new(2), ids);
        let backup = SyncBackup { packets: 3, inbox: Arc::new(Inbox::new(2, trust)) };
        (flows, other, Snapshot { sync_backup: Some(Arc::new(backup)), ..Snapshot::default() })
    }

    /// An established connection to the FTP port through the SYN proxy.
    fn entry() -> Entry<'static> {
        Entry {
            protocol: Protocol::TCP,
            flags: method::MASQUERADING,
            state: TcpState::Established as u8,
            client: Endpoint::new([192, 0, 2, 10], 1000),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 21),
            dest: Endpoint::new([203, 0, 113, 11], 21),
            mark: 0,
            timeout_seconds: 900,
            remaining_millis: None,
            call_id: None,
            local: None,
            client_address: None,
            reply_shift: Some(ReplyShift { place: 7, before: 0, after: 2 }),
            numbers: Some([5, 6, 0]),
        }
    }

    fn receive(flows: &mut Flows, entry: &Entry<'_>, snapshot: &Snapshot) {
        let inbox = &snapshot.sync_backup.as_ref().unwrap().inbox;
        assert_eq!(inbox.put(Received::of(entry), 0), Some(0));
        flows.receive_synchronized(snapshot, Millis(0));
    }

    fn found(table: &TableWorker) -> Option<ConnId> {
        let Entry { protocol, client, virtual_endpoint, .. } = entry();
        let flow = FlowKey { protocol, source: client, dest: virtual_endpoint };
        table.find(&flow, table.hash(&flow)).map(|(id, _)| id)
    }

    #[test]
    fn another_worker_finds_a_received_connection_with_its_numbers_and_shift_or_not_at_all() {
        let (mut flows, mut other, snapshot) = two_workers(Trust::Signed);
        let is_over = AtomicBool::new(false);
        let halves = std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let mut halves = 0;
                while !is_over.load(Relaxed) {
                    if let Some(id) = found(&other) {
                        let connection = other.connection(id);
                        let seen =
                            (connection.numbers(), connection.shift().to_client(8), connection.in_packets());
                        halves += u32::from(seen != (Some(Numbers::of([5, 6, 0])), 10, 3));
                    }
                    other.quiescent();
                }
                halves
            });
            for _ in 0..100_000 {
                receive(&mut flows, &entry(), &snapshot);
                // There is no room while the other worker rests within a burst.
                found(&flows.table).inspect(|id| _ = end(&mut flows.table, *id, &snapshot));
                flows.quiescent();
            }
            is_over.store(true, Relaxed);
            looks.join()
        });
        assert_eq!(halves.unwrap(), 0);
    }

    #[test]
    fn an_entry_for_a_server_that_is_not_configured_needs_a_signature() {
        let nowhere = Entry { flags: method::BYPASS, dest: Endpoint::new([0; 4], 0), ..entry() };
        let template = Entry { flags: flag::TEMPLATE | method::MASQUERADING, numbers: None, ..entry() };
        for (entry, trust, is_entered) in [
            (entry(), Trust::Signed, 1),
            (entry(), Trust::Unsigned, 0),
            (template, Trust::Unsigned, 0),
            (nowhere, Trust::Unsigned, 1),
        ] {
            let (mut flows, _other, snapshot) = two_workers(trust);
            receive(&mut flows, &entry, &snapshot);
            assert_eq!(flows.table.table().live(), is_entered, "{trust:?}, {entry:?}");
            let counters = &snapshot.sync_backup.as_ref().unwrap().inbox.counters;
            let counted = [&counters.entered, &counters.left_out].map(|count| count.load(Relaxed));
            assert_eq!(counted, [is_entered as u64, 1 - is_entered as u64]);
        }
    }

    #[test]
    fn a_message_with_other_numbers_is_about_another_connection_which_takes_the_place_of_the_known_one() {
        let (mut flows, _other, snapshot) = two_workers(Trust::Signed);
        let numbers = |flows: &Flows| flows.table.connection(found(&flows.table).unwrap()).numbers();
        receive(&mut flows, &entry(), &snapshot);
        let first = found(&flows.table);
        receive(&mut flows, &entry(), &snapshot);
        assert_eq!(found(&flows.table), first, "the same one is refreshed");
        receive(&mut flows, &Entry { numbers: Some([9, 6, 0]), ..entry() }, &snapshot);
        assert_eq!(numbers(&flows), Some(Numbers::of([9, 6, 0])));
        assert_ne!(found(&flows.table), first);
        receive(&mut flows, &Entry { flags: method::MASQUERADING | flag::INACTIVE, ..entry() }, &snapshot);
        assert_eq!(numbers(&flows), Some(Numbers::of([9, 6, 0])), "the first one has ended");
        receive(&mut flows, &Entry { numbers: None, ..entry() }, &snapshot);
        assert_eq!(numbers(&flows), None);
        assert_eq!(flows.table.table().live(), 1);
    }
}
