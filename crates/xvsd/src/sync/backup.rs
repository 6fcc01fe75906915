//! The main thread of a backup daemon, which receives the messages of other directors.
//!
//! The thread is awake only while messages arrive. `sync/receiver.rs` in `ctl` reads the messages.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xvs_ctl::control::datapath::SyncSockets;
use xvs_ctl::sync::receiver::Receiver;
use xvs_dataplane::port::xdp::Waker;
use xvs_dataplane::snapshot::sync_backup::{BackupCounters, Inbox, Trust};
use xvs_model::config::sync_daemon::SyncDaemon;

use super::error::SyncError;
use super::fetch_table::TableFetcher;
use super::key::SyncKey;
use super::master::TableFacts;
use super::signature::Verifier;
use super::sockets;
use super::thread::Daemon;
use crate::date::date_nanos;
use crate::sync_peers::Peers;

/// Opens the sockets, and starts the threads: one that reads messages and, with a key, one that fetches tables.
pub(crate) fn start(
    daemon: &SyncDaemon,
    wanted: SyncSockets,
    facts: &TableFacts,
    wakers: Vec<Waker>,
    key: Option<SyncKey>,
    peers: &Arc<Peers>,
) -> Result<(Daemon, Arc<Inbox>), SyncError> {
    let sockets = sockets::receiving(daemon, wanted)?;
    peers.expect(&daemon.peers, daemon.port, Instant::now());
    let trust = if key.is_some() { Trust::Signed } else { Trust::Unsigned };
    let inbox = Arc::new(Inbox::new(facts.workers, trust));
    let receiver = Arc::new(Receiver { daemon: daemon.clone(), inbox: inbox.clone(), secret: facts.secret });
    let mut threads = Daemon::default();
    if let Some(key) = key.clone() {
        let fetcher =
            TableFetcher { receiver: receiver.clone(), key, peers: peers.clone(), wakers: wakers.clone() };
        threads.start("xvs-sync-fetch", move |stop| fetcher.run(stop))?;
    }
    let reader = MessageReader { sockets, receiver, wakers, peers: peers.clone(), key };
    threads.start("xvs-sync-backup", move |stop| reader.run(stop))?;
    Ok((threads, inbox))
}

/// The data for reading messages.
struct MessageReader {
    sockets: Vec<UdpSocket>,
    receiver: Arc<Receiver>,
    wakers: Vec<Waker>,
    peers: Arc<Peers>,
    key: Option<SyncKey>,
}

impl MessageReader {
    fn run(&self, stop: &AtomicBool) {
        let Self { sockets, receiver, wakers, peers, key } = self;
        let mut verifier = key.as_ref().map(|key| Verifier::new(key, date_nanos()));
        let mut bytes = vec![0; MESSAGE_MAX];
        let mut woken = vec![false; wakers.len()];
        let mut losses = Losses::default();
        while !stop.load(Ordering::Relaxed) {
            let mut waiting: Vec<_> = sockets
                .iter()
                .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
                .collect();
            let _ = poll(&mut waiting, Some(&TURN));
            for (port, socket) in (receiver.daemon.port..).zip(sockets) {
                for _ in 0..AT_A_TIME {
                    let Ok((len, mut from)) = socket.recv_from(&mut bytes) else { break };
                    let received = receiver.admit(from.ip()).and_then(|()| {
                        receiver.receive(
                            &bytes[..len],
                            |message| match &mut verifier {
                                Some(verifier) => verifier.verify(message, from.ip(), port, date_nanos()),
                                None => Ok(()),
                            },
                            |worker| woken[worker] = true,
                        )
                    });
                    // The port of its table. A link-local address keeps its interface.
                    from.set_port(receiver.daemon.port);
                    peers.heard(from, key.is_some(), received, Instant::now());
                }
            }
            if losses.have_grown(sockets, &receiver.inbox.counters) {
                peers.lost();
            }
            for (waker, woken) in wakers.iter().zip(&mut woken).filter(|(_, woken)| **woken) {
                waker.wake();
                *woken = false;
            }
        }
    }
}

/// The losses here: messages that the kernel has discarded, and connections for which no worker had room.
#[derive(Default)]
struct Losses {
    looked: Option<Instant>,
    messages: u64,
    connections: u64,
}

impl Losses {
    /// Whether there are more than before. Checks once a second.
    fn have_grown(&mut self, sockets: &[UdpSocket], counters: &BackupCounters) -> bool {
        let now = Instant::now();
        if self.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
            return false;
        }
        self.looked = Some(now);
        let messages = sockets.iter().map(sockets::discarded).sum::<io::Result<_>>().unwrap_or(self.messages);
        let connections = counters.lost.load(Ordering::Relaxed);
        let has_grown = messages > self.messages || connections > self.connections;
        counters.discarded.store(messages, Ordering::Relaxed);
        (self.messages, self.connections) = (messages, connections);
        has_grown
    }
}

/// The longest datagram.
const MESSAGE_MAX: usize = 1 << 16;
/// The time that the thread waits before it checks whether to stop.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// The interval of checking the losses.
const LOOK: Duration = Duration::from_secs(1);
/// The messages that are read before workers are woken.
const AT_A_TIME: usize = 64;
