//! The control socket: permissions of clients, and the part of the daemon that answers each request.

pub mod capture;
pub mod connections;
pub mod dispatch;
pub mod explain;
pub mod local_addresses;
pub mod peer;
mod refused_changes;
pub mod server;
