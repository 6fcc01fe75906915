//! The control thread: carries out one input after the other.
//!
//! The thread runs as long as the daemon. Requests, owned services, network views and mark rules arrive in one queue.
//! Between two inputs the thread resolves next hops that packets wait for, confirms next hops in use, and attaches
//! interfaces that have returned or joined a bond. Each input is carried out completely before the next one. Not here:
//! the effect of a request (`control/` of `ctl`), permissions (`socket/peer.rs`), the start of the thread
//! (`daemon/mod.rs`).

use std::collections::BTreeSet;
use std::iter;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use xvs_ctl::bonds::{self, Chosen, bond_of};
use xvs_ctl::control::Control;
use xvs_ctl::control::reload_settings::Reloaded;
use xvs_ctl::events::changes;
use xvs_ctl::kernel_rules::KernelRules;
use xvs_dataplane::egress::Unresolved;
use xvs_host::netfilter::KernelMarkRules;
use xvs_host::network::card::CardWatch;
use xvs_host::network::{Latest, View};
use xvs_host::notice::Notice;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::question::{ControlRequest, Reply};
use xvs_model::protocol::request::Access;
use xvs_model::report::event::{Kind, Requester};
use xvs_model::report::setting::Source;
use xvs_model::report::status::{BondMember, LinkState};
use xvs_model::report::warning::Warning;
use xvs_model::report::warning::WarningKind::*;
use xvs_proto::LinkId;
use xvs_proto::network::{LinkKind, Network};
use xvs_xdp::card::short_packets;

use crate::facts::link_state;
use crate::restart::kept_hour::KeptHour;
use crate::restart::kept_state::PreparedTable;
use crate::rights::seccomp;
use crate::shared::Shared;
use crate::status::warnings::first_of;
use crate::sweeping::Sweeping;
use crate::workers::system::SystemDatapath;
use crate::workers::worker_start::WorkerStart;
use crate::workers::{RETRY_REFUSED, interface_facts};

mod offload;

/// Interval of resolving next hops that packets wait for.
const UNRESOLVED_INTERVAL: Duration = Duration::from_millis(100);

/// Interval of comparing the interfaces' settings with those that the workers' sockets were opened for.
const SETTINGS_INTERVAL: Duration = Duration::from_secs(1);

/// Interval of confirming the neighbours that workers send to. The kernel deletes a neighbour entry that it has not
/// used for a minute (`gc_stale_time`), and does not see the packets that workers send.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(5);

/// The largest number of neighbours that are confirmed at a time.
const CONFIRMED_AT_ONCE: usize = 1024;

/// Interval of reading the packets that interfaces have refused.
const LOSSES_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after an interface could not be attached again.
const RETRY_ATTACHING: Duration = Duration::from_secs(1);

/// An input of the control thread.
pub(crate) enum Input {
    /// A function to call on the control thread.
    Do(Box<dyn FnOnce(&mut ControlThread) + Send>),
    /// A new network view is in [`Latest`].
    Network,
    /// New mark rules are in [`Latest`].
    Marks,
    Stop,
}

/// The control thread.
pub(crate) struct ControlThread {
    pub(crate) control: Control<SystemDatapath>,
    queue: Receiver<Input>,
    network_views: Latest,
    mark_rules: Latest<KernelMarkRules>,
    unresolved: Arc<Unresolved>,
    resolve_after: Instant,
    /// Neighbours that workers have sent to, by interface index and address.
    used: BTreeSet<(u32, IpAddr)>,
    confirm_after: Instant,
    /// Earliest time of the next log line about next hops that cannot be resolved.
    warn_after: Instant,
    /// The kernel's indices of the attached interfaces, in the order of their [`LinkId`]s.
    links: Vec<u32>,
    /// The latest network view.
    view: View,
    /// Earliest time of the next attempt to attach an interface.
    attach_after: Instant,
    /// The interface that could not be attached the last time.
    not_attached: Option<String>,
    /// Earliest time of the next comparison of the interfaces' settings.
    settings_after: Instant,
    /// The packets that the cards of the interfaces have lost; `None`: the kernel does not report them.
    cards: Option<CardWatch>,
    /// Earliest time of reading the refused packets of interfaces again.
    losses_after: Instant,
    pub(crate) shared: Arc<Shared>,
    /// Policy rules and routes that are not followed, and bonds and bridges that cannot be used.
    network_warnings: Vec<Warning>,
    /// Mark rules that could not be read.
    mark_warnings: Vec<Warning>,
    /// Interfaces that are back, or joined a bond, and cannot be attached.
    attach_warnings: Vec<Warning>,
    /// Whether the facts were updated since the last input, because a change was answered.
    has_answered_change: bool,
    /// The workers that are not started yet, and the connection table.
    pub(crate) start: Option<(WorkerStart, PreparedTable)>,
    /// The sweeper, which ends before the workers.
    pub(crate) sweeping: Option<Sweeping>,
    /// The number of removals at which the sweeper was last woken.
    removals: u64,
    /// Where the counts of the last hour are kept for the next process.
    pub(crate) kept_hour: KeptHour,
}

