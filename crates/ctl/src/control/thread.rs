//! The control thread: one input after the other, whoever asks.
//!
//! Runs for as long as the daemon does. Requests, what health wants, views of the network and mark rules come by one queue;
//! between them it looks for next hops that packets were dropped for, and for interfaces that are back. Each input is
//! carried out whole before the next one. Not here: what a request does (`control.rs`), who may ask (`server.rs`), how the
//! thread is started (`daemon.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xvs_dataplane::capture::Captures;
use xvs_dataplane::egress::Unresolved;
use xvs_host::netfilter::Found;
use xvs_host::network::{Latest, View};
use xvs_model::command::CommandError;
use xvs_model::difference::state_of;
use xvs_model::event::{Kind, Requester};
use xvs_model::reconcile::{OwnedService, ReconcileScope, Reconciled};
use xvs_model::reply::Reply;
use xvs_model::request::{Access, Request};
use xvs_model::state::State;
use xvs_model::status::{InterfaceStatus, LinkState};
use xvs_proto::LinkId;
use xvs_proto::network::Network;
use xvs_sched::ServiceKey;

use crate::control::Control;
use crate::events::changes;
use crate::status::shared::Shared;
use crate::status::shared::link_state;
use crate::workers::system::{RETRY_REFUSED, SystemDatapath};

/// What reaches the control thread.
pub(crate) enum Input {
    /// With whom it is for, if it is not xvsd's own.
    Request(Request, Option<Requester>, Sender<Result<Reply, CommandError>>),
    /// A view of the network waits in [`Latest`].
    Network,
    /// Mark rules wait there.
    Marks,
    /// What is wanted of owned services.
    Reconcile(
        Vec<(ServiceKey, Option<OwnedService>)>,
        ReconcileScope,
        Sender<Result<Reconciled, CommandError>>,
    ),
    /// Which captures are to be on.
    Captures(Captures, Sender<Result<(), CommandError>>),
    Stop,
}

/// How often the control thread looks for next hops that packets were dropped for.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(100);

/// How long after a failure an interface that is back is attached again.
const RETRY_ATTACHING: Duration = Duration::from_secs(1);

/// How long a status waits for what runs.
const RULES_TIMEOUT: Duration = Duration::from_secs(2);

/// The control thread.
pub(crate) struct ControlThread {
    control: Control<SystemDatapath>,
    queue: Receiver<Input>,
    network_views: Latest,
    mark_rules: Latest<Found>,
    unresolved: Arc<Unresolved>,
    resolve_after: Instant,
    /// When it may next be logged that next hops cannot be resolved.
    warn_after: Instant,
    /// The kernel's indices of the attached interfaces, in the order of their [`LinkId`]s.
    links: Vec<u32>,
    /// The network as last seen.
    view: View,
    /// When an interface that is back may next be attached.
    attach_after: Instant,
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
    /// What the control plane itself complains of.
    control: Vec<String>,
}

impl ControlThread {
    /// `network_views` and `mark_rules` hold what [`Input::Network`] and [`Input::Marks`] tell of; `links` are the kernel's indices of
    /// the attached interfaces.
    pub(crate) fn new(
        control: Control<SystemDatapath>,
        queue: Receiver<Input>,
        (network_views, mark_rules): (Latest, Latest<Found>),
        unresolved: Arc<Unresolved>,
        links: Vec<u32>,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        let (resolve_after, warn_after, attach_after, view) = (now, now, now, View::default());
        let warnings = Warnings::default();
        Self {
            control,
            queue,
            network_views,
            mark_rules,
            unresolved,
            resolve_after,
            warn_after,
            links,
            view,
            attach_after,
            shared,
            warnings,
        }
    }

