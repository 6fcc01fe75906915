//! Ethernet II frames and their VLAN tags (IEEE 802.3, 802.1Q).

use crate::addr::{Family, MacAddr};
use crate::malformed::Malformed;

/// Positions in the header.
pub mod field {
    use std::ops::Range;
    /// Destination address.
    pub const DEST: Range<usize> = 0..6;
    /// Source address.
    pub const SOURCE: Range<usize> = 6..12;
    /// EtherType of the payload, or of the first tag.
    pub const ETHERTYPE: Range<usize> = 12..14;
}

/// Length of the header without tags, in bytes.
pub const HEADER_LEN: usize = field::ETHERTYPE.end;
/// Length of one VLAN tag, in bytes.
pub const TAG_LEN: usize = 4;
/// Maximum number of tags that are skipped: one, or two when the outer one is 802.1ad.
pub const MAX_TAGS: usize = 2;

/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = Family::V4.ethertype();
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = Family::V6.ethertype();
/// EtherType of an 802.1Q tag.
pub const TYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
pub const TYPE_QINQ: u16 = 0x88a8;

/// The bits of a tag that hold the VLAN id.
const VLAN_MASK: u16 = 0x0fff;

/// The link-layer header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ethernet {
    /// EtherType of the payload after the tags.
    pub ethertype: u16,
    /// Offset of the payload in the frame.
    pub payload: usize,
}

/// Finds the payload of a frame, after any tags.
///
/// # Errors
///
/// [`Malformed::EthernetTooShort`], [`Malformed::VlanTooDeep`].
pub fn parse(frame: &[u8]) -> Result<Ethernet, Malformed> {
    let mut at = field::ETHERTYPE.start;
    for _ in 0..=MAX_TAGS {
        let bytes = frame.get(at..at + 2).ok_or(Malformed::EthernetTooShort)?;
        let ethertype = u16::from_be_bytes([bytes[0], bytes[1]]);
        if ethertype != TYPE_VLAN && ethertype != TYPE_QINQ {
            return Ok(Ethernet { ethertype, payload: at + 2 });
        }
        at += TAG_LEN;
    }
    Err(Malformed::VlanTooDeep)
}

/// Destination address in a frame that [`parse`] accepted.
pub fn dest(frame: &[u8]) -> MacAddr {
    MacAddr(frame[field::DEST].try_into().expect("six bytes"))
}

/// Source address in a frame that [`parse`] accepted.
pub fn source(frame: &[u8]) -> MacAddr {
    MacAddr(frame[field::SOURCE].try_into().expect("six bytes"))
}

/// The VLAN of a frame with one 802.1Q tag. 0 is a tag that carries only a priority (802.1Q §9.6). `None` if the frame
/// has no such tag, or a second tag after it.
pub fn vlan(frame: &[u8]) -> Option<u16> {
    let at = field::ETHERTYPE.start;
    let tagged: [u8; 6] = frame.get(at..at + 6)?.try_into().ok()?;
    let inner = u16::from_be_bytes([tagged[4], tagged[5]]);
    let single = tagged[..2] == TYPE_VLAN.to_be_bytes() && inner != TYPE_VLAN && inner != TYPE_QINQ;
    single.then(|| u16::from_be_bytes([tagged[2], tagged[3]]) & VLAN_MASK)
}

/// Removes a frame's tag by moving the addresses over it: the frame then begins [`TAG_LEN`] bytes later.
pub fn pop_tag(frame: &mut [u8]) {
    frame.copy_within(..field::SOURCE.end, TAG_LEN);
}

/// Inserts an 802.1Q tag into a frame that has [`TAG_LEN`] free bytes before its addresses.
pub fn push_tag(frame: &mut [u8], vlan: u16) {
    frame.copy_within(TAG_LEN..TAG_LEN + field::SOURCE.end, 0);
    let at = field::ETHERTYPE.start;
    frame[at..at + 2].copy_from_slice(&TYPE_VLAN.to_be_bytes());
    frame[at + 2..at + 4].copy_from_slice(&(vlan & VLAN_MASK).to_be_bytes());
}

/// Writes both addresses.
pub fn set_addresses(frame: &mut [u8], source: MacAddr, dest: MacAddr) {
    frame[field::DEST].copy_from_slice(&dest.0);
    frame[field::SOURCE].copy_from_slice(&source.0);
}

/// Writes an untagged header.
pub fn emit(frame: &mut [u8], source: MacAddr, dest: MacAddr, ethertype: u16) {
    set_addresses(frame, source, dest);
    frame[field::ETHERTYPE].copy_from_slice(&ethertype.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(types: &[u16]) -> Vec<u8> {
        let mut frame = vec![0xa5; 12];
        for (i, ethertype) in types.iter().enumerate() {
            if i > 0 {
                frame.extend([0x00, 0x05]);
            }
            frame.extend(ethertype.to_be_bytes());
        }
        frame
    }

    #[test]
    fn up_to_two_tags_are_looked_through_and_a_third_is_refused() {
        assert_eq!(parse(&frame(&[TYPE_IPV4])), Ok(Ethernet { ethertype: TYPE_IPV4, payload: 14 }));
        assert_eq!(
            parse(&frame(&[TYPE_VLAN, TYPE_IPV6])),
            Ok(Ethernet { ethertype: TYPE_IPV6, payload: 18 })
        );
        let two = frame(&[TYPE_QINQ, TYPE_VLAN, TYPE_IPV4]);
        assert_eq!(parse(&two), Ok(Ethernet { ethertype: TYPE_IPV4, payload: 22 }));
        assert_eq!(parse(&frame(&[TYPE_VLAN, TYPE_VLAN, TYPE_VLAN, TYPE_IPV4])), Err(Malformed::VlanTooDeep));
    }

    #[test]
    fn a_single_tag_gives_its_vlan_id_and_is_removed_and_added_without_its_priority() {
        let mut tagged = frame(&[TYPE_VLAN, TYPE_IPV4]);
        (0..12).for_each(|at| tagged[at] = at as u8);
        tagged[14..16].copy_from_slice(&[0xf0, 0x05]);
        assert_eq!(vlan(&tagged), Some(0x005));
        for other in [&[TYPE_IPV4][..], &[TYPE_QINQ, TYPE_IPV4], &[TYPE_VLAN, TYPE_VLAN, TYPE_IPV4]] {
            assert_eq!(vlan(&frame(other)), None);
        }
        assert_eq!(vlan(&tagged[..17]), None);
        let mut bytes = tagged.clone();
        pop_tag(&mut bytes);
        assert_eq!(bytes[4..], [&tagged[..12], &tagged[16..]].concat());
        bytes[..4].fill(0xa5);
        push_tag(&mut bytes, 5);
        tagged[14] = 0;
        assert_eq!(bytes, tagged);
    }

    #[test]
    fn a_frame_that_ends_in_its_header_or_in_a_tag_is_too_short() {
        for len in 0..14 {
            assert_eq!(parse(&frame(&[TYPE_IPV4])[..len]), Err(Malformed::EthernetTooShort));
        }
        assert_eq!(parse(&frame(&[TYPE_VLAN, TYPE_IPV4])[..17]), Err(Malformed::EthernetTooShort));
    }
}
