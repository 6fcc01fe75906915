//! The daemon `xvsd`: start and shutdown, in order.
//!
//! Start: the socket (so that a second daemon changes nothing), the XDP program on each interface, the connection
//! table, a worker for each share of the queues, the control thread, the network and mark rules, health checks,
//! the XDP programs take the place of those that an earlier process has pinned, readiness. Shutdown, in reverse:
//! requests end, the XDP program is detached (the kernel has its packets back) unless it is pinned, the workers end with
//! their last burst, sockets close. A start that fails drops what it has started.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::{Table, TableConfig, random_secret};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::Unresolved;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::xdp::XdpPort;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::slow_path::reassembly::Reassembly;
use xvs_dataplane::slow_path::reassembly::handoff::Handoff;
use xvs_dataplane::steering::Steering;
use xvs_dataplane::steering::hold::Hold;
use xvs_dataplane::worker::Worker;
use xvs_health::engine::Engine;
use xvs_health::prepare::Prepared;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::network::{FollowerThread, Latest, Slot, follow, links};
use xvs_host::{memory, netfilter};
use xvs_ipvsadm::command_line;
use xvs_model::config::command::CommandError;
use xvs_model::config::rules::RuleLine;
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::Request;
use xvs_xdp::RingSizes;

use crate::config::{Config, Keepalived};
use crate::control::Control;
use crate::control::thread::{ControlThread, Handle, Input};
use crate::daemon::ending::Ending;
use crate::daemon::error::{DaemonError, system};
use crate::daemon::threads::EndNotice;
use crate::health_checks;
use crate::health_checks::HealthError;
use crate::log::Losses;
use crate::status::history::History;
use crate::status::shared::{Facts, RequestDurations, Shared};
use crate::sweep::{Sweeper, Sweeping};
use crate::workers::Workers;
use crate::workers::membership::Membership;
use crate::workers::system::SystemDatapath;

pub mod ending;
pub mod error;
pub(crate) mod liveness;
mod pins;
pub mod rights;
pub(crate) mod threads;
pub mod watchdog;

/// Inputs that may wait for the control thread.
const QUEUE: usize = 1024;

/// How long the start waits for the kernel's mark rules.
const FIRST_RULES: Duration = Duration::from_secs(3);

/// A running daemon.
pub struct Daemon {
    inputs: Sender<Input>,
    control: Option<JoinHandle<SystemDatapath>>,
    network: Option<FollowerThread>,
    netfilter: Option<netfilter::FollowerThread>,
    sweeping: Option<Sweeping>,
    health: Option<Engine>,
    shared: Arc<Shared>,
    notices: Sender<String>,
    ended: Receiver<String>,
}

