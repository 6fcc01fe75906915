//! The thread of a master daemon: it sends the connections that workers announce, over UDP to a group or to peers.
//!
//! It checks for announcements a hundred times a second while the daemon runs; no other thread waits for it. A message
//! waits while no socket has room. A message that the kernel refuses is counted and lost, as on the wire. Before it
//! ends, the thread sends the remaining messages.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use xvs_ctl::control::datapath::SyncSockets;
use xvs_ctl::sync::messages::{Messages, Sent};
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::Table;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::snapshot::sync_master::{Announcements, MasterCounters};
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_proto::HashSecret;
use xvs_proto::sync::Version;

use super::error::SyncError;
use super::key::SyncKey;
use super::send_table::TableSender;
use super::signature::{Signer, TRAILER_LEN};
use super::sockets;
use super::thread::Daemon;
use crate::date::date_nanos;
use crate::lock::lock;

/// The daemons' facts about the connection table before it belongs to this process.
pub(crate) struct TableFacts {
    pub(crate) workers: usize,
    pub(crate) entries: usize,
    pub(crate) secret: HashSecret,
}

/// A master daemon whose sockets are open, and whose workers may announce already.
pub(super) struct Prepared {
    daemon: SyncDaemon,
    wanted: SyncSockets,
    /// For each port the socket to the group, or the sockets to the peers.
    sockets: Vec<Vec<UdpSocket>>,
    signer: Option<Signer>,
    pub(super) announcements: Arc<Announcements>,
    published: Arc<ArcSwap<Snapshot>>,
    sender: Option<(TableSender, TcpListener)>,
}

/// Opens the sockets. With a key the messages are signed.
pub(super) fn prepare(
    daemon: &SyncDaemon,
    wanted: SyncSockets,
    facts: &TableFacts,
    published: Arc<ArcSwap<Snapshot>>,
    key: Option<&SyncKey>,
    sender: Option<(TableSender, TcpListener)>,
) -> Result<Prepared, SyncError> {
    let sockets = sockets::sending(daemon, wanted)?;
    let signer = key
        .map(|key| Signer::new(key, sockets[0][0].local_addr()?.ip()))
        .transpose()
        .map_err(SyncError::Signer)?;
    let announcements = Arc::new(Announcements::new(facts.entries, facts.workers));
    Ok(Prepared { daemon: daemon.clone(), wanted, sockets, signer, announcements, published, sender })
}

/// The part of a running master daemon that reads the table for announcements.
pub(super) struct Announcer {
    /// Locked by the thread for each of its turns.
    messages: Arc<Mutex<Messages>>,
    published: Arc<ArcSwap<Snapshot>>,
}

impl Announcer {
    /// Returns when the thread reads the table no more. Earlier announcements are still sent.
    pub(super) fn leave_table(&self) {
        lock(&self.messages).leave_table(&self.published.load(), Clock::Monotonic.now());
    }

    /// The table belongs to this process again.
    pub(super) fn return_to_table(&self) {
        lock(&self.messages).return_to_table();
    }
}

impl Prepared {
    /// Starts the threads: one that sends messages and, with a sender, one that sends the table.
    pub(super) fn begin(self, table: &Arc<Table>) -> Result<(Daemon, Announcer), SyncError> {
        let Self { mut daemon, wanted, sockets, signer, announcements, published, sender } = self;
        if signer.is_some() {
            daemon.max_len_bytes = daemon.max_len_bytes.saturating_sub(TRAILER_LEN as u16);
        }
        let reader = table.reader().ok_or(SyncError::StillEnding)?;
        let now = Clock::Monotonic.now();
        let messages = Messages::new(&daemon, wanted.ports, announcements.clone(), reader, now);
        let announcer = Announcer { messages: Arc::new(Mutex::new(messages)), published: published.clone() };
        let messages = announcer.messages.clone();
        let heard_id = sender.is_some().then_some(daemon.sync_id);
        let socket = SigningSocket { sockets, signer, port: daemon.port, announcements, signed: Vec::new() };
        let mut threads = Daemon::default();
        threads.start("xvs-sync", move |stop| {
            send_messages(stop, &messages, socket, &published, heard_id);
        })?;
        if let Some((sender, listener)) = sender {
            let reader = table.reader().ok_or(SyncError::StillEnding)?;
            threads.start("xvs-sync-table", move |stop| sender.run(reader, &listener, stop))?;
        }
        Ok((threads, announcer))
    }
}

/// Sends messages until `stop` is set. With a sync id it also sends an empty message each second, so that directors
/// that join detect this one.
fn send_messages(
    stop: &AtomicBool,
    messages: &Mutex<Messages>,
    mut socket: SigningSocket,
    published: &ArcSwap<Snapshot>,
    sync_id: Option<u8>,
) {
    let mut heard = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(INTERVAL);
        lock(messages)
            .run(&published.load(), Clock::Monotonic.now(), |port, message| socket.send(port, message));
        if let Some(sync_id) = sync_id
            && heard.elapsed() >= HEARD
        {
            let (empty, len) = Version::V1.header(sync_id, 0, Version::V1.header_len() as u16);
            socket.send(0, &empty[..len]);
            heard = Instant::now();
        }
    }
    lock(messages)
        .finish(&published.load(), Clock::Monotonic.now(), |port, message| socket.send(port, message));
}

/// The sockets of all ports, with the signer of their messages.
struct SigningSocket {
    sockets: Vec<Vec<UdpSocket>>,
    signer: Option<Signer>,
    /// The first port.
    port: u16,
    announcements: Arc<Announcements>,
    /// The last message.
    signed: Vec<u8>,
}

impl SigningSocket {
    /// Sends a message to the port with this number.
    fn send(&mut self, number: u16, message: &[u8]) -> Sent {
        self.signed.clear();
        self.signed.extend_from_slice(message);
        if let Some(signer) = &mut self.signer {
            signer.sign(&mut self.signed, self.port.saturating_add(number), date_nanos());
        }
        send_to_all(&self.sockets[usize::from(number)], &self.signed, &self.announcements.counters)
    }
}

/// Sends a message through each of these sockets. A peer that is down may fill its socket, and the others do not wait:
/// the message waits only if no socket has room.
fn send_to_all(sockets: &[UdpSocket], message: &[u8], counters: &MasterCounters) -> Sent {
    let mut sent = 0;
    let mut refused = 0;
    let mut full = 0;
    for socket in sockets {
        let result = match socket.send(message) {
            // The peer had no socket for an earlier message. This one was not sent yet.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => socket.send(message),
            result => result,
        };
        match result {
            Ok(_) => sent += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => full += 1,
            Err(_) => refused += 1,
        }
    }
    if full == sockets.len() as u64 {
        return Sent::Later;
    }
    counters.messages.fetch_add(sent, Ordering::Relaxed);
    counters.failed.fetch_add(refused + full, Ordering::Relaxed);
    Sent::Done
}

/// How often an empty message is sent, with a key. A kernel ignores it.
const HEARD: Duration = Duration::from_secs(1);
/// The interval of checking for announcements and for due messages.
const INTERVAL: Duration = Duration::from_millis(10);
