//! SYN cookies: sequence numbers with which a client proves that it receives the packets sent to its address.
//!
//! A cookie has 24 bits that depend on the client, the virtual endpoint, the client's own sequence number, the time and
//! a secret, and 8 bits for the options in the client's SYN. It is valid in the 64-second slot in which it was created,
//! and in the next one; its lowest bit identifies the slot. The secret belongs to the connection table, so a restart
//! that keeps the table keeps cookies valid. One forged packet in 2^23 passes, because each is checked with two
//! sequence numbers. Cost: SipHash over eight words for each number.
//!
//! Source: RFC 4987 §3.6; the layout is from FreeBSD, `sys/netinet/tcp_syncache.c`.

use std::net::IpAddr;

use siphasher::sip::SipHasher24;
use xvs_proto::{FlowKey, HashSecret, tcp};

use crate::clock::Millis;

/// The options of a client's SYN as a cookie encodes them: for each option, the largest value in its table that does
/// not exceed the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offered {
    /// The largest segment that the client receives, in bytes of data.
    pub(crate) mss: u16,
    /// The client's window scale.
    pub(crate) window_scale: Option<u8>,
    /// Whether the client supports selective acknowledgements.
    pub(crate) sack: bool,
}

/// Segment sizes, with 536 for a SYN without the option (RFC 9293 §3.7.1).
const SEGMENTS: [u16; 8] = [216, 536, 1200, 1360, 1400, 1440, 1452, 1460];
/// Window scales; the first entry means none.
const SCALES: [u8; 8] = [0, 0, 1, 2, 4, 6, 7, 8];

impl Offered {
    /// The options of a SYN, rounded down to values that a cookie can encode.
    pub(crate) fn by(options: &tcp::Options) -> Self {
        let mss = options.mss.unwrap_or(536);
        Self {
            mss: SEGMENTS[last(&SEGMENTS, mss)],
            window_scale: options.window_scale.map(|scale| SCALES[last(&SCALES[1..], scale) + 1]),
            sack: options.sack,
        }
    }

    /// The options of the SYN for which this cookie was created.
    pub(crate) fn in_cookie(cookie: u32) -> Self {
        let scale = (cookie >> 2) as usize & 7;
        Self {
            mss: SEGMENTS[(cookie >> 5) as usize & 7],
            window_scale: (scale > 0).then_some(SCALES[scale]),
            sack: cookie & SACK != 0,
        }
    }

    fn bits(self) -> u32 {
        let scale = self.window_scale.map_or(0, |scale| last(&SCALES[1..], scale) + 1);
        let sack = if self.sack { SACK } else { 0 };
        (last(&SEGMENTS, self.mss) << 5 | scale << 2) as u32 | sack
    }
}

/// The index, in an ascending table, of the largest value that does not exceed this one; 0 if all exceed it.
fn last<T: PartialOrd>(table: &[T], value: T) -> usize {
    table.partition_point(|known| *known <= value).saturating_sub(1)
}

/// The cookie for a client's SYN with this flow and sequence number.
pub(crate) fn make(secret: &HashSecret, flow: &FlowKey, sequence: u32, offered: Offered, now: Millis) -> u32 {
    let slot = now.0 / SLOT_MILLIS;
    let low = offered.bits() | (slot & 1) as u32;
    code(secret, flow, sequence, slot, low) | low
}

/// Whether a cookie was created for this flow and sequence number, not too long ago.
pub(crate) fn is_valid(secret: &HashSecret, flow: &FlowKey, sequence: u32, cookie: u32, now: Millis) -> bool {
    let slot = now.0 / SLOT_MILLIS;
    let age = (slot ^ u64::from(cookie)) & 1;
    let Some(slot) = slot.checked_sub(age) else { return false };
    let low = cookie & 0xff;
    code(secret, flow, sequence, slot, low) | low == cookie
}

/// The upper 24 bits of a cookie.
fn code(secret: &HashSecret, flow: &FlowKey, sequence: u32, slot: u64, low: u32) -> u32 {
    let [key, more, other] = secret.0;
    let [source, dest] = [flow.source.addr, flow.dest.addr].map(|addr| match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => u128::from(addr),
    });
    let ports = u64::from(flow.source.port) << 16 | u64::from(flow.dest.port);
    let message = [
        source as u64,
        (source >> 64) as u64,
        dest as u64,
        (dest >> 64) as u64,
        ports << 32 | u64::from(sequence),
        slot,
        u64::from(low),
        other,
    ];
    let bytes = message.map(u64::to_le_bytes);
    SipHasher24::new_with_keys(key, more).hash(bytes.as_flattened()) as u32 & !0xff
}

