//! The format of a connection in its entry.
//!
//! The integers that identify a connection are compared whole, so a look-up costs two loads and two comparisons. IPv6
//! addresses and a local endpoint do not fit; they are in the entry's extension, one more cache line that only such
//! connections use. The field `life` contains phase, state and deadline. A removed entry keeps its endpoints readable
//! for packets that are being processed, and stores the next entry of its chain in `life`. `handle.rs` determines which
//! thread may change the phase, and when.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use xvs_proto::plain::{AddressesV6, Plain};
use xvs_proto::{Endpoint, FlowKey, Protocol};
use xvs_sched::ForwardingMethod;

use super::direction::Direction;
use super::flags::Flags;
use super::insertion::{Kind, NewConnection, Removal};
use super::life::{Life, OFFLOADED, Phase};
use crate::shm::atomic::{AtomicU64, Ordering};
use crate::shm::layout::{Entry, Extension, Numbers};

/// The value of `controlled` that admits no more connections.
pub(super) const REMOVED: u32 = u32::MAX;

/// A flow encoded as in an entry. For IPv4 the comparison of these integers suffices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed<'a> {
    flow: &'a FlowKey,
    source: u64,
    dest: u64,
    /// Protocol and family.
    about: u64,
}

impl<'a> Packed<'a> {
    /// Encodes a flow. Source and destination have the same family.
    #[inline]
    pub(super) fn of(flow: &'a FlowKey) -> Self {
        let about = u64::from(flow.protocol.0) << 8;
        let source = u64::from(flow.source.port) << 16;
        let dest = u64::from(flow.dest.port) << 16;
        match (flow.source.addr, flow.dest.addr) {
            (IpAddr::V4(from), IpAddr::V4(to)) => Self {
                flow,
                source: u64::from(u32::from(from)) << 32 | source,
                dest: u64::from(u32::from(to)) << 32 | dest,
                about,
            },
            _ => Self { flow, source, dest, about: about | IPV6 },
        }
    }
}

/// An entry, with its extension (read only if the entry has the bit for it) and its numbers (only with a flag).
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) entry: &'a Entry,
    pub(super) extension: &'a Extension,
    pub(super) numbers: &'a Numbers,
}

