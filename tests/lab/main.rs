//! Frames, commands and a clock that the test moves, through the pipeline in one process.
//!
//! Not here: the recordings of the kernel (`tests/conformance`), real sockets (`tests/netlab`).

mod capture;
mod client_address;
mod client_limit;
mod connections;
mod connections_bad_input;
mod explain;
mod explain_agrees;
mod fast_path;
mod feedback;
mod ftp;
mod fullnat;
mod golden;
mod limits;
mod links;
mod lists;
mod maintenance;
mod marks;
mod note;
mod offload;
mod persistence;
mod policy_routing;
mod properties;
mod protocol;
mod quic;
mod reset;
mod response_times;
mod round_trip;
mod rules;
mod schedulers;
mod sctp;
mod slow_start;
mod steering;
mod sweep;
mod syn_proxy;
mod sync;
mod thresholds;
mod vip_probe;
mod vrf;
