//! New connections: which packets begin one, to which destination, and how the table takes it.

pub mod eviction;
mod insert;
pub mod persistence;
pub mod schedule;
