//! Schedulers: the choice of a destination for a new connection.
//!
//! A scheduler runs once for each new connection; for a persistent service, once for each template. It reads the
//! destinations of one service in IPVS's order, their loads, the endpoints of the packet, and its own small state. It
//! returns a choice and its next state, and changes nothing itself. The same code can therefore make a choice and
//! explain it.
//!
//! Adding a scheduler takes three steps. Write `NAME.rs` with a type that implements [`Scheduler`], and a `KIND` with
//! its name and constructor. Declare the module here. Add the `KIND` to the list in `scheduler/mod.rs`, where names are
//! looked up.

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
pub use destination::{ClientAddress, Destination, ForwardingMethod, SynProxy, Weight};
pub use scheduler::{Candidates, Choice, Load, Request, Reserved, Scheduler, State};
pub use service::{Above, ClientLimit, ServiceKey, SynRate};
