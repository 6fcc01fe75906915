//! The events for which the log of connections (`log.rs`) gets a record: an insertion and a removal.
//!
//! Templates, and expected FTP connections, which have no packets, are not logged. A connection that another director
//! has announced is logged when it ends, and only if packets of it have passed here: otherwise both directors would log
//! it.

use super::flags::Flags;
use super::handle::TableHandle;
use super::id::ConnId;
use super::log::{ConnectionLog, Ending, Event, LogRecord};
use crate::clock::Millis;

impl TableHandle {
    /// Initializes the tally of an entry that no other thread can reach, if there is a log.
    #[inline]
    pub(super) fn begin_tally(&self, index: u32) {
        if let Some(log) = self.table.log() {
            log.begin(index, self.now);
        }
    }

    /// Logs the begin of a connection in this state, if there is a log of begins.
    #[inline]
    pub(super) fn note_begin(&self, id: ConnId, state: u8) {
        if let Some(log) = self.table.log().filter(|log| log.has_begins())
            && !self.connection(id).flags().contains(Flags::SYNC)
        {
            self.note(log, id, Event::Begin, state);
        }
    }

    /// Logs the end of a connection in this state, if there is a log. Its record must not have been given up yet.
    #[inline]
    pub(super) fn note_end(&self, id: ConnId, why: Ending, state: u8) {
        if let Some(log) = self.table.log() {
            self.note(log, id, Event::End(why), state);
        }
    }

    // Not inlined: most directors have no log.
    #[inline(never)]
    fn note(&self, log: &ConnectionLog, id: ConnId, event: Event, state: u8) {
        let connection = self.connection(id);
        let record = connection.record;
        let flags = connection.flags();
        if flags.intersects(Flags::TEMPLATE | Flags::NO_CLIENT_PORT)
            || !log.chooses(record.request_flow().hash(&self.table.secret))
        {
            return;
        }
        let (begun, last_packet, packets, bytes) = match event {
            Event::Begin => log.tallied(id),
            Event::End(_) => log.between_moves(id, || self.tallied(log, id)),
        };
        // It began at the director that has announced it.
        let is_announced = flags.contains(Flags::SYNC);
        if is_announced && last_packet.is_none() {
            return;
        }
        log.push(LogRecord {
            event,
            at: self.now,
            begun: begun.filter(|_| !is_announced),
            last_packet,
            protocol: record.protocol(),
            client: record.client(),
            virtual_endpoint: record.virtual_endpoint(),
            dest: record.dest(),
            local: record.local(),
            method: record.method(),
            state,
            mark: connection.mark(),
            packets,
            bytes,
        });
    }
}

