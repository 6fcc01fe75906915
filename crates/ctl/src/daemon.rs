//! `xvsd`: start-up and shutdown in order.
//!
//! Up: the socket (so that a second daemon touches nothing), the network, the XDP program on each interface, the
//! table, a worker for each share of the queues, the control thread, readiness. Down, in reverse: no more requests,
//! the XDP program off (the kernel has its packets back), the workers' last burst, the sockets. What fails on the way
//! up undoes what was done, by dropping it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use thiserror::Error;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::{Table, TableConfig};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::model::Network;
use xvs_dataplane::exchange::Exchange;
use xvs_dataplane::flow::Flows;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::fragments::Fragments;
use xvs_dataplane::outcome::{Outcome, Unresolved};
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::LinkId;
use xvs_dataplane::port::xdp::{Waker, XdpPort};
use xvs_dataplane::reinject::Reinjector;

use xvs_dataplane::worker::Worker;
use xvs_dataplane::xdp::{
    AttachError, Attached, Queues, RingSizes, SocketError, Sockets, Steering, SteeringError, SteeringRules,
};

use crate::config::{Config, ConfigError};
use crate::control::{Control, Plant};
use crate::memory::{available_pages, machine_memory_bytes};
use crate::message::{Access, CommandError, Reply, Request};
use crate::netfilter::{self, Found};
use crate::network::neighbours::Neighbours;
use crate::network::{Following, Latest, Slot, View, follow};
use crate::placement::{self, PlacementError};
use crate::reserved::ReservedPorts;
use crate::shared::{Facts, InterfaceFacts, LinkState, Shared, WorkerFacts};
use crate::sweep::{Sweeper, Sweeping};
use crate::threads::{self, EndNotice};

/// Why the daemon does not run.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(
        "the XDP program cannot be loaded ({0}); xvsd needs root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON"
    )]
    Program(io::Error),
    #[error(transparent)]
    Placement(#[from] PlacementError),
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
    /// A view of the network waits in [`Latest`].
    Network,
    /// Mark rules wait there.
    Marks,
    Stop,
}

/// How often the control thread looks for next hops that packets were dropped for.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(100);
/// How long after a refusal neighbours are tried again.
const RETRY_REFUSED: Duration = Duration::from_secs(30);
/// Requests that may wait for the control thread.
const QUEUE: usize = 1024;

/// How long the start waits for the kernel's mark rules.
const FIRST_RULES: Duration = Duration::from_secs(3);

/// How far apart the sequences of identifications begin.
const ID_STRIDE: u16 = 4093;

/// A running daemon.
pub struct Daemon {
    inputs: Sender<Input>,
    control: Option<JoinHandle<Wired>>,
    network: Option<Following>,
    netfilter: Option<netfilter::Following>,
    sweeping: Option<Sweeping>,
    workers: Vec<Running>,
    shared: Arc<Shared>,
    ended: Receiver<String>,
}

/// A worker's thread, and how to end it.
struct Running {
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: JoinHandle<XdpPort>,
}

/// The control thread's hold on the machine. Fields are dropped in this order: the interfaces are the kernel's again
/// before anything else goes.
struct Wired {
    /// Held to be dropped.
    _attached: Vec<Attached>,
    steering: Steering,
    neighbours: Neighbours,
    /// Those that are to be kept resolved.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// When they are tried again, if the kernel has refused some.
    retry: Option<Instant>,
    table: Arc<Table>,
    reserved: ReservedPorts,
    /// Why local ports are not reserved, if so.
    not_reserved: Option<String>,
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
        self.wanted.clone_from(neighbours);
        self.manage_neighbours();
    }

    fn reserve_ports(&mut self, ports: &[(u16, u16)]) {
        self.not_reserved = self.reserved.set(ports.to_vec()).err();
    }

    fn available_pages(&mut self) -> Option<u32> {
        available_pages().inspect_err(|error| tracing::warn!("the memory left is not known: {error}")).ok()
    }
}

impl Wired {
    /// Has the wanted neighbours kept resolved. A refusal is told when it begins and when it ends.
    fn manage_neighbours(&mut self) {
        let refused = match self.neighbours.manage(&self.wanted) {
            Ok(None) => None,
            Ok(Some(refused)) => Some(refused.to_string()),
            Err(error) => Some(format!("neighbours cannot be kept resolved: {error}")),
        };
        match (&refused, self.retry) {
            (Some(refused), None) => {
                tracing::warn!("{refused}; tried again every {} s", RETRY_REFUSED.as_secs());
            }
            (None, Some(_)) => tracing::info!("all neighbours are kept resolved again"),
            _ => {}
        }
        self.retry = refused.map(|_| Instant::now() + RETRY_REFUSED);
    }

