//! Captured packets as a pcapng file, which Wireshark, tshark and tcpdump read.
//!
//! Each frame is an enhanced packet block on the interface with the kernel's name, with the direction as flags and the
//! verdict as a comment. A block of statistics for each interface ends the file. Only whole blocks are returned, so the
//! bytes returned so far are always a complete file. The byte order is network order, in which the `pcap-file` crate
//! writes the times of statistics correctly on every machine.
//!
//! Source: draft-ietf-opsawg-pcapng; <https://www.tcpdump.org/linktypes.html>.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError};
use xvs_dataplane::verdict::DropReason;
use xvs_model::report::capture::{CapturedFrame, CapturedPacket, Direction, Missed};

/// Times are in units of 10⁻⁹ s.
const NANOSECONDS: u8 = 9;

/// Encoder of packets as pcapng blocks.
pub struct Blocks {
    writer: PcapNgWriter<Vec<u8>>,
    interfaces: BTreeMap<String, Interface>,
    snap_bytes: u32,
}

/// An interface that received or sent packets.
#[derive(Clone, Copy)]
struct Interface {
    number: u32,
    frames: u64,
    first: u64,
    last: u64,
}

impl Blocks {
    /// The start of a file whose frames have at most `snap_bytes` bytes.
    ///
    /// # Errors
    /// None in practice: the blocks are written to memory.
    pub fn new(snap_bytes: u32) -> io::Result<Self> {
        let section = SectionHeaderBlock {
            endianness: Endianness::Big,
            options: vec![SectionHeaderOption::UserApplication(Cow::from(concat!(
                "xvs ",
                env!("CARGO_PKG_VERSION")
            )))],
            ..SectionHeaderBlock::default()
        };
        Ok(Self {
            writer: PcapNgWriter::with_section_header(Vec::new(), section).map_err(other)?,
            interfaces: BTreeMap::new(),
            snap_bytes,
        })
    }

    /// The whole blocks that were added since the last call.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.writer.get_mut())
    }

    /// Adds a packet.
    ///
    /// # Errors
    /// A packet of more than 4 GiB.
    pub fn packet(&mut self, packet: &CapturedPacket) -> io::Result<()> {
        let outs = packet.frames.iter().filter(|frame| frame.direction == Direction::Out).count();
        let mut out = 0;
        for frame in &packet.frames {
            out += usize::from(frame.direction == Direction::Out);
            self.frame(frame, comment(packet, frame.direction, out, outs))?;
        }
        Ok(())
    }

    fn frame(&mut self, frame: &CapturedFrame, comment: String) -> io::Result<()> {
        let interface = self.interface(&frame.interface)?;
        interface.frames += 1;
        interface.last = interface.last.max(frame.nanoseconds);
        if interface.frames == 1 {
            interface.first = frame.nanoseconds;
        }
        let number = interface.number;
        let mut options = vec![EnhancedPacketOption::Comment(comment.into())];
        options.extend(match frame.direction {
            Direction::In => Some(EnhancedPacketOption::Flags(1)),
            Direction::Out => Some(EnhancedPacketOption::Flags(2)),
            Direction::Before => None,
        });
        let block = EnhancedPacketBlock {
            interface_id: number,
            timestamp: Duration::from_nanos(frame.nanoseconds),
            original_len: frame.length,
            data: Cow::Borrowed(&frame.bytes),
            options,
        };
        self.writer.write_pcapng_block(block).map(|_| ()).map_err(other)
    }

    /// The interface with this name; described on first use.
    fn interface(&mut self, name: &str) -> io::Result<&mut Interface> {
        let number = self.interfaces.len() as u32;
        if !self.interfaces.contains_key(name) {
            let block = InterfaceDescriptionBlock {
                linktype: DataLink::ETHERNET,
                snaplen: self.snap_bytes,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(name)),
                    InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
                ],
            };
            self.writer.write_pcapng_block(block).map_err(other)?;
        }
        Ok(self.interfaces.entry(name.to_owned()).or_insert(Interface {
            number,
            frames: 0,
            first: 0,
            last: 0,
        }))
    }

    /// Adds the counts of captured and missed packets of each interface.
    ///
    /// # Errors
    /// As [`Self::packet`].
    pub fn statistics(&mut self, missed: &Missed) -> io::Result<()> {
        for name in missed.keys() {
            self.interface(name)?;
        }
        let mut all: Vec<_> = self.interfaces.clone().into_iter().collect();
        all.sort_by_key(|(_, interface)| interface.number);
        for (name, Interface { number, frames, first, last }) in all {
            let missed = missed.get(&name).copied().unwrap_or(0);
            let block = InterfaceStatisticsBlock {
                interface_id: number,
                timestamp: last,
                options: vec![
                    InterfaceStatisticsOption::IsbStartTime(first),
                    InterfaceStatisticsOption::IsbEndTime(last),
                    InterfaceStatisticsOption::IsbIfRecv(frames + missed),
                    InterfaceStatisticsOption::IsbIfDrop(missed),
                    InterfaceStatisticsOption::IsbUsrDeliv(frames),
                ],
            };
            self.writer.write_pcapng_block(block).map_err(other)?;
        }
        Ok(())
    }
}

/// The comment of a frame: the verdict of its packet, and which of the transmitted fragments this is.
fn comment(packet: &CapturedPacket, direction: Direction, out: usize, outs: usize) -> String {
    let verdict = explained(packet);
    match (direction, packet.verdict.as_str()) {
        (Direction::In, _) => format!("xvs: {verdict}"),
        (Direction::Before, _) => format!("xvs: {verdict} (it came in before)"),
        (Direction::Out, "transmit") if outs > 1 => format!("xvs: transmit: fragment {out} of {outs}"),
        (Direction::Out, "transmit") => "xvs: transmit".to_owned(),
        (Direction::Out, _) => {
            "xvs: an ICMP error of the director's own, because of the packet before".to_owned()
        }
    }
}

/// A verdict, its reason and a sentence that explains it.
pub fn explained(packet: &CapturedPacket) -> String {
    let why = match packet.verdict.as_str() {
        "pass" => "passed to the kernel, as if xvs were absent",
        "held" => "waits: a fragment for the rest of its datagram, another packet for its next hop",
        "consumed" => "used by xvs itself, and not forwarded",
        "drop" => {
            let reason = packet.reason.as_deref().unwrap_or_default();
            return format!("drop {reason}: {}", DropReason::named(reason).map_or("", DropReason::sentence));
        }
        other => return other.to_owned(),
    };
    format!("{}: {why}", packet.verdict)
}

fn other(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        error => io::Error::other(error),
    }
}
