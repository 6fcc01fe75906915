//! ICMP errors between the families: type, code, path MTU and the packet that the error quotes (RFC 7915 §4.2, §4.3,
//! §5.2, §5.3).
//!
//! The quoted packet gets a header in the other family with the addresses and ports that the receiver of the error
//! knows, and its original checksum. Extensions after the quote (RFC 4884) are left out.

use xvs_proto::bytes::{number, word};
use xvs_proto::{Endpoint, Family, FlowKey, Packet, Protocol, icmp, icmpv6, ipv4, ipv6, tcp, udp};
use xvs_xdp::Frame;

use super::{DIFFERENCE, FRAGMENTABLE_LEN, rewrite_ends, write_ports};
use crate::egress::Hop;
use crate::forward::identification::Identification;
use crate::forward::network_header::{Addresses, Fields};
use crate::forward::steps::check_ttl;
use crate::verdict::DropReason;

/// The path MTUs of links that are in use (RFC 1191 §7.1): the next lower one is assumed if a router reports none.
const PLATEAUS: [u32; 11] = [65535, 32000, 17914, 8166, 4352, 2002, 1492, 1006, 508, 296, 68];

/// The bytes of ports in a quoted segment.
const PORTS_LEN: usize = tcp::field::DEST.end;
/// The minimum length of a quote that extensions follow, in bytes (RFC 4884 §4).
const EXTENDED_LEN: usize = 128;

/// Translates an error between addresses in the other family. `quoted`: the endpoints of the packet that it quotes.
/// `hop` is the path on which the error leaves. The frame then contains only the error.
///
/// # Errors
///
/// The other family has no such error; the frame is unchanged.
pub(in crate::forward) fn send(
    frame: &mut Frame,
    packet: &Packet,
    quote: &Packet,
    quoted: (Endpoint, Endpoint),
    hop: Hop,
    ids: &mut Identification,
) -> Result<Hop, DropReason> {
    let outer = Addresses::of(quoted.1.addr, quoted.0.addr).ok_or(DropReason::NoLocalAddress)?;
    let inner = Addresses::of(quoted.0.addr, quoted.1.addr).ok_or(DropReason::NoLocalAddress)?;
    check_ttl(packet)?;
    let message = &frame.bytes()[packet.transport..packet.end];
    let original = original_payload_len(frame.bytes(), quote);
    let quoted_len = u32::from(original) + (quote.transport - quote.network) as u32;
    let error_header =
        header(message, packet.family(), quoted_len, hop.mtu).ok_or(DropReason::Untranslatable)?;
    let headers = 2 * outer.header_len() + icmp::HEADER_LEN;
    let most = match outer {
        Addresses::V4(..) => icmp::MAX_LEN,
        Addresses::V6(..) => icmpv6::MAX_LEN,
    };
    let quoted_end = packet.transport + icmp::HEADER_LEN + carried_len(message, packet.family());
    // Whatever length the message claims, `quoted` has seen the ports.
    let carried = (quote.end - quote.transport)
        .min(most - headers)
        .min(quoted_end.saturating_sub(quote.transport).max(PORTS_LEN));
    frame.shrink_front(quote.transport);
    if !frame.resize(carried) || !frame.grow_front(headers) {
        return Err(DropReason::NoHeadroom);
    }
    let (head, message) = frame.bytes_mut().split_at_mut(outer.header_len());
    let (protocol, id) = match outer {
        Addresses::V4(..) => (Protocol::ICMP, Some(ids.take())),
        Addresses::V6(..) => (Protocol::ICMPV6, None),
    };
    let payload_len = message.len() as u16;
    Fields { tos: packet.tos, ttl: packet.ttl - 1, protocol, payload_len, id }.emit(outer, head);
    let (start, rest) = message.split_at_mut(icmp::HEADER_LEN);
    start.copy_from_slice(&error_header);
    let (quoted_head, segment) = rest.split_at_mut(inner.header_len());
    let payload_len = original.min(inner.longest_payload());
    Fields {
        tos: quote.tos,
        ttl: quote.ttl,
        protocol: quote.flow.protocol,
        payload_len,
        // The true identification is not known; RFC 7915 §5.1 for the length.
        id: (inner.header_len() + usize::from(payload_len) <= FRAGMENTABLE_LEN).then_some(0),
    }
    .emit(inner, quoted_head);
    if quote.has_ports() {
        restore_ends(segment, &quote.flow, quoted);
    }
    match outer {
        Addresses::V4(..) => icmp::write_checksum(message),
        Addresses::V6(source, dest) => icmpv6::write_checksum(message, source, dest),
    }
    Ok(hop)
}

