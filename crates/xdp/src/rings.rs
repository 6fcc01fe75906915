//! The four rings of an AF_XDP socket: their entries and indices, accessed through the functions that libxdp documents.
//!
//! The worker uses them for each burst. Entries are read and written in place. libxdp masks every index, so no index
//! leads outside its ring, whatever the kernel writes. The pool checks whether an address refers to a lent frame. Cost:
//! one libxdp call for each entry. `umem.rs` and `queue.rs` create the rings.

use std::marker::PhantomData;
use std::ptr::{NonNull, null_mut};

use libxdp_sys as sys;

use crate::frame::Span;

/// A ring that this process writes, with entries of type `E`: frames for the kernel.
///
/// It has a fixed address on the heap, because libxdp keeps the pointer.
#[derive(Debug)]
pub(super) struct Producer<E>(NonNull<sys::xsk_ring_prod>, PhantomData<E>);

/// A ring that the kernel writes: frames that it returns. On the heap, like [`Producer`].
#[derive(Debug)]
pub(super) struct Consumer<E>(NonNull<sys::xsk_ring_cons>, PhantomData<E>);

/// Packets to be sent.
pub(super) type TransmitRing = Producer<sys::xdp_desc>;
/// Packets that were received.
pub(super) type ReceiveRing = Consumer<sys::xdp_desc>;
/// Addresses of frames into which the kernel may receive packets.
pub(super) type FillRing = Producer<u64>;
/// Addresses of packets that were sent.
pub(super) type CompletionRing = Consumer<u64>;

impl<E> Producer<E> {
    /// A ring that libxdp has not initialised yet.
    pub(super) fn unset() -> Self {
        let ring = Box::new(sys::xsk_ring_prod {
            cached_prod: 0,
            cached_cons: 0,
            mask: 0,
            size: 0,
            producer: null_mut(),
            consumer: null_mut(),
            ring: null_mut(),
            flags: null_mut(),
        });
        Self(NonNull::from(Box::leak(ring)), PhantomData)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::xsk_ring_prod {
        self.0.as_ptr()
    }

    pub(super) fn is_set(&self) -> bool {
        // SAFETY: `unset` allocated it, it is freed when `self` is dropped, and no libxdp call is in progress.
        !unsafe { (*self.as_ptr()).ring }.is_null()
    }

    /// Reserves `count` entries and returns the index of the first. `None` if fewer are free; then none is reserved.
    fn reserve(&mut self, count: u32) -> Option<u32> {
        let mut first = 0;
        // SAFETY: the ring is set, as the rings of a socket are; `&mut self` excludes any other access by this process.
        let reserved = unsafe { sys::xsk_ring_prod__reserve(self.as_ptr(), count, &mut first) };
        (reserved == count).then_some(first)
    }

    /// Passes `count` reserved and written entries to the kernel.
    fn submit(&mut self, count: u32) {
        // SAFETY: as for `reserve`.
        unsafe { sys::xsk_ring_prod__submit(self.as_ptr(), count) };
    }

    /// The number of entries that the kernel has not taken yet, in a ring with `slots` slots.
    pub(super) fn waiting(&mut self, slots: u32) -> u32 {
        // SAFETY: as for `reserve`. If the requested number equals the number of slots, libxdp reads the kernel's
        // index.
        let free = unsafe { sys::xsk_prod_nb_free(self.as_ptr(), slots) };
        // If the kernel's index implies more free entries than exist, all are counted as taken.
        slots.saturating_sub(free)
    }

    /// Whether the kernel needs a system call to continue with this ring.
    pub(super) fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `reserve`; the flags are only read.
        unsafe { sys::xsk_ring_prod__needs_wakeup(self.as_ptr()) != 0 }
    }
}

impl TransmitRing {
    /// Passes packets, which the pool has lent, to the kernel for transmission: all or none. Returns `false` if the
    /// ring has too few free entries.
    pub(super) fn send(&mut self, packets: &[Span]) -> bool {
        let count = packets.len() as u32;
        let Some(first) = self.reserve(count) else { return false };
        for (number, packet) in (0..count).zip(packets) {
            let entry = sys::xdp_desc {
                addr: packet.offset as u64,
                len: packet.len as u32,
                options: if packet.continues { PACKET_CONTINUES } else { 0 },
            };
            // SAFETY: the ring is set and has entries of this type; the index is masked.
            let slot = unsafe { sys::xsk_ring_prod__tx_desc(self.as_ptr(), first.wrapping_add(number)) };
            // SAFETY: the slot is inside the ring's mapping, which the socket keeps. It is reserved, so the kernel does
            // not read it before `submit`.
            unsafe { slot.write(entry) };
        }
        self.submit(count);
        true
    }
}