impl Record<'_> {
    /// Writes a new connection into an entry that no other thread can reach. `timer` is the tick of its first link.
    pub(super) fn fill(self, new: &NewConnection, timer: u32) {
        // Relaxed: the compare-and-swap that puts the index into a bucket releases all these stores.
        let order = Ordering::Relaxed;
        let entry = self.entry;
        let Packed { source, dest, about, .. } = Packed::of(&new.request_flow());
        let mut dest_addr = (word(new.dest) >> 32) as u32;
        let mut endpoint = dest | new.method as u64;
        if new.is_wide() {
            endpoint |= EXTENDED;
            dest_addr = 0;
            store(&self.extension.client, new.client.addr);
            store(&self.extension.virtual_addr, new.virtual_endpoint.addr);
            store(&self.extension.dest, new.dest.addr);
            if new.dest.addr.is_ipv6() {
                endpoint |= DEST_IPV6;
            }
            if let Some(local) = new.local {
                endpoint |= LOCAL;
                dest_addr = local.port.into();
                store(&self.extension.local, local.addr);
            } else {
                self.extension.local.iter().for_each(|word| word.store(0, order));
            }
        }
        entry.client.store(source | about | new.kind() as u64, order);
        entry.virtual_endpoint.store(endpoint, order);
        entry.dest_addr.store(dest_addr, order);
        entry.dest_port.store(new.dest.port, order);
        entry.flags.store(new.flags.0, order);
        entry.spare.store(new.spare.0, order);
        entry.dest.store(new.dest_ref, order);
        entry.controller.store(new.controller.map_or(0, |controller| controller.0 + 1), order);
        entry.controlled.store(0, order);
        entry.in_packets.store(0, order);
        entry.mark.store(new.mark, order);
        entry.timer.store(timer, order);
        entry.life.store(Life::new(Phase::Pending, new.state, new.expires).0, order);
    }

    /// The direction of a packet in this flow, if it belongs to this connection. Templates match no packet.
    ///
    /// Source: kernel, `net/netfilter/ipvs/ip_vs_conn.c`: a reply comes from the destination if the method is
    /// masquerading, otherwise from the virtual endpoint.
    #[inline]
    pub(super) fn direction(self, flow: &Packed<'_>) -> Option<Direction> {
        if self.is(flow, Kind::Connection) {
            return Some(Direction::Inbound);
        }
        let replies = match self.entry.virtual_word() & EXTENDED {
            0 => self.entry.client_word() == flow.dest | flow.about && self.entry.replier() == flow.source,
            _ => self.has_replies(flow.flow),
        };
        replies.then_some(Direction::Outbound)
    }

    /// Like [`Self::direction`], for an IPv4 packet with these encoded endpoints. `None` also if only a look-up by the
    /// whole flow can decide.
    #[inline]
    pub(super) fn direction_v4(self, source: u64, dest: u64, protocol: u8) -> Option<Direction> {
        let client = self.entry.client_word();
        let service = self.entry.virtual_word();
        if client & !ENDPOINT != u64::from(protocol) << 8 | Kind::Connection as u64 {
            return self.translated(u64::from(protocol) << 8 | IPV6, |local, replier| {
                word(local) == dest && word(replier) == source
            });
        }
        if client & ENDPOINT == source && service & ENDPOINT == dest {
            return Some(Direction::Inbound);
        }
        let is_reply = match service & (EXTENDED | DEST_IPV6 | LOCAL) {
            0 => client & ENDPOINT == dest && self.entry.replier() == source,
            _ => {
                let (local, replier) = self.towards_dest_v4()?;
                replier == source && local == dest
            }
        };
        is_reply.then_some(Direction::Outbound)
    }

    /// The encoded endpoints of a client's packet when sent to the destination, for a masqueraded connection with IPv4
    /// addresses only.
    #[inline]
    pub(super) fn towards_dest_v4(self) -> Option<(u64, u64)> {
        let service = self.entry.virtual_word();
        match service & (EXTENDED | DEST_IPV6 | LOCAL) {
            0 => Some((self.entry.client_word() & ENDPOINT, self.entry.packed_dest())),
            flags if flags == EXTENDED | LOCAL => {
                let local_port = u64::from(self.entry.dest_addr.load(Ordering::Relaxed)) << 16;
                let port = u64::from(self.entry.dest_port.load(Ordering::Relaxed)) << 16;
                let Extension { local, dest, .. } = self.extension;
                Some((bits_v4(local) << 32 | local_port, bits_v4(dest) << 32 | port))
            }
            _ => None,
        }
    }

    /// The encoded endpoints of a reply when sent to the client, for a connection with IPv4 addresses only.
    #[inline]
    pub(super) fn towards_client_v4(self) -> (u64, u64) {
        (self.entry.virtual_word() & ENDPOINT, self.entry.client_word() & ENDPOINT)
    }

    /// Like [`Self::direction_v4`], for an IPv6 packet, whose encoded endpoints contain only the ports.
    #[inline]
    pub(super) fn direction_v6(self, plain: &Plain, addresses: AddressesV6) -> Option<Direction> {
        let client = self.entry.client_word();
        if client & !ENDPOINT != u64::from(plain.protocol) << 8 | IPV6 | Kind::Connection as u64 {
            return self.translated(u64::from(plain.protocol) << 8, |local, replier| {
                is_v6(local, addresses.dest, plain.dest) && is_v6(replier, addresses.source, plain.source)
            });
        }
        let source = (addresses.source, plain.source);
        let dest = (addresses.dest, plain.dest);
        if self.towards_client_v6() == (source, dest) {
            return Some(Direction::Inbound);
        }
        (self.towards_dest_v6()? == (dest, source)).then_some(Direction::Outbound)
    }

    /// The direction of a packet in another family than the client's, if its ends are the local endpoint and the
    /// destination of its connection. `about`: the protocol and the client's family.
    // Not inlined, to keep the path within a family short.
    #[inline(never)]
    fn translated(self, about: u64, is_its: impl Fn(Endpoint, Endpoint) -> bool) -> Option<Direction> {
        let is_its = self.entry.client_word() & !ENDPOINT == about | Kind::Connection as u64
            && self.is_translated()
            && self.local().is_some_and(|local| is_its(local, self.dest()));
        is_its.then_some(Direction::Outbound)
    }

    /// Whether client and destination belong to different families, with FULLNAT.
    #[inline]
    pub(super) fn is_translated(self) -> bool {
        let service = self.entry.virtual_word();
        service & LOCAL != 0 && (service & DEST_IPV6 == 0) != (self.entry.client_word() & IPV6 == 0)
    }

    /// Like [`Self::towards_dest_v4`], for a connection with IPv6 addresses only: the address, and the port as in an
    /// encoded endpoint.
    #[inline]
    pub(super) fn towards_dest_v6(self) -> Option<((u128, u64), (u128, u64))> {
        let service = self.entry.virtual_word();
        if service & DEST_IPV6 == 0 || !self.method().masquerades() {
            return None;
        }
        let Extension { client, local, dest, .. } = self.extension;
        let source = match service & LOCAL {
            0 => (bits(client), self.entry.client_word() & ENDPOINT),
            _ => (bits(local), u64::from(self.entry.dest_addr.load(Ordering::Relaxed)) << 16),
        };
        let port = u64::from(self.entry.dest_port.load(Ordering::Relaxed)) << 16;
        Some((source, (bits(dest), port)))
    }

    /// The client and the virtual endpoint of an IPv6 connection: the address, and the port as in an encoded endpoint.
    #[inline]
    pub(super) fn towards_client_v6(self) -> ((u128, u64), (u128, u64)) {
        let Extension { client, virtual_addr, .. } = self.extension;
        (
            (bits(client), self.entry.client_word() & ENDPOINT),
            (bits(virtual_addr), self.entry.virtual_word() & ENDPOINT),
        )
    }

    /// Whether the entry can contain a connection or template: a check of memory that another process has left.
    pub(super) fn is_sound(self) -> bool {
        let client = self.entry.client_word();
        let service = self.entry.virtual_word();
        let flags = Flags(self.entry.flags.load(Ordering::Relaxed));
        let local = service & LOCAL != 0;
        client & !(ENDPOINT | PROTOCOL | IPV6 | Kind::Template as u64) == 0
            && service & !(ENDPOINT | METHOD | EXTENDED | DEST_IPV6 | LOCAL) == 0
            && service & METHOD <= ForwardingMethod::FullNat as u64
            && (self.is_wide() || client & IPV6 | service & (DEST_IPV6 | LOCAL) == 0)
            && flags.contains(Flags::TEMPLATE) == self.is_template()
            && (!flags.contains(Flags::FTP) || self.is_wide() && !local)
            && (local || self.is_template() || self.method() != ForwardingMethod::FullNat)
    }

    /// Whether it has an extension.
    pub(super) fn is_wide(self) -> bool {
        self.entry.virtual_word() & EXTENDED != 0
    }

    /// Whether both have equal reply keys and different virtual endpoints. If these are equal, too, both may be one
    /// identity: then one of them loses the insertion and must not shadow the other.
    pub(super) fn shares_reply_key(self, other: Self) -> bool {
        self.virtual_endpoint() != other.virtual_endpoint()
            && self.reply_flow().is_some_and(|flow| other.reply_flow() == Some(flow))
    }

    /// The flow of the client's packets.
    pub(super) fn request_flow(self) -> FlowKey {
        FlowKey { protocol: self.protocol(), source: self.client(), dest: self.virtual_endpoint() }
    }

    /// The flow of replies, if they have a separate key. Templates have none, nor do connections whose replies go from
    /// the virtual endpoint to the client.
    pub(super) fn reply_flow(self) -> Option<FlowKey> {
        let replies = self.replies();
        let found_by_request = replies.source == self.virtual_endpoint() && replies.dest == self.client();
        (!self.is_template() && !found_by_request).then_some(replies)
    }

    pub(super) fn protocol(self) -> Protocol {
        Protocol((self.entry.client_word() >> 8) as u8)
    }

    pub(super) fn client(self) -> Endpoint {
        let word = self.entry.client_word();
        match word & IPV6 {
            0 => unpacked(word),
            family => endpoint(&self.extension.client, family, (word >> 16) as u16),
        }
    }

    pub(super) fn virtual_endpoint(self) -> Endpoint {
        let word = self.entry.virtual_word();
        match self.entry.client_word() & IPV6 {
            0 => unpacked(word),
            family => endpoint(&self.extension.virtual_addr, family, (word >> 16) as u16),
        }
    }

    pub(super) fn dest(self) -> Endpoint {
        let word = self.entry.virtual_word();
        match word & EXTENDED {
            0 => unpacked(self.entry.packed_dest()),
            _ => {
                endpoint(&self.extension.dest, word & DEST_IPV6, self.entry.dest_port.load(Ordering::Relaxed))
            }
        }
    }

    pub(super) fn local(self) -> Option<Endpoint> {
        let word = self.entry.virtual_word();
        // The local endpoint has the destination's family: the destination sends its replies to it.
        (word & LOCAL != 0).then(|| {
            let port = self.entry.dest_addr.load(Ordering::Relaxed);
            endpoint(&self.extension.local, word & DEST_IPV6, port as u16)
        })
    }

    pub(super) fn method(self) -> ForwardingMethod {
        match self.entry.virtual_word() & METHOD {
            method if method == ForwardingMethod::Nat as u64 => ForwardingMethod::Nat,
            method if method == ForwardingMethod::Local as u64 => ForwardingMethod::Local,
            method if method == ForwardingMethod::Tunnel as u64 => ForwardingMethod::Tunnel,
            method if method == ForwardingMethod::FullNat as u64 => ForwardingMethod::FullNat,
            _ => ForwardingMethod::DirectRouting,
        }
    }

    /// Whether the entry is the connection or template with this identity.
    #[inline]
    pub(super) fn is(self, request: &Packed<'_>, kind: Kind) -> bool {
        self.entry.client_word() == request.source | request.about | kind as u64
            && self.entry.virtual_word() & ENDPOINT == request.dest
            && (request.about & IPV6 == 0 || self.is_between(request.flow))
    }

    // Not inlined, like the next function, to keep the IPv4 path short.
    #[inline(never)]
    fn is_between(self, flow: &FlowKey) -> bool {
        self.client() == flow.source && self.virtual_endpoint() == flow.dest
    }

    #[inline(never)]
    fn has_replies(self, flow: &FlowKey) -> bool {
        !self.is_template() && self.replies() == *flow
    }

    /// Whether the connection may be a controller: a template, or an FTP control connection.
    pub(super) fn may_control(self) -> bool {
        self.is_template() || Flags(self.entry.flags.load(Ordering::Relaxed)).contains(Flags::FTP)
    }

    pub(super) fn is_template(self) -> bool {
        self.entry.client_word() & Kind::Template as u64 != 0
    }

    /// The flow of replies, whichever key finds them.
    fn replies(self) -> FlowKey {
        let local = self.local();
        let masqueraded = local.is_some() || self.method() == ForwardingMethod::Nat;
        FlowKey {
            protocol: self.protocol(),
            source: if masqueraded { self.dest() } else { self.virtual_endpoint() },
            dest: local.unwrap_or_else(|| self.client()),
        }
    }
}

