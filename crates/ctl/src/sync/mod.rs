//! Connection synchronization without sockets: the messages of a master, and what a backup makes of received ones.

pub mod messages;
pub mod receiver;
