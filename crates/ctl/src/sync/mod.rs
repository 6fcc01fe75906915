//! The daemons of connection synchronization: their messages, sockets and threads.

pub(crate) mod backup;
mod channel;
mod fetch_table;
pub(crate) mod key;
pub(crate) mod master;
pub(crate) mod messages;
pub(crate) mod peers;
pub(crate) mod receiver;
mod send_table;
mod sockets;
pub(crate) mod thread;
