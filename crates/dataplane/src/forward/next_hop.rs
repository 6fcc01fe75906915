//! The next hop of a packet, and the link header for it.

use xvs_proto::{Family, LinkId, ethernet};
use xvs_xdp::Frame;

use crate::egress::{Hop, Path, UnresolvedHop};
use crate::verdict::{DropReason, Verdict};

pub(super) fn hop(path: Path) -> Result<Hop, DropReason> {
    match path {
        Path::To(hop) | Path::NoNeighbour { hop, .. } => Ok(hop),
        Path::Local => Err(DropReason::DestinationLocal),
        Path::NoRoute => Err(DropReason::NoRoute),
    }
}

pub(super) fn finish(frame: &mut Frame, path: Path, sent: Result<Hop, DropReason>) -> Verdict {
    match (sent.and_then(|hop| link_header(frame, hop)), path) {
        (Ok(Hop { link, mtu, .. }), Path::NoNeighbour { next_hop: addr, .. }) => {
            Verdict::Waiting(UnresolvedHop { link, addr, mtu })
        }
        (Ok(hop), _) => leave(frame, hop.link, hop.mtu),
        (Err(reason), _) => Verdict::Drop(reason),
    }
}

/// The verdict on a frame with its link header, for a path with this MTU in bytes.
pub fn leave(frame: &Frame, link: LinkId, mtu: u32) -> Verdict {
    match frame.len() - ethernet::HEADER_LEN > mtu as usize {
        true => Verdict::Fragment { link, mtu },
        false => Verdict::Transmit(link),
    }
}

/// Prepends a link header to a packet that begins with its network header. The version in that header determines the
/// EtherType.
pub fn link_header(frame: &mut Frame, hop: Hop) -> Result<Hop, DropReason> {
    if !frame.grow_front(ethernet::HEADER_LEN) {
        return Err(DropReason::NoHeadroom);
    }
    let bytes = frame.bytes_mut();
    let family = if bytes[ethernet::HEADER_LEN] >> 4 == 6 { Family::V6 } else { Family::V4 };
    ethernet::emit(bytes, hop.source_mac, hop.dest_mac, family.ethertype());
    Ok(hop)
}
