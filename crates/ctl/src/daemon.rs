//! `xvsd`: start-up and shutdown in order.
//!
//! Up: the socket (so that a second daemon touches nothing), the network, the XDP program on each interface, the
//! table, a worker for each share of the queues, the control thread, readiness. Down, in reverse: no more requests,
//! the XDP program off (the kernel has its packets back), the workers' last burst, the sockets. What fails on the way
//! up undoes what was done, by dropping it.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

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
use xvs_dataplane::worker::Worker;
use xvs_dataplane::xdp::{AttachError, RingSizes, SocketError, Steering, SteeringError, SteeringRules};

use crate::config::{Config, ConfigError};
use crate::control::{Control, Plant};
use crate::crew::Crew;
use crate::memory::available_pages;
use crate::message::{Access, CommandError, Reply, Request};
use crate::netfilter::{self, Found};
use crate::network::neighbours::Neighbours;
use crate::network::{Following, Latest, Slot, View, follow};
use crate::placement::PlacementError;
use crate::shared::{Facts, InterfaceFacts, LinkState, Shared};
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
pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
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
/// How long after a failure an interface that is back is attached again.
const RETRY_ATTACHING: Duration = Duration::from_secs(1);
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
    shared: Arc<Shared>,
    ended: Receiver<String>,
}

/// The control thread's hold on the machine. Fields are dropped in this order: the interfaces are the kernel's again
/// before anything else goes.
struct Wired {
    crew: Crew,
    steering: Steering,
    neighbours: Neighbours,
    /// Those that are to be kept resolved.
    wanted: BTreeSet<(u32, IpAddr)>,
    /// When they are tried again, if the kernel has refused some.
    retry: Option<Instant>,
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
        self.wanted.clone_from(neighbours);
        self.manage_neighbours();
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
        let attached =
            config.interfaces.iter().map(|name| steering.attach(name)).collect::<Result<_, _>>()?;
        let rings = RingSizes { receive: config.receive_ring, transmit: config.transmit_ring };
        let crew = Crew::new(attached, config.workers, rings)?;
        let workers = crew.size();
        let memory = config.conn_table_memory.into();
        let table = TableConfig { capacity: config.conn_table_size, workers, memory };
        Config::check_table(&table, machine_memory_bytes())?;
        let table = Table::create(table).map_err(system("the connection table"))?;
        let reader = table.reader().expect("a new table has its seats free");
        let links = crew.links();
        let neighbours = Neighbours::open(&links).map_err(system("netlink"))?;
        let interfaces = (0..links.len()).map(|place| crew.interface_facts(place)).collect();
        let mut facts = Facts { interfaces, ..Facts::default() };
        let ports = crew.open_ports()?;

        let unresolved = Arc::new(Unresolved::new(64));
        let plant =
            Wired { crew, steering, neighbours, wanted: BTreeSet::new(), retry: None, table: table.clone() };
        let mut control = Control::new(plant, workers, config.ipvs, config.feedback.clone());
        control.set_sip_calls(config.sip_calls);
        // Nobody outside can tell where the sequences begin.
        let first_id = table.secret().0[0] as u16;
        let (notices, ended) = unbounded();
        let exchange = Arc::new(Exchange::new(workers));
        let mut counters = Vec::new();
        for (number, (port, told)) in ports.into_iter().enumerate() {
            facts.workers.push(told);
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
            control.plant().crew.start(worker, &notices)?;
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
        let daemon = Self { inputs, control, network, netfilter, sweeping, shared, ended };
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
        drop(wired);
    }
}

/// All memory of the machine.
fn machine_memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    // Its fields are as wide as the machine's words.
    u64::from(machine.mem_unit) * machine.totalram as u64
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
    /// The network as last seen.
    view: View,
    /// When an interface that is back may next be attached.
    attach_again: Instant,
    shared: Arc<Shared>,
    warnings: Warnings,
}

