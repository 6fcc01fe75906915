//! Memory that threads and processes share, and the only raw views of it.
//!
//! Everything here checks what it is handed in release builds too; what leaves is safe to use wrongly.

// Raw views of shared memory are what this module is for; everything built on it is safe code.
#![allow(unsafe_code)]

pub(crate) mod atomic;
pub(crate) mod layout;
mod mapping;

pub(crate) use mapping::{Cells, Mapping, prefetch};
pub use mapping::{Memory, Pages};
