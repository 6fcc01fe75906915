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

/// The result of sending a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// It was sent, or never will be.
    Done,
    /// There is no room for it now.
    Later,
}

/// The announcements of workers, and the messages about them: an outbox for each port.
pub struct Messages {
    announcements: Arc<Announcements>,
    reader: TableReader,
    /// Whether the table may be read.
    is_ours: bool,
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
        let outboxes = (0..ports.max(1))
            .map(|_| Outbox::new(daemon.sync_id, daemon.max_len_bytes.into(), now))
            .collect();
        Self { announcements, reader, is_ours: true, outboxes }
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

    /// Passes all messages to `send` at once, including incomplete ones.
    pub fn finish(&mut self, snapshot: &Snapshot, now: Millis, mut send: impl FnMut(u16, &[u8]) -> Sent) {
        self.collect(snapshot, now);
        for (port, outbox) in (0..).zip(&mut self.outboxes) {
            outbox.take_all().iter().for_each(|message| _ = send(port, message));
        }
    }

    /// Collects announcements for the last time: another process may use the entries of the table from now on. The
    /// messages are still sent.
    pub fn leave_table(&mut self, snapshot: &Snapshot, now: Millis) {
        self.collect(snapshot, now);
        self.is_ours = false;
    }

    /// After [`Self::leave_table`]: the table is this process's again.
    pub fn return_to_table(&mut self) {
        self.is_ours = true;
    }

    fn collect(&mut self, snapshot: &Snapshot, now: Millis) {
        let Self { announcements, reader, is_ours, outboxes } = self;
        if *is_ours && let Some(master) = &snapshot.sync_master {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use xvs_dataplane::conn::{ConnId, Flags, Inserted, NewConnection, Spare, Table, TableConfig};
    use xvs_dataplane::shm::Memory;
    use xvs_dataplane::snapshot::DestinationId;
    use xvs_dataplane::snapshot::sync_master::{Announced, SyncMaster, SyncRules};
    use xvs_model::config::sync_daemon::SyncRole;
    use xvs_proto::sync::Version;
    use xvs_proto::{Endpoint, Protocol};
    use xvs_sched::ForwardingMethod;

    use super::*;

    #[test]
    fn a_master_that_has_left_the_table_sends_what_was_announced_before_and_reads_no_entry() {
        let table =
            Table::create(TableConfig { capacity: 10, workers: 1, memory: Memory::OnDemand }).unwrap();
        let mut worker = table.handle(0).unwrap();
        let ids: Vec<ConnId> = (1000..1003_u16)
            .map(|port| {
                let inserted = worker.insert(&NewConnection {
                    protocol: Protocol::UDP,
                    client: Endpoint::new([192, 0, 2, 10], port),
                    virtual_endpoint: Endpoint::new([198, 51, 100, 1], 53),
                    dest: Endpoint::new([203, 0, 113, 11], 53),
                    local: None,
                    method: ForwardingMethod::Nat,
                    flags: Flags::NONE,
                    state: 0,
                    expires: Millis(300_000),
                    spare: Spare::NONE,
                    dest_ref: DestinationId::NONE.0,
                    mark: 0,
                    controller: None,
                });
                let Inserted::New(id) = inserted else { panic!("{inserted:?}") };
                id
            })
            .collect();
        let rules = SyncRules {
            threshold: 3,
            period: 50,
            refresh: Duration::ZERO,
            retries: 0,
            templates_alone: false,
            version: Version::V1,
            queue_max: 8,
        };
        let announcements = Arc::new(Announcements::new(table.entries(), 1));
        let master = Arc::new(SyncMaster::new(rules, announcements.clone()));
        let snapshot = Snapshot { sync_master: Some(master), ..Snapshot::default() };
        let daemon = SyncDaemon {
            role: SyncRole::Master,
            interface: "lan".to_owned(),
            sync_id: 7,
            max_len_bytes: 1400,
            group: Ipv4Addr::new(224, 0, 0, 81).into(),
            port: 8848,
            ttl: 1,
            peers: vec![],
        };
        let reader = table.reader().unwrap();
        let mut messages = Messages::new(&daemon, 1, announcements.clone(), reader, Millis(0));
        let announce = |at: usize| {
            let announced = Announced { id: ids[at], generation: 0, state: 0 };
            announcements.announce(0, announced, 0, Millis(300_000));
        };
        let entries = |messages: &mut Messages| {
            let mut entries = 0;
            messages.finish(&snapshot, Millis(0), |_, message| {
                entries += message[4];
                Sent::Done
            });
            entries
        };
        announce(0);
        messages.leave_table(&snapshot, Millis(0));
        // From another process, after its workers have taken the entry.
        announce(1);
        assert_eq!(entries(&mut messages), 1);
        messages.return_to_table();
        announce(2);
        assert_eq!(entries(&mut messages), 2, "the table is this process's again");
    }
}
