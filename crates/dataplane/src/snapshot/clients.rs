//! The clients of services with limits: the connections that each has, and when it may begin the next one.
//!
//! A client is a network of a configured length (`[limits]` in xvs.toml), by default an IPv4 address and an IPv6 /64,
//! at one service. All workers share one table of fixed size, in sets of eight; a keyed hash chooses the set, so no
//! sender can deliberately fill the set of another client. A new client replaces one without connections: the one that
//! has been free to connect again for the longest time. If all clients in the set have connections, the new client is
//! not limited, and its connections are counted as unlimited.
//!
//! Each client has two integers, changed by compare-and-swap, so that no worker waits: its tag with the number of its
//! connections, and the earliest time of its next connection (the generic cell rate algorithm, ITU-T I.371). If a
//! client is replaced while another worker looks it up, that worker looks it up again. Cost for a new connection to a
//! service with a limit: two cache lines; for others: nothing. `new_connection/limit.rs` checks packets.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU64, AtomicUsize};

use xvs_proto::{Endpoint, Family, HashSecret, Prefix, Protocol};
use xvs_sched::{ClientLimit, ServiceKey};

use crate::clock::Millis;

/// Clients by service. Without memory until [`Self::provide`].
pub struct Clients {
    settings: ClientSettings,
    secret: HashSecret,
    sets: OnceLock<Box<[Set]>>,
    /// The number of connections that were admitted because their client found no slot.
    unlimited: AtomicUsize,
}

/// The size of the table, and the definition of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSettings {
    /// Maximum number of clients that are known at once.
    pub clients: usize,
    /// The length of a client's network, in bits: for IPv4 and for IPv6.
    pub lengths: [u8; 2],
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { clients: 65_536, lengths: [32, 64] }
    }
}

#[derive(Default)]
#[repr(align(64))]
struct Set([Slot; WAYS]);

#[derive(Default)]
struct Slot {
    /// A tag in the upper 40 bits, never 0, and the number of connections in the lower 24; 0 if empty.
    owner: AtomicU64,
    /// When the client could make its next connection without a burst, in nanoseconds of the clock.
    due: AtomicU64,
    /// New connections that were refused.
    refused: AtomicU64,
    /// The hash of the service, and the network's address: only for listings.
    service: AtomicU64,
    addr: [AtomicU64; 2],
}

/// The result of counting a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Yes,
    /// The count is at its limit.
    Full,
    /// The slot now belongs to another client.
    Replaced,
}

/// Why a client may not connect now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has the most connections that it may have.
    Connections,
    /// The client has begun too many connections in too short a time.
    Rate,
}

/// A client in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// The client's network.
    pub network: Prefix,
    /// The hash of the client's service, from [`Clients::hash_of`].
    pub service: u64,
    /// The number of the client's connections, if the service limits them.
    pub connections: u32,
    /// The number of the client's new connections that were refused.
    pub refused: u64,
}

impl Clients {
    /// An empty table, which takes memory once it is provided. Different secrets put clients into unrelated sets.
    pub fn new(settings: ClientSettings, secret: HashSecret) -> Self {
        Self { settings, secret, sets: OnceLock::new(), unlimited: AtomicUsize::new(0) }
    }

    /// Allocates the table, unless it is already allocated. Never called by a worker.
    pub fn provide(&self) {
        let sets = self.settings.clients.div_ceil(WAYS).next_power_of_two();
        self.sets.get_or_init(|| (0..sets).map(|_| Set::default()).collect());
    }

    /// Whether a connection may be counted: a service has or had limits.
    pub fn are_counted(&self) -> bool {
        self.sets.get().is_some()
    }

    /// A table with the same contents that changes independently.
    pub(crate) fn separate_copy(&self) -> Self {
        let copied = Self::new(self.settings, self.secret);
        if let Some(sets) = self.sets.get() {
            let sets = sets.iter().map(|set| Set(set.0.each_ref().map(Slot::separate_copy)));
            _ = copied.sets.set(sets.collect());
        }
        copied
    }

    /// Counts a client's new connection, if the limit allows it. `Ok(false)`: its connections are not counted, because
    /// the limit does not include a number of connections or the client found no slot.
    ///
    /// # Errors
    ///
    /// The limit refuses it.
    pub(crate) fn admit(
        &self,
        key: ServiceKey,
        client: IpAddr,
        limit: ClientLimit,
        now: Millis,
    ) -> Result<bool, Refusal> {
        let counted = limit.connections > 0;
        for _ in 0..WAYS {
            let Some((slot, tag)) = self.slot(key, client, now) else { break };
            let admitted = match counted.then(|| slot.increment(tag, limit.connections)) {
                Some(Counted::Replaced) => continue,
                Some(Counted::Full) => Err(Refusal::Connections),
                Some(Counted::Yes) | None if limit.rate == 0 || slot.take(limit, now) => Ok(counted),
                Some(Counted::Yes) | None => Err(Refusal::Rate),
            };
            if admitted.is_err() {
                slot.refused.fetch_add(1, Relaxed);
            }
            if counted && admitted == Err(Refusal::Rate) {
                self.release(key, client);
            }
            return admitted;
        }
        self.unlimited.fetch_add(1, Relaxed);
        Ok(false)
    }

