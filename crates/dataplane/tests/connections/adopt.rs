//! Taking over the table of a process that was killed: a child process changes a table, is stopped after each
//! instruction, and whenever the memory has changed, a copy of it is taken over and must be whole.
//!
//! Not here: files that are damaged otherwise (`conn/adopt.rs`), and their directory.

use std::env;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{self, Command, Stdio};
use std::sync::Arc;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, memfd_create};
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::log::Ending;
use xvs_dataplane::conn::{
    AdoptError, Boot, Connection, Direction, Flags, FormerTable, Inserted, NewConnection, Removal, Repair,
    Spare, TIMER_TICK, Table, TableConfig, TableFiles, TableWorker,
};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::{Counts, Destination};
use xvs_proto::{Endpoint, FlowKey, HashSecret, Protocol};
use xvs_sched::{ForwardingMethod, Load};

use crate::workers::{ACK, Flow, RST, SYN, Workers};

const CONFIG: TableConfig = TableConfig { capacity: 64, workers: 1, memory: Memory::OnDemand };
const BOOT: Boot = Boot([1, 2]);
const NOW: Millis = Millis(1_000_000);

fn memory(contents: &[u8], length: u64) -> File {
    let file = File::from(memfd_create("table", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(length).unwrap();
    file.write_all_at(contents, 0).unwrap();
    file
}

/// The length of a file without the zeros at its end.
fn used(file: &File) -> usize {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

fn files(contents: [&[u8]; 2]) -> TableFiles {
    let [connections, extensions] = CONFIG.file_bytes().unwrap();
    TableFiles { connections: memory(contents[0], connections), extensions: memory(contents[1], extensions) }
}

/// Empty files of a table of this size.
fn files_of(config: &TableConfig) -> TableFiles {
    let [connections, extensions] = config.file_bytes().unwrap().map(|length| memory(&[], length));
    TableFiles { connections, extensions }
}

fn table(files: &TableFiles) -> Arc<Table> {
    Table::create_in(files, CONFIG, HashSecret([5, 6, 7]), BOOT).unwrap()
}

/// A table that was taken over.
struct Adopted {
    table: Arc<Table>,
    repair: Repair,
    /// The number of connections and templates.
    kept: usize,
    /// Those of destination 3.
    counts: Counts,
}

fn adopt(files: &TableFiles) -> Adopted {
    let mut left = FormerTable::map(files, CONFIG, BOOT).unwrap();
    let mut counts = Counts::default();
    let count = |connection: &Connection<'_>| {
        if connection.dest_ref() == 3 {
            counts.count(connection);
        }
    };
    let repair = left.repair(NOW, |number| number < 8, || {});
    let survey = left.survey(count, || {});
    Adopted { table: left.take_over(&survey), repair, kept: survey.live, counts }
}

fn connection(port: u16, method: ForwardingMethod) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: Endpoint::new(Ipv4Addr::new(192, 0, 2, 10), port),
        virtual_endpoint: Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), 80),
        dest: Endpoint::new(Ipv4Addr::new(203, 0, 113, 11), 8080),
        local: (method == ForwardingMethod::FullNat)
            .then(|| Endpoint::new(Ipv4Addr::new(203, 0, 113, 1), port)),
        method,
        flags: Flags::NONE,
        state: 1,
        expires: NOW,
        spare: Spare::NONE,
        dest_ref: 3,
        mark: 0,
        controller: None,
    }
}

fn template(last: u8) -> NewConnection {
    let client = Endpoint::new(Ipv4Addr::new(192, 0, 2, last), 0);
    let flags = Flags::TEMPLATE;
    NewConnection { client, flags, spare: Spare::template(60), ..connection(0, ForwardingMethod::Nat) }
}

/// The flows of its packets in both directions.
fn flows(new: &NewConnection) -> [FlowKey; 2] {
    let request = FlowKey { protocol: new.protocol, source: new.client, dest: new.virtual_endpoint };
    let source = if new.method.masquerades() { new.dest } else { new.virtual_endpoint };
    [request, FlowKey { source, dest: new.local.unwrap_or(new.client), ..request }]
}

