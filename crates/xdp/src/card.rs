//! Settings of a network card that `ethtool` can change; read only.
//!
//! For `xvs doctor`, which knows the recommended values. Cost: some requests to the kernel. A field that the driver
//! does not report is `None`. `device.rs` reads queues and offloads.

use std::collections::BTreeMap;
use std::io;

use super::sys::{Flow, HASH_ADDRESSES, HASH_PORTS, Request};

/// The settings of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CardSettings {
    /// Ring sizes.
    pub rings: Option<Rings>,
    /// Flow control.
    pub pause: Option<Pause>,
    /// Coalescing of receive interrupts.
    pub coalescing: Option<Coalescing>,
    /// Whether ports are part of the hash that chooses the receive queue for UDP over IPv4.
    pub udp4_by_ports: Option<bool>,
    /// Whether ports are part of the hash that chooses the receive queue for UDP over IPv6.
    pub udp6_by_ports: Option<bool>,
}

/// The number of packets that an interface has counted as shorter than Ethernet allows; 0 if its driver does not count
/// them separately. Emulated cards deliver them nevertheless. Cost: three requests to the kernel.
pub fn short_packets(interface: &str) -> u64 {
    statistics(interface).unwrap_or_default().get("rx_short_length_errors").copied().unwrap_or(0)
}

/// The counters of an interface, by the names in `ethtool -S`. Cost: three requests to the kernel.
///
/// # Errors
///
/// The interface is gone, or its driver has no counters.
pub fn statistics(interface: &str) -> io::Result<BTreeMap<String, u64>> {
    Request::new(interface)?.statistics()
}

/// The version of a card's firmware, as its driver reports it; empty if it does not.
///
/// # Errors
///
/// The interface is gone.
pub fn firmware(interface: &str) -> io::Result<String> {
    Request::new(interface)?.firmware()
}

/// The sizes of a card's rings, in descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// The size of each receive queue.
    pub receive: u32,
    /// The maximum of `receive`; 0 if it cannot be set.
    pub receive_max: u32,
    /// The size of each transmit queue.
    pub transmit: u32,
    /// The maximum of `transmit`; 0 if it cannot be set.
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

/// The delay between the reception of packets and the card's interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coalescing {
    /// The maximum delay in microseconds; 0 means no limit on time. Some drivers use the lowest numbers for modes.
    pub micros: u32,
    /// The maximum number of packets; 0 means no limit on their number.
    pub frames: u32,
    /// Whether the driver adapts these to the traffic.
    pub adaptive: bool,
}

impl CardSettings {
    /// Reads the settings of the interface with this name.
    ///
    /// # Errors
    ///
    /// The kernel's error for a socket, or ENODEV if no interface can have the name.
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
            // A driver that has no hash reports that the hash covers nothing.
            request
                .hash(flow)
                .filter(|covered| covered & HASH_ADDRESSES == HASH_ADDRESSES)
                .map(|covered| covered & HASH_PORTS == HASH_PORTS)
        });
        Ok(Self { rings, pause, coalescing, udp4_by_ports, udp6_by_ports })
    }
}
