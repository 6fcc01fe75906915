//! Health checks of real servers, as a keepalived.conf configures them.
//!
//! Checks run on a thread and a runtime of their own, so no probe delays a command. Each check counts its passes and
//! failures itself (`check_state.rs`); the state of a virtual server follows from its checks (`virtual_server.rs`); the
//! services that it wants go to the control thread as a whole (`manager.rs`). Not here: the syntax of keepalived.conf
//! (`xvs_keepalived`), and packets.

mod blocking;
mod check_ref;
mod environment;
mod probe_result;
pub use check_ref::CheckRef;
pub use environment::{DesiredServices, Environment};
pub use probe_result::ProbeResult;
pub mod check_state;
mod command;
mod dns;
pub mod engine;
mod fifo;
mod file;
mod http;
mod icmp;
pub mod initial_state;
mod manager;
mod notify;
mod pattern;
pub mod prepare;
mod probe;
mod results;
mod runner;
mod script;
mod smtp;
mod socket;
mod tcp;
mod tls;
mod tls_config;
mod udp;
pub mod virtual_server;

#[cfg(test)]
mod tests;
