//! The atomics of shared cells: the standard library's, or loom's in a model.
//!
//! Code that a model must follow uses these and never `std::sync::atomic`. Statistics do the opposite: they order no
//! other memory, and a model that followed them would only take longer.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
