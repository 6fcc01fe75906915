//! What should be the case, and is it.

pub mod network;
