//! Models of records: workers and the XDP program that change the state of one connection, interleaved in every order
//! that loom explores with a bounded number of preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p xvs-dataplane --release --target-dir target/loom --test loom_offload`
//!
//! Workers are the production code; there are at most two records here. The program is [`Program`]. Where a model
//! is about a race that each side may win, it counts both, because a model that never reaches one shows nothing.

#![cfg(loom)]

mod program;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed as Counted;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use loom::sync::atomic::AtomicBool;
use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::thread;
use xvs_dataplane::burst::Context;
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::log::Ending;
use xvs_dataplane::conn::tcp::TcpState;
use xvs_dataplane::conn::{
    ConnId, Direction, Flags, Inserted, NewConnection, Removal, Spare, Table, TableConfig,
};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::egress::{Egress, Path};
use xvs_dataplane::forward::Identification;
use xvs_dataplane::offload::Offload;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::{
    Activity, Destination, DestinationId, DestinationLive, Encapsulation, Snapshot, Tunnel,
};
use xvs_proto::network::Network;
use xvs_proto::packet::Fragment;
use xvs_proto::tcp::Flags as Control;
use xvs_proto::{Endpoint, FlowKey, LinkId, MacAddr, Packet, Protocol};
use xvs_sched::{ForwardingMethod, Load, ServiceKey, Weight};

use program::{HALF_OPEN, INACTIVE, Program, USED};

/// A table, its offload, and the destination of connections, unless they are [`OTHER`]'s.
#[derive(Clone)]
struct World {
    table: Arc<Table>,
    offload: Arc<Offload>,
    snapshot: Arc<Snapshot>,
    live: Arc<DestinationLive>,
}

/// A worker at a moment.
struct Worker {
    flows: Flows,
    offload: Arc<Offload>,
    snapshot: Arc<Snapshot>,
    now: Millis,
}

impl World {
    fn new(records: u32) -> Self {
        let config = TableConfig { capacity: 2, workers: 2, memory: Memory::OnDemand };
        let table = Table::create(config).expect("a tiny table");
        let offload = Arc::new(Offload::of_model(records, &table));
        offload.set_table(&table);
        let live = Arc::new(DestinationLive::new(2));
        let snapshot = Arc::new(snapshot(&live));
        Self { table, offload, snapshot, live }
    }

    /// A world with a connection that a worker has offloaded; and that worker.
    fn with_connection() -> (Self, Worker, ConnId) {
        let world = Self::new(2);
        let mut owner = world.worker(0);
        let id = owner.insert(1);
        assert!(owner.begin(id), "a record is free");
        (world, owner, id)
    }

    fn worker(&self, number: usize) -> Worker {
        let handle = self.table.handle(number).expect("a handle");
        let ids = Identification::numbered(*self.table.secret(), number);
        let mut flows =
            Flows::new(number, handle, Arc::new(WorkerCounters::default()), SharedStats::new(2), ids);
        flows.set_offload(self.offload.clone());
        Worker { flows, offload: self.offload.clone(), snapshot: self.snapshot.clone(), now: START }
    }

    /// Asserts that these are the connections of the destination, by its counts, and that neither record nor program
    /// knows more.
    fn assert_counts(&self, active: u32, inactive: u32) {
        let moves: Vec<_> = self.offload.moves().iter().map(|word| word.load(Relaxed) as i64).collect();
        assert_eq!(moves[INACTIVE..], [0, 0], "moves that were not taken back, or twice");
        assert_eq!(moves[HALF_OPEN], 0);
        assert_eq!(self.live.load(), Load { active, inactive });
    }
}

impl Worker {
    fn insert(&mut self, port: u16) -> ConnId {
        self.insert_at(DEST, port)
    }

    fn insert_at(&mut self, destination: DestinationId, port: u16) -> ConnId {
        let new = NewConnection { dest_ref: destination.0, ..connection(port) };
        let Inserted::New(id) = self.flows.table().insert(&new) else { panic!("there is room") };
        let known = self.snapshot.destinations.find(destination).expect("it is there");
        known.live.increment(Activity::of(new.protocol, new.state));
        id
    }

