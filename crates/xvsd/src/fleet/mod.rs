//! Rules from etcd: this director follows the rules of its fleet, and writes a record of the rules that it runs.
//!
//! One thread, `xvs-fleet`, queries etcd each second, and carries out `xvs fleet apply` and `confirm`. Each request to
//! etcd has a time limit, and neither the control thread nor a worker waits for one. Without etcd the last rules stay
//! in force, also after a restart: the journal contains them. The start waits a short time for the first response,
//! because the journal of a director that was away has old rules.

mod answer;
mod connection;
mod etcd;
mod follow;
mod kept;
mod named_files;
mod orders;
mod record;
mod round;
mod settling;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use tokio::runtime::Builder;
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use xvs_ctl::config::fleet::Fleet;
use xvs_host::state_directory::Others;
use xvs_model::report::fleet::FleetReport;

use crate::fleet::etcd::PATIENCE;
use crate::fleet::kept::KeptFile;
use crate::fleet::round::Follower;
use crate::fleet_view::{FleetView, Order};
use crate::handle::Handle;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::threads::spawn_stoppable;

pub use crate::fleet::connection::check_files;

/// Interval of querying etcd.
const INTERVAL: Duration = Duration::from_secs(1);
/// The time that the start waits for the first response.
const FIRST: Duration = Duration::from_secs(3);
/// The time limit of a request during that wait, so that each of three members is tried.
const FIRST_PATIENCE: Duration = Duration::from_millis(700);
/// The interval during that wait, until etcd responds.
const FIRST_INTERVAL: Duration = Duration::from_millis(100);
/// The time that the end waits until the record is removed.
const LAST: Duration = Duration::from_secs(1);
/// The maximum number of waiting requests of operators.
const ORDERS: usize = 4;

/// The running thread; dropping it ends it.
pub(crate) struct Following {
    has_journal: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    ended: Receiver<()>,
}

impl Following {
    /// Starts to follow a fleet. Returns when the rules of etcd are in force, or after a short time. `kept`: the state
    /// directory, and whether the rules in it are in force. In a take-over nothing is written there before
    /// [`Self::begin_journal`].
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(crate) fn start(
        fleet: &Fleet,
        kept: (Option<&Path>, bool),
        others: Others,
        daemon: Handle,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (orders, queue) = mpsc::channel(ORDERS);
        let report = FleetReport {
            fleet: fleet.name.clone().unwrap_or_default(),
            director: fleet.director(),
            ..FleetReport::default()
        };
        let view = Arc::new(FleetView::new(report, orders));
        // A process has one daemon, so the cell is still empty.
        let _ = daemon.shared().fleet.set(view.clone());
        let has_journal = Arc::new(AtomicBool::new(others == Others::Ended));
        let file = KeptFile::new(kept.0, has_journal.clone());
        let follower = Follower::new(fleet, (file, kept.1), daemon, view);
        let (stop, stopped) = oneshot::channel();
        let (looked, first) = bounded(1);
        let (end, ended) = bounded::<()>(0);
        spawn_stoppable("xvs-fleet", move || {
            limit_thread(Kind::Reader);
            runtime.block_on(run(follower, queue, stopped, looked));
            // The resolution of a name would otherwise delay the end of xvsd.
            runtime.shutdown_background();
            drop(end);
        })?;
        let _ = first.recv_timeout(FIRST);
        Ok(Self { has_journal, stop: Some(stop), ended })
    }

    /// From now on this process keeps the journal, with the rules that are in force.
    pub(crate) fn begin_journal(&self) {
        self.has_journal.store(true, Ordering::Relaxed);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.ended.recv_timeout(2 * LAST);
    }
}

async fn run(
    mut follower: Follower,
    mut orders: mpsc::Receiver<Order>,
    mut stopped: oneshot::Receiver<()>,
    looked: crossbeam::channel::Sender<()>,
) {
    let began = Instant::now();
    let mut has_looked = false;
    loop {
        let round = async {
            let is_first = !has_looked && began.elapsed() < FIRST;
            follower.etcd.patience = if is_first { FIRST_PATIENCE } else { PATIENCE };
            if follower.round().await {
                has_looked = true;
                // The start waits for the first response.
                let _ = looked.try_send(());
            }
            let interval = if is_first && !has_looked { FIRST_INTERVAL } else { INTERVAL };
            select! {
                () = sleep(interval) => {}
                Some(Order { request, until, reply }) = orders.recv() => {
                    // The client may have given up, and may since have given another order.
                    if Instant::now() < until {
                        let _ = reply.send(orders::carry_out(&mut follower.etcd, &request).await);
                    }
                }
            }
        };
        select! {
            () = round => {}
            _ = &mut stopped => break,
        }
    }
    let _ = timeout(LAST, follower.end()).await;
}
