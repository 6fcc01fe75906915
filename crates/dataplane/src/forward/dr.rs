//! Direct routing: the unchanged packet goes to the destination's link address.

use xvs_proto::Packet;
use xvs_xdp::Frame;

use super::steps::{admit_request, strip};
use crate::egress::Hop;
use crate::verdict::DropReason;

pub(super) fn send(frame: &mut Frame, packet: &Packet, hop: Hop) -> Result<Hop, DropReason> {
    admit_request(frame, packet, hop.mtu)?;
    strip(frame, packet);
    Ok(hop)
}
