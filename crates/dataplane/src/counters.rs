//! A worker's counters. The worker is the only writer of each; readers sum them.
//!
//! The balance of a worker after each burst: received + originated = transmitted + passed + consumed + dropped + held.

use std::array;
use std::ops::{AddAssign, Sub};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::utils::CachePadded;
use xvs_xdp::BURST;

use crate::shm::prefetch;
use crate::verdict::DropReason;

/// A counter that one thread writes and any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Sets a value that may increase and decrease. Only the single writer may call this.
    pub fn set(&self, value: u64) {
        // Relaxed: as below.
        self.0.store(value, Ordering::Relaxed);
    }

    /// Adds to the value. Only the single writer may call this, so no locked instruction is needed.
    pub fn add(&self, count: u64) {
        // Relaxed: a reader needs some recent value, and the value orders no other memory.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The present value, or a recent one.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The number of values in each range (2^(i-1), 2^i], for i below `N`; larger values are in the last range. One thread
/// writes, any thread may read.
#[derive(Debug, Default)]
pub struct Histogram<const N: usize> {
    counts: Counters<N>,
    /// The sum of all values.
    pub sum: Counter,
}

#[derive(Debug)]
struct Counters<const N: usize>([Counter; N]);

impl<const N: usize> Default for Counters<N> {
    fn default() -> Self {
        Self(array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Histogram<N> {
    /// Counts a value. Only the single writer may call this.
    pub fn count(&self, value: u64) {
        self.count_in(value, value);
    }

    /// Like [`Self::count`], in the range for `units`; `value` is added to the sum.
    fn count_in(&self, units: u64, value: u64) {
        let exponent = u64::BITS - units.saturating_sub(1).leading_zeros();
        self.counts.0[(exponent as usize).min(N - 1)].add(1);
        self.sum.add(value);
    }

    /// The number of values in each range, by the exponent of its upper bound.
    pub fn counts(&self) -> [u64; N] {
        array::from_fn(|exponent| self.counts.0[exponent].value())
    }
}

/// The number of ranges of burst sizes: 1, 2, 4, … up to [`BURST`] frames.
pub const BURST_SIZES: usize = BURST.ilog2() as usize + 1;

/// The upper bound of the first range of [`ResponseTimes`], in microseconds.
pub const RESPONSE_UNIT_MICROS: u64 = 64;
/// The number of ranges of [`ResponseTimes`]: up to 64 µs, 128 µs, … 8.4 s, and longer.
pub const RESPONSE_RANGES: usize = 19;

/// The times until a destination's first reply to a connection, for every worker on separate cache lines.
#[derive(Debug, Default)]
pub struct ResponseTimes(Box<[CachePadded<Histogram<RESPONSE_RANGES>>]>);

impl ResponseTimes {
    /// Times for this number of workers.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| CachePadded::default()).collect())
    }

    /// Counts a time in microseconds. Only this worker may call this.
    pub fn count(&self, worker: usize, micros: u64) {
        if let Some(times) = self.0.get(worker) {
            times.count_in(micros.div_ceil(RESPONSE_UNIT_MICROS), micros);
        }
    }

    /// The number of times in each range over all workers, and the sum of all times in microseconds.
    pub fn sum(&self) -> ([u64; RESPONSE_RANGES], u64) {
        let mut sums = ([0; RESPONSE_RANGES], 0);
        for times in &self.0 {
            sums.0.iter_mut().zip(times.counts()).for_each(|(sum, count)| *sum += count);
            sums.1 += times.sum.value();
        }
        sums
    }
}

/// The counters of one worker, on separate cache lines: two workers' counters may be allocated side by side.
#[derive(Debug, Default)]
#[cfg_attr(not(loom), repr(align(128)))]
pub struct WorkerCounters {
    /// Frames received.
    pub received: Counter,
    /// Frames that the director created: ICMP errors, TCP resets, probes of real servers, repeated SYNs and window
    /// openings by the SYN proxy, fragments of packets above the path MTU and of reassembled datagrams, and copies of
    /// fragments that another worker received and consumed.
    pub originated: Counter,
    /// Frames sent.
    pub transmitted: Counter,
    /// Frames passed to the kernel.
    pub passed: Counter,
    /// Frames that had served their purpose.
    pub consumed: Counter,
    /// Frames that are currently waiting: fragments for others, packets for the link address of their next hop.
    pub held: Counter,
    /// Packets that have waited for the link address of their next hop.
    pub waited: Counter,
    /// ICMP errors and TCP resets that were not sent, because of the rate limit for errors, or because there was no
    /// route or no free frame.
    pub answers_withheld: Counter,
    /// TCP resets to senders of packets whose connection an operator has reset, to clients of the SYN proxy whose real
    /// server did not answer, and to real servers for older connections.
    pub resets: Counter,
    /// Packets that the kernel dropped because the RX ring of the worker was full. This counter and the next two are
    /// copied from the kernel about a second after packets arrived. The worker never had these packets, so they are not
    /// part of the balance.
    pub kernel_ring_full: Counter,
    /// Packets that the kernel dropped because no frame was free for them.
    pub kernel_fill_ring_empty: Counter,
    /// Packets that the kernel dropped for another reason, such as being larger than a frame.
    pub kernel_dropped: Counter,
    /// Frames that were counted as sent and were still in a TX ring when its socket was closed, because an interface
    /// was attached again: some of them may not have been sent.
    pub transmit_abandoned: Counter,
    /// Connections made.
    pub connections: Counter,
    /// Connections that reached their expiry.
    pub expired: Counter,
    /// Connections and templates that were evicted because there was no room for new ones.
    pub evicted: Counter,
    /// Segments of a client without room for the TCP option that carries its address.
    pub toa_no_room: Counter,
    /// FTP commands and replies that were not followed: they name an address other than their sender's, or an
    /// impossible port, or the reply cannot be changed.
    pub ftp_not_followed: Counter,
    /// SYNs that were answered by a cookie.
    pub syn_cookies_sent: Counter,
    /// Valid acknowledgements of a cookie, each of which begins a connection.
    pub syn_cookies_accepted: Counter,
    /// Packets without a connection whose destination was chosen by a QUIC connection ID.
    pub quic_routed: Counter,
    /// Packets of QUIC connections without a connection here, whose connection ID identified no destination.
    pub quic_unroutable: Counter,
    /// Received packets with a partial checksum, which was completed here.
    pub checksums_completed: Counter,
    /// Packets that the XDP program has forwarded with records of this worker, and that their connections have counted.
    /// The worker never had them, so they are not part of the balance.
    pub offloaded: Counter,
    /// Nanoseconds spent on iterations of the loop that had frames or timers. The rest of a second is sleep, falling
    /// asleep and waking up.
    pub busy_ns: Counter,
    /// Polls of the worker that found no frame.
    pub empty_polls: Counter,
    /// The sizes of bursts that were not empty, copies from other workers included.
    pub bursts: Histogram<BURST_SIZES>,
    /// The absolute balance at the worker's last check, between two bursts, about a second after packets arrived. Any
    /// value but 0 is a bug.
    pub unaccounted: Counter,
    dropped: Counters<{ DropReason::COUNT }>,
}

impl WorkerCounters {
    /// The counter of a drop reason.
    pub fn dropped(&self, reason: DropReason) -> &Counter {
        &self.dropped.0[reason.index()]
    }

    /// Counts an iteration of the worker's loop that received `frames` frames.
    pub fn count_poll(&self, frames: usize) {
        match frames {
            0 => self.empty_polls.add(1),
            frames => self.bursts.count(frames as u64),
        }
    }

    /// A value that grows with every iteration of the worker's loop: while it does not change, no iteration has ended.
    pub fn turns(&self) -> u64 {
        self.empty_polls.value().wrapping_add(self.bursts.sum.value())
    }

    /// Counts time in which the worker was busy.
    pub fn count_busy(&self, time: Duration) {
        self.busy_ns.add(time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos()));
    }

    /// Every counter of packets and connections with its name; drops are named `drop_REASON`.
    pub fn all(&self) -> impl Iterator<Item = (String, u64)> {
        let plain = [
            ("rx_packets", &self.received),
            ("originated", &self.originated),
            ("tx_packets", &self.transmitted),
            ("passed_to_kernel", &self.passed),
            ("consumed", &self.consumed),
            ("held", &self.held),
            ("answers_withheld", &self.answers_withheld),
            ("resets", &self.resets),
            ("kernel_ring_full", &self.kernel_ring_full),
            ("kernel_fill_ring_empty", &self.kernel_fill_ring_empty),
            ("kernel_dropped", &self.kernel_dropped),
            ("transmit_abandoned", &self.transmit_abandoned),
            ("connections", &self.connections),
            ("expired", &self.expired),
            ("evicted", &self.evicted),
            ("toa_no_room", &self.toa_no_room),
            ("ftp_not_followed", &self.ftp_not_followed),
            ("syn_cookies_sent", &self.syn_cookies_sent),
            ("syn_cookies_accepted", &self.syn_cookies_accepted),
            ("quic_routed", &self.quic_routed),
            ("quic_unroutable", &self.quic_unroutable),
            ("waited", &self.waited),
            ("checksums_completed", &self.checksums_completed),
            ("offloaded", &self.offloaded),
        ];
        plain.into_iter().map(|(name, counter)| (name.to_owned(), counter.value())).chain(
            DropReason::all().map(|reason| (format!("drop_{}", reason.name()), self.dropped(reason).value())),
        )
    }

    /// The balance: received and originated frames, less those that left the pipeline and those that are held.
    pub fn balance(&self) -> i64 {
        let dropped: u64 = DropReason::all().map(|reason| self.dropped(reason).value()).sum();
        let entered = self.received.value() + self.originated.value();
        let left = self.transmitted.value() + self.passed.value() + self.consumed.value() + dropped;
        entered as i64 - (left + self.held.value()) as i64
    }
}

/// The counters of a service or destination, with IPVS's names. `in` is from clients, `out` is to clients. Bytes are
/// those of the IP packet before encapsulation.
#[derive(Debug, Default)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: Counter,
    /// Packets from clients.
    pub in_packets: Counter,
    /// Packets to clients.
    pub out_packets: Counter,
    /// Bytes from clients.
    pub in_bytes: Counter,
    /// Bytes to clients.
    pub out_bytes: Counter,
    /// The worker's deferred changes to the destination's connection counts in this burst. They are here because the
    /// worker uses this cache line anyway.
    pub(crate) pending: Pending,
}

/// Changes to a destination's connection counts that its worker has yet to add; 0 between two bursts.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// Changes to the counts of active and inactive connections, encoded as in `snapshot/load.rs`.
    pub(crate) load: Counter,
    /// Changes to the count of templates, wrapping.
    pub(crate) templates: Counter,
}

