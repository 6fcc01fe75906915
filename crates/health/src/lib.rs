//! Health: whether real servers answer, and what follows from it for the services of a keepalived.conf.
//!
//! Each check asks again and again, on a runtime of its own, so that no probe delays a command. What its answers mean for
//! it is counted by itself; what that means for a virtual server is worked out in one place, and what the table should
//! then hold goes to the control thread as a whole. Not here: what a file says (`keepalived/`), and what becomes of
//! packets.

mod answer;
mod blocking;
mod environment;
mod place;
pub use answer::Answer;
pub use environment::{Environment, Wanted};
pub use place::Place;
mod board;
mod command;
pub mod course;
mod dns;
pub mod engine;
mod fifo;
mod file;
mod http;
mod icmp;
mod manager;
mod notify;
pub mod outcome;
mod pattern;
pub mod pool;
pub mod prepare;
mod probe;
mod runner;
mod script;
mod smtp;
mod socket;
mod tcp;
mod tls;
mod tls_config;
mod udp;

#[cfg(test)]
mod tests;