    /// Until it is told to stop.
    pub(crate) fn run(mut self) -> SystemDatapath {
        loop {
            match self.queue.recv_timeout(UNRESOLVED_INTERVAL) {
                Ok(Input::Request(request, requester, reply)) => {
                    let answer = self.control.handle(&request, self.shared.now());
                    let (epoch, changes) = (self.control.epoch(), changes(&request, &answer));
                    self.shared.events.record_all(Kind::Change, epoch, requester.as_ref(), changes);
                    if request.access() == Access::Change {
                        self.update_warnings();
                    }
                    // Who asked may have gone.
                    let _ = reply.send(answer);
                }
                Ok(Input::Network) => {
                    if let Some(view) = self.network_views.take() {
                        self.view = view;
                        self.update_network();
                    }
                }
                Ok(Input::Marks) => {
                    if let Some(found) = self.mark_rules.take() {
                        self.update_mark_rules(found);
                    }
                }
                Ok(Input::Reconcile(wanted, scope, reply)) => {
                    let reconciled = self.control.reconcile(wanted, scope, self.shared.now());
                    // Who asked may have gone.
                    let _ = reply.send(reconciled);
                }
                Ok(Input::Captures(captures, reply)) => {
                    // Who asked may have gone.
                    let _ = reply.send(self.control.set_captures(captures));
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return self.control.into_datapath(),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let unconfirmed = self.control.unconfirmed_until();
            if let Err(error) = self.control.tick(self.shared.now())
                && let Some(refusal) = error.refusal()
            {
                tracing::error!("{refusal}");
            }
            let warnings = self.control.warnings();
            let is_current = self.warnings.control == warnings
                && Arc::ptr_eq(&self.shared.facts_mut().drift, self.control.drift_lines());
            if self.control.unconfirmed_until() != unconfirmed || !is_current {
                self.warnings.control = warnings;
                self.update_warnings();
            }
            self.shared.sample_history();
            self.reattach();
            self.resolve_next_hops();
            self.control.datapath().retry_neighbours();
        }
    }

    fn update_network(&mut self) {
        let view = &self.view;
        self.control.set_devices(&view.network.links);
        let network = attached_only(&view.network, &self.links);
        if let Err(error) = self.control.set_network(&network)
            && let Some(refusal) = error.refusal()
        {
            tracing::error!("a change of the network: {refusal}");
        }
        let mut facts = self.shared.facts_mut();
        for (interface, ifindex) in facts.interfaces.iter_mut().zip(&self.links) {
            let state = link_state(&view.network, *ifindex);
            if state != interface.state {
                let event = match state.complaint(&interface.name) {
                    Some(complaint) => {
                        tracing::warn!("{complaint}");
                        complaint
                    }
                    None => {
                        tracing::info!("{} is up again", interface.name);
                        format!("{} is up", interface.name)
                    }
                };
                self.shared.events.record(Kind::Link, self.control.epoch(), event);
                interface.state = state;
            }
        }
        drop(facts);
        self.warnings.network.clone_from(&view.warnings);
        self.update_warnings();
    }

    fn update_mark_rules(&mut self, found: Found) {
        if let Err(error) = self.control.set_tables(found.tables)
            && let Some(refusal) = error.refusal()
        {
            tracing::error!("a change of the kernel's mark rules: {refusal}");
        }
        self.warnings.netfilter = found.warnings;
        self.update_warnings();
    }

    /// Tells what the operator should see to and what waits to be confirmed, and logs what is new of it.
    fn update_warnings(&mut self) {
        let Warnings { network, netfilter, attaching, control } = &self.warnings;
        let mut warnings = [network, netfilter, attaching, control, self.control.unfollowed()].concat();
        warnings.extend(self.control.datapath().not_reserved().cloned());
        let mut facts = self.shared.facts_mut();
        let new: Vec<_> = warnings.iter().filter(|warning| !facts.warnings.contains(warning)).collect();
        new.iter().for_each(|warning| tracing::warn!("{warning}"));
        let ended: Vec<_> = facts.warnings.iter().filter(|warning| !warnings.contains(warning)).collect();
        ended.iter().for_each(|warning| tracing::info!("over: {warning}"));
        for (kind, all) in [(Kind::Warning, new), (Kind::Over, ended)] {
            let all = all.into_iter().map(|warning| (warning.clone(), None));
            self.shared.events.record_all(kind, self.control.epoch(), None, all);
        }
        facts.warnings = warnings;
        facts.drift.clone_from(self.control.drift_lines());
        facts.unconfirmed_until = self.control.unconfirmed_until();
    }

    /// Attaches interfaces again that were removed and are back, and gives workers sockets that have none.
    fn reattach(&mut self) {
        let now = Instant::now();
        let network = &self.view.network;
        let back = |place: &usize| {
            let gone = link_state(network, self.links[*place]) == LinkState::Gone;
            let name = &self.shared.facts_mut().interfaces[*place].name;
            gone && network.link_named(name).is_some_and(|link| link.up)
        };
        if now < self.attach_after {
            return;
        }
        let place = (0..self.links.len()).find(back);
        let (workers, steering) = self.control.datapath().workers();
        let done = match place {
            Some(place) => workers.reattach(place, steering),
            None if workers.is_paused() => workers.resume(),
            None => return,
        };
        let (links, mut facts) = (workers.links(), self.shared.facts_mut());
        if let Some(place) = place
            && links != self.links
        {
            let state = facts.interfaces[place].state;
            let attached_again = facts.interfaces[place].attached_again + 1;
            let attached = workers.interface_facts(place);
            let event = format!("{} is attached again, {} XDP", attached.name, attached.mode);
            self.shared.events.record(Kind::Link, self.control.epoch(), event);
            facts.interfaces[place] = InterfaceStatus { state, attached_again, ..attached };
        }
        self.warnings.attaching = match done {
            Ok(workers) => {
                facts.workers = workers;
                Vec::new()
            }
            Err(error) => {
                self.attach_after = now + RETRY_ATTACHING;
                vec![error.to_string()]
            }
        };
        drop(facts);
        if links != self.links {
            self.links = links;
            self.update_network();
        } else {
            self.update_warnings();
        }
    }

    /// Has next hops resolved that packets were dropped for; looks for them once in an interval.
    fn resolve_next_hops(&mut self) {
        let now = Instant::now();
        if self.unresolved.is_empty() || now < self.resolve_after {
            return;
        }
        self.resolve_after = now + UNRESOLVED_INTERVAL;
        let missing = std::iter::from_fn(|| self.unresolved.pop());
        let egress = self.control.egress();
        let by_index = missing.filter_map(|(link, addr)| Some((egress.link(link)?.ifindex, addr))).collect();
        let refused = match self.control.datapath().neighbours().resolve(&by_index) {
            Ok(None) => return,
            Ok(Some(refused)) => refused.to_string(),
            Err(error) => format!("next hops cannot be resolved: {error}"),
        };
        if self.warn_after <= now {
            self.warn_after = now + RETRY_REFUSED;
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
    pub(crate) fn new(inputs: Sender<Input>, shared: Arc<Shared>) -> Self {
        Self { inputs, shared }
    }

    /// Asks the control thread, and waits for its answer.
    ///
    /// # Errors
    /// What the control thread says; or that the daemon is ending.
    pub fn request(&self, request: Request) -> Result<Reply, CommandError> {
        self.request_by(request, None)
    }

    /// The same for somebody, of whom events tell if it is a change.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub fn request_by(&self, request: Request, requester: Option<Requester>) -> Result<Reply, CommandError> {
        let (access, asked) = (request.access(), Instant::now());
        let answer = self.send(|reply| Input::Request(request, requester, reply));
        self.shared.waits.count(access, asked.elapsed());
        answer
    }

    /// Has these captures be on and no others, and waits until it is so.
    ///
    /// # Errors
    /// As [`Self::request`].
    pub(crate) fn capture(&self, captures: Captures) -> Result<(), CommandError> {
        self.send(|reply| Input::Captures(captures, reply))
    }

    /// From now on these services are wanted so, as [`Control::reconcile`] has it; waits until it is made.
    ///
    /// # Errors
    /// The daemon is ending.
    pub fn reconcile(
        &self,
        wanted: Vec<(ServiceKey, Option<OwnedService>)>,
        scope: ReconcileScope,
    ) -> Result<Reconciled, CommandError> {
        self.send(|reply| Input::Reconcile(wanted, scope, reply))
    }

    fn send<T>(
        &self,
        input: impl FnOnce(Sender<Result<T, CommandError>>) -> Input,
    ) -> Result<T, CommandError> {
        let ending = || CommandError::Failed { why: "xvs: the daemon is ending".to_owned() };
        let (reply, answer) = bounded(1);
        self.inputs.send(input(reply)).map_err(|_| ending())?;
        answer.recv().map_err(|_| ending())?
    }

    /// Asks the control thread, and waits for its answer until then; nothing if there is none.
    pub(crate) fn request_until(
        &self,
        request: Request,
        until: Instant,
    ) -> Option<Result<Reply, CommandError>> {
        let (reply, answer) = bounded(1);
        self.inputs.send_deadline(Input::Request(request, None, reply), until).ok()?;
        answer.recv_deadline(until).ok()
    }

    /// The state that runs, and which of its services are owned.
    ///
    /// # Errors
    /// The control thread does not say for too long, or the daemon is ending.
    pub fn rules(&self) -> Result<(State, Vec<ServiceKey>), CommandError> {
        match self.request_until(Request::Rules, Instant::now() + RULES_TIMEOUT) {
            Some(Ok(Reply::Rules { commands, governed })) => Ok((state_of(&commands)?, governed)),
            _ => Err(CommandError::Failed { why: "the control thread is busy".to_owned() }),
        }
    }

    /// Has the keepalived.conf read anew, and says in a line what has changed, once that is in force.
    ///
    /// # Errors
    /// There is none, or what is wrong with it, a line each; then nothing has changed.
    pub fn reload(&self) -> Result<String, CommandError> {
        let none = || CommandError::Failed {
            why: "xvs: xvsd has no keepalived.conf; start it with `--keepalived FILE`".to_owned(),
        };
        self.shared.reload.get().ok_or_else(none)?()
    }

    /// What needs no writer.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }
}

#[cfg(test)]
mod tests {
    use xvs_dataplane::egress::Egress;

    use crate::control::thread::*;

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
