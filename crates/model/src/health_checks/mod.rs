//! The configuration of health checks, as read from keepalived.conf.

pub mod check;
pub mod fault;
pub mod mail;
pub mod virtual_server;
