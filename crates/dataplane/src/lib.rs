//! What happens to a packet, now.
//!
//! The way of a packet, as modules in its order: a [`port`] hands a burst of frames to the pipeline; each is
//! parsed, classified against the snapshot, looked up among the connections, scheduled if it begins one,
//! rewritten or encapsulated, and sent.

pub mod shm;

pub mod port;

pub mod clock;

pub mod conn;

pub mod egress;
