//! What the data plane shares with the kernel: the XDP program, its maps, and AF_XDP sockets. Needs root.

#![cfg(not(loom))]
// Shared code of tests may unwrap as tests do.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "each program uses a part")]
#[path = "../support/connections.rs"]
mod connections;
#[path = "../support/testbed.rs"]
mod testbed;

mod start_orders;
mod steering;
mod steering_changes;
mod steering_hold;
mod steering_lists;
mod steering_lists_refused;
mod steering_syn_limits;
mod wire_kernel;
mod wire_port;
