//! `xvs capture` in the daemon: what is asked for, and the packets on their way to who asked.
//!
//! Runs on the thread of the client, for as long as the capture is on. It makes the slots, has the control thread
//! publish the capture, and hands over what workers have copied; when the client goes, the capture is taken out again.
//! Bounded: [`MOST`] at a time, so many slots a worker. Not here: what is copied (`capture/` of the data plane), what the
//! client makes of it (`pcapng.rs`, `packet_line.rs`).

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use xvs_dataplane::capture::filter::{Fate, Filter};
use xvs_dataplane::capture::{Capture, FrameDirection, MOST, Reader, Record};
use xvs_dataplane::egress::Egress;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_model::capture::{CaptureRequest, CapturedFrame, CapturedPacket, Direction, LARGEST_FRAME, Missed};
use xvs_model::command::CommandError;
use xvs_proto::LinkId;

use crate::control::thread::Handle;

/// Copies that may wait to be read, of each worker.
const SLOTS: usize = 1024;
/// The captures that are on.
#[derive(Default)]
pub(crate) struct ActiveCaptures(Mutex<Vec<Arc<Capture>>>);

impl ActiveCaptures {
    /// Each change of the list is one call, so a panic leaves it whole.
    fn list(&self) -> MutexGuard<'_, Vec<Arc<Capture>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Captures until `each` breaks; it is called at once when packets begin to be copied, and then again and again, with
    /// what there is.
    ///
    /// # Errors
    /// What is wrong with the request; or that there is no room for another capture.
    pub(crate) fn run(
        &self,
        wanted: &CaptureRequest,
        daemon: &Handle,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        let shared = daemon.shared();
        let egress = || shared.published.load().egress.clone();
        let mut listener = Listener::new(wanted, shared.workers().len(), SLOTS, &egress())?;
        let active = self.begin(listener.capture(), daemon)?;
        while each(listener.packets(&egress())).is_continue() {}
        active.end();
        // What was copied until then; nobody is left to break.
        let _ = each(listener.packets(&egress()));
        Ok(listener.missed(&egress()))
    }

    fn begin<'a>(
        &'a self,
        capture: Arc<Capture>,
        daemon: &'a Handle,
    ) -> Result<ActiveCapture<'a>, CommandError> {
        let mut list = self.list();
        if list.len() >= MOST {
            let why = format!("{MOST} captures are on already, which is as many as there may be; end one");
            return Err(CommandError::Failed { why });
        }
        list.push(capture.clone());
        let published = daemon.capture(list.as_slice().into());
        drop(list);
        let active = ActiveCapture { capture, all: self, daemon };
        published.map(|()| active)
    }
}

/// A capture that is on; dropping it takes it out.
struct ActiveCapture<'a> {
    capture: Arc<Capture>,
    all: &'a ActiveCaptures,
    daemon: &'a Handle,
}

impl ActiveCapture<'_> {
    /// From then on no worker copies for it.
    fn end(&self) {
        let mut list = self.all.list();
        let before = list.len();
        list.retain(|other| !Arc::ptr_eq(other, &self.capture));
        if list.len() < before {
            // A daemon that ends has no captures any more; a worker that is late copies into slots that nobody reads.
            let _ = self.daemon.capture(list.as_slice().into());
        }
    }
}

impl Drop for ActiveCapture<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// A capture, and the end of it that is read.
pub struct Listener {
    capture: Arc<Capture>,
    reader: Reader,
}

impl Listener {
    /// For so many workers with so many slots each; it is not on yet.
    ///
    /// # Errors
    /// What is wrong with the request.
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

    /// What a snapshot has while it is on.
    pub fn capture(&self) -> Arc<Capture> {
        self.capture.clone()
    }

    /// What waits to be read, by the time of its bursts.
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

    /// What was left out so far.
    pub fn missed(&self, egress: &Egress) -> Missed {
        self.capture.missed().map(|(link, count)| (name(egress, link), count)).collect()
    }
}

fn filter(wanted: &CaptureRequest, egress: &Egress) -> Result<Filter, CommandError> {
    if let Some(name) = &wanted.interface
        && !egress.links().any(|(_, link)| link.name == *name)
    {
        let why = format!("no packets come by interface {name}; `xvs status` shows those that are attached");
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
        interface: name(egress, record.link),
        direction: match record.direction {
            FrameDirection::In => Direction::In,
            FrameDirection::Out => Direction::Out,
            FrameDirection::Earlier => Direction::Before,
        },
        length: record.length as u32,
        bytes: record.bytes().to_vec(),
    }
}

/// A link's name; of one that has gone meanwhile, its number.
fn name(egress: &Egress, link: LinkId) -> String {
    egress.link(link).map_or_else(|| format!("link {}", link.0), |link| link.name.clone())
}
