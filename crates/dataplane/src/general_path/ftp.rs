//! The FTP helper: data connections, which the commands and replies on a control connection announce (NAT).
//!
//! Runs for each segment on a control connection: a masqueraded connection to port 21. `PORT` and `EPRT` name the
//! client's endpoint: a connection to it is entered into the table, from the port below the server's. The replies to
//! `PASV` and `EPSV` name a port of the server: a connection to it is expected, and its first packet shows the client's
//! port. The reply to `PASV` also names the server's address. The virtual address replaces it and may be longer or
//! shorter, so later sequence numbers are shifted (`conn/ftp.rs`). Data connections wait for two minutes (LISTEN); the
//! control connection lives at least as long.
//!
//! A command or reply counts only if it begins after a line ending in the stream, and a reply only once for each
//! command: other text from a server may contain what a client has sent. An endpoint is followed only if its address is
//! the sender's own: for a client its address, for a server its own or the virtual address. A server's port must not be
//! below 1024 (RFC 2577 §3). Neither end can therefore get a connection to a third machine. A command or reply that is
//! not followed passes unchanged and is counted. Cost: the cache line of the connection's extension; for segments with
//! data a pass over them; for a new connection a look-up while a data connection is expected.
//!
//! Persistence serves passive data connections without this helper, also with other methods.

use std::net::IpAddr;
use std::ops::Range;

use xvs_proto::ftp::{self, ADDRESS_MAX, Command, Reply, commands, passive_reply, write_address};
use xvs_proto::{Endpoint, Packet, Protocol, tcp};
use xvs_sched::ServiceKey;

use super::client_address::set_length;
use crate::burst::context::{Context, FramedPacket};
use crate::burst::flows::Flows;
use crate::conn::tcp::TcpState;
use crate::conn::{
    Asked, ConnId, Connection, Direction, Flags, Inserted, NewConnection, Removal, Shift, Spare,
};
use crate::egress::Path;
use crate::forward::Ends;
use crate::new_connection::eviction::{count_out, end};
use crate::new_connection::service::{is_first, is_reset};
use crate::snapshot::{Activity, DestinationId};

/// Reads a client's segment that is not rewritten yet, and shifts the numbers that it acknowledges.
#[inline]
pub(crate) fn request(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) {
    if flows.table.connection(id).flags().contains(Flags::FTP) {
        read_commands(flows, p, id, cx);
    }
}

// Not inlined, like the next function, to keep the path of other packets short.
#[inline(never)]
fn read_commands(flows: &mut Flows, p: &mut FramedPacket<'_>, id: ConnId, cx: Context<'_>) {
    let control = flows.table.connection(id);
    let packet = p.packet;
    let segment = p.transport_mut();
    if packet.tcp_flags.has(tcp::Flags::SYN) {
        return;
    }
    if packet.tcp_flags.has(tcp::Flags::ACK) {
        let shift = control.shift();
        let (_, written) = control_address(&control);
        tcp::map_acknowledged(segment, |number| shift.to_server(number, written));
    }
    let Some(header_len) = tcp::header_len(segment).filter(|len| *len < segment.len()) else { return };
    // Commands count only if the client has proven that it exists. A damaged segment is not read, and stays damaged.
    if !control.flags().contains(Flags::PROVEN) || !tcp::is_summed(segment, &packet.flow) {
        return;
    }
    let sequence = tcp::number(segment, tcp::field::SEQUENCE.start);
    let text = &segment[header_len..];
    let Some(first) = control.first_line(Direction::Inbound, sequence, text) else { return };
    let mut asked = Asked::Nothing;
    let mut active = None;
    for command in commands(&text[first..]) {
        match command {
            Command::Passive => asked = Asked::Passive,
            Command::ExtendedPassive => asked = Asked::ExtendedPassive,
            Command::Active(Some(to)) if to.addr == control.client().addr && to.port != 0 => {
                active = Some(to)
            }
            Command::Active(_) => flows.counters.ftp_not_followed.add(1),
        }
    }
    control.set_asked(asked);
    // The last of several commands counts.
    if let Some(client) = active {
        let mut ends = Ends { client, ..Ends::of(&control) };
        ends.virtual_endpoint.port = ends.virtual_endpoint.port.wrapping_sub(1);
        ends.dest.port = ends.dest.port.wrapping_sub(1);
        follow(flows, &ends, id, cx);
    }
}

/// Reads a server's segment that is not rewritten yet, and shifts its sequence number. Returns the changed packet, if
/// its length has changed.
#[inline]
pub(crate) fn reply(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: ConnId,
    path: Path,
    cx: Context<'_>,
) -> Option<Packet> {
    match flows.table.connection(id).flags().contains(Flags::FTP) {
        true => read_reply(flows, p, id, path, cx),
        false => None,
    }
}

