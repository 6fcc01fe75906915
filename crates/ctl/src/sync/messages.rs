//! The messages of a master daemon, without sockets and clock: the lab sends the same messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::TableReader;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::sync::collect::collect;
use xvs_dataplane::sync::outbox::Outbox;
use xvs_model::config::sync_daemon::SyncDaemon;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was sent, or never will be.
    Done,
    /// There is no room for it now.
    Later,
}

/// What workers have announced, and the messages about it: an outbox for each port.
pub struct Messages {
    announcements: Arc<Announcements>,
    reader: TableReader,
    outboxes: Vec<Outbox>,
}

impl Messages {
    /// For a daemon with this number of ports, which is a power of two.
    pub fn new(
        daemon: &SyncDaemon,
        ports: u16,
        announcements: Arc<Announcements>,
        reader: TableReader,
        now: Millis,
    ) -> Self {
        let ports = 0..ports.max(1);
        let outboxes = ports.map(|_| Outbox::new(daemon.sync_id, daemon.max_len_bytes.into(), now));
        Self { announcements, reader, outboxes: outboxes.collect() }
    }

    /// Collects announcements, and passes each due message to `send`, with the number of its port. If `send` returns
    /// [`Sent::Later`], the next call passes the message again.
    pub fn run(&mut self, snapshot: &Snapshot, now: Millis, mut send: impl FnMut(u16, &[u8]) -> Sent) {
        self.collect(snapshot, now);
        for (port, outbox) in (0..).zip(&mut self.outboxes) {
            let mut due = outbox.take_due(now);
            while let Some(message) = due.front() {
                if send(port, message) == Sent::Later {
                    outbox.put_back(due, now);
                    break;
                }
                due.pop_front();
            }
        }
    }

    /// Passes all messages to `send` at once, also incomplete ones.
    pub fn finish(&mut self, snapshot: &Snapshot, now: Millis, mut send: impl FnMut(u16, &[u8]) -> Sent) {
        self.collect(snapshot, now);
        for (port, outbox) in (0..).zip(&mut self.outboxes) {
            outbox.take_all().iter().for_each(|message| _ = send(port, message));
        }
    }

    fn collect(&mut self, snapshot: &Snapshot, now: Millis) {
        let Self { announcements, reader, outboxes } = self;
        if let Some(master) = &snapshot.sync_master {
            let rules = &master.rules;
            let last = outboxes.len() - 1;
            collect(announcements, reader, snapshot, |entry, hash| {
                let discarded =
                    outboxes[hash as usize & last].add(entry, rules.version, rules.queue_max, now);
                announcements.counters.lost.fetch_add(discarded, Ordering::Relaxed);
            });
        }
    }
}
