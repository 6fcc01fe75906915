//! The size of a burst.

/// Maximum number of frames that a worker receives at a time.
pub const BURST: usize = 64;

/// Maximum number of frames that a worker keeps from burst to burst: fragments of incomplete datagrams.
pub const HELD: usize = 256;

/// Maximum number of frames that wait for the link address of their next hop, from burst to burst.
pub const WAITING: usize = 64;
