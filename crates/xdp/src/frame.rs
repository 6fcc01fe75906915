//! Frames: the slots of a fixed memory area, each large enough for a packet or a fragment of one, and their pool.
//!
//! A packet larger than a slot is a chain of frames: the first frame owns the others. [`Frame::bytes`] returns only the
//! bytes in the first slot. The next frame of a chain is stored at the beginning of the slot, in headroom that outer
//! headers then cannot use. For a single frame, chains cost one comparison.
//!
//! A frame is at any time in exactly one state: in the pool, in the pipeline (as an owned [`Frame`]), lent to the
//! kernel for receiving (fill ring), or lent to it for sending (TX ring). [`FramePool`] records the state, in release
//! builds, too. A descriptor is therefore refused if the kernel returns it twice or through the wrong ring, or if it
//! was never lent. Taking a frame and returning it costs a few instructions; nothing allocates after the pool is
//! created.

use std::any::Any;
use std::mem::size_of;
use std::ptr::NonNull;
use std::{iter, slice};

/// The layout of an area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLayout {
    /// Size of one frame in bytes, headroom included: a power of two, so that shifting an address gives the frame's
    /// number.
    pub frame_size_bytes: u32,
    /// Offset of the packet in a new frame. Outer headers are written before it.
    pub headroom_bytes: u32,
    /// The number of frames.
    pub frames: u32,
}

/// An owned slot; if it begins a chain, with the other slots of the chain. No other code reads or writes their bytes
/// while the value exists.
#[derive(Debug)]
pub struct Frame {
    slot: NonNull<u8>,
    start: u32,
    /// Bytes of the packet in this slot.
    len: u32,
    index: u32,
    /// Bytes of the packet in the slots after this one; set only in the first frame of a chain.
    tail: u16,
    size_log2: u8,
    /// Whether the slot begins with the next frame of the chain.
    is_linked: bool,
}

/// The bytes of a slot that the next frame of its chain occupies.
const LINK_BYTES: u32 = size_of::<Frame>() as u32;

// SAFETY: only the frame gives access to its slot and the slots after it (the pool marks a slot as taken while its
// frame exists), so moving the frame to another thread moves the access with it.
unsafe impl Send for Frame {}

impl Frame {
    /// The number of the frame's slot, which no other frame in its pool has.
    #[inline]
    pub fn number(&self) -> u32 {
        self.index
    }

