//! The core of each worker.

use core_affinity::CoreId;
use xvs_ctl::placement;

/// A core for each worker, of those that this process may use.
pub(super) fn cores(workers: usize) -> Vec<Option<CoreId>> {
    let available = core_affinity::get_core_ids().unwrap_or_default();
    if workers > available.len() {
        tracing::warn!(
            "{workers} workers share {} cores; fewer workers would have the same throughput",
            available.len()
        );
    }
    placement::cores(workers, &available)
}
