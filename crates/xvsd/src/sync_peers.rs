//! The other directors that a daemon knows: the messages of each, and the progress of its connection table's transfer.
//!
//! Written by the daemon's threads, read for `xvs status`. A backup daemon wants a director's table when it first hears
//! the director, and again after it may have missed messages.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use xvs_model::report::status::{SyncPeer, SyncTable};

use xvs_ctl::sync::receiver::Refused;
use xvs_model::report::warning::{Warning, WarningKind};

use crate::lock::lock;

/// The peers of both daemons.
#[derive(Debug, Default)]
pub(crate) struct SyncPeers {
    /// The peers that have asked the master daemon for the table.
    pub(crate) master: Arc<Peers>,
    /// The peers that the backup daemon hears.
    pub(crate) backup: Arc<Peers>,
}

/// The peers of a daemon, by their address; the port is that of their tables.
#[derive(Debug, Default)]
pub(crate) struct Peers(Mutex<BTreeMap<SocketAddr, Peer>>);

#[derive(Debug)]
struct Peer {
    /// When the last message of the peer came.
    heard: Option<Instant>,
    /// The number of messages that were read.
    messages: u64,
    refused_messages: u64,
    /// When the last refused message came, and why it was refused.
    refusal: Option<(Instant, Refused)>,
    /// Whether the peer has shown that it has the key.
    has_key: bool,
    /// Whether `--sync-peers` names the peer.
    is_named: bool,
    /// Why the peer's table is wanted, and when it may be requested.
    wanted: Option<&'static str>,
    not_before: Instant,
    table: SyncTable,
    /// Connections that were sent or received, and the number of all.
    connections: u64,
    of: u64,
    /// Why the peer's table is not complete.
    why: Option<String>,
}

impl Peers {
    /// Adds the peers that `--sync-peers` names.
    pub(crate) fn expect(&self, named: &[IpAddr], port: u16, now: Instant) {
        lock(&self.0).extend(named.iter().map(|address| {
            let peer = Peer { is_named: true, why: Some(UNHEARD.to_owned()), ..Peer::new(now) };
            (SocketAddr::new(*address, port), peer)
        }));
    }

    /// A message of a peer has come, and was read or refused. Without a key here the peer's table is not fetched.
    pub(crate) fn heard(&self, from: SocketAddr, has_key: bool, read: Result<(), Refused>, now: Instant) {
        let is_signed = has_key && read.is_ok();
        let mut all = lock(&self.0);
        if let Err(why @ Refused::SyncId(_)) = read {
            // Other clusters may share the group. A named peer belongs to this one.
            if let Some(peer) = all.get_mut(&from).filter(|peer| peer.is_named) {
                peer.refuse(why, now);
            }
            return;
        }
        if !all.contains_key(&from) {
            if !make_room(&mut all, is_signed, now) {
                return;
            }
            all.insert(from, Peer::new(now));
        }
        let Some(peer) = all.get_mut(&from) else { return };
        match peer.heard {
            None if read == Err(Refused::NotOfPeer) => peer.why = Some(STRANGER.to_owned()),
            None => {
                peer.wanted = Some(HEARD);
                peer.why = Some(if has_key { HEARD } else { KEYLESS }.to_owned());
            }
            // A director is heard each second.
            Some(heard) if now.duration_since(heard) >= GAP => peer.miss("it was silent for some seconds"),
            Some(_) => {}
        }
        (peer.heard, peer.has_key) = (Some(now), peer.has_key || is_signed);
        match read {
            Ok(()) => peer.messages += 1,
            Err(why) => peer.refuse(why, now),
        }
    }

    /// The warnings about peers whose messages were refused lately.
    pub(crate) fn refusals(&self, now: Instant) -> Vec<Warning> {
        let all = lock(&self.0);
        all.iter()
            .filter_map(|(address, peer)| {
                let (_, why) = peer.refusal.filter(|(at, _)| now.duration_since(*at) < OLD)?;
                let address = address.ip();
                let text = format!(
                    "synchronization: a message from {address} was refused in the last minute: {why}"
                );
                Some(Warning::new(WarningKind::SyncMessageRefused, address, text))
            })
            .collect()
    }

    /// Messages were lost here: the tables of all heard peers are wanted again.
    pub(crate) fn lost(&self) {
        for peer in lock(&self.0).values_mut().filter(|peer| peer.heard.is_some()) {
            peer.miss("messages were lost here");
        }
    }