impl ControlThread {
    /// `network_views` and `mark_rules` hold the values that [`Input::Network`] and [`Input::Marks`] announce. `links`
    /// are the kernel's indices of the attached interfaces.
    pub(crate) fn new(
        control: Control<SystemDatapath>,
        queue: Receiver<Input>,
        (network_views, mark_rules): (Latest, Latest<KernelMarkRules>),
        unresolved: Arc<Unresolved>,
        links: Vec<u32>,
        shared: Arc<Shared>,
    ) -> Self {
        let now = Instant::now();
        Self {
            control,
            queue,
            network_views,
            mark_rules,
            unresolved,
            resolve_after: now,
            used: BTreeSet::new(),
            confirm_after: now,
            warn_after: now,
            cards: CardWatch::open().ok(),
            losses_after: now + LOSSES_INTERVAL,
            links,
            view: View::default(),
            attach_after: now,
            not_attached: None,
            settings_after: now,
            shared,
            network_warnings: Vec::new(),
            mark_warnings: Vec::new(),
            attach_warnings: Vec::new(),
            has_answered_change: false,
            start: None,
            sweeping: None,
            removals: 0,
            kept_hour: KeptHour::default(),
        }
    }

    /// Runs until [`Input::Stop`].
    pub(crate) fn run(mut self) -> SystemDatapath {
        loop {
            match self.queue.recv_timeout(UNRESOLVED_INTERVAL) {
                Ok(Input::Do(work)) => work(&mut self),
                Ok(Input::Network) => {
                    if let Some(view) = self.network_views.take() {
                        if view.network.links != self.view.network.links {
                            self.settings_after = Instant::now();
                        }
                        self.view = view;
                        self.update_network();
                    }
                }
                Ok(Input::Marks) => {
                    if let Some(found) = self.mark_rules.take() {
                        self.update_mark_rules(found);
                    }
                }
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    drop(self.sweeping.take());
                    self.kept_hour.write(&self.shared.last_hour);
                    return self.control.into_datapath();
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.follow_up();
        }
    }

    /// The work after each input, and the periodic work.
    fn follow_up(&mut self) {
        let removals = self.shared.published.load().removals;
        if mem::replace(&mut self.removals, removals) != removals {
            self.sweeping.iter().for_each(Sweeping::wake);
        }
        if let Err(error) = self.control.tick(self.shared.now()) {
            tracing::error!("{error}");
        }
        self.shared.sample_history();
        self.kept_hour.record(&self.shared);
        self.attach();
        self.follow_settings();
        self.resolve_next_hops();
        self.confirm_neighbours();
        self.control.datapath().retry_refused();
        self.follow_losses();
        // After a change, the facts are up to date but for the work above, which the next update includes.
        if !mem::take(&mut self.has_answered_change) {
            self.update_facts();
        }
    }

    /// Answers a request of this client, or of xvsd itself without a requester, and records its changes as events.
    ///
    /// # Errors
    /// The refusal.
    pub(crate) fn answer(
        &mut self,
        request: &ControlRequest,
        requester: Option<&Requester>,
    ) -> Result<Reply, CommandError> {
        let now = self.shared.now();
        let answer = match (request, requester) {
            // xvsd itself changes only what keepalived.conf configures.
            (ControlRequest::Change(command), None) => {
                self.control.change(command, Source::KeepalivedConf, now)
            }
            _ => self.control.handle(request, now),
        };
        let changed = changes(request, &answer);
        self.shared.events.record_all(Kind::Change, self.control.epoch(), requester, changed);
        if request.access() == Access::Change {
            self.update_facts();
            self.has_answered_change = true;
        }
        answer
    }

    /// Puts the settings of a re-read xvs.toml in force. Returns the settings of `xvs set` that the file undoes.
    pub(crate) fn reload(&mut self, new: Reloaded) -> Vec<String> {
        let undone = self.control.reload(new, self.shared.now());
        self.update_facts();
        undone
    }

    /// Puts the kernel's rules in force. Returns the number of services that are left to the kernel.
    pub(crate) fn follow_kernel(&mut self, read: Result<Arc<KernelRules>, String>) -> usize {
        let left = self.control.follow_kernel(read, self.shared.now());
        self.update_facts();
        left
    }

    /// Sets the parts that [`Self::serve`] starts: the workers, and the connection table.
    pub(crate) fn set_start(&mut self, workers: WorkerStart, table: PreparedTable) {
        self.start = Some((workers, table));
    }

    /// Puts the latest network view in force, and records the changes of interfaces and bonds.
    pub(crate) fn update_network(&mut self) {
        // The egress of the next snapshot has no used neighbours.
        self.used.extend(self.control.egress().take_used());
        let view = &self.view;
        self.control.set_devices(&view.network.links);
        let bonds: Vec<_> =
            self.shared.facts_mut().interfaces.iter().map(|interface| interface.bond.clone()).collect();
        let mut network = attached_only(&view.network, &self.links, &bonds);
        let mut partial = self.control.datapath().workers.partial_checksums();
        let masters: Vec<_> = network
            .links
            .iter()
            .filter(|link| partial.contains(&link.ifindex))
            .filter_map(|link| link.master)
            .collect();
        partial.extend(masters);
        for link in &mut network.links {
            let below = link.vlan.map_or(link.ifindex, |vlan| vlan.over);
            link.partial_checksums = partial.contains(&below);
        }
        offload::enter(self.control.datapath(), &mut network);
        self.control.set_network(&network);
        let mut facts = self.shared.facts_mut();
        facts.network.clone_from(&view.network);
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
            interface.offload = offload::status(self.control.datapath(), *ifindex, interface.bond.as_ref());
            let active = network.links.iter().any(|link| link.ifindex == *ifindex && link.active);
            if let Some(bond) = interface.bond.as_mut().filter(|bond| bond.active != active) {
                bond.active = active;
                let now = if active { "is active" } else { "is not active any more" };
                let event = format!("{} {now} in {}", interface.name, bond.name);
                tracing::info!("{event}");
                self.shared.events.record(Kind::Link, self.control.epoch(), event);
            }
        }
        let interfaces = facts.interfaces.clone();
        drop(facts);
        self.network_warnings = bonds::warnings(&interfaces, &view.network.links);
        self.network_warnings.extend(routing_warnings(&view.warnings));
        self.update_facts();
    }

