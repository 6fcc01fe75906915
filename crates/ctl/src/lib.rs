//! What should be the case, and is it.
//!
//! The way of a command, as modules in its order: [`adm`] turns what was typed into a checked command;
//! [`client`] sends it as a [`message`] to the [`server`], whose handler checks it against the desired [`state`] and
//! against what the data plane can do ([`support`]).

pub mod adm;

pub mod message;

pub mod client;
pub mod peer;
pub mod server;

pub mod state;
pub mod support;