    /// Whether the rate of a limit would refuse a client's new connection now, which is then counted as refused.
    pub(crate) fn is_above(&self, key: ServiceKey, client: IpAddr, limit: ClientLimit, now: Millis) -> bool {
        let Some((set, tag)) = self.set(self.hash(key, client)) else { return false };
        set.0
            .iter()
            .find(|slot| slot.tag() == tag)
            .filter(|slot| next_due(limit.rate, limit.burst, slot.due.load(Relaxed), now).is_none())
            .inspect(|slot| _ = slot.refused.fetch_add(1, Relaxed))
            .is_some()
    }

    /// Counts an existing connection after a start. Returns `false` if its client found no slot.
    pub fn resume(&self, key: ServiceKey, client: IpAddr) -> bool {
        self.provide();
        let slot = self.slot(key, client, Millis(0));
        let is_counted = slot.is_some_and(|(slot, tag)| slot.increment(tag, CONNECTIONS_MAX) == Counted::Yes);
        if !is_counted {
            self.unlimited.fetch_add(1, Relaxed);
        }
        is_counted
    }

    /// Removes a connection that [`Self::admit`] has counted from the count.
    pub(crate) fn release(&self, key: ServiceKey, client: IpAddr) {
        let Some((set, tag)) = self.set(self.hash(key, client)) else { return };
        // Two workers that met a client at once may have given it two slots; each counts its own connections.
        let _ = set.0.iter().any(|slot| slot.decrement(tag));
    }

    /// The number of connections that were admitted because their client found no slot.
    pub fn unlimited(&self) -> usize {
        self.unlimited.load(Relaxed)
    }

    /// The clients that have connections or were refused, in no particular order. A client that is being replaced may
    /// appear with the numbers of another one.
    pub fn iter(&self) -> impl Iterator<Item = Client> {
        self.sets.get().into_iter().flatten().flat_map(|set| &set.0).filter_map(|slot| {
            let connections = slot.connections();
            let refused = slot.refused.load(Relaxed);
            let [high, low] = slot.addr.each_ref().map(|word| word.load(Relaxed));
            // An IPv4 address is stored as a mapped one.
            let addr = Ipv6Addr::from(u128::from(high) << 64 | u128::from(low)).to_canonical();
            (slot.tag() != 0 && (connections > 0 || refused > 0)).then_some(Client {
                network: Prefix::new(addr, self.settings.lengths[Family::of(addr) as usize])?,
                service: slot.service.load(Relaxed),
                connections,
                refused,
            })
        })
    }

    /// The hash by which a listing names a service.
    pub fn hash_of(&self, key: ServiceKey) -> u64 {
        match key {
            ServiceKey::Address { protocol, endpoint } => {
                self.secret.mix(self.secret.word(endpoint), 0, protocol)
            }
            ServiceKey::Mark { mark, family } => {
                self.secret.mix(u64::from(mark) | 1 << 63, family as u64, Protocol(0))
            }
        }
    }

    fn network(&self, client: IpAddr) -> IpAddr {
        Prefix::new(client, self.settings.lengths[Family::of(client) as usize]).map_or(client, Prefix::addr)
    }

    fn hash(&self, key: ServiceKey, client: IpAddr) -> u64 {
        let client = Endpoint { addr: self.network(client), port: 0 };
        self.secret.mix(self.hash_of(key), self.secret.word(client), Protocol(1))
    }

    fn set(&self, hash: u64) -> Option<(&Set, u64)> {
        let sets = self.sets.get()?;
        Some((&sets[hash as usize & (sets.len() - 1)], (hash >> CONNECTIONS_BITS).max(1)))
    }

