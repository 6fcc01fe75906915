//! The control plane: the daemon `xvsd`, and the whole director over a port in memory.
//!
//! A command comes over the Unix socket ([`api`]) into the queue of the control thread ([`control`]), which is the one
//! owner of the desired state; [`registry`] turns that into what workers use. Checks, the network and mark rules enter by
//! the same queue. What needs no writer is answered from [`status`] and [`metrics`] by the thread that asks.

pub mod arguments;
pub mod config;
pub mod daemon;

pub mod api;
pub mod control;
pub mod registry;

pub mod firewall_marks;
mod health_checks;
pub mod keepalived_conf;
pub mod workers;

pub mod events;
mod steering;
pub mod sweep;

pub mod metrics;
pub mod status;

pub mod in_memory;
