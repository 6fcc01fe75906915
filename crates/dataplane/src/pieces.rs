//! What does not fit the way leaves in pieces: fragments of a packet that is ready to be sent.
//!
//! Runs for a packet that is larger than its path takes and may be fragmented, and for each datagram that came in
//! fragments. Headers are copied as RFC 791 §3.2 and RFC 8200 §4.5 say; every piece but the last holds as many bytes
//! as fit, in units of eight. Cost: one frame and one copy for each piece; a packet in a frame of its port's own
//! becomes its first piece where it lies.

use xvs_proto::ethernet;
use xvs_proto::ipv4::{self, Ipv4};
use xvs_proto::ipv6;

use crate::forward::Identification;
use crate::port::Port;
use crate::shm::Frame;

/// The unit of fragment offsets, in bytes.
const UNIT: usize = 8;
/// Next-header values that stand before a fragment header: hop-by-hop options, routing (RFC 8200 §4.1).
const BEFORE_FRAGMENT: [u8; 2] = [0, 43];
/// The next-header value of a fragment header.
const FRAGMENT: u8 = 44;

/// How a packet is cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    family: Cutting,
    /// Bytes of the frame that each piece repeats, link header included.
    header: usize,
    /// Bytes of the packet that each piece but the last holds.
    per_piece: usize,
    /// Bytes to be shared out.
    payload: usize,
}

/// What tells pieces apart.
#[derive(Debug, Clone, Copy)]
enum Cutting {
    /// Flags in the header, which keeps its identification.
    V4 {
        /// The flags that each piece keeps.
        flags: u16,
    },
    /// A header of its own.
    V6 {
        /// Where in the frame it is named, and what it names then.
        named_at: usize,
        next: u8,
        id: u32,
    },
}

impl Cut {
    /// Cuts a frame into packets of at most `limit` bytes. `None` if it cannot be cut like that.
    ///
    /// `ids` gives the identification where the packet has none.
    pub fn of(frame: &[u8], limit: usize, ids: &mut Identification) -> Option<Self> {
        let network = ethernet::HEADER_LEN;
        let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        let (family, header, extra) = match ethertype {
            ethernet::TYPE_IPV4 => {
                let view = Ipv4::parse(frame.get(network..)?).ok()?;
                let word = view.flags_and_offset();
                if word & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0 {
                    return None;
                }
                (Cutting::V4 { flags: word }, network + view.header_len(), 0)
            }
            ethernet::TYPE_IPV6 => {
                let (mut named_at, mut end) =
                    (network + ipv6::field::NEXT_HEADER, network + ipv6::HEADER_LEN);
                while BEFORE_FRAGMENT.contains(frame.get(named_at)?) {
                    named_at = end;
                    end += UNIT * (1 + usize::from(*frame.get(end + 1)?));
                }
                let cutting =
                    Cutting::V6 { named_at, next: *frame.get(named_at)?, id: u32::from(ids.take()) };
                (cutting, end, ipv6::FRAGMENT_HEADER_LEN)
            }
            _ => return None,
        };
        let payload = frame.len().checked_sub(header)?;
        let per_piece = limit.checked_sub(header - network + extra)? / UNIT * UNIT;
        (per_piece > 0).then_some(Self { family, header, per_piece, payload })
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.per_piece).max(1)
    }

    /// Copies a piece of the packet, counted from 0, into a frame of its own. `None` if no frame is free or it does not
    /// fit one.
    pub fn copy(&self, whole: &[u8], number: usize, port: &mut impl Port) -> Option<Frame> {
        let (offset, len) = self.place(number);
        let mut frame = port.allocate()?;
        let extra = self.extra();
        if !frame.resize(self.header + extra + len) {
            port.recycle(frame);
            return None;
        }
        let bytes = frame.bytes_mut();
        bytes[..self.header].copy_from_slice(&whole[..self.header]);
        bytes[self.header + extra..].copy_from_slice(&whole[self.header + offset..][..len]);
        self.mark(bytes, number);
        Some(frame)
    }

    /// Leaves of a packet its first piece. `false` if its frame has no room for that.
    #[must_use]
    pub fn keep_first(&self, frame: &mut Frame) -> bool {
        let (_, len) = self.place(0);
        let extra = self.extra();
        if !frame.resize(self.header + len) || !frame.grow_front(extra) {
            return false;
        }
        let bytes = frame.bytes_mut();
        bytes.copy_within(extra..extra + self.header, 0);
        self.mark(bytes, 0);
        true
    }

    /// Where a piece begins among the bytes that are shared out, and how many of them it holds.
    fn place(&self, number: usize) -> (usize, usize) {
        let offset = number * self.per_piece;
        (offset, self.per_piece.min(self.payload - offset))
    }

    fn extra(&self) -> usize {
        match self.family {
            Cutting::V4 { .. } => 0,
            Cutting::V6 { .. } => ipv6::FRAGMENT_HEADER_LEN,
        }
    }

    /// Writes into a piece's headers which one it is.
    fn mark(&self, frame: &mut [u8], number: usize) {
        let (offset, len) = self.place(number);
        let more = offset + len < self.payload;
        let network = ethernet::HEADER_LEN;
        match self.family {
            Cutting::V4 { flags } => {
                let total_len = (self.header - network + len) as u16;
                let more = if more { ipv4::MORE_FRAGMENTS } else { 0 };
                let mut header = Ipv4::edit(&mut frame[network..]);
                header.set_part(total_len, flags | more | (offset / UNIT) as u16);
                if number > 0 {
                    header.blank_options_of_first_fragment();
                }
            }
            Cutting::V6 { named_at, next, id } => {
                let payload_len = self.header - network - ipv6::HEADER_LEN + self.extra() + len;
                let place = network + ipv6::field::PAYLOAD_LEN.start;
                frame[place..place + 2].copy_from_slice(&(payload_len as u16).to_be_bytes());
                frame[named_at] = FRAGMENT;
                let header = &mut frame[self.header..][..ipv6::FRAGMENT_HEADER_LEN];
                let more = if more { ipv6::MORE_FRAGMENTS } else { 0 };
                header[..2].copy_from_slice(&[next, 0]);
                header[2..4].copy_from_slice(&(offset as u16 | more).to_be_bytes());
                header[4..].copy_from_slice(&id.to_be_bytes());
            }
        }
    }
}
