//! How much of a datagram its fragments cover.

use super::fragment::Part;

/// How many fragments one datagram may have: enough for the largest by links that take 576 bytes (RFC 791 §3.2).
pub const PER_DATAGRAM: usize = 128;

/// What the fragments of one datagram are together.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    pub(super) bytes: usize,
    fragments: usize,
    /// The furthest end of any.
    end: usize,
    /// Where the last one ends, if it is here.
    total: Option<usize>,
    /// Bytes of the new one that were here before.
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
            // Of two ends the further one lies behind the other.
            self.total = Some(self.total.unwrap_or(part.end()).min(part.end()));
        }
    }

    /// Counts the bytes of `new` that another fragment has too.
    pub(super) fn add_repeated(&mut self, other: &Part, new: &Part) {
        self.repeated += other.shared_with(new);
    }

    /// Whether all of `new`, the last one added, was here before; of those before no two share a byte.
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