    /// Tries neighbours again that were refused, when that is due.
    fn retry_neighbours(&mut self) {
        if self.retry.is_some_and(|due| due <= Instant::now()) {
            self.manage_neighbours();
        }
    }
}

impl Daemon {
    /// Starts everything as a configuration says that has been checked; returns when packets are taken and commands
    /// can be given.
    ///
    /// # Errors
    /// What could not be started; nothing stays attached then.
    pub fn start(config: &Config) -> Result<Self, DaemonError> {
        let clock = Arc::new(Clock::monotonic());
        let steering = Steering::load().map_err(DaemonError::Program)?;
        let attached: Vec<_> =
            config.interfaces.iter().map(|name| steering.attach(name)).collect::<Result<_, _>>()?;
        let queues: Vec<_> =
            attached.iter().map(|attached| (attached.interface(), attached.receive_queues())).collect();
        let shares = placement::shares(&queues, config.workers, placement::cores_available())?;
        let memory = config.conn_table_memory.into();
        let table = TableConfig { capacity: config.conn_table_size, workers: shares.len(), memory };
        Config::check_table(&table, machine_memory_bytes())?;
        let table = Table::create(table).map_err(system("the connection table"))?;
        let reader = table.reader().expect("a new table has its seats free");
        let links: Vec<_> = attached.iter().map(|attached| attached.index()).collect();
        let neighbours = Neighbours::open(&links).map_err(system("netlink"))?;
        let mut facts =
            Facts { interfaces: attached.iter().map(InterfaceFacts::of).collect(), ..Facts::default() };
        let rings = RingSizes { receive: config.receive_ring, transmit: config.transmit_ring };
        let ports = open_ports(&attached, &shares, rings, &mut facts)?;

        let unresolved = Arc::new(Unresolved::new(64));
        let plant = Wired {
            _attached: attached,
            steering,
            neighbours,
            wanted: BTreeSet::new(),
            retry: None,
            table: table.clone(),
            reserved: ReservedPorts::default(),
            not_reserved: None,
        };
        let mut control = Control::new(plant, shares.len(), config.ipvs, config.feedback.clone());
        control.set_sip_calls(config.sip_calls);
        // Nobody outside can tell where the sequences begin.
        let first_id = table.secret().0[0] as u16;
        let (notices, ended) = unbounded();
        let exchange = Arc::new(Exchange::new(shares.len()));
        let mut workers = Vec::new();
        let mut counters = Vec::new();
        for (number, (port, core)) in ports.into_iter().enumerate() {
            let counted = Arc::new(WorkerCounters::default());
            counters.push(counted.clone());
            let seat = table.handle(number).expect("each worker has its seat");
            let ids = |half| Identification::after(first_id.wrapping_add(half * ID_STRIDE));
            let ids = (ids(2 * number as u16), ids(2 * number as u16 + 1));
            let flows = Flows::new(number, seat, counted.clone(), control.total(), unresolved.clone(), ids.0);
            let fragments = Fragments::new(number, exchange.clone(), *table.secret());
            let outcome = Outcome::new(counted, unresolved.clone(), ids.1);
            let worker = Worker {
                pipeline: Pipeline::new(flows, outcome, fragments),
                port,
                snapshot: control.published(),
                clock: clock.clone(),
                stop: Arc::default(),
            };
            workers.push(Running::start(number, worker, core, &notices)?);
        }
        let seat = table.reader().expect("a new table has its seats free");
        let sweeper = Sweeper::new(seat, control.published(), table.secret().0[1]);
        let swept = sweeper.counters();
        let sweeping = Some(Sweeping::start(sweeper, clock.clone()).map_err(a_thread())?);
        let (reader, published, facts) = (Mutex::new(reader), control.published(), Mutex::new(facts));
        let shared = Arc::new(Shared { clock, table, reader, published, counters, swept, facts });
        let (inputs, queue) = bounded(QUEUE);
        let (latest, rules) = (Latest::default(), Latest::default());
        let views = (latest.clone(), rules.clone());
        let thread = ControlThread::new(control, queue, views, unresolved, links, shared.clone());
        let control = threads::spawn("xvs-control", &notices, move || thread.run()).map_err(a_thread())?;
        let (report, first_view) = hand_over("xvs-network", latest, || Input::Network, &inputs, &notices);
        let network = follow(report).map_err(system("following the kernel's network"))?;
        let (report, first_rules) = hand_over("xvs-netfilter", rules, || Input::Marks, &inputs, &notices);
        let netfilter = netfilter::follow(report).map_err(system("following netfilter's mark rules"))?;
        let (control, network, netfilter) = (Some(control), Some(network), Some(netfilter));
        let daemon = Self { inputs, control, network, netfilter, sweeping, workers, shared, ended };
        // The first view of the network is told of before the request, so it is in force when this returns. Mark rules
        // are read by other people's programs, which are not waited for without end.
        let _ = first_view.recv();
        let _ = first_rules.recv_timeout(FIRST_RULES);
        let _ = daemon.handle().ask(Request::Timeouts);
        Ok(daemon)
    }

