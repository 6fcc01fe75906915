//! How frames come and go: AF_XDP sockets and their packet memory, XDP programs on interfaces, TAPs.
//!
//! [`attach()`] puts a program on an interface; [`Sockets`] are one worker's queues of every attached interface over one
//! packet memory, whose slots are owned [`Frame`]s; [`tap`] gives frames back to the kernel. Set-up and take-down may
//! block and belong to a control thread; only [`Sockets`] and [`FramePool`] are used once a burst. No packet is looked at
//! here: which frames a program steers, and what becomes of them, others decide.

// Rings, descriptors and libbpf are raw memory and C; what leaves this crate is safe to use wrongly.
#![allow(unsafe_code)]

pub mod bpf;
pub mod device;
mod mode;

mod attach;

mod burst;
mod frame;
mod umem;

mod error;
mod queue;
mod rings;
mod socket;
mod sockets;

pub mod tap;

pub mod arp;
mod sys;

pub use attach::{AttachError, Attached, attach};
pub use burst::{BURST, HELD};
pub use error::SocketError;
pub use frame::{Census, Frame, FrameLayout, FramePool, Span};
pub use mode::{CopyMode, MAX_MTU, Mode, Refusal};
pub use socket::Statistics;
pub use sockets::{Queues, Sockets, Unsent};
pub use sys::{network_cookie, peer_groups};
pub use umem::{RingSizes, umem_bytes};
