//! New connections: service, persistence, QUIC connection IDs, choice of the destination, and insertion into the table.

pub(crate) mod connect;

pub(crate) mod service;

pub(crate) mod limit;
mod local_port;

pub(crate) mod persistence;
pub(crate) mod quic;
pub(crate) mod schedule;

pub mod eviction;
pub(crate) mod one_packet;

pub(crate) mod bypass;
