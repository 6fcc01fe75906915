//! How many frames a worker handles at a time.

/// How many frames a worker takes at a time.
pub const BURST: usize = 64;

/// How many frames a worker may keep from burst to burst: fragments that wait for others.
pub const HELD: usize = 256;
