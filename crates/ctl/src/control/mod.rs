//! Control of the director: the only owner of the desired state and the only publisher of snapshots.
//!
//! Every change (a command, the network, a removed destination without references) is carried out here, one at a time:
//! validated, entered in the desired state, built into a snapshot, published. [`Control`] needs no thread and no
//! socket: the lab runs the same code as the daemon's control thread. Steering of the XDP program is extended before a
//! snapshot is published, and reduced once every worker has that snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use due::Schedule;
use follow::PublishedLimits;
use followed_kernel::FollowedKernel;
use list_sources::ListSources;
use mark_rules::MarkRules;
use next_hops::NextHops;
use owned_services::OwnedServices;
use publish::{Publication, SHORT_WAIT};
use settings::ActiveSettings;
use steered::Steered;
use unconfirmed::Unconfirmed;
use xvs_dataplane::capture::Captures;
use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::Connection;
use xvs_dataplane::counters::SharedStats;
use xvs_dataplane::egress::Egress;
use xvs_dataplane::snapshot::clients::{ClientSettings, Clients};
use xvs_dataplane::snapshot::sync_backup::Inbox;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::snapshot::vip_probes::VipProbes;
use xvs_dataplane::snapshot::{Counts, Snapshot};
use xvs_host::netfilter::chain::Table;
use xvs_model::config::desired_state::State;
use xvs_model::config::difference::rules_of;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::settings::Ipvs;
use xvs_model::config::sync_daemon::SyncRole;
use xvs_model::objects::Rule;
use xvs_model::protocol::question::{ControlRequest, Reply, RunningRules};
use xvs_model::report::setting::{Setting, Source};
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_proto::HashSecret;
use xvs_proto::network::{Link, Network};
use xvs_sched::ServiceKey;

use crate::control::datapath::{Datapath, Late};
use crate::events::Events;
use crate::journal::Journal;
use crate::journal::format::Entry;
use crate::registry::Registry;
use crate::registry::kept::{Found, Kept};
use crate::steering::{networks, rules_for};

mod apply;
mod change;
pub mod datapath;
mod due;
mod follow;
mod follow_kernel;
mod followed_kernel;
pub mod list_sources;
mod lists;
mod load_weights;
mod mark_rules;
mod next_hops;
mod owned_services;
mod publish;
pub mod quic;
mod reconcile;
pub mod reload_settings;
pub mod saving;
mod settings;
mod steered;
mod syn_limits;
mod synchronization;
mod unconfirmed;

/// The control plane without its thread.
pub struct Control<D> {
    datapath: D,
    state: State,
    settings: ActiveSettings,
    registry: Registry,
    publication: Publication,
    steered: Steered,
    next_hops: NextHops,
    marks: MarkRules,
    lists: ListSources,
    syn_limits: PublishedLimits,
    /// Names and indices of all interfaces of the machine, including interfaces without packets of services.
    devices: BTreeMap<String, u32>,
    /// The broadcast addresses of the networks that the director is in.
    broadcasts: BTreeSet<IpAddr>,
    /// Ranges of local ports that the kernel does not use for its own connections.
    reserved: Vec<(u16, u16)>,
    schedule: Schedule,
    events: Arc<Events>,
    unconfirmed: Option<Unconfirmed>,
    owned: OwnedServices,
    kernel: FollowedKernel,
    /// The connections that workers announce to backups; `None`: no master daemon runs.
    announcements: Option<Arc<Announcements>>,
    /// The connections that other directors have sent; `None`: no backup daemon runs.
    inbox: Option<Arc<Inbox>>,
    /// The number of ports of the daemons that run.
    sync_ports: u16,
    /// Daemons of the desired state that cannot run, each with the reason.
    waiting: BTreeMap<SyncRole, String>,
    /// `None`: changes are not saved.
    journal: Option<Journal>,
}

impl<D: Datapath> Control<D> {
    /// A control plane without services, for this many workers.
    pub fn new(datapath: D, workers: usize, ipvs: Ipvs, feedback: Feedback) -> Self {
        let state = State::default();
        let settings = ActiveSettings::new(ipvs, feedback);
        let registry = Registry::new(workers);
        settings.tune(&registry.tuning);
        Self {
            events: Arc::new(Events::new(datapath.date_millis())),
            datapath,
            publication: Publication::new(settings.settings(&state)),
            state,
            settings,
            registry,
            steered: Steered::default(),
            next_hops: NextHops::default(),
            marks: MarkRules::default(),
            lists: ListSources::default(),
            syn_limits: PublishedLimits::default(),
            devices: BTreeMap::new(),
            broadcasts: BTreeSet::new(),
            reserved: Vec::new(),
            schedule: Schedule::default(),
            unconfirmed: None,
            owned: OwnedServices::default(),
            kernel: FollowedKernel::default(),
            announcements: None,
            inbox: None,
            sync_ports: 1,
            waiting: BTreeMap::new(),
            journal: None,
        }
    }

    /// Sets how many SIP calls are distinguished. They take memory from the first service with `--pe sip` on.
    pub fn set_sip_calls(&mut self, calls: usize) {
        self.registry.sip_calls = calls;
    }

    /// Sets how many clients of services with limits are counted, and the prefix lengths of a client. Called before any
    /// worker runs.
    pub fn set_clients(&mut self, settings: ClientSettings, secret: HashSecret) {
        self.publication.snapshot.clients = Arc::new(Clients::new(settings, secret));
    }

    /// Counts an existing connection towards the limit of its client. Returns whether it is counted. Called after
    /// [`Self::resume`].
    pub fn resume_client(&self, connection: &Connection<'_>) -> bool {
        let snapshot = &self.publication.snapshot;
        snapshot
            .destinations
            .of(connection)
            .is_some_and(|dest| snapshot.clients.resume(dest.key, connection.client().addr))
    }

