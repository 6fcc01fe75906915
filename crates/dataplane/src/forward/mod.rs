//! Sends a packet to its connection's destination, or a reply to its client.
//!
//! Runs once per packet of a connection. Every method does the same in the same order: the way, the time to live,
//! the size, the rewrite. A method edits the packet from its network header on; the link header is written here,
//! for the link that it leaves by, untagged.

mod dr;
mod fullnat;
pub mod icmp;
mod local;
mod nat;
mod tunnel;

use std::net::{IpAddr, Ipv4Addr};

use xvs_proto::ipv4::Ipv4;
use xvs_proto::ipv6::Ipv6;
use xvs_proto::{Endpoint, Family, FlowKey, HashSecret, Packet, Protocol, ethernet};
use xvs_sched::ForwardingMethod;

use crate::clock::Millis;
use crate::egress::Egress;
use crate::egress::path_mtu::PathMtu;
use crate::egress::{Hop, Path};
use crate::snapshot::Tunnel;
use crate::verdict::{DropReason, Verdict};
use xvs_xdp::Frame;

/// The identifications that a worker gives to packets: to outer headers of its own, to what it fragments, and to what
/// leaves from a local address for others may fragment it.
///
/// In IPv6 each pair of hosts has a place of its own to begin at, so that who receives some cannot tell those that others
/// get, and begin their fragments for them (RFC 7739 §5.3, with one counter for all).
#[derive(Debug)]
pub struct Identification {
    last: u32,
    secret: HashSecret,
}

impl Identification {
    /// The sequence of this number. Those of one secret begin apart, so that packets of one are not taken for fragments
    /// of another's; where, nobody can tell who lacks the secret.
    pub fn numbered(secret: HashSecret, number: usize) -> Self {
        let nobody = Ipv4Addr::UNSPECIFIED.into();
        let begin = between(nobody, nobody, &secret);
        Self { last: begin.wrapping_add((number as u32).wrapping_mul(APART)), secret }
    }

    /// What else of a worker's may be drawn from, for it can be seen outside as these can.
    pub fn seed(&self) -> u64 {
        let nobody = Endpoint::new(Ipv4Addr::UNSPECIFIED, 0);
        let flow = FlowKey { protocol: Protocol::IP, source: nobody, dest: nobody };
        flow.hash(&self.secret).rotate_left(32).wrapping_add(u64::from(self.last))
    }

    /// The next identification of an IPv4 header.
    pub fn take(&mut self) -> u16 {
        self.last = self.last.wrapping_add(1);
        self.last as u16
    }

    /// The next identification of an IPv6 packet's fragments.
    pub fn take_between(&mut self, source: IpAddr, dest: IpAddr) -> u32 {
        self.last = self.last.wrapping_add(1);
        self.last.wrapping_add(between(source, dest, &self.secret))
    }
}

/// Near the golden section of 32 bits and of 16: of 512 multiples any number, from the first on, lie apart by a fourth of
/// an even share or more.
const APART: u32 = 0x9e37_903f;

fn between(source: IpAddr, dest: IpAddr, secret: &HashSecret) -> u32 {
    let (source, dest) = (Endpoint::new(source, 0), Endpoint::new(dest, 0));
    FlowKey { protocol: Protocol::IP, source, dest }.hash(secret) as u32
}

/// The ends of a connection that forwarding writes into packets.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// Who the client is.
    pub client: Endpoint,
    /// Where clients send to.
    pub virtual_endpoint: Endpoint,
    /// Where the connection's packets go.
    pub dest: Endpoint,
    /// The director's own endpoint that the destination sees instead of the client's.
    pub local: Option<Endpoint>,
    /// How.
    pub method: ForwardingMethod,
}

/// What a tunnel writes around a packet.
#[derive(Debug)]
pub struct Outer<'a> {
    /// The headers.
    pub tunnel: Tunnel,
    /// The setting of this name.
    pub pmtu_disc: bool,
    /// What routers have told of the way beyond the link.
    pub path_mtu: &'a PathMtu,
    /// The time.
    pub now: Millis,
    /// The same for all packets of a flow; of GUE alone, which shows it in its source port.
    pub flow_hash: u64,
    /// Where identifications come from.
    pub ids: &'a mut Identification,
}

/// The largest packet of a family that fits a connection's tunnel by a way whose link and routers take these many bytes.
pub fn room(ends: &Ends, tunnel: Tunnel, link_mtu: u32, path_mtu: u32, family: Family) -> u32 {
    tunnel::widest(family, link_mtu, path_mtu, overhead(ends, tunnel)).saturating_sub(overhead(ends, tunnel))
}

/// Bytes that a connection's method puts before a packet.
pub fn overhead(ends: &Ends, tunnel: Tunnel) -> u32 {
    match ends.method {
        ForwardingMethod::Tunnel => tunnel::overhead(ends.dest, tunnel.encapsulation) as u32,
        _ => 0,
    }
}

/// Sends a client's packet to the connection's destination.
pub fn request(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    path: Path,
    egress: &Egress,
    outer: Outer<'_>,
) -> Verdict {
    if path == Path::Local || ends.method == ForwardingMethod::Local {
        return local::deliver(packet, ends, egress);
    }
    let sent = way(path).and_then(|hop| match ends.method {
        ForwardingMethod::DirectRouting => dr::send(frame, packet, hop).map(|()| hop),
        ForwardingMethod::Nat => nat::send_request(frame, packet, ends, hop).map(|()| hop),
        ForwardingMethod::Tunnel => tunnel::send(frame, packet, ends, hop, outer),
        ForwardingMethod::FullNat => {
            let local = ends.local.ok_or(DropReason::NoLocalAddress)?;
            fullnat::send_request(frame, packet, ends, local, hop, outer.ids).map(|()| hop)
        }
        ForwardingMethod::Local => Err(DropReason::DestinationLocal),
    });
    finish(frame, sent)
}

