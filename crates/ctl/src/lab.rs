//! The whole director without root, network or clock: one JSON object a line in, one out.
//!
//! Interfaces, routes and neighbours are named by hand, frames come in as hexadecimal text, time moves only by
//! `advance`. Everything else is what the wire runs: the same control plane, pipeline and table. The same input gives
//! the same output. A line that cannot be carried out answers `{"error":…}` and changes nothing.
//!
//! Requests: `link`, `route`, `neighbor`, `set`, `adm`, `xvs`, `inject`, `explain`, `advance`, `counters`; their
//! shapes stand beside the types below.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Table, TableConfig, TableReader, Timers};
use xvs_dataplane::counters::WorkerCounters;
use xvs_dataplane::egress::Unresolved;
use xvs_dataplane::egress::model::{self, Network, Route, RouteAction};
use xvs_dataplane::explain::Live;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::Port;
use xvs_dataplane::port::memory::{Bytes, MemoryPort};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::slow_path::reassembly::Reassembly;
use xvs_dataplane::slow_path::reassembly::handoff::Handoff;
use xvs_dataplane::steering::{SteeringError, SteeringRules};
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_proto::{HashSecret, MacAddr, Prefix};
use xvs_xdp::LinkId;

use crate::adm;
use crate::adm::resolver::Table as Names;
use crate::capturing::{CaptureRequest, CapturedPacket, Listener, Missed};
use crate::client::{Director, Failure};
use crate::connections::{Ended, How, count, end, found, rows};
use crate::control::{Control, Plant};
use crate::explain::question::unhex;
use crate::explain::{self, Question};
use crate::feedback::Feedback;
use crate::filter::Filter;
use crate::locals;
use crate::message::{CommandError, ConnectionRow, Reply, Request};
use crate::settings::{self, Ipvs};
use crate::sweep::Sweeper;

/// Connections that the lab's table holds.
const TABLE_SIZE: usize = 1 << 16;
/// How far time moves between two looks at what is due.
const STEP: Duration = Duration::from_millis(100);

/// A director in memory.
pub struct Lab {
    inner: Inner,
    port: MemoryPort,
    pipeline: Pipeline,
    /// Its own names, so that it asks no DNS and prints the same on every machine.
    resolver: Names,
}

/// What commands reach: everything but the packets.
struct Inner {
    control: Control<Unwired>,
    sweeper: Sweeper,
    counters: Arc<WorkerCounters>,
    reader: Mutex<TableReader>,
    network: Network,
    now: Millis,
}

/// The lab has no kernel to steer and no worker to wait for; it keeps what would be steered.
#[derive(Default)]
pub(crate) struct Unwired {
    rules: SteeringRules,
    /// How often workers would have been waited for: once a publication.
    publications: u64,
}

impl Plant for Unwired {
    fn widen(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.add(rules);
        Ok(())
    }

    fn take_back(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.subtract(rules);
        Ok(())
    }

    fn narrow(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
        self.rules.clone_from(rules);
        Ok(())
    }

    fn await_workers(&mut self, _: Duration) -> Result<(), String> {
        self.publications += 1;
        Ok(())
    }

    fn keep_resolved(&mut self, _: &BTreeSet<(u32, IpAddr)>) {}

    fn reserve_ports(&mut self, _: &[(u16, u16)]) {}

    /// A lab's memory is never short.
    fn available_pages(&mut self) -> Option<u32> {
        None
    }
}

