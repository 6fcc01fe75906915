//! What the black-box tests stand on: a cluster in namespaces, with the daemon, real servers and clients, for
//! `tests/netlab_*.rs`; a cluster in the lab, with frames made by hand, for the others.
//!
//! A [`LabCluster`] costs milliseconds and needs nothing. A namespace test makes a [`Cluster`] of its own by
//! `scripts/netlab`, so tests run side by side; what a test leaves, panic or not, goes when its cluster is
//! dropped. A cluster costs a quarter of a second. Needs root and what `scripts/setup` installs; without, a
//! test fails and says why. Everything that the tests assume of xvs's own words stands in [`words`].
//! What is sent and received in namespaces is the kernel's own; only [`frames`] knows a packet's bytes.

pub mod asking;
pub mod carries;
pub mod clients;
pub mod cluster;
pub mod director;
pub mod exposition;
pub mod frames;
pub mod fuzz;
pub mod lab_cluster;
pub mod method;
pub mod namespace;
pub mod netns;
pub mod recording;
pub mod servers;
pub mod setup;
pub mod steered;
pub mod wait;
pub mod words;

pub use cluster::{Cluster, Host, Layout, Wan};
pub use director::{Director, Workers};
pub use frames::{Datagram, Transport};
pub use lab_cluster::{Judged, LabCluster};
pub use method::Method;
