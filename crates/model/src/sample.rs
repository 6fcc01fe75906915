//! Fully populated reports: every option is set, every list has an element.
//!
//! For tests of programs that show reports, and for the test that compares `docs/json.md` with what is printed. A value
//! may differ from what a director would report; only the fields matter. Not here: reports of health (`health::sample`).

#![allow(missing_docs, reason = "for tests alone")]

use crate::health::Counts;
use crate::status::{
    Drops, InterfaceStatus, Level, LinkState, RecentDrops, RulesFound, RulesStatus, StatusReport,
    TableStatus, WorkerStatus,
};

/// A director with one warning.
pub fn status() -> StatusReport {
    let drops = Drops {
        reason: "kernel_ring_full".to_owned(),
        packets: 7,
        what: "a worker was not fast enough for its RX ring".to_owned(),
    };
    StatusReport {
        state: Level::Warning,
        warnings: vec!["wan is gone; it is attached again when it is back and up".to_owned()],
        version: "1.2.3".to_owned(),
        uptime_seconds: 59,
        epoch: 4,
        services: 1,
        services_without_destination: 1,
        destinations: 2,
        health: Some(Counts {
            real_servers: 13,
            real_servers_up: 12,
            virtual_servers: 3,
            virtual_servers_well: 2,
        }),
        interfaces: vec![interface()],
        workers: vec![worker()],
        table: TableStatus { size: 1024, connections: 3, percent: 0.3, pages: "small pages".to_owned() },
        drops: vec![drops.clone()],
        unconfirmed_seconds: Some(7),
        recent_drops: RecentDrops { seconds: 61, reasons: vec![drops] },
        rules: Some(RulesStatus { file: "/etc/xvs/rules".to_owned(), found: RulesFound::Differences(3) }),
    }
}

/// An interface that fell back to generic XDP.
pub fn interface() -> InterfaceStatus {
    InterfaceStatus {
        name: "wan".to_owned(),
        mode: "generic".to_owned(),
        why_not_native: Some("busy".to_owned()),
        queues: 2,
        state: LinkState::Gone,
        attached_again: 1,
    }
}

/// A worker that has counted packets.
pub fn worker() -> WorkerStatus {
    WorkerStatus {
        core: Some(1),
        queues: [("wan".to_owned(), vec![0, 1])].into(),
        copy_mode: "zero-copy".to_owned(),
        busy_percent: Some(12.5),
        counters: [("rx_packets".to_owned(), 9)].into(),
    }
}
