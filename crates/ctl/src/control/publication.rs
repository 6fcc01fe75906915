//! The snapshot that workers act on, and those before it that a worker may still hold.

use std::sync::Arc;

use arc_swap::ArcSwap;
use xvs_dataplane::snapshot::{Settings, Snapshot};

/// The published snapshot and the one that is made from it.
pub(super) struct Publication {
    /// What the next publication starts from; equal to the published one between changes.
    pub(super) snapshot: Snapshot,
    published: Arc<ArcSwap<Snapshot>>,
    /// Snapshots that a worker may still hold, because it did not take up the next one in time. Kept so that no worker is
    /// the last to hold one and has to free it.
    held: Vec<Arc<Snapshot>>,
    /// The worker that has not taken up the last change in time.
    late: Option<String>,
}

impl Publication {
    /// An empty snapshot with these settings, published.
    pub(super) fn new(settings: Settings) -> Self {
        let snapshot = Snapshot { settings, ..Snapshot::empty() };
        let published = Arc::new(ArcSwap::from_pointee(snapshot.clone()));
        Self { snapshot, published, held: Vec::new(), late: None }
    }

    /// The pointer that workers load.
    pub(super) fn pointer(&self) -> Arc<ArcSwap<Snapshot>> {
        self.published.clone()
    }

    /// Makes the working snapshot, with the next number, the one that workers act on.
    pub(super) fn publish(&mut self) {
        self.snapshot.epoch += 1;
        self.held.push(self.published.swap(Arc::new(self.snapshot.clone())));
    }

    /// Whether a worker may hold a snapshot from before.
    pub(super) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Every worker acts on the published snapshot.
    pub(super) fn all_current(&mut self) {
        self.held.clear();
        self.late = None;
    }

    /// This worker has not taken up the last change in time.
    pub(super) fn set_late(&mut self, worker: String) {
        self.late = Some(worker);
    }

    /// The worker that has not taken up the last change in time.
    pub(super) fn late(&self) -> Option<&str> {
        self.late.as_deref()
    }
}
