//! Settings of a network card that `ethtool` changes, read but not changed.
//!
//! For `xvs doctor`. Cost: some requests to the kernel. A field that the driver does not report is `None`. Not here:
//! queues and offloads (`device.rs`), interrupts, and recommended values.

use std::collections::BTreeMap;
use std::io;

use super::sys::{Flow, HASH_ADDRESSES, HASH_PORTS, Request};

/// The settings of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardSettings {
    /// The sizes of its rings.
    pub rings: Option<Rings>,
    /// Its flow control.
    pub pause: Option<Pause>,
    /// The coalescing of its receive interrupts.
    pub coalescing: Option<Coalescing>,
    /// Whether ports are part of the hash that chooses the receive queue of UDP over IPv4.
    pub udp4_by_ports: Option<bool>,
    /// Whether ports are part of the hash that chooses the receive queue of UDP over IPv6.
    pub udp6_by_ports: Option<bool>,
}

/// The packets that an interface has counted as shorter than Ethernet allows; 0 if its driver does not count them
/// apart. Emulated cards deliver them all the same. Cost: three requests to the kernel.
pub fn short_packets(interface: &str) -> u64 {
    let counters = statistics(interface).unwrap_or_default();
    counters.get("rx_short_length_errors").copied().unwrap_or(0)
}

/// The counters of an interface, by the names of `ethtool -S`. Cost: three requests to the kernel.
///
/// # Errors
/// The interface is gone, or its driver has none.
pub fn statistics(interface: &str) -> io::Result<BTreeMap<String, u64>> {
    Request::new(interface)?.statistics()
}

/// The version of a card's firmware, in the words of its driver; empty: it does not say.
///
/// # Errors
/// The interface is gone.
pub fn firmware(interface: &str) -> io::Result<String> {
    Request::new(interface)?.firmware()
}

/// The sizes of a card's rings, in descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// Of each receive queue.
    pub receive: u32,
    /// The most that `receive` can be; 0 if it cannot be set.
    pub receive_max: u32,
    /// Of each transmit queue.
    pub transmit: u32,
    /// The most that `transmit` can be; 0 if it cannot be set.
    pub transmit_max: u32,
}

/// A card's flow control by pause frames (IEEE 802.3, annex 31B).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pause {
    /// Whether it obeys pause frames.
    pub receive: bool,
    /// Whether it sends them.
    pub transmit: bool,
}

/// When a card interrupts for packets that it has received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coalescing {
    /// After this time in microseconds; 0: time does not matter. Some drivers use the lowest numbers for modes.
    pub micros: u32,
    /// After this number of packets; 0: their number does not matter.
    pub frames: u32,
    /// Whether the driver adapts these to the traffic.
    pub adaptive: bool,
}

impl CardSettings {
    /// Reads the settings of the interface of this name.
    ///
    /// # Errors
    /// The kernel's error for a socket, or ENODEV for a name that no interface can have.
    pub fn read(interface: &str) -> io::Result<Self> {
        let mut request = Request::new(interface)?;
        let rings = request.rings().map(|rings| Rings {
            receive: rings.rx,
            receive_max: rings.rx_max,
            transmit: rings.tx,
            transmit_max: rings.tx_max,
        });
        let pause = request.pause().map(|pause| Pause { receive: pause.rx != 0, transmit: pause.tx != 0 });
        let coalescing = request.coalescing().map(|found| Coalescing {
            micros: found.rx_micros,
            frames: found.rx_frames,
            adaptive: found.rx_adaptive != 0,
        });
        let [udp4_by_ports, udp6_by_ports] = [Flow::Udp4, Flow::Udp6].map(|flow| {
            // A driver that has no hash reports that it covers nothing.
            let covered = request.hash(flow).filter(|covered| covered & HASH_ADDRESSES == HASH_ADDRESSES);
            covered.map(|covered| covered & HASH_PORTS == HASH_PORTS)
        });
        Ok(Self { rings, pause, coalescing, udp4_by_ports, udp6_by_ports })
    }
}
