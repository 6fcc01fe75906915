//! Memory that threads and processes share, and the only raw views of it.
//!
//! Everything here checks its arguments in release builds, too. Any thread may safely use its results, in any order.

// Raw views of shared memory are the purpose of this module; all code that uses it is safe.
#![allow(unsafe_code)]

pub(crate) mod atomic;
pub(crate) mod layout;
mod mapping;
mod tags;
pub(crate) mod words;

pub(crate) use mapping::{Cells, Mapping, file_bytes, prefetch};
pub use mapping::{Memory, Pages, allocate_huge};
pub(crate) use tags::matching;
