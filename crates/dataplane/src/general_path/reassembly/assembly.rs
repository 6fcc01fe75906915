//! Writes the datagram of all fragments into one frame.

use xvs_proto::LinkId;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6::{self, Ipv6};
use xvs_xdp::Frame;

use super::fragment::{Held, LARGEST, Part};
use crate::verdict::DropReason;

/// Writes a datagram of this number of bytes from its fragments. Returns the link of the first fragment, and the length
/// of the largest.
pub(super) fn write<'h>(
    frame: &mut Frame,
    parts: impl Iterator<Item = &'h Held> + Clone,
    bytes: usize,
) -> Result<(LinkId, usize), DropReason> {
    let first = parts.clone().find(|held| held.part.offset == 0).ok_or(DropReason::FragmentConflict)?;
    let Part { at, network, .. } = first.part;
    let is_v6 = first.key.dest.is_ipv6();
    let headers = if is_v6 { at - ipv6::FRAGMENT_HEADER_LEN } else { at };
    let length = headers - network + bytes;
    // The fragment header is copied first and then overwritten.
    if length > LARGEST[usize::from(is_v6)] || !frame.resize((headers + bytes).max(at)) {
        return Err(DropReason::FragmentLength);
    }
    let whole = frame.bytes_mut();
    first.received.frame.read(0, &mut whole[..at]);
    if is_v6 {
        Ipv6::edit(&mut whole[network..]).unlink_fragment_header(headers - network);
        Ipv6::edit(&mut whole[network..]).set_payload_len((length - ipv6::HEADER_LEN) as u16);
    }
    let mut seen = 0;
    let mut largest = 0;
    let mut largest_unfragmentable = 0;
    for held in parts {
        held.read(&mut whole[headers + held.part.offset..][..held.part.len]);
        seen |= 1 << (held.part.tos & ipv4::CONGESTION_EXPERIENCED);
        largest = largest.max(held.length());
        if held.part.dont_fragment {
            largest_unfragmentable = largest_unfragmentable.max(held.length());
        }
    }
    let congestion = congestion(seen)?;
    if is_v6 {
        if congestion {
            // The traffic class spans the first two bytes.
            whole[network + 1] |= ipv4::CONGESTION_EXPERIENCED << 4;
        }
    } else {
        let flags = if largest_unfragmentable == largest { ipv4::DONT_FRAGMENT } else { 0 };
        let mut header = Ipv4::edit(&mut whole[network..]);
        header.set_part(length as u16, flags);
        if congestion {
            header.mark_congestion();
        }
    }
    // If the headers are longer than the data, the frame is still too long.
    let shorter = frame.resize(headers + bytes);
    debug_assert!(shorter, "the frame held as many bytes before");
    Ok((first.received.link, largest))
}

/// Whether a datagram met congestion: whether any of its fragments did. `seen` is the set of their ECN fields.
///
/// # Errors
///
/// Some fragments were capable of ECN and others not: a sender writes the same field into all of them (RFC 3168 §5.3).
fn congestion(seen: u8) -> Result<bool, DropReason> {
    const NOT_CAPABLE: u8 = 1;
    const CONGESTED: u8 = 1 << ipv4::CONGESTION_EXPERIENCED;
    match seen & NOT_CAPABLE != 0 && seen != NOT_CAPABLE {
        true => Err(DropReason::FragmentConflict),
        false => Ok(seen & CONGESTED != 0),
    }
}
