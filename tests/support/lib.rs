//! What the namespace tests stand on: a cluster, the daemon in it, real servers, clients, waiting.
//!
//! Used by `tests/netlab_*.rs` alone. Each test makes a [`Cluster`] of its own by `scripts/netlab`, so
//! tests run side by side; what a test leaves, panic or not, goes when its cluster is dropped. A cluster
//! costs a quarter of a second. Needs root and what `scripts/setup` installs; without, a test fails and
//! says why. Everything that the tests assume of xvs's own words stands in [`words`].
//! Not here: anything that knows a packet's bytes; what is sent and received is the kernel's own.

pub mod carries;
pub mod clients;
pub mod cluster;
pub mod director;
pub mod method;
pub mod namespace;
pub mod servers;
pub mod wait;
pub mod words;

pub use cluster::{Cluster, Host, Layout, Wan};
pub use director::{Director, Workers};
pub use method::Method;
