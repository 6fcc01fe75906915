//! Every order of the steps of a take-over and of a start after a kill, with each fault at each step: the table is
//! always whole and belongs to one process, and no frame of a service reaches the kernel.
//!
//! The processes are values of this test, which share table files, an interface and its pin as xvsd's processes do;
//! table and XDP programs are real. Before a program comes into force, its process always prepares longer than the
//! hold. The order in xvsd is in `restart/serve.rs` of xvsd. Not here: a kill between two stores
//! (`connections/adopt.rs`). Needs root.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{env, mem, process};

use crate::connections::{find, inbound, insert, nat, reply};
use crate::testbed::{CLIENT, Host, Testbed, VIP};
use etherparse::PacketBuilder;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::{
    Boot, FormerTable, Inserted, Removal, Survey, Table, TableConfig, TableFiles, TableReader, TableWorker,
};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, HashSecret, Protocol};
use xvs_xdp::pins::Pins;
use xvs_xdp::{Attached, Wanted};

const CONFIG: TableConfig = TableConfig { capacity: 256, workers: 1, memory: Memory::OnDemand };
const BOOT: Boot = Boot([1, 2]);
const HOLD: Duration = Duration::from_secs(3600);

/// The steps of a process that starts. The programs come into force while the table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Prepare,
    Pause,
    PutInForce,
    Survey,
    Own,
}

const ORDERS: [[Step; 5]; 2] = [
    [Step::Prepare, Step::Pause, Step::PutInForce, Step::Survey, Step::Own],
    [Step::Prepare, Step::Pause, Step::Survey, Step::PutInForce, Step::Own],
];

/// What happens after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    SuccessorEnds,
    /// The successor fails then, too, unless it owns the table.
    FormerIsKilled,
    BothAreKilled,
}

const FAULTS: [Option<Fault>; 4] =
    [None, Some(Fault::SuccessorEnds), Some(Fault::FormerIsKilled), Some(Fault::BothAreKilled)];

/// A process with its program on the interface.
struct Program {
    steering: Steering,
    attached: Attached,
}

impl Program {
    /// It takes longer than the hold until it is in force.
    fn prepare(pins: &Pins) -> Self {
        let mut steering = Steering::load_for_test_runs().expect("run as root");
        let services = [(Protocol::TCP, Endpoint::new(VIP, 80))].into();
        steering.update(&SteeringRules { services, ..Default::default() }).unwrap();
        let mut attached = steering.attach("d0", Wanted::default(), Some(pins)).unwrap();
        steering.hold().set(HOLD, Duration::ZERO);
        if attached.former_program().is_none() {
            attached.pin(pins).unwrap();
        }
        let program = Self { steering, attached };
        program.waits_longer_than_the_hold();
        program
    }

    fn waits_longer_than_the_hold(&self) {
        self.steering.hold().beat(Clock::Monotonic.elapsed().saturating_sub(2 * HOLD));
    }

    fn works(&self) {
        self.steering.hold().beat(Clock::Monotonic.elapsed());
    }

    fn verdict(&self) -> Verdict {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(CLIENT, VIP, 64)
            .tcp(1, 80, 1, 1000)
            .write(&mut frame, b"hello")
            .unwrap();
        self.steering.test_run_without_sockets(&frame).unwrap()
    }
}

/// The table of a process that starts.
enum Taking {
    Nothing,
    Former(FormerTable),
    Surveyed(FormerTable, Survey),
}

/// The table of the process that owns it, with the handles of a worker and of the sweeper.
struct Owner {
    table: Arc<Table>,
    worker: TableWorker,
    sweeper: TableReader,
}

impl Owner {
    fn of(table: Arc<Table>) -> Self {
        Self { worker: table.handle(0).unwrap(), sweeper: table.reader().unwrap(), table }
    }
}

