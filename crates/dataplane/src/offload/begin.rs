//! The start of a connection's offload: decides, as the fast path does, how the XDP program forwards its packets.
//!
//! Runs after the first packet of a TCP connection, and for few others (`is_due`) after the fast path has forwarded
//! one. The decision reads the same data as the fast path: route, path, endpoints. The program does not forward packets
//! that never take the fast path (`bpf/offload.h`). `conn/offloaded.rs`, `sweep.rs` and `give_up.rs` end the offload.

use xvs_proto::{Family, FlowKey, LinkId, Packet, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey};

use super::keys::{self, Hashes};
use super::not_offloaded::NotOffloaded;
use super::own::Own;
use super::part::Part;
use super::shared::{Epochs, Offload, slot};
use crate::burst::context::Context;
use crate::burst::flows::Flows;
use crate::clock::Micros;
use crate::conn::tcp::TcpState;
use crate::conn::{
    ASSURED, ConnId, Connection, Direction, Flags, Packets, RecordState, TableHandle, Then, Used,
    offloaded_word as word,
};
use crate::egress::{LinkInfo, Path};
use crate::forward::Ends;
use crate::new_connection::eviction::is_half_open;
use crate::shm::atomic::Ordering::{Relaxed, SeqCst};
use crate::shm::atomic::{AtomicU64, fence};
use crate::snapshot::{DestinationId, Route, Snapshot};

/// Offloads the connection of a client's packet that was received on `link`, if it can be offloaded and there is room.
/// Returns `true` if only room is missing.
// Not inlined: few packets come here.
#[inline(never)]
pub(crate) fn begin(flows: &mut Flows, id: ConnId, link: LinkId, cx: Context<'_>) -> bool {
    let Flows { offloader: Some(offloader), table, .. } = flows else { return false };
    let shared = &offloader.shared;
    let connection = table.connection(id);
    let destination = DestinationId(connection.dest_ref());
    if let Some(record) = shared.flows.of(id) {
        // A record that was ended belongs to the connection until its worker has counted it. If a key found no room,
        // this takes at least a second.
        if shared.flows.state(record).has(RecordState::IN_FORCE) && !shared.is_in_force(record, destination) {
            // The next attempt starts over.
            shared.flows.end(id);
        }
        return false;
    }
    if offloader.is_full() {
        return true;
    }
    let tcp = connection.state();
    let is_half_open = is_half_open(connection.protocol(), connection.state());
    // A record that does not follow the handshake is created when the handshake is complete.
    if is_half_open && !shared.admits_half_open() {
        return false;
    }
    // Read before the path MTU: a worker that changes the path MTU then ends all records.
    let epochs = shared.epochs(destination);
    let Ok(parts) = plan(&connection, table.handle(), link, cx) else { return false };
    let generation = connection.generation();
    let awaited = table
        .table()
        .awaited_micros(id, generation, cx.micros)
        .filter(|_| is_half_open && parts[1].is_some());
    // The program measures from the record's first packet. If that is a repeated SYN, workers measure.
    if awaited.is_some_and(|micros| micros > 0) {
        return false;
    }
    let is_timed = awaited.is_some();
    let bits = bits(&connection, cx.snapshot)
        | bit(parts.iter().flatten().any(Part::needs_last_line), RecordState::LAST_LINE)
        | bit(is_timed, RecordState::TIMED);
    if is_half_open {
        // A worker assures the client's template with the end of the first handshake.
        let is_assured =
            connection.controller().is_none_or(|template| table.connection(template).state() & ASSURED != 0);
        if !is_assured || !has_all(&connection, &parts, cx.snapshot) {
            return false;
        }
    }
    let hashes = shared.hashes(&Ends::of(&connection), connection.protocol());
    let Some(record) = shared.unused.take(shared.nearest(hashes.of_client), cx.now) else { return true };
    if parts[1].is_some() && !is_timed {
        // The first reply may pass unseen.
        table.table().forget_request(id, generation);
    }
    let awaits = bits & RecordState::PROVEN == 0 && parts[1].is_some();
    let due = awaits.then(|| connection.destination_sequence()).filter(|number| *number != 0);
    let state = shared.flows.state(record).begun(bits, tcp, due);
    let mut own = Own {
        record,
        id,
        link,
        generation,
        destination,
        places: [None; 2],
        is_new: true,
        is_given_up: false,
        is_counted: false,
        is_timed,
    };
    shared.fill(&own, epochs, &parts, cx.micros);
    shared.flows.begin(record, state);
    if offloader.own.is_empty() {
        shared.flows.set_timeouts(|protocol, state| cx.snapshot.settings.timeout(protocol, state));
    }
    let is_bound = shared.flows.bind(id, record);
    let is_marked = is_bound && connection.mark_offloaded(tcp);
    // A thread that removes or changes the connection, or enters another one with the same replies, does that before it
    // looks for a record (`Offloaded::end`), so one of the two sees the other.
    fence(SeqCst);
    let is_valid = is_marked
        && table.recall(id, generation).is_some()
        && parts[1].as_ref().is_none_or(|reply| is_found(&connection, &reply.before, table.handle()));
    if !is_valid {
        shared.flows.seal(record);
        if is_bound {
            // Also clears the mark, which would be mistaken for that of the next record.
            table.settle(id, Packets::AsCounted, Then::TakeBack);
            shared.flows.unbind(id, record);
        }
        // Another thread may have found it meanwhile.
        shared.reset(record);
        shared.unused.put(record, cx.now + offloader.rest);
        return false;
    }
    if let Some(known) = cx.snapshot.destinations.find(destination) {
        known.live.count_moves(&shared.flows, slot(destination));
    }
    shared.enter_keys(&mut own, hashes, state.number());
    own.count(shared, !own.is_given_up);
    offloader.add(own, cx.now);
    false
}