/// Whether it is found by its packets in both directions, or in none.
fn is_found(worker: &TableWorker, new: &NewConnection) -> bool {
    let found = flows(new).map(|flow| worker.find(&flow, worker.hash(&flow)));
    match found {
        [Some((one, Direction::Inbound)), Some((other, Direction::Outbound))] if one == other => true,
        [None, None] => false,
        halves => panic!("half of {new:?} is found: {halves:?}"),
    }
}

const METHODS: [ForwardingMethod; 3] =
    [ForwardingMethod::Nat, ForwardingMethod::FullNat, ForwardingMethod::DirectRouting];

/// Connections that stay, those of each method under a template.
fn staying() -> impl Iterator<Item = NewConnection> {
    (0..24).map(|number: u16| connection(1000 + number, METHODS[usize::from(number) % 3]))
}

/// Those that come and go.
fn changing() -> impl Iterator<Item = NewConnection> {
    (2000..).zip(METHODS).map(|(port, method)| connection(port, method))
}

fn insert(worker: &mut TableWorker, new: &NewConnection) -> xvs_dataplane::conn::ConnId {
    match worker.insert(new) {
        Inserted::New(id) => id,
        other => panic!("{new:?}: {other:?}"),
    }
}

/// What the child does to the table.
fn change(worker: &mut TableWorker) {
    for new in changing() {
        let id = insert(worker, &new);
        worker.transition(id, |_| (2, NOW));
        let _ = match new.method {
            ForwardingMethod::Nat => worker.remove_if(id, Ending::Expired, |_, _| true),
            _ => worker.remove(id),
        };
        worker.quiescent();
    }
    let old = insert(worker, &template(77));
    let id =
        insert(worker, &NewConnection { controller: Some(old), ..connection(3000, ForwardingMethod::Nat) });
    let _ = worker.connection(old).add_controlled();
    worker.detach(old);
    let young = insert(worker, &template(77));
    let _ = (worker.remove(id), worker.remove(old), worker.remove(young));
    worker.quiescent();
}

/// Checks a table that was taken over at some moment of [`change`]; and fills it, if `filled`. Returns whether its
/// index was built anew.
fn check(files: &TableFiles, filled: bool) -> bool {
    let Adopted { table, repair, kept, counts } = adopt(files);
    let mut worker = table.handle(0).unwrap();
    changing().for_each(|new| _ = is_found(&worker, &new));
    assert!(staying().all(|new| is_found(&worker, &new)), "connections that stay");
    let flow = flows(&template(10))[0];
    let id = worker.find_template(&flow, worker.hash(&flow)).expect("the template that stays");
    assert_eq!(worker.connection(id).controlled(), 24);
    assert_eq!((counts.load.active + counts.load.inactive + counts.templates) as usize, kept);
    if !filled {
        return repair.is_rebuilt;
    }
    // Nothing is lost: every entry is in use or can be taken.
    let all = CONFIG.capacity + 3 * 192;
    let mut taken = 0;
    for number in 0..all as u16 {
        worker.quiescent();
        match worker.insert(&connection(10_000 + number, ForwardingMethod::DirectRouting)) {
            Inserted::New(_) => taken += 1,
            _ => break,
        }
    }
    assert!(taken + kept >= CONFIG.capacity, "{taken} can be made beside {kept}");
    let mut reader = table.reader().unwrap();
    let mut ids = Vec::new();
    reader.for_each(0..u32::MAX, |connection| ids.push(connection.id()));
    assert_eq!(ids.len(), taken + kept);
    repair.is_rebuilt
}

/// The files of the table, for the child.
const FILES: &str = "XVS_TEST_TABLE";

/// The child: takes the table over and changes it, stopped before and after.
fn change_and_stop(paths: &str) {
    let (connections, extensions) = paths.split_once(':').unwrap();
    let open = |path| File::options().read(true).write(true).open(path).unwrap();
    let Adopted { table, .. } =
        adopt(&TableFiles { connections: open(connections), extensions: open(extensions) });
    let mut worker = table.handle(0).unwrap();
    ptrace::traceme().unwrap();
    raise(Signal::SIGSTOP).unwrap();
    change(&mut worker);
    raise(Signal::SIGSTOP).unwrap();
}