/// Sentences for the operator, by where they come from.
#[derive(Default)]
struct Warnings {
    network: Vec<String>,
    /// Rules that could not be read.
    netfilter: Vec<String>,
    /// Why an interface that is back is not attached.
    attaching: Vec<String>,
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
        let now = Instant::now();
        let (resolve_again, complain_again, attach_again, view) = (now, now, now, View::default());
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
            view,
            attach_again,
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
                        self.view = view;
                        self.network();
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
            self.attach_again();
            self.resolve();
            self.control.plant().retry_neighbours();
        }
    }

    fn network(&mut self) {
        let view = &self.view;
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
    fn warn(&self) {
        let Warnings { network, netfilter, attaching } = &self.warnings;
        let warnings = [network, netfilter, attaching, self.control.unfollowed()].concat();
        let mut facts = self.shared.facts_now();
        for warning in warnings.iter().filter(|warning| !facts.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        facts.warnings = warnings;
    }

    /// Attaches interfaces again that were removed and are back, and gives workers sockets that have none.
    fn attach_again(&mut self) {
        let now = Instant::now();
        let network = &self.view.network;
        let back = |place: &usize| {
            let gone = LinkState::of(network, self.links[*place]) == LinkState::Gone;
            let name = &self.shared.facts_now().interfaces[*place].name;
            gone && network.link_named(name).is_some_and(|link| link.up)
        };
        if now < self.attach_again {
            return;
        }
        let place = (0..self.links.len()).find(back);
        let Wired { crew, steering, .. } = self.control.plant();
        let done = match place {
            Some(place) => crew.attach_again(place, steering),
            None if crew.is_paused() => crew.go_on(),
            None => return,
        };
        let (links, mut facts) = (crew.links(), self.shared.facts_now());
        if let Some(place) = place
            && links != self.links
        {
            let state = facts.interfaces[place].state;
            let attached_again = facts.interfaces[place].attached_again + 1;
            let told = crew.interface_facts(place);
            facts.interfaces[place] = InterfaceFacts { state, attached_again, ..told };
        }
        self.warnings.attaching = match done {
            Ok(workers) => {
                facts.workers = workers;
                Vec::new()
            }
            Err(error) => {
                self.attach_again = now + RETRY_ATTACHING;
                vec![error.to_string()]
            }
        };
        drop(facts);
        if links != self.links {
            self.links = links;
            self.network();
        } else {
            self.warn();
        }
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
        let egress = self.control.egress();
        let by_index = missing.filter_map(|(link, addr)| Some((egress.link(link)?.ifindex, addr))).collect();
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

/// The network as far as the workers can reach it: the attached interfaces in the order of their ports, then the
/// VLANs over them.
fn attached_only(network: &Network, links: &[u32]) -> Network {
    let mut seen = network.clone();
    let place = |ifindex| links.iter().position(|attached| *attached == ifindex);
    seen.links.retain(|link| {
        place(link.ifindex).is_some() || link.vlan.is_some_and(|vlan| place(vlan.over).is_some())
    });
    let mut next = links.len();
    for link in &mut seen.links {
        let id = place(link.ifindex).unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        link.id = LinkId(id as u16);
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

#[cfg(test)]
mod tests {
    use xvs_dataplane::egress::Egress;

    use super::*;

    #[test]
    fn workers_see_attached_interfaces_by_their_place_and_the_vlans_over_them_and_no_others() {
        let mut network = Network::default();
        for name in ["lo", "lan", "wan.5", "lan.5", "spare", "spare.5", "wan"] {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        for over in ["wan", "lan", "spare"] {
            network.make_vlan(&format!("{over}.5"), 5, over).unwrap();
        }
        let ifindex = |name| network.link_named(name).unwrap().ifindex;
        let seen = attached_only(&network, &[ifindex("wan"), ifindex("lan")]);
        let egress = Egress::build(&seen);
        let names: Vec<_> = egress.links().map(|(_, link)| link.name.as_str()).collect();
        assert_eq!(names, ["wan", "lan", "wan.5", "lan.5"]);
        assert_eq!(egress.untagged(LinkId(1), 5), Some(LinkId(3)));
        assert_eq!(egress.tag(LinkId(2)), Some((LinkId(0), 5)));
    }
}
