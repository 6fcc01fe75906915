//! The control plane: the daemon `xvsd`, from its socket to the snapshot that workers use.
//!
//! A command arrives at the [`server`], is dispatched by [`front`] and carried out by the control thread
//! ([`control_thread`], [`control`]) on the desired [`state`](xvs_model::state); [`registry`] turns the state into what
//! workers use.

pub mod locals;
pub mod marks;

mod denials;
pub mod peer;
pub mod server;

pub mod arguments;
pub mod capturing;
pub mod config;
pub mod control_thread;
pub mod daemon;
pub mod events;
pub mod front;
pub mod history;
mod liveness;
pub mod placement;
pub mod shared;
pub mod status;
mod threads;
pub mod traffic;
pub mod watchdog;
mod wired;

pub mod control;
mod crew;
pub mod feedback;
pub mod registry;
pub mod reserved;
pub mod settings;
mod steered;
pub mod tunnels;

mod daemon_facts;
mod health_checks;
mod health_report;
pub mod keepalived_conf;
pub mod netfilter;
pub mod network;

mod lockfile;
pub mod realserver;

pub mod connections;
pub mod estimator;
pub mod exporter;
pub mod memory;
pub mod metrics;
pub mod sweep;

pub mod explain;

pub mod in_memory;
