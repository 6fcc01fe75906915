//! Connection synchronization: the messages of a master daemon to backup directors, and their use by a backup daemon.
//!
//! Workers decide which packets announce their connection (`announce`). The daemon's thread reads the announced
//! connections ([`collect`]), and puts them into messages ([`outbox`]). Workers enter the connections that a backup
//! daemon has received ([`apply`]).

pub(crate) mod announce;
pub mod apply;
pub mod collect;
pub mod outbox;
