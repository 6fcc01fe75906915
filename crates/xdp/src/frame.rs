//! Frames: the slots of a fixed memory area, each with room for one packet, and their pool.
//!
//! A frame is at any time in exactly one place: in the pool, in the pipeline (as an owned [`Frame`]), lent to the
//! kernel for a packet that it receives, or lent to it to be sent. [`FramePool`] records the place in release builds
//! too. So a descriptor that the kernel returns twice, by the wrong ring, or that was never lent, is refused instead of
//! believed. Taking a frame and putting it back costs a few instructions; nothing allocates after the pool was made.

use std::any::Any;
use std::ptr::NonNull;
use std::slice;

/// The layout of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLayout {
    /// Bytes of one frame, headroom included: a power of two, so that its number follows from an address by a shift.
    pub frame_size_bytes: u32,
    /// Where the packet of a fresh frame begins. Outer headers are written into the room before it.
    pub headroom_bytes: u32,
    /// The number of frames.
    pub frames: u32,
}

/// An owned slot. No other code reads or writes its bytes while the value exists.
#[derive(Debug)]
pub struct Frame {
    slot: NonNull<u8>,
    size: u32,
    start: u32,
    len: u32,
    index: u32,
}

// SAFETY: only the frame gives access to its slot (the pool marks the slot as taken while the frame exists), so moving
// the frame to another thread moves the access with it.
unsafe impl Send for Frame {}

impl Frame {
    /// The number of its slot, which no other frame of its pool has.
    #[inline]
    pub fn number(&self) -> u32 {
        self.index
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: every method below keeps `start + len <= size`; the slot of `size` bytes belongs to this frame alone;
        // and the pool keeps its area mapped while any frame is out (see its `Drop`).
        unsafe {
            slice::from_raw_parts(self.slot.as_ptr().wrapping_add(self.start as usize), self.len as usize)
        }
    }

    /// The packet, to be edited.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.slot.as_ptr().wrapping_add(self.start as usize);
        // SAFETY: as for `bytes`; `&mut self` makes this the only reference to the bytes.
        unsafe { slice::from_raw_parts_mut(start, self.len as usize) }
    }

    /// Bytes of the packet.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes before the packet, in which outer headers have room.
    #[inline]
    pub fn headroom(&self) -> usize {
        self.start as usize
    }

    /// Makes room for `bytes` before the packet; their content is undefined. Returns `false`, and changes nothing, if
    /// the headroom does not suffice.
    #[inline]
    #[must_use]
    pub fn grow_front(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.start as usize;
        if enough {
            self.start -= bytes as u32;
            self.len += bytes as u32;
        }
        enough
    }

    /// Removes up to `bytes` from the front of the packet.
    #[inline]
    pub fn shrink_front(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len()) as u32;
        self.start += bytes;
        self.len -= bytes;
    }

    /// Sets the length of the packet: cuts it, or adds bytes with undefined content. Returns `false`, and changes
    /// nothing, if the packet would pass the end of the slot.
    #[inline]
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        let fits = len <= (self.size - self.start) as usize;
        if fits {
            self.len = len as u32;
        }
        fits
    }
}

/// The place of a slot, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Home,
    Out,
    /// With the kernel, for a packet that it receives.
    Filled,
    /// With the kernel, to be sent.
    Sent,
}

/// A packet's position in the area, as descriptors of the kernel have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Byte offset of the packet from the start of the area.
    pub offset: usize,
    /// Bytes of the packet.
    pub len: usize,
}

/// The number of frames in each place. The sum never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// In the pool.
    pub home: u32,
    /// In the pipeline.
    pub out: u32,
    /// Lent to the kernel.
    pub lent: u32,
}

/// The frames of one area, and the place of each.
pub struct FramePool {
    base: NonNull<u8>,
    layout: FrameLayout,
    free: Vec<u32>,
    places: Vec<Place>,
    out: u32,
    /// Keeps the area mapped. It is dropped last, and never if a frame is still out.
    area: Option<Box<dyn Any + Send>>,
}

// SAFETY: the pool owns its area (`area`), and `base` only points into it.
unsafe impl Send for FramePool {}

