//! The workers' threads and the attached interfaces.
//!
//! Started with the daemon; used by the control thread. An interface that was removed and came back under its name, or
//! that joined a bond, is attached while they run: every worker closes its sockets, whose packet memory all interfaces
//! share, and continues with new ones. The connection table, the timers and the counters stay. In the meantime, for
//! some tens of milliseconds, packets for services go to the kernel, or are held. Packets in a transmit ring are
//! counted as abandoned. The same happens when an interface has other queues or a larger MTU (`settings.rs`). On drop
//! the interfaces are detached first, then the workers end.

mod cores;
mod own_packets;
mod programs;
mod settings;
pub(crate) mod system;
pub(crate) mod worker_start;

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xvs_ctl::placement;
use xvs_dataplane::port::xdp::{OwnPackets, Waker, XdpPort};
use xvs_dataplane::steering::Steering;
use xvs_dataplane::steering::own::Redirection;
use xvs_dataplane::steering::reinject::Reinjector;
use xvs_dataplane::worker::Worker;
use xvs_helper::task::Task as _;
use xvs_host::cores::cores_available;
use xvs_host::network::deferral::DeferInterrupts;
use xvs_model::report::status::InterfaceStatus;
use xvs_model::report::status::LinkState;
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_xdp::device::{receive_queues, receive_queues_word};
use xvs_xdp::pins::Pins;
use xvs_xdp::polling::Poll;
use xvs_xdp::{
    AttachError, Attached, CopyMode, Mode, OFFLOAD, PacketMemory, Queues, RECEIVE_RING, RingSizes, Sockets,
    Wanted, WantedMode, precede_receive_threads, umem_bytes,
};

use crate::error::{DaemonError, system};
use crate::facts::WorkerFacts;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::threads;
use crate::workers::cores::{SharedCores, cores};
use crate::workers::settings::Unfit;

/// The time after a refusal until it is tried again.
pub(crate) const RETRY_REFUSED: Duration = Duration::from_secs(30);

/// How long a worker may take to end its burst and close its sockets.
const CLOSING: Duration = Duration::from_secs(5);

/// The queues of each worker, by interface.
pub(crate) type Shares = Vec<Vec<Vec<u32>>>;

/// The workers and the attached interfaces.
pub(crate) struct Workers {
    pub(crate) attached: Vec<Attached>,
    /// The TAPs that pass packets to the kernel, in the interfaces' order.
    reinjectors: Vec<Arc<Reinjector>>,
    /// The redirection of what this machine itself sends, by interface.
    own: Vec<Option<Redirection>>,
    /// The redirection of what clients on this machine send on `lo`, and its TAP.
    own_clients: Option<Redirection>,
    loopback: Arc<OnceLock<Arc<Reinjector>>>,
    /// Why packets of this machine cannot be redirected.
    pub(crate) not_redirected: Vec<Warning>,
    rings: RingSizes,
    shares: Shares,
    /// The wakers of all workers, also of those not started yet.
    pub(crate) wakers: Vec<Waker>,
    /// Packet memory for ports that are opened later.
    memory: Vec<PacketMemory>,
    threads: Vec<WorkerThread>,
    /// Whether the workers have no sockets.
    pub(crate) paused: bool,
    /// Why a driver refused the wanted number of receive queues when the sockets were opened last, by interface name.
    queues_refused: BTreeMap<String, AttachError>,
    /// Changed settings that the workers have no sockets for, by interface.
    unfit: Vec<Option<Unfit>>,
    /// Where the XDP programs are pinned; `None` if they end with this process.
    pins: Option<Pins>,
    /// Why an XDP program could not be pinned.
    pub(crate) not_pinned: Vec<Warning>,
    /// How the workers wait.
    poll: Poll,
    /// Why they do not wait as configured, or only with interrupts.
    pub(crate) not_driven: Vec<Warning>,
    shared_cores: SharedCores,
    /// Whether established connections may be offloaded on all interfaces.
    pub(crate) may_offload: bool,
    /// The interface, or the other reason, because of which the kernel copies frames to and from the sockets that were
    /// opened last.
    copied_for: Option<String>,
}

/// The thread of a worker, and the means to interrupt it.
struct WorkerThread {
    stop: Arc<AtomicBool>,
    /// Signals that the worker forwards no more, and closes its sockets.
    closed: Receiver<()>,
    /// Whether it has a port and so may use the table: from the start or [`Workers::resume`] until it has closed its
    /// sockets.
    has_port: bool,
    /// Sends the next port to the worker; dropping it ends the worker.
    ports: Option<Sender<XdpPort>>,
    handle: Option<JoinHandle<()>>,
}