impl Offload {
    /// Writes all of an unused record but its state.
    fn fill(&self, own: &Own, Epochs { all, slot: of_slot }: Epochs, parts: &[Option<Part>; 2], now: Micros) {
        let words = self.flows.record(own.record);
        // Relaxed: the program finds the record by a key that is entered afterwards, with Release.
        words[word::EPOCHS].store(u64::from(of_slot) << 32 | u64::from(all), Relaxed);
        words[word::USED].store(Used::new(slot(own.destination), now).0, Relaxed);
        words[word::COUNTS..word::CONNECTION].iter().for_each(|word| word.store(0, Relaxed));
        words[word::CONNECTION].store(u64::from(own.generation) << 32 | u64::from(own.id.0), Relaxed);
        for (place, part) in parts.iter().enumerate() {
            let part_words = &words[word::PARTS + place * word::PART..][..word::PART];
            let Some(part) = part else {
                // Without a family, so that no packet matches this direction.
                put(part_words, &[0; word::PART]);
                continue;
            };
            let (ifindex, address) = part.from;
            let from = (self.settings.ingress.unwrap_or(ifindex), address);
            let (values, [old, new]) = Part { from, ..part.clone() }.words();
            put(part_words, &values);
            put(&words[word::OLD_ADDRESSES + place * old.len()..], &old);
            put(&words[word::ADDRESSES + place * new.len()..], &new);
        }
        if let Some(outer) = parts[0].as_ref().and_then(Part::outer_words) {
            put(&words[word::ADDRESSES..], &outer);
        }
    }

    /// Makes the program find a record in the use with this number. If a key finds no room, the record is given up.
    fn enter_keys(&self, own: &mut Own, hashes: Hashes, number: u32) {
        let value = keys::value(number, own.record);
        for (place, hash) in own.places.iter_mut().zip([Some(hashes.of_client), hashes.of_replies]) {
            match hash {
                Some(hash) if self.nearest(hash) == own.record => self.flows.set_near(own.record),
                Some(hash) => {
                    *place = self.enter(hash, value);
                    own.is_given_up |= place.is_none();
                }
                None => {}
            }
        }
        if own.is_given_up {
            self.flows.seal(own.record);
            self.refused.fetch_add(1, Relaxed);
        }
    }
}

fn put(words: &[AtomicU64], values: &[u64]) {
    words.iter().zip(values).for_each(|(word, value)| word.store(*value, Relaxed));
}

