//! Connections as listings show them, from the live table.
//!
//! Walks the table in bounded slices, so that neither the table's size nor a slow reader holds up a worker.

use std::ops::ControlFlow;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Connection, TableReader, sctp::SctpState, tcp::TcpState, udp};
use xvs_proto::Protocol;

use crate::message::ConnectionRow;

/// A row for every connection that exists throughout the walk, until `each` breaks; one that comes or goes meanwhile
/// may be among them. The reader is free while `each` takes its time.
pub fn rows(
    reader: &Mutex<TableReader>,
    now: Millis,
    each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
) {
    let mut slice = Vec::new();
    let mut next = 0;
    loop {
        {
            let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
            if next >= reader.table().extent() {
                return;
            }
            reader.for_each(next..next + SLICE, |connection| slice.push(row(&connection, now)));
        }
        next += SLICE;
        if slice.drain(..).try_for_each(&mut *each).is_break() {
            return;
        }
    }
}

/// Entries looked at before others may reuse what they removed meanwhile.
const SLICE: u32 = 1024;

fn row(connection: &Connection<'_>, now: Millis) -> ConnectionRow {
    let left: Duration = now.until(connection.expires());
    let state = match connection.protocol() {
        Protocol::UDP => udp::STATE_NAME,
        Protocol::SCTP => SctpState::of(connection.state()).name(),
        _ => TcpState::of(connection.state()).name(),
    };
    ConnectionRow {
        protocol: connection.protocol(),
        expires_seconds: u32::try_from(left.as_secs()).unwrap_or(u32::MAX),
        state: state.to_owned(),
        client: connection.client(),
        virtual_endpoint: connection.virtual_endpoint(),
        dest: connection.dest(),
        engine: None,
    }
}
