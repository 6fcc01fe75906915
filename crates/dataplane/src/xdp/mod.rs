//! The wire: steering, attachment to interfaces, AF_XDP sockets and the TAP back to the kernel.
//!
//! [`Steering`] holds what is the director's; [`Steering::attach`] puts the program on an interface; [`Sockets`] are
//! one worker's queues of every attached interface over one UMEM. Everything here is set up and taken down by the
//! control thread and may block; only what [`crate::port::xdp::XdpPort`] calls of [`Sockets`] runs per burst.

// Rings, descriptors and libbpf are raw memory and C; what leaves this module is safe to use wrongly.
#![allow(unsafe_code)]

pub mod arp;
pub mod decap;
pub mod device;

mod attach;
mod mode;
mod program;
mod steering;

mod error;
mod rings;
mod socket;
mod sockets;
mod umem;

pub(crate) mod tap;

pub(crate) mod bpf;
mod sys;

pub use attach::{AttachError, Attached};
pub use error::SocketError;
pub use mode::{CopyMode, MAX_MTU, Mode, Refusal};
pub(crate) use program::marker;
pub use program::{Steering, SteeringError, Verdict};
pub use socket::Statistics;
pub use sockets::{Queues, Sockets, Unsent};
pub use steering::SteeringRules;
pub use sys::{network_cookie, peer_groups};
pub use umem::{RingSizes, umem_bytes};
