//! Flow offload: the XDP program forwards packets of established connections itself, where the kernel would copy each
//! of them to a worker.
//!
//! Workers alone decide. One that forwards a packet of a steady connection (`begin.rs`) may write into shared memory
//! what the program is to do with later packets of both directions: a record, and the keys by which the program finds
//! it (`keys.rs`). Each second the worker takes what the program has counted (`sweep.rs`), refreshes deadlines, and
//! adds to all counts; the next xvsd does so once, with what was left (`former.rs`). A record ends by one store: when
//! the connection ends or changes its state, or the program meets a segment that may change it. Its epochs end many at
//! once, when what was decided from has changed. Not here: the program (`bpf/offload.h`).

pub(crate) mod begin;
mod ends;
pub mod former;
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
    pub(crate) use super::shared::{BUCKET, BUCKETS, KEYS, SEED, STATE_WORDS};
}
