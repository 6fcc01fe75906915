//! XDP programs in the kernel: loading, attaching, and what they share with us.
//!
//! Set-up and tear-down only, which may block; [`decap`] is the real server's program.

// libbpf and the kernel's maps are C; what leaves this module is safe to use wrongly.
#![allow(unsafe_code)]

pub mod decap;

mod bpf;
