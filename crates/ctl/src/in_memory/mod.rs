//! The whole director in memory, without root, network or clock: control plane, pipeline and connection table with a
//! port in memory.
//!
//! For `xvs lab` and for tests. The caller adds interfaces, routes and neighbours, injects frames and advances time.
//! All other code is the daemon's. Equal input gives equal output.

mod datapath;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, mem};

use xvs_dataplane::burst::Context;
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Table, TableConfig, TableReader, Timers};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::Unresolved;
use xvs_dataplane::explain::Live;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::general_path::reassembly::Reassembly;
use xvs_dataplane::general_path::reassembly::handoff::Handoff;
use xvs_dataplane::offload::Offload;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::Port;
use xvs_dataplane::port::memory::{Bytes, FirstPart, MemoryPort};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::clients::ClientSettings;
use xvs_dataplane::snapshot::vip_probes::VipProbes;
use xvs_dataplane::steering::SteeringRules;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::settings::Ipvs;
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Missed};
use xvs_model::report::connection::{ConnectionRow, Ended, Filter};
use xvs_proto::network::{Network, Route, RouteAction};
use xvs_proto::{HashSecret, LinkId, Prefix, network};

pub use self::datapath::{MemoryDatapath, Program};
use self::datapath::{SECRET, TABLE_SIZE};
use crate::api::capture::Listener;
use crate::api::connections::{EndMode, count, end, matching_rows, rows};
use crate::api::{explain, local_addresses};
use crate::control::Control;
use crate::sweep::Sweeper;
use crate::sync::messages::Sent;
use crate::unattached::Attachment;

/// The step by which [`InMemory::advance`] advances time.
const STEP: Duration = Duration::from_millis(100);

/// A director in memory.
pub struct InMemory {
    control: Control<MemoryDatapath>,
    sweeper: Sweeper,
    counters: Arc<WorkerCounters>,
    reader: Mutex<TableReader>,
    network: Network,
    now: Millis,
    port: MemoryPort,
    pipeline: Pipeline,
    /// The messages of the master daemon that have not been taken yet.
    sync_messages: Vec<SyncMessage>,
    /// Whether packets that the program forwards are counted when time advances, as in a daemon, and not at once.
    sweeps_late: bool,
    /// The verdict on the frame of the last burst, if the program has forwarded it, and the frame until it is taken.
    offloaded: Option<(Verdict, Option<Bytes>)>,
}

/// A message of the master daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncMessage {
    /// The outgoing interface.
    pub link: String,
    /// The UDP port to which it is sent.
    pub port: u16,
    /// The UDP payload.
    pub payload: Vec<u8>,
}

impl InMemory {
    /// A director without interfaces, at time 0.
    ///
    /// # Panics
    /// If the machine has no memory for the table.
    pub fn new(ipvs: Ipvs, feedback: Feedback) -> Self {
        let config = TableConfig { capacity: TABLE_SIZE, workers: 1, memory: Memory::SmallPages };
        // Fixed, so that the same script gives the same bytes.
        let table = Table::keyed(config, SECRET).expect("the machine has memory for a small table");
        let counters = Arc::new(WorkerCounters::default());
        let datapath = MemoryDatapath { table: Some(table.clone()), ..MemoryDatapath::default() };
        let mut control = Control::new(datapath, 1, ipvs, feedback);
        control.set_clients(ClientSettings::default(), SECRET);
        let flows = Flows::new(
            0,
            table.handle(0).expect("the table has one worker, whose handle is free"),
            counters.clone(),
            control.total(),
            Identification::numbered(IDS, 0),
        );
        let ids = Identification::numbered(IDS, 1);
        let pipeline = Pipeline::new(
            flows,
            Transmitter::new(counters.clone(), Arc::new(Unresolved::new(1)), ids),
            Reassembly::new(0, Arc::new(Handoff::new(1)), *table.secret()),
        );
        let reader = table.reader().expect("a new table has two reader handles free");
        let of_sweeper = table.reader().expect("a new table has two reader handles free");
        Self {
            sweeper: Sweeper::new(of_sweeper, control.published(), 0),
            control,
            counters,
            reader: Mutex::new(reader),
            network: loopback(),
            now: Millis(0),
            port: MemoryPort::with_links(0),
            pipeline,
            sync_messages: Vec::new(),
            sweeps_late: false,
            offloaded: None,
        }
    }

    /// Whether packets of steady connections take the fast path, as they do at first.
    pub fn set_fast_path(&mut self, allowed: bool) {
        self.pipeline.set_fast_path(allowed);
    }

