//! Rules from etcd: this director follows the rules of its fleet, and writes a record of what it runs.
//!
//! One thread, `xvs-fleet`, asks etcd each second, and carries out `xvs fleet apply` and `confirm`. Each request to
//! etcd has a time limit, and neither the control thread nor a worker waits for one. Without etcd the last rules stay
//! in force, also after a restart: the journal has them. At the start the first answer is awaited for a short time, so
//! that a director that was away does not serve old rules.

mod connection;
mod etcd;
mod follow;
mod kept;
mod orders;
mod record;
mod round;
pub(crate) mod view;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{io, thread};

use crossbeam::channel::{Receiver, bounded};
use tokio::runtime::Builder;
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use xvs_model::report::fleet::FleetReport;

use crate::config::fleet::Fleet;
use crate::control::handle::Handle;
use crate::daemon::system_calls::{Kind, limit_thread};
use crate::fleet::kept::KeptFile;
use crate::fleet::round::Follower;
use crate::fleet::view::{FleetView, Order};

pub use crate::fleet::connection::check_files;

/// Interval of looking at etcd.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the start waits for the first look.
const FIRST: Duration = Duration::from_secs(3);
/// How long the end waits for the record to be removed.
const LAST: Duration = Duration::from_secs(1);
/// Requests of operators that may wait.
const ORDERS: usize = 4;

/// The running thread; dropping it ends it.
pub(crate) struct Following {
    stop: Option<oneshot::Sender<()>>,
    ended: Receiver<()>,
}

impl Following {
    /// Starts to follow a fleet. Returns when the rules of etcd are in force, or after a short time.
    ///
    /// # Errors
    /// The system has no room for a thread.
    pub(crate) fn start(fleet: &Fleet, directory: Option<&Path>, daemon: Handle) -> io::Result<Self> {
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
        let follower = Follower::new(fleet, KeptFile::new(directory), daemon, view);
        let (stop, stopped) = oneshot::channel();
        let ((looked, first), (end, ended)) = (bounded(1), bounded::<()>(0));
        let run = move || {
            limit_thread(Kind::Reader);
            runtime.block_on(run(follower, queue, stopped, looked));
            // A name that is being looked up would hold up the end of xvsd.
            runtime.shutdown_background();
            drop(end);
        };
        thread::Builder::new().name("xvs-fleet".to_owned()).spawn(run)?;
        let _ = first.recv_timeout(FIRST);
        Ok(Self { stop: Some(stop), ended })
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
    loop {
        let round = async {
            follower.round().await;
            // The start waits for the first one.
            let _ = looked.try_send(());
            select! {
                () = sleep(INTERVAL) => {}
                Some((request, reply)) = orders.recv() => {
                    let done = orders::carry_out(&mut follower.etcd, &request).await;
                    // The client may have given up.
                    let _ = reply.send(done);
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
