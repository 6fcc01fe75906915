//! Health: whether real servers answer, and what follows from it for the services of a keepalived.conf.
//!
//! Each check asks again and again, on a runtime of its own, so that no probe delays a command. What its answers mean for
//! it is counted by itself; what that means for a virtual server is worked out in one place, and what the table should
//! then hold goes to the control thread as a whole. Not here: what a file says (`keepalived/`), and what becomes of
//! packets.

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