    /// Offloads flows to a program that is created for the director's table. A frame injected alone goes to the program
    /// first; the frames that it forwards are counted at once. The results are the same.
    ///
    /// # Errors
    ///
    /// The program cannot be created.
    pub fn offload(
        &mut self,
        make: impl FnOnce(&Table) -> io::Result<(Arc<Offload>, Box<dyn Program>)>,
    ) -> io::Result<()> {
        let datapath = self.control.datapath();
        let (offload, program) = make(datapath.table.as_ref().ok_or(io::ErrorKind::NotFound)?)?;
        datapath.program = Some(program);
        datapath.steer();
        self.pipeline.flows.set_offload(offload);
        Ok(())
    }

    /// Counts packets that the program forwards when time advances, and not at once.
    pub fn sweep_late(&mut self) {
        self.sweeps_late = true;
    }

    /// Makes the program forward the only frame of a burst, if there is a program. Returns whether it did.
    fn forward_offloaded(&mut self, frame: &[u8]) -> bool {
        let now = self.now;
        let Some(program) = &mut self.control.datapath().program else { return false };
        let Some((ifindex, frame)) = program.forward(frame, now) else { return false };
        let link = self.network.links.iter().find(|link| link.ifindex == ifindex).map(|link| link.id);
        self.offloaded = link.map(|link| (Verdict::Transmit(link), Some(Bytes { link, frame })));
        true
    }

    /// Counts the packets that the program has forwarded.
    fn sweep(&mut self, snapshot: &Snapshot) {
        if self.control.datapath().program.is_none() {
            return;
        }
        self.pipeline.flows.hasten_sweep();
        while self.pipeline.flows.sweep_offloaded(Context::new(snapshot, self.now)) {}
    }

    /// Makes frames that are injected from now on arrive in several buffers. The results are the same.
    pub fn set_first_part(&mut self, bytes: FirstPart) {
        self.port.set_first_part(bytes);
    }

    /// The number of frames in the last burst that took the general path.
    pub fn general_path(&self) -> usize {
        self.pipeline.general_path()
    }

    /// The traffic that the XDP program would steer now.
    pub fn steering_rules(&mut self) -> &SteeringRules {
        &self.control.datapath().rules
    }

    /// Number of snapshots published so far.
    pub fn publications(&mut self) -> u64 {
        self.control.datapath().publications
    }

    /// The settings of IPVS and of load feedback.
    pub fn settings(&self) -> (Ipvs, Feedback) {
        (self.control.ipvs(), self.control.feedback().clone())
    }

    /// Changes the network completely or not at all.
    ///
    /// # Errors
    /// The reason why the change is refused.
    pub fn change_network<E>(&mut self, change: impl FnOnce(&mut Network) -> Result<(), E>) -> Result<(), E> {
        let mut network = self.network.clone();
        change(&mut network)?;
        let offloads = self.control.datapath().program.is_some();
        for link in &mut network.links {
            link.offloads = offloads;
            link.takes_redirected = offloads;
        }
        self.port.set_links(network.links.len() as u16);
        self.control.set_devices(&network.links);
        self.control.set_network(&network);
        self.network = network;
        Ok(())
    }

    /// Starts a capture with this many slots.
    ///
    /// # Errors
    /// The reason why the request is refused.
    pub fn capture(&mut self, wanted: &CaptureRequest, slots: usize) -> Result<Listener, CommandError> {
        let listener = Listener::new(wanted, 1, slots, &self.control.egress())?;
        self.control.set_captures([listener.capture()].into())?;
        Ok(listener)
    }

    /// Packets captured since the last call, and frames missed since the start.
    pub fn captured(&mut self, listener: &mut Listener) -> (Vec<CapturedPacket>, Missed) {
        let egress = self.control.egress();
        (listener.packets(&egress), listener.missed(&egress))
    }

    /// Replaces the probes of real servers through their virtual address.
    pub fn set_vip_probes(&mut self, probes: Option<Arc<VipProbes>>) {
        self.control.set_vip_probes(probes);
    }

