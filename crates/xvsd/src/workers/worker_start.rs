//! The start of the workers' threads, once there are ports for them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use crossbeam::channel::Sender;
use xvs_dataplane::burst::Context;
use xvs_dataplane::burst::flows::Flows;
use xvs_dataplane::burst::transmit::Transmitter;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::{Table, random_secret};
use xvs_dataplane::counters::{SharedStats, WorkerCounters};
use xvs_dataplane::egress::Unresolved;
use xvs_dataplane::forward::Identification;
use xvs_dataplane::general_path::reassembly::Reassembly;
use xvs_dataplane::general_path::reassembly::handoff::Handoff;
use xvs_dataplane::offload::Offload;
use xvs_dataplane::offload::former::Uncounted;
use xvs_dataplane::pipeline::Pipeline;
use xvs_dataplane::port::xdp::XdpPort;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::steering::hold::Hold;
use xvs_dataplane::worker::Worker;

use crate::error::{DaemonError, system};
use crate::workers::Workers;

/// The data that all workers share.
pub(crate) struct WorkerStart {
    pub(crate) clock: Arc<Clock>,
    pub(crate) hold: Arc<Hold>,
    pub(crate) unresolved: Arc<Unresolved>,
    pub(crate) published: Arc<ArcSwap<Snapshot>>,
    pub(crate) total: SharedStats,
    /// The counters of each worker.
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    pub(crate) notices: Sender<String>,
    pub(crate) offload: Option<Arc<Offload>>,
}

impl WorkerStart {
    /// Starts a worker for each port. The first worker also counts what earlier processes left uncounted.
    ///
    /// # Errors
    /// The kernel has no thread or no random numbers.
    pub(crate) fn start(
        self,
        table: &Arc<Table>,
        ports: Vec<XdpPort>,
        uncounted: Vec<Uncounted>,
        workers: &mut Workers,
    ) -> Result<(), DaemonError> {
        let mut uncounted = Some(uncounted);
        // Other hosts see Identifications, so these do not use the table's secret.
        let secret = random_secret().map_err(system("random numbers"))?;
        let handoff = Arc::new(Handoff::new(ports.len()));
        for (number, (port, counters)) in ports.into_iter().zip(self.counters).enumerate() {
            let handle = table.handle(number).expect("the table has a free handle for each worker");
            let ids = Identification::numbered(secret, 2 * number);
            let mut flows = Flows::new(number, handle, counters.clone(), self.total.clone(), ids);
            if let Some(offload) = &self.offload {
                flows.set_offload(offload.clone());
            }
            if let Some(uncounted) = uncounted.take() {
                flows.count_former(uncounted, Context::new(&self.published.load(), self.clock.now()));
            }
            let ids = Identification::numbered(secret, 2 * number + 1);
            let worker = Worker {
                pipeline: Pipeline::new(
                    flows,
                    Transmitter::new(counters, self.unresolved.clone(), ids),
                    Reassembly::new(number, handoff.clone(), *table.secret()),
                ),
                port,
                snapshot: self.published.clone(),
                clock: self.clock.clone(),
                hold: Some(self.hold.clone()),
                stop: Arc::default(),
            };
            workers.start(worker, &self.notices)?;
        }
        Ok(())
    }
}
