//! Connections as listings show them, from the live table.
//!
//! Walks the table in bounded slices, so that neither the table's size nor a slow reader holds up a worker.

use std::io;
use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Connection, TableReader, tcp::TcpState, udp};
use xvs_proto::Protocol;

use crate::message::ConnectionRow;

/// A row for every connection that exists throughout the walk, until `each` fails; one that comes or goes meanwhile
/// may be among them. `each` is called while no entry is looked at, so it may take its time.
///
/// # Errors
/// That of `each`.
pub fn rows(
    reader: &mut TableReader,
    now: Millis,
    each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
) -> io::Result<()> {
    let mut slice = Vec::new();
    let extent = reader.table().extent();
    for start in (0..extent).step_by(SLICE) {
        let end = start.saturating_add(SLICE as u32).min(extent);
        reader.for_each(start..end, |connection| slice.push(row(&connection, now)));
        slice.drain(..).try_for_each(&mut *each)?;
    }
    Ok(())
}

/// Entries looked at before others may reuse what they removed meanwhile.
const SLICE: usize = 1024;

fn row(connection: &Connection<'_>, now: Millis) -> ConnectionRow {
    let left: Duration = now.until(connection.expires());
    let state = match connection.protocol() {
        Protocol::UDP => udp::STATE_NAME,
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
