//! `xvsd`: start-up and shutdown in order.
//!
//! Up: the socket (so that a second daemon touches nothing), the network, the XDP program on each interface, the
//! table, a worker for each share of the queues, the control thread, readiness. Down, in reverse: no more requests,
//! the XDP program off (the kernel has its packets back), the workers' last burst, the sockets. What fails on the way
//! up undoes what was done, by dropping it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use thiserror::Error;
use xvs_dataplane::clock::{Clock, Millis};
use xvs_dataplane::conn::{Table, TableConfig, TableReader};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::model::Network;
use xvs_dataplane::flow::Flows;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::outcome::{Outcome, Unresolved};
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::LinkId;
use xvs_dataplane::port::xdp::{Waker, XdpPort};
use xvs_dataplane::reinject::Reinjector;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::worker::Worker;
use xvs_dataplane::xdp::{
    AttachError, Attached, Queues, RingSizes, SocketError, Sockets, Steering, SteeringError, SteeringRules,
};

use crate::config::{Config, ConfigError};
use crate::control::{Control, Plant};
use crate::memory::available_pages;
use crate::message::{CommandError, Reply, Request};
use crate::network::neighbours::Neighbours;
use crate::network::{Following, View, follow};
use crate::sweep::{SweepCounters, Sweeper, Sweeping};

/// Why the daemon does not run.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("no interface to take packets from; name one with --interface, or `interfaces` in xvs.toml")]
    NoInterface,
    #[error("interface {0} is named twice")]
    InterfaceTwice(String),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(
        "the XDP program cannot be loaded ({0}); xvsd needs root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON"
    )]
    Program(io::Error),
    #[error(
        "{workers} workers cannot share {queues} queues of {interface}; each needs one, so take fewer workers, or `ethtool -L {interface} combined {workers}`"
    )]
    TooManyWorkers { workers: usize, queues: u32, interface: String },
    #[error("{what}: {error}")]
    System { what: &'static str, error: io::Error },
}

/// Says what a system call was for.
fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |error| DaemonError::System { what, error }
}

/// What reaches the control thread.
enum Input {
    Request(Request, Sender<Result<Reply, CommandError>>),
    Network(View),
    Stop,
}

/// How often the control thread looks for next hops that packets were dropped for.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(100);
/// Changes of the network, and requests, that may wait for the control thread.
const QUEUE: usize = 1024;

/// How far apart the sequences of identifications begin.
const ID_STRIDE: u16 = 4093;

/// A running daemon.
pub struct Daemon {
    inputs: Sender<Input>,
    control: Option<JoinHandle<Wired>>,
    network: Option<Following>,
    sweeping: Option<Sweeping>,
    workers: Vec<Running>,
    shared: Arc<Shared>,
}

/// A worker's thread, and how to end it.
struct Running {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<XdpPort>,
}

/// What requests that need no writer are answered from.
pub struct Shared {
    clock: Arc<Clock>,
    table: Arc<Table>,
    reader: Mutex<TableReader>,
    counters: Vec<Arc<WorkerCounters>>,
    swept: Arc<SweepCounters>,
    /// How each interface is attached and each worker placed, and what is wrong with the network.
    facts: Mutex<Facts>,
}

/// What `xvs status` tells beside counters.
#[derive(Clone, Default)]
pub struct Facts {
    /// One line an interface.
    pub interfaces: Vec<InterfaceFacts>,
    /// One line a worker.
    pub workers: Vec<WorkerFacts>,
    /// Sentences for the operator.
    pub warnings: Vec<String>,
}

/// An interface as it is attached.
#[derive(Clone)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// `native` or `generic`.
    pub mode: String,
    /// Why not native.
    pub why_not_native: Option<String>,
    /// Receive queues.
    pub queues: u32,
}

/// Where a worker runs.
#[derive(Clone)]
pub struct WorkerFacts {
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// Whether the kernel copies its frames, and because of which interface.
    pub copy_mode: String,
    /// Its share of each interface's queues.
    pub queues: Vec<u32>,
}

/// The control thread's hold on the machine. Fields are dropped in this order: the interfaces are the kernel's again
/// before anything else goes.
struct Wired {
    /// Held to be dropped.
    _attached: Vec<Attached>,
    steering: Steering,
    neighbours: Neighbours,
    table: Arc<Table>,
}

