//! What should be the case, and is it.

pub mod cli;

pub mod network;
pub mod realserver;