/// The [`Stats`] of every worker, each on its own cache line. A clone is another handle to the same counters.
#[derive(Debug, Clone, Default)]
pub struct SharedStats(Arc<[CachePadded<Stats>]>);

/// Values of [`Stats`] at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatsValues {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
}

impl StatsValues {
    /// Combines each value with that of `other`.
    fn with(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            connections: combine(self.connections, other.connections),
            in_packets: combine(self.in_packets, other.in_packets),
            out_packets: combine(self.out_packets, other.out_packets),
            in_bytes: combine(self.in_bytes, other.in_bytes),
            out_bytes: combine(self.out_bytes, other.out_bytes),
        }
    }
}

impl AddAssign for StatsValues {
    fn add_assign(&mut self, other: Self) {
        *self = self.with(other, u64::wrapping_add);
    }
}

impl Sub for StatsValues {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.with(other, u64::wrapping_sub)
    }
}

impl SharedStats {
    /// Counters for this number of workers.
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| CachePadded::default()).collect())
    }

    /// Adds the counts of an earlier process. Called once, while no worker counts.
    pub fn resume(&self, counted: StatsValues) {
        if let Some(stats) = self.0.first() {
            stats.add(&counted);
        }
    }

    /// The counters that this worker writes.
    #[inline]
    pub fn of_worker(&self, worker: usize) -> &Stats {
        &self.0[worker]
    }

    /// Prefetches the counters that this worker writes.
    #[inline]
    pub(crate) fn prefetch(&self, worker: usize) {
        prefetch(&self.0[worker]);
    }

    /// The sums over all workers.
    pub fn sum(&self) -> StatsValues {
        let mut sum = StatsValues::default();
        for stats in &*self.0 {
            sum += StatsValues {
                connections: stats.connections.value(),
                in_packets: stats.in_packets.value(),
                out_packets: stats.out_packets.value(),
                in_bytes: stats.in_bytes.value(),
                out_bytes: stats.out_bytes.value(),
            };
        }
        sum
    }
}

