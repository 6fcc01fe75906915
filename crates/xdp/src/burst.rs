//! The size of a burst.

/// The most frames that a worker receives at a time.
pub const BURST: usize = 64;

/// The most frames that a worker keeps from burst to burst: fragments of incomplete datagrams.
pub const HELD: usize = 256;
