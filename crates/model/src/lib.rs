//! The data model that all programs share: configuration, commands, requests, replies, status and events.
//!
//! Plain data for the daemon, `xvsadm`, `xvs`, the parser of keepalived.conf and the health checks. A command changes
//! the [`desired_state`]; a [`request`] gets a [`reply`], over a socket with [`framing`] and a [`client`]. Nothing here
//! runs a thread, opens a file or knows the data plane.

pub mod destination;
pub mod firewall_mark;
pub mod load_feedback;
pub mod load_report;
pub mod local_address;
pub mod service;
pub mod settings;
pub mod sync_daemon;
pub mod timeouts;

pub mod command;
pub mod desired_state;
pub mod difference;
pub mod rules;

pub mod check;
pub mod fault;
pub mod reconcile;
pub mod virtual_server;

pub mod capture;
pub mod connection;
pub mod daemon_facts;
pub mod duration;
pub mod event;
pub mod explain;
pub mod health;
pub mod hexadecimal;
pub mod listing;
pub mod status;
pub mod traffic;

pub mod reply;
pub mod request;

pub mod client;
pub mod framing;

#[cfg(any(test, feature = "samples"))]
pub mod sample;
