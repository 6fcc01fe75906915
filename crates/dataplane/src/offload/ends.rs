//! The records that a configuration change ends, because data on which they depend has changed.
//!
//! Runs on the control thread, once for each publication. Cost: a comparison for each page of destinations that has
//! changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::shared::Offload;
use crate::snapshot::{DestinationId, Snapshot};

/// The records that end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    /// All records.
    pub all: bool,
    /// The records of these destinations.
    pub of: BTreeSet<DestinationId>,
}

impl Ends {
    /// Adds the records that end when `after` replaces `before`.
    pub fn add(&mut self, before: &Snapshot, after: &Snapshot) {
        let is_same = (Arc::ptr_eq(&before.egress, &after.egress)
            || after.egress.keeps_paths_of(&before.egress))
            && Arc::ptr_eq(&before.marks, &after.marks)
            && Arc::ptr_eq(&before.captures, &after.captures)
            && before.sync_master.is_some() == after.sync_master.is_some()
            && before.settings == after.settings
            && before.lists.as_ref().map(Arc::as_ptr) == after.lists.as_ref().map(Arc::as_ptr);
        self.all |= !is_same;
        self.of.extend(after.destinations.rerouted_since(&before.destinations));
    }
}

impl Offload {
    /// Ends these records. Every worker already has the change. Only the control thread calls this.
    pub fn end(&self, ends: &Ends) {
        if ends.all {
            self.end_all();
        }
        ends.of.iter().for_each(|destination| self.end_of(*destination));
    }
}
