//! The stages of rare packets: ICMP errors, fragments, resets, TCP options, FTP, SYN cookies, and probes of real
//! servers.

pub(crate) mod client_address;
pub mod fragmentation;
pub(crate) mod ftp;
pub mod icmp_error;
pub mod icmp_originate;
pub mod mss;
pub mod neighbour_queue;
pub(crate) mod no_destination;
pub mod reassembly;
pub mod reset;
pub(crate) mod syn_proxy;
pub(crate) mod tcp_originate;
pub(crate) mod vip_probe;
