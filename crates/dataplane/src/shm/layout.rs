//! The contents of the connection table's mappings, byte for byte.
//!
//! A later process maps the same memory, so this is a format: every change to it needs a new [`VERSION`]. Every field
//! is an atomic, all bytes zero are a valid value of each cell, and cells refer to each other by index only. The
//! meaning and the writers of the fields are documented here; the code that changes them is in `conn/`.

use super::atomic::{AtomicU16, AtomicU32, AtomicU64};

/// The first field of the mapping: `xvs-conn` in ASCII.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"xvs-conn");

/// The version of this file and of the encoding in `conn/entry.rs` and `conn/buckets.rs`, whose tests check it.
pub(crate) const VERSION: u64 = 7;

/// The number of slots in a bucket, which is a cache line. Models have fewer, so that they terminate.
pub(crate) const SLOTS: usize = if cfg!(loom) { 2 } else { 8 };

/// The number of bytes between the start of the mapping and the first bucket.
pub(crate) const HEADER_BYTES: usize = 4096;

/// The table's own data, at the start of the mapping.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Header {
    /// [`MAGIC`]; written last when the table is created.
    pub(crate) magic: AtomicU64,
    /// [`VERSION`].
    pub(crate) version: AtomicU64,
    /// The number of buckets.
    pub(crate) buckets: AtomicU64,
    /// The number of entries.
    pub(crate) entries: AtomicU64,
    /// The secret of the hash; constant after the table was created.
    pub(crate) secret: [AtomicU64; 3],
    /// The number of entries that were ever taken: the first index that was not.
    pub(crate) extent: AtomicU32,
    /// 1 if the kernel has put the table into huge pages; 0 in tables from an xvsd without this field. Constant, and
    /// separates the free list's line from the constants above, which every worker reads.
    pub(crate) huge_pages: AtomicU32,
    /// The first batch of free entries (`conn/slab.rs`).
    pub(crate) free: AtomicU64,
    /// The number of connections for which the table was created; constant, like the next one.
    pub(crate) capacity: AtomicU64,
    /// The start of the machine from which the times in the table count.
    pub(crate) boot: [AtomicU64; 2],
    /// When a process last left the table to another one with the free list and the following fields in order, in
    /// milliseconds of the clock; 0 if never, or if the table has changed since.
    pub(crate) left: AtomicU64,
    /// At that time: the number of connections and templates.
    pub(crate) left_live: AtomicU64,
    /// At that time: the number of expected connections.
    pub(crate) left_expected: AtomicU32,
    /// At that time: the number of free entries that are in no batch, and the first one's index plus one.
    pub(crate) left_free: [AtomicU32; 2],
}

/// Slots that refer to entries (`conn/buckets.rs`).
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Bucket {
    /// 0 if empty.
    pub(crate) slots: [AtomicU64; SLOTS],
}

/// A connection (`conn/entry.rs`); the entry suffices for one with three IPv4 endpoints. The fields before `life`, and
/// `dest`, `controller` and `mark`, are written by the worker that inserts the connection, before look-ups can find it.
/// They stay until the entry is reused.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Entry {
    /// The client's IPv4 address, its port, the protocol, and the bits for templates and for IPv6.
    pub(crate) client: AtomicU64,
    /// The virtual IPv4 address, its port, the forwarding method, and the bits for the extension.
    pub(crate) virtual_endpoint: AtomicU64,
    /// The destination's address; in an extended entry the port of the local endpoint.
    pub(crate) dest_addr: AtomicU32,
    /// The destination's port.
    pub(crate) dest_port: AtomicU16,
    /// Flags. Written by any worker, by compare-and-swap.
    pub(crate) flags: AtomicU16,
    /// Phase, protocol state and deadline in one integer, so that they change together. Written by any worker, by
    /// compare-and-swap. In a removed entry: the next entry of its chain.
    pub(crate) life: AtomicU64,
    /// What only some connections have (`conn/spare.rs`). Written by any worker.
    pub(crate) spare: AtomicU32,
    /// The destination's number.
    pub(crate) dest: AtomicU32,
    /// The index of the controlling entry plus one; 0 if there is none.
    pub(crate) controller: AtomicU32,
    /// The number of entries whose controller this one is. Written by any worker.
    pub(crate) controlled: AtomicU32,
    /// Packets from the client. Written by any worker.
    pub(crate) in_packets: AtomicU32,
    /// Firewall mark of the service, or 0.
    pub(crate) mark: AtomicU32,
    /// The tick of the valid timer link. Written by any worker, by compare-and-swap.
    pub(crate) timer: AtomicU32,
    /// The number of removals of the entry. Written by the thread that removes it.
    pub(crate) generation: AtomicU32,
}

/// The second half of a connection that does not fit its entry: with any IPv6 address, with a local endpoint, or an FTP
/// control connection. It has the entry's index, in a separate mapping. Written and kept like the endpoints in the
/// entry. The second word of an IPv4 address is 0.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(64)))]
pub(crate) struct Extension {
    /// The client's address.
    pub(crate) client: [AtomicU64; 2],
    /// The virtual address.
    pub(crate) virtual_addr: [AtomicU64; 2],
    /// The destination's address.
    pub(crate) dest: [AtomicU64; 2],
    /// The director's own address, which the destination sees. In an FTP control connection (`conn/ftp.rs`): the shift
    /// of its replies, and the client's last command; written by any worker.
    pub(crate) local: [AtomicU64; 2],
}

/// The numbers of a connection whose handshake the director has answered (`conn/numbers.rs`). It has the entry's index,
/// after the extensions.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C, align(16)))]
pub(crate) struct Numbers {
    /// Written by the worker that begins the connection, and by the one that completes it.
    pub(crate) words: [AtomicU32; 4],
}

/// The log's data about a connection (`conn/log.rs`). It has the entry's index, in a mapping that only a process with
/// such a log has. All fields except the time in `begun` are written by any worker.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(C))]
pub(crate) struct Tally {
    /// In the lower 48 bits the time at which the connection was inserted, in milliseconds of the clock; 0 if before
    /// this process. Written by the worker that inserts the connection, before look-ups can find it. In the upper 16
    /// bits a number that is odd while a worker moves counts from an offload record into this tally.
    pub(crate) begun: AtomicU64,
    /// When its last packet passed, in milliseconds of the clock; 0 if none has passed.
    pub(crate) last: AtomicU64,
    /// Packets from the client, then packets to the client.
    pub(crate) packets: [AtomicU64; 2],
    /// Their bytes, in the same order.
    pub(crate) bytes: [AtomicU64; 2],
}

// The table guarantees its number of bytes for each connection, and a bucket must not straddle cache lines.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 64);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Extension>() == 64 && size_of::<Numbers>() == 16);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Tally>() == 48);
#[cfg(not(loom))]
const _: () = assert!(size_of::<Header>() <= HEADER_BYTES);