    fn begin(&mut self, id: ConnId) -> bool {
        let cx = Context::new(&self.snapshot, self.now);
        self.flows.begin_offload(id, WAN, cx)
    }

    fn process(&mut self, id: ConnId, flags: Control, direction: Direction) {
        let cx = Context::new(&self.snapshot, self.now);
        self.flows.process(id, &packet(flags), direction, cx);
    }

    fn advance(&mut self, id: ConnId, flags: Control, direction: Direction) {
        let cx = Context::new(&self.snapshot, self.now);
        self.flows.advance(id, &packet(flags), direction, cx);
    }

    /// Reads all of its records, and frees those that have ended.
    fn sweep(&mut self) {
        self.flows.hasten_sweep();
        let cx = Context::new(&self.snapshot, self.now);
        self.flows.sweep_offloaded(cx);
    }

    /// As [`Self::sweep`], also between two steps that another worker takes with the record of this connection.
    fn sweep_between(mut self, id: ConnId) -> Self {
        self.offload.touch(id);
        self.sweep();
        self
    }

    /// Removes a connection, as an operator does.
    fn remove(&mut self, id: ConnId) {
        let removal = self.flows.table().remove(id);
        self.count_out(removal);
    }

    fn count_out(&self, removal: Removal) {
        let Removal::Done(state) = removal else { panic!("{removal:?}") };
        self.live().decrement(Activity::of(Protocol::TCP, state));
    }

    fn live(&self) -> &DestinationLive {
        &self.snapshot.destinations.find(DEST).expect("it is there").live
    }

    /// The state of a connection.
    fn state(&mut self, id: ConnId) -> TcpState {
        TcpState::of(self.flows.table().connection(id).state())
    }
}

fn connection(port: u16) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: Endpoint::new(CLIENT, port),
        virtual_endpoint: Endpoint::new(VIP, 80),
        dest: Endpoint::new(SERVER, 80),
        local: None,
        method: ForwardingMethod::Nat,
        flags: Flags::NONE,
        state: TcpState::Established as u8,
        expires: START + ESTABLISHED,
        spare: Spare::NONE,
        dest_ref: DEST.0,
        mark: 0,
        controller: None,
    }
}

/// What matters of a segment to the state of its connection.
fn packet(flags: Control) -> Packet {
    let (client, service) = (Endpoint::new(CLIENT, 1), Endpoint::new(VIP, 80));
    Packet {
        network: 14,
        transport: 34,
        end: 54,
        flow: FlowKey { protocol: Protocol::TCP, source: client, dest: service },
        fragment: Fragment::Whole,
        fragment_header: None,
        tcp_flags: flags,
        sctp_event: None,
        icmp_type: None,
        ttl: 64,
        tos: 0,
        dont_fragment: true,
        longest_fragment: None,
    }
}

fn snapshot(live: &Arc<DestinationLive>) -> Snapshot {
    // Nothing of it changes.
    static EGRESS: OnceLock<Arc<Egress>> = OnceLock::new();
    let egress = EGRESS.get_or_init(|| Arc::new(Egress::build(&network()))).clone();
    let mut snapshot = Snapshot { egress, ..Snapshot::default() };
    let endpoint = Endpoint::new(SERVER, 80);
    let destination = Destination {
        available: true,
        key: ServiceKey::Address { protocol: Protocol::TCP, endpoint: Endpoint::new(VIP, 80) },
        endpoint,
        method: ForwardingMethod::Nat,
        weight: Weight(1),
        path: Path::find(&snapshot.egress, IpAddr::from(SERVER), 0),
        path_mtu: Arc::default(),
        in_vrfs: Arc::default(),
        tunnel: Tunnel { source: None, encapsulation: Encapsulation::Ip },
        live: live.clone(),
        service: Arc::default(),
    };
    let live = Arc::new(DestinationLive::new(2));
    snapshot.destinations.set(OTHER, Some(Destination { live, ..destination.clone() }));
    snapshot.destinations.set(DEST, Some(destination));
    snapshot
}

