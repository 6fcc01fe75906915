//! The spare integer of an entry, whose meaning depends on the connection: no kind of connection needs two of them.

/// What a new connection has in the spare integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare(pub(super) u32);

impl Spare {
    /// Nothing yet: a TCP connection, whose packets bring a sequence number, or a connection without one.
    pub const NONE: Self = Self(0);
    /// A UDP connection that awaits its first reply.
    pub(crate) const AWAITS_REPLY: Self = Self(1);

    /// A template lasts this many seconds after a connection.
    pub fn template(seconds: u32) -> Self {
        Self(seconds)
    }

    /// The sequence number of the client's first data byte.
    pub(crate) fn first_sequence(number: u32) -> Self {
        Self(number)
    }
}
