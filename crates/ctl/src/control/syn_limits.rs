//! Publishes limits of SYNs to the data plane, and reports all limits with dropped SYNs and limited clients.
//!
//! Not here: the effect of a limit (`xvs_dataplane::snapshot::syn_limits`).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xvs_dataplane::snapshot::clients::Client;
use xvs_dataplane::snapshot::syn_limits::{SynLimit, SynLimits};
use xvs_model::objects::limit::{ClientRow, LimitReport};

use super::Control;
use super::datapath::Datapath;

impl<D: Datapath> Control<D> {
    /// Enters the limits of SYNs in the working snapshot and in the XDP program, if they have changed.
    pub(super) fn publish_syn_limits(&mut self) {
        if !std::mem::take(&mut self.syn_limits.due) {
            return;
        }
        let former = self.publication.snapshot.syn_limits.take().unwrap_or_default();
        let limits: SynLimits = self
            .state
            .limits()
            .iter()
            // A deleted service may still be steered, for its connections.
            .filter(|(key, _)| self.state.service(key).is_some())
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

    /// The limits with the numbers of dropped SYNs, and at most this many of the clients that limits affect most.
    pub(super) fn limits(&mut self, clients_max: usize) -> LimitReport {
        self.datapath.count_drops();
        let snapshot = &self.publication.snapshot;
        let mut report = LimitReport::of(self.state.limits());
        report.unlimited = snapshot.clients.unlimited() as u64;
        if let Some(limits) = &snapshot.syn_limits {
            for row in &mut report.limits {
                row.syns_dropped =
                    limits.get(&row.service).map_or(0, |limit| limit.dropped.load(Ordering::Relaxed));
            }
        }
        let services: HashMap<_, _> =
            self.state.limits().keys().map(|key| (snapshot.clients.hash_of(*key), *key)).collect();
        for Client { network: client, service, connections, refused } in snapshot.clients.iter() {
            if let Some(&service) = services.get(&service) {
                report.clients.push(ClientRow { client, service, connections, refused });
            }
        }
        report.clients.sort_by_key(|row| Reverse((row.refused, row.connections)));
        report.clients.truncate(clients_max);
        report
    }
}
