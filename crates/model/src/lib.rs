//! The data model that all programs share: configuration, commands, requests, replies, status and events.
//!
//! Plain data for the daemon, `xvsadm`, `xvs`, the parser of keepalived.conf and the health checks. A command changes
//! the [`desired_state`](config::desired_state); each [`question`](protocol::question) has a request and a reply,
//! over a socket with [`framing`](protocol::framing) and a [`client`](protocol::client). Nothing here runs a thread
//! or knows the data plane; files are read only to tell why a reply is late.

pub mod config;
pub mod health_checks;
pub mod objects;
pub mod protocol;
pub mod report;

pub mod duration;
pub mod foreign_text;
pub mod hexadecimal;

#[cfg(any(test, feature = "samples"))]
pub mod sample;
#[cfg(feature = "schema")]
mod schema;