#[inline(never)]
fn read_reply(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    id: ConnId,
    path: Path,
    cx: Context<'_>,
) -> Option<Packet> {
    let sequence = p.tcp_number(tcp::field::SEQUENCE.start);
    if p.packet.tcp_flags.has(tcp::Flags::SYN) {
        flows.table.connection(id).begin_text();
        return None;
    }
    let changed = follow_reply(flows, p, tcp::header_len(p.transport())?, id, path, cx);
    let shifted = flows.table.connection(id).shift().to_client(sequence);
    tcp::set_number(p.with(changed.as_ref()).transport_mut(), tcp::field::SEQUENCE.start, shifted);
    changed
}

/// Expects the passive data connection that a reply names, and writes the virtual address into the reply.
fn follow_reply(
    flows: &mut Flows,
    p: &mut FramedPacket<'_>,
    header_len: usize,
    id: ConnId,
    path: Path,
    cx: Context<'_>,
) -> Option<Packet> {
    let packet = p.packet;
    let control = flows.table.connection(id);
    let asked = control.asked();
    let shift = control.shift();
    let ends = Ends::of(&control);
    let (address, address_len) = control_address(&control);
    let segment = p.transport();
    let text = segment.get(header_len..).filter(|text| !text.is_empty())?;
    if !tcp::is_summed(segment, &packet.flow) {
        flows
            .counters
            .ftp_not_followed
            .add(u64::from(asked != Asked::Nothing && passive_reply(text).is_some()));
        return None;
    }
    let data = tcp::number(segment, tcp::field::SEQUENCE.start);
    // A reply that was changed is changed again, also if it is retransmitted after the next command.
    if shift != Shift::default()
        && let Some(Reply::Passive(_, place)) = passive_reply(text)
        && shift.is_at(data.wrapping_add(place.start as u32))
    {
        return replace(p, header_len + place.start..header_len + place.end, &address[..address_len]);
    }
    let first = control.first_line(Direction::Outbound, data, text)?;
    if asked == Asked::Nothing {
        return None;
    }
    let (port, place) = match (passive_reply(&text[first..])?, asked) {
        (Reply::Passive(named, place), Asked::Passive) => {
            let is_own = [ends.dest.addr, ends.virtual_endpoint.addr].contains(&named.addr);
            let start = header_len + first;
            (if is_own { named.port } else { 0 }, Some(start + place.start..start + place.end))
        }
        (Reply::ExtendedPassive(port), Asked::ExtendedPassive) => (port, None),
        _ => return None,
    };
    let change = place.as_ref().map_or(0, |place| address_len as i8 - place.len() as i8);
    let edited = place
        .as_ref()
        .and_then(|place| shift.with(data.wrapping_add((place.start - header_len) as u32), change));
    let room = path.hop().map_or(0, |hop| hop.mtu as usize);
    let virtual_endpoint = Endpoint { port, ..ends.virtual_endpoint };
    let own = ServiceKey::Address { protocol: packet.flow.protocol, endpoint: virtual_endpoint };
    if port < ftp::FIRST_UNPRIVILEGED
        // A port that belongs to another service stays with that service.
        || cx.snapshot.services.find(&own).is_some()
        || packet.length().saturating_add_signed(change.into()) > room
        || place.is_some() && edited.is_none()
    {
        flows.counters.ftp_not_followed.add(1);
        return None;
    }
    let followed = Ends {
        client: Endpoint { port: 0, ..ends.client },
        virtual_endpoint,
        dest: Endpoint { port, ..ends.dest },
        ..ends
    };
    if !follow(flows, &followed, id, cx) {
        return None;
    }
    // One reply for each command.
    flows.table.connection(id).set_asked(Asked::Nothing);
    let (place, edited) = place.zip(edited)?;
    replace(p, place, &address[..address_len]).inspect(|_| flows.table.connection(id).set_shift(edited))
}

/// The virtual address in the format of a reply to `PASV`, and its length.
fn control_address(control: &Connection<'_>) -> ([u8; ADDRESS_MAX], usize) {
    let mut text = [0; ADDRESS_MAX];
    let len = match control.virtual_endpoint().addr {
        IpAddr::V4(addr) => write_address(addr, &mut text),
        IpAddr::V6(_) => 0,
    };
    (text, len)
}

/// Enters a data connection between these ends, which waits for its first packet. Returns `false` if there is no room.
fn follow(flows: &mut Flows, ends: &Ends, control: ConnId, cx: Context<'_>) -> bool {
    let new = data_connection(ends, &flows.table.connection(control), Some(control), cx);
    let followed = match enter(flows, &new, cx) {
        // With the same server, the segment was retransmitted, or the former data connection between these ends is
        // over.
        Some(Inserted::Existing(id)) if is_free(flows, id) => match flows.table.connection(id) {
            found if found.dest() == new.dest && !found.flags().contains(Flags::RESET) => {
                wait_again(flows, id, &new, cx)
            }
            // A connection to another server. The next packet may belong to either, more likely to the later one.
            _ if end(&mut flows.table, id, cx.snapshot) => enter(flows, &new, cx),
            _ => None,
        },
        entered => entered,
    };
    let is_followed = matches!(followed, Some(Inserted::New(_)));
    if !is_followed {
        flows.counters.ftp_not_followed.add(1);
    }
    is_followed
}