impl Wired {
    /// Whose seat it is at the table.
    fn who(&self, seat: usize) -> String {
        let workers = self.table.config().workers;
        if seat < workers { format!("worker {seat}") } else { "a listing".to_owned() }
    }
}

impl Plant for Wired {
    fn widen(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.add(rules)
    }

    fn narrow(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.steering.remove(rules)
    }

    fn await_workers(&mut self, patience: Duration) -> Result<(), String> {
        let epoch = self.table.close_epoch();
        let patience = Instant::now() + patience;
        while let Some(seat) = self.table.laggard(epoch) {
            if Instant::now() >= patience {
                return Err(format!(
                    "xvs: the change is made, but {} has not taken it up; see `xvs status`",
                    self.who(seat)
                ));
            }
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    }

    fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
        match self.neighbours.manage(neighbours) {
            Ok(refused) => refused.iter().for_each(|refused| tracing::warn!("{refused}")),
            Err(error) => tracing::warn!("neighbours cannot be kept resolved: {error}"),
        }
    }

    fn available_pages(&mut self) -> Option<u32> {
        available_pages().inspect_err(|error| tracing::warn!("the memory left is not known: {error}")).ok()
    }
}

impl Daemon {
    /// Starts everything; returns when packets are taken and commands can be given.
    ///
    /// # Errors
    /// What could not be started; nothing stays attached then.
    pub fn start(config: &Config) -> Result<Self, DaemonError> {
        config.check()?;
        check_interfaces(&config.interfaces)?;
        let clock = Arc::new(Clock::monotonic());
        let steering = Steering::load().map_err(DaemonError::Program)?;
        let attached: Vec<_> =
            config.interfaces.iter().map(|name| steering.attach(name)).collect::<Result<_, _>>()?;
        let shares = shares(&attached, config.workers)?;
        let memory = Memory::OnDemand;
        let table = TableConfig { capacity: config.conn_table_size, workers: shares.len(), memory };
        let table = Table::create(table).map_err(system("the connection table"))?;
        let reader = table.reader().expect("a new table has its seats free");
        let neighbours = Neighbours::open().map_err(system("netlink"))?;
        let ways: Vec<_> = attached
            .iter()
            .map(|attached| Reinjector::open(attached).map(Arc::new))
            .collect::<Result<_, _>>()
            .map_err(system("the TAP by which packets go back to the kernel"))?;

        let mut facts =
            Facts { interfaces: attached.iter().map(interface_facts).collect(), ..Facts::default() };
        let rings = RingSizes { receive: config.receive_ring, transmit: config.transmit_ring };
        let mut ports = Vec::new();
        for (share, core) in shares.iter().zip(cores(shares.len())) {
            let links: Vec<_> =
                attached.iter().zip(share).map(|(attached, queues)| Queues { attached, queues }).collect();
            let sockets = Sockets::open(&links, rings)?;
            let copy_mode = sockets.copy_mode().to_string();
            facts.workers.push(WorkerFacts {
                core: core.map(|core| core.id),
                copy_mode,
                queues: share[0].clone(),
            });
            let port = XdpPort::open(sockets, ways.clone()).map_err(system("a worker's port"))?;
            ports.push((port, core));
        }

        let unresolved = Arc::new(Unresolved::new(64));
        let names: Vec<_> = attached.iter().map(|attached| attached.index()).collect();
        let plant = Wired { _attached: attached, steering, neighbours, table: table.clone() };
        let control = Control::new(plant, shares.len(), config.ipvs);
        // Nobody outside can tell where the sequences begin.
        let first_id = table.secret().0[0] as u16;
        let mut workers = Vec::new();
        let mut counters = Vec::new();
        for (number, (port, core)) in ports.into_iter().enumerate() {
            let counted = Arc::new(WorkerCounters::default());
            counters.push(counted.clone());
            let seat = table.handle(number).expect("each worker has its seat");
            let ids = |half| Identification::after(first_id.wrapping_add(half * ID_STRIDE));
            let ids = (ids(2 * number as u16), ids(2 * number as u16 + 1));
            let flows = Flows::new(number, seat, counted.clone(), control.total(), unresolved.clone(), ids.0);
            let stop = Arc::new(AtomicBool::new(false));
            let waker = port.waker();
            let worker = Worker {
                pipeline: Pipeline::new(flows, Outcome::new(counted, unresolved.clone(), ids.1)),
                port,
                snapshot: control.published(),
                clock: clock.clone(),
                stop: stop.clone(),
            };
            let thread = spawn(format!("xvs-worker-{number}"), move || {
                if let Some(core) = core
                    && !core_affinity::set_for_current(core)
                {
                    tracing::warn!("worker {number} cannot be pinned to core {}", core.id);
                }
                worker.run()
            })?;
            workers.push(Running { stop, waker, thread });
        }
        let seat = table.reader().expect("a new table has its seats free");
        let sweeper = Sweeper::new(seat, control.published(), table.secret().0[1]);
        let swept = sweeper.counters();
        let sweeping = Some(Sweeping::start(sweeper, clock.clone()).map_err(system("a thread"))?);
        let (reader, facts) = (Mutex::new(reader), Mutex::new(facts));
        let shared = Arc::new(Shared { clock, table, reader, counters, swept, facts });
        let (inputs, queue) = bounded(QUEUE);
        let from_network = inputs.clone();
        let thread_shared = shared.clone();
        let control = spawn("xvs-control".to_owned(), move || {
            ControlThread { control, queue, unresolved, links: names, shared: thread_shared }.run()
        })?;
        let (seen, first_view) = bounded(1);
        let network = follow(move |view| {
            // The control thread is gone only when the daemon ends.
            let _ = from_network.send(Input::Network(view));
            // Full but for the first time.
            let _ = seen.try_send(());
        })
        .map_err(system("following the kernel's network"))?;
        let (control, network) = (Some(control), Some(network));
        let daemon = Self { inputs, control, network, sweeping, workers, shared };
        // The first view of the network is in the queue before the request, so it is in force when this returns.
        let _ = first_view.recv();
        let _ = daemon.handle().ask(Request::Timeouts);
        Ok(daemon)
    }