    /// The client's slot, possibly just taken from another client, with its tag.
    fn slot(&self, key: ServiceKey, client: IpAddr, now: Millis) -> Option<(&Slot, u64)> {
        let (set, tag) = self.set(self.hash(key, client))?;
        for _ in 0..WAYS {
            if let Some(slot) = set.0.iter().find(|slot| slot.tag() == tag) {
                return Some((slot, tag));
            }
            let slot = set
                .0
                .iter()
                .filter(|slot| slot.connections() == 0)
                .min_by_key(|slot| (slot.tag() != 0, slot.due.load(Relaxed)))?;
            let former = slot.owner.load(Relaxed);
            // Relaxed: the fields of a slot order no other memory.
            if former & u64::from(CONNECTIONS_MAX) == 0
                && slot.owner.compare_exchange(former, tag << CONNECTIONS_BITS, Relaxed, Relaxed).is_ok()
            {
                slot.due.store(nanoseconds(now), Relaxed);
                slot.refused.store(0, Relaxed);
                slot.service.store(self.hash_of(key), Relaxed);
                let bits = match self.network(client) {
                    IpAddr::V4(addr) => addr.to_ipv6_mapped().to_bits(),
                    IpAddr::V6(addr) => addr.to_bits(),
                };
                slot.addr[0].store((bits >> 64) as u64, Relaxed);
                slot.addr[1].store(bits as u64, Relaxed);
                return Some((slot, tag));
            }
        }
        None
    }
}

impl Slot {
    fn separate_copy(&self) -> Self {
        Self {
            owner: copy(&self.owner),
            due: copy(&self.due),
            refused: copy(&self.refused),
            service: copy(&self.service),
            addr: self.addr.each_ref().map(copy),
        }
    }

    fn tag(&self) -> u64 {
        self.owner.load(Relaxed) >> CONNECTIONS_BITS
    }

    fn connections(&self) -> u32 {
        (self.owner.load(Relaxed) & u64::from(CONNECTIONS_MAX)) as u32
    }

    /// Counts a connection, if the slot still has this tag and counts fewer than `most`.
    fn increment(&self, tag: u64, most: u32) -> Counted {
        let mut refused = Counted::Full;
        self.owner
            .fetch_update(Relaxed, Relaxed, |owner| {
                let connections = (owner & u64::from(CONNECTIONS_MAX)) as u32;
                refused = if owner >> CONNECTIONS_BITS == tag { Counted::Full } else { Counted::Replaced };
                (refused == Counted::Full && connections < most.min(CONNECTIONS_MAX)).then_some(owner + 1)
            })
            .map_or(refused, |_| Counted::Yes)
    }

    /// Removes a connection from the count, if the slot has this tag and counts at least one.
    fn decrement(&self, tag: u64) -> bool {
        self.owner
            .fetch_update(Relaxed, Relaxed, |owner| {
                let has_one = owner >> CONNECTIONS_BITS == tag && owner & u64::from(CONNECTIONS_MAX) > 0;
                has_one.then(|| owner - 1)
            })
            .is_ok()
    }

    /// Consumes the permission for a new connection, if the rate gives one now.
    fn take(&self, limit: ClientLimit, now: Millis) -> bool {
        self.due.fetch_update(Relaxed, Relaxed, |due| next_due(limit.rate, limit.burst, due, now)).is_ok()
    }
}

fn copy(word: &AtomicU64) -> AtomicU64 {
    AtomicU64::new(word.load(Relaxed))
}

/// The generic cell rate algorithm, for a rate per second and a burst (0 means the rate). If the next event, which is
/// due at `due`, may happen now, returns when the one after it is due. Times in nanoseconds of the clock.
pub(super) fn next_due(rate: u32, burst: u32, due: u64, now: Millis) -> Option<u64> {
    let now = nanoseconds(now);
    let (interval, early) = interval_and_early(rate, burst);
    // Time advances in milliseconds, so an event that is due within one is due now.
    let early = early.max(MILLISECOND - 1);
    (due <= now + early).then(|| due.max(now) + interval)
}

/// The time between two events at a rate per second, and how much earlier a burst (0 means the rate) permits one, in
/// nanoseconds.
pub(crate) fn interval_and_early(rate: u32, burst: u32) -> (u64, u64) {
    let interval = SECOND / u64::from(rate);
    (interval, interval * u64::from(if burst == 0 { rate } else { burst } - 1))
}

