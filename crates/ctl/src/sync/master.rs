//! The thread of a master daemon: it sends what workers announce, by UDP multicast.
//!
//! It looks for announcements a hundred times a second while the daemon runs; nothing waits for it. A message for
//! which the socket has no room waits; one that the kernel refuses is counted and lost, as one on the wire would be.
//! At its end the thread sends what is left. Not here: the messages (`messages.rs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::Table;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::{Announcements, MasterCounters};
use xvs_model::config::sync_daemon::SyncDaemon;

use super::messages::{Messages, Sent};
use super::sockets;
use super::thread::DaemonThread;
use crate::control::datapath::SyncSockets;

/// Opens the sockets, and starts the thread.
///
/// # Errors
/// A sentence that names what the kernel refuses.
pub(crate) fn start(
    daemon: &SyncDaemon,
    wanted: SyncSockets,
    table: &Arc<Table>,
    clock: Clock,
    published: Arc<ArcSwap<Snapshot>>,
) -> Result<(DaemonThread, Arc<Announcements>), String> {
    let sockets = sockets::to_group(daemon, wanted)?;
    let reader = table.reader().ok_or("another master daemon is still ending; try again")?;
    let announcements = Arc::new(Announcements::new(table.entries(), table.config().workers));
    let mut messages = Messages::new(daemon, wanted.ports, announcements.clone(), reader, clock.now());
    let run = {
        let announcements = announcements.clone();
        move |stop: &AtomicBool| {
            let MasterCounters { messages: sent, failed, .. } = &announcements.counters;
            let send = |port: u16, message: &[u8]| {
                let counter = match sockets[usize::from(port)].send(message) {
                    Ok(_) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Sent::Later,
                    Err(_) => failed,
                };
                counter.fetch_add(1, Ordering::Relaxed);
                Sent::Done
            };
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(INTERVAL);
                messages.run(&published.load(), clock.now(), send);
            }
            messages.finish(&published.load(), clock.now(), send);
        }
    };
    Ok((DaemonThread::start("xvs-sync", run)?, announcements))
}

/// How often the thread looks for announcements and for messages that are due.
const INTERVAL: Duration = Duration::from_millis(10);