    /// Receives the name of a thread that has ended though the daemon was not told to stop.
    pub fn ended(&self) -> &Receiver<String> {
        &self.ended
    }

    /// A way to ask, for whoever serves the socket.
    pub fn handle(&self) -> Handle {
        Handle { inputs: self.inputs.clone(), shared: self.shared.clone() }
    }

    /// Gives the interfaces back to the kernel and ends every thread.
    pub fn stop(mut self) {
        drop(self.network.take());
        drop(self.netfilter.take());
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

/// A worker's port, and the core that it is to run on.
type Place = (XdpPort, Option<CoreId>);

/// A port for each worker, of its share of the queues, and what is to be told of it.
fn open_ports(
    attached: &[Attached],
    shares: &[Vec<Vec<u32>>],
    rings: RingSizes,
    facts: &mut Facts,
) -> Result<Vec<Place>, DaemonError> {
    let ways: Vec<_> = attached
        .iter()
        .map(|attached| Reinjector::open(attached).map(Arc::new))
        .collect::<Result<_, _>>()
        .map_err(system("the TAP by which packets go back to the kernel"))?;
    let mut ports = Vec::new();
    for (share, core) in shares.iter().zip(placement::cores(shares.len())) {
        let links: Vec<_> =
            attached.iter().zip(share).map(|(attached, queues)| Queues { attached, queues }).collect();
        let sockets = Sockets::open(&links, rings)?;
        let copy_mode = sockets.copy_mode().to_string();
        facts.workers.push(WorkerFacts { core: core.map(|core| core.id), copy_mode, queues: share.clone() });
        ports.push((XdpPort::open(sockets, ways.clone()).map_err(system("a worker's port"))?, core));
    }
    Ok(ports)
}

impl Running {
    fn start(
        number: usize,
        worker: Worker<XdpPort>,
        core: Option<CoreId>,
        notices: &Sender<String>,
    ) -> Result<Self, DaemonError> {
        let (stop, waker) = (worker.stop.clone(), worker.port.waker());
        let run = move || {
            if let Some(core) = core
                && !core_affinity::set_for_current(core)
            {
                tracing::warn!("worker {number} cannot be pinned to core {}", core.id);
            }
            worker.run()
        };
        let thread = threads::spawn(&format!("xvs-worker-{number}"), notices, run).map_err(a_thread())?;
        Ok(Self { stop, waker, thread })
    }
}

/// What puts a follower's views into `latest` and tells the control thread so by `input`, to be called on the thread of
/// this name. The receiver gets one message, for the first view.
fn hand_over<T: Send + 'static>(
    thread: &str,
    latest: Latest<T>,
    input: fn() -> Input,
    inputs: &Sender<Input>,
    notices: &Sender<String>,
) -> (impl FnMut(T) + Send + 'static, Receiver<()>) {
    let (seen, first) = bounded(1);
    let (notice, inputs) = (EndNotice::new(thread, notices), inputs.clone());
    let report = move |view| {
        // It goes when the thread does.
        let _ = &notice;
        if latest.put(view) == Slot::Empty {
            // The control thread is gone only when the daemon ends.
            let _ = inputs.send(input());
        }
        // Full but for the first time.
        let _ = seen.try_send(());
    };
    (report, first)
}

fn a_thread() -> impl FnOnce(io::Error) -> DaemonError {
    system("a thread")
}

/// The control thread.
struct ControlThread {
    control: Control<Wired>,
    queue: Receiver<Input>,
    views: Latest,
    rules: Latest<Found>,
    unresolved: Arc<Unresolved>,
    resolve_again: Instant,
    /// When it may next be logged that next hops cannot be resolved.
    complain_again: Instant,
    /// The kernel's indices of the attached interfaces, in the order of their [`LinkId`]s.
    links: Vec<u32>,
    shared: Arc<Shared>,
    warnings: Warnings,
}

/// Sentences for the operator, by where they come from.
#[derive(Default)]
struct Warnings {
    network: Vec<String>,
    /// Rules that could not be read.
    netfilter: Vec<String>,
}

impl ControlThread {
    fn new(
        control: Control<Wired>,
        queue: Receiver<Input>,
        (views, rules): (Latest, Latest<Found>),
        unresolved: Arc<Unresolved>,
        links: Vec<u32>,
        shared: Arc<Shared>,
    ) -> Self {
        let (resolve_again, complain_again) = (Instant::now(), Instant::now());
        let warnings = Warnings::default();
        Self {
            control,
            queue,
            views,
            rules,
            unresolved,
            resolve_again,
            complain_again,
            links,
            shared,
            warnings,
        }
    }

