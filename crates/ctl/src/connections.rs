//! Connections as listings show them, from the live table.
//!
//! Walks the table in bounded slices, so that neither the table's size nor a slow reader holds up a worker.

use std::time::Duration;

use xvs_dataplane::clock::Millis;
use xvs_dataplane::conn::{Connection, TableReader, tcp::TcpState, udp};
use xvs_proto::Protocol;

use crate::message::ConnectionRow;

/// A row for every connection that exists throughout the walk; one that comes or goes meanwhile may be among them.
pub fn rows(reader: &mut TableReader, now: Millis, each: &mut dyn FnMut(ConnectionRow)) {
    reader.for_each(|connection| each(row(&connection, now)));
}

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