/// Clients and servers, each at its link, which the program serves.
fn network() -> Network {
    let mut network = Network::default();
    for (name, last, net, host) in [("wan", 1, VIP.octets(), CLIENT), ("lan", 2, SERVER.octets(), SERVER)] {
        let addr = Ipv4Addr::new(net[0], net[1], net[2], 254);
        let addr = if name == "wan" { Ipv4Addr::new(203, 0, 113, 254) } else { addr };
        network
            .add_link(name, MacAddr([2, 0, 0, 0, 0, last]), &[(IpAddr::from(addr), 24)], 1500)
            .expect("a new name");
        network.add_neighbour(host.into(), MacAddr([2, 0, 0, 0, 1, last]), name).expect("it is there");
    }
    network.links.iter_mut().for_each(|link| (link.offloads, link.takes_redirected) = (true, true));
    network
}

const CLIENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const WAN: LinkId = LinkId(0);
const DEST: DestinationId = DestinationId(1);
/// Of the other slot.
const OTHER: DestinationId = DestinationId(2);
const ACK: Control = Control(0x10);
const FIN: Control = Control(0x11);
const START: Millis = Millis(1_000_000);
/// The default of `--set`.
const ESTABLISHED: Duration = Duration::from_secs(900);

fn explore(model: impl Fn() + Sync + Send + 'static) {
    explore_with(PREEMPTIONS, model);
}

fn explore_with(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// Counts runs by their outcome.
fn count<const N: usize>(runs: &[AtomicUsize; N], outcome: usize) {
    runs[outcome].fetch_add(1, Counted);
}

/// Asserts that each outcome has occurred.
fn assert_all<const N: usize>(runs: &[AtomicUsize; N]) {
    assert!(runs.iter().all(|times| times.load(Counted) > 0), "{runs:?}");
}

#[test]
fn a_connection_whose_packet_the_program_forwarded_before_the_seal_does_not_expire_by_an_older_time() {
    static RUNS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
    explore(|| {
        let (world, mut owner, id) = World::with_connection();
        let program = Program::of(&world.offload, id);
        let due = START + ESTABLISHED + Duration::from_secs(1);
        let is_forwarded = Arc::new(AtomicBool::new(false));
        let seen = is_forwarded.clone();
        let thread = thread::spawn(move || {
            let forwarded = program.segment(ACK, Direction::Inbound, due);
            is_forwarded.store(forwarded, Release);
            forwarded
        });
        // The test is done once before the seal, and then after it.
        let before_seal = std::cell::Cell::new(None);
        let removal = owner.flows.table().remove_if(id, Ending::Expired, |_, expires| {
            before_seal.set(before_seal.get().or_else(|| Some(seen.load(Acquire))));
            expires <= due
        });
        let is_forwarded = thread.join().expect("no panic");
        let is_kept = removal == Removal::Kept;
        assert!(is_kept || before_seal.get() == Some(false), "it expires by an older time");
        count(
            &RUNS,
            match (is_kept, is_forwarded) {
                (false, _) => 0,
                (true, true) => 1 + usize::from(before_seal.get() == Some(true)),
                (true, false) => panic!("no packet has prolonged it"),
            },
        );
    });
    assert_all(&RUNS);
}

#[test]
fn a_program_that_finds_a_record_by_its_number_moves_the_connection_that_has_it() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    explore(|| {
        let world = World::new(1);
        let mut owner = world.worker(0);
        let id = owner.insert(1);
        let of_program = world.clone();
        let thread = thread::spawn(move || {
            let Some(program) = Program::of_first(&of_program.offload) else { return false };
            assert_eq!(of_program.offload.record_of(id), Some(0), "the record is no connection's yet");
            program.segment(FIN, Direction::Outbound, START)
        });
        assert!(owner.begin(id), "a record is free");
        let is_forwarded = thread.join().expect("no panic");
        if is_forwarded {
            owner.process(id, FIN, Direction::Inbound);
            assert_eq!(owner.state(id), TcpState::TimeWait);
            world.assert_counts(0, 1);
        }
        count(&RUNS, usize::from(is_forwarded));
    });
    assert_all(&RUNS);
}

