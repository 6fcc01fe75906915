//! The thread of a backup daemon: it reads messages of another director, and passes their connections to the workers.
//!
//! It is awake only while messages come. What it cannot use is counted, by reason; nothing that a message contains ends
//! it. Not here: what workers make of a connection (`xvs_dataplane::sync::apply`).

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xvs_dataplane::conn::Table;
use xvs_dataplane::port::xdp::Waker;
use xvs_dataplane::snapshot::sync_backup::{BackupCounters, Inbox, Received};
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_proto::sync::{Entry, Message, MessageError};
use xvs_proto::{FlowKey, HashSecret};

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
    table: &Table,
    wakers: Vec<Waker>,
) -> Result<(DaemonThread, Arc<Inbox>), String> {
    let sockets = sockets::of_group(daemon, wanted)?;
    let inbox = Arc::new(Inbox::new(table.config().workers));
    let receiver = Receiver { daemon: daemon.clone(), inbox: inbox.clone(), secret: *table.secret() };
    let run = move |stop: &AtomicBool| run(&sockets, &receiver, &wakers, stop);
    Ok((DaemonThread::start("xvs-sync-backup", run)?, inbox))
}

fn run(sockets: &[UdpSocket], receiver: &Receiver, wakers: &[Waker], stop: &AtomicBool) {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut woken = vec![false; wakers.len()];
    while !stop.load(Ordering::Relaxed) {
        let mut waiting: Vec<_> =
            sockets.iter().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN)).collect();
        let _ = poll(&mut waiting, Some(&TURN));
        for socket in sockets {
            for _ in 0..AT_A_TIME {
                let Ok(len) = socket.recv(&mut bytes) else { break };
                let _ = receiver.receive(&bytes[..len], |worker| woken[worker] = true);
            }
        }
        for (waker, woken) in wakers.iter().zip(&mut woken).filter(|(_, woken)| **woken) {
            waker.wake();
            *woken = false;
        }
    }
}

/// Reads messages for the workers.
pub(crate) struct Receiver {
    /// The daemon.
    pub(crate) daemon: SyncDaemon,
    /// The workers' queues.
    pub(crate) inbox: Arc<Inbox>,
    /// By which connections are assigned to workers.
    pub(crate) secret: HashSecret,
}

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it is shorter than a header")]
    TooShort,
    #[error("its header gives another length")]
    Length,
    #[error("it is longer than the daemon's --sync-maxlen")]
    TooLong,
    #[error("it is of sync id {0}")]
    SyncId(u8),
}

impl Receiver {
    /// Passes the connections of a message to the workers, and the number of each such worker to `wake`.
    ///
    /// # Errors
    /// The message is refused as a whole.
    pub(crate) fn receive(&self, bytes: &[u8], mut wake: impl FnMut(usize)) -> Result<(), Refused> {
        let BackupCounters { messages, refused, skipped, .. } = &self.inbox.counters;
        let count = |counter: &AtomicU64| _ = counter.fetch_add(1, Ordering::Relaxed);
        // Other clusters may share the group.
        let is_foreign = |error: &Refused| matches!(error, Refused::SyncId(_));
        let message = self.read(bytes).inspect_err(|error| {
            if !is_foreign(error) {
                count(refused);
            }
        })?;
        count(messages);
        for entry in message.entries() {
            let Ok(entry) = entry else {
                count(skipped);
                continue;
            };
            let Entry { protocol, client, virtual_endpoint, .. } = entry;
            let hash = FlowKey { protocol, source: client, dest: virtual_endpoint }.hash(&self.secret);
            self.inbox.put(Received::of(&entry), hash).into_iter().for_each(&mut wake);
        }
        Ok(())
    }

    fn read<'a>(&self, bytes: &'a [u8]) -> Result<Message<'a>, Refused> {
        // The default is no limit: the kernel's depends on the MTU.
        let limit = self.daemon.max_len_bytes.max(SHORTEST_MAX);
        if limit < DEFAULT_MAX && bytes.len() > usize::from(limit) {
            return Err(Refused::TooLong);
        }
        let message = Message::read(bytes).map_err(|error| match error {
            MessageError::TooShort => Refused::TooShort,
            MessageError::Length => Refused::Length,
        })?;
        match self.daemon.sync_id {
            own if own != 0 && own != message.sync_id => Err(Refused::SyncId(message.sync_id)),
            _ => Ok(message),
        }
    }
}

/// The longest datagram.
const MESSAGE_MAX: usize = 1 << 16;
/// The default of `--sync-maxlen`, that of IPv6.
const DEFAULT_MAX: u16 = 1452;
/// The least limit of a backup daemon, in bytes.
const SHORTEST_MAX: u16 = 1024;
/// How long the thread waits before it looks whether it is to stop.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The messages that are read before workers are woken.
const AT_A_TIME: usize = 64;