    fn update_mark_rules(&mut self, found: KernelMarkRules) {
        if let Err(error) = self.control.set_tables(found.tables) {
            tracing::error!("change of the kernel's mark rules: {error}");
        }
        self.mark_warnings = found
            .warnings
            .iter()
            .map(|Notice { object, text }| Warning::new(MarkRulesUnread, object, text))
            .collect();
    }

    /// All warnings of this thread, in the order of `xvs status`.
    fn warnings(&mut self) -> Vec<Warning> {
        let mut all: Vec<_> = self.control.datapath().workers.unfit_warnings().cloned().collect();
        for warnings in [&self.network_warnings, &self.mark_warnings, &self.attach_warnings] {
            all.extend_from_slice(warnings);
        }
        all.extend(self.control.warnings());
        all.extend(self.control.datapath().daemons.warnings());
        if !self.control.datapath().daemons.have_key() {
            all.extend(self.control.unsigned_daemons());
        }
        all.extend(seccomp::warnings());
        all.extend_from_slice(self.control.unfollowed());
        let SystemDatapath { not_reserved, workers, .. } = self.control.datapath();
        all.extend(not_reserved.clone());
        all.extend_from_slice(&workers.not_redirected);
        all.extend_from_slice(&workers.not_pinned);
        all.extend(workers.not_zero_copy());
        all.extend_from_slice(&workers.not_driven);
        all
    }

    /// Updates warnings, drift, settings and the time left to confirm rules; logs warnings that begin or end.
    fn update_facts(&mut self) {
        let warnings = self.warnings();
        let mut facts = self.shared.facts_mut();
        self.shared.events.record_warnings(self.control.epoch(), &facts.warnings, &warnings);
        facts.warnings = warnings;
        facts.drift.clone_from(self.control.drift_lines());
        facts.settings.clone_from(self.control.settings_in_force());
        facts.daemons = self.control.state().daemons().to_vec();
        if facts.disabled != *self.control.state().disabled() {
            facts.disabled.clone_from(self.control.state().disabled());
            if let Some(checks) = self.shared.checks.get() {
                checks.set_disabled(facts.disabled.clone());
            }
        }
        facts.unconfirmed_until = self.control.unconfirmed_until();
        facts.kernel = self.control.kernel_status();
    }