/// The server's FIN, which the program sees, and the client's, which goes to a worker: the last state is TIME_WAIT,
/// whichever is the first. A segment that finds the record sealed goes to another worker.
fn two_fins(runs: &'static [AtomicUsize; 2], process: fn(&mut Worker, ConnId, Control, Direction)) {
    explore(move || {
        let (world, mut owner, id) = World::with_connection();
        let program = Program::of(&world.offload, id);
        let mut other = world.worker(1);
        let thread = thread::spawn(move || {
            let is_forwarded = program.segment(FIN, Direction::Outbound, START);
            if !is_forwarded {
                other.process(id, FIN, Direction::Outbound);
            }
            is_forwarded
        });
        process(&mut owner, id, FIN, Direction::Inbound);
        count(runs, usize::from(thread.join().expect("no panic")));
        assert_eq!(owner.state(id), TcpState::TimeWait);
        world.assert_counts(0, 1);
    });
    assert_all(runs);
}

#[test]
fn a_connection_that_is_taken_back_while_the_program_moves_it_has_the_last_state() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    two_fins(&RUNS, Worker::process);
}

#[test]
fn a_transition_that_meets_a_move_of_the_program_begins_at_its_state() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    two_fins(&RUNS, Worker::advance);
}

#[test]
fn a_delayed_segment_of_a_removed_connection_does_not_move_the_next_one_of_its_record() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    explore(|| {
        let world = World::new(1);
        let mut owner = world.worker(0);
        let [old, young] = [1, 2].map(|port| owner.insert(port));
        assert!(owner.begin(old), "a record is free");
        let program = Program::of(&world.offload, old);
        let thread = thread::spawn(move || program.segment(FIN, Direction::Inbound, START));
        owner.remove(old);
        while !owner.begin(young) {
            owner.sweep();
        }
        assert_eq!(world.offload.record_of(young), Some(0), "it is the one record");
        let is_forwarded = thread.join().expect("no panic");
        count(&RUNS, usize::from(is_forwarded));
        assert_eq!(owner.state(young), TcpState::Established);
        world.assert_counts(1, 0);
    });
    assert_all(&RUNS);
}

#[test]
fn the_next_process_gives_each_connection_what_its_record_says_once() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    // The kill comes after this number of steps: the seal, the copy, the end of the record.
    for steps in 0..=3 {
        explore_with(PREEMPTIONS - 1, move || {
            let (world, mut owner, id) = World::with_connection();
            // Of a table and records that are the same.
            let earlier = World::with_connection().0.offload.uncounted();
            assert_eq!(earlier.len(), 1, "the other record was never used");
            let program = Program::of(&world.offload, id);
            let record = program.record;
            let thread = thread::spawn(move || program.segment(FIN, Direction::Inbound, START));
            if steps > 0 {
                world.offload.seal(record);
            }
            (1..steps).for_each(|_| owner.sweep());
            let is_forwarded = thread.join().expect("no panic");
            count(&RUNS, usize::from(is_forwarded));
            // The next process counts what the entry says, before it knows the record.
            world.offload.leave(id);
            let live = Arc::new(DestinationLive::new(2));
            live.increment(Activity::of(Protocol::TCP, owner.state(id) as u8));
            let snapshot = snapshot(&live);
            let cx = Context::new(&snapshot, START);
            let mut next = world.worker(1).flows;
            next.table().park();
            next.count_former(world.offload.uncounted(), cx);
            // What it knows already it does not take from a record of an earlier process.
            next.count_former(earlier, cx);
            next.table().unpark();
            let expected = if is_forwarded { TcpState::CloseWait } else { TcpState::Established };
            let inactive = u32::from(is_forwarded);
            assert_eq!(owner.state(id), expected, "killed after {steps} steps");
            assert_eq!(live.load(), Load { active: 1 - inactive, inactive });
        });
    }
    assert_all(&RUNS);
}