/// One line.
#[derive(Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "not a request of the lab; `link`, `route`, `neighbor`, `set`, `adm`, `xvs`, `inject`, `explain`, `advance` and `counters` are"
)]
enum Line {
    /// An interface of the director that is a VLAN over another one, whose link address and MTU it has.
    Vlan {
        link: String,
        vlan: u16,
        over: String,
        #[serde(default)]
        addresses: Vec<String>,
    },
    /// An interface of the director.
    Link {
        link: String,
        mac: String,
        #[serde(default)]
        addresses: Vec<String>,
        #[serde(default = "ethernet_mtu")]
        mtu: u32,
    },
    /// A route; `default` is the whole of IPv4.
    Route { route: String, via: IpAddr, link: String },
    /// A resolved neighbour.
    Neighbor { neighbor: IpAddr, mac: String, link: String },
    /// Settings by name.
    Set { set: BTreeMap<String, Value> },
    /// A command line of `xvsadm`, without the program's name.
    Adm {
        adm: Vec<String>,
        #[serde(default)]
        stdin: String,
    },
    /// A command line of `xvs`, without the program's name.
    Xvs { xvs: Vec<String> },
    /// A frame that comes in by a link.
    Inject { inject: String, frame: String },
    /// What would become of a packet, and why, with no effect; answers what `xvs explain --json` prints.
    Explain { explain: Question },
    /// The same of a frame that would come in by a link.
    ExplainFrame { explain: String, frame: String },
    /// Seconds that pass.
    Advance { advance: f64 },
    /// Asks for every counter that is not zero.
    Counters { counters: All },
}

/// `true`: there is no other choice yet.
#[derive(Deserialize)]
#[serde(try_from = "bool")]
struct All;

impl TryFrom<bool> for All {
    type Error = &'static str;

    fn try_from(all: bool) -> Result<Self, Self::Error> {
        if all { Ok(Self) } else { Err("counters: true asks for every counter that is not zero") }
    }
}

