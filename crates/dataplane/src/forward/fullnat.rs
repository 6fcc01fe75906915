//! FULLNAT: as masquerading, and the destination sees the director's own endpoint in the client's place.
//!
//! So replies come back by it wherever the destination is and whatever its routes are. Checksums, time to live and size
//! are masquerading's. AH and ESP have no ports by which their answers could be told apart, and go with the ports 500:
//! where the local port is another, they are refused. Fragments of many clients' packets come from one address, so what
//! may be fragmented over IPv4 gets an identification of the director's: clients' own would be mixed up (RFC 6864 §5.3).

use xvs_proto::ipv4::Ipv4;
use xvs_proto::{Endpoint, Family, Packet};
use xvs_xdp::Frame;

use super::admission::{admit_request, strip};
use super::ends::Ends;
use super::identification::Identification;
use super::nat::{End, rewrite};
use crate::egress::Hop;
use crate::verdict::DropReason;

pub(super) fn send_request(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    local: Endpoint,
    hop: Hop,
    ids: &mut Identification,
) -> Result<(), DropReason> {
    if !packet.has_ports() && local.port != packet.connection_key().source.port {
        return Err(DropReason::FullNatPortless);
    }
    admit_request(frame, packet, hop.mtu, 0)?;
    rewrite(frame, packet, [(End::Source, local), (End::Dest, ends.dest)]);
    if packet.family() == Family::V4 && !packet.dont_fragment {
        Ipv4::edit(&mut frame.bytes_mut()[packet.network..]).set_id(ids.take());
    }
    strip(frame, packet);
    Ok(())
}

/// Has a reply come from the virtual endpoint and go to the client.
pub(super) fn rewrite_reply(frame: &mut Frame, packet: &Packet, ends: &Ends) {
    rewrite(frame, packet, [(End::Source, ends.virtual_endpoint), (End::Dest, ends.client)]);
}