#[test]
fn a_segment_that_meets_the_next_process_has_moved_its_connection_before_or_goes_to_a_worker() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    explore(|| {
        let (world, mut owner, id) = World::with_connection();
        let program = Program::of(&world.offload, id);
        let thread = thread::spawn(move || program.segment(FIN, Direction::Inbound, START));
        let taken = world.offload.uncounted();
        let is_forwarded = thread.join().expect("no panic");
        count(&RUNS, usize::from(is_forwarded));
        world.offload.leave(id);
        let cx = Context::new(&world.snapshot, START);
        let mut next = world.worker(1).flows;
        next.table().park();
        next.count_former(taken, cx);
        next.table().unpark();
        let expected = if is_forwarded { TcpState::CloseWait } else { TcpState::Established };
        assert_eq!(owner.state(id), expected);
    });
    assert_all(&RUNS);
}

/// A worker removes a connection while the program moves it, or after that, while the owner of the record reads it.
fn removed(remove: fn(&mut Worker, ConnId)) {
    explore(move || {
        let (world, mut owner, id) = World::with_connection();
        let program = Program::of(&world.offload, id);
        let thread = thread::spawn(move || program.segment(FIN, Direction::Inbound, START));
        remove(&mut owner, id);
        thread.join().expect("no panic");
        world.assert_counts(0, 0);
    });
    explore(move || {
        let (world, owner, id) = World::with_connection();
        let program = Program::of(&world.offload, id);
        // Delayed before it counts the packet: a record without one is freed as soon as it has ended.
        assert!(program.moves(FIN, Direction::Inbound, START));
        let mut other = world.worker(1);
        let thread = thread::spawn(move || owner.sweep_between(id));
        remove(&mut other, id);
        thread.join().expect("no panic");
        world.assert_counts(0, 0);
    });
}

#[test]
fn no_move_of_the_program_is_left_when_its_connection_is_removed() {
    removed(Worker::remove);
}

#[test]
fn no_move_of_the_program_is_left_when_its_connection_expires() {
    removed(|worker, id| {
        let removal = worker.flows.table().remove_if(id, Ending::Drained, |_, _| true);
        worker.count_out(removal);
    });
}

/// A worker processes a segment of a connection that the program has moved, while the owner of the record reads it.
fn settled_twice(process: fn(&mut Worker, ConnId, Control, Direction)) {
    explore(move || {
        let (world, owner, id) = World::with_connection();
        // As above.
        assert!(Program::of(&world.offload, id).moves(FIN, Direction::Inbound, START));
        let mut other = world.worker(1);
        let thread = thread::spawn(move || owner.sweep_between(id));
        process(&mut other, id, FIN, Direction::Outbound);
        let _owner = thread.join().expect("no panic");
        assert_eq!(other.state(id), TcpState::TimeWait);
        world.assert_counts(0, 1);
    });
}

#[test]
fn of_two_workers_that_settle_a_connection_one_moves_it() {
    settled_twice(Worker::process);
}

#[test]
fn a_transition_and_a_settlement_move_a_connection_once() {
    settled_twice(Worker::advance);
}

#[test]
fn a_move_is_taken_back_where_it_was_counted_though_its_record_is_in_another_use_by_then() {
    static RUNS: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];
    explore_with(PREEMPTIONS - 1, || {
        let world = World::new(1);
        let mut owner = world.worker(0);
        let (old, young) = (owner.insert(1), owner.insert_at(OTHER, 2));
        assert!(owner.begin(old), "a record is free");
        assert!(Program::of(&world.offload, old).moves(FIN, Direction::Inbound, START));
        let mut other = world.worker(1);
        let offload = world.offload.clone();
        let thread = thread::spawn(move || {
            // Writes nothing; see `Offload::touch`.
            let _ = offload.record(0)[USED].compare_exchange(u64::MAX, 0, Relaxed, Relaxed);
            let mut owner = owner.sweep_between(old);
            owner.sweep();
            let begins = owner.begin(young);
            (owner, begins)
        });
        other.advance(old, FIN, Direction::Outbound);
        let (_owner, begins) = thread.join().expect("no panic");
        count(&RUNS, usize::from(begins));
        assert_eq!(other.state(old), TcpState::TimeWait);
        world.assert_counts(0, 1);
    });
    assert_all(&RUNS);
}

/// Bounds the time.
const PREEMPTIONS: usize = 3;
