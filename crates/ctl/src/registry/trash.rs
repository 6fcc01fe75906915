//! The trash: removed destinations, while connections may refer to them. A destination that is added again leaves it.

use std::collections::BTreeSet;
use std::sync::Arc;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::{
    Destination, DestinationId, DestinationLive, Encapsulation, ServiceLive, Snapshot,
};
use xvs_proto::Endpoint;
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use super::entries::{DestinationEntry, Trashed, destination};
use super::estimator::Estimator;
use super::{Registry, TRASH_TIME};

impl Registry {
    /// The entry of a destination that is added: from the trash, or new.
    pub(super) fn restore_or_create(
        &mut self,
        key: ServiceKey,
        endpoint: Endpoint,
        service: &Arc<ServiceLive>,
    ) -> DestinationEntry {
        if let Some(Trashed { mut dest, service: before, .. }) = self.trash.remove(&(key, endpoint)) {
            if !Arc::ptr_eq(&before, service) {
                dest.estimator = Estimator::from(dest.live.stats.sum());
                service.add(&dest.live);
            }
            return dest;
        }
        let id = self.free_ids.pop().unwrap_or_else(|| {
            self.next_id += 1;
            DestinationId(self.next_id - 1)
        });
        let live = Arc::new(DestinationLive::new(self.workers));
        service.add(&live);
        DestinationEntry {
            endpoint,
            method: ForwardingMethod::DirectRouting,
            methods: BTreeSet::new(),
            weight: Weight(0),
            disabled: false,
            encapsulation: Encapsulation::Ip,
            path_mtu: self.path_mtu(endpoint.addr),
            last_weight: Weight(0),
            report: None,
            id,
            live,
            estimator: Estimator::default(),
        }
    }

    pub(super) fn move_to_trash(
        &mut self,
        key: ServiceKey,
        mut dest: DestinationEntry,
        service: &Arc<ServiceLive>,
        snapshot: &mut Snapshot,
        now: Millis,
    ) {
        dest.report = None;
        dest.live.answered();
        let gone = Destination { available: false, ..destination(key, &dest, service, snapshot) };
        snapshot.destinations.set(dest.id, Some(gone));
        // The setting now decides, not that when the connections end. Source: ipvs-behaviour, section 3.5.
        snapshot.flushes += u64::from(snapshot.settings.expire_nodest_conn);
        let trashed = Trashed { dest, service: service.clone(), since: now };
        self.trash.insert((key, trashed.dest.endpoint), trashed);
    }

    /// Frees removed destinations that nothing has referred to for two minutes. Returns whether the trash had any.
    pub fn empty_trash(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        self.forget_before(now);
        let (any, kept) = (!self.trash.is_empty(), &mut self.kept);
        self.trash.retain(|_, trashed| {
            if trashed.dest.has_connections() || trashed.dest.live.templates() > 0 {
                trashed.since = now;
            }
            let keep = trashed.since.until(now) < TRASH_TIME;
            if !keep {
                snapshot.destinations.set(trashed.dest.id, None);
                self.free_ids.push(trashed.dest.id);
                kept.iter_mut().for_each(|kept| kept.clear_destination(trashed.dest.id));
            }
            keep
        });
        self.path_mtus.retain(|_, path_mtu| path_mtu.strong_count() > 0);
        any
    }
}
