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
        Self { snapshot, published, held: Vec::new(), late: None, ends: Ends::default() }
    }

    /// Publishes the working copy under the next number.
    pub(super) fn publish(&mut self) {
        self.snapshot.epoch += 1;
        let before = self.published.swap(Arc::new(self.snapshot.clone()));
        self.ends.add(&before, &self.snapshot);
        self.held.push(before);
    }

    /// Notes that every worker uses the published snapshot, and that flows have ended.
    pub(super) fn all_current(&mut self) {
        self.held.clear();
        self.late = None;
        self.ends = Ends::default();
    }
}