    /// Injects up to [`BURST`](xvs_xdp::BURST) frames on a link; on `lo`, frames that the director sends to itself.
    /// Discards the frames transmitted by the last call.
    ///
    /// # Errors
    /// The link does not exist, or a frame is too long; the frames before it are processed by the next call.
    pub fn burst<'a>(
        &mut self,
        link: &str,
        frames: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), String> {
        let known = self
            .network
            .links
            .iter()
            // Frames of a VLAN arrive on the link below it.
            .find(|known| known.name == link && known.vlan.is_none())
            .map(|known| known.id);
        let Some(id) = known.or((link == "lo").then_some(LinkId::LOOPBACK)) else {
            return Err(format!("no link {link}; add it with {{\"link\":\"{link}\",…}} first"));
        };
        self.port.take_transmitted();
        self.offloaded = None;
        let frames: Vec<_> = frames.into_iter().collect();
        let is_forwarded = matches!(*frames, [frame] if self.forward_offloaded(frame));
        for bytes in frames.into_iter().filter(|_| !is_forwarded) {
            if !self.port.inject(id, bytes) {
                return Err(format!("frame: {} bytes exceed the frame size", bytes.len()));
            }
        }
        let snapshot = self.control.published().load_full();
        self.pipeline.run(Context::new(&snapshot, self.now), &mut self.port);
        self.pipeline.flows.quiescent();
        self.port.take_passed();
        if !self.sweeps_late {
            self.sweep(&snapshot);
        }
        self.synchronize(&snapshot);
        Ok(())
    }

    /// Makes the master daemon send the messages that are due.
    fn synchronize(&mut self, snapshot: &Snapshot) {
        let Some((daemon, messages)) = &mut self.control.datapath().master else { return };
        messages.run(snapshot, self.now, |number, payload| {
            self.sync_messages.push(SyncMessage {
                link: daemon.interface.clone(),
                port: daemon.port.saturating_add(number),
                payload: payload.to_vec(),
            });
            Sent::Done
        });
    }

    /// Passes a message from another director's master daemon to the backup daemon of an interface. Returns the reason
    /// if it is refused as a whole.
    pub fn receive_sync(&mut self, link: &str, payload: &[u8]) -> Option<String> {
        let backup = self.control.datapath().backup.as_ref();
        let Some(backup) = backup.filter(|backup| backup.daemon.interface == link) else {
            return Some(format!("{link} has no backup daemon"));
        };
        let refused = backup.receive(payload, |_| Ok(()), |_| ()).err().map(|refused| refused.to_string());
        let snapshot = self.control.published().load_full();
        while self.pipeline.flows.receive_synchronized(&snapshot, self.now) {}
        self.pipeline.flows.quiescent();
        refused
    }

    /// The messages that the master daemon has sent since the last call; `None` if none runs, and none has run.
    pub fn sync_messages(&mut self) -> Option<Vec<SyncMessage>> {
        let runs = self.control.datapath().master.is_some();
        (runs || !self.sync_messages.is_empty()).then(|| mem::take(&mut self.sync_messages))
    }

    /// The verdict on the first frame of the last burst.
    pub fn verdict(&self) -> Option<Verdict> {
        self.verdicts().first().copied()
    }

    /// The verdicts on the last burst, in its order.
    pub fn verdicts(&self) -> &[Verdict] {
        match &self.offloaded {
            Some((verdict, _)) => std::slice::from_ref(verdict),
            None => self.pipeline.transmitter.verdicts(),
        }
    }

    /// The frames transmitted since the last call or burst, each with the name of its link.
    pub fn transmitted(&mut self) -> Vec<(String, Vec<u8>)> {
        self.offloaded
            .iter_mut()
            .filter_map(|(_, bytes)| bytes.take())
            .chain(self.port.take_transmitted())
            .map(|Bytes { link: id, frame }| {
                let link = self.network.links.iter().find(|link| link.id == id);
                (link.map_or_else(|| "?".to_owned(), |link| link.name.clone()), frame)
            })
            .collect()
    }

    /// Frames received or originated, less those that have left: 0 between two bursts.
    pub fn unaccounted_frames(&self) -> i64 {
        self.pipeline.transmitter.counters().balance()
    }

    /// Frames that are neither in the pool nor held: 0 between two bursts.
    pub fn frames_missing(&self) -> i64 {
        i64::from(self.port.census().out) - self.pipeline.transmitter.counters().held.value() as i64
    }

    /// Advances time.
    ///
    /// # Errors
    ///
    /// Same as [`Control::tick`].
    pub fn advance(&mut self, time: Duration) -> Result<(), CommandError> {
        let target = self.now + time;
        while self.now < target {
            // A removal since the last step queues its flush now.
            let next_sweep = self.sweeper.run(self.now);
            self.now = (self.now + STEP).min(next_sweep).min(target);
            self.control.tick(self.now)?;
            self.sweeper.run(self.now);
            let snapshot = self.control.published().load_full();
            if self.sweeps_late {
                self.sweep(&snapshot);
            }
            while self.pipeline.flows.expire(&snapshot, self.now) == Timers::Behind {}
            // Without a frame, the pipeline still expires fragments that wait for reassembly.
            self.pipeline.run(Context::new(&snapshot, self.now), &mut self.port);
            self.pipeline.flows.quiescent();
            self.synchronize(&snapshot);
        }
        Ok(())
    }

    /// All counters that are not zero.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut all: BTreeMap<_, _> = self.counters.all().collect();
        // A frame that the program has forwarded counts as received and sent.
        if let Some(offloaded) = all.remove("offloaded") {
            for name in ["rx_packets", "tx_packets"] {
                *all.entry(name.to_owned()).or_default() += offloaded;
            }
        }
        all.extend(self.sweeper.counters().all().map(|(name, value)| (name.to_owned(), value)));
        all.retain(|_, value| *value != 0);
        all
    }

    fn end(&self, filter: &Filter, mode: EndMode) -> Ended {
        let snapshot = self.control.published().load_full();
        end(&self.reader, &snapshot, self.now, filter, mode, &self.sweeper.counters().drained)
    }
}

