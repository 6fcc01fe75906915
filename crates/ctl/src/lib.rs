//! The control plane as a library: the desired state, the objects that workers use, and the answers that need no
//! process.
//!
//! A command changes the desired state in [`control`], its only owner. [`registry`] builds the objects that workers use
//! from that state. Nothing here opens a socket, starts a thread or reads a clock: `xvsd` does, and [`in_memory`] is
//! the whole director with a port in memory, for the lab and for tests. The modules of xvsd that `xvs doctor` and the
//! manual need are here, too: [`config`], [`arguments`], [`credentials`].

pub mod arguments;
pub mod config;
pub mod credentials;
pub mod quic_key;
pub mod secret_file;

pub mod api;
pub mod control;
pub mod registry;

pub mod bonds;
pub mod events;
pub mod firewall_marks;
pub mod journal;
pub mod kernel_rules;
pub mod placement;
pub mod steering;
pub mod sweep;
pub mod sync;
pub mod unattached;

pub mod in_memory;