impl TableHandle {
    /// The values of [`ConnectionLog::tallied`], plus those still in the connection's record.
    fn tallied(
        &self,
        log: &ConnectionLog,
        id: ConnId,
    ) -> (Option<Millis>, Option<Millis>, [u64; 2], [u64; 2]) {
        let untaken = self.table.offloaded.get().and_then(|offloaded| offloaded.untaken(id));
        let (begun, mut last, mut packets, mut bytes) = log.tallied(id);
        if let Some((counts, at)) = untaken {
            for (place, [more_packets, more_bytes]) in counts.into_iter().enumerate() {
                packets[place] += more_packets;
                bytes[place] += more_bytes;
                last = last.max((more_packets != 0).then_some(at));
            }
        }
        (begun, last, packets, bytes)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::sync::Arc;

    use xvs_proto::{Endpoint, Protocol};
    use xvs_sched::ForwardingMethod;

    use super::super::direction::Direction;
    use super::super::log::LogSettings;
    use super::super::{NewConnection, Removal, Table, TableConfig};
    use super::*;
    use crate::shm::Memory;

    const SETTINGS: LogSettings = LogSettings { begins: true, one_in: 1, queue: 8 };

    fn table_with(settings: LogSettings) -> (Arc<Table>, Arc<ConnectionLog>) {
        let config = TableConfig { capacity: 100, workers: 1, memory: Memory::SmallPages };
        let table = Table::create(config).unwrap();
        let log = Arc::new(ConnectionLog::new(settings, table.entries()).unwrap());
        table.set_log(log.clone());
        (table, log)
    }

    fn example(port: u16) -> NewConnection {
        NewConnection { client: Endpoint::new([192, 0, 2, 10], port), mark: 7, ..NewConnection::example() }
    }

    #[test]
    fn begin_and_end_have_times_ends_counts_of_both_directions_and_the_reason() {
        let (table, log) = table_with(SETTINGS);
        let mut worker = table.handle(0).unwrap();
        worker.advance_timers(Millis(1000), |_, _| {});
        let id = worker.insert_new(&example(1000));
        log.tally(id, Direction::Inbound, 1, 60, Millis(1000));
        log.tally(id, Direction::Outbound, 3, 4000, Millis(1500));
        worker.advance_timers(Millis(2000), |_, _| {});
        assert!(matches!(worker.remove_if(id, Ending::Expired, |_, _| true), Removal::Done(_)));

        let begin = LogRecord {
            event: Event::Begin,
            at: Millis(1000),
            begun: Some(Millis(1000)),
            last_packet: None,
            protocol: Protocol::TCP,
            client: Endpoint::new([192, 0, 2, 10], 1000),
            virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
            dest: Endpoint::new([203, 0, 113, 11], 8080),
            local: None,
            method: ForwardingMethod::Nat,
            state: 0,
            mark: 7,
            packets: [0; 2],
            bytes: [0; 2],
        };
        assert_eq!(log.pop(), Some(begin));
        let end = LogRecord {
            event: Event::End(Ending::Expired),
            at: Millis(2000),
            last_packet: Some(Millis(1500)),
            packets: [1, 3],
            bytes: [60, 4000],
            ..begin
        };
        assert_eq!((log.pop(), log.pop(), log.lost()), (Some(end), None, 0));

        // The entry's next connection begins at zero.
        worker.quiescent();
        worker.quiescent();
        let ids: Vec<_> = (2000..2090).map(|port| worker.insert_new(&example(port))).collect();
        assert!(ids.contains(&id));
        assert_eq!(log.tallied(id), (Some(Millis(2000)), None, [0; 2], [0; 2]));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_the_connections_go_on() {
        let (table, log) = table_with(LogSettings { queue: 3, ..SETTINGS });
        let mut worker = table.handle(0).unwrap();
        worker.advance_timers(Millis(1), |_, _| {});
        (1..=5).for_each(|port| _ = worker.insert_new(&example(port)));
        assert_eq!((log.lost(), table.live()), (2, 5));
        let ports: Vec<_> = std::iter::from_fn(|| log.pop()).map(|record| record.client.port).collect();
        assert_eq!(ports, [1, 2, 3]);
    }

    #[test]
    fn one_in_n_is_chosen_by_the_endpoints_the_same_at_begin_and_end() {
        let (table, log) = table_with(LogSettings { one_in: 4, queue: 200, ..SETTINGS });
        let mut worker = table.handle(0).unwrap();
        worker.advance_timers(Millis(1), |_, _| {});
        let ids: Vec<_> = (1..=90).map(|port| worker.insert_new(&example(port))).collect();
        let ports = || std::iter::from_fn(|| log.pop()).map(|record| record.client.port).collect::<Vec<_>>();
        let begun = ports();
        ids.into_iter().for_each(|id| _ = worker.remove(id));
        assert_eq!(begun, ports());
        // About 22 of 90; both bounds are more than five deviations away.
        assert!((2..=45).contains(&begun.len()), "{begun:?}");
    }

    #[test]
    fn templates_are_not_logged_and_an_announced_connection_only_if_packets_of_it_came_here() {
        let (table, log) = table_with(SETTINGS);
        let mut worker = table.handle(0).unwrap();
        worker.advance_timers(Millis(5), |_, _| {});
        let template = worker.insert_new(&NewConnection { flags: Flags::TEMPLATE, ..example(0) });
        let announced = |port| NewConnection { flags: Flags::SYNC, ..example(port) };
        let silent = worker.insert_new(&announced(1));
        let used = worker.insert_new(&announced(2));
        log.tally(used, Direction::Inbound, 1, 60, Millis(6));
        for id in [template, silent, used] {
            assert!(matches!(worker.remove(id), Removal::Done(_)));
        }
        let record = log.pop().unwrap();
        assert_eq!((record.client.port, record.event), (2, Event::End(Ending::Replaced)));
        assert_eq!((record.begun, record.last_packet, log.pop()), (None, Some(Millis(6)), None));
    }
}
