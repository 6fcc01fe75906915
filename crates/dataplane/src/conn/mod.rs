//! Connections: the table that assigns each client's packets to a destination, with states and timeouts.
//!
//! Workers find, insert, time and remove connections with a [`TableWorker`]. Listings and sweeps walk them with a
//! [`TableReader`]. Both get one connection as a [`Connection`]. `new_connection/` decides when a packet begins a
//! connection, and `burst/state.rs` the state that follows a packet.

mod connection;
mod direction;
mod flags;
mod id;
mod insertion;

mod table;

mod buckets;
mod entry;
mod keys;
mod lookup;
mod quiescence;
mod slab;
mod timer_link;
mod wheel;

mod adopt;
mod candidate;
mod handle;
mod leave;
mod life;
mod reader;
mod timers;

mod call_ids;
mod ftp;
pub mod log;
mod logged;
mod numbers;
mod offloaded;
mod request_times;
mod spare;
mod template;

mod copy;

pub mod sctp;
pub mod tcp;
pub mod udp;

pub use self::adopt::{AdoptError, FormerTable, Repair, Survey, TableFiles};
pub(crate) use self::buckets::Candidate;
pub use self::call_ids::CallIds;
pub use self::connection::Connection;
pub(crate) use self::connection::{Complete, NO_DESTINATION};
pub use self::copy::Copied;
pub use self::direction::{Direction, Seen};
pub use self::flags::Flags;
pub(crate) use self::ftp::{Asked, Shift};
pub(crate) use self::handle::TableHandle;
pub use self::handle::TableWorker;
pub use self::id::ConnId;
pub use self::insertion::{Inserted, NewConnection, Removal};
pub(crate) use self::life::Life;
pub(crate) use self::lookup::Sought;
pub(crate) use self::numbers::{Awaited, Numbers};
pub(crate) use self::offloaded::{
    MAX_RECORDS, NO_CONNECTION, Offloaded, Packets, RECORD, SLOTS, Settled, State as RecordState, Then, Used,
    has_packets, word as offloaded_word,
};
pub use self::reader::TableReader;
pub use self::spare::Spare;
pub use self::table::{Boot, Epoch, Table, TableConfig, TableCounts, random_secret};
pub use self::template::{ASSURED, detached};
pub use self::timers::Timers;
pub use self::wheel::TIMER_TICK;
