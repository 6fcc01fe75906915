//! Messages of synchronization, true and damaged, beside a plain model of what the kernel's backup does with them.
//!
//! The model is written from ipvs-behaviour, sections 12.2, 12.3 and 12.5, and `scripts/vm sync` compares the kernel
//! itself with xvs. `scripts/fuzz sync` runs the same with ten million messages. Not here: what becomes of an entry
//! that was read (`tests/lab/sync.rs`).

use proptest::collection::vec;
use proptest::prelude::*;
use xvs_proto::sync::{Message, Skipped};

/// What the kernel does with an entry.
#[derive(Debug, PartialEq)]
enum Kernel {
    /// Takes it: the client's port.
    Takes(u16),
    Skips,
    /// Takes it with data of the engine `sip` that are no Call-ID, which xvs would print: xvs skips it.
    TakesNoCallId,
    /// Skips it for a mandatory option of a type that xvs has taken for its own.
    SkipsXvs,
    /// Leaves it out, and the rest of the message.
    Ends,
}

/// The kernel's rules.
fn kernel(message: &[u8]) -> Vec<Kernel> {
    let is_v1 = message.len() >= 8 && message[0] == 0 && message[5..8] == [1, 0, 0];
    let (count, mut at) = if is_v1 { (message[4], 8) } else { (message[0], 4) };
    let mut entries = Vec::new();
    for _ in 0..count {
        let entry = if is_v1 { kernel_v1(message, &mut at) } else { kernel_v0(message, &mut at) };
        entries.push(entry.unwrap_or(Kernel::Ends));
        if entries.last() == Some(&Kernel::Ends) {
            break;
        }
    }
    entries
}

fn kernel_v0(message: &[u8], at: &mut usize) -> Option<Kernel> {
    let entry = message.get(*at..*at + 24)?;
    let has_sequences = entry[20] & 6 != 0;
    *at += if has_sequences { 48 } else { 24 };
    (*at <= message.len()).then(|| Kernel::Takes(half(entry, 2)))
}

fn kernel_v1(message: &[u8], at: &mut usize) -> Option<Kernel> {
    let start = at.next_multiple_of(4);
    let about = half(message.get(start..start + 4)?, 2);
    let len = usize::from(about % 0x1000);
    let entry = message.get(start..start + len)?;
    let fixed = if entry.first()? & 1 == 1 { 72 } else { 36 };
    if about >= 0x1000 || len < fixed {
        return None;
    }
    *at = start + len;
    let mut options = &entry[fixed..];
    let mut known: [Option<&[u8]>; 4] = [None; 4];
    while !options.is_empty() {
        let (kind, data_len) = (options[0], usize::from(*options.get(1)?));
        let data = options.get(2..2 + data_len)?;
        options = &options[2 + data_len..];
        let number = kind & 0xbf;
        match number {
            _ if data_len == 0 => return None,
            1..=3 => {
                let fits = [true, data_len == 24, true, data_len <= 16][usize::from(number)];
                if !fits || known[usize::from(number)].replace(data).is_some() {
                    return None;
                }
            }
            _ if kind & 0x40 != 0 => {}
            4 | 5 | 7..=9 => return Some(Kernel::SkipsXvs),
            _ => return Some(Kernel::Skips),
        }
    }
    match (known[2], known[3]) {
        (Some(data), Some(b"sip")) if !is_call_id(data) => Some(Kernel::TakesNoCallId),
        (Some(_), Some(b"sip")) | (None, _) => Some(Kernel::Takes(half(entry, 10))),
        (Some(_), _) => Some(Kernel::Skips),
    }
}

