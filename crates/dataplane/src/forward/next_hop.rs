//! The next hop of a packet, and the link header for it.

use xvs_proto::ethernet;
use xvs_xdp::Frame;

use crate::egress::{Hop, Path};
use crate::verdict::{DropReason, Verdict};

pub(super) fn hop(path: Path) -> Result<Hop, DropReason> {
    match path {
        Path::To(hop) => Ok(hop),
        Path::NoNeighbour { .. } => Err(DropReason::NoNeighbour),
        Path::Local => Err(DropReason::DestinationLocal),
        Path::NoRoute => Err(DropReason::NoRoute),
    }
}

pub(super) fn finish(frame: &mut Frame, sent: Result<Hop, DropReason>) -> Verdict {
    match sent.and_then(|hop| link_header(frame, hop)) {
        Ok(hop) if frame.len() - ethernet::HEADER_LEN > hop.mtu as usize => {
            Verdict::Fragment { link: hop.link, mtu: hop.mtu }
        }
        Ok(hop) => Verdict::Transmit(hop.link),
        Err(reason) => Verdict::Drop(reason),
    }
}

/// Puts a link header before a packet that begins with its network header. The version in that header determines the
/// EtherType.
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