    /// The bytes of the packet; for a chain, those in the first slot.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: every method below keeps `start + len <= size`; the slot of `size` bytes belongs to this frame alone;
        // and the pool keeps its area mapped while any frame is out (see its `Drop`).
        unsafe {
            slice::from_raw_parts(self.slot.as_ptr().wrapping_add(self.start as usize), self.len as usize)
        }
    }

    /// The mutable bytes of the packet; for a chain, those in the first slot.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.slot.as_ptr().wrapping_add(self.start as usize);
        // SAFETY: as for `bytes`; `&mut self` makes this the only reference to the bytes.
        unsafe { slice::from_raw_parts_mut(start, self.len as usize) }
    }

    /// Length of the packet in bytes, in all slots.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize + usize::from(self.tail)
    }

    /// Whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the packet spans several slots.
    #[inline]
    pub fn is_chain(&self) -> bool {
        self.tail > 0
    }

    /// The number of bytes before the packet, for outer headers.
    #[inline]
    pub fn headroom(&self) -> usize {
        (self.start - if self.is_linked { LINK_BYTES } else { 0 }) as usize
    }

    /// Extends the packet by `bytes` at the front; their content is undefined. Returns `false` and changes nothing if
    /// the headroom is too small.
    #[inline]
    #[must_use]
    pub fn grow_front(&mut self, bytes: usize) -> bool {
        let enough = bytes <= self.headroom();
        if enough {
            self.start -= bytes as u32;
            self.len += bytes as u32;
        }
        enough
    }

    /// Removes up to `bytes` from the front of the packet; for a chain, only bytes in the first slot.
    #[inline]
    pub fn shrink_front(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len as usize) as u32;
        self.start += bytes;
        self.len -= bytes;
    }

    /// Sets the length of the packet: truncates it, or adds bytes with undefined content. Returns `false` and changes
    /// nothing if the packet would exceed the slot; a chain is never extended.
    #[inline]
    #[must_use]
    pub fn resize(&mut self, len: usize) -> bool {
        if self.is_chain() {
            return self.cut(len);
        }
        let fits = len <= self.room();
        if fits {
            self.len = len as u32;
        }
        fits
    }

    // Not inlined, to keep the path of other frames short.
    #[inline(never)]
    fn cut(&mut self, len: usize) -> bool {
        let fits = len <= self.len();
        if fits {
            self.len = self.len.min(len as u32);
            self.tail = (len - self.len as usize) as u16;
        }
        fits
    }

    /// The bytes of the packet in each slot, in order.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = Some(self);
        let mut left = self.len();
        iter::from_fn(move || {
            let frame = next.filter(|_| left > 0)?;
            next = frame.next();
            let part = &frame.bytes()[..left.min(frame.len as usize)];
            left -= part.len();
            Some(part)
        })
    }

    /// Copies the bytes of the packet from offset `at`.
    ///
    /// # Panics
    ///
    /// If the packet has fewer bytes.
    pub fn read(&self, mut at: usize, mut to: &mut [u8]) {
        for part in self.parts() {
            let skipped = at.min(part.len());
            let (copied, rest) = to.split_at_mut(to.len().min(part.len() - skipped));
            copied.copy_from_slice(&part[skipped..][..copied.len()]);
            at -= skipped;
            to = rest;
        }
        assert!(to.is_empty(), "the packet has as many bytes");
    }

    /// Calls `write` for each slot's bytes, with their offset in the packet.
    pub fn write(&mut self, mut write: impl FnMut(usize, &mut [u8])) {
        let mut at = 0;
        let len = self.len();
        let mut next = Some(self);
        while let Some(frame) = next.take_if(|_| at < len) {
            let count = (len - at).min(frame.len as usize);
            write(at, &mut frame.bytes_mut()[..count]);
            at += count;
            next = frame.next_mut();
        }
    }

    /// Sets the length of the packet, and fills each slot before the next one; the content is then undefined. Returns
    /// `false` if the packet does not fit its slots.
    #[must_use]
    pub fn spread(&mut self, len: usize) -> bool {
        self.len = self.room().min(len) as u32;
        let mut left = len - self.len as usize;
        self.tail = u16::try_from(left).unwrap_or(0);
        let fits = usize::from(self.tail) == left;
        let mut next = self.next_mut();
        while let Some(frame) = next {
            frame.len = frame.room().min(left) as u32;
            left -= frame.len as usize;
            next = frame.next_mut();
        }
        if left > 0 {
            self.tail = 0;
        }
        fits && left == 0
    }

    /// Appends `next` and its chain to the packet. Returns it if the packet would exceed the maximum length of a
    /// packet, or if its last slot has no headroom for the link.
    pub fn append(&mut self, mut next: Self) -> Result<(), Self> {
        let Ok(tail) = u16::try_from(usize::from(self.tail) + next.len()) else { return Err(next) };
        let mut last = &mut *self;
        while last.is_linked {
            last = last.next_mut().expect("a linked frame has a next one");
        }
        if last.start < LINK_BYTES {
            return Err(next);
        }
        next.tail = 0;
        // SAFETY: the slot belongs to `last`, begins at an address that is aligned for frames (`FramePool::over`), and
        // its first bytes are not part of the packet: `start` is at least as large, and `headroom` keeps it so.
        unsafe { last.slot.cast::<Self>().write(next) };
        last.is_linked = true;
        self.tail = tail;
        Ok(())
    }

    /// Separates the slots after the end of the packet.
    pub fn split_surplus(&mut self) -> Option<Self> {
        let mut left = self.len();
        let mut last = self;
        loop {
            left -= left.min(last.len as usize);
            if left == 0 {
                return last.unlink();
            }
            last = last.next_mut()?;
        }
    }

    /// The number of bytes in the slot from the beginning of the packet.
    #[inline]
    fn room(&self) -> usize {
        (1 << self.size_log2) - self.start as usize
    }

    fn next(&self) -> Option<&Self> {
        // SAFETY: `append` wrote a frame there, and nothing has overwritten it: see `append`. It is borrowed as long as
        // `self`, which owns it.
        self.is_linked.then(|| unsafe { self.slot.cast::<Self>().as_ref() })
    }

    fn next_mut(&mut self) -> Option<&mut Self> {
        // SAFETY: as for `next`.
        self.is_linked.then(|| unsafe { self.slot.cast::<Self>().as_mut() })
    }

    /// Separates the frame from those after it.
    #[inline]
    fn unlink(&mut self) -> Option<Self> {
        if !self.is_linked {
            return None;
        }
        self.is_linked = false;
        // SAFETY: as for `next`; the value there is not used again, because the slot is no longer linked.
        Some(unsafe { self.slot.cast::<Self>().read() })
    }
}

