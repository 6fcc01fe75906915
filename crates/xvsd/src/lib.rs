//! The process `xvsd`: threads, sockets and files around the control plane of `xvs-ctl`.
//!
//! A command arrives on the Unix socket ([`socket`]). A [`handle`] puts it into the queue of the control thread
//! ([`control_thread`]), the only owner of the desired state. Health checks, network changes and mark rules use the
//! same queue. Requests that need no writer are answered from [`status`] and [`metrics`], on the thread of the client.
//! State that outlives the process is in [`restart`].

pub mod daemon;
mod date;
pub mod error;
pub mod facts;
mod lock;
mod request_durations;
pub mod restart;
pub mod rights;
pub mod shared;
pub mod threads;

mod connection_log;
pub mod control_thread;
pub mod handle;
pub mod reload;
pub mod socket;

pub mod fleet;
mod fleet_view;
pub mod health_checks;
pub mod keepalived_conf;
mod kernel_rules;
mod offload;
mod sweeping;
mod sync;
mod sync_peers;
mod vip_probes;
pub mod workers;

pub mod history;
pub(crate) mod last_hour;
pub mod log;
pub mod metrics;
pub mod response_minute;
pub mod status;
