//! Health checks of real servers, as keepalived.conf configures them.
//!
//! Checks run on a separate thread and runtime, so no probe delays a command. Each check counts its passes and failures
//! itself (`check_state.rs`); the state of a virtual server follows from its checks (`virtual_server/mod.rs`); the
//! services that it wants go to the control thread as a whole (`manager.rs`). The crate `xvs_keepalived` parses
//! keepalived.conf.

// Preparation of a configuration.
pub mod initial_state;
mod pattern;
pub mod prepare;
pub mod sources;
mod tls_config;

// The engine and its tasks.
mod check_ref;
pub mod engine;
mod environment;
mod file_timeouts;
mod mail;
mod mail_stream;
mod manager;
mod reload_summary;
mod results;
mod runner;

mod probes;

// From probe results to the state of a virtual server.
pub mod agent;
pub mod check_state;
pub mod view;
pub mod virtual_server;

// Notices and commands.
mod blocking;
mod command;
mod fifo;
mod notify;

pub use check_ref::CheckRef;
pub use environment::{DesiredServices, Environment};
pub use probes::probe_result::ProbeResult;
pub use probes::through_vip::{VipAnswer, VipProbe, VipProbeError};

#[cfg(test)]
mod tests;