impl Stats {
    /// Adds values that were counted elsewhere.
    pub(crate) fn add(&self, counted: &StatsValues) {
        self.connections.add(counted.connections);
        self.in_packets.add(counted.in_packets);
        self.in_bytes.add(counted.in_bytes);
        self.out_packets.add(counted.out_packets);
        self.out_bytes.add(counted.out_bytes);
    }

    /// Counts a packet from a client.
    #[inline]
    pub fn count_in(&self, bytes: usize) {
        self.in_packets.add(1);
        self.in_bytes.add(bytes as u64);
    }

    /// Counts a packet to a client.
    #[inline]
    pub fn count_out(&self, bytes: usize) {
        self.out_packets.add(1);
        self.out_bytes.add(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_under_the_power_of_two_that_it_does_not_exceed() {
        let histogram = Histogram::<4>::default();
        [0, 1, 2, 3, 4, 5, 8, 9, u64::from(u32::MAX)].into_iter().for_each(|value| histogram.count(value));
        assert_eq!((histogram.counts(), histogram.sum.value()), ([2, 1, 2, 4], 32 + u64::from(u32::MAX)));
    }

    #[test]
    fn every_size_of_a_burst_has_its_place_and_a_poll_without_frames_is_no_burst() {
        let counters = WorkerCounters::default();
        (0..=BURST).for_each(|frames| {
            let before = counters.turns();
            counters.count_poll(frames);
            assert!(counters.turns() > before, "a turn with {frames} frames");
        });
        assert_eq!(counters.bursts.counts(), [1, 1, 2, 4, 8, 16, 32]);
        assert_eq!((counters.bursts.sum.value(), counters.empty_polls.value()), (2080, 1));
        counters.count_busy(Duration::new(2, 3));
        assert_eq!(counters.busy_ns.value(), 2_000_000_003);
    }
}
