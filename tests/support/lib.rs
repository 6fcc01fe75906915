//! Support of the black-box tests. `tests/netlab/` uses a cluster in namespaces, with the daemon, real servers and
//! clients; the others a cluster in the lab, with frames that the test writes.
//!
//! A [`LabCluster`] costs milliseconds and needs nothing. A namespace test makes a [`Cluster`] of its own with
//! `scripts/netlab`, so tests run in parallel; dropping the cluster removes everything in it, also after a panic.
//! A cluster costs a quarter of a second. Needs root and the packages of `scripts/setup`; without them, a
//! test fails with the reason. The log texts of xvs that the tests expect are in [`log_texts`].
//! In namespaces, kernels send and receive the packets; only [`frames`] writes a packet's bytes.

pub mod both_paths;
pub mod browser;
pub mod clients;
pub mod clock;
pub mod cluster;
pub mod director;
pub mod document;
pub mod etcd;
pub mod exposition;
pub mod first_hour;
pub mod fleet;
pub mod frames;
pub mod fuzz;
pub mod keepalived;
pub mod lab_cluster;
pub mod log_texts;
pub mod machine;
pub mod method;
pub mod metrics_access;
pub mod namespace;
pub mod netns;
pub mod offload;
pub mod own_process;
pub mod realserver;
pub mod recording;
pub mod request_stream;
pub mod sample;
pub mod segment;
pub mod servers;
pub mod setup;
pub mod steered;
pub mod systemd;
pub mod traffic;
pub mod wait;

pub use both_paths::BothPaths;
pub use cluster::{Cluster, Host, Layout, Wan};
pub use director::{Director, Workers};
pub use frames::{Datagram, Transport};
pub use lab_cluster::{Judged, LabCluster};
pub use method::Method;
pub use metrics_access::MetricsAccess;
pub use segment::Segment;
