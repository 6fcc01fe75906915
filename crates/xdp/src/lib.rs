//! AF_XDP sockets and their packet memory, XDP programs on interfaces, BPF maps, TAPs; and a signal handler.
//!
//! [`attach()`] attaches a program to an interface. [`Sockets`] are one worker's queues on all attached interfaces.
//! They share one packet memory (UMEM), whose slots are owned [`Frame`]s. [`tap`] passes frames back to the kernel.
//! Set-up and shutdown may block, and belong to a control thread; only [`Sockets`] and [`FramePool`] are used for each
//! burst. This crate does not interpret packets: other crates decide which frames a program steers and where they go.
//! The XDP programs themselves are in `crates/dataplane/bpf` (steering) and `crates/realserver/bpf` (decapsulation).
//!
//! ```no_run
//! use xvs_xdp::bpf::ObjectFile;
//! use xvs_xdp::{Queues, RingSizes, Sockets, Wanted, attach};
//!
//! // An object with the program `steer` and its map of sockets, `xsks`. Needs root.
//! let image = std::fs::read("steer.bpf.o")?;
//! let attached = attach("eth0", Wanted::default(), c"steer", &[], None, |constants| {
//!     let mut object = ObjectFile::open(&image)?;
//!     object.set_constants(constants)?;
//!     object.load()
//! })?;
//! let links = [Queues { attached: &attached, queues: &[0] }];
//! let mut sockets = Sockets::open(&links, RingSizes::default())?;
//! let mut bytes = 0;
//! sockets.receive(xvs_xdp::BURST, |_, frame| bytes += frame.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// Rings, descriptors and libbpf are raw memory and C. No misuse of this crate's public functions is unsound.
#![allow(unsafe_code)]

pub mod bpf;
pub mod card;
pub mod device;
mod drivers;
pub mod kernel;
mod mode;
pub mod polling;
pub mod refused_calls;

mod attach;
pub mod pins;

mod burst;
mod frame;
mod umem;

mod error;
mod queue;
mod rings;
mod socket;
mod sockets;

pub mod tap;

pub mod packet_socket;
mod sys;

pub use attach::{AttachError, Attached, attach, check_port, check_tags};
pub use burst::{BURST, HELD, WAITING};
pub use drivers::{frame_bytes, leaves_checksums};
pub use error::SocketError;
pub use frame::{Census, Frame, FrameLayout, FramePool, Span};
pub use mode::{
    CopyMode, Mode, OFFLOAD, ONE_BUFFER_MTU, RECEIVE_RING, Refusal, Settings, Wanted, WantedMode, mtu_limit,
};
pub use socket::Statistics;
pub use sockets::{PacketMemory, Queues, Sockets};
pub use sys::{index_of, network_cookie, peer_groups, precede_receive_threads};
pub use umem::{RingSizes, umem_bytes};