    /// Takes the peer whose table is wanted now: peers with the key first, then the one that waits longest.
    pub(crate) fn take_wanted(&self, now: Instant) -> Option<SocketAddr> {
        let mut all = lock(&self.0);
        let (address, peer) = all
            .iter_mut()
            .filter(|(_, peer)| peer.wanted.is_some() && peer.not_before <= now && !peer.is_stranger())
            .min_by_key(|(_, peer)| (!peer.has_key, peer.not_before))?;
        (peer.wanted, peer.table, peer.connections, peer.of) = (None, SyncTable::Moving, 0, 0);
        Some(*address)
    }

    /// This many connections of a table were sent or received. The peer has the key.
    pub(crate) fn moves(&self, peer: SocketAddr, connections: u64, of: u64) {
        let mut all = lock(&self.0);
        if !all.contains_key(&peer) && make_room(&mut all, true, Instant::now()) {
            all.insert(peer, Peer::new(Instant::now()));
        }
        if let Some(peer) = all.get_mut(&peer) {
            peer.has_key = true;
            (peer.table, peer.connections, peer.of, peer.why) = (SyncTable::Moving, connections, of, None);
        }
    }

    /// All of a table was sent or received.
    pub(crate) fn has_whole(&self, peer: SocketAddr, now: Instant) {
        if let Some(peer) = lock(&self.0).get_mut(&peer) {
            // Messages may have been missed in the meantime.
            peer.table = if peer.wanted.is_some() { SyncTable::Stale } else { SyncTable::Whole };
            peer.why = peer.wanted.map(str::to_owned);
            (peer.of, peer.not_before) = (peer.connections, now + AFTER_ALL);
        }
    }

    /// Records that a table was not sent or received. Returns whether that is news. A machine that requests it without
    /// the key is not a peer.
    pub(crate) fn has_none(&self, address: SocketAddr, why: &str, now: Instant) -> bool {
        let mut all = lock(&self.0);
        let Some(peer) = all.get_mut(&address) else { return false };
        let is_news = peer.why.as_deref() != Some(why);
        (peer.table, peer.why) = (SyncTable::None, Some(why.to_owned()));
        (peer.wanted, peer.not_before) = (peer.heard.map(|_| HEARD), now + AFTER_FAILURE);
        is_news
    }

    /// The daemon has ended.
    pub(crate) fn forget(&self) {
        lock(&self.0).clear();
    }

    /// The report for `xvs status`.
    pub(crate) fn report(&self, now: Instant) -> Vec<SyncPeer> {
        lock(&self.0).iter().map(|(address, peer)| peer.report(address.ip(), now)).collect()
    }
}

impl Peer {
    fn new(now: Instant) -> Self {
        Self {
            heard: None,
            messages: 0,
            refused_messages: 0,
            refusal: None,
            has_key: false,
            is_named: false,
            wanted: None,
            not_before: now,
            table: SyncTable::None,
            connections: 0,
            of: 0,
            why: None,
        }
    }

    fn report(&self, address: IpAddr, now: Instant) -> SyncPeer {
        let silence = self.heard.map(|heard| now.saturating_duration_since(heard));
        let is_lost = self.table == SyncTable::Whole && silence.is_some_and(|silence| silence >= GAP);
        SyncPeer {
            address,
            silent_seconds: silence.map(|silence| silence.as_secs()),
            messages: self.messages,
            refused_messages: self.refused_messages,
            refused: self.refusal.map(|(_, why)| why.to_string()),
            table: if is_lost { SyncTable::Stale } else { self.table },
            connections: self.connections,
            of: self.of,
            why: if is_lost { Some("it is not heard".to_owned()) } else { self.why.clone() },
        }
    }

    /// Whether `--sync-peers` names other peers alone.
    fn is_stranger(&self) -> bool {
        matches!(self.refusal, Some((_, Refused::NotOfPeer)))
    }

    fn refuse(&mut self, why: Refused, now: Instant) {
        (self.refused_messages, self.refusal) = (self.refused_messages + 1, Some((now, why)));
    }

    fn miss(&mut self, why: &'static str) {
        self.wanted = Some(why);
        if self.table == SyncTable::Whole {
            (self.table, self.why) = (SyncTable::Stale, Some(why.to_owned()));
        }
    }
}

/// Makes room for a peer by forgetting one that was not heard for long, or, for a peer with the key, one that has not
/// shown it; none that is named. Returns whether there is room.
fn make_room(all: &mut BTreeMap<SocketAddr, Peer>, has_key: bool, now: Instant) -> bool {
    if all.len() >= MOST {
        let old = all.iter().find(|(_, peer)| {
            let is_silent = peer.heard.is_none_or(|heard| now.duration_since(heard) >= OLD);
            !peer.is_named && (is_silent || has_key && !peer.has_key)
        });
        if let Some(address) = old.map(|(address, _)| *address) {
            all.remove(&address);
        }
    }
    all.len() < MOST
}