    /// Attaches an interface that was removed and is back, or that joined a bond, and opens sockets for paused workers.
    /// The snapshot has the interface before workers receive from it.
    fn attach(&mut self) {
        let now = Instant::now();
        if now < self.attach_after {
            return;
        }
        let next = self.next_to_attach();
        let like = next.as_ref().map_or(0, |next| self.alike(next));
        let SystemDatapath { workers, steering, .. } = self.control.datapath();
        let attached = match &next {
            Some((index, (name, _))) => {
                let wanted = workers.attached_at(like).wanted();
                workers.attach(*index, name, wanted, steering)
            }
            None if !workers.paused && self.attach_warnings.is_empty() => return,
            None => Ok(()),
        };
        let links = workers.links();
        if let Some((index, (_, bond))) = &next
            && links != self.links
        {
            self.note_attached(*index, bond.clone());
            self.links = links;
            self.update_network();
        }
        self.attach_warnings.clear();
        // After a failure, the next attempt is for another interface.
        self.not_attached = next.map(|(_, (name, _))| name).filter(|_| attached.is_err());
        if let Err(error) = attached {
            let name = self.not_attached.as_deref().unwrap_or_default();
            self.attach_warnings.push(Warning::new(AttachFailed, name, error.to_string()));
        }
        let workers = &mut self.control.datapath().workers;
        if workers.paused {
            match workers.resume() {
                Ok(facts) => self.shared.facts_mut().workers = facts,
                Err(error) => self.attach_warnings.push(Warning::new(WorkersPaused, "", error.to_string())),
            }
        }
        if !self.attach_warnings.is_empty() {
            self.attach_after = now + RETRY_ATTACHING;
        }
    }

    /// The index of an interface with the settings of this one: itself, or another member of the bond that it joined.
    fn alike(&self, (index, (_, bond)): &(usize, Chosen)) -> usize {
        if *index < self.links.len() {
            return *index;
        }
        let Some(bond) = bond else { return 0 };
        self.shared
            .facts_mut()
            .interfaces
            .iter()
            .position(|one| one.bond.as_ref().is_some_and(|of| of.name == bond.name))
            .unwrap_or(0)
    }

    /// Enters an interface that was attached, for a bond or not, in the status and the events.
    fn note_attached(&mut self, index: usize, bond: Option<BondMember>) {
        let mut status = interface_facts(&self.control.datapath().workers.attached[index]);
        status.bond = bond;
        let mut facts = self.shared.facts_mut();
        let former = facts.interfaces.get_mut(index);
        let again = if former.is_some() { " again" } else { "" };
        let event = format!("{} is attached{again}, {} XDP", status.name, status.mode);
        self.shared.events.record(Kind::Link, self.control.epoch(), event);
        match former {
            Some(former) => {
                (status.state, status.attached_again) = (former.state, former.attached_again + 1);
                *former = status;
            }
            None => facts.interfaces.push(status),
        }
    }

    /// The index and name of the next interface to attach: one that was removed and is back, or that joined a bond.
    /// After a failure, the interface after the failed one.
    fn next_to_attach(&self) -> Option<(usize, Chosen)> {
        let network = &self.view.network;
        let facts = self.shared.facts_mut();
        let mut all = Vec::new();
        for (index, (interface, ifindex)) in facts.interfaces.iter().zip(&self.links).enumerate() {
            if let Some(link) = network.link_named(&interface.name)
                && link.up
                && matches!(link.kind, LinkKind::Single | LinkKind::Bridge)
                && link_state(network, *ifindex) == LinkState::Gone
            {
                all.push((index, (interface.name.clone(), interface.bond.clone())));
            }
        }
        let joined = bonds::joined(&facts.interfaces, &network.links);
        all.extend(joined.map(|chosen| (self.links.len(), chosen)));
        let failed = all.iter().position(|(_, (name, _))| Some(name) == self.not_attached.as_ref());
        let next = failed.map_or(0, |failed| (failed + 1) % all.len());
        if all.is_empty() { None } else { Some(all.swap_remove(next)) }
    }

