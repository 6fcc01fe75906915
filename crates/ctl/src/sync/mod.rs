//! Connection synchronization without sockets: the messages of a master, and a backup's processing of received
//! messages.

pub mod messages;
pub mod receiver;
