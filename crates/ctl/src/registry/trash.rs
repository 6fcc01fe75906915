//! The trash: removed destinations, while connections may refer to them. A destination that is added again leaves it.

use std::sync::Arc;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::snapshot::{Destination, DestinationId, DestinationLive, ServiceLive, Snapshot};
use xvs_proto::Endpoint;
use xvs_sched::ServiceKey;

use super::Registry;
use super::entries::{DestinationEntry, Trashed, destination};

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
                // From the last sample before the removal, as in IPVS.
                dest.estimator.zero();
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
        DestinationEntry::new(endpoint, self.path_mtu(endpoint.addr), id, live)
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
        dest.took_connections = false;
        dest.slow_start = None;
        dest.live.answered();
        dest.live.neighbour_answered();
        let gone = Destination { available: false, ..destination(key, &dest, service, snapshot) };
        snapshot.destinations.set(dest.id, Some(gone));
        // The current setting decides, not the setting when the connections end. Source: ipvs-behaviour, section 3.5.
        snapshot.removals += u64::from(snapshot.settings.expire_nodest_conn);
        self.discard(key, dest, service.clone(), now);
    }

    /// Puts a destination into the trash. The first one begins the scans.
    pub(super) fn discard(
        &mut self,
        key: ServiceKey,
        dest: DestinationEntry,
        service: Arc<ServiceLive>,
        now: Millis,
    ) {
        if self.trash.is_empty() {
            self.trash_scan = Some(now + SCAN_INTERVAL);
        }
        self.trash.insert((key, dest.endpoint), Trashed { dest, service, idle_since: None });
    }

    /// Scans the trash: frees destinations for which an earlier scan, two minutes ago or more, found no connection.
    /// Returns whether there were any. Source: ipvs-behaviour, section 3.5.
    pub fn scan_trash(&mut self, snapshot: &mut Snapshot, now: Millis) -> bool {
        let before = self.trash.len();
        self.trash.retain(|_, Trashed { dest, idle_since, .. }| {
            let is_idle = !dest.has_connections() && dest.live.templates() == 0;
            let is_kept = !is_idle || idle_since.get_or_insert(now).until(now) < IDLE_TIME;
            if !is_kept {
                snapshot.destinations.set(dest.id, None);
                self.free_ids.push(dest.id);
                self.kept.iter_mut().for_each(|kept| kept.clear_destination(dest.id));
            }
            is_kept
        });
        self.trash_scan = (!self.trash.is_empty()).then_some(now + SCAN_INTERVAL);
        self.trash.len() < before
    }
}

/// Interval of the scans of the trash.
const SCAN_INTERVAL: Duration = Duration::from_secs(60);
/// The time that a destination without connections stays in the trash.
const IDLE_TIME: Duration = Duration::from_secs(120);
