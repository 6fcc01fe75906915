//! The control thread: one input after the other, whoever asks.
//!
//! Runs for as long as the daemon does. Requests, views of the network and mark rules come by one queue; between them
//! it looks for next hops that packets were dropped for. Each input is carried out whole before the next one. Not here:
//! what a request does (`control.rs`), who may ask (`server.rs`), how the thread is started (`daemon.rs`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use xvs_dataplane::egress::model::Network;
use xvs_dataplane::outcome::Unresolved;
use xvs_dataplane::port::LinkId;

use crate::control::Control;
use crate::message::{Access, CommandError, Reply, Request};
use crate::netfilter::Found;
use crate::network::{Latest, View};
use crate::shared::{LinkState, Shared};
use crate::wired::{RETRY_REFUSED, Wired};

/// What reaches the control thread.
pub(crate) enum Input {
    Request(Request, Sender<Result<Reply, CommandError>>),
    /// A view of the network waits in [`Latest`].
    Network,
    /// Mark rules wait there.
    Marks,
    Stop,
}

/// How often the control thread looks for next hops that packets were dropped for.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(100);

/// The control thread.
pub(crate) struct ControlThread {
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
    /// `views` and `rules` hold what [`Input::Network`] and [`Input::Marks`] tell of; `links` are the kernel's indices of
    /// the attached interfaces.
    pub(crate) fn new(
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

    /// Until it is told to stop.
    pub(crate) fn run(mut self) -> Wired {
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
        self.control.set_devices(&view.network.links);
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
        let Warnings { network, netfilter } = &self.warnings;
        let warnings = [network, netfilter, self.control.unfollowed()].concat();
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
        let refused = match self.control.plant().neighbours().resolve(&by_index) {
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
    pub(crate) fn new(inputs: Sender<Input>, shared: Arc<Shared>) -> Self {
        Self { inputs, shared }
    }

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
