//! What lies in the connection table's mappings, byte for byte.
//!
//! A later process may map the same memory, so this is a format: a change of it changes [`VERSION`]. Every field is
//! an atomic, all bytes zero are a valid value of each cell, and cells name each other by index only. What the
//! fields mean and who writes them is said here; how they change is in `conn/`.

use super::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// First word of the mapping: `xvs-conn` in ASCII.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"xvs-conn");

/// Version of everything in this file and of the packing in `conn/entry.rs` and `conn/buckets.rs`, whose tests name it.
pub(crate) const VERSION: u64 = 3;

/// Slots of a bucket: a cache line. Models have fewer, so that they end.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 8 };

/// Bytes between the start of the mapping and the first bucket.
pub(crate) const HEADER_BYTES: usize = 4096;

/// The table's own data, at the start of the mapping.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Header {
    /// [`MAGIC`]; written last when the table is made.
    pub(crate) magic: AtomicU64,
    /// [`VERSION`].
    pub(crate) version: AtomicU64,
    /// How many buckets there are.
    pub(crate) buckets: AtomicU64,
    /// How many entries there are.
    pub(crate) entries: AtomicU64,
    /// The secret of the hash; constant after the table was made.
    pub(crate) secret: [AtomicU64; 3],
    /// Entries that were ever taken: the first index that was not.
    pub(crate) extent: AtomicU32,
    /// Keeps the free list's line apart from the constants above, which every worker reads.
    pub(crate) unused: AtomicU32,
    /// First batch of free entries (`conn/slab.rs`).
    pub(crate) free: AtomicU64,
}

/// Slots that point to entries (`conn/buckets.rs`).
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Bucket {
    /// 0 where empty.
    pub(crate) slots: [AtomicU64; SLOTS],
}

/// A connection (`conn/entry.rs`), whole if its endpoints are three and IPv4. The fields before `life`, and `dest`, `controller` and `mark`, are
/// written by the worker that inserts the connection, before it is found, and stay until the entry is reused.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Entry {
    /// Client's address, if IPv4, and port, protocol, and whether it is a template and IPv6.
    pub(crate) client: AtomicU64,
    /// Virtual address, if IPv4, and port, the forwarding method, and what the extension holds.
    pub(crate) virtual_endpoint: AtomicU64,
    /// Destination's address; in an extended entry the port of the local endpoint.
    pub(crate) dest_addr: AtomicU32,
    /// Destination's port.
    pub(crate) dest_port: AtomicU16,
    /// Flags; any worker, by compare-and-swap.
    pub(crate) flags: AtomicU16,
    /// Phase, protocol state and deadline in one word, so that they change together; any worker, by
    /// compare-and-swap. In a removed entry: the next of its chain.
    pub(crate) life: AtomicU64,
    /// In a template, how long it lasts after a connection, in seconds; in a connection whose destination is told of the
    /// client, the sequence number of the client's first byte; any worker.
    pub(crate) timeout_seconds: AtomicU32,
    /// The destination's number.
    pub(crate) dest: AtomicU32,
    /// Index of the controlling entry plus one; 0: none.
    pub(crate) controller: AtomicU32,
    /// How many entries name this one as their controller; any worker.
    pub(crate) controlled: AtomicU32,
    /// Packets from the client; any worker.
    pub(crate) in_packets: AtomicU32,
    /// Firewall mark of the service, or 0.
    pub(crate) mark: AtomicU32,
    /// Tick of the one timer link that counts; any worker, by compare-and-swap.
    pub(crate) timer: AtomicU32,
    /// How often the entry was removed; who removes it.
    pub(crate) generation: AtomicU32,
}

/// The second half of a connection whose endpoints do not fit its entry: any of them IPv6, or one that is local. It
/// has the entry's index, in a mapping of its own. Written and kept as the entry's endpoints are; of an address that is IPv4, or in the entry,
/// the second word is 0.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Extension {
    /// Client's address, if IPv6.
    pub(crate) client: [AtomicU64; 2],
    /// Virtual address, if IPv6.
    pub(crate) virtual_addr: [AtomicU64; 2],
    /// Destination's address.
    pub(crate) dest: [AtomicU64; 2],
    /// Address of the director's own that the destination sees.
    pub(crate) local: [AtomicU64; 2],
}

// The number of bytes per connection is a promise of the table, and a bucket must not straddle cache lines.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 64);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Extension>() == 64);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