impl FramePool {
    /// A pool over its own memory, for ports without a kernel.
    pub fn in_memory(layout: FrameLayout) -> Self {
        let mut area =
            vec![0u8; layout.frame_size_bytes as usize * layout.frames as usize].into_boxed_slice();
        let base = NonNull::new(area.as_mut_ptr()).expect("a boxed slice is not null");
        // SAFETY: `area` has `frames * frame_size_bytes` bytes. It moves into the pool, while its heap bytes stay where
        // they are, and no other pointer leads to them.
        unsafe { Self::over(base, layout, Box::new(area)) }
    }

    /// A pool over an area that `owner` keeps mapped.
    ///
    /// # Safety
    /// `base` points to `layout.frames * layout.frame_size_bytes` bytes, which stay valid for reads and writes until
    /// `owner` is dropped. No other code accesses them except the kernel, and the kernel accesses only frames that are
    /// lent to it.
    pub unsafe fn over(base: NonNull<u8>, layout: FrameLayout, owner: Box<dyn Any + Send>) -> Self {
        assert!(layout.headroom_bytes <= layout.frame_size_bytes, "headroom within the frame");
        assert!(layout.frame_size_bytes.is_power_of_two(), "the size of frames is a power of two");
        Self {
            base,
            layout,
            // The frame that was used last is most likely still in the cache, so it is taken first.
            free: (0..layout.frames).rev().collect(),
            places: vec![Place::Home; layout.frames as usize],
            out: 0,
            area: Some(owner),
        }
    }

    /// The layout of the area.
    #[inline]
    pub fn layout(&self) -> FrameLayout {
        self.layout
    }

