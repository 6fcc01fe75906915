//! Reads announced connections, or all connections, from the table.
//!
//! Runs in the threads of the master daemon. A connection that ended after its announcement is left out. All data
//! except the state are read now: they do not change, except for data on which a backup does not depend. Cost: a read
//! of each entry.

use std::net::IpAddr;
use std::ops::Range;

use xvs_proto::sync::{ClientAddress, Entry, flag, method};
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use super::announce::{is_told, timeout};
use crate::clock::Millis;
use crate::conn::{Connection, Flags, Numbers, TableReader, detached};
use crate::snapshot::sync_master::{Announced, Announcements};
use crate::snapshot::{Activity, Settings, Snapshot};

/// Passes each announced connection to `each`, with a hash that is the same for all announcements of a connection.
pub fn collect(
    announcements: &Announcements,
    reader: &mut TableReader,
    snapshot: &Snapshot,
    mut each: impl FnMut(&Entry<'_>, u64),
) {
    let mut announced = Vec::new();
    announcements.take(|Announced { id, generation, state }| announced.push((id, generation, state)));
    let secret = *reader.table().secret();
    reader.recall_each(announced.into_iter(), |connection, state| {
        let entry = entry(&connection, state, &snapshot.settings);
        let Entry { protocol, client, virtual_endpoint, .. } = entry;
        let hash = FlowKey { protocol, source: client, dest: virtual_endpoint }.hash(&secret);
        with_call_id(&connection, entry, snapshot, |entry| each(entry, hash));
    });
}

/// Passes each connection and template whose index in the table is in `range` to `each`, with its remaining time.
/// Connections that are beginning or expiring are left out, because they are not announced either.
pub fn collect_all(
    range: Range<u32>,
    reader: &mut TableReader,
    snapshot: &Snapshot,
    now: Millis,
    mut each: impl FnMut(&Entry<'_>),
) {
    reader.for_each(range, |connection| {
        let state = connection.state();
        let remaining = now.until(connection.expires()).as_millis();
        if remaining > 0 && is_told(&connection, state) {
            let mut entry = entry(&connection, state, &snapshot.settings);
            // A connection from another director may have a longer timeout than it would have here.
            entry.timeout_seconds = entry.timeout_seconds.max(remaining.div_ceil(1000) as u32);
            entry.remaining_millis = Some(remaining.try_into().unwrap_or(u32::MAX));
            with_call_id(&connection, entry, snapshot, &mut each);
        }
    });
}

/// Passes the entry of a connection to `then`, with the Call-ID of a SIP template.
fn with_call_id(
    connection: &Connection<'_>,
    entry: Entry<'_>,
    snapshot: &Snapshot,
    then: impl FnOnce(&Entry<'_>),
) {
    match connection.is_template().then(|| snapshot.call_ids.read(connection)).flatten() {
        // The port distinguishes the templates of a client's calls only in this table.
        Some(call_id) => then(&Entry {
            client: Endpoint { port: 0, ..entry.client },
            mark: 0,
            call_id: Some(&call_id),
            ..entry
        }),
        None => then(&entry),
    }
}

/// The message entry for a connection in this state.
fn entry(connection: &Connection<'_>, state: u8, settings: &Settings) -> Entry<'static> {
    let is_template = connection.is_template();
    let method = connection.method();
    let is_unanswered = match is_template {
        true => !method.masquerades(),
        false => connection.flags().contains(Flags::NO_OUTPUT),
    };
    let reply_shift =
        connection.flags().contains(Flags::FTP).then(|| connection.shift().announced()).flatten();
    let flags = match method {
        _ if connection.is_bypass() => method::BYPASS,
        ForwardingMethod::Nat | ForwardingMethod::FullNat => method::MASQUERADING,
        ForwardingMethod::Local => method::LOCAL,
        ForwardingMethod::Tunnel => method::TUNNEL,
        ForwardingMethod::DirectRouting => method::ROUTE,
    };
    let [virtual_endpoint, dest] = [connection.virtual_endpoint(), connection.dest()]
        .map(|endpoint| if connection.is_detached() { detached(endpoint) } else { endpoint });
    Entry {
        protocol: connection.protocol(),
        flags: flags
            | set(flag::SYNC, connection.flags().contains(Flags::SYNC))
            | set(flag::NO_OUTPUT, is_unanswered)
            | set(flag::INACTIVE, Activity::counted(connection, state) != Activity::Active)
            | set(flag::REPLY_SEQUENCES, reply_shift.is_some())
            | set(flag::TEMPLATE, is_template),
        state,
        client: connection.client(),
        virtual_endpoint,
        dest,
        mark: if is_template { mark_of_template(connection) } else { connection.mark() },
        timeout_seconds: timeout(connection, state, settings).as_secs() as u32,
        remaining_millis: None,
        call_id: None,
        local: connection.local(),
        client_address: client_address(connection),
        reply_shift,
        numbers: connection.numbers().map(Numbers::words),
    }
}

fn set(flag: u32, is_set: bool) -> u32 {
    if is_set { flag } else { 0 }
}

fn client_address(connection: &Connection<'_>) -> Option<ClientAddress> {
    let flags = connection.flags();
    flags.intersects(Flags::TOA | Flags::PROXY | Flags::PROXY_DATAGRAMS).then(|| ClientAddress {
        in_header: !flags.contains(Flags::TOA),
        is_acknowledged: flags.contains(Flags::PROXY_ACKNOWLEDGED),
        first_sequence: if connection.protocol() == Protocol::TCP { connection.first_sequence() } else { 0 },
    })
}

/// The mark of a template's service, which is its virtual address; 0 if its service has none.
fn mark_of_template(template: &Connection<'_>) -> u32 {
    match template.virtual_endpoint().addr {
        _ if template.protocol() != Protocol::IP => 0,
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(addr) => (u128::from(addr) >> 96) as u32,
    }
}
