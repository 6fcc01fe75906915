//! A captured packet as one line of text.
//!
//! Time, RX interface, source, destination, protocol, and after an arrow the verdict or the frames sent. The first drop
//! for each reason is followed by the sentence that explains the reason.

use std::collections::BTreeSet;
use std::fmt::Write;

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
    let (seconds, micros) = (nanoseconds / 1_000_000_000, nanoseconds / 1000 % 1_000_000);
    format!("{:02}:{:02}:{:02}.{micros:06}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
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
    if packet.has_ports() && packet.fragment != Fragment::Later {
        end.to_string()
    } else {
        end.addr.to_string()
    }
}

fn flags(flags: tcp::Flags) -> String {
    [
        (tcp::Flags::SYN, 'S'),
        (tcp::Flags::FIN, 'F'),
        (tcp::Flags::RST, 'R'),
        (tcp::Flags::PSH, 'P'),
        (tcp::Flags::ACK, '.'),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.has(*flag))
    .map(|(_, letter)| letter)
    .collect()
}
