//! FULLNAT: as masquerading, and the destination sees the director's own endpoint in the client's place.
//!
//! So replies come back by it wherever the destination is and whatever its routes are. Checksums, time to live and size
//! are masquerading's. AH and ESP have no ports by which their answers could be told apart, and go with the ports 500:
//! where the local port is another, they are refused.

use xvs_proto::{Endpoint, Packet};

use super::nat::{End, rewrite};
use super::{Ends, admit_request, strip};
use crate::shm::Frame;
use crate::snapshot::Hop;
use crate::verdict::DropReason;

pub(super) fn send_request(
    frame: &mut Frame,
    packet: &Packet,
    ends: &Ends,
    local: Endpoint,
    hop: Hop,
) -> Result<(), DropReason> {
    if !packet.has_ports() && local.port != packet.connection_key().source.port {
        return Err(DropReason::FullNatPortless);
    }
    admit_request(frame, packet, hop.mtu, 0)?;
    rewrite(frame, packet, [(End::Source, local), (End::Dest, ends.dest)]);
    strip(frame, packet);
    Ok(())
}

/// Has a reply come from the virtual endpoint and go to the client.
pub(super) fn rewrite_reply(frame: &mut Frame, packet: &Packet, ends: &Ends) {
    rewrite(frame, packet, [(End::Source, ends.virtual_endpoint), (End::Dest, ends.client)]);
}