fn nanoseconds(time: Millis) -> u64 {
    time.0 * MILLISECOND
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(ClientSettings::default(), HashSecret([0; 3]))
    }
}

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000_000_000;
/// The clients of a set.
const WAYS: usize = 8;
const CONNECTIONS_BITS: u32 = 24;
/// Maximum number of a client's connections that are counted.
const CONNECTIONS_MAX: u32 = (1 << CONNECTIONS_BITS) - 1;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::atomic::AtomicU32;
    use std::thread;

    use xvs_sched::Above;

    use super::*;

    const SECRET: HashSecret =
        HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]);

    fn clients(clients: usize) -> Clients {
        let known = Clients::new(ClientSettings { clients, ..ClientSettings::default() }, SECRET);
        known.provide();
        known
    }

    fn key(port: u16) -> ServiceKey {
        ServiceKey::tcp(Endpoint::new(Ipv4Addr::new(198, 51, 100, 1), port))
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    const THREE: ClientLimit =
        ClientLimit { connections: 3, rate: 0, burst: 0, above: Above::Drop, syn_rate: 0, syn_burst: 0 };

    #[test]
    fn workers_that_admit_and_release_at_once_never_exceed_the_limit_and_leave_no_connection_counted() {
        let (known, current, most) = (clients(64), AtomicU32::new(0), AtomicU32::new(0));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if known.admit(key(80), client(1), THREE, Millis(1)).is_ok() {
                            most.fetch_max(current.fetch_add(1, Relaxed) + 1, Relaxed);
                            current.fetch_sub(1, Relaxed);
                            known.release(key(80), client(1));
                        }
                    }
                });
            }
        });
        assert!((1..=3).contains(&most.into_inner()));
        assert!(known.iter().all(|client| client.connections == 0));
        assert_eq!(
            [(); 4].map(|()| known.admit(key(80), client(1), THREE, Millis(1)).is_ok()),
            [true, true, true, false]
        );
    }

    #[test]
    fn a_client_that_got_two_places_from_two_workers_at_once_is_counted_out_of_both() {
        let known = clients(WAYS);
        assert_eq!(known.admit(key(80), client(1), THREE, Millis(1)), Ok(true));
        let (set, tag) = known.set(known.hash(key(80), client(1))).unwrap();
        // The other worker has not found the first slot yet, and takes the next one.
        assert_eq!(set.0[1].owner.compare_exchange(0, tag << CONNECTIONS_BITS, Relaxed, Relaxed), Ok(0));
        assert_eq!(set.0[1].increment(tag, 3), Counted::Yes);
        let connections = || [0, 1].map(|place| set.0[place].connections());
        assert_eq!(connections(), [1, 1]);
        for _ in 0..2 {
            known.release(key(80), client(1));
        }
        assert_eq!(connections(), [0, 0]);
    }

    #[test]
    fn a_client_whose_place_another_one_has_taken_meanwhile_is_not_counted_there() {
        let known = clients(WAYS);
        let (slot, tag) = known.slot(key(80), client(1), Millis(1)).unwrap();
        // The other slots have connections.
        for number in 2..=WAYS as u32 + 1 {
            assert_eq!(known.admit(key(80), client(number), THREE, Millis(1)), Ok(true));
        }
        assert_eq!(slot.increment(tag, 3), Counted::Replaced);
        assert_eq!(known.admit(key(80), client(1), THREE, Millis(1)), Ok(false));
        assert_eq!(known.iter().map(|client| client.connections).sum::<u32>(), WAYS as u32);
    }

    #[test]
    fn a_client_with_connections_keeps_its_place_and_one_without_makes_room() {
        let known = clients(WAYS);
        for number in 0..WAYS as u32 {
            assert_eq!(known.admit(key(80), client(number), THREE, Millis(1)), Ok(true));
        }
        assert_eq!(known.admit(key(80), client(100), THREE, Millis(1)), Ok(false), "not counted");
        assert_eq!(known.unlimited(), 1);
        known.release(key(80), client(3));
        assert_eq!(known.admit(key(80), client(100), THREE, Millis(1)), Ok(true));
        known.release(key(80), client(3));
        let counted: u32 = known.iter().map(|client| client.connections).sum();
        assert_eq!(counted, WAYS as u32, "a client that is not known is not counted out");
    }

    #[test]
    fn a_copy_has_the_same_numbers_and_changes_alone() {
        let known = clients(64);
        let admit = |known: &Clients| known.admit(key(80), client(1), THREE, Millis(1));
        assert_eq!(admit(&known), Ok(true));
        let copy = known.separate_copy();
        assert_eq!([(); 3].map(|()| admit(&copy)), [Ok(true), Ok(true), Err(Refusal::Connections)]);
        assert_eq!([(); 3].map(|()| admit(&known)), [Ok(true), Ok(true), Err(Refusal::Connections)]);
    }

    #[test]
    fn services_are_apart_and_a_listing_names_client_and_service() {
        let known = clients(64);
        for port in [80, 443, 443] {
            assert_eq!(known.admit(key(port), client(1), THREE, Millis(1)), Ok(true));
        }
        let mut listed: Vec<_> =
            known.iter().map(|one| (one.network, one.service, one.connections)).collect();
        listed.sort_by_key(|one| one.2);
        let network = Prefix::host(client(1));
        assert_eq!(listed, [(network, known.hash_of(key(80)), 1), (network, known.hash_of(key(443)), 2)]);
    }

    #[test]
    fn without_memory_every_client_is_admitted_and_none_is_counted() {
        let known = Clients::default();
        assert_eq!(known.admit(key(80), client(1), THREE, Millis(1)), Ok(false));
        known.release(key(80), client(1));
        assert_eq!(known.iter().count(), 0);
    }
}
