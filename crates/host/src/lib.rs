//! The state of this machine's kernel and its changes: links, addresses, routes, neighbours, netfilter's mark rules,
//! the rules of its IPVS, reserved ports, memory, cores. Also processes, lock files, and the names of directors.
//!
//! All functions work in the network namespace of the calling thread. They may block, so no worker calls this crate.
//! [`network::neighbours`] and [`reserved_ports`] write to the kernel; their callers decide the content.

pub mod boot;
pub mod cores;
pub mod follower_thread;
pub mod instance;
pub mod ipvs;
pub mod lock_file;
pub mod loopback;
pub mod memory;
pub mod netfilter;
pub mod network;
pub mod notice;
pub mod own_folder;
pub mod process;
pub mod reserved_ports;
pub mod state_directory;
