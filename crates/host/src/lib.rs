//! What this machine's kernel has, as it is and as it changes: links, addresses, routes and neighbours, the rules by
//! which netfilter marks packets, reserved ports, memory, cores. Plus the lock files of programs that change it.
//!
//! Everything is of the network namespace of the thread that asks. Reading may block: no worker calls this crate. What
//! is wanted of the kernel others decide; only [`network::neighbours`] and [`reserved_ports`] write what they are given.

pub mod cores;
pub mod lock_file;
pub mod memory;
pub mod netfilter;
pub mod network;
pub mod reserved_ports;
