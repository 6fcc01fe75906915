//! A captured packet as one line of text.
//!
//! Time, RX interface, source, destination, protocol, and after an arrow the verdict or the frames sent. The first drop
//! for each reason is followed by the sentence that explains the reason.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use xvs_model::report::capture::{CapturedFrame, CapturedPacket, Direction};
use xvs_proto::{Endpoint, Fragment, Packet, Parsed, parse, parse_cut, tcp};

use crate::capture::pcapng;

/// Formatter of lines, which remembers the drop reasons that it has explained.
#[derive(Default)]
pub struct Lines {
    explained: BTreeSet<String>,
}

impl Lines {
    /// The line of a packet, without newline; empty for a packet without frames.
    pub fn line(&mut self, packet: &CapturedPacket) -> String {
        let Some(first) = packet.frames.first() else { return String::new() };
        let mut line = format!("{} {} {}", clock(first.nanoseconds), first.interface, what(first));
        let outs: Vec<_> = packet.frames.iter().filter(|frame| frame.direction == Direction::Out).collect();
        match (&packet.reason, packet.verdict.as_str()) {
            (Some(reason), _) if self.explained.insert(reason.clone()) => {
                _ = write!(line, " {}", pcapng::explained(packet));
            }
            (Some(reason), _) => _ = write!(line, " drop {reason}"),
            (None, "transmit") if first.direction != Direction::Out => {}
            (None, verdict) => _ = write!(line, " {verdict}"),
        }
        if let Some(frame) = outs.first().filter(|_| first.direction != Direction::Out) {
            _ = write!(line, " -> {} {}", frame.interface, to(frame));
        }
        if outs.len() > 1 {
            _ = write!(line, " in {} frames", outs.len());
        }
        line
    }
}

/// Time of day, UTC.
fn clock(nanoseconds: u64) -> String {
    let since = Duration::from_nanos(nanoseconds);
    let seconds = since.as_secs() % 86_400;
    let hours = seconds / 3600;
    format!("{hours:02}:{:02}:{:02}.{:06}", seconds / 60 % 60, seconds % 60, since.subsec_micros())
}

/// A frame's packet, as far as its bytes were captured.
fn packet(bytes: &[u8]) -> Option<Packet> {
    match parse(bytes) {
        Ok(Parsed::Ip(packet)) => Some(packet),
        _ => parse_cut(bytes),
    }
}

fn what(frame: &CapturedFrame) -> String {
    let Some(packet) = packet(&frame.bytes) else {
        return format!("{} bytes that are no packet", frame.length);
    };
    let [source, dest] = [packet.flow.source, packet.flow.dest].map(|end| end_of(end, &packet));
    let mut text = format!("{source} > {dest} {}", packet.flow.protocol);
    let flags = flags(packet.tcp_flags);
    if !flags.is_empty() {
        _ = write!(text, " {flags}");
    }
    if packet.fragment != Fragment::Whole {
        text += " fragment";
    }
    _ = write!(text, " {}", frame.length);
    text
}

/// The destination of a transmitted frame.
fn to(frame: &CapturedFrame) -> String {
    packet(&frame.bytes).map_or_else(String::new, |packet| end_of(packet.flow.dest, &packet))
}

fn end_of(end: Endpoint, packet: &Packet) -> String {
    let with_ports = packet.has_ports() && packet.fragment != Fragment::Later;
    if with_ports { end.to_string() } else { end.addr.to_string() }
}

fn flags(flags: tcp::Flags) -> String {
    let known = [
        (tcp::Flags::SYN, 'S'),
        (tcp::Flags::FIN, 'F'),
        (tcp::Flags::RST, 'R'),
        (tcp::Flags::PSH, 'P'),
        (tcp::Flags::ACK, '.'),
    ];
    known.into_iter().filter(|(flag, _)| flags.has(*flag)).map(|(_, letter)| letter).collect()
}
