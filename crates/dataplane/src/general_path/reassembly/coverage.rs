//! The bytes of a datagram that its fragments cover.

use super::fragment::Part;

/// Maximum number of fragments of a datagram: enough for the largest one over links with an MTU of 576 bytes (RFC 791
/// §3.2).
pub const PER_DATAGRAM: usize = 128;

/// The fragments of one datagram, added up.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) bytes: usize,
    fragments: usize,
    /// The greatest end of any fragment.
    end: usize,
    /// The end of the last fragment, if it was received.
    total: Option<usize>,
    /// The bytes of the new fragment that were received before.
    repeated: usize,
}

pub(super) enum State {
    Partial,
    Whole,
    Contradictory,
    TooMany,
}

impl Coverage {
    pub(super) fn add(&mut self, part: &Part) {
        self.bytes += part.len;
        self.fragments += 1;
        self.end = self.end.max(part.end());
        if !part.more {
            // If two ends differ, the greater one makes the fragments contradictory.
            self.total = Some(self.total.unwrap_or(part.end()).min(part.end()));
        }
    }

    /// Counts the bytes of `new` that `other` also contains.
    pub(super) fn add_repeated(&mut self, other: &Part, new: &Part) {
        self.repeated += other.shared_with(new);
    }

    /// Whether all bytes of `new`, the most recently added fragment, were received before. No two of the earlier
    /// fragments share a byte.
    pub(super) fn repeats(&self, new: &Part) -> bool {
        self.repeated == new.len && self.total.is_none_or(|total| self.end <= total)
    }

    pub(super) fn state(&self) -> State {
        match self.total {
            _ if self.repeated > 0 => State::Contradictory,
            Some(total) if self.end > total => State::Contradictory,
            Some(total) if self.bytes == total => State::Whole,
            _ if self.fragments >= PER_DATAGRAM => State::TooMany,
            _ => State::Partial,
        }
    }
}
