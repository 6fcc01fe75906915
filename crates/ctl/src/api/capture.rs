//! One capture of `xvs capture`: its slots, and the packets in them as the report shows them.
//!
//! `socket/capture.rs` in `xvsd` keeps the active captures; `capture/` in the data plane chooses packets.

use std::sync::Arc;

use xvs_dataplane::capture::filter::{Fate, Filter};
use xvs_dataplane::capture::{Capture, FrameDirection, Reader, Record};
use xvs_dataplane::egress::Egress;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_model::config::refusal::CommandError;
use xvs_model::report::capture::{
    CaptureRequest, CapturedFrame, CapturedPacket, Direction, LARGEST_FRAME, Missed,
};

/// A capture, and its reading end.
pub struct Listener {
    capture: Arc<Capture>,
    reader: Reader,
}

impl Listener {
    /// A capture with slots for each of these workers; it is not on yet.
    ///
    /// # Errors
    /// The reason why the request is refused.
    pub fn new(
        wanted: &CaptureRequest,
        workers: usize,
        slots: usize,
        egress: &Egress,
    ) -> Result<Self, CommandError> {
        let slot_bytes = wanted.snap_bytes.clamp(1, LARGEST_FRAME);
        let (capture, reader) = Capture::new(filter(wanted, egress)?, workers, slots, slot_bytes);
        Ok(Self { capture, reader })
    }

    /// The part of the capture that a snapshot contains while the capture is on.
    pub fn capture(&self) -> Arc<Capture> {
        self.capture.clone()
    }

    /// Packets copied since the last call, ordered by the time of their bursts.
    pub fn packets(&mut self, egress: &Egress) -> Vec<CapturedPacket> {
        let mut packets: Vec<CapturedPacket> = Vec::new();
        let mut last = None;
        self.reader.read(|worker, record| {
            if last != Some((worker, record.packet)) {
                last = Some((worker, record.packet));
                packets.push(packet(record.verdict));
            }
            if let Some(packet) = packets.last_mut() {
                packet.frames.push(frame(record, egress));
            }
        });
        packets.sort_by_key(|packet| packet.frames.first().map(|frame| frame.nanoseconds));
        packets
    }

    /// The number of frames missed so far, by interface.
    pub fn missed(&self, egress: &Egress) -> Missed {
        self.capture.missed().map(|(link, count)| (egress.name_of(link), count)).collect()
    }
}

fn filter(wanted: &CaptureRequest, egress: &Egress) -> Result<Filter, CommandError> {
    if let Some(name) = &wanted.interface
        && !egress.links().any(|(_, link)| link.name == *name)
    {
        let why = format!("interface {name} is not attached; `xvs status` lists those that are");
        return Err(CommandError::Failed { why });
    }
    let fate = match &wanted.reason {
        Some(reason) => {
            Fate::DroppedFor(DropReason::named(reason).ok_or_else(|| CommandError::BadSetting {
                key: "the reason of a drop".to_owned(),
                value: reason.clone(),
                range: DropReason::all().map(DropReason::name).collect::<Vec<_>>().join(", "),
            })?)
        }
        None if wanted.drops => Fate::Dropped,
        None => Fate::Any,
    };
    let CaptureRequest { address, port, service, interface, .. } = wanted.clone();
    Ok(Filter { address, port, service, interface, fate })
}

fn packet(verdict: Verdict) -> CapturedPacket {
    let reason = match verdict {
        Verdict::Drop(reason) => Some(reason.name().to_owned()),
        _ => None,
    };
    CapturedPacket { verdict: verdict.name().to_owned(), reason, frames: Vec::new() }
}

fn frame(record: &Record, egress: &Egress) -> CapturedFrame {
    CapturedFrame {
        nanoseconds: record.nanoseconds,
        interface: egress.name_of(record.link),
        direction: match record.direction {
            FrameDirection::In => Direction::In,
            FrameDirection::Out => Direction::Out,
            FrameDirection::Earlier => Direction::Before,
        },
        length: record.length as u32,
        bytes: record.bytes().to_vec(),
    }
}