/// The program's orders for requests and replies of a connection. Requests arrive on `link`. `None` if workers forward
/// them.
pub(super) fn plan(
    connection: &Connection<'_>,
    table: &TableHandle,
    link: LinkId,
    cx: Context<'_>,
) -> Result<[Option<Part>; 2], NotOffloaded> {
    let snapshot = cx.snapshot;
    let ends = Ends::of(connection);
    if connection.flags().intersects(Flags::UNUSUAL) {
        return Err(NotOffloaded::Unusual);
    }
    if !is_open(connection, snapshot) {
        return Err(NotOffloaded::NotEstablished);
    }
    if !snapshot.captures.is_empty() {
        return Err(NotOffloaded::Captured);
    }
    if snapshot.settings.requests_stay {
        return Err(NotOffloaded::Stays);
    }
    let vrf = snapshot.egress.vrf(link);
    let destination = DestinationId(connection.dest_ref());
    if snapshot.destinations.find_in(vrf, destination).is_some_and(|found| found.path == Path::Local) {
        return Err(NotOffloaded::Local);
    }
    let route = snapshot.destinations.route_in(vrf, destination).ok_or(NotOffloaded::NoWay)?;
    if !is_certain(connection, &ends, snapshot) {
        return Err(NotOffloaded::Listed);
    }
    let request = request(connection, &ends, table, link, route, cx)?;
    let reply = match ends.method.masquerades() {
        true => match reply(connection, &ends, table, route, snapshot) {
            // Perhaps the destination sends no replies.
            Err(NotOffloaded::NoReply) if connection.in_packets() >= WITHOUT_REPLIES => None,
            reply => reply?,
        },
        false => None,
    };
    if request.is_none() && reply.is_none() {
        return Err(NotOffloaded::NoReply);
    }
    Ok([request, reply])
}

/// The program's orders for requests of a connection that arrive on `link` and leave by `route`. `None` if workers
/// forward the requests.
fn request(
    connection: &Connection<'_>,
    ends: &Ends,
    table: &TableHandle,
    link: LinkId,
    route: &Route,
    cx: Context<'_>,
) -> Result<Option<Part>, NotOffloaded> {
    let before =
        FlowKey { protocol: connection.protocol(), source: ends.client, dest: ends.virtual_endpoint };
    let after = match ends.method {
        ForwardingMethod::DirectRouting | ForwardingMethod::Tunnel => before,
        ForwardingMethod::Nat => FlowKey { dest: ends.dest, ..before },
        ForwardingMethod::FullNat => {
            FlowKey { source: ends.local.ok_or(NotOffloaded::NoWay)?, dest: ends.dest, ..before }
        }
        ForwardingMethod::Local => return Err(NotOffloaded::Local),
    };
    let outer = match ends.method {
        ForwardingMethod::Tunnel => {
            let family = before.source.family();
            let outer = route.tunnel.as_deref().and_then(|templates| {
                let pmtu_disc = cx.snapshot.settings.pmtu_disc;
                templates[family as usize].of_flow(family, table.hash(&before), pmtu_disc, cx.now)
            });
            Some(outer.ok_or(NotOffloaded::OuterHeaders)?)
        }
        _ => None,
    };
    let [from, to] = links(link, route.link, cx.snapshot).ok_or(NotOffloaded::Interface)?;
    // Workers give short packets from IPv6 to IPv4 their identifications; these stay in order with others.
    if ends.is_translated() && before.source.addr.is_ipv6() {
        return Ok(None);
    }
    Ok(Some(Part {
        from: (from.ifindex, from.mac),
        partial_checksums: from.partial_checksums,
        to: (to.ifindex, route.addresses),
        mtu: outer.as_ref().map_or(route.mtu, |outer| outer.room),
        before,
        after,
        unfragmented: match &outer {
            // Only workers assign identifications, to outer headers and to FULLNAT packets.
            Some(outer) => outer.family == Family::V4,
            None => ends.method == ForwardingMethod::FullNat,
        },
        outer,
    }))
}

/// Offloads the connection that this packet has begun, if records begin with the first packet of a client: only TCP
/// connections, of which more packets follow.
#[inline]
pub(crate) fn begin_first(flows: &mut Flows, id: ConnId, link: LinkId, packet: &Packet, cx: Context<'_>) {
    if flows.offloader.as_ref().is_some_and(|offloader| offloader.after <= 1)
        && packet.flow.protocol == Protocol::TCP
        && may_come_by(link, cx.snapshot)
    {
        // Without room, a later packet tries it again.
        let _ = begin(flows, id, link, cx);
    }
}

/// Whether the program can determine the effect of packets on a connection in this state: ordinary packets have none on
/// an established connection, and if the program follows the state, a handshake may be incomplete.
fn is_open(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    let state = connection.state();
    connection.protocol() != Protocol::TCP
        || state == TcpState::Established as u8
        || is_half_open(Protocol::TCP, state) && follows(connection, snapshot)
}

/// Whether the program follows the state of a connection: workers make each transition that is announced to other
/// directors.
fn follows(connection: &Connection<'_>, snapshot: &Snapshot) -> bool {
    connection.protocol() == Protocol::TCP
        && snapshot.sync_master.is_none()
        && !connection.flags().contains(Flags::SYNC)
}