/// The bit for selective acknowledgements. The lowest bit is the slot's.
const SACK: u32 = 2;
/// The length of a slot.
const SLOT_MILLIS: u64 = 64_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xvs_proto::{Endpoint, Protocol};

    use super::*;

    const SECRET: HashSecret = HashSecret([1, 2, 3]);
    const OFFERED: Offered = Offered { mss: 1460, window_scale: Some(7), sack: true };

    fn flow() -> FlowKey {
        FlowKey {
            protocol: Protocol::TCP,
            source: Endpoint::new([192, 0, 2, 200], 40_000),
            dest: Endpoint::new([198, 51, 100, 1], 80),
        }
    }

    #[test]
    fn the_hash_is_that_of_its_authors() {
        // Appendix A of the paper: the key 00 to 0f, the message 00 to 0e.
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let message: [u8; 15] = std::array::from_fn(|at| at as u8);
        assert_eq!(SipHasher24::new_with_keys(key[0], key[1]).hash(&message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn a_cookie_is_valid_in_its_slot_and_in_the_next_one_and_neither_before_nor_later() {
        for made in [0, 1, 63_999, 64_000, 1_000_000_000] {
            let cookie = make(&SECRET, &flow(), 7, OFFERED, Millis(made));
            let is_valid = |slots: u64| {
                is_valid(&SECRET, &flow(), 7, cookie, Millis((made / SLOT_MILLIS + slots) * SLOT_MILLIS))
            };
            assert_eq!([0, 1, 2, 3, 4].map(is_valid), [true, true, false, false, false], "made at {made}");
            let before = made.checked_sub(SLOT_MILLIS);
            let from_the_future =
                before.is_some_and(|before| super::is_valid(&SECRET, &flow(), 7, cookie, Millis(before)));
            assert!(!from_the_future, "made at {made}");
        }
    }

    #[test]
    fn what_the_syn_has_offered_is_kept_as_far_as_there_is_a_value_that_is_not_above() {
        let by = |mss, window_scale, sack| {
            Offered::by(&tcp::Options { mss, window_scale, sack, timestamps: None })
        };
        let kept = |mss, window_scale, sack| Offered { mss, window_scale, sack };
        assert_eq!(by(None, None, false), kept(536, None, false));
        assert_eq!(by(Some(8960), Some(14), true), kept(1460, Some(8), true));
        assert_eq!(by(Some(1459), Some(0), true), kept(1452, Some(0), true));
        assert_eq!(by(Some(10), Some(3), false), kept(216, Some(2), false));
    }

    proptest! {
        #[test]
        fn a_cookie_of_another_client_service_number_or_secret_is_not_valid(
            sequence: u32, other: u32, port in 1_u16.., host: u8, key: u64, mss: u16, scale in 0..=14_u8, now: u32,
        ) {
            let now = Millis(now.into());
            let options = tcp::Options { mss: Some(mss), window_scale: Some(scale), ..Default::default() };
            let offered = Offered::by(&options);
            let cookie = make(&SECRET, &flow(), sequence, offered, now);
            prop_assert_eq!(Offered::in_cookie(cookie), offered);
            prop_assert!(is_valid(&SECRET, &flow(), sequence, cookie, now));
            let client = FlowKey { source: Endpoint { port, ..flow().source }, ..flow() };
            let service = FlowKey { dest: Endpoint::new([198, 51, 100, host], 80), ..flow() };
            for other in [client, service] {
                prop_assume!(other != flow());
                prop_assert!(!is_valid(&SECRET, &other, sequence, cookie, now));
            }
            prop_assume!(other != sequence && key != 1);
            prop_assert!(!is_valid(&SECRET, &flow(), other, cookie, now));
            prop_assert!(!is_valid(&HashSecret([key, 2, 3]), &flow(), sequence, cookie, now));
            prop_assert!(!is_valid(&SECRET, &flow(), sequence, cookie ^ 0x20, now), "what it offered");
        }
    }
}
