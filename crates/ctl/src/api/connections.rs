//! Lists the connections of the live table, and ends those that an operator names.
//!
//! The table is walked in bounded slices, so neither its size nor a slow client delays a worker.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::log::Ending;
use xvs_dataplane::conn::sctp::SctpState;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::{ASSURED, CallIds, Connection, Flags, Removal, TableReader, detached, udp};
use xvs_dataplane::counters::Counter;
use xvs_dataplane::new_connection::eviction::{count_out, is_known};
use xvs_dataplane::snapshot::{DestinationId, Snapshot};
use xvs_model::report::connection::{ConnectionDetail, ConnectionRow, Ended, EngineData, Filter};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::ServiceKey;

/// One row for every connection and template that exists throughout the walk, until `each` breaks. Those inserted or
/// removed in the meantime may be included. The reader is not locked while `each` runs.
pub fn rows(
    reader: &Mutex<TableReader>,
    call_ids: &CallIds,
    now: Millis,
    each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
) {
    collect(reader, |connection| Some(row(connection, call_ids, now)), each);
}

/// Like [`rows`], for those that match `filter`, each with its detail. Services are those in `snapshot`.
pub fn matching_rows(
    reader: &Mutex<TableReader>,
    snapshot: &Snapshot,
    now: Millis,
    filter: &Filter,
    each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
) {
    let services = Services::of(snapshot);
    collect(reader, |connection| services.matching_row(connection, now, filter), each);
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMode {
    /// At once; client and server get no reset.
    Silent,
    /// TCP: both ends are reset at the next packet. Other protocols: like `Silent`.
    Reset,
}

/// Ends the connections and templates that match `filter` and are counted at a destination in `snapshot`; a template
/// only if it controls no connection. Adds the removed connections to `counter`, which is written only with the reader
/// locked. A later walk frees their entries.
pub fn end(
    reader: &Mutex<TableReader>,
    snapshot: &Snapshot,
    now: Millis,
    filter: &Filter,
    mode: EndMode,
    counter: &Counter,
) -> Ended {
    let services = Services::of(snapshot);
    let mut sum = Ended::default();
    let mut next = 0;
    // An FTP control connection cannot end before its data connections; then another walk ends it.
    let mut controls = false;
    let mut ended_before = 0;
    loop {
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        if next >= reader.table().extent() {
            if !controls || sum.ended == ended_before {
                counter.add(sum.ended);
                return sum;
            }
            (controls, ended_before, next) = (false, sum.ended, 0);
        }
        reader.set_now(now);
        reader.visit(next..next + SLICE, |reader, id| {
            let connection = reader.connection(id);
            if !is_known(&connection, snapshot) || services.matching_row(&connection, now, filter).is_none() {
                return;
            }
            let is_tcp = connection.protocol() == Protocol::TCP && !connection.is_template();
            if mode == EndMode::Reset && is_tcp {
                // A connection that is removed in the meantime keeps its entry until this walk ends; the flag then has
                // no effect.
                let _ = connection.set_flags(Flags::RESET);
                reader.table().end_offload(id);
                sum.marked += 1;
            } else {
                match reader.remove_if(id, Ending::Drained, |_, _| true) {
                    Removal::Done(state) => {
                        count_out(&reader.connection(id), state, snapshot);
                        sum.ended += 1;
                    }
                    Removal::Controls if !reader.connection(id).is_template() => controls = true,
                    // The template applies to no new connection, and is removed with the last connection that it
                    // controls.
                    Removal::Controls => reader.detach(id),
                    Removal::NotLive | Removal::Kept => {}
                }
            }
        });
        next += SLICE;
    }
}

/// How many match.
pub fn count(reader: &Mutex<TableReader>, snapshot: &Snapshot, now: Millis, filter: &Filter) -> u64 {
    let mut counted = 0;
    matching_rows(reader, snapshot, now, filter, &mut |_| {
        counted += 1;
        ControlFlow::Continue(())
    });
    counted
}

fn collect(
    reader: &Mutex<TableReader>,
    row: impl Fn(&Connection<'_>) -> Option<ConnectionRow>,
    each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
) {
    let mut slice = Vec::new();
    let mut next = 0;
    while walk_slice(reader, &mut next, |connection| slice.extend(row(&connection))) {
        if slice.drain(..).try_for_each(&mut *each).is_break() {
            return;
        }
    }
}

/// Calls `each` for every connection and template, like [`rows`].
pub fn walk(reader: &Mutex<TableReader>, mut each: impl FnMut(Connection<'_>)) {
    let mut next = 0;
    while walk_slice(reader, &mut next, &mut each) {}
}

/// Calls `each` for the connections of one slice. Returns `false` at the end of the table.
fn walk_slice(reader: &Mutex<TableReader>, next: &mut u32, each: impl FnMut(Connection<'_>)) -> bool {
    let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
    if *next >= reader.table().extent() {
        return false;
    }
    reader.for_each(*next..*next + SLICE, each);
    *next += SLICE;
    true
}

/// The number of entries in a slice. Entries removed in the meantime are not reused before the slice ends.
const SLICE: u32 = 1024;

fn row(connection: &Connection<'_>, call_ids: &CallIds, now: Millis) -> ConnectionRow {
    let ends = [connection.virtual_endpoint(), connection.dest()];
    let [virtual_endpoint, dest] = if connection.is_detached() { ends.map(detached) } else { ends };
    let mut client = connection.client();
    // The client port of a template only separates templates of SIP calls; listings do not show it.
    if connection.is_template() && connection.mark() != 0 {
        client.port = 0;
    }
    ConnectionRow {
        protocol: connection.protocol(),
        expires_seconds: u32::try_from(now.until(connection.expires()).as_secs()).unwrap_or(u32::MAX),
        state: match connection.is_template() {
            true => template_state_name(connection.state()).to_owned(),
            false => state_name(connection.protocol(), connection.state()).to_owned(),
        },
        client,
        virtual_endpoint,
        dest,
        local: connection.local(),
        engine: connection.is_template().then(|| engine(connection, call_ids)).flatten(),
        detail: None,
    }
}

/// The services in a snapshot, by the number of each destination.
struct Services<'a> {
    snapshot: &'a Snapshot,
    by_destination: HashMap<DestinationId, (ServiceKey, Endpoint)>,
}

impl<'a> Services<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let members = snapshot.services.iter().flat_map(|service| {
            service.members.iter().map(|member| (member.id, (service.key, member.endpoint)))
        });
        Self { snapshot, by_destination: members.collect() }
    }

    /// A connection's row with its detail, if it matches.
    fn matching_row(
        &self,
        connection: &Connection<'_>,
        now: Millis,
        filter: &Filter,
    ) -> Option<ConnectionRow> {
        let row = ConnectionRow {
            detail: Some(self.detail(connection)),
            ..row(connection, &self.snapshot.call_ids, now)
        };
        filter.matches(&row).then_some(row)
    }

    fn detail(&self, connection: &Connection<'_>) -> ConnectionDetail {
        let known = self.by_destination.get(&DestinationId(connection.dest_ref()));
        let flags = connection.flags();
        ConnectionDetail {
            service: known.map(|(service, _)| *service).or_else(|| self.matching_now(connection)),
            server: known.map(|(_, server)| *server),
            method: connection.method(),
            packets: connection.in_packets(),
            controls: connection.controlled(),
            template: connection.is_template(),
            flags: FLAGS
                .iter()
                .filter(|(flag, _)| flags.contains(*flag))
                .map(|(flag, text)| flag_name(connection, *flag, text).to_owned())
                .collect(),
        }
    }

    /// The service that a new packet would match, for a connection whose destination was removed.
    fn matching_now(&self, connection: &Connection<'_>) -> Option<ServiceKey> {
        let mark = if connection.is_template() { 0 } else { connection.mark() };
        let services = &self.snapshot.services;
        Some(services.for_packet(mark, connection.protocol(), connection.virtual_endpoint())?.key)
    }
}

