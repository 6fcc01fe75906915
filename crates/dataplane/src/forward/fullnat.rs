//! FULLNAT: masquerading in which the destination sees the director's own endpoint instead of the client's.
//!
//! Replies therefore return through the director, whatever the destination's location and routes. Checksums, time to
//! live and size are treated as in masquerading. AH and ESP have no ports, so their replies could not be assigned to
//! connections. They use the connection between ports 500, and are refused if its local port is not 500. Fragments of
//! packets from many clients come from one address. IPv4 packets that may be fragmented therefore get an identification
//! from the director: the clients' identifications could collide (RFC 6864 §5.3).

use xvs_proto::ipv4::Ipv4;
use xvs_proto::{Endpoint, Family, Packet, ipv6};
use xvs_xdp::Frame;

use super::ends::Ends;
use super::identification::Identification;
use super::nat::{End, rewrite};
use super::steps::{admit_request, strip};
use super::translate;
use crate::egress::Hop;
use crate::verdict::DropReason;

pub(super) fn send(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    local: Endpoint,
    hop: Hop,
    ids: &mut Identification,
) -> Result<Hop, DropReason> {
    if packet.family() != ends.dest.family() {
        return translate::send(frame, packet, local, ends.dest, hop, ids);
    }
    if !packet.has_ports() && local.port != packet.connection_key().source.port {
        return Err(DropReason::FullNatPortless);
    }
    admit_request(frame, packet, hop.mtu)?;
    rewrite(frame, packet, [(End::Source, local), (End::Dest, ends.dest)]);
    if packet.family() == Family::V4 && !packet.dont_fragment {
        Ipv4::edit(&mut frame.bytes_mut()[packet.network..]).set_id(ids.take());
    }
    strip(frame, packet);
    // A PROXY header has made it longer than its path allows: every IPv6 path carries such fragments.
    let divides = packet.family() == Family::V6 && !packet.dont_fragment && packet.longest_fragment.is_none();
    Ok(if divides { Hop { mtu: hop.mtu.min(ipv6::MIN_MTU), ..hop } } else { hop })
}