    fn run(mut self) -> Wired {
        loop {
            match self.queue.recv_timeout(UNRESOLVED_INTERVAL) {
                Ok(Input::Request(request, reply)) => {
                    let answer = self.control.handle(&request, self.shared.now());
                    if request.access() == Access::Change {
                        self.count();
                        self.warn();
                    }
                    // Who asked may have gone.
                    let _ = reply.send(answer);
                }
                Ok(Input::Network) => {
                    if let Some(view) = self.views.take() {
                        self.network(&view);
                    }
                }
                Ok(Input::Marks) => {
                    if let Some(found) = self.rules.take() {
                        self.marks(found);
                    }
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return self.control.into_plant(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Err(error) = self.control.tick(self.shared.now()) {
                tracing::error!("{error}");
            }
            self.resolve();
            self.control.plant().retry_neighbours();
        }
    }

    fn network(&mut self, view: &View) {
        let network = attached_only(&view.network, &self.links);
        if let Err(error) = self.control.set_network(&network) {
            tracing::error!("a change of the network: {error}");
        }
        let mut facts = self.shared.facts_now();
        for (interface, ifindex) in facts.interfaces.iter_mut().zip(&self.links) {
            let state = LinkState::of(&view.network, *ifindex);
            if state != interface.state {
                match state.complaint(&interface.name) {
                    Some(complaint) => tracing::warn!("{complaint}"),
                    None => tracing::info!("{} is up again", interface.name),
                }
                interface.state = state;
            }
        }
        drop(facts);
        self.warnings.network.clone_from(&view.warnings);
        self.warn();
    }

    fn marks(&mut self, found: Found) {
        if let Err(error) = self.control.set_tables(found.tables) {
            tracing::error!("a change of the kernel's mark rules: {error}");
        }
        self.warnings.netfilter = found.warnings;
        self.warn();
    }

    /// Tells what the operator should see to, and logs what is new of it.
    fn warn(&mut self) {
        let Warnings { network, netfilter } = &self.warnings;
        let mut warnings = [network, netfilter, self.control.unfollowed()].concat();
        warnings.extend(self.control.plant().not_reserved.clone());
        let mut facts = self.shared.facts_now();
        for warning in warnings.iter().filter(|warning| !facts.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        facts.warnings = warnings;
    }

    /// Tells how much is configured.
    fn count(&self) {
        let mut facts = self.shared.facts_now();
        let services = self.control.state().services();
        (facts.services, facts.destinations) = services.fold((0, 0), |(services, dests), (_, service)| {
            (services + 1, dests + service.destinations.len())
        });
    }

    /// Has next hops resolved that packets were dropped for; looks for them once in an interval.
    fn resolve(&mut self) {
        let now = Instant::now();
        if self.unresolved.is_empty() || now < self.resolve_again {
            return;
        }
        self.resolve_again = now + UNRESOLVED_INTERVAL;
        let missing = std::iter::from_fn(|| self.unresolved.pop());
        let by_index =
            missing.filter_map(|(link, addr)| Some((*self.links.get(usize::from(link.0))?, addr))).collect();
        let refused = match self.control.plant().neighbours.resolve(&by_index) {
            Ok(None) => return,
            Ok(Some(refused)) => refused.to_string(),
            Err(error) => format!("next hops cannot be resolved: {error}"),
        };
        if self.complain_again <= now {
            self.complain_again = now + RETRY_REFUSED;
            tracing::warn!("{refused}");
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
