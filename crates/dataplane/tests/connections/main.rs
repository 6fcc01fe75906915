//! The connection table and what workers do with it: life, eviction, fragments, and tables of earlier processes.

#![cfg(not(loom))]
// Shared code of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each program uses a part")]
#[path = "../support/connections.rs"]
mod driver;
#[allow(dead_code, reason = "each program uses a part")]
#[path = "../support/workers/mod.rs"]
mod workers;

mod adopt;
mod announced;
mod eviction;
mod fragments;
mod history;
mod kept;
mod table;
mod timers;
mod unanswered;