impl Workers {
    /// These interfaces, without workers yet. If an interface has fewer queues than `workers`, there are fewer workers:
    /// better than no director, and the operator may add queues later.
    ///
    /// # Errors
    /// The queues cannot be shared out, or a TAP to the kernel cannot be opened.
    pub(crate) fn new(
        attached: Vec<Attached>,
        workers: Option<usize>,
        rings: RingSizes,
        poll: Poll,
        pins: Option<Pins>,
    ) -> Result<Self, DaemonError> {
        let queues = attached.iter().map(|attached| attached.receive_queues() as usize);
        let workers = workers.map(|workers| workers.min(queues.min().unwrap_or(workers)));
        let shares = shares(&attached, workers)?;
        Ok(Self {
            reinjectors: attached.iter().map(open_reinjector).collect::<Result<_, _>>()?,
            own: attached.iter().map(|_| None).collect(),
            own_clients: None,
            loopback: Arc::default(),
            not_redirected: Vec::new(),
            rings,
            wakers: shares
                .iter()
                .map(|_| Waker::new())
                .collect::<io::Result<_>>()
                .map_err(system("a worker's waker"))?,
            shares,
            memory: Vec::new(),
            threads: Vec::new(),
            paused: false,
            queues_refused: BTreeMap::new(),
            unfit: attached.iter().map(|_| None).collect(),
            pins,
            not_pinned: Vec::new(),
            poll,
            not_driven: Vec::new(),
            shared_cores: SharedCores::default(),
            may_offload: false,
            copied_for: None,
            attached,
        })
    }

    /// The number of workers, including those not started yet.
    pub(crate) fn count(&self) -> usize {
        self.shares.len()
    }

    /// The warning that an interface has queues for fewer workers than wanted.
    pub(crate) fn fewer_than(&self, wanted: Option<usize>) -> Option<Warning> {
        let wanted = wanted.filter(|wanted| *wanted > self.count())?;
        let fewest = self.attached.iter().min_by_key(|attached| attached.receive_queues())?.interface();
        let text = fewer_warning(wanted, self.count(), fewest, receive_queues_word(fewest));
        Some(Warning::new(WarningKind::FewerWorkers, fewest, text))
    }

    /// The packet memory of all workers.
    pub(crate) fn packet_bytes(&self) -> u64 {
        let mtu = self.attached.iter().map(Attached::mtu).max().unwrap_or(0);
        let Some(frame) = self.attached.iter().map(Attached::frame_bytes).max() else { return 0 };
        let queues = self.shares.iter().map(|share| share.iter().map(Vec::len).sum());
        queues.map(|queues| umem_bytes(mtu, frame, queues, self.rings)).sum()
    }

    /// The kernel's indices of the interfaces, in their order.
    pub(crate) fn links(&self) -> Vec<u32> {
        self.attached.iter().map(Attached::index).collect()
    }

    /// The kernel's indices of the interfaces whose drivers may deliver packets with partial checksums.
    pub(crate) fn partial_checksums(&self) -> Vec<u32> {
        self.attached.iter().filter(|attached| attached.leaves_checksums()).map(Attached::index).collect()
    }