/// Writes the ports of these endpoints into a quoted segment, which contains the ports, and updates the checksum if it
/// is quoted, so that the segment's sender recognizes it. The SCTP checksum covers bytes that the quote lacks.
fn restore_ends(segment: &mut [u8], flow: &FlowKey, (source, dest): (Endpoint, Endpoint)) {
    let checksum = match flow.protocol {
        Protocol::UDP => udp::field::CHECKSUM,
        Protocol::TCP => tcp::field::CHECKSUM,
        _ => 0..0,
    };
    match segment
        .get(checksum)
        .and_then(|field| field.first_chunk().copied())
        .map(u16::from_be_bytes)
        .filter(|sum| *sum != 0 || flow.protocol != Protocol::UDP)
    {
        Some(_) => rewrite_ends(segment, flow, source, dest),
        None => write_ports(segment, source, dest),
    }
}

/// The length of the packet's payload, before the packet was truncated for the quote.
fn original_payload_len(frame: &[u8], quote: &Packet) -> u16 {
    let header = &frame[quote.network..];
    let headers = (quote.transport - quote.network) as u16;
    match quote.family() {
        Family::V4 => word(header, ipv4::field::TOTAL_LEN.start).saturating_sub(headers),
        Family::V6 => {
            word(header, ipv6::field::PAYLOAD_LEN.start).saturating_sub(headers - ipv6::HEADER_LEN as u16)
        }
    }
}

/// The number of bytes of the packet that a message quotes: fewer than follow its header if there are extensions (RFC
/// 4884 §4).
fn carried_len(message: &[u8], family: Family) -> usize {
    let claimed = match family {
        // Destination unreachable, time exceeded.
        Family::V4 if matches!(message[0], 3 | 11) => usize::from(message[5]) * 4,
        Family::V6 if matches!(message[0], 1 | 3) => usize::from(message[4]) * 8,
        _ => 0,
    };
    if claimed < EXTENDED_LEN { message.len() - icmp::HEADER_LEN } else { claimed }
}

/// The header of the error in the other family, without its checksum; `None` if the error has no counterpart there.
/// `quoted_len` is the length of the quoted packet, `mtu` that of the path on which the error leaves, in bytes.
fn header(message: &[u8], family: Family, quoted_len: u32, mtu: u32) -> Option<[u8; icmp::HEADER_LEN]> {
    let type_and_code = [message[0], message[1]];
    let rest = number(message, 4);
    let ([kind, code], rest) = match family {
        Family::V4 => to_v6(type_and_code, rest, quoted_len, mtu)?,
        Family::V6 => to_v4(type_and_code, rest, mtu)?,
    };
    let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&rest.to_be_bytes());
    Some(header)
}

/// RFC 7915 §4.2. Parameter problems, which concern no connection (`icmp::is_followed`), do not occur.
fn to_v6(type_and_code: [u8; 2], rest: u32, quoted_len: u32, mtu: u32) -> Option<([u8; 2], u32)> {
    Some(match type_and_code {
        [3, 0 | 1 | 5..=8 | 11 | 12] => ([1, 0], 0),
        // The protocol is refused: the error points to the next-header field.
        [3, 2] => ([4, 1], ipv6::field::NEXT_HEADER as u32),
        [3, 3] => ([1, 4], 0),
        [3, 4] => {
            let reported = match rest & 0xffff {
                0 => PLATEAUS.into_iter().find(|plateau| *plateau < quoted_len).unwrap_or(0),
                reported => reported,
            };
            ([2, 0], (reported + DIFFERENCE).min(mtu).max(ipv6::MIN_MTU))
        }
        [3, 9 | 10 | 13 | 15] => ([1, 1], 0),
        [11, code] => ([3, code], 0),
        _ => return None,
    })
}