fn ethernet_mtu() -> u32 {
    1500
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// A director without interfaces, at time 0, that treats packets as the kernel's IPVS does.
    ///
    /// # Panics
    /// If the machine has no memory for the table.
    pub fn new() -> Self {
        Self::with(Ipvs::of_the_kernel(), Feedback::default())
    }

    /// As [`Self::new`], with these settings.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn with(ipvs: Ipvs, feedback: Feedback) -> Self {
        let config = TableConfig { capacity: TABLE_SIZE, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).expect("a small table always fits");
        let counters = Arc::new(WorkerCounters::default());
        let control = Control::new(Unwired::default(), 1, ipvs, feedback);
        let unresolved = Arc::new(Unresolved::new(1));
        // One script gives the same bytes each time.
        let ids = |number| Identification::numbered(HashSecret([3, 5, 7]), number);
        let flows = Flows::new(
            0,
            table.handle(0).expect("its only worker"),
            counters.clone(),
            control.total(),
            unresolved.clone(),
            ids(0),
        );
        let transmitter = Transmitter::new(counters.clone(), unresolved, ids(1));
        let fragments = Reassembly::new(0, Arc::new(Handoff::new(1)), *table.secret());
        let pipeline = Pipeline::new(flows, transmitter, fragments);
        let seat = || table.reader().expect("a seat for listings and one for sweeps");
        let (reader, sweeper) = (Mutex::new(seat()), Sweeper::new(seat(), control.published(), 0));
        let (network, now) = (loopback(), Millis(0));
        let inner = Inner { control, sweeper, counters, reader, network, now };
        Self { inner, port: MemoryPort::with_links(0), pipeline, resolver: Names::well_known() }
    }

    /// Answers one line.
    pub fn answer(&mut self, line: &str) -> String {
        let answer = match serde_json::from_str(line) {
            Ok(line) => self.carry_out(line),
            Err(error) => Err(error.to_string()),
        };
        answer.unwrap_or_else(|error| json!({ "error": error })).to_string()
    }

    /// What the XDP program would be told to steer now.
    pub fn steering_rules(&mut self) -> &SteeringRules {
        &self.inner.control.plant().rules
    }

    /// Who answers what a client of the control socket asks.
    pub fn director(&mut self) -> &mut dyn Director {
        &mut self.inner
    }

    /// How many snapshots have been published.
    pub fn publications(&mut self) -> u64 {
        self.inner.control.plant().publications
    }

    fn carry_out(&mut self, line: Line) -> Result<Value, String> {
        match line {
            Line::Vlan { link, vlan, over, addresses } => self.vlan(&link, vlan, &over, &addresses),
            Line::Link { link, mac, addresses, mtu } => self.link(&link, &mac, &addresses, mtu),
            Line::Route { route, via, link } => self.route(&route, via, &link),
            Line::Neighbor { neighbor, mac, link } => self.neighbour(neighbor, &mac, &link),
            Line::Set { set } => self.set(set),
            Line::Adm { adm, stdin } => {
                let argv: Vec<_> = std::iter::once("ipvsadm".to_owned()).chain(adm).collect();
                let output = adm::capture(&argv, &stdin, &mut self.inner, &self.resolver);
                Ok(json!({ "exit": output.exit, "stdout": output.stdout, "stderr": output.stderr }))
            }
            Line::Xvs { xvs } => {
                let output = crate::cli::capture(&xvs, &mut self.inner);
                Ok(json!({ "exit": output.exit, "stdout": output.stdout, "stderr": output.stderr }))
            }
            Line::Inject { inject, frame } => self.inject(&inject, &frame),
            Line::Explain { explain } => self.explain(explain),
            Line::ExplainFrame { explain: link, frame } => {
                self.explain(Question { interface: Some(link), frame: Some(frame), ..Question::default() })
            }
            Line::Advance { advance } => self.advance(advance),
            Line::Counters { counters: All } => Ok(self.inner.counters()),
        }
    }

    fn link(&mut self, name: &str, mac: &str, addresses: &[String], mtu: u32) -> Result<Value, String> {
        let mac: MacAddr = mac.parse().map_err(|error| format!("mac {mac}: {error}"))?;
        let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
        self.change(|network| {
            network.add_link(name, mac, &addresses, mtu).map(|_| ()).map_err(|e| e.to_string())
        })
    }

    fn vlan(&mut self, name: &str, id: u16, over: &str, addresses: &[String]) -> Result<Value, String> {
        let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect::<Result<_, _>>()?;
        self.change(|network| {
            let below = network.link_named(over).map(|below| (below.mac, below.mtu)).unwrap_or_default();
            let added = network.add_link(name, below.0, &addresses, below.1);
            added.and_then(|_| network.make_vlan(name, id, over)).map_err(|error| error.to_string())
        })
    }

    fn route(&mut self, route: &str, via: IpAddr, link: &str) -> Result<Value, String> {
        let dest = if route == "default" { "0.0.0.0/0" } else { route };
        let dest = dest.parse().map_err(|error| format!("route {route}: {error}"))?;
        self.change(|network| network.add_route(dest, Some(via), link).map_err(|error| error.to_string()))
    }

    fn neighbour(&mut self, addr: IpAddr, mac: &str, link: &str) -> Result<Value, String> {
        let mac = mac.parse().map_err(|error| format!("mac {mac}: {error}"))?;
        self.change(|network| network.add_neighbour(addr, mac, link).map_err(|error| error.to_string()))
    }

    /// Changes the network, whole or not at all.
    fn change(&mut self, change: impl FnOnce(&mut Network) -> Result<(), String>) -> Result<Value, String> {
        let mut network = self.inner.network.clone();
        change(&mut network)?;
        self.port.set_links(network.links.len() as u16);
        self.inner.control.set_devices(&network.links);
        self.inner.control.set_network(&network).map_err(|error| error.to_string())?;
        self.inner.network = network;
        Ok(json!({ "ok": true }))
    }

    fn set(&mut self, set: BTreeMap<String, Value>) -> Result<Value, String> {
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let set: Vec<_> = set.into_iter().map(|(key, value)| (key, text(value))).collect();
        // All or nothing, like every line.
        let (mut ipvs, mut feedback) = (self.inner.control.ipvs(), self.inner.control.feedback().clone());
        set.iter()
            .try_for_each(|(key, value)| settings::set(&mut ipvs, &mut feedback, key, value))
            .map_err(|error| error.to_string())?;
        for (key, value) in set {
            self.inner.call(Request::Set { key, value }).map_err(|failure| failure.to_string())?;
        }
        Ok(json!({ "ok": true }))
    }

    fn inject(&mut self, link: &str, frame: &str) -> Result<Value, String> {
        let bytes = unhex(frame).ok_or("frame: an even number of hexadecimal digits is needed")?;
        self.burst(link, [bytes.as_slice()])?;
        let verdict = *self.pipeline.transmitter.verdicts().first().ok_or("the frame did not come in")?;
        let (name, reason) = match verdict {
            Verdict::Transmit(_) | Verdict::Fragment { .. } => ("transmit", None),
            Verdict::PassToKernel => ("pass", None),
            Verdict::Consumed | Verdict::Held => ("consumed", None),
            Verdict::Drop(reason) => ("drop", Some(reason.name())),
        };
        Ok(json!({ "verdict": name, "tx": self.transmitted(), "reason": reason }))
    }

    fn explain(&mut self, question: Question) -> Result<Value, String> {
        match self.inner.call(Request::Explain(question)) {
            Ok(Reply::Report(report)) => Ok(report),
            Ok(other) => Err(Failure::unexpected(&other).to_string()),
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// Captures packets from now on, with so many slots; for tests.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn capture(&mut self, wanted: &CaptureRequest, slots: usize) -> Result<Listener, CommandError> {
        let listener = Listener::new(wanted, 1, slots, &self.inner.control.egress())?;
        self.inner.control.set_captures([listener.capture()].into())?;
        Ok(listener)
    }

    /// What was captured since the last call, and how many frames were missed since the first.
    pub fn captured(&mut self, listener: &mut Listener) -> (Vec<CapturedPacket>, Missed) {
        let egress = self.inner.control.egress();
        (listener.packets(&egress), listener.missed(&egress))
    }

    /// Lets frames come in by a link, at most [`BURST`](xvs_xdp::BURST) of them, and forgets what left by the last call; for tests that
    /// have many.
    ///
    /// # Errors
    /// There is no such link, or a frame is too long; those before it come in with the next call.
    pub fn burst<'a>(
        &mut self,
        link: &str,
        frames: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), String> {
        let on_the_wire = |known: &&model::Link| known.name == link && known.vlan.is_none();
        let Some(known) = self.inner.network.links.iter().find(on_the_wire) else {
            return Err(format!("no link {link}; add it with {{\"link\":\"{link}\",…}} first"));
        };
        self.port.take_transmitted();
        for bytes in frames {
            if !self.port.inject(known.id, bytes) {
                return Err(format!("frame: {} bytes are more than a frame holds", bytes.len()));
            }
        }
        let snapshot = self.inner.control.published().load_full();
        self.pipeline.run(&snapshot, &mut self.port, self.inner.now);
        self.pipeline.flows.quiescent();
        self.port.take_passed();
        Ok(())
    }

    /// Frames that came in or were made and have not left: none, between two lines.
    pub fn in_hand(&self) -> i64 {
        self.pipeline.transmitter.counters().balance()
    }

    /// Frames that are neither at home nor in the hands of those who wait for the rest of their datagram: none, between
    /// two lines.
    pub fn astray(&self) -> i64 {
        i64::from(self.port.census().out) - self.pipeline.transmitter.counters().held.value() as i64
    }

    fn advance(&mut self, seconds: f64) -> Result<Value, String> {
        if !(0.0..=1e9).contains(&seconds) {
            return Err(format!("advance: {seconds} is not a number of seconds that can pass"));
        }
        let target = self.inner.now + Duration::from_secs_f64(seconds);
        while self.inner.now < target {
            self.inner.now = (self.inner.now + STEP).min(target);
            self.inner.control.tick(self.inner.now).map_err(|error| error.to_string())?;
            self.inner.sweeper.run(self.inner.now);
            let snapshot = self.inner.control.published().load_full();
            while self.pipeline.flows.expire(&snapshot, self.inner.now) == Timers::Behind {}
            // No frame comes; time may be over for those that wait.
            self.pipeline.run(&snapshot, &mut self.port, self.inner.now);
            self.pipeline.flows.quiescent();
        }
        Ok(json!({ "ok": true, "tx": self.transmitted() }))
    }

    fn transmitted(&mut self) -> Value {
        let name = |id: LinkId| {
            let link = self.inner.network.links.iter().find(|link| link.id == id);
            link.map_or("?", |link| link.name.as_str())
        };
        let frames = self.port.take_transmitted();
        frames
            .iter()
            .map(|Bytes { link, frame }| json!({ "link": name(*link), "frame": hex(frame) }))
            .collect()
    }
}