impl FillRing {
    /// Passes `count` frames for received packets to the kernel: all or none. `lend` returns the address of each.
    /// Returns `false`, without calling `lend`, if the ring has too few free entries.
    pub(super) fn lend(&mut self, count: u32, mut lend: impl FnMut() -> usize) -> bool {
        let Some(first) = self.reserve(count) else { return false };
        for number in 0..count {
            let address = lend() as u64;
            // SAFETY: the ring is set and has entries of this type; the index is masked.
            let slot = unsafe { sys::xsk_ring_prod__fill_addr(self.as_ptr(), first.wrapping_add(number)) };
            // SAFETY: as in `send`.
            unsafe { slot.write(address) };
        }
        self.submit(count);
        true
    }
}

impl<E> Consumer<E> {
    /// Like [`Producer::unset`].
    pub(super) fn unset() -> Self {
        let ring = Box::new(sys::xsk_ring_cons {
            cached_prod: 0,
            cached_cons: 0,
            mask: 0,
            size: 0,
            producer: null_mut(),
            consumer: null_mut(),
            ring: null_mut(),
            flags: null_mut(),
        });
        Self(NonNull::from(Box::leak(ring)), PhantomData)
    }

    pub(super) fn as_ptr(&self) -> *mut sys::xsk_ring_cons {
        self.0.as_ptr()
    }

    /// Calls `read` with the index of each entry that the kernel has written, at most `room`, and returns the entries
    /// to the kernel. Returns their number.
    fn take(&mut self, room: usize, mut read: impl FnMut(*mut sys::xsk_ring_cons, u32)) -> usize {
        let mut first = 0;
        // SAFETY: as for `Producer::reserve`.
        let count = unsafe { sys::xsk_ring_cons__peek(self.as_ptr(), room as u32, &mut first) };
        (0..count).for_each(|number| read(self.as_ptr(), first.wrapping_add(number)));
        if count > 0 {
            // SAFETY: as for `Producer::reserve`.
            unsafe { sys::xsk_ring_cons__release(self.as_ptr(), count) };
        }
        count as usize
    }
}

impl ReceiveRing {
    /// Takes up to `room` packets that the kernel has received. Returns their number.
    pub(super) fn receive(&mut self, room: usize, mut packet: impl FnMut(Span)) -> usize {
        self.take(room, |ring, index| {
            // SAFETY: the ring is set and has entries of this type; the index is masked.
            let slot = unsafe { sys::xsk_ring_cons__rx_desc(ring, index) };
            // SAFETY: the slot is inside the ring's mapping, which the socket keeps. The kernel has finished it (libxdp
            // reads its index with Acquire), and does not touch it before it is released. An entry consists of
            // integers, so any bytes are valid.
            let entry = unsafe { slot.read() };
            packet(Span {
                offset: entry.addr as usize,
                len: entry.len as usize,
                continues: entry.options & PACKET_CONTINUES != 0,
            });
        })
    }
}

impl CompletionRing {
    /// Takes the addresses of up to `room` packets that the kernel has sent. Returns their number.
    pub(super) fn complete(&mut self, room: usize, mut sent: impl FnMut(usize)) -> usize {
        self.take(room, |ring, index| {
            // SAFETY: the ring is set and has entries of this type; the index is masked.
            let slot = unsafe { sys::xsk_ring_cons__comp_addr(ring, index) };
            // SAFETY: as in `receive`.
            sent(unsafe { slot.read() } as usize);
        })
    }
}

impl<E> Drop for Producer<E> {
    fn drop(&mut self) {
        // SAFETY: the pointer is from a box that `unset` leaked, and no other value has it. libxdp no longer uses it:
        // it is a field of `Rings`, whose `drop` has deleted the socket, or of `Umem`, whose `drop` has deleted the
        // UMEM, or no socket could be created with it.
        drop(unsafe { Box::from_raw(self.as_ptr()) });
    }
}

