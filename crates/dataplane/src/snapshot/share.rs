//! Parts that a snapshot shares with an earlier version of it.

use std::sync::Arc;

/// Replaces the parts of an earlier version with those of a later one. Those that both share are not touched.
pub(super) fn share<T>(parts: &mut [Arc<T>], later: &[Arc<T>]) {
    for (part, later) in parts.iter_mut().zip(later) {
        if !Arc::ptr_eq(part, later) {
            part.clone_from(later);
        }
    }
}
