//! Packets as they come in and as they go out, copied for whoever watches.
//!
//! A [`Capture`] is part of the snapshot while it is on, so that a worker without one asks once a burst and no more.
//! Each worker has a lane of its own in it: so many slots, made by who starts the capture. The worker copies into free
//! slots what the capture's filter takes ([`watched`]), the [`Reader`] gives them back. Where no slot is free the copy is
//! left out and counted, never the packet. Nothing allocates after [`Capture::new`], and no side waits for the other.
//! Cost, for a packet that is taken: it is parsed once more, its connection may be looked up, and it is copied twice, of
//! each copy no more than was asked for. Not here: who reads, and what files look like.

pub mod filter;
mod judge;
mod lane;
pub mod watched;

pub use self::lane::{Capture, Captures, FrameDirection, MOST, Reader, Record};