/// RFC 7915 §5.2.
fn to_v4(type_and_code: [u8; 2], rest: u32, mtu: u32) -> Option<([u8; 2], u32)> {
    Some(match type_and_code {
        [1, 0 | 2 | 3] => ([3, 1], 0),
        [1, 1] => ([3, 10], 0),
        [1, 4] => ([3, 3], 0),
        // An IPv6 host ignores values below the minimum (RFC 8201 §4), which an IPv4 host does not know.
        [2, _] => ([3, 4], (rest.max(ipv6::MIN_MTU) - DIFFERENCE).min(mtu).min(u32::from(u16::MAX))),
        [3, code] => ([11, code], 0),
        [4, 0] => {
            let pointer = match rest {
                same @ 0..=1 => same,
                4 | 5 => ipv4::field::TOTAL_LEN.start as u32,
                6 => ipv4::field::PROTOCOL as u32,
                7 => ipv4::field::TTL as u32,
                8..=23 => ipv4::field::SOURCE.start as u32,
                24..=39 => ipv4::field::DEST.start as u32,
                _ => return None,
            };
            ([12, 0], pointer << 24)
        }
        [4, 1] => ([3, 2], 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7915, section 4.2.
    #[test]
    fn errors_of_ipv4_become_those_that_the_rfc_names() {
        let to = |kind, code, rest| to_v6([kind, code], rest, 1500, 1500);
        for code in [0, 1, 5, 6, 7, 8, 11, 12] {
            assert_eq!(to(3, code, 0), Some(([1, 0], 0)), "code {code}");
        }
        for code in [9, 10, 13, 15] {
            assert_eq!(to(3, code, 0), Some(([1, 1], 0)), "code {code}");
        }
        assert_eq!((to(3, 2, 0), to(3, 3, 0)), (Some(([4, 1], 6)), Some(([1, 4], 0))));
        assert_eq!((to(11, 0, 0), to(11, 1, 0)), (Some(([3, 0], 0)), Some(([3, 1], 0))));
        // Precedence cutoff, source quench, redirect, other types.
        for (kind, code) in [(3, 14), (3, 16), (4, 0), (5, 0), (6, 0), (0, 0)] {
            assert_eq!(to(kind, code, 0), None, "{kind}, {code}");
        }
    }

    /// RFC 7915, section 5.2.
    #[test]
    fn errors_of_ipv6_become_those_that_the_rfc_names() {
        let to = |kind, code, rest| to_v4([kind, code], rest, 1500);
        for (code, expected) in [(0, 1), (1, 10), (2, 1), (3, 1), (4, 3)] {
            assert_eq!(to(1, code, 0), Some(([3, expected], 0)), "code {code}");
        }
        assert_eq!((to(3, 0, 0), to(3, 1, 0)), (Some(([11, 0], 0)), Some(([11, 1], 0))));
        assert_eq!(to(4, 1, 6), Some(([3, 2], 0)));
        for (kind, code) in [(1, 5), (4, 2), (100, 0), (127, 0), (128, 0), (135, 0)] {
            assert_eq!(to(kind, code, 0), None, "{kind}, {code}");
        }
        let pointers =
            [(0, 0), (1, 1), (4, 2), (5, 2), (6, 9), (7, 8), (8, 12), (23, 12), (24, 16), (39, 16)];
        for (from, pointer) in pointers {
            assert_eq!(to(4, 0, from), Some(([12, 0], pointer << 24)), "{from}");
        }
        assert_eq!((to(4, 0, 2), to(4, 0, 3), to(4, 0, 40)), (None, None, None));
    }

    #[test]
    fn a_path_mtu_is_told_in_the_family_of_the_receiver_and_never_below_its_minimum() {
        let to6 = |told, quoted_len, mtu| to_v6([3, 4], told, quoted_len, mtu);
        assert_eq!(to6(1400, 1500, 1500), Some(([2, 0], 1420)));
        assert_eq!(to6(1400, 1500, 1410), Some(([2, 0], 1410)));
        assert_eq!(to6(576, 1500, 1500), Some(([2, 0], 1280)));
        // A router that reports none (RFC 1191 §5): the next plateau below the packet's length.
        assert_eq!(to6(0, 1500, 1500), Some(([2, 0], 1500)));
        assert_eq!(to6(0, 1492, 1500), Some(([2, 0], 1280)));
        assert_eq!(to6(0, 9000, 9000), Some(([2, 0], 8186)));
        let to4 = |told, mtu| to_v4([2, 0], told, mtu);
        assert_eq!(to4(1400, 1500), Some(([3, 4], 1380)));
        assert_eq!(to4(1280, 1200), Some(([3, 4], 1200)));
        assert_eq!(to4(u32::MAX, 1 << 20), Some(([3, 4], 65535)));
        assert_eq!((to4(0, 1500), to4(1000, 1500)), (Some(([3, 4], 1260)), Some(([3, 4], 1260))));
    }
}