/// A bpffs of this test, so that the machine needs none.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Self {
        let folder = env::temp_dir().join(format!("xvs-orders-{}", process::id()));
        fs::create_dir(&folder).unwrap();
        mount("bpf", &folder, "bpf", MountFlags::empty(), None).unwrap();
        Self(folder)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

/// The director, as its clients see it.
struct Director {
    files: TableFiles,
    pins: Pins,
    /// The ports of clients with a connection.
    clients: BTreeSet<u16>,
    next: u16,
}

impl Director {
    fn new(bpffs: &Bpffs) -> Self {
        let file = |bytes| {
            let file = File::from(memfd_create("table", MemfdFlags::CLOEXEC).unwrap());
            file.set_len(bytes).unwrap();
            file
        };
        let [connections, extensions] = CONFIG.file_bytes().unwrap().map(file);
        let files = TableFiles { connections, extensions };
        let pins = Pins::of(&bpffs.0, "orders");
        Self { files, pins, clients: BTreeSet::new(), next: 1000 }
    }

    /// Clients come and go, and the sweeper ends some; then each connection is found, and every entry is one
    /// connection's or can be taken.
    fn forwards(&mut self, owner: &mut Owner) {
        for _ in 0..12 {
            insert(&mut owner.worker, &nat(self.next));
            self.clients.insert(self.next);
            self.next += 1;
        }
        let (mut ended, mut seen) = (Vec::new(), 0);
        owner.sweeper.visit(0..owner.table.extent(), |sweeper, id| {
            let port = sweeper.connection(id).client().port;
            if port % 3 == 0 && matches!(sweeper.remove(id), Removal::Done(_)) {
                ended.push(port);
            } else {
                seen += 1;
            }
        });
        assert!(ended.iter().all(|port| self.clients.remove(port)), "each is ended once");
        let oldest: Vec<_> =
            self.clients.iter().copied().take(self.clients.len().saturating_sub(20)).collect();
        for port in oldest {
            let (id, _) = find(&owner.worker, inbound(&nat(port))).unwrap();
            assert!(matches!(owner.worker.remove(id), Removal::Done(_)), "{port}");
            self.clients.remove(&port);
            seen -= 1;
        }
        assert_eq!((seen, owner.table.live()), (self.clients.len(), self.clients.len()));
        self.has_all(owner);
        let mut others = Vec::new();
        // The buckets of some are full.
        for port in 0..2000 {
            owner.worker.quiescent();
            owner.sweeper.visit(0..0, |_, _| {});
            let mut new = nat(port);
            new.client = Endpoint::new([198, 18, 0, 1], port);
            if let Inserted::New(id) = owner.worker.insert(&new) {
                others.push(id);
            }
        }
        assert!(
            others.len() + self.clients.len() >= CONFIG.capacity,
            "{} of {}",
            others.len(),
            CONFIG.capacity
        );
        self.has_all(owner);
        for id in others {
            assert!(matches!(owner.worker.remove(id), Removal::Done(_)));
            owner.worker.quiescent();
        }
        assert_eq!(owner.table.live(), self.clients.len());
    }

    fn has_all(&self, owner: &Owner) {
        for port in &self.clients {
            let new = nat(*port);
            let ids = [inbound(&new), reply(&new)].map(|flow| find(&owner.worker, flow).map(|(id, _)| id));
            assert!(ids[0].is_some() && ids[0] == ids[1], "{port}: {ids:?}");
        }
    }

    /// A start after a kill; or the first one.
    fn start(&mut self, order: &[Step]) -> (Owner, Program) {
        let former = FormerTable::map(&self.files, CONFIG, BOOT).ok();
        let mut program = Program::prepare(&self.pins);
        let mut taking = former.map(|mut table| {
            assert_eq!(table.repair(Millis(0), |number| number == 8, || {}).discarded, 0);
            Taking::Former(table)
        });
        for step in order.iter().filter(|step| matches!(step, Step::PutInForce | Step::Survey)) {
            match (step, taking.take()) {
                (Step::PutInForce, same) => {
                    program.steering.put_in_force(&mut program.attached).unwrap();
                    taking = same;
                }
                (_, former) => taking = former.map(surveyed),
            }
        }
        let owner = match taking {
            Some(Taking::Surveyed(table, survey)) => Owner::of(table.take_over(&survey)),
            _ => Owner::of(Table::create_in(&self.files, CONFIG, HashSecret([5, 6, 7]), BOOT).unwrap()),
        };
        assert_eq!(program.verdict(), Verdict::Held, "a start");
        (owner, program)
    }

