//! What happens to a packet, now.
//!
//! In the order in which a packet meets them: the XDP program ([`steering`]) steers it to a socket; a [`worker`] takes a
//! burst of frames from its [`port`] through the [`pipeline`], whose stages stand in [`burst`], [`new_connection`],
//! [`forward`] and, for what is rare, [`slow_path`]. They act on the [`snapshot`] and on the table of connections ([`conn`]).

pub mod steering;

pub mod port;

pub mod worker;

pub mod pipeline;

pub mod burst;

pub mod conn;
pub mod shm;

pub mod new_connection;
pub mod snapshot;

pub mod egress;
pub mod forward;

pub mod slow_path;

pub mod verdict;

pub mod capture;
pub mod explain;

pub mod clock;
pub mod counters;
pub mod random;