    /// Restores the names and numbers of services and destinations from these files. Called before any change, and
    /// before any worker runs. See [`Registry::return_to`].
    pub fn return_to(&mut self, found: &Found, now: Millis) {
        self.registry.return_to(found, &mut self.publication.snapshot, now);
        self.steered.set_all_due();
        // Workers count the end of a connection at its destination.
        self.publication.publish();
    }

    /// Whether connections may count towards the limits of their clients.
    pub fn counts_clients(&self) -> bool {
        self.publication.snapshot.clients.are_counted()
    }

    /// Continues from the counts in these files, and keeps the files up to date from now on. Called before any worker
    /// runs. See [`Registry::resume`].
    pub fn resume(&mut self, kept: Kept, found: Found, counts: Option<&[Counts]>) {
        self.registry.resume(kept, found, counts);
        self.steered.set_all_due();
    }

    /// Saves the registry's numbers in files.
    pub fn save_numbers(&mut self) {
        self.registry.record_all();
    }

    /// Whether the last save has succeeded.
    pub fn keeps_numbers(&self) -> bool {
        self.registry.keep_failure().is_none()
    }

    /// Sets the settings of xvs.toml as they are at the start.
    pub fn set_start_settings(&mut self, settings: Vec<Setting>) {
        self.settings.set_start(settings);
    }

    /// The settings in force, in the order of their keys. The same list as before, unless a setting has changed.
    pub fn settings_in_force(&mut self) -> &Arc<[Setting]> {
        self.settings.list(self.state.timeouts())
    }

    /// The pointer that workers load snapshots from.
    pub fn published(&self) -> Arc<ArcSwap<Snapshot>> {
        self.publication.published.clone()
    }

    /// Totals of all services.
    pub fn total(&self) -> SharedStats {
        self.registry.total.clone()
    }

    /// The datapath that [`Self::new`] was given.
    pub fn datapath(&mut self) -> &mut D {
        &mut self.datapath
    }

    /// Ends, and returns the datapath.
    pub fn into_datapath(mut self) -> D {
        self.registry.record_all();
        self.datapath
    }

    /// The settings of IPVS as they were set.
    pub fn ipvs(&self) -> Ipvs {
        self.settings.ipvs
    }

    /// The settings of load feedback.
    pub fn feedback(&self) -> &Feedback {
        &self.settings.feedback
    }

    /// The network of the published snapshot.
    pub fn egress(&self) -> Arc<Egress> {
        self.publication.snapshot.egress.clone()
    }

    /// The number of the published snapshot.
    pub fn epoch(&self) -> u64 {
        self.publication.snapshot.epoch
    }

    /// The events of changes.
    pub fn events(&self) -> Arc<Events> {
        self.events.clone()
    }

    /// The desired state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// The reason why the request is refused; then nothing has changed. [`CommandError::Late`]: the change is
    /// published, and a worker does not use it yet.
    pub fn handle(&mut self, request: &ControlRequest, now: Millis) -> Result<Reply, CommandError> {
        match request {
            ControlRequest::Change(command) => {
                self.kernel.admit(&self.state, command)?;
                self.change(command, Source::XvsadmSet, now)
            }
            ControlRequest::Restore(commands) => {
                self.extend_steering(commands)?;
                let mut results: Vec<_> = commands
                    .iter()
                    .map(|command| {
                        self.kernel.admit(&self.state, command)?;
                        self.prepare_and_carry_out(command, now)
                    })
                    .collect();
                let done = commands.iter().zip(&results).filter(|(_, result)| result.is_ok());
                self.note(done.map(|(command, _)| command), Source::RulesFile);
                if let Err(late) = self.publish() {
                    // A late worker must not hide which lines were refused.
                    if let Some(last) = results.iter_mut().rfind(|result| result.is_ok()) {
                        *last = Err(late.into());
                    }
                }
                Ok(Reply::Restored(results))
            }
            ControlRequest::Apply { rules, confirm_within_seconds, keeps_locals } => {
                let wanted = self.wanted(rules, *keeps_locals)?;
                self.apply(&wanted, *confirm_within_seconds, now)
            }
            ControlRequest::Confirm(verdict) => self.confirm(*verdict, now),
            ControlRequest::Rules => {
                let (owned_limits, rules) = rules_of(&self.state)
                    .into_iter()
                    .partition(|rule| matches!(rule, Rule::Limit(_)) && self.owned.owns(Some(rule.object())));
                let owned = self.owned.services().collect();
                Ok(Reply::Rules(RunningRules { rules, owned, owned_limits }))
            }
            ControlRequest::ListServices => Ok(Reply::Services(
                self.state.services().filter_map(|(key, wanted)| self.registry.row(*key, wanted)).collect(),
            )),
            ControlRequest::ListService(key) => {
                let wanted = self.state.service(key).ok_or(CommandError::NoSuchService(*key))?;
                Ok(Reply::Services(self.registry.row(*key, wanted).into_iter().collect()))
            }
            ControlRequest::Timeouts => Ok(Reply::Timeouts(self.state.timeouts())),
            ControlRequest::Daemons => Ok(Reply::Daemons(self.state.daemons().to_vec())),
            ControlRequest::Marks => Ok(Reply::Marks(self.state.marks().to_vec())),
            ControlRequest::Disabled => Ok(Reply::Disabled(self.state.disabled().clone())),
            ControlRequest::Limits { clients } => Ok(Reply::Limits(self.limits(*clients as usize))),
            ControlRequest::Lists(kind) => Ok(Reply::Lists(self.list_rows(*kind, now))),
            ControlRequest::Quic => Ok(Reply::Quic(self.quic_rows())),
            ControlRequest::LocalAddresses => Ok(Reply::LocalAddresses(self.state.locals().to_vec())),
            ControlRequest::Settings => Ok(Reply::Settings(self.settings_in_force().to_vec())),
            ControlRequest::Set { key, value } => {
                self.kernel.admit_setting(key)?;
                self.settings.set(key, value, Source::XvsSet)?;
                self.note_entry(|| Entry::Set { key: key.clone(), value: value.clone() });
                self.settings.tune(&self.registry.tuning);
                let moved = self.registry.review_reports(&self.settings.feedback, now);
                self.publish_with_weights(&moved)?;
                Ok(Reply::Done)
            }
            ControlRequest::ReportLoad { server, load_percent } => {
                self.report_load(*server, *load_percent, now)
            }
            ControlRequest::Feedback => {
                Ok(Reply::Feedback(self.registry.feedback_rows(&self.settings.feedback, now)))
            }
        }
    }