/// Waits for the next stop of a child of this thread. Returns which of its threads has stopped, and by what.
fn next_stop() -> (Pid, Signal) {
    // The test harness of the child runs the test in a thread of its own.
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    match waitpid(None, Some(flags)).unwrap() {
        WaitStatus::Stopped(thread, signal) => (thread, signal),
        other => panic!("the child: {other:?}"),
    }
}

#[test]
fn a_table_whose_process_was_killed_at_any_store_is_taken_over_whole() {
    if let Ok(paths) = env::var(FILES) {
        return change_and_stop(&paths);
    }
    let shared = files([&[], &[]]);
    let table = table(&shared);
    let mut worker = table.handle(0).unwrap();
    let controller = insert(&mut worker, &template(10));
    for new in staying() {
        assert!(worker.connection(controller).add_controlled());
        insert(&mut worker, &NewConnection { controller: Some(controller), ..new });
    }
    drop((worker, table));
    // What is used, and room for what the child adds.
    let mut now = [&shared.connections, &shared.extensions].map(|file| vec![0; used(file) + (4 << 10)]);
    let mut before = now.clone();
    let open = |file: &File| format!("/proc/{}/fd/{}", process::id(), file.as_raw_fd());
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "adopt::a_table_whose_process_was_killed_at_any_store_is_taken_over_whole"]);
    command.env(FILES, [open(&shared.connections), open(&shared.extensions)].join(":"));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let [mut states, mut rebuilt] = [0; 2];
    // It stops itself before and after the change, and after each instruction between.
    let (thread, _) = next_stop();
    ptrace::step(thread, None).unwrap();
    while next_stop() == (thread, Signal::SIGTRAP) {
        shared.connections.read_exact_at(&mut now[0], 0).unwrap();
        shared.extensions.read_exact_at(&mut now[1], 0).unwrap();
        if now != before {
            rebuilt += u32::from(check(&files([&now[0], &now[1]]), states % 8 == 0));
            states += 1;
            before.clone_from(&now);
        }
        ptrace::step(thread, None).unwrap();
    }
    ptrace::detach(thread, None).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(used(&shared.connections) <= now[0].len() && used(&shared.extensions) <= now[1].len());
    assert!(states > 100, "{states} states of memory");
    // Between the last word of a removed connection and its removal from the index.
    assert!((1..states / 10).contains(&rebuilt), "{rebuilt} of {states} indices were built anew");
}

#[test]
fn timers_run_on_after_a_table_is_taken_over() {
    let shared = files([&[], &[]]);
    let old = table(&shared);
    let mut worker = old.handle(0).unwrap();
    worker.advance_timers(NOW, |_, _| ());
    for (number, new) in (0..24).zip(staying()) {
        let expires = Millis(NOW.0 + 1000 * number);
        insert(&mut worker, &NewConnection { expires, ..new });
    }
    let Adopted { table, kept, .. } = adopt(&shared);
    assert_eq!((kept, table.live()), (24, 24));
    let mut worker = table.handle(0).unwrap();
    for second in 0..24 {
        for tick in 1..=4 {
            let now = Millis(NOW.0 + 1000 * second + 125 * tick);
            worker.advance_timers(now, |table, id| _ = table.remove(id));
            worker.quiescent();
        }
        assert_eq!(table.live(), 23 - second as usize, "after {second} s");
    }
}