/// Two bits have two meanings.
fn flag_name(connection: &Connection<'_>, flag: Flags, name: &'static str) -> &'static str {
    match flag {
        Flags::PROXY_DATAGRAMS if connection.protocol() == Protocol::UDP => "proxy",
        Flags::UNSEEN if connection.is_unseen() => "unseen",
        _ => name,
    }
}

/// The names of a connection's flags.
const FLAGS: [(Flags, &str); 8] = [
    (Flags::SYNC, "received"),
    (Flags::NO_OUTPUT, "no-replies"),
    (Flags::ONE_PACKET, "one-packet"),
    (Flags::PROXY, "proxy"),
    (Flags::PROXY_ACKNOWLEDGED, "told"),
    (Flags::TOA, "toa"),
    (Flags::DETACHED, "detached"),
    (Flags::RESET, "reset"),
];

/// The name of a connection's state, as IPVS prints it.
pub fn state_name(protocol: Protocol, state: u8) -> &'static str {
    match protocol {
        Protocol::UDP => udp::STATE_NAME,
        Protocol::SCTP => SctpState::of(state).name(),
        _ => TcpState::of(state).name(),
    }
}

/// The name of a template's state, as IPVS prints it.
pub(crate) fn template_state_name(state: u8) -> &'static str {
    if state & ASSURED == 0 { "NONE" } else { "ASSURED" }
}

