//! Captures of packets: the request and the reported packets.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use xvs_proto::Prefix;
use xvs_sched::ServiceKey;

/// Maximum number of bytes of a frame that can be captured: all bytes with any usual MTU.
pub const LARGEST_FRAME: usize = 16 << 10;
/// The default number of captured bytes.
pub const SNAP_BYTES: usize = 4096;

/// The packets to capture: those that match every given field. And how many bytes of each frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CaptureRequest {
    /// An endpoint of the packet or of its connection is in this network.
    pub address: Option<Prefix>,
    /// An endpoint of the packet or of its connection has this port.
    pub port: Option<u16>,
    /// The packet belongs to this service.
    pub service: Option<ServiceKey>,
    /// It was received on this interface.
    pub interface: Option<String>,
    /// It was dropped.
    pub drops: bool,
    /// It was dropped for this reason, by name.
    pub reason: Option<String>,
    /// The largest number of bytes of each frame.
    pub snap_bytes: usize,
}

impl CaptureRequest {
    /// Every packet, with at most `snap_bytes` bytes of each frame.
    pub fn everything(snap_bytes: usize) -> Self {
        Self {
            address: None,
            port: None,
            service: None,
            interface: None,
            drops: false,
            reason: None,
            snap_bytes,
        }
    }
}

/// A packet: the received frame and the frames that were sent for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CapturedPacket {
    /// The fate of the packet: `transmit`, `pass` (to the kernel), `held` (it waited), `consumed` or `drop`.
    pub verdict: String,
    /// The name of the reason why it was dropped, such as `no_route`; `None`: it was not dropped.
    pub reason: Option<String>,
    /// The frames in order: the received one, unless there was no slot for it, and those that were sent.
    pub frames: Vec<CapturedFrame>,
}

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CapturedFrame {
    /// When the frame's burst was received, in nanoseconds since 1970.
    pub nanoseconds: u64,
    /// The interface of the frame.
    pub interface: String,
    /// Whether it was received or sent.
    #[serde(rename = "way")]
    pub direction: Direction,
    /// The length of the frame, in bytes.
    pub length: u32,
    /// The captured bytes of the frame, from the Ethernet header on, as hexadecimal digits.
    #[serde(with = "crate::hexadecimal")]
    #[cfg_attr(feature = "schema", schemars(with = "String"))]
    pub bytes: Vec<u8>,
}

/// Whether a frame was received or sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It was received.
    In,
    /// It was sent.
    Out,
    /// It was received earlier: a fragment that waited, or one that another worker received.
    Before,
}

/// The number of frames that were not captured because all slots of their worker were in use, by the interface that
/// their packet was received on.
pub type Missed = BTreeMap<String, u64>;
