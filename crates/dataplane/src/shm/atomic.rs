//! The atomics that shared cells are made of: the standard library's, or loom's where a model runs.
//!
//! Code that a model must see uses these and never `std::sync::atomic`. Statistics do the opposite: they order
//! nothing, and a model that followed them would only take longer.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