/// The state of a slot, in one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Home,
    Out,
    /// Lent to the kernel, for a packet that it receives.
    Filled,
    /// Lent to the kernel, for sending.
    Sent,
}

/// The position of a packet in the area, as in a ring descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the packet from the start of the area, in bytes.
    pub offset: usize,
    /// Bytes of the packet.
    pub len: usize,
    /// Whether the packet continues in the next descriptor.
    pub continues: bool,
}

/// The number of slots in each state. The sum never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// In the pool.
    pub home: u32,
    /// In the pipeline.
    pub out: u32,
    /// Lent to the kernel.
    pub lent: u32,
}

/// The frames of one area, and the state of each.
///
/// ```
/// use xvs_xdp::{FrameLayout, FramePool};
///
/// let layout = FrameLayout { frame_size_bytes: 2048, headroom_bytes: 256, frames: 2 };
/// let mut pool = FramePool::in_memory(layout);
/// let mut frame = pool.take().unwrap();
/// assert!(frame.resize(60) && frame.grow_front(20), "an outer header fits the headroom");
/// assert_eq!((frame.len(), frame.headroom()), (80, 236));
/// pool.put(frame);
/// ```
pub struct FramePool {
    base: NonNull<u8>,
    layout: FrameLayout,
    free: Vec<u32>,
    places: Vec<Place>,
    out: u32,
    /// Keeps the area mapped. It is dropped last, and never while a frame is still out.
    area: Option<Box<dyn Any + Send>>,
}

// SAFETY: the pool owns its area (`area`), and `base` only points into it.
unsafe impl Send for FramePool {}

impl FramePool {
    /// A pool with memory from the heap, for ports without a kernel.
    pub fn in_memory(layout: FrameLayout) -> Self {
        // 64-bit integers, so that the area is aligned for frames.
        let words = layout.frame_size_bytes as usize / size_of::<u64>() * layout.frames as usize;
        let mut area = vec![0_u64; words].into_boxed_slice();
        let base = NonNull::new(area.as_mut_ptr()).expect("a boxed slice is not null").cast();
        // SAFETY: `area` has `frames * frame_size_bytes` bytes. It moves into the pool, while its heap bytes stay at
        // their address, and no other pointer leads to them.
        unsafe { Self::over(base, layout, Box::new(area)) }
    }

