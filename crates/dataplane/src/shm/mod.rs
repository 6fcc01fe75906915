//! Memory that is shared with the kernel or between threads, and the only raw views of it.
//!
//! Everything here checks what it is handed in release builds too; what leaves is safe to use wrongly.

// Raw views of shared memory are what this module is for; everything built on it is safe code.
#![allow(unsafe_code)]

pub(crate) mod atomic;
mod frame;
pub(crate) mod layout;
mod mapping;

pub use frame::{Census, Frame, FrameLayout, FramePool, Span};
pub(crate) use mapping::{Cells, Mapping, prefetch};
pub use mapping::{Memory, Pages};
