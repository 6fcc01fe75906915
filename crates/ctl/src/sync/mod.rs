//! The daemons of connection synchronization: their messages, sockets and threads.

pub(crate) mod backup;
pub(crate) mod master;
pub(crate) mod messages;
mod sockets;
pub(crate) mod thread;