#[test]
fn tables_of_another_version_size_or_start_of_the_machine_are_refused_with_the_difference() {
    let refusal = |files: &TableFiles, config, boot| match FormerTable::map(files, config, boot) {
        Err(AdoptError::Refused(why)) => why,
        other => panic!("{other:?}"),
    };
    let shared = files([&[], &[]]);
    assert!(refusal(&shared, CONFIG, BOOT).contains("no connection table"));
    table(&shared);
    let larger = TableConfig { capacity: 128, ..CONFIG };
    assert_eq!(refusal(&shared, larger, BOOT), "it is for 64 connections, and conn_table_size is 128");
    assert!(refusal(&shared, CONFIG, Boot([1, 3])).contains("machine's last start"));
    shared.connections.write_all_at(&99_u64.to_ne_bytes(), 8).unwrap();
    assert!(
        refusal(&shared, CONFIG, BOOT).starts_with("its layout has version 99, and this xvsd has version ")
    );
    table(&shared);
    shared.connections.set_len(1 << 22).unwrap();
    assert_eq!(refusal(&shared, CONFIG, BOOT), "its header contradicts its length");
    assert!(
        refusal(&TableFiles { connections: memory(&[], 10), ..shared }, CONFIG, BOOT)
            .contains("no connection")
    );
}

#[test]
fn a_table_is_taken_over_with_another_number_of_workers() {
    let shared = files([&[], &[]]);
    let old = table(&shared);
    let mut worker = old.handle(0).unwrap();
    staying().for_each(|new| _ = insert(&mut worker, &new));
    let config = TableConfig { workers: 3, ..CONFIG };
    let left = FormerTable::map(&shared, config, BOOT).unwrap();
    let survey = left.survey(|_| (), || ());
    let table = left.take_over(&survey);
    let mut workers: Vec<_> = (0..3).map(|number| table.handle(number).unwrap()).collect();
    assert!(staying().all(|new| workers.iter().all(|worker| is_found(worker, &new))));
    // Each worker times its share.
    for worker in &mut workers {
        for tick in [NOW, NOW + TIMER_TICK] {
            worker.advance_timers(tick, |table, id| assert!(matches!(table.remove(id), Removal::Done(_))));
        }
    }
    assert_eq!(table.live(), 0);
}

const TWO_WORKERS: TableConfig = TableConfig { capacity: 4096, workers: 2, ..CONFIG };

/// Inserts connections until there is no room for any worker. Returns their number.
fn fill(workers: &mut [TableWorker; 2]) -> usize {
    let [mut inserted, mut refused] = [0; 2];
    for (number, port) in (1000..).enumerate() {
        let new = connection(port, ForwardingMethod::DirectRouting);
        match workers[number % 2].insert(&new) {
            Inserted::New(_) => (inserted, refused) = (inserted + 1, 0),
            Inserted::Full => refused += 1,
            other => panic!("{new:?}: {other:?}"),
        }
        // Some keys find no room in their buckets.
        if refused == 100 {
            break;
        }
        workers.iter_mut().for_each(TableWorker::quiescent);
    }
    inserted
}

/// A table whose workers and readers have inserted and removed connections, and have left it, with the connections.
fn left_by_all(shared: &TableFiles) -> (Arc<Table>, [TableWorker; 2], Vec<NewConnection>) {
    let table = Table::create_in(shared, TWO_WORKERS, HashSecret([5, 6, 7]), BOOT).unwrap();
    let mut workers = [0, 1].map(|number| table.handle(number).unwrap());
    let mut reader = table.reader().unwrap();
    let all: Vec<_> = (0..500).map(|port| connection(port, METHODS[usize::from(port) % 3])).collect();
    let ids: Vec<_> = (0..).zip(&all).map(|(number, new)| insert(&mut workers[number % 2], new)).collect();
    workers.iter_mut().for_each(TableWorker::quiescent);
    for (number, id) in ids.into_iter().enumerate().filter(|(number, _)| number % 5 > 2) {
        assert!(matches!(workers[number % 2].remove(id), Removal::Done(_)));
        // Those after it stay in limbo.
        if number == 300 {
            workers.iter_mut().for_each(TableWorker::quiescent);
        }
    }
    reader.visit(0..u32::MAX, |reader, id| {
        if reader.connection(id).client().port % 5 > 0 {
            assert!(matches!(reader.remove(id), Removal::Done(_)));
        }
    });
    assert!(workers[0].in_limbo() > 0 && workers[1].in_limbo() > 0 && reader.in_limbo() > 0);
    workers.iter_mut().for_each(TableWorker::leave);
    (table, workers, all.into_iter().step_by(5).collect())
}

