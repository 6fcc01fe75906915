//! SCTP headers (RFC 9260): the event that the first chunk represents, and the checksum after a rewrite.
//!
//! The first chunk is read for every SCTP packet; the checksum is computed when a port was rewritten. No length in the
//! packet is trusted, and nothing is read after a chunk that reaches beyond the packet's end. Cost: a few bytes read,
//! or one pass over the packet for the checksum.

/// Positions in the common header (§3.1); the ports have the same positions as in TCP.
pub mod field {
    use std::ops::Range;
    /// CRC32c over common header and chunks.
    pub const CHECKSUM: Range<usize> = 8..12;
}

/// Length of the common header, in bytes.
pub const HEADER_LEN: usize = 12;

/// Length of a chunk header: type, flags, length (§3.2).
const CHUNK_HEADER_LEN: usize = 4;

/// The meaning of a packet's first chunk for its association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// DATA, or any chunk that neither opens nor closes an association, such as SACK, HEARTBEAT or an unknown type.
    Data,
    /// INIT.
    Init,
    /// INIT ACK.
    InitAck,
    /// COOKIE ECHO.
    CookieEcho,
    /// COOKIE ACK.
    CookieAck,
    /// SHUTDOWN.
    Shutdown,
    /// SHUTDOWN ACK.
    ShutdownAck,
    /// SHUTDOWN COMPLETE.
    ShutdownComplete,
    /// ERROR.
    Error,
    /// ABORT.
    Abort,
    /// An ABORT directly after a COOKIE ECHO or COOKIE ACK. It ends the association, although the packet begins with
    /// another chunk.
    AbortBehindCookie,
}

impl Event {
    /// The event in a packet, which extends from the common header to the packet's end. `None` if the packet contains
    /// no chunk.
    ///
    /// Source: RFC 9260 §3.2 for the types, §3.3.7 for the position of an ABORT.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let chunks = packet.get(HEADER_LEN..)?;
        let first = chunk(chunks, 0)?;
        let event = match first.kind {
            1 => Self::Init,
            2 => Self::InitAck,
            ABORT => Self::Abort,
            7 => Self::Shutdown,
            8 => Self::ShutdownAck,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete,
            _ => Self::Data,
        };
        if matches!(event, Self::CookieEcho | Self::CookieAck)
            && first.length >= CHUNK_HEADER_LEN
            // Chunks are padded to four bytes; their length field does not count the padding.
            && chunk(chunks, first.length.next_multiple_of(4)).is_some_and(|second| second.kind == ABORT)
        {
            return Some(Self::AbortBehindCookie);
        }
        Some(event)
    }

    /// Whether the event ends the association at once.
    pub fn aborts(self) -> bool {
        matches!(self, Self::Abort | Self::AbortBehindCookie)
    }
}

const ABORT: u8 = 6;

/// The header of a chunk as received.
struct Chunk {
    kind: u8,
    length: usize,
}

/// The chunk header at `at`, if it is whole.
fn chunk(chunks: &[u8], at: usize) -> Option<Chunk> {
    match chunks.get(at..at + CHUNK_HEADER_LEN)? {
        &[kind, _, high, low] => Some(Chunk { kind, length: usize::from(u16::from_be_bytes([high, low])) }),
        _ => None,
    }
}

/// Recomputes the checksum of a packet, which extends from the common header to the packet's end.
///
/// Source: RFC 9260 §6.8 and appendix A (the least significant byte comes first).
///
/// # Panics
///
/// If the packet is shorter than the common header.
pub fn write_checksum(packet: &mut [u8]) {
    packet[field::CHECKSUM].fill(0);
    let sum = crc32c::crc32c(packet);
    packet[field::CHECKSUM].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A packet with ports 1000 and 3868, the rest of the header, and these chunks.
    fn packet(chunks: &[u8]) -> Vec<u8> {
        let header = [0x03, 0xe8, 0x0f, 0x1c, 0, 0, 0, 7, 0xa5, 0xa5, 0xa5, 0xa5];
        [&header, chunks].concat()
    }

    #[test]
    fn each_type_of_rfc_9260_is_its_event_and_all_others_are_data() {
        let mut events = [Event::Data; 256];
        events[1] = Event::Init;
        events[2] = Event::InitAck;
        events[6] = Event::Abort;
        events[7] = Event::Shutdown;
        events[8] = Event::ShutdownAck;
        events[9] = Event::Error;
        events[10] = Event::CookieEcho;
        events[11] = Event::CookieAck;
        events[14] = Event::ShutdownComplete;
        for (kind, event) in events.into_iter().enumerate() {
            assert_eq!(Event::of(&packet(&[kind as u8, 0, 0, 4])), Some(event), "{kind}");
        }
    }

    #[test]
    fn an_abort_counts_right_behind_a_cookie_and_nowhere_else() {
        let behind = |first: &[u8]| Event::of(&packet(&[first, &[6, 0, 0, 4]].concat()));
        // Five bytes of chunk, three of padding.
        assert_eq!(behind(&[10, 0, 0, 5, 1, 0, 0, 0]), Some(Event::AbortBehindCookie));
        assert_eq!(behind(&[11, 0, 0, 4]), Some(Event::AbortBehindCookie));
        assert_eq!(behind(&[3, 0, 0, 4]), Some(Event::Data));
        assert_eq!(behind(&[11, 0, 0, 4, 5, 0, 0, 4]), Some(Event::CookieAck), "third, not second");
        assert!(Event::AbortBehindCookie.aborts() && Event::Abort.aborts() && !Event::CookieAck.aborts());
    }

    #[test]
    fn a_length_that_lies_hides_the_chunk_behind() {
        for length in [0, 3, 9, 12, 13, 0xffff_u16] {
            let [high, low] = length.to_be_bytes();
            let bytes = packet(&[10, 0, high, low, 6, 0, 0, 4, 6, 0, 0]);
            assert_eq!(Event::of(&bytes), Some(Event::CookieEcho), "{length}");
        }
    }

    #[test]
    fn a_packet_without_a_whole_chunk_header_has_no_event() {
        let whole = packet(&[1, 0, 0, 4]);
        for len in 0..whole.len() {
            assert_eq!(Event::of(&whole[..len]), None, "{len}");
        }
    }

    /// An INIT and an ABORT from another implementation (tests/conformance/sctp-nat.json).
    #[test]
    fn a_written_checksum_is_the_one_that_others_compute() {
        for whole in [
            &b"\x03\xe8\x0f\x1c\0\0\0\x07\x49\x88\x5d\x65\x01\0\0\x14\0\0\0\x01\0\0\x10\0\0\x01\0\x01\0\0\0\x01"[..],
            &b"\x03\xe8\x0f\x1c\0\0\0\x07\x6c\x98\xb5\x92\x06\0\0\x04"[..],
        ] {
            let mut bytes = whole.to_vec();
            bytes[field::CHECKSUM].fill(0xa5);
            write_checksum(&mut bytes);
            assert_eq!(bytes, whole);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_event_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Event::of(&bytes);
        }

        #[test]
        fn no_chunk_makes_it_panic(kind in 0u8..16, length in any::<u16>(), tail in prop::collection::vec(any::<u8>(), 0..40)) {
            let [high, low] = length.to_be_bytes();
            prop_assert!(Event::of(&packet(&[&[kind, 0, high, low][..], &tail].concat())).is_some());
        }
    }
}