impl Inner {
    fn counters(&self) -> Value {
        let swept = self.sweeper.counters().all().map(|(name, value)| (name.to_owned(), value));
        self.counters
            .all()
            .chain(swept)
            .filter(|(_, value)| *value != 0)
            .map(|(name, value)| (name, json!(value)))
            .collect()
    }

    fn end(&self, filter: &Filter, how: How) -> Ended {
        let snapshot = self.control.published().load_full();
        end(&self.reader, &snapshot, self.now, filter, how, &self.sweeper.counters().drained)
    }
}

impl Director for Inner {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let reply = match request {
            Request::Counters => Ok(Reply::Report(self.counters())),
            Request::Status | Request::Traffic => {
                Err(CommandError::Failed { why: "the lab has no status; ask for its counters".to_owned() })
            }
            // A lab has no keepalived.conf.
            Request::Health => Ok(Reply::Report(Value::Null)),
            Request::CountConnections(filter) => {
                let snapshot = self.control.published().load_full();
                Ok(Reply::Report(json!(count(&self.reader, &snapshot, self.now, &filter))))
            }
            Request::Events(_) => Err(CommandError::Failed {
                why: "the lab has no events; its answers tell of each change".to_owned(),
            }),
            Request::Explain(question) => {
                let (snapshot, reader) = (self.control.published().load_full(), &self.reader);
                let live = Live { snapshot: &snapshot, reader, now: self.now };
                explain::answer(&question, &live).map(|report| Reply::Report(json!(report)))
            }
            Request::EndConnections(filter) => {
                Ok(Reply::Report(json!(self.end(&filter, How::Silently).ended)))
            }
            Request::ResetConnections(filter) => Ok(Reply::Report(json!(self.end(&filter, How::ByReset)))),
            Request::LocalUse => {
                let exhausted = self.counters.dropped(DropReason::NoLocalPort).value();
                let report = locals::report(self.control.state().locals(), &self.reader, exhausted);
                Ok(Reply::Report(json!(report)))
            }
            _ => self.control.handle(&request, self.now),
        };
        reply.map_err(Failure::Refused)
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        let call_ids = self.control.published().load().call_ids.clone();
        hand_over(each, |each| rows(&self.reader, &call_ids, self.now, each))
    }

    fn find(
        &mut self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let snapshot = self.control.published().load_full();
        hand_over(each, |each| found(&self.reader, &snapshot, self.now, filter, each))
    }
}