impl Daemon {
    /// Starts everything that a checked configuration names. Returns when packets are received and requests are
    /// answered.
    ///
    /// # Errors
    /// The part that could not be started; then nothing stays attached.
    pub fn start(config: &Config, log: Losses) -> Result<Self, DaemonError> {
        let clock = Arc::new(Clock::Monotonic);
        let started = clock.now();
        let steering = Steering::load().map_err(DaemonError::Program)?;
        let links = links().map_err(system("the kernel's links"))?;
        let (pins, no_hold) = match pins::open(config) {
            Ok(pins) => (pins, None),
            Err(warning) => (None, Some(warning)),
        };
        let length = if pins.is_some() { config.hold.duration() } else { Duration::ZERO };
        steering.hold().set(length, clock.elapsed());
        let attach = |name: &String| match Membership::of(name, &links) {
            Some(membership) => Err(DaemonError::Member(membership)),
            None => steering.attach(name, pins.as_ref()).map_err(pins::explained),
        };
        let attached = config.interfaces.iter().map(attach).collect::<Result<_, _>>()?;
        let rings = RingSizes { receive: config.receive_ring, transmit: config.transmit_ring };
        let workers = Workers::new(attached, config.workers, rings, pins)?;
        let worker_count = workers.count();
        let table = TableConfig {
            capacity: config.conn_table_size,
            workers: worker_count,
            memory: config.conn_table_memory.into(),
        };
        Config::check_table(&table, machine_memory_bytes())?;
        let mut start_warnings = Vec::from_iter(workers.fewer_than(config.workers));
        start_warnings.extend(no_hold);
        let of_reserved_pages = memory::free_huge_page_bytes() >= table.full_bytes() as u64;
        if let Some(limit) = memory::cgroup_limit().filter(|_| !of_reserved_pages)
            && let Err(over) = Config::check_limit(&table, workers.packet_bytes(), &limit)
        {
            match table.memory {
                Memory::Resident => return Err(over.into()),
                Memory::OnDemand => start_warnings.push(format!("once the table is full: {over}")),
            }
        }
        start_warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let table = Table::create(table).map_err(system("the connection table"))?;
        let reader = table.reader().expect("a new table has two reader handles free");
        let links = workers.links();
        let neighbours = Neighbours::open(&links).map_err(system("netlink"))?;
        let interfaces = (0..links.len()).map(|place| workers.interface_facts(place)).collect();
        let (ports, worker_facts) = workers.open_ports()?.into_iter().unzip();
        let rules = config.rules.clone();
        let facts = Facts { interfaces, workers: worker_facts, rules, start_warnings, ..Facts::default() };

        let unresolved = Arc::new(Unresolved::new(64));
        let hold = steering.hold().clone();
        let datapath = SystemDatapath::new(workers, steering, neighbours, table.clone());
        let mut control = Control::new(datapath, worker_count, config.ipvs, config.feedback.clone());
        control.set_start_settings(config.settings(worker_count));
        control.set_sip_calls(config.sip_calls);
        control.set_repair(config.keepalived.repair);
        let (notices, ended) = unbounded();
        let mut parts = WorkerParts {
            table: &table,
            clock: &clock,
            hold: &hold,
            unresolved: &unresolved,
            control: &mut control,
        };
        let counters = parts.start_workers(ports, &notices)?;
        let wakers = control.datapath().workers().0.wakers();
        let sweep_reader = table.reader().expect("a new table has two reader handles free");
        let sweeper = Sweeper::new(sweep_reader, control.published(), table.secret().0[1]);
        let swept = sweeper.counters();
        let sweeping = Some(Sweeping::start(sweeper, clock.clone()).map_err(no_thread())?);
        let (reader, published, facts) = (Mutex::new(reader), control.published(), Mutex::new(facts));
        let (total, request_durations) = (control.total(), RequestDurations::default());
        let (history, events) = (History::since(started), control.events());
        let shared = Arc::new(Shared {
            started,
            clock,
            hold: Some(hold),
            table,
            reader,
            published,
            counters,
            wakers,
            total,
            request_durations,
            swept,
            history,
            events,
            facts,
            log: Some(log),
            health: OnceLock::new(),
            health_thread: OnceLock::new(),
            on_disabled: OnceLock::new(),
            reload: OnceLock::new(),
        });
        let (inputs, queue) = bounded(QUEUE);
        let (latest, rules) = (Latest::default(), Latest::default());
        let views = (latest.clone(), rules.clone());
        let thread = ControlThread::new(control, queue, views, unresolved, links, shared.clone());
        let control = threads::spawn("xvs-control", &notices, move || thread.run()).map_err(no_thread())?;
        let (report, first_view) =
            follower_callback("xvs-network", latest, || Input::Network, &inputs, &notices);
        let network = follow(report).map_err(system("following the kernel's network"))?;
        let (report, first_rules) =
            follower_callback("xvs-netfilter", rules, || Input::Marks, &inputs, &notices);
        let netfilter = netfilter::follow(report).map_err(system("following netfilter's mark rules"))?;
        let (control, network, netfilter) = (Some(control), Some(network), Some(netfilter));
        let health = None;
        let daemon = Self { inputs, control, network, netfilter, sweeping, health, shared, notices, ended };
        // The first network view is sent before this request, so it is in force when `start` returns. Mark rules are
        // read by external programs, so the wait for them is limited.
        let _ = first_view.recv();
        let _ = first_rules.recv_timeout(FIRST_RULES);
        let _ = daemon.handle().request(Request::Timeouts);
        Ok(daemon)
    }

    /// Receives the name of a thread that has ended without being stopped.
    pub fn ended(&self) -> &Receiver<String> {
        &self.ended
    }

    /// A handle for requests, for the server of the socket.
    pub fn handle(&self) -> Handle {
        Handle::new(self.inputs.clone(), self.shared.clone())
    }

    /// Carries out the initial rules as one snapshot. A refused line is logged, and the others are carried out.
    ///
    /// # Errors
    /// The control thread refuses the whole request.
    pub fn load_rules(&self, rules: Vec<RuleLine>) -> Result<(), CommandError> {
        if rules.is_empty() {
            return Ok(());
        }
        let commands = rules.iter().map(|rule| rule.command.clone()).collect();
        let Reply::Restored(results) = self.handle().request(Request::Restore(commands))? else {
            return Ok(());
        };
        for (RuleLine { number, command }, result) in rules.iter().zip(&results) {
            if let Some(error) = result.as_ref().err().and_then(CommandError::refusal) {
                tracing::error!("rules, line {number}: {}: refused: {error}", command_line(command));
            }
        }
        let is_in_force =
            |result: &&Result<_, CommandError>| !matches!(result, Err(error) if error.refusal().is_some());
        let in_force = results.iter().filter(is_in_force).count();
        tracing::info!("rules: {in_force} of {} lines are in force", rules.len());
        Ok(())
    }

