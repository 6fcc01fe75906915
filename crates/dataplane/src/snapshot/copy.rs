//! A copy of all configuration that shares nothing which packets change.
//!
//! Made when an operator asks what would become of a packet (`explain.rs`). Counts, thresholds' answers and schedulers'
//! places are those of the moment, and go on by themselves; what schedulers remember is read where it is and never
//! written. The copy keeps account of each choice that is made by it. Cost: an allocation or two for each destination.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use xvs_proto::Endpoint;
use xvs_sched::scheduler::{Candidates, Choice, Load, Request, Scheduler, State};
use xvs_sched::{Account, ForwardingMethod, ServiceKey, Weight};

use super::{Destination, Destinations, Member, Service, ServiceLive, Services, Snapshot};

/// A choice that was made by a copy.
#[derive(Debug, Clone)]
pub struct Decision {
    /// For which service.
    pub service: ServiceKey,
    /// What it went by.
    pub account: Account,
    /// The candidates in IPVS's order, as they were.
    pub candidates: Vec<Candidate>,
    /// The chosen one's place among them.
    pub chosen: Option<usize>,
}

/// A destination at the moment of a choice.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Which.
    pub endpoint: Endpoint,
    /// How packets reach it.
    pub method: ForwardingMethod,
    /// Its weight in force.
    pub weight: Weight,
    /// What it carried.
    pub load: Load,
    /// Whether it was above its upper threshold.
    pub overloaded: bool,
    /// That threshold, in connections; 0: none.
    pub upper_threshold: u32,
}

impl Snapshot {
    /// The copy, and where its choices are decisions.
    pub(crate) fn separate_copy(&self) -> (Self, Arc<Mutex<Vec<Decision>>>) {
        let decisions = Arc::default();
        let stats = Arc::new(ServiceLive::new(1));
        let destinations = self.destinations.separate_copy(&stats);
        let services = self.services.separate_copy(&destinations, &stats, &decisions);
        let copy = Self {
            epoch: self.epoch,
            services,
            destinations,
            egress: self.egress.clone(),
            nat_destinations: self.nat_destinations.clone(),
            marks: self.marks.clone(),
            call_ids: Arc::new(self.call_ids.separate_copy()),
            locals: self.locals.clone(),
            // Nothing comes in that anybody should see.
            captures: Arc::default(),
            settings: self.settings,
        };
        (copy, decisions)
    }
}

impl Destinations {
    fn separate_copy(&self, stats: &Arc<ServiceLive>) -> Self {
        let one = |destination: &Destination| Destination {
            live: Arc::new(destination.live.separate_copy()),
            path_mtu: Arc::new(destination.path_mtu.separate_copy()),
            service: stats.clone(),
            ..destination.clone()
        };
        self.map(one)
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
                members: service.members.iter().map(|member| member.separate_copy(destinations)).collect(),
                scheduler: Box::new(RecordingScheduler {
                    service: service.clone(),
                    decisions: decisions.clone(),
                }),
                one_packet: service.one_packet,
                client_address: service.client_address,
                persistence: service.persistence,
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
        Self { live, ..self.clone() }
    }
}

/// The scheduler of a service, whose choices are decisions and nowhere remembered.
struct RecordingScheduler {
    service: Arc<Service>,
    decisions: Arc<Mutex<Vec<Decision>>>,
}

impl Scheduler for RecordingScheduler {
    fn pick(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Choice {
        let choice = self.service.scheduler.pick(state, request, candidates);
        let candidate = |(position, member): (usize, &Member)| Candidate {
            endpoint: member.endpoint,
            method: member.method,
            weight: candidates.weight(position),
            load: candidates.load(position),
            overloaded: candidates.overloaded(position),
            upper_threshold: member.live.upper_threshold(),
        };
        let decision = Decision {
            service: self.service.key,
            account: self.account(state, request, candidates),
            candidates: self.service.members.iter().enumerate().map(candidate).collect(),
            chosen: choice.position,
        };
        self.decisions.lock().unwrap_or_else(PoisonError::into_inner).push(decision);
        choice
    }

    fn account(&self, state: State, request: &Request, candidates: &dyn Candidates) -> Account {
        self.service.scheduler.account(state, request, candidates)
    }
}