/// Hands over the rows of a walk until that fails.
fn hand_over(
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

/// A machine's network before it has interfaces that anybody else can reach.
fn loopback() -> Network {
    let local = |addr, len| Route {
        table: model::Table::Local,
        dest: Prefix::new(addr, len).expect("a length of its family"),
        metric: 0,
        action: RouteAction::Local,
        preferred_source: None,
        mtu: None,
    };
    let (v4, v6) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    Network { routes: vec![local(v4, 8), local(v6, 128)], ..Network::default() }
}

fn address(text: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("{text}: an address with a prefix length like 10.0.0.1/24 is needed");
    let (addr, len) = text.split_once('/').ok_or_else(wrong)?;
    Ok((addr.parse().map_err(|_| wrong())?, len.parse().map_err(|_| wrong())?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_which_one_is_wrong_change_nothing() {
        let mut lab = Lab::new();
        let answer = lab.answer(r#"{"set":{"am_droprate":7,"drop_entry":9}}"#);
        assert_eq!(answer, r#"{"error":"drop_entry cannot be \"9\"; it takes 0 to 3"}"#);
        assert_eq!(lab.inner.control.ipvs(), Ipvs::of_the_kernel());
        assert_eq!(lab.answer(r#"{"set":{"am_droprate":7,"drop_entry":"3"}}"#), r#"{"ok":true}"#);
        assert_eq!(lab.inner.control.ipvs().am_droprate, 7);
    }

    #[test]
    fn names_are_the_labs_own_and_a_host_has_none() {
        let mut lab = Lab::new();
        let answer = lab.answer(r#"{"adm":["-A","-t","localhost:http"]}"#);
        assert!(answer.contains("\"exit\":2"), "{answer}");
        let answer = lab.answer(r#"{"adm":["-A","-t","192.0.2.1:http"]}"#);
        assert!(answer.contains("\"exit\":0"), "{answer}");
    }
}
