//! The thread of a master daemon that sends the whole connection table to directors that join.
//!
//! It listens on the TCP port with the number of the daemon's UDP port, and serves one director at a time, once the
//! director's first message has arrived. It reads the table in slices, so that it delays no worker. The encrypted
//! connection then carries the number of connections (8 bytes), messages of version 1 with the entries, and an empty
//! message that marks the end of the table.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::conn::TableReader;
use xvs_dataplane::snapshot::Snapshot;
use xvs_dataplane::sync::collect::collect_all;
use xvs_dataplane::sync::outbox::Outbox;
use xvs_proto::sync::Version;

use super::candidates::Candidates;
use super::channel::{Broken, Channel, MESSAGE_MAX};
use super::key::SyncKey;
use crate::lock::lock;
use crate::sync_peers::Peers;

/// The data for sending the table.
pub(super) struct TableSender {
    pub(super) sync_id: u8,
    pub(super) key: SyncKey,
    pub(super) published: Arc<ArcSwap<Snapshot>>,
    pub(super) peers: Arc<Peers>,
    /// Whether the table may be sent: not while a successor takes it over. Locked while the table is read.
    pub(super) may_send: Arc<Mutex<bool>>,
}

impl TableSender {
    /// Serves directors until `stop` is set.
    pub(super) fn run(self, mut reader: TableReader, listener: &TcpListener, stop: &AtomicBool) {
        let mut candidates = Candidates::default();
        while !stop.load(Ordering::Relaxed) {
            let may_send = *lock(&self.may_send);
            let Some((stream, peer)) = may_send.then(|| candidates.next(listener)).flatten() else {
                thread::sleep(PAUSE);
                continue;
            };
            let begun = Instant::now();
            match self.send(&mut reader, stream, peer, stop) {
                Ok(connections) => {
                    tracing::info!(
                        "{connections} connections sent to {} in {:.1} s",
                        peer.ip(),
                        begun.elapsed().as_secs_f32()
                    );
                    self.peers.has_whole(peer, Instant::now());
                }
                Err(error) => {
                    let is_news = self.peers.has_none(peer, &error.to_string(), Instant::now());
                    // The daemon ends, or a successor takes over.
                    if is_news && !matches!(error, Broken::Stopped) {
                        tracing::warn!("the connection table was not sent to {}: {error}", peer.ip());
                    }
                }
            }
        }
    }

    /// Sends the table. Returns the number of connections that were sent.
    fn send(
        &self,
        reader: &mut TableReader,
        stream: TcpStream,
        peer: SocketAddr,
        stop: &AtomicBool,
    ) -> Result<u64, Broken> {
        let mut channel = Channel::accept(stream, &self.key, stop)?;
        let of = reader.table().live() as u64;
        channel.send(&of.to_be_bytes())?;
        self.peers.moves(peer, 0, of);
        let mut sent = 0;
        let mut at = 0;
        while at < reader.table().extent() {
            let now = Clock::Monotonic.now();
            let mut outbox = Outbox::new(self.sync_id, MESSAGE_MAX, now);
            let mut count = 0;
            let may_send = lock(&self.may_send);
            if !*may_send {
                return Err(Broken::Stopped);
            }
            collect_all(at..at + SLICE, reader, &self.published.load(), now, |entry| {
                let discarded = outbox.add(entry, Version::V1, usize::MAX, now);
                count += 1 - discarded;
            });
            drop(may_send);
            for message in outbox.take_all() {
                channel.send(&message)?;
            }
            at += SLICE;
            sent += count;
            self.peers.moves(peer, sent, of);
            thread::sleep(PACE * count as u32);
        }
        channel.send(&[])?;
        Ok(sent)
    }
}

/// How long the thread waits if there is no connection to serve.
const PAUSE: Duration = Duration::from_millis(10);
/// The entries of the table that are read at a time.
const SLICE: u32 = 4096;
/// The minimum time for a connection: at most 250,000 are sent in a second, so that neither side's workers are delayed.
const PACE: Duration = Duration::from_micros(4);