    /// Replaces the kernel's mark rules.
    ///
    /// # Errors
    /// The packets that the rules mark cannot be steered; then some of them stay with the kernel.
    pub fn set_tables(&mut self, tables: Vec<Table>) -> Result<(), CommandError> {
        self.marks.set_tables(tables, self.state.marks());
        self.enter_marks();
        let items: BTreeSet<_> =
            self.state.services().flat_map(|(key, _)| networks(&self.marks.compiled, *key)).collect();
        let steered = self.datapath.add_steering(&rules_for(items, &[]));
        // A late worker becomes a warning.
        let _ = self.publish();
        steered.map_err(|error| CommandError::failed(format_args!("marked packets: {error}")))
    }

    /// Replaces the captures that are on.
    ///
    /// # Errors
    /// A worker does not use them yet.
    pub fn set_captures(&mut self, captures: Captures) -> Result<(), Late> {
        self.publication.snapshot.captures = captures;
        self.publish()
    }

    /// Replaces the probes of real servers through their virtual address. Replies to their port are steered at every
    /// address of this machine. A late worker becomes a warning.
    pub fn set_vip_probes(&mut self, probes: Option<Arc<VipProbes>>) {
        self.steered.set_probe_port(probes.as_ref().map(|probes| probes.port));
        self.publication.snapshot.vip_probes = probes;
        let _ = self.publish();
    }

    /// Enters the compiled mark rules in the working snapshot.
    fn enter_marks(&mut self) {
        self.marks.enter(&mut self.publication.snapshot);
        self.steered.set_all_due();
    }

    /// The warnings about mark rules of the kernel that the director does not follow.
    pub fn unfollowed(&self) -> &[Warning] {
        &self.marks.compiled.unfollowed
    }

    /// The warnings about the late worker, the journal, kept numbers, daemons, access lists, QUIC, owned services, and
    /// the kernel's rules.
    pub fn warnings(&self) -> Vec<Warning> {
        self.publication
            .late
            .iter()
            .map(|worker| {
                let text = format!(
                    "{worker} has not taken up a change within a second and may still use the previous configuration; if this stays, restart xvsd"
                );
                Warning::new(WarningKind::WorkerLate, worker, text)
            })
            .chain(self.journal.as_ref().and_then(Journal::warning))
            .chain(self.registry.keep_failure().map(|error| {
                let text = format!(
                    "totals and numbers of real servers are not saved ({error}); make room in state_directory"
                );
                Warning::new(WarningKind::NumbersNotSaved, "", text)
            }))
            .chain(self.waiting_daemons())
            .chain(self.lists.warnings())
            .chain(self.quic_warnings())
            .chain(self.owned.warnings())
            .chain(self.kernel.warnings())
            .collect()
    }

    /// Replaces the machine's interfaces. Synchronization daemons on an interface that is gone, or was created anew,
    /// wait for it. The next publication informs the workers.
    pub fn set_devices<'a>(&mut self, links: impl IntoIterator<Item = &'a Link>) {
        let former = mem::replace(
            &mut self.devices,
            links.into_iter().map(|link| (link.name.clone(), link.ifindex)).collect(),
        );
        self.stop_daemons_of_changed(&former);
    }

    /// Replaces the network: the attached interfaces and the VLANs over them. A late worker becomes a warning.
    pub fn set_network(&mut self, network: &Network) {
        self.publication.snapshot.egress = Arc::new(Egress::build(network));
        self.broadcasts = broadcasts(network);
        self.steered.set_network(network);
        self.next_hops.set_network(network);
        if self.marks.set_links(&network.links, self.state.marks()) {
            self.enter_marks();
        }
        self.registry.reroute(&mut self.publication.snapshot);
        let _ = self.publish();
    }

    /// Performs the tasks that are due: samples the counters, scans the trash, checks the memory left, expires entries
    /// of lists and load reports, maintains owned services, reverts unconfirmed rules. Returns the time of the next
    /// task.
    ///
    /// # Errors
    /// Unconfirmed rules cannot be reverted now. A late worker is no error here; it becomes a warning.
    pub fn tick(&mut self, now: Millis) -> Result<Millis, CommandError> {
        self.schedule.sample(now, |samples| self.registry.sample_counters(now, samples));
        let is_trash_due = self.registry.trash_scan.is_some_and(|due| due <= now);
        if self.schedule.unused.is_due(now) || is_trash_due {
            // Steering that only serves existing connections ends with them.
            if self.state.services().any(|(key, _)| matches!(key, ServiceKey::Mark { .. }))
                || !self.steered.deleted_locals.is_empty()
            {
                self.steered.set_all_due();
            } else {
                self.registry.with_leftover_steering().for_each(|key| self.steered.set_due(key));
            }
            self.registry.forget_unused(now);
        }
        if is_trash_due && self.registry.scan_trash(&mut self.publication.snapshot, now) {
            self.next_hops.forget();
            let _ = self.publish();
        }
        if self.schedule.times.is_due(now) {
            let moved = self.registry.follow_times(&self.settings.feedback, now);
            let _ = self.publish_weights(&moved);
        }
        if self.schedule.second.is_due(now) {
            self.update_defences();
            self.retry_daemons(now);
            let moved = self.registry.review_reports(&self.settings.feedback, now);
            let _ = self.publish_weights(&moved);
            if self.registry.end_slow_starts(now) {
                let _ = self.publish();
            }
            self.maintain_owned(now);
        }
        let listed = self.expire_listed(now);
        let unconfirmed = self.expire_unconfirmed(now)?;
        if !self.publication.held.is_empty() || self.steered.is_due() {
            let _ = self.settle(SHORT_WAIT);
        }
        Ok([unconfirmed, listed, self.registry.trash_scan]
            .into_iter()
            .flatten()
            .fold(self.schedule.next(), Millis::min))
    }

    /// Turns automatic defences on or off by the memory and the connection table's entries left.
    fn update_defences(&mut self) {
        let is_needed = self.settings.ipvs.is_automatic() || self.publication.snapshot.services.any_proxied();
        let (pages, entries) = match is_needed {
            true => (self.datapath.available_pages(), self.datapath.free_entries()),
            false => (None, (1, 1)),
        };
        self.settings.observe(pages, entries);
        if self.settings.settings(&self.state) != self.publication.snapshot.settings {
            let _ = self.publish();
        }
    }
}

