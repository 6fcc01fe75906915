//! `xvs capture` in the daemon: what is asked for, and the packets on their way to who asked.
//!
//! Runs on the thread of the client, for as long as the capture is on. It makes the slots, has the control thread
//! publish the capture, and hands over what workers have copied; when the client goes, the capture is taken out again.
//! Bounded: [`MOST`] at a time, so many slots a worker. Not here: what is copied (`capture/` of the data plane), what the
//! client makes of it (`pcapng.rs`, `packet_line.rs`).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use xvs_dataplane::capture::filter::{Fate, Filter};
use xvs_dataplane::capture::{Capture, FrameDirection, MOST, Reader, Record};
use xvs_dataplane::egress::Egress;
use xvs_dataplane::verdict::{DropReason, Verdict};
use xvs_proto::Prefix;
use xvs_sched::ServiceKey;
use xvs_xdp::LinkId;

use crate::control_thread::Handle;
use crate::message::CommandError;

/// Copies that may wait to be read, of each worker.
const SLOTS: usize = 1024;
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
    /// Which way it went.
    pub way: Way,
    /// Its length in bytes.
    pub length: u32,
    /// From the Ethernet header on, as much as is kept of it.
    #[serde(with = "hexadecimal")]
    pub bytes: Vec<u8>,
}

/// Which way a frame went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It came in.
    In,
    /// It went out.
    Out,
    /// It had come in before: a fragment that waited, or one that another worker took in.
    Before,
}

/// Frames that were left out because their worker's slots were all taken, of packets that came in by each interface.
pub type Missed = BTreeMap<String, u64>;

/// The captures that are on.
#[derive(Default)]
pub(crate) struct Capturing(Mutex<Vec<Arc<Capture>>>);

impl Capturing {
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
        let on = self.begin(listener.capture(), daemon)?;
        while each(listener.packets(&egress())).is_continue() {}
        on.end();
        // What was copied until then; nobody is left to break.
        let _ = each(listener.packets(&egress()));
        Ok(listener.missed(&egress()))
    }

    fn begin<'a>(&'a self, capture: Arc<Capture>, daemon: &'a Handle) -> Result<On<'a>, CommandError> {
        let mut list = self.list();
        if list.len() >= MOST {
            let why = format!("{MOST} captures are on already, which is as many as there may be; end one");
            return Err(CommandError::Failed { why });
        }
        list.push(capture.clone());
        let published = daemon.capture(list.as_slice().into());
        drop(list);
        let on = On { capture, all: self, daemon };
        published.map(|()| on)
    }
}

/// A capture that is on; dropping it takes it out.
struct On<'a> {
    capture: Arc<Capture>,
    all: &'a Capturing,
    daemon: &'a Handle,
}

impl On<'_> {
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

impl Drop for On<'_> {
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
        way: match record.direction {
            FrameDirection::In => Way::In,
            FrameDirection::Out => Way::Out,
            FrameDirection::Earlier => Way::Before,
        },
        length: record.length as u32,
        bytes: record.bytes().to_vec(),
    }
}

/// A link's name; of one that has gone meanwhile, its number.
fn name(egress: &Egress, link: LinkId) -> String {
    egress.link(link).map_or_else(|| format!("link {}", link.0), |link| link.name.clone())
}

/// Bytes as text, two digits each.
mod hexadecimal {
    use std::borrow::Cow;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let digit = |value: u8| char::from_digit(value.into(), 16).expect("four bits are a digit");
        let text: String = bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect();
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        let value = |digit: &u8| char::from(*digit).to_digit(16);
        let byte = |pair: &[u8]| Some((value(pair.first()?)? << 4 | value(pair.get(1)?)?) as u8);
        let bytes: Option<_> = text.as_bytes().chunks(2).map(byte).collect();
        bytes.ok_or_else(|| D::Error::custom("bytes are two hexadecimal digits each"))
    }
}