/// The data that `--pe sip` stores with a template.
fn engine(template: &Connection<'_>, call_ids: &CallIds) -> Option<EngineData> {
    let call_id = call_ids.read(template)?;
    Some(EngineData { name: "sip".to_owned(), data: String::from_utf8_lossy(&call_id).into() })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::Ipv4Addr;

    use xvs_dataplane::conn::{
        ConnId, FormerTable, Inserted, NewConnection, Spare, Table, TableConfig, TableWorker,
    };
    use xvs_dataplane::shm::Memory;
    use xvs_model::report::connection::Kind;
    use xvs_proto::Endpoint;
    use xvs_sched::ForwardingMethod;

    use crate::api::connections::*;

    fn connection(client: Ipv4Addr) -> NewConnection {
        NewConnection {
            protocol: Protocol::TCP,
            client: Endpoint::new(client, 4096),
            virtual_endpoint: Endpoint::new(Ipv4Addr::new(198, 51, 100, 80), 80),
            dest: Endpoint::new(Ipv4Addr::new(192, 0, 2, 11), 80),
            local: None,
            method: ForwardingMethod::Nat,
            flags: Flags::NONE,
            state: 1,
            expires: Millis(900_000),
            spare: Spare::NONE,
            dest_ref: 0,
            mark: 0,
            controller: None,
        }
    }

    fn insert(worker: &mut TableWorker, client: Ipv4Addr) -> ConnId {
        inserted(worker, &connection(client))
    }

    fn inserted(worker: &mut TableWorker, new: &NewConnection) -> ConnId {
        let inserted = worker.insert(new);
        let Inserted::New(id) = inserted else { panic!("{inserted:?}") };
        id
    }

    #[test]
    fn connections_that_exist_throughout_a_listing_are_listed_once_while_others_come_and_go() {
        const STAYING: u32 = 5000;
        let config = TableConfig { capacity: 20_000, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let mut worker = table.handle(0).unwrap();
        let staying = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
        let passing = |number: u32| Ipv4Addr::from(0x0b00_0000 + number);
        let mut passed = Vec::new();
        for number in 0..STAYING {
            insert(&mut worker, staying(number));
            passed.push(insert(&mut worker, passing(number)));
        }
        worker.quiescent();
        let reader = Mutex::new(table.reader().unwrap());
        let mut listed: HashMap<Endpoint, u32> = HashMap::new();
        let mut next = STAYING;
        rows(&reader, &CallIds::default(), Millis(0), &mut |row| {
            // For each row, one connection is removed anywhere, and another is inserted in a freed entry.
            let gone = passed.swap_remove(next as usize * 7 % passed.len());
            assert!(matches!(worker.remove(gone), Removal::Done(_)));
            passed.push(insert(&mut worker, passing(next)));
            next += 1;
            worker.quiescent();
            *listed.entry(row.client).or_default() += 1;
            ControlFlow::Continue(())
        });
        for number in 0..STAYING {
            assert_eq!(listed.get(&Endpoint::new(staying(number), 4096)), Some(&1));
        }
        assert!(listed.values().all(|&times| times == 1), "no connection is listed twice");
        assert!(next > STAYING + 5000, "many were inserted meanwhile");
    }

    #[test]
    fn after_a_drain_that_detaches_a_template_a_start_keeps_the_index_of_the_table() {
        let config = TableConfig { capacity: 100, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let mut worker = table.handle(0).unwrap();
        let unbound =
            NewConnection { dest_ref: DestinationId::NONE.0, ..connection(Ipv4Addr::new(192, 0, 2, 10)) };
        let client = Endpoint { port: 0, ..unbound.client };
        let template = NewConnection { client, flags: Flags::TEMPLATE, ..unbound };
        let id = inserted(&mut worker, &template);
        assert!(worker.connection(id).add_controlled());
        inserted(&mut worker, &NewConnection { controller: Some(id), ..unbound });
        let templates = Filter { kind: Kind::Templates, ..Filter::default() };
        let reader = Mutex::new(table.reader().unwrap());
        end(&reader, &Snapshot::default(), Millis(0), &templates, EndMode::Silent, &Counter::default());
        assert!(worker.connection(id).is_detached());
        drop((worker, reader));
        let mut left = FormerTable::left(table).unwrap();
        let repair = left.repair(Millis(0), |_| true, || {});
        assert_eq!((repair.discarded, repair.is_rebuilt), (0, false));
    }

    #[test]
    fn a_listing_that_breaks_reads_no_further_and_leaves_the_reader_unlocked() {
        let config = TableConfig { capacity: 5000, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let mut worker = table.handle(0).unwrap();
        for number in 0..5000 {
            insert(&mut worker, Ipv4Addr::from(0x0a00_0000 + number));
        }
        let reader = Mutex::new(table.reader().unwrap());
        let mut rows_seen = 0;
        rows(&reader, &CallIds::default(), Millis(0), &mut |_| {
            rows_seen += 1;
            assert!(reader.try_lock().is_ok(), "the reader is unlocked while a row is processed");
            if rows_seen < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        assert_eq!(rows_seen, 10);
    }
}
