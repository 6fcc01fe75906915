//! The backup daemon of connection synchronization, as workers see it: a queue for each worker, the trust in its
//! messages, and the number of packets with which a received connection begins.
//!
//! Part of the snapshot while a backup daemon runs. The daemon's thread reads messages and appends to the queues; each
//! worker enters a few connections between two bursts (`sync/apply.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use xvs_proto::sync::Entry;

/// A connection as another director has sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// All but the Call-ID.
    pub entry: Entry<'static>,
    /// The Call-ID of a SIP template.
    pub call_id: Option<Box<[u8]>>,
}

impl Received {
    /// A copy of an entry of a message.
    pub fn of(entry: &Entry<'_>) -> Self {
        Self { entry: Entry { call_id: None, ..*entry }, call_id: entry.call_id.map(Box::from) }
    }
}

/// The backup daemon as workers see it.
#[derive(Debug)]
pub struct SyncBackup {
    /// The number of packets that a received connection has had (`sync_threshold`).
    pub packets: u32,
    /// The queues. Kept while the settings change.
    pub inbox: Arc<Inbox>,
}

/// How far messages are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Completely: they are signed.
    Signed,
    /// Any host may have sent them: no connection to a server that is not configured is entered, and a connection that
    /// no packet has used ends when its client begins a new one.
    Unsigned,
}

/// Received connections that are yet to be entered, and the counts of the others.
#[derive(Debug)]
pub struct Inbox {
    /// How far they are believed.
    pub trust: Trust,
    queues: Box<[ArrayQueue<Received>]>,
    /// Counters for everything that was received.
    pub counters: BackupCounters,
}

/// Counters of a backup daemon since it was started.
#[derive(Debug, Default)]
pub struct BackupCounters {
    /// Messages that were read.
    pub messages: AtomicU64,
    /// Messages that were refused as a whole.
    pub refused: AtomicU64,
    /// Malformed entries in other messages, and entries with an option or engine that is not known here.
    pub skipped: AtomicU64,
    /// Connections that were entered or refreshed.
    pub entered: AtomicU64,
    /// Connections that were not entered: their protocol or state is unknown, there was no room, or their server is not
    /// configured and the message was not signed.
    pub left_out: AtomicU64,
    /// Connections for which there was no room in the queue of a worker.
    pub lost: AtomicU64,
    /// Messages that the kernel has discarded, because they arrived faster than they were read.
    pub discarded: AtomicU64,
}

impl Inbox {
    /// Empty queues for this many workers.
    pub fn new(workers: usize, trust: Trust) -> Self {
        Self {
            trust,
            queues: (0..workers).map(|_| ArrayQueue::new(QUEUE)).collect(),
            counters: BackupCounters::default(),
        }
    }

    /// Appends a connection to the queue of the hash's worker. Returns that worker, which may have to be woken; `None`
    /// if its queue is full, and the connection is lost.
    pub fn put(&self, received: Received, hash: u64) -> Option<usize> {
        let worker = self.worker(hash);
        if self.queues.get(worker)?.push(received).is_err() {
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(worker)
    }

    /// Whether the hash's worker has many connections to enter, so that those from a whole table should wait.
    pub fn is_busy(&self, hash: u64) -> bool {
        self.queues.get(self.worker(hash)).is_some_and(|queue| queue.len() >= QUEUE / 2)
    }

    fn worker(&self, hash: u64) -> usize {
        (hash % self.queues.len().max(1) as u64) as usize
    }

    /// Takes the oldest connection from the queue of a worker.
    pub fn take(&self, worker: usize) -> Option<Received> {
        self.queues.get(worker)?.pop()
    }

    pub(crate) fn count(&self, is_entered: bool) {
        let counter = if is_entered { &self.counters.entered } else { &self.counters.left_out };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The connections that may wait for each worker.
const QUEUE: usize = 1 << 14;
