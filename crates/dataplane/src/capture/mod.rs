//! Captures: copies of packets as they are received and sent.
//!
//! A [`Capture`] is part of the snapshot while it is active, so without captures a worker makes only one check for each
//! burst. Each worker has a lane in the capture, with slots that are allocated when the capture starts. The worker
//! copies packets that pass the filter into free slots ([`watched`]), and the [`Reader`] returns the slots. If no slot
//! is free the copy is omitted and counted; the packet is processed as usual. Nothing is allocated after
//! [`Capture::new`], and neither side waits for the other. Cost for a captured packet: another parse, possibly a
//! look-up of its connection, and two copies, up to the requested length.

pub mod filter;
mod judge;
mod lane;
pub mod watched;

pub use self::lane::{Capture, Captures, FrameDirection, MOST, Reader, Record};
