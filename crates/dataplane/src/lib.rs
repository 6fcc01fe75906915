//! The data plane: packets from the wire to the wire.
//!
//! The modules are in the order of the data flow. The XDP program of [`steering`] steers a packet to an AF_XDP socket.
//! A [`worker`] receives it from its [`port`] in a burst and runs the [`pipeline`]. The stages of every packet are in
//! [`burst`]: they look up the connection in the table of [`conn`], whose memory is in [`shm`]. A packet without a
//! connection goes through [`new_connection`], which reads services and destinations from the [`snapshot`]. [`forward`]
//! rewrites the packet for its next hop from [`egress`]; [`offload`] makes the XDP program do this for later packets.
//! Rare packets go through [`general_path`]. The pipeline ends with one [`verdict`] for each packet. [`capture`] and
//! [`explain`] observe the stages.

mod bpf;
pub mod steering;

pub mod port;

pub mod worker;

pub mod pipeline;

pub mod burst;

pub mod conn;
pub mod shm;

pub mod new_connection;
pub mod snapshot;

pub mod egress;
pub mod forward;

pub mod offload;

pub mod general_path;

pub mod sync;

pub mod verdict;

pub mod capture;
pub mod explain;

pub mod clock;
pub mod counters;
pub mod random;