    /// Opens the workers' sockets again if they do not fit changed settings of an interface, such as added queues.
    /// Reads the losses of the interfaces' cards.
    fn follow_settings(&mut self) {
        if !is_due(&mut self.settings_after, SETTINGS_INTERVAL) {
            return;
        }
        let workers = &mut self.control.datapath().workers;
        let short =
            |ifindex| workers.attached(ifindex).map_or(0, |attached| short_packets(attached.interface()));
        let cards = self.cards.as_mut().map(|cards| cards.look(&self.links, short));
        self.shared.facts_mut().card_losses = cards.unwrap_or_default();
        let epoch = self.control.epoch();
        let SystemDatapath { workers, steering, .. } = self.control.datapath();
        for index in 0..self.links.len() {
            let had = workers.attached_at(index).settings();
            let Some(worker_facts) = workers.follow_settings(index, steering, &self.view.network.links)
            else {
                continue;
            };
            let mut facts = self.shared.facts_mut();
            facts.workers = worker_facts;
            let interface = &mut facts.interfaces[index];
            let now = workers.attached_at(index).settings();
            interface.queues = now.receive_queues;
            let queues = (now.receive_queues != had.receive_queues)
                .then(|| format!("{} receive queues now, not {}", now.receive_queues, had.receive_queues));
            let mtu = (now.mtu != had.mtu).then(|| format!("an MTU of {} now, not {}", now.mtu, had.mtu));
            for change in queues.into_iter().chain(mtu) {
                let event = format!("{} has {change}; workers: {}", interface.name, workers.count());
                tracing::info!("{event}");
                self.shared.events.record(Kind::Link, epoch, event);
            }
        }
    }

    /// Resolves next hops that packets wait for, at most once in [`UNRESOLVED_INTERVAL`].
    fn resolve_next_hops(&mut self) {
        if self.unresolved.is_empty() || !is_due(&mut self.resolve_after, UNRESOLVED_INTERVAL) {
            return;
        }
        let egress = self.control.egress();
        let missing = iter::from_fn(|| self.unresolved.pop())
            .filter_map(|(link, addr)| Some((egress.link(link)?.ifindex, addr)))
            .collect();
        self.resolve(&missing);
    }

    /// Makes the kernel confirm the neighbours that workers have sent to, as if the kernel had sent to them.
    fn confirm_neighbours(&mut self) {
        let now = Instant::now();
        if now < self.confirm_after {
            return;
        }
        let egress = self.control.egress();
        self.used.extend(egress.take_used());
        self.used.retain(|(ifindex, _)| egress.link_by_ifindex(*ifindex).is_some());
        let due: BTreeSet<_> = iter::from_fn(|| self.used.pop_first()).take(CONFIRMED_AT_ONCE).collect();
        // The remaining ones also wait, because each call dumps the kernel's neighbours.
        self.confirm_after = now + if self.used.is_empty() { CONFIRM_INTERVAL } else { UNRESOLVED_INTERVAL };
        if !due.is_empty() {
            self.resolve(&due);
        }
    }

    /// Makes the kernel resolve these neighbours, or confirm them if it has not done so for some time.
    fn resolve(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
        let refused = match self.control.datapath().neighbours.resolve(neighbours) {
            Ok(None) => return,
            Ok(Some(refused)) => refused.to_string(),
            Err(error) => format!("next hops cannot be resolved: {error}"),
        };
        if is_due(&mut self.warn_after, RETRY_REFUSED) {
            tracing::warn!("{refused}");
        }
    }
}

/// The warnings about policy rules and routes of the kernel that are not followed.
fn routing_warnings(notices: &[Notice]) -> Vec<Warning> {
    let more = "policy rules and routes are not followed; see `ip rule`, `ip route show table all`";
    first_of(RoutingNotFollowed, more, notices, |notice| (&notice.object, notice.text.clone()))
}

/// Whether this time has come. If so, the next time is one interval from now.
fn is_due(at: &mut Instant, interval: Duration) -> bool {
    let now = Instant::now();
    let is_due = *at <= now;
    if is_due {
        *at = now + interval;
    }
    is_due
}