    /// A pool for an area that `owner` keeps mapped.
    ///
    /// # Safety
    ///
    /// `base` points to `layout.frames * layout.frame_size_bytes` bytes, which stay valid for reads and writes until
    /// `owner` is dropped. No other code accesses them except the kernel, and the kernel accesses only frames that are
    /// lent to it.
    pub unsafe fn over(base: NonNull<u8>, layout: FrameLayout, owner: Box<dyn Any + Send>) -> Self {
        assert!(layout.headroom_bytes <= layout.frame_size_bytes, "headroom within the frame");
        assert!(layout.frame_size_bytes.is_power_of_two(), "the size of frames is a power of two");
        assert!(layout.frame_size_bytes >= LINK_BYTES, "a slot is aligned for frames if the area is");
        assert!(base.cast::<Frame>().is_aligned(), "the area is aligned for frames");
        Self {
            base,
            layout,
            // The most recently used frame is most likely still in the cache, so it is taken first.
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

    /// Takes a frame with an empty packet after the full headroom. `None` if the pool is empty.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let index = self.free.pop()?;
        Some(self.hand_out(index, self.layout.headroom_bytes, 0))
    }

    /// Returns a frame, and those after it, to the pool.
    #[inline]
    pub fn put(&mut self, mut frame: Frame) {
        loop {
            let next = frame.unlink();
            self.check_in(&frame, Place::Home);
            self.free.push(frame.index);
            match next {
                None => return,
                Some(next) => frame = next,
            }
        }
    }

    /// Lends a frame to the kernel for sending. Calls `descriptor` with the content of each descriptor, in order: one
    /// for each slot of the packet.
    #[inline]
    pub fn lend(&mut self, mut frame: Frame, mut descriptor: impl FnMut(Span)) {
        let mut left = frame.len();
        loop {
            let next = frame.unlink();
            frame.len = frame.len.min(left as u32);
            left -= frame.len as usize;
            let span = self.lend_as(frame, Place::Sent);
            descriptor(Span { continues: left > 0, ..span });
            match next {
                None => return,
                // A packet that was cut needs no more slots.
                Some(next) if left == 0 => return self.put(next),
                Some(next) => frame = next,
            }
        }
    }

    /// Lends an empty frame from the pool to the kernel, for a packet that it receives.
    #[inline]
    pub fn lend_empty(&mut self) -> Option<Span> {
        self.take().map(|frame| self.lend_as(frame, Place::Filled))
    }

    /// Takes back a frame from [`Self::lend_empty`], with a received packet. `None` if the span is not inside one such
    /// frame: the descriptor is then invalid, and nothing has changed.
    #[inline]
    pub fn reclaim(&mut self, span: Span) -> Option<Frame> {
        let (index, start) = self.slot_in(Place::Filled, span.offset)?;
        let fits = span.len <= (self.layout.frame_size_bytes - start) as usize;
        fits.then(|| self.hand_out(index, start, span.len as u32))
    }

    /// Returns a frame from [`Self::lend`] to the pool, after its transmission. Returns `false` if it was not lent for
    /// sending.
    #[inline]
    #[must_use]
    pub fn restore(&mut self, offset: usize) -> bool {
        let Some((index, _)) = self.slot_in(Place::Sent, offset) else { return false };
        self.places[index as usize] = Place::Home;
        self.free.push(index);
        true
    }

    /// The number of frames in each state.
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
        let offset = self.offset(frame.index) + frame.start as usize;
        Span { offset, len: frame.len as usize, continues: false }
    }