/// Sends a client's packet on as it is, by the way to where it was sent.
pub fn unchanged(frame: &mut Frame, packet: &Packet, path: Path) -> Verdict {
    let sent = way(path).and_then(|hop| dr::send(frame, packet, hop).map(|()| hop));
    finish(frame, sent)
}

/// Sends a packet to the connection's client: a masqueraded destination's from the virtual endpoint, another one as it
/// is, for it comes from there.
pub fn reply(frame: &mut Frame, packet: &Packet, ends: &Ends, path: Path) -> Verdict {
    let sent = way(path).and_then(|hop| {
        admit_reply(frame, packet, hop.mtu)?;
        match ends.method {
            ForwardingMethod::Nat => nat::rewrite_reply(frame, packet, ends),
            ForwardingMethod::FullNat => fullnat::rewrite_reply(frame, packet, ends),
            _ => {}
        }
        strip(frame, packet);
        Ok(hop)
    });
    finish(frame, sent)
}

fn way(path: Path) -> Result<Hop, DropReason> {
    match path {
        Path::To(hop) => Ok(hop),
        Path::NoNeighbour { .. } => Err(DropReason::NoNeighbour),
        Path::Local => Err(DropReason::DestinationLocal),
        Path::NoRoute => Err(DropReason::NoRoute),
    }
}

fn finish(frame: &mut Frame, sent: Result<Hop, DropReason>) -> Verdict {
    match sent.and_then(|hop| link_header(frame, hop)) {
        Ok(hop) if frame.len() - ethernet::HEADER_LEN > hop.mtu as usize => {
            Verdict::Fragment { link: hop.link, mtu: hop.mtu }
        }
        Ok(hop) => Verdict::Transmit(hop.link),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Puts a link header before a packet that begins with its network header, whose version says of which type it is.
pub fn link_header(frame: &mut Frame, hop: Hop) -> Result<Hop, DropReason> {
    if !frame.grow_front(ethernet::HEADER_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    let ethertype = match bytes[ethernet::HEADER_LEN] >> 4 {
        6 => ethernet::TYPE_IPV6,
        _ => ethernet::TYPE_IPV4,
    };
    ethernet::emit(bytes, hop.source_mac, hop.dest_mac, ethertype);
    Ok(hop)
}

/// What a router does first: refuses a packet that has come too far.
fn check_ttl(packet: &Packet) -> Result<(), DropReason> {
    if packet.ttl <= 1 { Err(DropReason::TtlExpired) } else { Ok(()) }
}

/// Takes one off a packet's time to live, or hop limit.
pub fn decrement_ttl(frame: &mut Frame, packet: &Packet) {
    let bytes = &mut frame.bytes_mut()[packet.network..];
    match packet.family() {
        Family::V4 => Ipv4::edit(bytes).decrement_ttl(),
        Family::V6 => Ipv6::edit(bytes).decrement_hop_limit(),
    }
}

/// Refuses a packet that does not fit the way and must not be fragmented; of the way's `mtu` the method needs
/// `overhead` for itself, both in bytes.
fn check_size(packet: &Packet, mtu: u32, overhead: u32) -> Result<(), DropReason> {
    let largest = u32::from(u16::MAX);
    let room = mtu.min(largest).saturating_sub(overhead);
    if packet.longest_fragment.unwrap_or(packet.length()) <= room as usize {
        return Ok(());
    }
    match packet.dont_fragment {
        true => Err(DropReason::TooBig { mtu: room as u16 }),
        false if packet.length() > (largest - overhead) as usize => Err(DropReason::NoHeadroom),
        false => Ok(()),
    }
}

/// What IPVS does with a client's packet before it rewrites it. What is too big is reported with the time to live
/// that it would have left with.
fn admit_request(frame: &mut Frame, packet: &Packet, mtu: u32, overhead: u32) -> Result<(), DropReason> {
    check_ttl(packet)?;
    decrement_ttl(frame, packet);
    check_size(packet, mtu, overhead)
}

/// What a router does with a packet: the kernel's own forwarding does it before IPVS sees the reply, so what is refused
/// is reported as it came.
fn admit_reply(frame: &mut Frame, packet: &Packet, mtu: u32) -> Result<(), DropReason> {
    check_ttl(packet)?;
    check_size(packet, mtu, 0)?;
    decrement_ttl(frame, packet);
    Ok(())
}

/// Leaves of the frame the packet alone, without link header and link padding; positions in `packet` are then
/// counted from its network header.
fn strip(frame: &mut Frame, packet: &Packet) {
    frame.shrink_front(packet.network);
    let shorter = frame.resize(packet.length());
    debug_assert!(shorter, "parse saw the packet end inside the frame");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_as_many_workers_as_there_may_be_begin_apart() {
        const MANY: usize = 512;
        let secret = HashSecret([3, 5, 7]);
        let begins: Vec<_> = (0..MANY).map(|number| Identification::numbered(secret, number).last).collect();
        for (number, one) in begins.iter().enumerate() {
            let share = |all: u32| all / (number as u32 + 1) / 4;
            for other in &begins[..number] {
                let apart = one.wrapping_sub(*other);
                assert!(apart.min(apart.wrapping_neg()) > share(u32::MAX), "{number}");
                let apart = apart as u16;
                assert!(u32::from(apart.min(apart.wrapping_neg())) > share(u16::MAX.into()), "{number}");
            }
        }
    }
}
