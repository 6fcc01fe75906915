//! A port without a kernel, for tests, benches and the lab: the caller injects frames and takes them out.

use std::collections::VecDeque;
use std::time::Duration;

use xvs_proto::LinkId;
use xvs_xdp::{BURST, Census, Frame, FrameLayout, FramePool};

use crate::port::{Port, Received, Woken};

/// A frame as bytes, with the link on which it enters or leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bytes {
    /// The link.
    pub link: LinkId,
    /// The frame from its Ethernet header on.
    pub frame: Vec<u8>,
}

/// The number of bytes of a frame in its first buffer.
pub type FirstPart = fn(&[u8]) -> usize;

/// An in-memory [`Port`] over its own frame pool.
pub struct MemoryPort {
    pool: FramePool,
    incoming: VecDeque<Received>,
    transmitted: Vec<Bytes>,
    passed: Vec<Bytes>,
    links: u16,
    /// Where injected frames are divided; `None` means at the end of a slot.
    first_part: Option<FirstPart>,
}

impl MemoryPort {
    /// A port with this many links. Frames that are larger than a slot of `layout` arrive in several buffers.
    pub fn new(layout: FrameLayout, links: u16) -> Self {
        Self {
            pool: FramePool::in_memory(layout),
            incoming: VecDeque::new(),
            transmitted: Vec::new(),
            passed: Vec::new(),
            links,
            first_part: None,
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

    /// Makes frames that are injected from now on arrive in several buffers.
    pub fn set_first_part(&mut self, bytes: FirstPart) {
        self.first_part = Some(bytes);
    }

    /// Injects a frame. `false` if it is larger than any packet or the pool is empty.
    #[must_use]
    pub fn inject(&mut self, link: LinkId, bytes: &[u8]) -> bool {
        let first = self.first_part.map_or(bytes.len(), |first| first(bytes).min(bytes.len()));
        let Some(mut frame) = self.allocate_packet(first) else { return false };
        if first < bytes.len() {
            let is_whole =
                self.allocate_packet(bytes.len() - first).is_some_and(|rest| match frame.append(rest) {
                    Ok(()) => true,
                    Err(rest) => {
                        self.pool.put(rest);
                        false
                    }
                });
            if !is_whole {
                self.pool.put(frame);
                return false;
            }
        }
        frame.write(|at, part| part.copy_from_slice(&bytes[at..][..part.len()]));
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
        self.transmitted.push(Bytes { link, frame: bytes_of(&frame) });
        self.pool.put(frame);
        Ok(())
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        if link.is_own() && link != LinkId::LOOPBACK {
            return self.transmit(link.wire(), frame);
        }
        self.passed.push(Bytes { link, frame: bytes_of(&frame) });
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

/// The bytes of a frame, from all its buffers.
fn bytes_of(frame: &Frame) -> Vec<u8> {
    frame.parts().flatten().copied().collect()
}
