//! Captures: which packets are wanted, and packets as they are reported.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_proto::Prefix;
use xvs_sched::ServiceKey;

/// The largest frame that a port takes in, in bytes.
pub const LARGEST_FRAME: usize = 4096;

/// Which packets are wanted, and how much of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// One of its ends, or of its connection's, is in this network.
    pub address: Option<Prefix>,
    /// One of its ends, or of its connection's, has this port.
    pub port: Option<u16>,
    /// It is of this service.
    pub service: Option<ServiceKey>,
    /// It came in by this interface.
    pub interface: Option<String>,
    /// It was dropped.
    pub drops: bool,
    /// It was dropped for the reason of this name.
    pub reason: Option<String>,
    /// Of each frame at most so many bytes.
    pub snap_bytes: usize,
}

impl CaptureRequest {
    /// Every packet, as whole as `snap_bytes` lets it be.
    pub fn everything(snap_bytes: usize) -> Self {
        let (address, port, service, interface, reason) = (None, None, None, None, None);
        Self { address, port, service, interface, drops: false, reason, snap_bytes }
    }
}

/// A packet with all that came in and went out of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedPacket {
    /// What became of it: `transmit`, `pass`, `held`, `consumed` or `drop`.
    pub verdict: String,
    /// Why it was dropped.
    pub reason: Option<String>,
    /// In their order; the first came in, unless there was no room for it.
    pub frames: Vec<CapturedFrame>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedFrame {
    /// When its burst was taken in: nanoseconds since 1970, UTC.
    pub nanoseconds: u64,
    /// The kernel's name of the interface.
    pub interface: String,
    /// Whether it came in or went out.
    #[serde(rename = "way")]
    pub direction: Direction,
    /// Its length in bytes.
    pub length: u32,
    /// From the Ethernet header on, as much as is kept of it.
    #[serde(with = "crate::hexadecimal")]
    pub bytes: Vec<u8>,
}

/// Whether a frame came in or went out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It came in.
    In,
    /// It went out.
    Out,
    /// It had come in before: a fragment that waited, or one that another worker took in.
    Before,
}

/// Frames that were left out because their worker's slots were all taken, of packets that came in by each interface.
pub type Missed = BTreeMap<String, u64>;
