//! Reads messages and tables from other directors into the queues of workers.
//!
//! Unusable messages and tables are counted by reason; no content of a message does harm.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use xvs_dataplane::snapshot::sync_backup::{BackupCounters, Inbox, Received};
use xvs_model::config::sync_daemon::SyncDaemon;
use xvs_proto::sync::{Entry, Message, MessageError, Skipped};
use xvs_proto::{FlowKey, HashSecret};

/// Reads messages for the workers.
pub struct Receiver {
    /// The daemon.
    pub daemon: SyncDaemon,
    /// The workers' queues.
    pub inbox: Arc<Inbox>,
    /// The secret by which connections are assigned to workers.
    pub secret: HashSecret,
}

/// Why a message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not of a peer, though the daemon has peers.
    #[error("its sender is none of the daemon's --sync-peers; if it is a director, start the daemon with it")]
    NotOfPeer,
    /// Shorter than a header.
    #[error("it is shorter than a header")]
    TooShort,
    /// The header gives another length.
    #[error("its header gives another length")]
    Length,
    /// Longer than `--sync-maxlen`.
    #[error("it is longer than the daemon's --sync-maxlen")]
    TooLong,
    /// The sync id is another one, as for another cluster in the group.
    #[error("it is of sync id {0}; both directors need the same --syncid")]
    SyncId(u8),
    /// Without a signature, although this director has a key.
    #[error("it is not signed; its director needs the same sync_key_file")]
    Unsigned,
    /// Signed with another key.
    #[error("it is signed with another key; its director needs the same sync_key_file")]
    OtherKey,
    /// Signed this many seconds ago or hence.
    #[error("it was signed {0} s ago or hence by the clock here; set the clocks of both directors (NTP)")]
    Clock(u64),
    /// Signed before this daemon started: a former one may have received it.
    #[error(
        "it was signed before this daemon started; if that goes on, set the clocks of both directors (NTP)"
    )]
    Earlier,
    /// Received before.
    #[error("it is a copy of an earlier one")]
    Copy,
    /// Only for tables.
    #[error("one of its connections is cut or contradicts itself")]
    Malformed,
}

impl Receiver {
    /// Whether the daemon reads messages from this address.
    ///
    /// # Errors
    ///
    /// It has peers, and the address is not among them; the message counts as refused.
    pub fn admit(&self, from: IpAddr) -> Result<(), Refused> {
        let peers = &self.daemon.peers;
        if peers.is_empty() || peers.contains(&from) {
            return Ok(());
        }
        self.inbox.counters.refused.fetch_add(1, Ordering::Relaxed);
        Err(Refused::NotOfPeer)
    }

    /// Passes the connections in a message that `verify` accepts to the workers, and the number of each of these
    /// workers to `wake`.
    ///
    /// # Errors
    ///
    /// The message is refused as a whole.
    pub fn receive(
        &self,
        bytes: &[u8],
        verify: impl FnOnce(&[u8]) -> Result<(), Refused>,
        mut wake: impl FnMut(usize),
    ) -> Result<(), Refused> {
        let BackupCounters { messages, refused, skipped, .. } = &self.inbox.counters;
        // The default is no limit: the kernel's depends on the MTU.
        let limit = self.daemon.max_len_bytes;
        let message = match limit < DEFAULT_MAX && bytes.len() > usize::from(limit) {
            true => Err(Refused::TooLong),
            false => self.read(bytes).and_then(|message| verify(bytes).map(|()| message)),
        }
        .inspect_err(|error| {
            // Other clusters may share the group.
            if !matches!(error, Refused::SyncId(_)) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        })?;
        messages.fetch_add(1, Ordering::Relaxed);
        for entry in message.entries() {
            match entry {
                Ok(entry) => self.put(&entry, self.hash(&entry)).into_iter().for_each(&mut wake),
                Err(_) => _ = skipped.fetch_add(1, Ordering::Relaxed),
            }
        }
        Ok(())
    }

    /// Passes the connections in a message of a table to the workers; `wait` waits while the worker of a hash is busy.
    /// Returns their number.
    ///
    /// # Errors
    ///
    /// The message is refused as a whole.
    pub fn receive_of_table(&self, bytes: &[u8], mut wait: impl FnMut(&Inbox, u64)) -> Result<u64, Refused> {
        let mut count = 0;
        for entry in self.read(bytes)?.entries() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Skipped::Malformed) => return Err(Refused::Malformed),
                // The other director may be of a later version.
                Err(Skipped::UnknownOption | Skipped::UnknownEngine) => {
                    self.inbox.counters.skipped.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            let hash = self.hash(&entry);
            if self.inbox.is_busy(hash) {
                wait(&self.inbox, hash);
            }
            self.put(&entry, hash);
            count += 1;
        }
        Ok(count)
    }

    fn hash(&self, entry: &Entry<'_>) -> u64 {
        let Entry { protocol, client, virtual_endpoint, .. } = *entry;
        FlowKey { protocol, source: client, dest: virtual_endpoint }.hash(&self.secret)
    }

    fn put(&self, entry: &Entry<'_>, hash: u64) -> Option<usize> {
        self.inbox.put(Received::of(entry), hash)
    }

    fn read<'a>(&self, bytes: &'a [u8]) -> Result<Message<'a>, Refused> {
        let message = Message::read(bytes).map_err(|error| match error {
            MessageError::TooShort => Refused::TooShort,
            MessageError::Length => Refused::Length,
        })?;
        match self.daemon.sync_id {
            own if own != 0 && own != message.sync_id => Err(Refused::SyncId(message.sync_id)),
            _ => Ok(message),
        }
    }
}

/// The default of `--sync-maxlen` for IPv6.
const DEFAULT_MAX: u16 = 1452;
