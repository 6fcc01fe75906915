//! The messages of a master daemon, without sockets and clock: the lab sends the same ones.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::TableReader;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::Announcements;
use xvs_dataplane::sync::collect::collect;
use xvs_dataplane::sync::outbox::Outbox;
use xvs_model::config::sync_daemon::SyncDaemon;

/// What workers have announced, and the messages about it: an outbox for each port.
pub(crate) struct Messages {
    announcements: Arc<Announcements>,
    reader: TableReader,
    outboxes: Vec<Outbox>,
}

impl Messages {
    /// For a daemon with this number of ports, which is a power of two.
    pub(crate) fn new(
        daemon: &SyncDaemon,
        ports: u16,
        announcements: Arc<Announcements>,
        reader: TableReader,
        now: Millis,
    ) -> Self {
        let outbox = |_| Outbox::new(daemon.sync_id, daemon.max_len_bytes.into(), now);
        Self { announcements, reader, outboxes: (0..ports.max(1)).map(outbox).collect() }
    }

    /// Collects what was announced, and passes each message that is due to `send`, with the number of its port.
    pub(crate) fn run(&mut self, snapshot: &Snapshot, now: Millis, mut send: impl FnMut(u16, &[u8])) {
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
        for (port, outbox) in (0..).zip(outboxes) {
            outbox.take_due(now).for_each(|message| send(port, &message));
        }
    }
}