/// Why a table is wanted, or is not fetched.
const HEARD: &str = "it was heard just now";
const KEYLESS: &str = "this director has no sync_key_file";
const UNHEARD: &str = "nothing was heard from it";
const STRANGER: &str = "it is none of the daemon's --sync-peers";
/// More peers are not followed.
const MOST: usize = 16;
/// A peer that was not heard for this time may be forgotten.
const OLD: Duration = Duration::from_secs(60);
/// After this time without a message, messages may have been missed.
const GAP: Duration = Duration::from_secs(3);
/// The minimum time between two tables for a peer.
const AFTER_ALL: Duration = Duration::from_secs(30);
/// The minimum time until a table that was refused or cut is requested again.
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
        peers.heard(peer(1), true, Ok(()), at(0));
        fetch(at(0));
        assert_eq!(table(&peers, at(0)), SyncTable::Whole);
        (1..40).for_each(|second| peers.heard(peer(1), true, Ok(()), at(second)));
        assert_eq!((peers.take_wanted(at(40)), table(&peers, at(40))), (None, SyncTable::Whole));

        // Without any further message it is not in sync either.
        assert_eq!(table(&peers, at(43)), SyncTable::Stale);
        peers.heard(peer(1), true, Ok(()), at(43));
        assert_eq!(table(&peers, at(43)), SyncTable::Stale);
        fetch(at(43));
        // Not again at once.
        peers.lost();
        assert_eq!((peers.take_wanted(at(44)), table(&peers, at(44))), (None, SyncTable::Stale));
        assert_eq!(peers.take_wanted(at(73)), Some(peer(1)));
        // Messages that are lost during a transfer may be missing in it.
        peers.moves(peer(1), 1, 8);
        peers.lost();
        peers.has_whole(peer(1), at(74));
        assert_eq!(table(&peers, at(74)), SyncTable::Stale);
        assert_eq!(peers.report(at(74))[0].why.as_deref(), Some("messages were lost here"));

        assert_eq!(peers.take_wanted(at(104)), Some(peer(1)));
        assert!(peers.has_none(peer(1), "it is a kernel", at(105)));
        assert!(!peers.has_none(peer(1), "it is a kernel", at(105)));
        assert!(!peers.has_none(peer(2), "it has no key", at(105)));
        assert_eq!(peers.report(at(105))[0].why.as_deref(), Some("it is a kernel"));
        assert_eq!((peers.take_wanted(at(106)), peers.take_wanted(at(115))), (None, Some(peer(1))));
    }

    #[test]
    fn a_named_peer_is_there_before_it_is_heard_and_strangers_neither_displace_it_nor_are_asked_for_tables() {
        let (peers, begun) = (Peers::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let why = |now| peers.report(now)[0].why.clone().unwrap_or_default();
        peers.expect(&[peer(1).ip()], 8848, at(0));
        assert_eq!((why(at(0)).as_str(), peers.take_wanted(at(0))), (UNHEARD, None));
        for second in 0..200 {
            peers.heard(peer(2 + second as u8), true, Err(Refused::NotOfPeer), at(second));
        }
        peers.lost();
        assert_eq!((why(at(200)).as_str(), peers.take_wanted(at(200))), (UNHEARD, None));
        assert_eq!(peers.report(at(200))[1].why.as_deref(), Some(STRANGER));
        for from in [peer(1), peer(250)] {
            peers.heard(from, true, Err(Refused::SyncId(7)), at(200));
        }
        let of_other_id: Vec<_> =
            peers.refusals(at(200)).into_iter().filter(|said| said.text.contains("sync id 7")).collect();
        let needed = format!("{} was refused in the last minute: it is of sync id 7; both", peer(1).ip());
        assert!(of_other_id.len() == 1 && of_other_id[0].text.contains(&needed), "{of_other_id:?}");
        assert_eq!((why(at(200)).as_str(), peers.take_wanted(at(200))), (UNHEARD, None));
        peers.heard(peer(1), true, Ok(()), at(200));
        assert_eq!((why(at(200)).as_str(), peers.take_wanted(at(200))), (HEARD, Some(peer(1))));
    }

    #[test]
    fn forged_addresses_do_not_displace_a_director_that_is_heard() {
        let (peers, begun) = (Peers::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        for second in 0..200 {
            peers.heard(peer(1), true, Ok(()), at(second));
            peers.heard(peer(2 + second as u8), false, Ok(()), at(second));
        }
        let report = peers.report(at(200));
        assert_eq!(report.len(), MOST);
        assert_eq!(report[0].address, peer(1).ip());
        assert_eq!(report[1].why.as_deref(), Some(KEYLESS));
    }
}
