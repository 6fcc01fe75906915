//! Publishes limits of SYNs to the data plane, and reports the SYNs that they have dropped.
//!
//! Not here: the effect of a limit (`xvs_dataplane::snapshot::syn_limits`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xvs_dataplane::snapshot::syn_limits::{SynLimit, SynLimits};
use xvs_model::objects::limit::LimitReport;

use super::Control;
use super::datapath::Datapath;

impl<D: Datapath> Control<D> {
    /// Enters the limits of SYNs in the working snapshot and in the XDP program, if they have changed.
    pub(super) fn publish_syn_limits(&mut self) {
        if !std::mem::take(&mut self.syn_limits.due) {
            return;
        }
        let former = self.publication.snapshot.syn_limits.take().unwrap_or_default();
        // A service that was deleted may still be steered, for its connections.
        let there = self.state.limits().iter().filter(|(key, _)| self.state.service(key).is_some());
        let limits: SynLimits = there
            .filter_map(|(key, limit)| Some((key, limit.of_syns()?)))
            .map(|(key, rate)| {
                let limit = match former.get(key) {
                    Some(former) if former.rate == rate => former.clone(),
                    former => {
                        let dropped = former.map(|former| former.dropped.clone());
                        Arc::new(SynLimit::new(rate, dropped.unwrap_or_default()))
                    }
                };
                (*key, limit)
            })
            .collect();
        if let Err(error) = self.datapath.set_syn_limits(&limits) {
            tracing::error!("{error}; workers drop SYNs above the limits of services, which costs more");
        }
        self.publication.snapshot.syn_limits = (!limits.is_empty()).then(|| Arc::new(limits));
    }

    /// The limits with what they have dropped, without clients.
    pub(super) fn limits(&mut self) -> LimitReport {
        self.datapath.count_drops();
        let mut report = LimitReport::of(self.state.limits());
        if let Some(known) = &self.publication.snapshot.syn_limits {
            for row in &mut report.limits {
                let dropped = known.get(&row.service).map(|limit| limit.dropped.load(Ordering::Relaxed));
                row.syns_dropped = dropped.unwrap_or(0);
            }
        }
        report
    }
}
