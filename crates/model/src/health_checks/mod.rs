//! The configuration of health checks, as a keepalived.conf gives it.

pub mod check;
pub mod fault;
pub mod mail;
pub mod virtual_server;
