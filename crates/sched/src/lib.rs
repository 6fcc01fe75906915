//! Which destination gets a new connection.
//!
//! A scheduler is asked once per new connection (for a persistent service: once per template). It sees the
//! destinations of one service in IPVS's order, what each carries, the packet's ends, and its own small state; it
//! answers with a choice and its next state and changes nothing itself, so that explaining a choice and making it are
//! one code.
//!
//! Adding a scheduler takes three steps: write `NAME.rs` beside its siblings with a type that implements
//! [`Scheduler`] and a `KIND` that says its name and builds it; declare the module here; add its `KIND` to the list in
//! `scheduler/mod.rs`, by which operators' names are looked up.

pub mod destination;
pub mod service;

pub mod scheduler;

mod account;

mod hash;
mod memory;
mod ratio;

mod dh;
mod fo;
mod lblc;
mod lblcr;
mod lc;
mod mh;
mod none;
mod nq;
mod ovf;
mod rr;
mod sed;
mod sh;
mod twos;
mod wlc;
mod wrr;

pub use account::{Account, Certainty, Figure};
pub use destination::{ClientAddress, Destination, ForwardingMethod, Weight};
pub use scheduler::{Candidates, Choice, Load, Request, Scheduler, State};
pub use service::ServiceKey;