    /// Starts the health checks of a keepalived.conf. Returns when its services are in force.
    ///
    /// # Errors
    /// The reason why the checks cannot start.
    pub fn start_health_checks(
        &mut self,
        keepalived: &Keepalived,
        read: Option<Prepared>,
    ) -> Result<(), HealthError> {
        let Some(read) = read else { return Ok(()) };
        self.health = Some(health_checks::start(keepalived, read, &self.handle(), &self.notices)?);
        Ok(())
    }

    /// Puts the XDP programs in the place of those that an earlier process has pinned, and pins them. Called when all
    /// services of the start are in force: then no frame of a service reaches the kernel meanwhile.
    ///
    /// # Errors
    /// An interface that cannot be attached.
    pub fn serve(&self) -> Result<(), DaemonError> {
        let (reply, done) = bounded(1);
        let _ = self.inputs.send(Input::Serve(reply));
        // The control thread has ended by a bug, which `ended` reports.
        done.recv().unwrap_or(Ok(()))
    }

    /// Ends every thread. The kernel has the packets of the interfaces at once, or after the hold.
    pub fn stop(mut self, ending: Ending) {
        drop(self.health.take());
        drop(self.network.take());
        drop(self.netfilter.take());
        drop(self.sweeping.take());
        let _ = self.inputs.send(Input::Stop);
        let datapath = self.control.take().map(JoinHandle::join);
        if let (Some(Ok(mut datapath)), Ending::Release) = (datapath, ending) {
            datapath.workers().0.release();
        }
    }
}

/// The machine's memory.
fn machine_memory_bytes() -> u64 {
    let machine = rustix::system::sysinfo();
    // Its fields have the machine's word size.
    u64::from(machine.mem_unit) * machine.totalram as u64
}

/// The shared parts of every worker.
struct WorkerParts<'a> {
    table: &'a Arc<Table>,
    clock: &'a Arc<Clock>,
    hold: &'a Arc<Hold>,
    unresolved: &'a Arc<Unresolved>,
    control: &'a mut Control<SystemDatapath>,
}

impl WorkerParts<'_> {
    /// Starts a worker for each port. Returns the counters of each.
    fn start_workers(
        &mut self,
        ports: Vec<XdpPort>,
        notices: &Sender<String>,
    ) -> Result<Vec<Arc<WorkerCounters>>, DaemonError> {
        let (table, control) = (self.table, &mut *self.control);
        // Other hosts see Identifications, so their secret is not that of the table.
        let secret = random_secret().map_err(system("random numbers"))?;
        let handoff = Arc::new(Handoff::new(ports.len()));
        let mut counters = Vec::new();
        for (number, port) in ports.into_iter().enumerate() {
            let counted = Arc::new(WorkerCounters::default());
            counters.push(counted.clone());
            let handle = table.handle(number).expect("the table has a free handle for each worker");
            let ids = |half| Identification::numbered(secret, 2 * number + half);
            let ids = (ids(0), ids(1));
            let flows = Flows::new(number, handle, counted.clone(), control.total(), ids.0);
            let fragments = Reassembly::new(number, handoff.clone(), *table.secret());
            let transmitter = Transmitter::new(counted, self.unresolved.clone(), ids.1);
            let worker = Worker {
                pipeline: Pipeline::new(flows, transmitter, fragments),
                port,
                snapshot: control.published(),
                clock: self.clock.clone(),
                hold: Some(self.hold.clone()),
                stop: Arc::default(),
            };
            control.datapath().workers().0.start(worker, notices)?;
        }
        Ok(counters)
    }
}

/// A callback for a follower's thread of this name. It puts each view into `latest` and sends `input` to the control
/// thread. The receiver gets one message, for the first view.
fn follower_callback<T: Send + 'static>(
    thread: &str,
    latest: Latest<T>,
    input: fn() -> Input,
    inputs: &Sender<Input>,
    notices: &Sender<String>,
) -> (impl FnMut(T) + Send + 'static, Receiver<()>) {
    let (seen, first) = bounded(1);
    let (notice, inputs) = (EndNotice::new(thread, notices), inputs.clone());
    let report = move |view| {
        // Moved into the closure, so that it is dropped when the thread ends.
        let _ = &notice;
        if latest.put(view) == Slot::Empty {
            // The control thread ends first only when the daemon stops.
            let _ = inputs.send(input());
        }
        // The channel is full after the first view.
        let _ = seen.try_send(());
    };
    (report, first)
}

fn no_thread() -> impl FnOnce(io::Error) -> DaemonError {
    system("a thread")
}
