//! Flow offload: the XDP program itself forwards packets of connections, which the kernel would otherwise copy to a
//! worker one by one.
//!
//! Only workers decide. A worker that forwards the first packet of a connection, or a later one (`begin.rs`), may write
//! a record into shared memory: the program's orders for later packets in both directions, and the keys with which it
//! finds the record (`keys.rs`). The program moves the connection between TCP states (`conn/offloaded.rs`). Each second
//! the worker reads the program's counts and its state of the connection (`sweep.rs`); the next xvsd does so once with
//! the remaining records (`former.rs`). One exchange ends a record: when the connection ends, or a segment begins or
//! resets it. Epochs end many records at once, when data on which their decisions depend changes. The program is
//! `bpf/offload.h`.

pub(crate) mod begin;
mod ends;
pub mod former;
mod give_up;
mod keys;
#[cfg(loom)]
pub mod model;
mod not_offloaded;
mod own;
mod part;
mod shared;
mod standing;
mod sweep;
mod unused;

pub use self::ends::Ends;
pub use self::not_offloaded::NotOffloaded;
pub(crate) use self::own::Offloader;
pub(crate) use self::shared::map;
pub use self::shared::{Offload, Settings};
#[cfg(test)]
pub(crate) mod layout {
    pub(crate) use super::keys::value as key_value;
    pub(crate) use super::part::field as part;
}
