//! The core of each worker.

use core_affinity::CoreId;

/// A core for each worker, from the last core down, so that the first core is free for the rest of the machine.
pub(super) fn cores(workers: usize) -> Vec<Option<CoreId>> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    cores.reverse();
    if workers > cores.len() {
        tracing::warn!(
            "{workers} workers share {} cores; fewer workers would have the same throughput",
            cores.len()
        );
    }
    (0..workers).map(|worker| cores.get(worker % cores.len().max(1)).copied()).collect()
}
