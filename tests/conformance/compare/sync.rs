//! The rules by which messages of the master daemon count as equal to the kernel's: the same messages, in the same
//! order, within the same second. The kernel's thread looks for incomplete messages once a second, at its own phase.

use std::collections::VecDeque;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use serde_json::{Value, json};

use super::unhex;

/// The messages of both that have no counterpart yet.
#[derive(Default)]
pub(crate) struct Messages {
    kernel: VecDeque<Message>,
    ours: VecDeque<Message>,
    /// The ends of this step and of the one before, in seconds.
    now: f64,
    before: f64,
}

struct Message {
    /// The number of the step in which it was sent, and the times of its beginning and end.
    step: usize,
    after: f64,
    seconds: f64,
    port: u16,
    payload: String,
}

impl Messages {
    /// A step ends at this time.
    pub(crate) fn advance_to(&mut self, seconds: f64) {
        if seconds > self.now {
            (self.before, self.now) = (self.now, seconds);
        }
    }

    /// Notes what the kernel sent in a step, and returns its other frames.
    pub(crate) fn note_kernel(&mut self, step: usize, frames: &Value) -> Value {
        let (after, seconds) = (self.before, self.now);
        let (messages, others): (Vec<_>, Vec<_>) =
            super::list(frames).iter().cloned().partition(|frame| message(frame).is_some());
        let messages = messages.iter().filter_map(message);
        self.kernel.extend(messages.map(|(port, payload)| Message { step, after, seconds, port, payload }));
        json!(others)
    }

    /// Notes what the lab answered in a step.
    pub(crate) fn note_ours(&mut self, step: usize, answer: &Value) {
        self.ours.extend(super::list(&answer["sync"]).iter().map(|message| Message {
            step,
            after: self.before,
            seconds: self.now,
            port: message["port"].as_u64().unwrap_or_default() as u16,
            payload: message["payload"].as_str().unwrap_or_default().to_owned(),
        }));
    }

    /// Compares those that both have sent. Returns the first step that differs, and how.
    pub(crate) fn difference(&mut self) -> Option<(usize, String)> {
        while let (Some(kernel), Some(ours)) = (self.kernel.front(), self.ours.front()) {
            let is_same = kernel.port == ours.port && kernel.payload == ours.payload;
            let is_near =
                kernel.after - ours.seconds < PERIOD_SECONDS && ours.after - kernel.seconds < PERIOD_SECONDS;
            let step = kernel.step.min(ours.step);
            let what = format!("sync message\n  want {}\n  got  {}", kernel.text(), ours.text());
            self.kernel.pop_front();
            self.ours.pop_front();
            if !(is_same && is_near) {
                return Some((step, what));
            }
        }
        let is_late = |message: &&Message| self.before - message.seconds > PERIOD_SECONDS;
        let missing = self.kernel.front().filter(is_late).map(|one| (one.step, format!("no {}", one.text())));
        let surplus =
            || self.ours.front().filter(is_late).map(|one| (one.step, format!("too much: {}", one.text())));
        let late = missing.or_else(surplus)?;
        self.kernel.clear();
        self.ours.clear();
        Some(late)
    }
}

impl Message {
    fn text(&self) -> String {
        format!("message at {:.3} s to port {}: {}", self.seconds, self.port, self.payload)
    }
}

/// Port and payload of a frame that the master daemon sends to its group.
fn message(frame: &Value) -> Option<(u16, String)> {
    if frame["port"] != "sy0" {
        return None;
    }
    let bytes = unhex(frame["hex"].as_str()?);
    let packet = SlicedPacket::from_ethernet(&bytes).ok()?;
    let is_multicast = match packet.net? {
        NetSlice::Ipv4(ip) => ip.header().destination_addr().is_multicast(),
        NetSlice::Ipv6(ip) => ip.header().destination_addr().is_multicast(),
        NetSlice::Arp(_) => false,
    };
    let TransportSlice::Udp(udp) = packet.transport? else { return None };
    let payload = udp.payload().iter().map(|byte| format!("{byte:02x}")).collect();
    is_multicast.then(|| (udp.destination_port(), payload))
}

/// How much earlier or later a message may be.
const PERIOD_SECONDS: f64 = 1.005;