/// A data connection between these ends, with the destination and the mark of another connection.
fn data_connection(
    ends: &Ends,
    like: &Connection<'_>,
    controller: Option<ConnId>,
    cx: Context<'_>,
) -> NewConnection {
    NewConnection {
        protocol: Protocol::TCP,
        client: ends.client,
        virtual_endpoint: ends.virtual_endpoint,
        dest: ends.dest,
        local: None,
        method: ends.method,
        flags: if ends.client.port == 0 { Flags::NO_CLIENT_PORT } else { Flags::NONE },
        state: TcpState::Listen as u8,
        expires: cx.now + cx.snapshot.settings.timeout(Protocol::TCP, TcpState::Listen as u8),
        spare: Spare::NONE,
        dest_ref: like.dest_ref(),
        mark: like.mark(),
        controller,
    }
}

/// Whether a connection waits for its first packet, or is over.
fn is_free(flows: &Flows, id: ConnId) -> bool {
    let state = TcpState::of(flows.table.connection(id).state());
    matches!(state, TcpState::Listen | TcpState::TimeWait | TcpState::Close)
}

/// Makes a data connection wait for its first packet once more.
fn wait_again(flows: &mut Flows, id: ConnId, new: &NewConnection, cx: Context<'_>) -> Option<Inserted> {
    let (before, after) = flows.table.transition(id, |_| (new.state, new.expires))?;
    let to = Activity::of(Protocol::TCP, after);
    let connection = flows.table.connection(id);
    let has_moved = match connection.flags().contains(Flags::SYNC) {
        false => Activity::of(Protocol::TCP, before) != to,
        true => connection.count_as(to == Activity::Inactive),
    };
    if has_moved && let Some(destination) = cx.snapshot.destinations.of(&connection) {
        destination.live.move_to(to);
    }
    Some(Inserted::New(id))
}

/// Inserts a data connection, counted at its destination and its control connection. `None` if the control connection
/// is ending, or the destination is not available.
fn enter(flows: &mut Flows, new: &NewConnection, cx: Context<'_>) -> Option<Inserted> {
    let destination =
        cx.snapshot.destinations.find(DestinationId(new.dest_ref)).filter(|known| known.available)?;
    let control = new.controller?;
    if flows.table.connection(control).controlled() >= MOST_DATA || !flows.table.share(control) {
        return None;
    }
    destination.live.increment(Activity::Inactive);
    let inserted = flows.insert(new, None, cx);
    match inserted {
        Inserted::New(_) => destination.live.check_limit(),
        _ => {
            destination.live.decrement(Activity::Inactive);
            flows.table.connection(control).drop_controlled();
        }
    }
    Some(inserted)
}

/// The expected connection for a client's packet. It is assigned the packet's port.
pub(crate) fn expected(flows: &mut Flows, packet: &Packet, cx: Context<'_>) -> Option<ConnId> {
    if packet.flow.protocol != Protocol::TCP || !is_first(packet) || is_reset(packet) {
        return None;
    }
    let id = flows.table.find_expected(&packet.flow)?;
    let found = flows.table.connection(id);
    if found.state() != TcpState::Listen as u8 || found.flags().contains(Flags::RESET) {
        return None;
    }
    let ends = Ends { client: packet.flow.source, ..Ends::of(&found) };
    let new = data_connection(&ends, &found, found.controller(), cx);
    // The new one first: its control connection counts it before it loses the expected one.
    match enter(flows, &new, cx)? {
        Inserted::New(made) => {
            if let Removal::Done(state) = flows.table.remove(id) {
                count_out(&flows.table.connection(id), state, cx.snapshot);
            }
            Some(made)
        }
        Inserted::Existing(made) => Some(made),
        Inserted::Full | Inserted::LocalTaken => None,
    }
}

/// Replaces the bytes of a segment at `place`, and recomputes its checksum. `None` if the frame has no room; then
/// nothing has changed.
fn replace(p: &mut FramedPacket<'_>, place: Range<usize>, text: &[u8]) -> Option<Packet> {
    let FramedPacket { frame, packet, .. } = p;
    let changed = Packet { end: packet.end - place.len() + text.len(), ..**packet };
    if frame.len() < changed.end && !frame.resize(changed.end) {
        return None;
    }
    let start = packet.transport + place.start;
    let end = packet.transport + place.end;
    let bytes = frame.bytes_mut();
    bytes.copy_within(end..packet.end, start + text.len());
    bytes[start..start + text.len()].copy_from_slice(text);
    set_length(frame, &changed);
    tcp::write_checksum(&mut frame.bytes_mut()[changed.transport..changed.end], &packet.flow);
    Some(changed)
}

/// Maximum number of data connections of a control connection, including those that are over and have not expired yet.
const MOST_DATA: u32 = 4096;
