//! The start of the daemon, step by step, up to the first view of the network.
//!
//! Nothing is forwarded yet: [`Daemon::serve`] begins that, when the services are in force. A failed step ends
//! everything that earlier steps have started.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam::channel::{bounded, unbounded};
use xvs_ctl::bonds::choose;
use xvs_ctl::config::{Config, OffloadMode};
use xvs_ctl::control::Control;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::TableConfig;
use xvs_dataplane::conn::log::ConnectionLog;
use xvs_dataplane::egress::Unresolved;
use xvs_dataplane::offload::Settings;
use xvs_dataplane::steering::Steering;
use xvs_host::network::neighbours::Neighbours;
use xvs_host::network::{Latest, follow, links};
use xvs_host::state_directory::Others;
use xvs_host::{memory, netfilter};
use xvs_model::protocol::question::ControlRequest;
use xvs_model::report::status::InterfaceStatus;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_xdp::RingSizes;

use super::{Daemon, follower_callback, machine_memory_bytes, no_thread};
use crate::connection_log::Logging;
use crate::control_thread::ControlThread;
use crate::control_thread::Input;
use crate::daemon::watchdog;
use crate::error::{DaemonError, system};
use crate::facts::Facts;
use crate::history::History;
use crate::log::Losses;
use crate::offload::Offloading;
use crate::response_minute::ResponseMinutes;
use crate::restart::kept_hour::KeptHour;
use crate::restart::kept_state::KeptState;
use crate::restart::pins;
use crate::restart::take_over::TakeOver;
use crate::shared::Shared;
use crate::sync::daemons::Daemons;
use crate::sync::master::TableFacts;
use crate::sync_peers::SyncPeers;
use crate::threads;
use crate::workers::system::SystemDatapath;
use crate::workers::worker_start::WorkerStart;
use crate::workers::{Workers, interface_facts};

/// Inputs that may wait for the control thread.
const QUEUE: usize = 1024;

/// How long the start waits for the kernel's mark rules.
const FIRST_RULES: Duration = Duration::from_secs(3);

impl Daemon {
    /// Starts everything that a checked configuration names. Returns when packets are received and requests are
    /// answered.
    ///
    /// # Errors
    /// The part that could not be started; then nothing stays attached.
    pub fn start(config: &Config, log: Losses, take_over: Option<&TakeOver>) -> Result<Self, DaemonError> {
        let clock = Arc::new(Clock::Monotonic);
        let started = clock.now();
        let others = if take_over.is_some() { Others::Run } else { Others::Ended };
        let mut warnings = Vec::new();
        let Interfaces { steering, mut workers, status } = attach(config, &clock, others, &mut warnings)?;
        let kept = open_table(config, &workers, others, &mut warnings)?;
        let offload = offloading(config, &steering, kept.table.entries(), &mut warnings);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        // Members of bonds are not offloaded.
        workers.may_offload = offload.is_some()
            && config.offload_excluded.is_empty()
            && status.iter().all(|interface| interface.bond.is_none());

        let links = workers.links();
        let wakers = workers.wakers.clone();
        let worker_count = workers.count();
        let hold = steering.hold().clone();
        let flows = offload.as_ref().map(|offload| offload.flows().clone());
        let peers = Arc::default();
        let mut control = control(config, workers, steering, offload, &kept, Arc::clone(&peers))?;
        kept.return_to(&mut control, started);
        let KeptState { table, directory, .. } = kept;
        let (notices, ended) = unbounded();
        let (logging, logged) = config
            .connection_log
            .settings()
            .map(|settings| {
                let log = ConnectionLog::new(settings, table.entries())
                    .map_err(system("connection_log: its memory"))?;
                Logging::start(&config.connection_log, Arc::new(log), clock.clone(), &notices)
                    .map_err(no_thread())
            })
            .transpose()?
            .unzip();

        let facts = Facts {
            interfaces: status,
            rules: config.compared_rules(),
            start_warnings: warnings,
            ..Facts::default()
        };
        let shared = Arc::new(Shared {
            started,
            history: History::since(started),
            responses: ResponseMinutes::since(started),
            watchdog: watchdog::time(take_over.and_then(TakeOver::watchdog)),
            hold: Some(hold.clone()),
            offload: flows.clone(),
            wakers,
            peers,
            facts: Mutex::new(facts),
            log: Some(log),
            connection_log: logged,
            ..Shared::new(clock.clone(), worker_count, &control)
        });
        let unresolved = Arc::new(Unresolved::new(64));
        let worker_start = WorkerStart {
            clock,
            hold,
            unresolved: unresolved.clone(),
            published: control.published(),
            total: control.total(),
            counters: shared.counters.clone(),
            notices: notices.clone(),
            offload: flows,
        };
        let (inputs, queue) = bounded(QUEUE);
        let network_views = Latest::default();
        let mark_rules = Latest::default();
        let mut thread = ControlThread::new(
            control,
            queue,
            (network_views.clone(), mark_rules.clone()),
            unresolved,
            links,
            shared.clone(),
        );
        thread.set_start(worker_start, table);
        if let Some(directory) = &directory {
            thread.kept_hour = KeptHour::new(directory.path());
        }
        let control = threads::spawn("xvs-control", &notices, move || thread.run()).map_err(no_thread())?;
        let (report, first_view) =
            follower_callback("xvs-network", network_views, || Input::Network, &inputs, &notices);
        let network = follow(report).map_err(system("following the kernel's network"))?;
        let (report, first_rules) =
            follower_callback("xvs-netfilter", mark_rules, || Input::Marks, &inputs, &notices);
        let netfilter = netfilter::follow(report).map_err(system("following netfilter's mark rules"))?;
        let daemon = Self {
            inputs,
            control: Some(control),
            network: Some(network),
            netfilter: Some(netfilter),
            health: None,
            fleet: None,
            kernel: None,
            logging,
            is_as_kept: false,
            shared,
            notices,
            ended,
            directory,
            begun: None,
        };
        // The first network view is sent before this request, so it is in force when `start` returns. Mark rules are
        // read by external programs, so the wait for them is limited.
        let _ = first_view.recv();
        let _ = first_rules.recv_timeout(FIRST_RULES);
        let _ = daemon.handle().request(ControlRequest::Timeouts);
        Ok(daemon)
    }
}

