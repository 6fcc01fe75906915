//! The control plane: the daemon `xvsd`, and the whole director over a port in memory.
//!
//! A command arrives on the Unix socket ([`api`]) and enters the queue of the control thread ([`control`]), the one
//! owner of the desired state. [`registry`] builds from that state what workers use. Health checks, network changes
//! and mark rules enter by the same queue. Requests that need no writer are answered from [`status`] and [`metrics`],
//! on the thread of the client.

pub mod arguments;
pub mod config;
pub mod daemon;

pub mod api;
pub mod control;
pub mod registry;
pub mod reload;

pub mod firewall_marks;
pub mod fleet;
mod health_checks;
mod health_view;
pub mod journal;
pub mod keepalived_conf;
mod secret_file;
mod vip_probes;
pub mod workers;

pub mod events;
pub mod log;
pub mod offload;
mod steering;
pub mod sweep;
mod sync;

pub mod metrics;
pub mod status;

pub mod in_memory;
