//! Connections: who talks to which destination by which service, and how long that is remembered.
//!
//! Workers find, make, time and end them by [`TableWorker`]; listings and sweeps walk over them by [`TableReader`]; both
//! see one of them as [`Connection`]. Not here: when a packet makes one, and what its packets do to its state.

mod connection;
mod direction;
mod flags;
mod id;
mod insertion;

mod table;

mod buckets;
mod entry;
mod lookup;
mod quiescence;
mod slab;
mod wheel;

mod handle;
mod reader;

mod call_ids;
mod template;

mod copy;

pub mod sctp;
pub mod tcp;
pub mod udp;

pub use self::call_ids::CallIds;
pub use self::connection::Connection;
pub use self::copy::Copied;
pub use self::direction::{Direction, Seen};
pub use self::flags::Flags;
pub use self::handle::{TableWorker, Timers};
pub use self::id::ConnId;
pub use self::insertion::{Inserted, NewConnection, Removal};
pub(crate) use self::lookup::Sought;
pub use self::reader::TableReader;
pub use self::table::{Epoch, Table, TableConfig, TableCounts, random_secret};
pub use self::template::ASSURED;
pub use self::wheel::TIMER_TICK;
