//! The daemons of connection synchronization: their messages, sockets and threads.

mod backup;
mod candidates;
mod channel;
pub(crate) mod daemons;
pub(crate) mod error;
mod fetch_table;
mod key;
pub(crate) mod master;
mod send_table;
mod signature;
mod sockets;
mod thread;
