//! The published snapshot, and earlier ones that a worker may still hold.

use std::sync::Arc;

use arc_swap::ArcSwap;
use xvs_dataplane::offload::Ends;
use xvs_dataplane::snapshot::{Settings, Snapshot};

/// The published snapshot, and the working copy for the next one.
pub(super) struct Publication {
    /// The working copy; between changes equal to the published snapshot.
    pub(super) snapshot: Snapshot,
    /// The pointer that workers load.
    pub(super) published: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold, because it has not loaded the next one in time. They are kept so that
    /// no worker drops the last reference and has to free the memory.
    pub(super) held: Vec<Arc<Snapshot>>,
    /// A former snapshot that no worker holds, equal to the working copy at the last publication. The next one is
    /// made of it, so that the cost of a change does not grow with the number of services.
    spare: Option<Snapshot>,
    /// The worker that has not taken up the last change in time.
    pub(super) late: Option<String>,
    /// The offloaded flows that end when every worker uses the published snapshot.
    pub(super) ends: Ends,
}

impl Publication {
    /// Publishes an empty snapshot with these settings.
    pub(super) fn new(settings: Settings) -> Self {
        let snapshot = Snapshot { settings, ..Snapshot::default() };
        let published = Arc::new(ArcSwap::from_pointee(snapshot.clone()));
        Self { snapshot, published, held: Vec::new(), spare: None, late: None, ends: Ends::default() }
    }

    /// Publishes the working copy under the next number.
    pub(super) fn publish(&mut self) {
        self.snapshot.epoch += 1;
        let next = self.spare.take().map(|mut spare| {
            spare.catch_up(&self.snapshot);
            spare
        });
        let before = self.published.swap(Arc::new(next.unwrap_or_else(|| self.snapshot.clone())));
        self.ends.add(&before, &self.snapshot);
        self.held.push(before);
    }

    /// Notes that every worker uses the published snapshot, and that flows have ended.
    pub(super) fn all_current(&mut self) {
        // A listing may still hold one.
        if let Some(mut former) = self.held.drain(..).filter_map(Arc::into_inner).next_back() {
            // At once, because it would keep what was deleted.
            former.catch_up(&self.snapshot);
            self.spare = Some(former);
        }
        self.late = None;
        self.ends = Ends::default();
    }
}

#[cfg(test)]
mod tests {
    use xvs_dataplane::clock::Millis;
    use xvs_dataplane::snapshot::DestinationId;
    use xvs_model::config::command::Command;
    use xvs_model::objects::Object;
    use xvs_model::protocol::question::ControlRequest;
    use xvs_proto::Endpoint;

    use crate::control::Control;
    use crate::control::tests::{Machine, add, add_service, control, service};

    use super::*;

    /// The endpoints of available destinations, and the number of services.
    fn content(snapshot: &Snapshot) -> (Vec<Endpoint>, usize) {
        let numbered = (0..1000).filter_map(|id| snapshot.destinations.find(DestinationId(id)));
        let available = numbered.filter(|destination| destination.available);
        (available.map(|destination| destination.endpoint).collect(), snapshot.services.iter().count())
    }

    /// Changes the configuration. The published content, which is that of the working copy.
    fn changed(control: &mut Control<Machine>, command: Command) -> (Vec<Endpoint>, usize) {
        control.handle(&ControlRequest::Change(command), Millis(0)).unwrap();
        let published = content(&control.published().load());
        assert_eq!(published, content(&control.publication.snapshot));
        published
    }

    #[test]
    fn a_snapshot_made_of_a_former_one_is_complete_and_one_that_is_still_read_stays_as_it_was() {
        let mut control = control();
        changed(&mut control, add_service());
        // More than a page of destinations.
        for last in 1..=200 {
            changed(&mut control, add([10, 0, 0, last]));
            assert!(control.publication.spare.is_some());
        }
        let listed = control.published().load_full();
        let before = content(&listed);
        assert_eq!((before.0.len(), before.1), (200, 1));
        let endpoint = Endpoint::new([10, 0, 0, 1], 80);
        changed(&mut control, Command::Delete(Object::Destination { service: service(), endpoint }));
        assert!(control.publication.spare.is_none(), "the listing has it");
        let after = changed(&mut control, add([10, 0, 1, 1]));
        assert!(!after.0.contains(&endpoint) && after.0.len() == 200);
        assert!(control.publication.spare.is_some());
        assert_eq!(changed(&mut control, Command::Flush), (Vec::new(), 0));
        assert_eq!(content(&listed), before);
    }
}