impl Entry {
    /// Completes an insertion that has succeeded.
    pub(super) fn publish(&self) {
        // Release: a walk that sees the entry live sees it filled. Only one bit is set, because another worker may
        // already have refreshed the connection.
        self.life.fetch_or((Phase::Live as u64 - Phase::Pending as u64) << 62, Ordering::Release);
    }

    /// Marks the connection as one whose record may be more recent, if it is live and in this state.
    pub(super) fn mark_offloaded(&self, state: u8) -> bool {
        // Relaxed: the fence of the caller orders it.
        self.life
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let life = Life(word);
                (life.is_live() && life.state() == state).then_some(word | OFFLOADED)
            })
            .is_ok()
    }

    /// Phase, state and deadline.
    pub(super) fn life(&self) -> Life {
        // Acquire: pairs with `publish`, for walks, which reach the entry without a bucket.
        Life(self.life.load(Ordering::Acquire))
    }

    /// See [`crate::conn::connection::Connection::add_controlled`].
    pub(super) fn add_controlled(&self) -> bool {
        // Relaxed: only the count is passed on, and `close` competes for the same field.
        self.controlled
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.checked_add(1).filter(|&more| more != REMOVED)
            })
            .is_ok()
    }

    /// Closes the entry as a controller: it admits no more connections. Succeeds once in a connection's life, and only
    /// while it controls none.
    ///
    /// # Errors
    /// The result of a removal that needs this.
    pub(super) fn close(&self) -> Result<(), Removal> {
        // Acquire: pairs with the Release of `drop_controlled`.
        match self.controlled.compare_exchange(0, REMOVED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(REMOVED) => Err(Removal::NotLive),
            Err(_) => Err(Removal::Controls),
        }
    }

    /// Reverts [`close`](Self::close). Only for the caller whose `close` succeeded.
    pub(super) fn reopen(&self) {
        // Release: for symmetry with `drop_controlled`. No other thread writes the field in between.
        self.controlled.store(0, Ordering::Release);
    }

    #[inline]
    fn client_word(&self) -> u64 {
        self.client.load(Ordering::Relaxed)
    }

    #[inline]
    fn virtual_word(&self) -> u64 {
        self.virtual_endpoint.load(Ordering::Relaxed)
    }

    #[inline]
    fn packed_dest(&self) -> u64 {
        u64::from(self.dest_addr.load(Ordering::Relaxed)) << 32
            | u64::from(self.dest_port.load(Ordering::Relaxed)) << 16
    }

    /// The source of replies, for an entry without an extension.
    #[inline]
    fn replier(&self) -> u64 {
        let word = self.virtual_word();
        if word & METHOD == ForwardingMethod::Nat as u64 { self.packed_dest() } else { word & ENDPOINT }
    }
}