    /// A take-over in this order, with this fault after the step of this place.
    fn take_over(
        &mut self,
        (mut owner, mut former): (Owner, Program),
        order: &[Step],
        fault: Option<(usize, Fault)>,
    ) -> (Owner, Program) {
        let mut successor: Option<Program> = None;
        let (mut taking, mut owned, mut is_in_force) = (Taking::Nothing, None, false);
        for (place, step) in order.iter().enumerate() {
            match step {
                Step::Prepare => {
                    successor = Some(Program::prepare(&self.pins));
                    taking = Taking::Former(FormerTable::map(&self.files, CONFIG, BOOT).unwrap());
                    // Meanwhile the former process forwards.
                    former.works();
                    self.forwards(&mut owner);
                }
                Step::Pause => former.works(),
                Step::PutInForce => {
                    let program = successor.as_mut().unwrap();
                    program.steering.put_in_force(&mut program.attached).unwrap();
                    is_in_force = true;
                }
                Step::Survey => taking = surveyed(taking),
                Step::Own => {
                    let Taking::Surveyed(table, survey) = mem::replace(&mut taking, Taking::Nothing) else {
                        unreachable!("the table is read before it is owned")
                    };
                    owned = Some(Owner::of(table.take_over(&survey)));
                }
            }
            let in_force = successor.as_ref().filter(|_| is_in_force).unwrap_or(&former);
            assert_eq!(in_force.verdict(), Verdict::Held, "after {step:?}");
            let Some((_, fault)) = fault.filter(|(at, _)| *at == place) else { continue };
            let has_taken = owned.is_some();
            if fault == Fault::FormerIsKilled && has_taken {
                break;
            }
            // A process that is killed returns nothing.
            mem::forget((successor, taking, owned));
            if fault != Fault::SuccessorEnds {
                mem::forget(owner);
                drop(former);
                return self.start(order);
            }
            former.waits_longer_than_the_hold();
            former.steering.restore(&mut former.attached).unwrap();
            assert_eq!(former.verdict(), Verdict::Held, "the former program again, after {step:?}");
            if has_taken {
                // It begins anew, because its handles may have what the successor has given away.
                mem::forget(owner);
                drop(former);
                return self.start(order);
            }
            return (owner, former);
        }
        mem::forget(owner);
        drop(former);
        (owned.unwrap(), successor.unwrap())
    }
}

fn surveyed(taking: Taking) -> Taking {
    let Taking::Former(table) = taking else { unreachable!("a former table is read once") };
    let survey = table.survey(|_| (), || {});
    Taking::Surveyed(table, survey)
}

#[test]
fn in_every_order_with_every_fault_the_table_is_whole_and_no_frame_reaches_the_kernel() {
    Testbed::new().inside(Host::Director, || {
        let bpffs = Bpffs::mount();
        let mut director = Director::new(&bpffs);
        let mut running = director.start(&ORDERS[0]);
        // Up to the pause the second order is the first one.
        for (order, places) in ORDERS.iter().zip([0..5, 2..5]) {
            for fault in FAULTS {
                for place in places.clone() {
                    director.forwards(&mut running.0);
                    running = director.take_over(running, order, fault.map(|fault| (place, fault)));
                    director.forwards(&mut running.0);
                    if fault.is_none() {
                        break;
                    }
                }
            }
        }
        drop(running);
        director.pins.release().unwrap();
    });
}
