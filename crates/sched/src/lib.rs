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
//!
//! ```
//! use xvs_proto::Endpoint;
//! use xvs_sched::scheduler::{Setup, build};
//! use xvs_sched::{Candidates, Load, Request, State, Weight};
//!
//! /// The weight and the active connections of each destination.
//! struct Destinations([(u32, u32); 2]);
//!
//! impl Candidates for Destinations {
//!     fn len(&self) -> usize { 2 }
//!     fn weight(&self, position: usize) -> Weight { Weight(self.0[position].0) }
//!     fn load(&self, position: usize) -> Load { Load { active: self.0[position].1, inactive: 0 } }
//!     fn overloaded(&self, _: usize) -> bool { false }
//! }
//!
//! let wlc = build("wlc", &Setup::default()).unwrap();
//! let client = Endpoint::new([192, 0, 2, 1], 40000);
//! let dest = Endpoint::new([198, 51, 100, 2], 80);
//! let request = Request { source: client, dest, now_millis: 0, random: 0 };
//! // 5 connections at weight 1 are a higher load than 6 at weight 2.
//! let choice = wlc.choose(State::default(), &request, &Destinations([(1, 5), (2, 6)]));
//! assert_eq!(choice.position, Some(1));
//! assert!(build("no-such-scheduler", &Setup::default()).is_none());
//! ```

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
