//! Flow offload: the XDP program itself forwards packets of established connections, which the kernel would otherwise
//! copy to a worker one by one.
//!
//! Only workers decide. A worker that forwards a packet of a steady connection (`begin.rs`) may write a record into
//! shared memory: what the program is to do with later packets of both directions, and the keys by which it finds the
//! record (`keys.rs`). Each second the worker takes the program's counts (`sweep.rs`), refreshes deadlines, and adds to
//! all counts; the next xvsd does so once with the counts that were left (`former.rs`). One store ends a record: when
//! the connection ends or changes its state, or when the program meets a segment that may change it. Epochs end many
//! records at once, when data that their decisions have read changes. Not here: the program (`bpf/offload.h`).

pub(crate) mod begin;
mod ends;
pub mod former;
mod give_up;
mod keys;
mod not_offloaded;
mod own;
mod part;
mod shared;
mod standing;
mod sweep;

pub use self::ends::Ends;
pub use self::not_offloaded::NotOffloaded;
pub(crate) use self::own::Offloader;
pub(crate) use self::shared::map;
pub use self::shared::{Offload, Settings};
#[cfg(test)]
pub(crate) mod layout {
    pub(crate) use super::keys::value as key_value;
    pub(crate) use super::shared::{
        ACTIVE, BUCKET, BUCKETS, CLOCK, KEYS, LAYOUT, SEED, SLOT_WORDS, STATE_WORDS, TCP,
    };
}