impl<E> Drop for Consumer<E> {
    fn drop(&mut self) {
        // SAFETY: as for `Producer`.
        drop(unsafe { Box::from_raw(self.as_ptr()) });
    }
}

/// The option of a descriptor whose packet continues in the next one (linux/if_xdp.h: `XDP_PKT_CONTD`). Kernels before
/// 6.6 never set it.
const PACKET_CONTINUES: u32 = 1 << 0;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

    use super::*;

    const SLOTS: u32 = 4;

    /// The memory of a ring that the kernel shares: both indices, flags, and entries of one or two integers each.
    #[derive(Default)]
    struct Shared {
        producer: AtomicU32,
        consumer: AtomicU32,
        flags: AtomicU32,
        entries: [AtomicU64; 2 * SLOTS as usize],
    }

    impl Shared {
        fn leaked() -> &'static Self {
            Box::leak(Box::default())
        }

        fn entries(&self) -> [u64; 2 * SLOTS as usize] {
            self.entries.each_ref().map(|word| word.load(Relaxed))
        }
    }

    /// A ring in the test's memory, as libxdp creates it in the kernel's.
    fn producer<E>(shared: &'static Shared) -> Producer<E> {
        let ring = Producer::unset();
        let set = sys::xsk_ring_prod {
            cached_prod: 0,
            cached_cons: SLOTS,
            mask: SLOTS - 1,
            size: SLOTS,
            producer: shared.producer.as_ptr(),
            consumer: shared.consumer.as_ptr(),
            ring: shared.entries.as_ptr().cast_mut().cast(),
            flags: shared.flags.as_ptr(),
        };
        // SAFETY: `unset` allocated it, and nothing else has it.
        unsafe { ring.as_ptr().write(set) };
        ring
    }

    fn consumer<E>(shared: &'static Shared) -> Consumer<E> {
        let ring = Consumer::unset();
        let set = sys::xsk_ring_cons {
            cached_prod: 0,
            cached_cons: 0,
            mask: SLOTS - 1,
            size: SLOTS,
            producer: shared.producer.as_ptr(),
            consumer: shared.consumer.as_ptr(),
            ring: shared.entries.as_ptr().cast_mut().cast(),
            flags: shared.flags.as_ptr(),
        };
        // SAFETY: as for `producer`.
        unsafe { ring.as_ptr().write(set) };
        ring
    }

    #[test]
    fn a_descriptor_has_its_address_and_length_and_says_whether_its_packet_continues() {
        let shared = Shared::leaked();
        let mut ring: TransmitRing = producer(shared);
        let packets = [
            Span { offset: 0, len: 0, continues: false },
            Span { offset: 0x7f_f0c4, len: 1514, continues: true },
        ];
        assert!(ring.send(&packets));
        assert_eq!((shared.producer.load(Relaxed), shared.consumer.load(Relaxed)), (2, 0));
        // Length and options, of 32 bits each.
        let second = if cfg!(target_endian = "big") { 1514 << 32 | 1 } else { 1 << 32 | 1514 };
        assert_eq!(shared.entries()[..4], [0, 0, 0x7f_f0c4, second]);
    }

    #[test]
    fn a_ring_without_room_accepts_no_entries_and_requests_no_addresses() {
        let shared = Shared::leaked();
        let mut ring: FillRing = producer(shared);
        let mut next = 7..;
        assert!(ring.lend(3, || next.next().unwrap()));
        assert!(!ring.lend(2, || panic!("no address is needed")));
        assert_eq!((ring.waiting(SLOTS), shared.producer.load(Relaxed)), (3, 3));
        assert_eq!(shared.entries()[..4], [7, 8, 9, 0]);
    }

    #[test]
    fn an_impossible_index_of_the_kernel_yields_no_more_entries_than_requested() {
        let (sent, received) = (Shared::leaked(), Shared::leaked());
        sent.consumer.store(3_000_000_000, Relaxed);
        assert_eq!(producer::<u64>(sent).waiting(SLOTS), 0);
        received.producer.store(3_000_000_000, Relaxed);
        received.entries.iter().zip(10..).for_each(|(entry, address)| entry.store(address, Relaxed));
        let mut addresses = Vec::new();
        assert_eq!(consumer::<u64>(received).complete(6, |address| addresses.push(address)), 6);
        assert_eq!(addresses, [10, 11, 12, 13, 10, 11], "the pool knows which of these were lent");
    }
}