/// The network that workers use: the attached interfaces in the order of their ports, then the bonds of which they are
/// members, and the VLANs over either. An interface that was attached for a bond is inactive once it has left the bond.
fn attached_only(network: &Network, links: &[u32], bonds: &[Option<BondMember>]) -> Network {
    let mut seen = network.clone();
    let index = |ifindex| links.iter().position(|attached| *attached == ifindex);
    let over: Vec<_> = network
        .links
        .iter()
        .filter(|link| index(link.ifindex).is_some())
        .filter_map(|link| bond_of(link, &network.links))
        .map(|bond| bond.ifindex)
        .collect();
    let is_used = |ifindex| index(ifindex).is_some() || over.contains(&ifindex);
    seen.links.retain(|link| is_used(link.ifindex) || link.vlan.is_some_and(|vlan| is_used(vlan.over)));
    let mut next = links.len();
    for link in &mut seen.links {
        let attached = index(link.ifindex);
        let id = attached.unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if let Some(Some(bond)) = attached.and_then(|index| bonds.get(index)) {
            link.active &= bond_of(link, &network.links).is_some_and(|of| of.name == bond.name);
        }
        link.id = LinkId(id as u16);
    }
    seen
}

#[cfg(test)]
mod tests {
    use xvs_dataplane::egress::Egress;

    use crate::control_thread::*;
    use crate::status::warnings::NAMED;

    #[test]
    fn of_many_routes_that_are_not_followed_the_first_are_named_and_the_others_counted() {
        let notice =
            |number: usize| Notice { object: format!("route {number}"), text: format!("text {number}") };
        let notices: Vec<_> = (0..NAMED).map(notice).collect();
        let named: Vec<_> =
            notices.iter().map(|one| Warning::new(RoutingNotFollowed, &one.object, &one.text)).collect();
        assert_eq!(routing_warnings(&notices), named);
        let all = routing_warnings(&(0..5000).map(notice).collect::<Vec<_>>());
        assert_eq!((all.len(), &all[..NAMED]), (NAMED + 1, &named[..]));
        let more =
            "4992 more policy rules and routes are not followed; see `ip rule`, `ip route show table all`";
        assert_eq!(all[NAMED], Warning::new(RoutingNotFollowed, "", more));
    }

    #[test]
    fn workers_see_attached_interfaces_in_port_order_and_the_vlans_over_them_only() {
        let mut network = Network::default();
        for name in ["lo", "lan", "wan.5", "lan.5", "spare", "spare.5", "wan"] {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        for over in ["wan", "lan", "spare"] {
            network.make_vlan(&format!("{over}.5"), 5, over).unwrap();
        }
        let ifindex = |name| network.link_named(name).unwrap().ifindex;
        let seen = attached_only(&network, &[ifindex("wan"), ifindex("lan")], &[None, None]);
        let egress = Egress::build(&seen);
        let names: Vec<_> = egress.links().map(|(_, link)| link.name.as_str()).collect();
        assert_eq!(names, ["wan", "lan", "wan.5", "lan.5"]);
        assert_eq!(egress.untagged(LinkId(1), 5), Some(LinkId(3)));
        assert_eq!(egress.tag(LinkId(2)), Some((LinkId(0), 5)));
    }

    #[test]
    fn workers_see_the_bonds_of_attached_members_the_vlans_over_them_and_a_member_that_left_as_inactive() {
        let mut network = Network::default();
        for name in ["eth0", "bond0.5", "eth1", "bond0", "bond1"] {
            network.add_link(name, "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.make_vlan("bond0.5", 5, "bond0").unwrap();
        let bond = network.links[3].ifindex;
        for index in [3, 4] {
            network.links[index].kind = LinkKind::Bond;
        }
        for index in [0, 2] {
            network.links[index].master = Some(bond);
        }
        let of_bond = Some(BondMember { name: "bond0".to_owned(), active: true });
        let seen = |network: &Network| {
            let attached = [network.links[0].ifindex, network.links[2].ifindex];
            Egress::build(&attached_only(network, &attached, &[of_bond.clone(), of_bond.clone()]))
        };
        let egress = seen(&network);
        let names: Vec<_> = egress.links().map(|(_, link)| link.name.as_str()).collect();
        assert_eq!(names, ["eth0", "eth1", "bond0.5", "bond0"]);
        assert_eq!(egress.members(LinkId(3)), Some(&[LinkId(0), LinkId(1)][..]));
        assert_eq!(egress.tag(LinkId(2)), Some((LinkId(3), 5)));
        network.links[2].master = None;
        let egress = seen(&network);
        assert_eq!(egress.members(LinkId(3)), Some(&[LinkId(0)][..]));
        assert!(!egress.link(LinkId(1)).unwrap().active);
        network.links[0].master = None;
        assert_eq!(seen(&network).links().count(), 2, "a bond that has lost all members is not seen");
    }
}