impl Director for InMemory {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let reply = match request {
            Request::Counters => Ok(Reply::Counters(self.counters())),
            Request::Status | Request::Traffic => {
                Err(CommandError::Failed { why: "a lab has no status; request its counters".to_owned() })
            }
            // The lab has no keepalived.conf.
            Request::Health => Ok(Reply::Health(None)),
            Request::CountConnections(filter) => {
                let snapshot = self.control.published().load_full();
                Ok(Reply::Count(count(&self.reader, &snapshot, self.now, &filter)))
            }
            Request::Events(_) => Err(CommandError::Failed {
                why: "a lab has no events; the reply to each line has its result".to_owned(),
            }),
            Request::Explain(question) => {
                let snapshot = self.control.published().load_full();
                let live = Live { snapshot: &snapshot, reader: &self.reader, now: self.now, offload: None };
                // Every link of the lab is attached.
                explain::answer(&question, &live, &Attachment::default()).map(|mut report| {
                    report.add_disabled(self.control.state().disabled());
                    Reply::Explained(Box::new(report))
                })
            }
            Request::EndConnections(filter) => Ok(Reply::Ended(self.end(&filter, EndMode::Silent))),
            Request::ResetConnections(filter) => Ok(Reply::Ended(self.end(&filter, EndMode::Reset))),
            Request::LocalUse => {
                let exhausted = self.counters.dropped(DropReason::NoLocalPort).value();
                let locals = self.control.state().locals();
                Ok(Reply::LocalUse(local_addresses::report(locals, &self.reader, exhausted)))
            }
            Request::Control(request) => self.control.handle(&request, self.now),
            Request::ListConnections
            | Request::FindConnections(_)
            | Request::Healthy { .. }
            | Request::Capture(_)
            | Request::Examine
            | Request::Reload
            | Request::ReloadAcceptingLoss
            | Request::Fleet(_)
            | Request::TakeOver(_)
            | Request::Stop { .. } => {
                Err(CommandError::Failed { why: "a lab does not answer this request; xvsd does".to_owned() })
            }
        };
        reply.map_err(Failure::Refused)
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        let call_ids = self.control.published().load().call_ids.clone();
        print_rows(each, |each| rows(&self.reader, &call_ids, self.now, each))
    }

    fn find(
        &mut self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let snapshot = self.control.published().load_full();
        print_rows(each, |each| matching_rows(&self.reader, &snapshot, self.now, filter, each))
    }
}

/// Passes rows to `each` until it fails.
fn print_rows(
    each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
    walk: impl FnOnce(&mut dyn FnMut(ConnectionRow) -> ControlFlow<()>),
) -> Result<(), Failure> {
    let mut printed = Ok(());
    walk(&mut |row| match each(row) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            printed = Err(Failure::Printing(error));
            ControlFlow::Break(())
        }
    });
    printed
}

/// Fixed, so that the same script gives the same bytes.
const IDS: HashSecret = HashSecret([3, 5, 7]);

/// The network of a machine that has only the loopback interface.
fn loopback() -> Network {
    let routes =
        [(Ipv4Addr::LOCALHOST.into(), 8), (Ipv6Addr::LOCALHOST.into(), 128)].map(|(addr, len)| Route {
            table: network::Table::LOCAL,
            dest: Prefix::new(addr, len).expect("the prefix lengths are valid for their families"),
            metric: 0,
            action: RouteAction::Local,
            preferred_source: None,
            mtu: None,
        });
    Network { routes: routes.into(), ..Network::default() }
}