#[test]
fn a_table_that_was_left_in_order_is_taken_over_as_after_a_walk() {
    let shared = files_of(&TWO_WORKERS);
    let (old, workers, connections) = left_by_all(&shared);
    old.leave(NOW);
    drop((workers, old));
    let left = FormerTable::map(&shared, TWO_WORKERS, BOOT).unwrap();
    assert!(left.left_since(NOW + TIMER_TICK).is_none(), "this was left before");
    let survey = left.left_since(NOW).unwrap();
    assert_eq!(survey.live, connections.len());
    let entries = left.entries();
    let table = left.take_over(&survey);
    let mut workers = [0, 1].map(|number| table.handle(number).unwrap());
    // No entry is lost, none is used twice.
    assert_eq!(fill(&mut workers), entries - connections.len());
    assert!(connections.iter().all(|new| is_found(&workers[0], new)));
    assert_eq!(table.live(), entries);
    drop(workers);
    let taken = FormerTable::map(&shared, TWO_WORKERS, BOOT).unwrap();
    assert!(taken.left_since(Millis(1)).is_none(), "it has changed since");
}

#[test]
fn a_process_whose_table_nobody_took_over_goes_on_using_it() {
    let shared = files_of(&TWO_WORKERS);
    let (table, mut workers, connections) = left_by_all(&shared);
    table.leave(NOW);
    workers.iter_mut().for_each(TableWorker::enter);
    assert_eq!(fill(&mut workers), table.entries() - connections.len());
    assert!(connections.iter().all(|new| is_found(&workers[0], new)));
}

#[test]
fn a_worker_that_leaves_the_table_leaves_counts_of_the_connections_in_it_alone() {
    let mut workers = Workers::new(64, 1);
    let flow = Flow::nat(1, 0);
    // The second SYN replaces the connection that the server has reset, which is counted until the next tick, as in
    // IPVS.
    for frame in [flow.request(SYN), flow.reply(RST | ACK), flow.request(SYN)] {
        workers.worker(0).packet(frame);
    }
    let of = |destination: &Destination| destination.live.load();
    let counted = |workers: &Workers| -> u32 {
        workers.destinations().map(of).map(|Load { active, inactive }| active + inactive).sum()
    };
    assert_eq!((workers.table().live(), counted(&workers)), (1, 2));
    workers.worker(0).leave();
    assert_eq!((workers.table().live(), counted(&workers)), (1, 1));
}

proptest::proptest! {
    /// Damage of any kind is discarded or harmless: what is left can be used.
    #[test]
    fn damaged_entries_never_do_harm(
        damage in proptest::collection::vec((0_usize..70_000, proptest::num::u64::ANY), 0..200),
    ) {
        let shared = files([&[], &[]]);
        let old = table(&shared);
        let mut worker = old.handle(0).unwrap();
        let controller = insert(&mut worker, &template(10));
        for new in staying() {
            let _ = worker.connection(controller).add_controlled();
            insert(&mut worker, &NewConnection { controller: Some(controller), ..new });
        }
        drop((worker, old));
        for (at, value) in damage {
            // Behind the constants of the header, which are checked as a whole.
            let file = if at % 2 == 0 { &shared.connections } else { &shared.extensions };
            file.write_all_at(&value.to_ne_bytes(), (at as u64 + 96) / 8 * 8).unwrap();
        }
        let Adopted { table, kept, .. } = adopt(&shared);
        let mut worker = table.handle(0).unwrap();
        for new in staying().chain(changing()) {
            for flow in flows(&new) {
                if let Some((id, _)) = worker.find(&flow, worker.hash(&flow)) {
                    let _ = (worker.connection(id).controller().map(|id| worker.connection(id).controlled()), worker.remove(id));
                }
            }
        }
        for second in 0..100 {
            worker.advance_timers(Millis(NOW.0 + 1000 * second), |table, id| _ = table.remove(id));
            worker.quiescent();
        }
        proptest::prop_assert!(table.live() <= kept);
        changing().for_each(|new| _ = insert(&mut worker, &new));
        proptest::prop_assert!(changing().all(|new| is_found(&worker, &new)));
    }
}
