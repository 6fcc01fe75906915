//! Back to the kernel: what steering took too broadly.
//!
//! One [`Reinjector`] an attached interface, shared by all workers. A frame given to it arrives in the kernel as if it
//! had come in by that interface and no XDP program had been there, so routing, `rp_filter` and `-i` rules see the
//! truth. The way is a TAP (`xvs0`, `xvs1`, …) with a tc program that redirects to the interface's ingress; it
//! appears in `ip link` and goes with the process. Cost: one system call a frame; rare by design.
//!
//! Nothing comes back: in native mode the XDP program sits before the point of the redirection. In generic mode the
//! kernel runs it once more, so the frame then carries a marker before it, by which the program knows it and which it
//! takes off.

use std::io::{self, IoSlice};

use xvs_xdp::Attached;
use xvs_xdp::bpf::Object;
use xvs_xdp::tap::Tap;

use crate::steering::marker;

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reinject.bpf.o"));

/// The way back to the kernel for the frames of one interface.
pub struct Reinjector {
    tap: Tap,
    /// Before each frame.
    marker: Vec<u8>,
}

impl Reinjector {
    /// Opens the way in this thread's network namespace. It belongs to the interface as attached; if that is
    /// removed and comes again, it needs a new one.
    ///
    /// # Errors
    /// What the kernel says: that `/dev/net/tun` or CAP_NET_ADMIN is missing, or that it has no clsact.
    pub fn open(attached: &Attached) -> io::Result<Self> {
        let mut object = Object::open(OBJECT)?;
        object.set_constants(&attached.index().to_ne_bytes())?;
        object.load()?;
        let tap = Tap::open("xvs%d", object.program(c"reinject")?, object.program(c"discard")?)?;
        Ok(Self { tap, marker: marker(attached).to_vec() })
    }

    /// The TAP's name.
    pub fn tap(&self) -> &str {
        self.tap.name()
    }

    /// Lets a frame arrive. Never blocks.
    ///
    /// # Errors
    /// The kernel has no memory for it, or the TAP was taken down.
    pub fn inject(&self, frame: &[u8]) -> io::Result<()> {
        self.tap.write(&[IoSlice::new(&self.marker), IoSlice::new(frame)])
    }
}
