//! The kernel's XDP: the program that steers packets to the director, and the one that decapsulates on real servers.
//!
//! [`Steering`] holds what is the director's; [`Steering::attach`] puts the program on an interface. Everything here is
//! set up and taken down by the control thread and may block. [`decap`] is the real server's program.

// Rings, descriptors and libbpf are raw memory and C; what leaves this module is safe to use wrongly.
#![allow(unsafe_code)]

pub mod decap;

mod mode;
mod program;
mod steering;

mod bpf;
mod sys;

pub use mode::{MAX_MTU, Mode, Refusal};
pub use program::{AttachError, Attached, Steering, SteeringError, Verdict};
pub use steering::SteeringRules;