    /// A frame with an empty packet behind the full headroom. `None` if no frame is in the pool.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        Some(self.hand_out(index, self.layout.headroom_bytes, 0))
    }

    /// Puts a frame back.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        self.check_in(&frame, Place::Home);
        self.free.push(frame.index);
    }

    /// Lends a frame to the kernel, which sends it. Returns the content of its descriptor.
    #[inline]
    pub fn lend(&mut self, frame: Frame) -> Span {
        self.lend_as(frame, Place::Sent)
    }

    /// Lends an empty frame from the pool, for a packet that the kernel receives.
    #[inline]
    pub fn lend_empty(&mut self) -> Option<Span> {
        self.take().map(|frame| self.lend_as(frame, Place::Filled))
    }

    /// Takes back a frame of [`Self::lend_empty`] with a packet of the kernel. `None` if the span does not lie inside
    /// one such frame: the descriptor is wrong then, and nothing has changed.
    #[inline]
    pub fn reclaim(&mut self, span: Span) -> Option<Frame> {
        let (index, start) = self.slot_in(Place::Filled, span.offset)?;
        let fits = span.len <= (self.layout.frame_size_bytes - start) as usize;
        fits.then(|| self.hand_out(index, start, span.len as u32))
    }

    /// Puts a frame of [`Self::lend`] back into the pool, after its transmission. Returns `false` if it was not lent
    /// so.
    #[inline]
    #[must_use]
    pub fn restore(&mut self, offset: usize) -> bool {
        let Some((index, _)) = self.slot_in(Place::Sent, offset) else { return false };
        self.places[index as usize] = Place::Home;
        self.free.push(index);
        true
    }

    /// The number of frames in each place.
    #[inline]
    pub fn census(&self) -> Census {
        let home = self.free.len() as u32;
        Census { home, out: self.out, lent: self.layout.frames - home - self.out }
    }

    #[inline]
    fn offset(&self, index: u32) -> usize {
        (index as usize) << self.layout.frame_size_bytes.trailing_zeros()
    }

    #[inline]
    fn lend_as(&mut self, frame: Frame, place: Place) -> Span {
        self.check_in(&frame, place);
        Span { offset: self.offset(frame.index) + frame.start as usize, len: frame.len() }
    }

    /// The frame in this place that has the byte at `offset`, and the byte's position in it.
    #[inline]
    fn slot_in(&self, place: Place, offset: usize) -> Option<(u32, u32)> {
        let index = offset >> self.layout.frame_size_bytes.trailing_zeros();
        let within = offset as u32 & (self.layout.frame_size_bytes - 1);
        (*self.places.get(index)? == place).then_some((index as u32, within))
    }

    #[inline]
    fn hand_out(&mut self, index: u32, start: u32, len: u32) -> Frame {
        self.places[index as usize] = Place::Out;
        self.out += 1;
        // SAFETY: `index < frames` (it indexed `places`), so the slot lies in the area, whose size the caller of `over`
        // guaranteed.
        let slot = unsafe { self.base.add(self.offset(index)) };
        Frame { slot, size: self.layout.frame_size_bytes, start, len, index }
    }

    /// Marks the slot of a frame as no longer out.
    ///
    /// # Panics
    /// If the frame belongs to another pool: two owners would write its bytes.
    #[inline]
    fn check_in(&mut self, frame: &Frame, to: Place) {
        let own = self.base.as_ptr().wrapping_add(self.offset(frame.index)) == frame.slot.as_ptr();
        assert!(own, "a frame goes back to its own pool");
        debug_assert_eq!(self.places[frame.index as usize], Place::Out);
        self.places[frame.index as usize] = to;
        self.out -= 1;
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        // A frame that outlives its pool still points into the area, so the area must stay.
        if self.out > 0 {
            std::mem::forget(self.area.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: FrameLayout = FrameLayout { frame_size_bytes: 128, headroom_bytes: 32, frames: 4 };

    #[test]
    fn a_frame_is_in_one_place_and_the_census_always_adds_up() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!(pool.census(), Census { home: 2, out: 2, lent: 0 });
        let sent = pool.lend(second);
        let filled = pool.lend_empty().unwrap();
        assert_eq!(pool.census(), Census { home: 1, out: 1, lent: 2 });
        pool.put(first);
        let back = pool.reclaim(Span { len: 60, ..filled }).unwrap();
        assert_eq!(back.len(), 60);
        pool.put(back);
        assert!(pool.restore(sent.offset));
        assert_eq!(pool.census(), Census { home: 4, out: 0, lent: 0 });
    }

    #[test]
    fn a_frame_that_the_kernel_returns_by_the_wrong_ring_is_refused_and_stays_lent() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let frame = pool.take().unwrap();
        let (sent, filled) = (pool.lend(frame), pool.lend_empty().unwrap());
        let lent = pool.census();
        assert!(pool.reclaim(Span { len: 60, ..sent }).is_none(), "received into a frame that is being sent");
        assert!(!pool.restore(filled.offset), "sent a frame that was lent for receiving");
        assert_eq!(pool.census(), lent);
        assert!(pool.restore(sent.offset), "sent");
        let received = pool.reclaim(Span { len: 60, ..filled }).expect("received");
        pool.put(received);
    }

    #[test]
    fn a_descriptor_that_was_not_lent_or_leaves_its_slot_is_refused() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let span = pool.lend_empty().unwrap();
        assert!(pool.reclaim(Span { len: 97, ..span }).is_none(), "passes the end of the slot");
        assert!(pool.reclaim(Span { offset: 4 * 128, len: 1 }).is_none(), "beyond the area");
        assert!(pool.reclaim(Span { offset: 128, len: 1 }).is_none(), "another slot, not lent");
        let frame = pool.reclaim(Span { len: 96, ..span }).unwrap();
        assert!(pool.reclaim(span).is_none(), "returned twice");
        assert!(!pool.restore(span.offset), "returned twice");
        pool.put(frame);
    }

    #[test]
    fn an_exhausted_pool_gives_none_and_recovers() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let mut frames: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(frames.len(), 4);
        assert!(pool.lend_empty().is_none());
        pool.put(frames.pop().unwrap());
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_packet_grows_into_its_headroom_and_not_beyond() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let mut frame = pool.take().unwrap();
        assert!(frame.resize(96) && !frame.resize(97));
        frame.bytes_mut().fill(0xa5);
        assert!(frame.grow_front(32) && !frame.grow_front(1));
        assert_eq!(frame.len(), 128);
        frame.bytes_mut()[..32].fill(0x11);
        frame.shrink_front(32);
        assert_eq!(frame.bytes(), [0xa5; 96]);
    }

    #[test]
    fn a_frame_may_outlive_its_pool() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let mut frame = pool.take().unwrap();
        drop(pool);
        assert!(frame.resize(96));
        frame.bytes_mut().fill(7);
        assert_eq!(frame.bytes(), [7; 96]);
    }
}