    /// A way to ask, for whoever serves the socket.
    pub fn handle(&self) -> Handle {
        Handle { inputs: self.inputs.clone(), shared: self.shared.clone() }
    }

    /// Gives the interfaces back to the kernel and ends every thread.
    pub fn stop(mut self) {
        drop(self.network.take());
        drop(self.sweeping.take());
        let _ = self.inputs.send(Input::Stop);
        let wired = self.control.take().map(JoinHandle::join);
        if let Some(Ok(wired)) = wired {
            drop(wired);
        }
        for worker in &self.workers {
            worker.stop.store(true, Ordering::Relaxed);
            worker.waker.wake();
        }
        for worker in self.workers.drain(..) {
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, DaemonError> {
    thread::Builder::new().name(name).spawn(run).map_err(system("a thread"))
}

fn check_interfaces(names: &[String]) -> Result<(), DaemonError> {
    if names.is_empty() {
        return Err(DaemonError::NoInterface);
    }
    let mut seen = BTreeSet::new();
    match names.iter().find(|name| !seen.insert(*name)) {
        Some(twice) => Err(DaemonError::InterfaceTwice(twice.clone())),
        None => Ok(()),
    }
}

/// For each worker, its queues of each interface: every queue belongs to one worker.
fn shares(attached: &[Attached], wanted: Option<usize>) -> Result<Vec<Vec<Vec<u32>>>, DaemonError> {
    let fewest =
        attached.iter().min_by_key(|attached| attached.receive_queues()).ok_or(DaemonError::NoInterface)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let queues = fewest.receive_queues();
    let workers = wanted.unwrap_or_else(|| (queues as usize).min(cores.saturating_sub(1)).max(1));
    if workers > queues as usize {
        let interface = fewest.interface().to_owned();
        return Err(DaemonError::TooManyWorkers { workers, queues, interface });
    }
    let share = |worker: usize| {
        let of = |attached: &Attached| (0..attached.receive_queues()).skip(worker).step_by(workers).collect();
        attached.iter().map(of).collect()
    };
    Ok((0..workers).map(share).collect())
}

/// A core for each worker, from the last one down, so that the first is left to the rest of the machine.
fn cores(workers: usize) -> Vec<Option<core_affinity::CoreId>> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.reverse();
    (0..workers).map(|worker| cores.get(worker % cores.len().max(1)).copied()).collect()
}

fn interface_facts(attached: &Attached) -> InterfaceFacts {
    let facts = InterfaceFacts {
        name: attached.interface().to_owned(),
        mode: attached.mode().to_string(),
        why_not_native: attached.native_refused().map(ToString::to_string),
        queues: attached.receive_queues(),
    };
    match &facts.why_not_native {
        Some(why) => tracing::warn!("{}: generic XDP, because native was refused: {why}", facts.name),
        None => tracing::info!("{}: native XDP", facts.name),
    }
    facts
}

/// The control thread.
struct ControlThread {
    control: Control<Wired>,
    queue: Receiver<Input>,
    unresolved: Arc<Unresolved>,
    /// The kernel's indices of the attached interfaces, in the order of their [`LinkId`]s.
    links: Vec<u32>,
    shared: Arc<Shared>,
}

impl ControlThread {
    fn run(mut self) -> Wired {
        loop {
            match self.queue.recv_timeout(UNRESOLVED_INTERVAL) {
                Ok(Input::Request(request, reply)) => {
                    let answer = self.control.handle(&request, self.shared.clock.now());
                    // Who asked may have gone.
                    let _ = reply.send(answer);
                }
                Ok(Input::Network(view)) => self.network(&view),
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return self.control.into_plant(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = self.control.tick(self.shared.clock.now()) {
                tracing::error!("{error}");
            }
            self.resolve();
        }
    }

    fn network(&mut self, view: &View) {
        let network = attached_only(&view.network, &self.links);
        if let Err(error) = self.control.set_network(&network) {
            tracing::error!("a change of the network: {error}");
        }
        let mut facts = self.shared.facts.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in view.warnings.iter().filter(|warning| !facts.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        facts.warnings.clone_from(&view.warnings);
    }

    fn resolve(&mut self) {
        let missing: BTreeSet<_> = std::iter::from_fn(|| self.unresolved.pop()).collect();
        for (link, addr) in missing {
            let Some(ifindex) = self.links.get(usize::from(link.0)) else { continue };
            if let Err(error) = self.control.plant().neighbours.resolve(*ifindex, addr) {
                tracing::warn!("{addr} cannot be resolved: {error}");
            }
        }
    }
}

/// The network as far as the workers can reach it: the attached interfaces in the order of their ports.
fn attached_only(network: &Network, links: &[u32]) -> Network {
    let mut seen = network.clone();
    seen.links.retain(|link| links.contains(&link.ifindex));
    for link in &mut seen.links {
        let place = links.iter().position(|ifindex| *ifindex == link.ifindex);
        link.id = LinkId(place.unwrap_or_default() as u16);
    }
    seen
}

/// Asks the daemon, from any thread.
#[derive(Clone)]
pub struct Handle {
    inputs: Sender<Input>,
    shared: Arc<Shared>,
}

impl Handle {
    /// Asks the control thread, and waits for its answer.
    ///
    /// # Errors
    /// What the control thread says; or that the daemon is ending.
    pub fn ask(&self, request: Request) -> Result<Reply, CommandError> {
        let ending = || CommandError::Failed { why: "xvs: the daemon is ending".to_owned() };
        let (reply, answer) = bounded(1);
        self.inputs.send(Input::Request(request, reply)).map_err(|_| ending())?;
        answer.recv().map_err(|_| ending())?
    }

    /// What needs no writer.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    /// What time it is for the workers.
    pub fn now(&self) -> Millis {
        self.clock.now()
    }

    /// The table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The reader's seat; listings take turns.
    pub fn reader(&self) -> &Mutex<TableReader> {
        &self.reader
    }

    /// How the daemon stands.
    pub fn facts(&self) -> Facts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Every worker's counters.
    pub fn workers(&self) -> &[Arc<WorkerCounters>] {
        &self.counters
    }

    /// Every counter, summed over the workers, and the sweeper's.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut sum = BTreeMap::new();
        let swept = self.swept.all().map(|(name, value)| (name.to_owned(), value));
        for (name, value) in self.counters.iter().flat_map(|counters| counters.all()).chain(swept) {
            *sum.entry(name).or_default() += value;
        }
        sum
    }
}