/// Whether the program may process all packets of a handshake. Only workers change segment sizes.
fn has_all(connection: &Connection<'_>, parts: &[Option<Part>; 2], snapshot: &Snapshot) -> bool {
    let method = connection.method();
    let is_clamped = snapshot.settings.mss_clamp.covers(method) || Ends::of(connection).is_translated();
    parts[1].is_some() == method.masquerades() && !is_clamped
}

/// The bits in a record's state for a connection, besides its TCP state.
fn bits(connection: &Connection<'_>, snapshot: &Snapshot) -> u64 {
    let flags = connection.flags();
    bit(follows(connection, snapshot), RecordState::FOLLOWS)
        | bit(flags.contains(Flags::NO_OUTPUT), RecordState::NO_OUTPUT)
        | bit(flags.contains(Flags::PROVEN), RecordState::PROVEN)
        | bit(snapshot.settings.secure_tcp, RecordState::SECURE)
}

fn bit(is_set: bool, bit: u64) -> u64 {
    if is_set { bit } else { 0 }
}

/// If the data for replies is still missing after this number of client packets, only requests are offloaded.
const WITHOUT_REPLIES: u32 = 128;

/// The program's orders for replies on a masqueraded connection whose requests leave by this route. `None` if workers
/// forward the replies.
fn reply(
    connection: &Connection<'_>,
    ends: &Ends,
    table: &TableHandle,
    route: &Route,
    snapshot: &Snapshot,
) -> Result<Option<Part>, NotOffloaded> {
    let before = ends.replies(connection.protocol());
    let after = FlowKey { source: ends.virtual_endpoint, dest: ends.client, ..before };
    // A UDP reply is noted at the template.
    let is_noted = before.protocol == Protocol::TCP || connection.controller().is_none();
    let is_identified = ends.is_translated() && before.source.addr.is_ipv6();
    if is_identified || !is_noted || !is_found(connection, &before, table) {
        return Ok(None);
    }
    if connection.flags().contains(Flags::NO_OUTPUT) {
        return Err(NotOffloaded::NoReply);
    }
    let hop = match Path::find_by(&snapshot.egress, ends.client.addr, table.hash(&before), || {
        snapshot.unmarked_key_to_client(route.link, ends)
    }) {
        Some(Path::To(hop)) => hop,
        Some(Path::NoNeighbour { .. }) => return Err(NotOffloaded::NoNeighbour),
        _ => return Ok(None),
    };
    let Some([from, to]) = links(route.link, hop.link, snapshot) else { return Ok(None) };
    Ok(Some(Part {
        from: (from.ifindex, from.mac),
        partial_checksums: from.partial_checksums,
        to: (to.ifindex, hop.addresses()),
        mtu: hop.mtu,
        before,
        after,
        // They leave in fragments of the other family.
        unfragmented: ends.is_translated(),
        outer: None,
    }))
}

/// Whether these replies belong to this connection. Several connections may have the same reply flow; it belongs to the
/// last one.
fn is_found(connection: &Connection<'_>, replies: &FlowKey, table: &TableHandle) -> bool {
    table.find(replies, table.hash(replies)) == Some((connection.id(), Direction::Outbound))
}

/// Whether the program itself can determine which access lists apply to the packets of a connection (`bpf/lists.h`).
fn is_certain(connection: &Connection<'_>, ends: &Ends, snapshot: &Snapshot) -> bool {
    let at = ends.virtual_endpoint;
    snapshot.lists.is_none()
        || connection.mark() == 0
            && !snapshot.marks.may_mark(at.addr)
            && snapshot.services.for_packet(0, connection.protocol(), at).is_some_and(|service| {
                matches!(service.key, ServiceKey::Address { endpoint, .. } if [0, at.port].contains(&endpoint.port))
            })
}

/// The interfaces on which packets arrive and leave, if the program can forward them.
fn links(from: LinkId, to: LinkId, snapshot: &Snapshot) -> Option<[&LinkInfo; 2]> {
    let from = plain(from, snapshot).filter(|info| info.offloads)?;
    // In generic mode the kernel sends a redirected frame like any other.
    let to = plain(to, snapshot).filter(|info| info.offloads && (info.takes_redirected || from.generic))?;
    Some([from, to])
}

/// Whether the program forwards packets that arrive on this interface.
fn may_come_by(link: LinkId, snapshot: &Snapshot) -> bool {
    snapshot.egress.link(link).is_some_and(|info| info.offloads)
}

/// An interface that is not a VLAN, a bond, or a member of a bond.
fn plain(link: LinkId, snapshot: &Snapshot) -> Option<&LinkInfo> {
    let is_plain = !snapshot.egress.is_layered(link) && snapshot.egress.above(link) == link;
    snapshot.egress.link(link).filter(|_| is_plain)
}