/// RFC 3261 §25.1: `callid = word [ "@" word ]`.
fn is_call_id(text: &[u8]) -> bool {
    let mut words = text.split(|byte| *byte == b'@');
    let is_in_word = |byte: &u8| byte.is_ascii_graphic() && !b"#$&,;=^|".contains(byte);
    words.clone().count() <= 2 && words.all(|word| !word.is_empty() && word.iter().all(is_in_word))
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// An option: mostly of a type and length that mean something.
fn option() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![4 => 1u8..4, 3 => 4u8..10, 1 => any::<u8>()];
    let len = prop_oneof![Just(24u8), Just(6), Just(18), Just(4), Just(16), Just(12), 0u8..30];
    let name = prop_oneof![Just(b"sip".to_vec()), Just(b"nosuch".to_vec())];
    let other = (kind, any::<bool>(), len, any::<u8>()).prop_map(|(kind, is_optional, len, byte)| {
        let mut option = vec![kind | if is_optional { 0x40 } else { 0 }, len];
        option.resize(2 + usize::from(len), byte);
        option
    });
    prop_oneof![3 => other, 1 => name.prop_map(|name| [&[3, name.len() as u8], &name[..]].concat())]
}

/// An entry of either version: its bytes, with the length of version 1 in them.
fn entry(is_v1: bool) -> impl Strategy<Value = Vec<u8>> {
    let fixed = (any::<bool>(), any::<[u8; 32]>(), vec(any::<u8>(), 72));
    (fixed, vec(option(), 0..4)).prop_map(move |((is_ipv6, few, mut bytes), options)| {
        if !is_v1 {
            bytes.truncate(24);
            // Few have sequence numbers, which follow.
            bytes[20] = few[0] & if few[1] < 200 { 1 } else { 7 };
            bytes.resize(if bytes[20] & 6 == 0 { 24 } else { 48 }, few[2]);
            return bytes;
        }
        bytes.truncate(if is_ipv6 { 72 } else { 36 });
        bytes[0] = is_ipv6.into();
        bytes[1] = [6, 17, few[3]][usize::from(few[4] % 3)];
        // NAT with a template's flag among the flags, which goes with most options.
        bytes[7] &= 0xf8 | few[5];
        bytes.extend(options.concat());
        let len = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    })
}

/// Messages whose length is right. One in two is damaged in a few bytes, or cut.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let entries = any::<bool>().prop_flat_map(|is_v1| (Just(is_v1), vec(entry(is_v1), 0..5)));
    let damage = prop_oneof![Just(vec![]), vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)];
    let cut = prop_oneof![9 => Just(None), 1 => any::<prop::sample::Index>().prop_map(Some)];
    (entries, damage, cut, -1i8..2).prop_map(|((is_v1, entries), damage, cut, more)| {
        let count = (entries.len() as u8).saturating_add_signed(more);
        let mut message = if is_v1 { vec![0, 7, 0, 0, count, 1, 0, 0] } else { vec![count, 7, 0, 0] };
        for entry in entries {
            let padding = if is_v1 { message.len().next_multiple_of(4) } else { message.len() };
            message.resize(padding, 0);
            message.extend(entry);
        }
        for (at, byte) in damage {
            let at = at.index(message.len());
            message[at] = byte;
        }
        if let Some(cut) = cut {
            message.truncate(4.max(cut.index(message.len())));
        }
        let len = message.len() as u16;
        message[2..4].copy_from_slice(&len.to_be_bytes());
        message
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn entries_are_taken_skipped_and_left_out_as_by_the_kernel(message in message()) {
        let expected = kernel(&message);
        let read: Vec<_> = Message::read(&message).unwrap().entries().collect();
        prop_assert_eq!(read.len(), expected.len(), "{:?}", expected);
        for (read, expected) in read.iter().zip(&expected) {
            let is_same = match (read, expected) {
                (Ok(entry), Kernel::Takes(port)) => entry.client.port == *port,
                (Ok(_), Kernel::SkipsXvs) => true,
                (Err(Skipped::Malformed), _) => *expected == Kernel::Ends,
                (Err(_), Kernel::Skips | Kernel::SkipsXvs) => true,
                (Err(Skipped::UnknownEngine), Kernel::TakesNoCallId) => true,
                _ => false,
            };
            prop_assert!(is_same, "{:?} {:?}", read, expected);
        }
    }
}