/// An IPv4 address in bits 32 to 63 (0 for IPv6), the port in bits 16 to 31.
#[inline]
fn word(endpoint: Endpoint) -> u64 {
    let addr = match endpoint.addr {
        IpAddr::V4(addr) => u64::from(u32::from(addr)) << 32,
        IpAddr::V6(_) => 0,
    };
    addr | u64::from(endpoint.port) << 16
}

/// Whether an endpoint has this IPv6 address, and this encoded port.
fn is_v6(endpoint: Endpoint, addr: u128, port: u64) -> bool {
    endpoint.addr == IpAddr::from(Ipv6Addr::from_bits(addr)) && u64::from(endpoint.port) << 16 == port
}

fn unpacked(word: u64) -> Endpoint {
    Endpoint::new(Ipv4Addr::from((word >> 32) as u32), (word >> 16) as u16)
}

/// An address in an extension, with this port.
fn endpoint(words: &[AtomicU64; 2], family: u64, port: u16) -> Endpoint {
    // Relaxed, here and in `store`, like the fields of the entry.
    let [low, high] = words.each_ref().map(|word| word.load(Ordering::Relaxed));
    let addr = match family {
        0 => IpAddr::from(Ipv4Addr::from(low as u32)),
        _ => IpAddr::from(Ipv6Addr::from(u128::from(high) << 64 | u128::from(low))),
    };
    Endpoint::new(addr, port)
}