    /// The reason for sockets that copy, though interfaces may have zero-copy: a card's ring is larger than the number
    /// of frames, or no interface is to have zero-copy and the programs can forward established connections between all
    /// of them, which costs less (docs/bare-metal.md).
    fn to_copy(&self) -> Option<&'static str> {
        let mut zero_copy = self.attached.iter().filter(|attached| attached.may_have_zero_copy());
        if zero_copy.any(|attached| attached.card_ring() > self.rings.receive) {
            Some(RECEIVE_RING)
        } else {
            (self.may_offload && self.attached.iter().all(prefers_copies)).then_some(OFFLOAD)
        }
    }

    /// Whether the kernel copies frames to and from the workers.
    pub(crate) fn copies(&self) -> bool {
        self.copied_for.is_some()
    }

    /// The warnings about interfaces whose packets are copied although the operator wants zero-copy.
    pub(crate) fn not_zero_copy(&self) -> impl Iterator<Item = Warning> {
        let unlike = self.attached.iter().filter(|attached| attached.wanted().mode == WantedMode::ZeroCopy);
        unlike.zip(std::iter::repeat(self.copied_for.as_ref())).filter_map(|(attached, cause)| {
            let name = attached.interface();
            let why = match cause?.as_str() {
                RECEIVE_RING => format!(
                    "receive_ring is {}, and a card's ring has more descriptors (`ethtool -g {name}`), which loses packets; \
                     raise receive_ring to as many",
                    self.rings.receive
                ),
                cause => format!(
                    "the driver of {cause} has no zero-copy, or its mode forbids it; see `xvs doctor`, or set mode = \"auto\""
                ),
            };
            let text = format!(
                "{name} has mode = \"zero-copy\" in xvs.toml, and its packets are copied because {why} and reload"
            );
            Some(Warning::new(WarningKind::NotZeroCopy, name, text))
        })
    }

    /// The attached interface with this kernel index.
    pub(crate) fn attached(&self, ifindex: u32) -> Option<&Attached> {
        self.attached.iter().find(|attached| attached.index() == ifindex)
    }

    /// Makes packet memory for the ports that are opened next, as far as this process may have it now.
    pub(crate) fn prepare_memory(&mut self) {
        self.memory = self
            .shares
            .iter()
            .map_while(|share| PacketMemory::create(&queues(&self.attached, share), self.rings).ok())
            .collect();
    }

    /// Opens a port for each worker, with its share of the queues. Each comes with the worker's facts for `xvs status`.
    ///
    /// # Errors
    /// The kernel refuses a socket or a descriptor, or at a start a driver the wanted queues; no socket stays open.
    pub(crate) fn open_ports(&mut self) -> Result<Vec<(XdpPort, WorkerFacts)>, DaemonError> {
        let mut memory = std::mem::take(&mut self.memory).into_iter();
        let to_copy = self.to_copy();
        self.queues_refused.clear();
        for attached in &self.attached {
            match attached.set_queues() {
                Ok(()) => {}
                // At a start the operator corrects it at once.
                Err(error) if self.threads.is_empty() => return Err(error.into()),
                // The existing queues still serve, and so do the other interfaces.
                Err(error) => _ = self.queues_refused.insert(attached.interface().to_owned(), error),
            }
        }
        self.not_driven.clear();
        self.defer_interrupts(self.poll != Poll::Sleep);
        self.shared_cores.warn(self.shares.len());
        let mut ports = Vec::new();
        for (share, core) in self.shares.iter().zip(cores(self.shares.len())) {
            let queues = queues(&self.attached, share);
            let mut sockets = Sockets::open_over(&queues, self.rings, memory.next(), to_copy)?;
            if self.poll != Poll::Sleep
                && let Err(error) = sockets.prefer_busy_polling()
                && ports.is_empty()
            {
                let text = format!(
                    "workers cannot drive network drivers themselves ({error}), so interrupts do; that needs Linux 5.11; \
                     set poll = \"sleep\" and reload if latency and CPU are no better so"
                );
                self.not_driven.push(Warning::new(WarningKind::BusyPolling, "", text));
            }
            let copy_mode = sockets.copy_mode().to_string();
            self.copied_for = match sockets.copy_mode() {
                CopyMode::ZeroCopy => None,
                CopyMode::Copy { because_of } => Some(because_of.clone()),
            };
            let port = XdpPort::open(
                sockets,
                self.reinjectors.clone(),
                self.wakers[ports.len()].clone(),
                if ports.is_empty() { OwnPackets::Read } else { OwnPackets::Leave },
                self.loopback.clone(),
                self.poll,
            )
            .map_err(system("a worker's port"))?;
            let facts = WorkerFacts {
                core: core.map(|core| core.id),
                copy_mode,
                poll: self.poll,
                queues: share.clone(),
                sockets: port.socket_counters(),
            };
            ports.push((port, facts));
        }
        Ok(ports)
    }

    /// Defers the interrupts of all interfaces, or ends that.
    fn defer_interrupts(&mut self, defer: bool) {
        for attached in &self.attached {
            let name = attached.interface();
            let task = DeferInterrupts { interface: name.to_owned(), index: attached.index(), defer };
            if let Err(error) = task.run(&[])
                && defer
            {
                let text = format!(
                    "the interrupts of {name} cannot be deferred ({error}), so it interrupts workers that poll; set \
                     napi_defer_hard_irqs and gro_flush_timeout by hand, or poll = \"sleep\""
                );
                self.not_driven.push(Warning::new(WarningKind::InterruptsNotDeferred, name, text));
            }
        }
    }

    /// Starts the next worker's thread.
    ///
    /// # Errors
    /// The OS error if the thread cannot be created.
    pub(crate) fn start(
        &mut self,
        worker: Worker<XdpPort>,
        notices: &Sender<String>,
    ) -> Result<(), DaemonError> {
        let number = self.threads.len();
        let core = cores(self.shares.len()).get(number).copied().flatten();
        let stop = worker.stop.clone();
        let poll = self.poll;
        let (closed_tx, closed) = bounded(1);
        let (ports, next) = bounded(1);
        let handle = threads::spawn(&format!("xvs-worker-{number}"), notices, move || {
            pin(number, core);
            // A worker that never sleeps would starve the other work on its core.
            if poll == Poll::Sleep {
                prefer(number);
            }
            limit_thread(Kind::Worker);
            run_worker(worker, &closed_tx, &next);
        })
        .map_err(system("a thread"))?;
        self.threads.push(WorkerThread {
            stop,
            closed,
            has_port: true,
            ports: Some(ports),
            handle: Some(handle),
        });
        Ok(())
    }

    /// The interface with this index.
    pub(crate) fn attached_at(&self, index: usize) -> &Attached {
        &self.attached[index]
    }

    /// Attaches the interface with this name as the operator wants, again at its index or as one more, and makes every
    /// worker close its sockets. [`Self::resume`] opens new ones, when the workers' network has the interface.
    ///
    /// # Errors
    ///
    /// The interface cannot be attached; nothing has changed. Or, as with [`Self::pause`], a worker does not close its
    /// sockets.
    pub(crate) fn attach(
        &mut self,
        index: usize,
        name: &str,
        wanted: Wanted,
        steering: &Steering,
    ) -> Result<(), DaemonError> {
        // Before attaching: some drivers then take the link down for a moment. If the queues cannot be read, attaching
        // reports the reason.
        let planned = wanted.queues.map_or(receive_queues(name).unwrap_or(1), NonZeroU32::get);
        let mut queues: Vec<_> =
            self.attached.iter().map(|attached| (attached.interface(), attached.receive_queues())).collect();
        match queues.get_mut(index) {
            Some(former) => *former = (name, planned),
            None => queues.push((name, planned)),
        }
        let shares = placement::shares(&queues, Some(self.threads.len()), cores_available())?;
        let attached = steering.attach(name, wanted, None)?;
        let reinjector = open_reinjector(&attached)?;
        // The queues may have changed in the meantime; then `follow_settings` opens the sockets again.
        self.shares = shares;
        match self.attached.get_mut(index) {
            Some(old) => (*old, self.reinjectors[index]) = (attached, reinjector),
            None => {
                self.attached.push(attached);
                self.reinjectors.push(reinjector);
            }
        }
        self.own.resize_with(self.attached.len(), || None);
        self.own[index] = None;
        self.unfit.resize_with(self.attached.len(), || None);
        self.unfit[index] = None;
        self.pin(index);
        let paused = self.pause();
        self.redirect_own(steering);
        paused
    }

    fn interrupt(&self) {
        for (thread, waker) in self.threads.iter().zip(&self.wakers) {
            // Relaxed: the worker sees it at the latest after the wake-up call.
            thread.stop.store(true, Ordering::Relaxed);
            waker.wake();
        }
    }

    /// Makes every worker close its sockets, if it has some. Returns when none uses the table.
    ///
    /// # Errors
    ///
    /// A worker does not do so in time. The others stay without sockets until [`Self::resume`] succeeds, which it does
    /// once that worker has closed its own.
    pub(crate) fn pause(&mut self) -> Result<(), DaemonError> {
        self.paused = true;
        self.interrupt();
        self.await_closed(Instant::now() + CLOSING)
    }

    fn await_closed(&mut self, until: Instant) -> Result<(), DaemonError> {
        for (worker, thread) in self.threads.iter_mut().enumerate().filter(|(_, thread)| thread.has_port) {
            // A worker that has panicked sends nothing; the daemon is about to end.
            if thread.closed.recv_deadline(until) == Err(RecvTimeoutError::Timeout) {
                return Err(DaemonError::StuckWorker { worker });
            }
            thread.has_port = false;
        }
        Ok(())
    }

    /// Opens new sockets for the workers after [`Self::pause`].
    ///
    /// # Errors
    /// A worker has not closed its sockets yet, or [`Self::open_ports`] fails.
    pub(crate) fn resume(&mut self) -> Result<Vec<WorkerFacts>, DaemonError> {
        self.await_closed(Instant::now())?;
        let ports = self.open_ports()?;
        let mut all_facts = Vec::new();
        for (thread, (port, facts)) in self.threads.iter_mut().zip(ports) {
            all_facts.push(facts);
            // Relaxed: sending on the channel orders it before the worker's next load.
            thread.stop.store(false, Ordering::Relaxed);
            thread.has_port = true;
            if let Some(ports) = &thread.ports {
                let _ = ports.send(port);
            }
        }
        self.paused = false;
        Ok(all_facts)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if self.poll != Poll::Sleep {
            self.defer_interrupts(false);
        }
        self.own.clear();
        self.own_clients = None;
        self.attached.clear();
        self.threads.iter_mut().for_each(|thread| thread.ports = None);
        self.interrupt();
        for thread in self.threads.iter_mut().filter_map(|thread| thread.handle.take()) {
            if thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

/// Whether the programs can forward established connections between this interface and others, which costs less than
/// its zero-copy.
fn prefers_copies(attached: &Attached) -> bool {
    attached.mode() == Mode::Native
        && attached.wanted().mode != WantedMode::ZeroCopy
        && attached.may_have_zero_copy()
        && attached.takes_redirected() == Some(true)
}

/// The main loop of a worker's thread: runs until interrupted, closes its sockets, and continues with the next port.
fn run_worker(mut worker: Worker<XdpPort>, closed: &Sender<()>, next: &Receiver<XdpPort>) {
    loop {
        worker.run();
        let Worker { pipeline, port, snapshot, clock, hold, stop } = worker;
        pipeline.transmitter.counters().transmit_abandoned.add(port.unsent());
        // The kernel may take tens of milliseconds to close them, and a process that opens the queues again waits for
        // that.
        let _ = closed.send(());
        drop(port);
        let Ok(port) = next.recv() else { return };
        worker = Worker { pipeline, port, snapshot, clock, hold, stop };
    }
}

fn pin(number: usize, core: Option<CoreId>) {
    if let Some(core) = core
        && !core_affinity::set_for_current(core)
    {
        tracing::warn!("worker {number} cannot be pinned to core {}", core.id);
    }
}

fn prefer(number: usize) {
    if let Err(error) = precede_receive_threads() {
        tracing::warn!(
            "worker {number} has no realtime priority ({error}), so it forwards less under overload; give xvsd CAP_SYS_NICE"
        );
    }
}

/// The warning about fewer workers than wanted. `fewest` has the fewest queues, `word` is `ethtool -L`'s.
fn fewer_warning(wanted: usize, count: usize, fewest: &str, word: &str) -> String {
    format!(
        "xvsd has {count} of {wanted} workers, because {fewest} has no more receive queues; set workers = {count}, or add \
         queues (`ethtool -L {fewest} {word} {wanted}`) and restart xvsd"
    )
}

fn shares(attached: &[Attached], workers: Option<usize>) -> Result<Shares, DaemonError> {
    let queues: Vec<_> =
        attached.iter().map(|attached| (attached.interface(), attached.receive_queues())).collect();
    Ok(placement::shares(&queues, workers, cores_available())?)
}

/// A worker's share of the queues of each attached interface.
fn queues<'a>(attached: &'a [Attached], share: &'a [Vec<u32>]) -> Vec<Queues<'a>> {
    attached.iter().zip(share).map(|(attached, queues)| Queues { attached, queues }).collect()
}

fn open_reinjector(attached: &Attached) -> Result<Arc<Reinjector>, DaemonError> {
    Reinjector::open(attached).map(Arc::new).map_err(system("the TAP that passes packets to the kernel"))
}

pub(crate) fn interface_facts(attached: &Attached) -> InterfaceStatus {
    let facts = InterfaceStatus {
        name: attached.interface().to_owned(),
        mode: attached.mode().to_string(),
        why_not_native: attached.native_refused().map(ToString::to_string),
        queues: attached.receive_queues(),
        state: LinkState::Up,
        attached_again: 0,
        pinned: attached.is_pinned(),
        bond: None,
        offload: None,
    };
    match &facts.why_not_native {
        Some(why) => tracing::warn!("{}: generic XDP, because native was refused: {why}", facts.name),
        None => tracing::info!("{}: {} XDP", facts.name, facts.mode),
    }
    facts
}
