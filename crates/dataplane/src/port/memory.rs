//! A port without a kernel, for tests, benches and the lab: the caller injects frames and takes them out.

use std::collections::VecDeque;
use std::time::Duration;

use xvs_proto::LinkId;
use xvs_xdp::{BURST, Census, Frame, FrameLayout, FramePool};

use crate::port::{Port, Received, Woken};

/// A frame as bytes, with the link by which it enters or leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes {
    /// The link.
    pub link: LinkId,
    /// The frame from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// An in-memory [`Port`] over a frame pool of its own.
pub struct MemoryPort {
    pool: FramePool,
    incoming: VecDeque<Received>,
    transmitted: Vec<Bytes>,
    passed: Vec<Bytes>,
    links: u16,
}

impl MemoryPort {
    /// A port with this many links. Its frames are no larger than `layout` permits.
    pub fn new(layout: FrameLayout, links: u16) -> Self {
        Self {
            pool: FramePool::in_memory(layout),
            incoming: VecDeque::new(),
            transmitted: Vec::new(),
            passed: Vec::new(),
            links,
        }
    }

    /// A port with frames as AF_XDP has them: 2 KiB, of which 256 bytes are headroom.
    pub fn with_links(links: u16) -> Self {
        Self::new(
            FrameLayout { frame_size_bytes: 2048, headroom_bytes: 256, frames: 8 * BURST as u32 },
            links,
        )
    }

    /// Sets the number of links.
    pub fn set_links(&mut self, links: u16) {
        self.links = links;
    }

    /// Injects a frame. `false` if it does not fit a slot or the pool is empty.
    #[must_use]
    pub fn inject(&mut self, link: LinkId, bytes: &[u8]) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        if !frame.resize(bytes.len()) {
            self.pool.put(frame);
            return false;
        }
        frame.bytes_mut().copy_from_slice(bytes);
        self.incoming.push_back(Received { link, frame });
        true
    }

    /// Frames that were transmitted since the last call.
    pub fn take_transmitted(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.transmitted)
    }

    /// Frames that went to the kernel since the last call.
    pub fn take_passed(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.passed)
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let room = BURST.saturating_sub(burst.len()).min(self.incoming.len());
        burst.extend(self.incoming.drain(..room));
    }

    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        match link {
            LinkId::LOOPBACK => return self.pass_to_kernel(link, frame),
            link if link.is_own() => return self.pass_to_kernel(link.wire(), frame),
            _ => {}
        }
        if link.0 >= self.links {
            return Err(frame);
        }
        self.transmitted.push(Bytes { link, frame: frame.bytes().to_vec() });
        self.pool.put(frame);
        Ok(())
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        if link.is_own() && link != LinkId::LOOPBACK {
            return self.transmit(link.wire(), frame);
        }
        self.passed.push(Bytes { link, frame: frame.bytes().to_vec() });
        self.pool.put(frame);
        Ok(())
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.pool.take()
    }

    fn recycle(&mut self, frame: Frame) {
        self.pool.put(frame);
    }

    fn flush(&mut self) {}

    fn wait(&mut self, _: Option<Duration>) -> Woken {
        if self.incoming.is_empty() { Woken::TimedOut } else { Woken::Ready }
    }

    fn census(&self) -> Census {
        self.pool.census()
    }
}