/// The broadcast addresses of the networks that the director is in. Networks of one or two addresses have none
/// (RFC 3021).
fn broadcasts(network: &Network) -> BTreeSet<IpAddr> {
    network
        .links
        .iter()
        .flat_map(|link| &link.addresses)
        .filter_map(|(own, len)| match own {
            IpAddr::V4(own) if *len < 31 => {
                Some(IpAddr::V4(Ipv4Addr::from(u32::from(*own) | (u32::MAX >> len))))
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;
    use std::time::Duration;
    use xvs_dataplane::offload::Ends;
    use xvs_dataplane::snapshot::lists::Lists;
    use xvs_dataplane::snapshot::syn_limits::SynLimits;
    use xvs_dataplane::steering::SteeringError;
    use xvs_dataplane::steering::SteeringRules;
    use xvs_model::config::command::Command;
    use xvs_model::config::destination::DestinationOptions;
    use xvs_model::config::service::ServiceOptions;
    use xvs_model::config::sync_daemon::SyncDaemon;
    use xvs_model::objects::Object;
    use xvs_model::objects::disabled::Disabled;
    use xvs_model::objects::limit::ServiceLimit;
    use xvs_model::objects::local::LocalAddress;
    use xvs_model::objects::mark::MarkRule;
    use xvs_proto::{Endpoint, Family};
    use xvs_sched::{ClientLimit, ForwardingMethod, SynProxy, Weight};

    use crate::control::datapath::SyncSockets;
    use crate::control::*;

    /// A datapath of a test: a steering table, resolved neighbours, and a given amount of free memory.
    #[derive(Default)]
    pub(super) struct Machine {
        available_pages: Option<u32>,
        free_entries: (usize, usize),
        pub(super) steered: SteeringRules,
        /// How often all of it was replaced, which costs a pass over everything.
        replaced: usize,
        resolved: BTreeSet<(u32, IpAddr)>,
        /// The worker that takes up no change.
        pub(super) late: Option<String>,
        /// Addresses whose services the steering table has no room for.
        pub(super) full: BTreeSet<IpAddr>,
        /// Whether the kernel has no room for access lists.
        pub(super) no_lists: bool,
        /// The synchronization daemons that run.
        daemons: Vec<SyncRole>,
        /// Whether the kernel refuses the sockets of a backup daemon.
        no_backup: bool,
    }

    impl Datapath for Machine {
        fn add_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
            if rules.services.iter().any(|(_, endpoint)| self.full.contains(&endpoint.addr)) {
                return Err(SteeringError::Full { what: "services", limit: 0, step: "delete some" });
            }
            self.steered.add(rules);
            Ok(())
        }

        fn remove_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
            self.steered.subtract(rules);
            Ok(())
        }

        fn end_offload(&mut self, _: &Ends) {}

        fn set_steering(&mut self, rules: &SteeringRules) -> Result<(), SteeringError> {
            self.steered = rules.clone();
            self.replaced += 1;
            Ok(())
        }

        fn set_lists(&mut self, _: Option<(Arc<Lists>, Vec<ServiceKey>)>) -> Result<(), SteeringError> {
            match self.no_lists {
                true => Err(std::io::Error::from(std::io::ErrorKind::OutOfMemory).into()),
                false => Ok(()),
            }
        }

        fn set_syn_limits(&mut self, _: &SynLimits) -> Result<(), SteeringError> {
            Ok(())
        }

        fn count_drops(&mut self) {}

        fn seconds_since_1970(&self, now: Millis) -> u64 {
            now.0 / 1000
        }

        fn await_workers(&mut self, _: Duration) -> Result<(), Late> {
            self.late.clone().map_or(Ok(()), |worker| Err(Late { worker }))
        }

        fn keep_resolved(&mut self, neighbours: &BTreeSet<(u32, IpAddr)>) {
            self.resolved.clone_from(neighbours);
        }

        fn reserve_ports(&mut self, _: &[(u16, u16)]) {}

        fn start_master(
            &mut self,
            daemon: &SyncDaemon,
            _: SyncSockets,
            _: Arc<ArcSwap<Snapshot>>,
            _: Millis,
        ) -> Result<Arc<Announcements>, CommandError> {
            self.daemons.push(daemon.role);
            Ok(Arc::new(Announcements::new(1, 1)))
        }

        fn stop_master(&mut self) {
            self.daemons.retain(|role| *role != SyncRole::Master);
        }

        fn start_backup(&mut self, daemon: &SyncDaemon, _: SyncSockets) -> Result<Arc<Inbox>, CommandError> {
            if self.no_backup {
                return Err(CommandError::Failed { why: "no socket".to_owned() });
            }
            self.daemons.push(daemon.role);
            Ok(Arc::new(Inbox::new(1, xvs_dataplane::snapshot::sync_backup::Trust::Signed)))
        }

        fn stop_backup(&mut self) {
            self.daemons.retain(|role| *role != SyncRole::Backup);
        }

        fn available_pages(&mut self) -> Option<u32> {
            self.available_pages
        }

        fn free_entries(&self) -> (usize, usize) {
            self.free_entries
        }
    }

    impl Control<Machine> {
        /// Carries out a command of `xvsadm` at time 0.
        pub(super) fn run(&mut self, command: Command) -> Result<Reply, CommandError> {
            self.change(&command, Source::XvsadmSet, Millis(0))
        }
    }

    pub(super) fn control() -> Control<Machine> {
        Control::new(Machine::default(), 1, Ipvs::default(), Feedback::default())
    }

    pub(super) fn service() -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([192, 0, 2, 100], 80))
    }

    pub(super) fn add_service() -> Command {
        Command::Add(Rule::Service { key: service(), options: ServiceOptions::of(Family::V4) })
    }

    pub(super) fn add(addr: [u8; 4]) -> Command {
        let options = DestinationOptions { method: ForwardingMethod::Nat, ..DestinationOptions::default() };
        Command::Add(Rule::Destination { service: service(), endpoint: Endpoint::new(addr, 80), options })
    }

    #[test]
    fn a_disable_rebuilds_the_services_that_it_changes_and_no_other() {
        let mut control = Control::new(Machine::default(), 1, Ipvs::default(), Feedback::default());
        let rules = "-A -t 192.0.2.1:80 -s rr\n-a -t 192.0.2.1:80 -r 192.0.2.11 -g\n\
                     -A -t 192.0.2.2:80 -s rr\n-a -t 192.0.2.2:80 -r 192.0.2.11 -g\n";
        let rules = xvs_ipvsadm::read_rules(rules, &xvs_ipvsadm::SystemResolver::default()).unwrap();
        let commands = rules.into_iter().map(|rule| rule.command).collect();
        control.handle(&ControlRequest::Restore(commands), Millis(0)).unwrap();
        let keys = ["TCP 192.0.2.1:80", "TCP 192.0.2.2:80"].map(|key| key.parse::<ServiceKey>().unwrap());
        let mut rebuilt = |service| {
            let server = "192.0.2.11".parse().unwrap();
            let before = control.published().load_full();
            let disable = Command::Add(Rule::Disabled(Disabled { server, service }));
            control.run(disable).unwrap();
            let after = control.published().load_full();
            keys.map(|key| {
                let [before, after] = [&before, &after].map(|all| all.services.find(&key).unwrap());
                !Arc::ptr_eq(before, after)
            })
        };
        assert_eq!(rebuilt(Some(keys[0])), [true, false]);
        assert_eq!(rebuilt(None), [false, true]);
        assert_eq!(rebuilt(None), [false, false]);
    }

    #[test]
    fn the_cost_of_what_is_deleted_and_of_a_changed_neighbour_is_no_pass_over_all_that_is_steered() {
        let mut control = control();
        control.set_network(&network([192, 0, 2, 9], 24));
        control
            .handle(&ControlRequest::Restore(vec![add_service(), add([192, 0, 2, 1])]), Millis(0))
            .unwrap();
        let replaced = control.datapath().replaced;
        let delete =
            |last| Object::Destination { service: service(), endpoint: Endpoint::new([192, 0, 2, last], 80) };
        control.run(add([192, 0, 2, 2])).unwrap();
        control.run(Command::Delete(delete(2))).unwrap();
        // More than the time after which a deleted real server without connections is forgotten.
        for seconds in (0..300).step_by(20) {
            control.tick(Millis(seconds * 1000)).unwrap();
        }
        assert!(!control.registry.with_leftover_steering().any(|_| true));
        let mut resolved = network([192, 0, 2, 9], 24);
        resolved.neighbours.clear();
        control.set_network(&resolved);
        assert_eq!(control.datapath().replaced, replaced);
        let servers: Vec<_> =
            control.datapath().steered.nat_destinations.iter().map(|(_, at)| at.addr).collect();
        assert_eq!(servers, ["192.0.2.1", "192.0.2.100"].map(|addr| addr.parse::<IpAddr>().unwrap()));
        control.set_network(&network([192, 0, 2, 8], 24));
        assert_eq!(control.datapath().replaced, replaced + 1, "another address of the director");
    }

    #[test]
    fn refused_commands_of_a_batch_are_not_steered() {
        let mut control = control();
        let reply = control.handle(&ControlRequest::Restore(vec![add([192, 0, 2, 1])]), Millis(0)).unwrap();
        assert_eq!(reply, Reply::Restored(vec![Err(CommandError::ServiceNotDefined(service()))]));
        assert_eq!(control.datapath().steered, SteeringRules::default());
    }

    /// A network in which the director has this address.
    pub(super) fn network(addr: [u8; 4], len: u8) -> Network {
        let mut network = Network::default();
        let mac = "02:00:00:00:00:01".parse().unwrap();
        network.add_link("lan", mac, &[(addr.into(), len)], 1500).unwrap();
        network
    }

    #[test]
    fn a_nat_destination_whose_address_became_local_can_be_edited_but_not_added() {
        let mut control = control();
        let (
            Command::Add(Rule::Service { options: of_service, .. }),
            Command::Add(Rule::Destination { endpoint, options, .. }),
        ) = (add_service(), add([192, 0, 2, 1]))
        else {
            unreachable!()
        };
        let service = "TCP 192.0.2.100:21".parse().unwrap();
        let add = Command::Add(Rule::Destination { service, endpoint, options: options.clone() });
        let both = vec![Command::Add(Rule::Service { key: service, options: of_service }), add.clone()];
        control.handle(&ControlRequest::Restore(both), Millis(0)).unwrap();
        control.set_network(&network([192, 0, 2, 1], 24));
        let options = DestinationOptions { weight: Weight(0), ..options };
        let quiesce = Command::EditDestination { service, endpoint, options };
        assert_eq!(control.run(quiesce), Ok(Reply::Done));
        let delete = Command::Delete(Object::Destination { service, endpoint });
        control.run(delete).unwrap();
        let again = control.run(add);
        assert!(matches!(again, Err(CommandError::NotSupported { .. })), "{again:?}");
    }

    #[test]
    fn the_broadcast_address_of_a_connected_network_is_refused_as_destination() {
        let mut control = control();
        control.set_network(&network([192, 0, 2, 9], 25));
        control.run(add_service()).unwrap();
        let mut answer = |last| control.run(add([192, 0, 2, last]));
        let refused = answer(127);
        assert!(matches!(refused, Err(CommandError::InvalidOperation { .. })), "{refused:?}");
        assert_eq!([answer(126), answer(128), answer(255)], [const { Ok(Reply::Done) }; 3]);
    }

    pub(super) fn any_service() -> impl Strategy<Value = ServiceKey> {
        let texts = ["TCP 192.0.2.100:80", "TCP 192.0.2.100:0", "TCP 192.0.2.100:21", "UDP 192.0.2.100:80"];
        let more = ["TCP [2001:db8::100]:80", "FWM 7", "FWM 7 IPv6"];
        let keys: Vec<ServiceKey> = texts.into_iter().chain(more).map(|text| text.parse().unwrap()).collect();
        select(keys)
    }

    pub(super) fn endpoint() -> impl Strategy<Value = Endpoint> {
        let addrs: [IpAddr; 3] =
            [[192, 0, 2, 1].into(), [192, 0, 2, 2].into(), "2001:db8::1".parse().unwrap()];
        (select(addrs.to_vec()), select(vec![0, 80, 81])).prop_map(|(addr, port)| Endpoint { addr, port })
    }

    pub(super) fn options() -> impl Strategy<Value = DestinationOptions> {
        use ForwardingMethod::{DirectRouting, FullNat, Nat, Tunnel};
        let method = select(vec![DirectRouting, FullNat, Nat, Tunnel]);
        method.prop_map(|method| DestinationOptions { method, ..DestinationOptions::default() })
    }

    /// Any change of a few services, real servers and methods, few enough to collide.
    pub(super) fn any_change() -> impl Strategy<Value = Command> {
        let local =
            LocalAddress { addr: [192, 0, 2, 9].into(), first_port: 5000, last_port: 5999, standby: false };
        let mark = MarkRule {
            dest: Some("192.0.2.64/28".parse().unwrap()),
            source: None,
            protocol: None,
            dest_ports: Vec::new(),
            interface: None,
            mark: 7,
            mask: u32::MAX,
        };
        prop_oneof![
            4 => any_service().prop_map(|key| Command::Add(Rule::Service { key, options: ServiceOptions::of(key.family()) })),
            2 => any_service().prop_map(|key| Command::Delete(Object::Service(key))),
            8 => (any_service(), endpoint(), options()).prop_map(|(service, endpoint, options)| {
                Command::Add(Rule::Destination { service, endpoint, options })
            }),
            3 => (any_service(), endpoint(), options()).prop_map(|(service, endpoint, options)| {
                Command::EditDestination { service, endpoint, options }
            }),
            3 => (any_service(), endpoint())
                .prop_map(|(service, endpoint)| Command::Delete(Object::Destination { service, endpoint })),
            1 => Just(Command::Add(Rule::Local(local))),
            1 => Just(Command::Delete(Object::Local(local.addr))),
            1 => Just(Command::Add(Rule::Mark(mark.clone()))),
            1 => Just(Command::Delete(Object::Mark(mark))),
            1 => Just(Command::Flush),
        ]
    }

    proptest! {
        #[test]
        fn steering_and_neighbours_after_a_change_equal_those_of_a_full_recomputation(
            batches in vec(vec(any_change(), 1..4), 1..20),
        ) {
            let mut control = control();
            control.set_network(&network([192, 0, 2, 9], 24));
            for batch in batches {
                let request = match &batch[..] {
                    [one] => ControlRequest::Change(one.clone()),
                    _ => ControlRequest::Restore(batch.clone()),
                };
                let _ = control.handle(&request, Millis(0));
                let made = (control.datapath().steered.clone(), control.datapath().resolved.clone());
                control.steered.set_all_due();
                control.next_hops.forget();
                control.publish().unwrap();
                let whole = (control.datapath().steered.clone(), control.datapath().resolved.clone());
                prop_assert_eq!(made, whole, "after {:?}", batch);
            }
        }
    }

    #[test]
    fn with_backup_only_requests_stay_with_the_kernel_while_a_backup_daemon_runs() {
        let mut control = control();
        let published = control.published();
        let mut stay = |key: &str, value: &str, daemon: Option<Command>| {
            daemon.map(|command| control.state.apply(&command)).transpose().unwrap();
            let set = ControlRequest::Set { key: key.to_owned(), value: value.to_owned() };
            control.handle(&set, Millis(0)).unwrap();
            published.load().settings.requests_stay
        };
        let start = |role| {
            let interface = "wan".to_owned();
            let group = "224.0.0.81".parse().unwrap();
            Command::Add(Rule::Daemon(SyncDaemon {
                role,
                interface,
                sync_id: 0,
                max_len_bytes: 0,
                group,
                port: 8848,
                ttl: 1,
                peers: Vec::new(),
            }))
        };
        assert!(!stay("backup_only", "1", None));
        assert!(!stay("backup_only", "1", Some(start(SyncRole::Master))));
        assert!(stay("backup_only", "1", Some(start(SyncRole::Backup))));
        assert!(!stay("backup_only", "0", None));
        assert!(stay("backup_only", "1", None));
        assert!(!stay("backup_only", "1", Some(Command::Delete(Object::Daemon(SyncRole::Backup)))));
    }

    #[test]
    fn daemons_run_while_they_are_wanted_and_one_whose_sockets_are_refused_is_not() {
        let mut control = control();
        control.devices.insert("wan".to_owned(), 1);
        let start = |role| daemon(role, 7);
        let published = control.published();
        let mut run = |command: Command, no_backup: bool| {
            control.datapath.no_backup = no_backup;
            let answer = control.run(command);
            let snapshot = published.load();
            let seen = (snapshot.sync_master.is_some(), snapshot.sync_backup.is_some());
            let wanted: Vec<_> = control.state.daemons().iter().map(|daemon| daemon.role).collect();
            assert_eq!(wanted.len(), control.datapath.daemons.len());
            (answer.is_ok(), seen, wanted)
        };
        let (master, backup) = (SyncRole::Master, SyncRole::Backup);
        assert_eq!(run(start(master), false), (true, (true, false), vec![master]));
        assert_eq!(run(start(backup), true), (false, (true, false), vec![master]));
        assert_eq!(run(start(backup), false), (true, (true, true), vec![master, backup]));
        assert_eq!(run(start(backup), false), (false, (true, true), vec![master, backup]));
        assert_eq!(run(Command::Delete(Object::Daemon(master)), false), (true, (false, true), vec![backup]));
        assert_eq!(run(Command::Delete(Object::Daemon(backup)), false), (true, (false, false), vec![]));
    }

    #[test]
    fn an_interface_that_is_not_there_is_told_before_a_daemon_that_runs() {
        let mut control = control();
        control.devices.insert("wan".to_owned(), 1);
        let start = daemon(SyncRole::Master, 7);
        control.run(start.clone()).unwrap();
        let again = control.run(start).unwrap_err();
        assert_eq!(again, CommandError::DaemonRunning(SyncRole::Master));
        control.devices.clear();
        let again = control.run(daemon(SyncRole::Master, 7)).unwrap_err();
        assert_eq!(again, CommandError::NoSuchDevice("wan".to_owned()));
    }

    #[test]
    fn a_daemon_whose_peer_is_this_director_is_refused() {
        let mut control = control();
        control.devices.insert("wan".to_owned(), 1);
        control.set_network(&network([192, 0, 2, 1], 24));
        let Command::Add(Rule::Daemon(daemon)) = daemon(SyncRole::Master, 7) else { panic!("a start") };
        let mut start = |peers: &[[u8; 4]]| {
            let peers = peers.iter().copied().map(IpAddr::from).collect();
            let command = Command::Add(Rule::Daemon(SyncDaemon { peers, ..daemon.clone() }));
            control.run(command).map_err(|error| error.to_string())
        };
        let refused = start(&[[192, 0, 2, 2], [192, 0, 2, 1]]).unwrap_err();
        let why =
            "xvs: master daemon: peer 192.0.2.1 is an address of this director; name those of the others";
        assert_eq!(refused, why);
        let refused = start(&[[192, 0, 2, 255]]).unwrap_err();
        assert!(refused.contains("peer 192.0.2.255 is a broadcast address; name the other"), "{refused}");
        assert!(start(&[[192, 0, 2, 2]]).is_ok());
    }

    #[test]
    fn each_interface_with_daemons_is_named_once_and_what_real_servers_there_could_do() {
        let mut control = control();
        control.devices.insert("lan".to_owned(), 1);
        control.set_network(&network([192, 0, 2, 1], 24));
        let on_lan = |role| {
            let Command::Add(Rule::Daemon(daemon)) = daemon(role, 7) else { panic!("a start") };
            Command::Add(Rule::Daemon(SyncDaemon { interface: "lan".to_owned(), ..daemon }))
        };
        let daemons = [SyncRole::Master, SyncRole::Backup].map(on_lan);
        for command in daemons.into_iter().chain([add_service(), add([203, 0, 113, 11])]) {
            control.run(command).unwrap();
        }
        let named: Vec<_> = control.unsigned_daemons().collect();
        let [one] = &*named else { panic!("{named:?}") };
        assert!(one.text.starts_with("synchronization on lan is not signed"), "{one}");
        control.run(add([192, 0, 2, 11])).unwrap();
        let named: Vec<_> = control.unsigned_daemons().collect();
        let [one] = &*named else { panic!("{named:?}") };
        assert!(
            one.text.starts_with("synchronization is on lan, where real servers can forge its messages"),
            "{one}"
        );
    }

    fn daemon(role: SyncRole, sync_id: u8) -> Command {
        let (interface, group) = ("wan".to_owned(), "224.0.0.81".parse().unwrap());
        let (max_len_bytes, port, ttl, peers) = (1472, 8848, 1, Vec::new());
        Command::Add(Rule::Daemon(SyncDaemon {
            role,
            interface,
            sync_id,
            max_len_bytes,
            group,
            port,
            ttl,
            peers,
        }))
    }

    #[test]
    fn the_running_rules_that_clients_compare_have_the_synchronization_daemons() {
        let mut control = control();
        control.devices.insert("wan".to_owned(), 1);
        for command in [add_service(), daemon(SyncRole::Backup, 1)] {
            control.run(command).unwrap();
        }
        let reply = control.handle(&ControlRequest::Rules, Millis(0)).unwrap();
        let Reply::Rules(RunningRules { rules, .. }) = reply else { panic!("{reply:?}") };
        assert_eq!(xvs_model::config::difference::state_of(rules).unwrap(), control.state);
    }

    #[test]
    fn rules_with_a_daemon_that_cannot_run_change_nothing_and_the_former_daemons_run() {
        let mut control = control();
        control.devices.insert("wan".to_owned(), 1);
        control.run(daemon(SyncRole::Master, 1)).unwrap();
        control.run(add_service()).unwrap();
        let former = control.state.clone();
        control.datapath.no_backup = true;
        let rules = vec![daemon(SyncRole::Master, 2), daemon(SyncRole::Backup, 2)];
        let apply = ControlRequest::Apply { rules, confirm_within_seconds: None, keeps_locals: false };
        assert!(control.handle(&apply, Millis(0)).is_err());
        assert_eq!(control.state, former);
        assert_eq!(control.datapath.daemons, [SyncRole::Master]);
        assert!(control.published().load().sync_master.is_some());
    }

    #[test]
    fn a_daemon_that_cannot_run_at_the_start_is_tried_again_and_stays_in_the_journal() {
        let mut control = control();
        let refused = CommandError::NoSuchDevice("wan".to_owned());
        let Command::Add(Rule::Daemon(wanted)) = daemon(SyncRole::Backup, 3) else { unreachable!() };
        let begun = saving::Begun { refused: vec![(wanted, refused)], ..Default::default() };
        control.begin_journal(begun, Millis(0)).unwrap();
        let warned = |control: &Control<Machine>| {
            control.warnings().iter().any(|line| line.text.contains("backup daemon"))
        };
        control.tick(Millis(1000)).unwrap();
        assert!(warned(&control) && control.datapath.daemons.is_empty());
        assert_eq!(control.state.daemons().len(), 1);
        control.devices.insert("wan".to_owned(), 1);
        control.tick(Millis(2000)).unwrap();
        assert!(!warned(&control));
        assert_eq!(control.datapath.daemons, [SyncRole::Backup]);
        assert!(control.published().load().sync_backup.is_some());
    }

    #[test]
    fn a_daemon_whose_interface_was_made_anew_gets_new_sockets() {
        let mut control = control();
        let mut link = Network::default();
        link.add_link("wan", "02:00:00:00:00:01".parse().unwrap(), &[], 1500).unwrap();
        control.set_devices(&link.links);
        control.run(daemon(SyncRole::Master, 1)).unwrap();
        control.set_devices(&link.links);
        assert_eq!(control.datapath.daemons, [SyncRole::Master]);
        link.links[0].ifindex += 1;
        control.set_devices(&link.links);
        control.publish().unwrap();
        assert!(control.datapath.daemons.is_empty() && control.published().load().sync_master.is_none());
        assert!(control.warnings().iter().any(|line| line.text.contains("master daemon")));
        control.tick(Millis(1000)).unwrap();
        assert_eq!(control.datapath.daemons, [SyncRole::Master]);
        assert!(control.published().load().sync_master.is_some() && control.warnings().is_empty());
        control.set_devices([]);
        control.tick(Millis(2000)).unwrap();
        assert!(control.datapath.daemons.is_empty() && control.state.daemons().len() == 1);
    }

    #[test]
    fn automatic_defences_follow_the_memory_and_the_table_entries_left_within_a_second() {
        let mut ipvs = Ipvs::default();
        for key in ["drop_entry", "drop_packet", "secure_tcp"] {
            ipvs.set(key, "1").unwrap();
        }
        let machine = Machine { available_pages: Some(5000), ..Machine::default() };
        let mut control = Control::new(machine, 1, ipvs, Feedback::default());
        let published = control.published();
        let on = |settings: xvs_dataplane::snapshot::Settings| {
            (settings.drops_entries, settings.drop_packet_rate, settings.secure_tcp)
        };
        control.tick(Millis(1000)).unwrap();
        assert_eq!(on(published.load().settings), (false, 0, false));
        control.datapath().available_pages = Some(768);
        control.tick(Millis(1999)).unwrap();
        assert_eq!(on(published.load().settings), (false, 0, false));
        control.tick(Millis(2000)).unwrap();
        assert_eq!(on(published.load().settings), (true, 4, true));
        control.datapath().available_pages = None;
        control.tick(Millis(3000)).unwrap();
        assert_eq!(on(published.load().settings), (false, 0, false), "unknown memory is not short memory");
        // Free entries of 8,000, and the rate at which packets are dropped.
        for (second, (free, rate)) in (4..).zip([(1000, 0), (500, 4), (0, 2), (1000, 0)]) {
            control.datapath().free_entries = (free, 8000);
            control.tick(Millis(second * 1000)).unwrap();
            assert_eq!(on(published.load().settings), (rate > 0, rate, rate > 0), "{free}");
        }
    }

    #[test]
    fn a_limit_of_syns_is_in_force_while_its_service_is_there() {
        let mut control = control();
        let key = ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], 80));
        let limit = ClientLimit { syn_rate: 5, ..ClientLimit::default() };
        let add = Command::Add(Rule::Service { key, options: ServiceOptions::of(Family::V4) });
        let mut is_in_force = |command| {
            control.run(command).unwrap();
            control.published().load().syn_limits.is_some()
        };
        assert!(!is_in_force(Command::Add(Rule::Limit(ServiceLimit { service: key, limit }))));
        assert!(is_in_force(add.clone()));
        assert!(!is_in_force(Command::Delete(Object::Service(key))));
        assert!(is_in_force(add));
        assert!(!is_in_force(Command::Flush));
    }

    #[test]
    fn a_proxy_in_automatic_mode_follows_the_memory_and_the_table_entries_left() {
        let machine = Machine { available_pages: Some(768), ..Machine::default() };
        let mut control = Control::new(machine, 1, Ipvs::default(), Feedback::default());
        let published = control.published();
        let is_short = |control: &mut Control<Machine>, second: u64| {
            control.tick(Millis(second * 1000)).unwrap();
            published.load().settings.memory_short
        };
        assert!(!is_short(&mut control, 1), "nothing asks for it");
        let options = ServiceOptions { syn_proxy: SynProxy::Auto, ..ServiceOptions::of(Family::V4) };
        let key = ServiceKey::tcp(Endpoint::new([198, 51, 100, 1], 80));
        let add = Command::Add(Rule::Service { key, options });
        control.handle(&ControlRequest::Change(add), Millis(1000)).unwrap();
        assert!(is_short(&mut control, 2));
        control.datapath().available_pages = Some(5000);
        assert!(!is_short(&mut control, 3));
        control.datapath().free_entries = (500, 8000);
        assert!(is_short(&mut control, 4));
        control.datapath().free_entries = (1000, 8000);
        assert!(!is_short(&mut control, 5));
    }
}
