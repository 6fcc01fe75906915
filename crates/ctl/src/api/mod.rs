//! The control socket: who may ask for what, and what answers each request.

pub mod capture;
pub mod connections;
pub mod dispatch;
pub mod explain;
pub mod local_addresses;
pub mod peer;
mod refused_changes;
pub mod server;
