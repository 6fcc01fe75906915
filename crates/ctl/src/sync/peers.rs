//! The other directors as a daemon knows them: when each was heard, and how it stands with its connection table.
//!
//! Written by the daemon's threads, read for `xvs status`. A backup daemon wants the table of a director when it hears
//! it first, and again after it may have missed messages.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use xvs_model::report::status::{SyncPeer, SyncTable};

/// The peers of both daemons.
#[derive(Debug, Default)]
pub(crate) struct SyncPeers {
    /// Those that have asked the master daemon for the table.
    pub(crate) master: Arc<Peers>,
    /// Those that the backup daemon hears.
    pub(crate) backup: Arc<Peers>,
}

/// The peers of a daemon, by their address; the port is that of their tables.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<BTreeMap<SocketAddr, Peer>>);

#[derive(Debug)]
struct Peer {
    /// When its last message came.
    heard: Option<Instant>,
    /// Whether its table is wanted, and when it may be asked for it.
    wanted: bool,
    not_before: Instant,
    table: SyncTable,
    /// Connections that were sent or received, of so many.
    connections: u64,
    of: u64,
    /// Why its table is not there.
    why: Option<String>,
}

impl Peers {
    /// A message of a peer has come. Not one of many forged addresses makes this grow without end.
    pub(super) fn heard(&self, from: SocketAddr, now: Instant) {
        let mut all = self.all();
        if let Some(peer) = all.get_mut(&from) {
            // A director is heard each second.
            if peer.heard.is_none_or(|heard| now.duration_since(heard) >= GAP) {
                peer.miss("it was not heard for some seconds");
            }
            peer.heard = Some(now);
        } else if make_room(&mut all, now) {
            all.insert(from, Peer { heard: Some(now), wanted: true, ..Peer::new(now) });
        }
    }

    /// Messages were lost here: their tables are wanted again.
    pub(super) fn lost(&self) {
        self.all().values_mut().for_each(|peer| peer.miss("messages were lost here"));
    }

    /// Takes a peer whose table is wanted now.
    pub(super) fn take_wanted(&self, now: Instant) -> Option<SocketAddr> {
        let mut all = self.all();
        let (address, peer) = all.iter_mut().find(|(_, peer)| peer.wanted && peer.not_before <= now)?;
        (peer.wanted, peer.table, peer.connections, peer.of) = (false, SyncTable::Moving, 0, 0);
        Some(*address)
    }

    /// So many connections of a table were sent or received.
    pub(super) fn moves(&self, peer: SocketAddr, connections: u64, of: u64) {
        let mut all = self.all();
        if !all.contains_key(&peer) && make_room(&mut all, Instant::now()) {
            all.insert(peer, Peer::new(Instant::now()));
        }
        if let Some(peer) = all.get_mut(&peer) {
            (peer.table, peer.connections, peer.of, peer.why) = (SyncTable::Moving, connections, of, None);
        }
    }

    /// All of a table was sent or received.
    pub(super) fn has_whole(&self, peer: SocketAddr, now: Instant) {
        if let Some(peer) = self.all().get_mut(&peer) {
            peer.table = if peer.wanted { SyncTable::Stale } else { SyncTable::Whole };
            (peer.of, peer.not_before) = (peer.connections, now + AFTER_ALL);
        }
    }

    /// A table was not sent or received.
    pub(super) fn has_none(&self, address: SocketAddr, why: String, now: Instant) {
        let mut all = self.all();
        if !all.contains_key(&address) && !make_room(&mut all, now) {
            return;
        }
        let peer = all.entry(address).or_insert_with(|| Peer::new(now));
        if peer.why.as_ref() != Some(&why) {
            tracing::warn!("connection table, {}: {why}", address.ip());
        }
        (peer.table, peer.why) = (SyncTable::None, Some(why));
        (peer.wanted, peer.not_before) = (peer.heard.is_some(), now + AFTER_FAILURE);
    }

    /// The daemon has ended.
    pub(crate) fn forget(&self) {
        self.all().clear();
    }

