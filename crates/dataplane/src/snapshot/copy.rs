//! A copy of the whole configuration for a dry run. The copy shares no state that packets change.
//!
//! Created when an operator explains a packet (`explain/`). Counts, overload flags and scheduler states have their
//! current values and then change independently. The data of schedulers is read in place and never written. The copy
//! records each decision of its schedulers. Cost: an allocation or two for each destination.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use xvs_proto::Endpoint;
use xvs_sched::scheduler::{Candidates, Choice, Load, Request, Scheduler, State};
use xvs_sched::{Account, ForwardingMethod, ServiceKey, Weight};

use crate::clock::Millis;

use super::slow_start::SlowStart;
use super::{Destination, Destinations, Member, Service, ServiceLive, Services, Snapshot};

/// A decision of a scheduler in a dry run.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The service.
    pub service: ServiceKey,
    /// The values on which the decision was based.
    pub account: Account,
    /// The candidates in IPVS's order, with their state at the decision.
    pub candidates: Vec<Candidate>,
    /// The index of the chosen candidate.
    pub chosen: Option<usize>,
}

/// A destination at the time of a decision.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// The destination's endpoint.
    pub endpoint: Endpoint,
    /// The forwarding method.
    pub method: ForwardingMethod,
    /// The weight in force.
    pub weight: Weight,
    /// The destination's connections.
    pub load: Load,
    /// Whether it was overloaded.
    pub overloaded: bool,
    /// The fraction of its share that it gets, in percent, if it waits because it starts slowly.
    pub slow_start_percent: Option<u32>,
    /// The upper threshold, in connections; 0 if there is none.
    pub upper_threshold: u32,
}

impl Snapshot {
    /// The copy, and the list to which its schedulers append their decisions.
    pub(crate) fn separate_copy(&self) -> (Self, Arc<Mutex<Vec<Decision>>>) {
        let decisions = Arc::default();
        let stats = Arc::<ServiceLive>::default();
        let destinations = self.destinations.separate_copy(&stats);
        let copy = Self {
            services: self.services.separate_copy(&destinations, &stats, &decisions),
            destinations,
            call_ids: Arc::new(self.call_ids.separate_copy()),
            clients: Arc::new(self.clients.separate_copy()),
            // A dry run must not appear in captures.
            captures: Arc::default(),
            // Nor announce connections to backups.
            sync_master: None,
            sync_backup: None,
            lists: self.lists.as_ref().map(|lists| Arc::new(lists.uncounted())),
            syn_limits: self.syn_limits.as_ref().map(|limits| {
                let copied = limits.iter().map(|(key, limit)| (*key, Arc::new(limit.separate_copy())));
                Arc::new(copied.collect())
            }),
            // The copy neither sends the packets of health checks nor receives their replies.
            vip_probes: self.vip_probes.as_ref().map(|probes| Arc::new(probes.separate_copy())),
            ..self.clone()
        };
        (copy, decisions)
    }
}

impl Destinations {
    fn separate_copy(&self, stats: &Arc<ServiceLive>) -> Self {
        self.map(|destination| Destination {
            live: Arc::new(destination.live.separate_copy()),
            path_mtu: Arc::new(destination.path_mtu.separate_copy()),
            service: stats.clone(),
            ..destination.clone()
        })
    }
}

impl Services {
    fn separate_copy(
        &self,
        destinations: &Destinations,
        stats: &Arc<ServiceLive>,
        decisions: &Arc<Mutex<Vec<Decision>>>,
    ) -> Self {
        let mut services = self.clone();
        for service in self.all() {
            services.insert(Arc::new(Service {
                key: service.key,
                rule: service.rule.clone(),
                members: service.members.iter().map(|member| member.separate_copy(destinations)).collect(),
                is_starting: service.is_starting,
                scheduler: Box::new(RecordingScheduler {
                    service: service.clone(),
                    decisions: decisions.clone(),
                }),
                one_packet: service.one_packet,
                client_address: service.client_address,
                client_limit: service.client_limit,
                syn_proxy: service.syn_proxy,
                persistence: service.persistence,
                quic: service.quic.clone(),
                place: Arc::new(AtomicU64::new(service.place.load(Ordering::Relaxed))),
                live: stats.clone(),
            }));
        }
        services
    }
}

impl Member {
    /// The member with the live numbers of its copied destination.
    fn separate_copy(&self, destinations: &Destinations) -> Self {
        let live = match destinations.find(self.id) {
            Some(copied) => copied.live.clone(),
            None => Arc::new(self.live.separate_copy()),
        };
        Self { live, slow_start: self.slow_start.as_ref().map(SlowStart::separate_copy), ..self.clone() }
    }
}

/// The scheduler of a service. It records its decisions and changes no state outside the copy.
struct RecordingScheduler {
    service: Arc<Service>,
    decisions: Arc<Mutex<Vec<Decision>>>,
}

impl Scheduler for RecordingScheduler {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let choice = self.service.scheduler.pick(state, request, candidates);
        let seen = self.service.members.iter().enumerate().map(|(position, member)| {
            let is_overloaded = candidates.overloaded(position);
            let slow_start =
                member.slow_start.as_ref().filter(|_| is_overloaded && !member.live.is_overloaded());
            Candidate {
                endpoint: member.endpoint,
                method: member.method,
                weight: candidates.weight(position),
                load: candidates.load(position),
                overloaded: is_overloaded && slow_start.is_none(),
                slow_start_percent: slow_start.map(|slow| slow.percent(Millis(request.now_millis))),
                upper_threshold: member.live.thresholds().0,
            }
        });
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner).push(Decision {
            service: self.service.key,
            account: self.account(state, request, candidates),
            candidates: seen.collect(),
            chosen: choice.position,
        });
        choice
    }

    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account {
        self.service.scheduler.account(state, request, candidates)
    }
}