    /// The index of the frame in this state that contains the byte at `offset`, and the byte's offset in it.
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
        // SAFETY: `index < frames` (it indexed `places`), so the slot is inside the area, whose size the caller of
        // `over` guaranteed.
        let slot = unsafe { self.base.add(self.offset(index)) };
        let size_log2 = self.layout.frame_size_bytes.trailing_zeros() as u8;
        Frame { slot, start, len, index, tail: 0, size_log2, is_linked: false }
    }

    /// Marks the slot of a frame as no longer out.
    ///
    /// # Panics
    ///
    /// If the frame belongs to another pool: two owners would write its bytes.
    #[inline]
    fn check_in(&mut self, frame: &Frame, to: Place) {
        let own = self.base.as_ptr().wrapping_add(self.offset(frame.index)) == frame.slot.as_ptr();
        assert!(own, "a frame goes back to its own pool");
        debug_assert_eq!(self.places[frame.index as usize], Place::Out);
        self.places[frame.index as usize] = to;
        self.out -= 1;
    }

    /// Closes the pool: it gives out no more frames, and its area is freed.
    pub(crate) fn close(&mut self) {
        self.free.clear();
        let area = self.area.take();
        // A frame that outlives its pool still points into the area, so the area must stay.
        if self.out > 0 {
            std::mem::forget(area);
        }
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: FrameLayout = FrameLayout { frame_size_bytes: 128, headroom_bytes: 32, frames: 4 };

    fn lend(pool: &mut FramePool, frame: Frame) -> Vec<Span> {
        let mut spans = Vec::new();
        pool.lend(frame, |span| spans.push(span));
        spans
    }

    /// A packet of 200 bytes, numbered from 0, in three slots.
    fn chain(pool: &mut FramePool) -> Frame {
        let mut frame = pool.take().unwrap();
        for _ in 0..2 {
            frame.append(pool.take().unwrap()).unwrap();
        }
        assert!(frame.spread(200));
        frame.write(|at, part| part.iter_mut().zip(at as u8..).for_each(|(byte, number)| *byte = number));
        frame
    }

    #[test]
    fn a_frame_is_in_one_place_and_the_census_always_adds_up() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!(pool.census(), Census { home: 2, out: 2, lent: 0 });
        let sent = lend(&mut pool, second)[0];
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
        let (sent, filled) = (lend(&mut pool, frame)[0], pool.lend_empty().unwrap());
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
        assert!(pool.reclaim(Span { offset: 4 * 128, len: 1, ..span }).is_none(), "beyond the area");
        assert!(pool.reclaim(Span { offset: 128, len: 1, ..span }).is_none(), "another slot, not lent");
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
    fn a_packet_of_several_slots_is_one_packet_and_leaves_as_so_many_descriptors() {
        let mut pool = FramePool::in_memory(LAYOUT);
        let mut frame = chain(&mut pool);
        assert_eq!((frame.len(), frame.bytes().len(), frame.is_chain()), (200, 96, true));
        assert_eq!(frame.parts().map(<[u8]>::len).collect::<Vec<_>>(), [96, 96, 8]);
        let mut read = [0xa5; 120];
        frame.read(79, &mut read);
        assert!(read.iter().copied().eq(79..199));
        assert!(!frame.resize(201) && !frame.grow_front(9), "the link takes 24 bytes of the headroom");
        assert!(frame.grow_front(8));
        frame.shrink_front(10);
        assert!(frame.parts().flatten().copied().eq(2..200));
        assert_eq!(pool.census(), Census { home: 1, out: 3, lent: 0 });
        let spans = lend(&mut pool, frame);
        assert_eq!(
            spans.iter().map(|span| (span.len, span.continues)).collect::<Vec<_>>(),
            [(94, true), (96, true), (8, false)]
        );
        assert_eq!(pool.census(), Census { home: 1, out: 0, lent: 3 });
        assert!(spans.iter().all(|span| pool.restore(span.offset)));
        assert_eq!(pool.census(), Census { home: 4, out: 0, lent: 0 });
    }

    #[test]
    fn a_chain_that_is_cut_keeps_its_first_bytes_and_returns_the_slots_that_it_needs_no_more() {
        let mut pool = FramePool::in_memory(LAYOUT);
        for (len, descriptors) in [(193, 3), (192, 2), (97, 2), (96, 1), (40, 1)] {
            let mut frame = chain(&mut pool);
            assert!(frame.resize(len));
            assert_eq!((frame.len(), frame.is_chain()), (len, descriptors > 1));
            assert!(frame.parts().flatten().copied().eq(0..len as u8));
            let spans = lend(&mut pool, frame);
            assert_eq!((spans.len(), pool.census().out), (descriptors, 0));
            assert_eq!(spans.iter().map(|span| span.len).sum::<usize>(), len);
            assert_eq!(spans.iter().filter(|span| span.continues).count(), descriptors - 1);
            assert!(spans.iter().all(|span| pool.restore(span.offset)));
        }
        for (len, kept) in [(200, 3), (192, 2), (1, 1)] {
            let mut frame = chain(&mut pool);
            assert!(frame.resize(len));
            let surplus = frame.split_surplus();
            surplus.into_iter().for_each(|surplus| pool.put(surplus));
            assert_eq!((frame.len(), pool.census().out), (len, kept));
            pool.put(frame);
        }
        let mut frame = chain(&mut pool);
        assert!(frame.resize(50) && frame.resize(96) && !frame.resize(97), "it is a packet of one slot now");
        pool.put(frame);
        assert_eq!(pool.census(), Census { home: 4, out: 0, lent: 0 });
    }

    #[test]
    fn a_chain_has_no_more_bytes_than_a_packet_and_its_slots_and_needs_headroom_for_the_link() {
        let mut pool = FramePool::in_memory(FrameLayout { frame_size_bytes: 1 << 15, ..LAYOUT });
        let mut frame = pool.take().unwrap();
        for _ in 0..2 {
            let mut next = pool.take().unwrap();
            assert!(next.resize((1 << 15) - 32));
            frame.append(next).unwrap();
        }
        let mut last = pool.take().unwrap();
        assert!(last.resize(64));
        let mut last = frame.append(last).expect_err("65,536 bytes behind the first part");
        assert!(last.resize(63));
        frame.append(last).unwrap();
        assert_eq!(frame.len(), 65_535);
        assert!(!frame.spread(4 * ((1 << 15) - 32) + 1));
        pool.put(frame);
        let mut crowded = pool.take().unwrap();
        assert!(crowded.grow_front(9));
        let refused = crowded.append(pool.take().unwrap()).expect_err("23 bytes are left");
        [crowded, refused].into_iter().for_each(|frame| pool.put(frame));
        assert_eq!(pool.census(), Census { home: 4, out: 0, lent: 0 });
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
