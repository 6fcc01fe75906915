//! The core of each worker, and the warning about workers that share cores.

use core_affinity::CoreId;
use xvs_ctl::placement;

/// A core for each worker, of those that this process may use.
pub(super) fn cores(workers: usize) -> Vec<Option<CoreId>> {
    placement::cores(workers, &core_affinity::get_core_ids().unwrap_or_default())
}

/// The last warning: a number of workers, and the smaller number of cores that they share.
#[derive(Default)]
pub(super) struct SharedCores(Option<(usize, usize)>);

impl SharedCores {
    /// Logs a warning if there are more workers than cores, unless it was the last one.
    pub(super) fn warn(&mut self, workers: usize) {
        let cores = core_affinity::get_core_ids().map_or(0, |cores| cores.len());
        let shared = (workers > cores).then_some((workers, cores));
        if shared.is_some() && shared != self.0 {
            let noun = if cores == 1 { "core" } else { "cores" };
            tracing::warn!(
                "{workers} workers share {cores} {noun}; set workers = {}, which has the same throughput",
                cores.max(1)
            );
        }
        self.0 = shared;
    }
}
