//! MSS clamping: lowers the maximum segment size in a SYN to the size that the path can carry (RFC 9293 §3.7.1).
//!
//! Runs for SYN and SYN+ACK on connections that pass through the director, as configured by `mss_clamp`. Neither end
//! can know the smaller path MTU of a tunnel, and the ICMP error that reports it is often filtered. The option is
//! lowered, never raised, and the checksum is updated incrementally. If the director forwards both directions (NAT,
//! FULLNAT), both packets get the smaller of the values for the connection's two paths. With other methods replies
//! bypass the director. A SYN without the option stays without it: its receiver then assumes 536 bytes.

use xvs_proto::{Family, LinkId, Packet, tcp};

use crate::burst::context::{Context, FramedPacket};
use crate::egress::Path;
use crate::forward::{self, Ends};
use crate::snapshot::Destination;

/// The kind of the option (RFC 9293 §3.2), and the length of its value.
const MSS: u8 = 2;
const MSS_LEN: usize = 2;

/// Lowers the option of a SYN received on `lo` to that of a host on Ethernet: the largest segments on `lo` do not fit a
/// frame.
#[inline]
pub(crate) fn clamp_own(p: &mut FramedPacket<'_>) {
    if p.link == LinkId::LOOPBACK && p.packet.tcp_flags.has(tcp::Flags::SYN) {
        let most = 1500 - headers_len(p.packet.family()) as u16;
        lower(p.transport_mut(), most);
    }
}

/// Lowers the option of a client's SYN, if `mss_clamp` applies to the connection.
#[inline]
pub(crate) fn clamp_request(
    p: &mut FramedPacket<'_>,
    ends: &Ends,
    destination: &Destination,
    cx: Context<'_>,
) {
    if concerns(p.packet, ends, cx) {
        // Replies are received on the link on which requests leave.
        let egress = &cx.snapshot.egress;
        let vrf = destination.path.hop().and_then(|hop| egress.vrf(hop.link));
        let back = Path::find(egress, ends.key_to_client(0).of_vrf(vrf), 0);
        clamp(p, ends, destination, back);
    }
}

/// Lowers the option of a SYN to a client, which leaves on `path`, if `mss_clamp` applies to the connection.
#[inline]
pub(crate) fn clamp_reply(
    p: &mut FramedPacket<'_>,
    ends: &Ends,
    destination: Option<&Destination>,
    path: Path,
    cx: Context<'_>,
) {
    if concerns(p.packet, ends, cx)
        && let Some(destination) = destination.filter(|destination| destination.available)
    {
        clamp(p, ends, destination, path);
    }
}

/// Whether the option of this packet is lowered: as `mss_clamp` configures, and always between the families, whose
/// headers have different lengths.
#[inline]
fn concerns(packet: &Packet, ends: &Ends, cx: Context<'_>) -> bool {
    cx.snapshot.settings.mss_clamp.concerns(packet, ends.method)
        || packet.tcp_flags.has(tcp::Flags::SYN) && ends.is_translated()
}

/// Lowers the option of a SYN to the size that the paths to the connection's destination and client can carry.
fn clamp(p: &mut FramedPacket<'_>, ends: &Ends, destination: &Destination, client: Path) {
    // A tunnel carries the packet with the client's header.
    let inside = if ends.is_translated() { ends.dest } else { ends.client };
    let there =
        room(destination.path, inside.family()).saturating_sub(forward::overhead(ends, destination.tunnel));
    let back = match ends.method.masquerades() {
        true => room(client, ends.client.family()),
        false => u32::MAX,
    };
    lower(p.transport_mut(), there.min(back).min(u32::from(u16::MAX)) as u16);
}

/// The longest segment without options that a path can carry, in bytes of data.
fn room(path: Path, family: Family) -> u32 {
    path.hop().map_or(u32::MAX, |hop| hop.mtu.saturating_sub(headers_len(family) as u32))
}

/// The headers before the options of a segment, in bytes.
fn headers_len(family: Family) -> usize {
    family.header_len() + tcp::HEADER_LEN
}

/// Lowers a segment's option by this number of bytes.
pub(crate) fn reduce(segment: &mut [u8], by: u16) {
    if let Some(at) = find(segment) {
        tcp::set_word(segment, at, tcp::word(segment, at).saturating_sub(by));
    }
}

/// Lowers a segment's option to `most` bytes, if it is greater.
fn lower(segment: &mut [u8], most: u16) {
    if let Some(at) = find(segment)
        && tcp::word(segment, at) > most
    {
        tcp::set_word(segment, at, most);
    }
}

/// The position of the option's value.
fn find(segment: &[u8]) -> Option<usize> {
    tcp::options(segment)
        .find(|(kind, value)| *kind == MSS && value.len() == MSS_LEN)
        .map(|(_, value)| value.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use xvs_proto::checksum::Sum;

    /// A segment with these options and a correct checksum; the addresses do not matter here.
    fn segment(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x5a; tcp::HEADER_LEN];
        segment.extend(options);
        segment.resize(segment.len().next_multiple_of(4), 0);
        segment[tcp::field::DATA_OFFSET] = (segment.len() as u8 / 4) << 4;
        segment.extend([0xa5; 7]);
        segment[tcp::field::CHECKSUM].fill(0);
        let sum = Sum::default().bytes(&segment).checksum();
        segment[tcp::field::CHECKSUM].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    #[test]
    fn the_option_is_lowered_at_any_position_and_the_checksum_stays_correct() {
        for before in [&[][..], &[1], &[4, 2], &[3, 3, 7], &[8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1]] {
            let mut lowered = segment(&[before, &[2, 4, 0x05, 0xb4]].concat());
            lower(&mut lowered, 1440);
            let wanted = segment(&[before, &[2, 4, 0x05, 0xa0]].concat());
            assert_eq!(lowered, wanted, "behind {before:?}");
        }
    }

    #[test]
    fn the_option_is_never_raised_and_an_incomplete_one_stays() {
        for options in [
            &[2, 4, 0x02, 0x18][..],
            &[],
            &[0, 2, 4, 5, 0xb4],
            &[2, 3, 5, 0xb4],
            &[9, 0, 2, 4],
            &[1, 1, 1, 2],
        ] {
            let mut same = segment(options);
            lower(&mut same, 1440);
            assert_eq!(same, segment(options));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_options_cause_no_panic_and_the_checksum_stays_correct(
            options in prop::collection::vec(any::<u8>(), 0..40),
            most: u16,
        ) {
            let mut any = segment(&options);
            lower(&mut any, most);
            let sum = Sum::default().bytes(&any).checksum();
            prop_assert!(sum == 0 || sum == 0xffff);
            let cut = any.len() - 8;
            any[tcp::field::DATA_OFFSET] = 0xf0;
            lower(&mut any[..cut.max(tcp::HEADER_LEN)], most);
        }
    }
}
