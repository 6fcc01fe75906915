//! Answers to requests about connections, captured packets and a packet's path, for the daemon and for the lab.

pub mod capture;
pub mod connections;
pub mod explain;
pub mod local_addresses;