/// The bits of an IPv4 address of an extension.
#[inline]
fn bits_v4(words: &[AtomicU64; 2]) -> u64 {
    words[0].load(Ordering::Relaxed)
}

/// The bits of an IPv6 address of an extension.
#[inline]
fn bits(words: &[AtomicU64; 2]) -> u128 {
    let [low, high] = words.each_ref().map(|word| word.load(Ordering::Relaxed));
    u128::from(high) << 64 | u128::from(low)
}

fn store(words: &[AtomicU64; 2], addr: IpAddr) {
    let bits = match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => u128::from(addr),
    };
    words[0].store(bits as u64, Ordering::Relaxed);
    words[1].store((bits >> 64) as u64, Ordering::Relaxed);
}

/// The bit in `client`, below the protocol and beside [`Kind`], for IPv6 addresses of client and virtual endpoint.
const IPV6: u64 = 1 << 1;
/// The bits in `client` that contain the protocol.
const PROTOCOL: u64 = 0xff << 8;
/// The bits in `client` and in `virtual_endpoint` that contain address and port.
const ENDPOINT: u64 = !0xffff;
/// The bits in `virtual_endpoint` that contain the method.
const METHOD: u64 = 0xff;
/// The bit in `virtual_endpoint` for an entry with an extension.
const EXTENDED: u64 = 1 << 8;
/// In an extended entry: destination and local endpoint are IPv6.
const DEST_IPV6: u64 = 1 << 9;
/// In an extended entry: there is a local endpoint.
const LOCAL: u64 = 1 << 10;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::clock::Millis;
    use crate::conn::flags::Flags;
    use crate::conn::id::ConnId;
    use crate::conn::life::DEADLINE_MAX;
    use crate::conn::spare::Spare;

    #[test]
    fn life_keeps_state_and_deadline_and_publishing_keeps_both() {
        let life = Life::new(Phase::Pending, 0xa5, Millis(123_456_789));
        assert!(life.is_current() && !life.is_live());
        let entry = Entry::default();
        entry.life.store(life.with(7, Millis(u64::MAX)).0, Ordering::Relaxed);
        entry.publish();
        assert!(entry.life().is_live());
        assert_eq!((entry.life().state(), entry.life().deadline()), (7, Millis(DEADLINE_MAX)));
    }

    /// A change of the expected values needs a new version of the layout.
    #[test]
    fn this_layout_version_has_these_offsets_and_packs_a_wide_connection_like_this() {
        use crate::shm::layout::{Header, VERSION};
        use std::mem::offset_of;
        assert_eq!(VERSION, 7);
        assert_eq!(
            [
                offset_of!(Header, version),
                offset_of!(Header, secret),
                offset_of!(Header, extent),
                offset_of!(Header, free),
                offset_of!(Header, capacity),
                offset_of!(Header, boot),
                offset_of!(Entry, virtual_endpoint),
                offset_of!(Entry, dest_addr),
                offset_of!(Entry, dest_port),
                offset_of!(Entry, flags),
                offset_of!(Entry, life),
                offset_of!(Entry, spare),
                offset_of!(Entry, dest),
                offset_of!(Entry, controller),
                offset_of!(Entry, controlled),
                offset_of!(Entry, in_packets),
                offset_of!(Entry, mark),
                offset_of!(Entry, timer),
                offset_of!(Entry, generation),
                offset_of!(Extension, virtual_addr),
                offset_of!(Extension, dest),
                offset_of!(Extension, local),
            ],
            [8, 32, 56, 64, 72, 80, 8, 16, 20, 22, 24, 32, 36, 40, 44, 48, 52, 56, 60, 16, 32, 48]
        );
        let six = |last: u16, port| Endpoint::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last), port);
        let (entry, extension, numbers) = (Entry::default(), Extension::default(), Numbers::default());
        let new = NewConnection {
            protocol: Protocol::TCP,
            client: six(1, 0x1111),
            virtual_endpoint: six(2, 0x2222),
            dest: six(3, 0x3333),
            local: Some(six(4, 0x4444)),
            method: ForwardingMethod::FullNat,
            flags: Flags::PROXY,
            state: 5,
            expires: Millis(6),
            spare: Spare::template(7),
            dest_ref: 8,
            mark: 9,
            controller: Some(ConnId(10)),
        };
        Record { entry: &entry, extension: &extension, numbers: &numbers }.fill(&new, 11);
        entry.publish();
        let words =
            [&entry.client, &entry.virtual_endpoint, &entry.life].map(|word| word.load(Ordering::Relaxed));
        assert_eq!(words, [0x1111_0602, 0x2222_0704, 0xc005_0000_0000_0006]);
        let halves =
            [&entry.dest_addr, &entry.spare, &entry.dest, &entry.controller, &entry.mark, &entry.timer];
        assert_eq!(halves.map(|half| half.load(Ordering::Relaxed)), [0x4444, 7, 8, 11, 9, 11]);
        assert_eq!(
            (entry.dest_port.load(Ordering::Relaxed), entry.flags.load(Ordering::Relaxed)),
            (0x3333, 1 << 10)
        );
        let Extension { client, virtual_addr, dest, local } = &extension;
        let addrs = [client, virtual_addr, dest, local]
            .map(|words| words.each_ref().map(|word| word.load(Ordering::Relaxed)));
        assert_eq!(addrs, [1, 2, 3, 4].map(|last| [last, 0x2001_0db8_0000_0000]));
    }

    #[test]
    fn a_removed_entry_has_no_state_or_deadline_and_keeps_the_next_of_its_chain_when_published() {
        let entry = Entry::default();
        entry.life.store(Life::removed(9).0, Ordering::Relaxed);
        entry.publish();
        assert_eq!(entry.life().next(), 9);
        assert_eq!((entry.life().state(), entry.life().deadline()), (0, Millis(0)));
    }
}