/// The attached interfaces.
struct Interfaces {
    /// The XDP programs, which are not in force yet.
    steering: Steering,
    /// The workers, without threads and sockets.
    workers: Workers,
    status: Vec<InterfaceStatus>,
}

/// Loads the XDP program, and attaches it to the configured interfaces.
fn attach(
    config: &Config,
    clock: &Clock,
    others: Others,
    warnings: &mut Vec<Warning>,
) -> Result<Interfaces, DaemonError> {
    let takes_over = others == Others::Run;
    // Another mode takes effect with a successor, which has separate maps.
    let steering = Steering::load(config.map_sizes()).map_err(DaemonError::Program)?;
    let links = links().map_err(system("the kernel's links"))?;
    if takes_over && config.hold.duration().is_zero() {
        return Err(DaemonError::TakeOver(
            "without a hold (hold = \"0\") no XDP program is pinned".to_owned(),
        ));
    }
    let (pins, no_hold) = match pins::open(config, others) {
        Ok(pins) => (pins, None),
        Err(error) if takes_over => return Err(DaemonError::TakeOver(error.to_string())),
        Err(error) => (None, Some(Warning::new(WarningKind::ProgramNotPinned, "", error.to_string()))),
    };
    let length = if pins.is_some() { config.hold.duration() } else { Duration::ZERO };
    steering.hold().set(length, clock.elapsed());
    let mut attached = Vec::new();
    let mut bonds = Vec::new();
    for (name, wanted) in config.interfaces.iter() {
        for (name, bond) in choose(name, &links)? {
            attached.push(steering.attach(&name, wanted, pins.as_ref()).map_err(pins::explained)?);
            bonds.push(bond);
        }
    }
    let rings = RingSizes { receive: config.receive_ring, transmit: config.transmit_ring };
    let mut workers = Workers::new(attached, config.workers, rings, config.poll, pins)?;
    if takes_over {
        workers.prepare_memory();
    }
    warnings.extend(workers.fewer_than(config.workers));
    warnings.extend(no_hold);
    let status = bonds
        .into_iter()
        .enumerate()
        .map(|(place, bond)| InterfaceStatus { bond, ..interface_facts(&workers.attached[place]) });
    Ok(Interfaces { steering, status: status.collect(), workers })
}

/// Opens or makes the connection table, if there is memory for it.
fn open_table(
    config: &Config,
    workers: &Workers,
    others: Others,
    warnings: &mut Vec<Warning>,
) -> Result<KeptState, DaemonError> {
    let table = TableConfig {
        capacity: config.conn_table_size,
        workers: workers.count(),
        memory: config.conn_table_memory.into(),
    };
    Config::check_table(&table, machine_memory_bytes())?;
    let free_huge_bytes = memory::HugePages::read().unclaimed_bytes();
    let over = memory::cgroup_limit()
        .and_then(|limit| config.check_limit(&table, workers.packet_bytes(), free_huge_bytes, &limit).err());
    let mut kept = KeptState::open(config, table, over, others)?;
    warnings.append(&mut kept.warnings);
    Ok(kept)
}

/// The offload of flows, as the configuration wants it.
fn offloading(
    config: &Config,
    steering: &Steering,
    entries: usize,
    warnings: &mut Vec<Warning>,
) -> Option<Offloading> {
    if config.offload == OffloadMode::Off {
        return None;
    }
    let settings = Settings { after: config.offload_after, ..Settings::default() };
    Offloading::start(config.offload, config.offload_excluded.clone(), settings, steering, entries)
        .inspect_err(|error| {
            let text = format!(
                "no connection is offloaded: {error}; correct that and run `systemctl reload xvsd`, or set offload = \"off\""
            );
            warnings.push(Warning::new(WarningKind::Offload, "", text));
        })
        .ok()
}

/// The control plane over the real data path, as xvs.toml configures it.
fn control(
    config: &Config,
    workers: Workers,
    steering: Steering,
    offload: Option<Offloading>,
    kept: &KeptState,
    peers: Arc<SyncPeers>,
) -> Result<Control<SystemDatapath>, DaemonError> {
    let count = workers.count();
    let secret = kept.table.secret();
    let table = TableFacts { workers: count, entries: kept.table.entries(), secret };
    let datapath = SystemDatapath::new(
        workers,
        steering,
        Neighbours::open().map_err(system("netlink"))?,
        config.conn_table_size,
        Daemons::new(table, config.sync_key_file.clone(), peers),
        offload,
    );
    let mut control = Control::new(datapath, count, config.ipvs, config.feedback.clone());
    control.set_start_settings(config.settings(count));
    control.set_sip_calls(config.sip_calls);
    control.keep_lists_without_files();
    control.set_repair(config.keepalived.repair);
    control.set_list_files(config.list_files()).map_err(DaemonError::Lists)?;
    control.set_clients(config.limits.into(), secret);
    Ok(control)
}