    /// What `xvs status` shows.
    pub(crate) fn report(&self, now: Instant) -> Vec<SyncPeer> {
        let report = |(address, peer): (&SocketAddr, &Peer)| SyncPeer {
            address: address.ip(),
            silent_seconds: peer.heard.map(|heard| now.duration_since(heard).as_secs()),
            table: peer.table,
            connections: peer.connections,
            of: peer.of,
            why: peer.why.clone(),
        };
        self.all().iter().map(report).collect()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            heard: None,
            wanted: false,
            not_before: now,
            table: SyncTable::None,
            connections: 0,
            of: 0,
            why: None,
        }
    }

    fn miss(&mut self, why: &str) {
        self.wanted = true;
        if self.table == SyncTable::Whole {
            (self.table, self.why) = (SyncTable::Stale, Some(why.to_owned()));
        }
    }
}

/// Makes room for a peer: one that was not heard for long is forgotten. Returns whether there is some.
fn make_room(all: &mut BTreeMap<SocketAddr, Peer>, now: Instant) -> bool {
    if all.len() >= MOST {
        let is_old = |peer: &Peer| peer.heard.is_none_or(|heard| now.duration_since(heard) >= OLD);
        let old = all.iter().find(|(_, peer)| is_old(peer)).map(|(address, _)| *address);
        old.map(|address| all.remove(&address));
    }
    all.len() < MOST
}

/// More peers are not followed.
const MOST: usize = 16;
/// A peer that was not heard for so long may be forgotten.
const OLD: Duration = Duration::from_secs(60);
/// Messages may have been missed after so long without one.
const GAP: Duration = Duration::from_secs(3);
/// The least time between two tables of a peer.
const AFTER_ALL: Duration = Duration::from_secs(30);
/// The least time until a table is asked for again that was refused or cut.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 8848))
    }

    fn table(peers: &Peers, now: Instant) -> SyncTable {
        peers.report(now)[0].table
    }

    #[test]
    fn a_table_is_wanted_when_a_director_is_heard_first_and_after_silence_or_losses() {
        let (peers, begun) = (Peers::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let fetch = |now| {
            assert_eq!(peers.take_wanted(now), Some(peer(1)));
            peers.moves(peer(1), 5, 8);
            assert_eq!(table(&peers, now), SyncTable::Moving);
            peers.has_whole(peer(1), now);
        };
        assert_eq!(peers.take_wanted(at(0)), None);
        peers.heard(peer(1), at(0));
        fetch(at(0));
        assert_eq!(table(&peers, at(0)), SyncTable::Whole);
        (1..40).for_each(|second| peers.heard(peer(1), at(second)));
        assert_eq!((peers.take_wanted(at(40)), table(&peers, at(40))), (None, SyncTable::Whole));

        peers.heard(peer(1), at(43));
        assert_eq!(table(&peers, at(43)), SyncTable::Stale);
        fetch(at(43));
        // Not again at once.
        peers.lost();
        assert_eq!((peers.take_wanted(at(44)), table(&peers, at(44))), (None, SyncTable::Stale));
        assert_eq!(peers.take_wanted(at(73)), Some(peer(1)));
        // What is lost during a transfer may be missing in it.
        peers.moves(peer(1), 1, 8);
        peers.lost();
        peers.has_whole(peer(1), at(74));
        assert_eq!(table(&peers, at(74)), SyncTable::Stale);

        assert_eq!(peers.take_wanted(at(104)), Some(peer(1)));
        peers.has_none(peer(1), "it is a kernel".to_owned(), at(105));
        assert_eq!(peers.report(at(105))[0].why.as_deref(), Some("it is a kernel"));
        assert_eq!((peers.take_wanted(at(106)), peers.take_wanted(at(115))), (None, Some(peer(1))));
    }

    #[test]
    fn forged_addresses_do_not_displace_a_director_that_is_heard() {
        let (peers, begun) = (Peers::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        for second in 0..200 {
            peers.heard(peer(1), at(second));
            peers.heard(peer(2 + second as u8), at(second));
        }
        let report = peers.report(at(200));
        assert_eq!(report.len(), MOST);
        assert_eq!(report[0].address, peer(1).ip());
    }
}
