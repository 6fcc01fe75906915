//! Forwarding of fragments: they wait, and their whole datagram is processed like any packet.
//!
//! Runs for each fragment, at the end of a burst. A whole datagram is processed once for its connection, is counted
//! once with all its bytes, and leaves in fragments no larger than the largest that was received. The received
//! fragments are then consumed. If the datagram belongs to no service, the kernel gets the fragments as they were
//! received. `mod.rs` decides which fragments belong together, and `fragmentation.rs` how a packet is divided.

use xvs_proto::{Family, Fragment, LinkId, Packet, Parsed, ethernet, ipv6, parse};

use super::{Datagram, Gathered};
use crate::burst::dispatch::Dispatch;
use crate::general_path::icmp_originate::IcmpError;
use crate::port::{Port, Received};
use crate::verdict::{DropReason, Verdict};

impl Datagram {
    /// Parses the datagram's packet. The error is the datagram's verdict.
    pub(crate) fn read(&self) -> Result<Packet, Verdict> {
        match parse(self.frame.bytes()) {
            Ok(Parsed::Ip(packet)) => Ok(Packet {
                longest_fragment: (packet.family() == Family::V6).then_some(self.largest),
                ..packet
            }),
            Ok(Parsed::Other) => Err(Verdict::PassToKernel),
            Err(malformed) => Err(Verdict::Drop(DropReason::Malformed(malformed))),
        }
    }
}

impl Dispatch<'_> {
    /// Accepts a fragment. Returns the datagram that it completes, if any.
    pub(crate) fn fragment(
        &mut self,
        received: Received,
        packet: &Packet,
        port: &mut impl Port,
    ) -> Option<Datagram> {
        self.drop_overdue(port);
        let verdict = match self.reassembly.take(received, packet, self.cx.now) {
            Gathered::Waits => Verdict::Held,
            Gathered::HandedOver => Verdict::Consumed,
            Gathered::Refused(reason) => Verdict::Drop(reason),
            Gathered::Whole(datagram) => return Some(datagram),
        };
        self.settle(verdict, port);
        None
    }

    /// Sends a datagram if that is the verdict on it. Returns the final verdict.
    pub(crate) fn datagram(
        &mut self,
        datagram: &Datagram,
        packet: &Packet,
        hash: u64,
        verdict: Verdict,
        port: &mut impl Port,
    ) -> Verdict {
        // If it is dropped, its sender gets an ICMP error.
        if let Some(error) = IcmpError::of(packet, &datagram.frame, datagram.link, verdict) {
            self.reply(error, hash, port);
        }
        match verdict {
            Verdict::Transmit(link) => self.send(datagram, packet.length(), link, usize::MAX, port),
            Verdict::Fragment { link, mtu } => self.send(datagram, packet.length(), link, mtu as usize, port),
            Verdict::Waiting(next_hop) => {
                // There is one frame for datagrams, and the next datagram needs it.
                self.transmitter.resolve(next_hop);
                Verdict::Drop(DropReason::NoNeighbour)
            }
            verdict => verdict,
        }
    }

    /// Ends a datagram with its verdict, which is also recorded as the verdict on its last fragment.
    pub(crate) fn end_datagram(&mut self, datagram: Datagram, verdict: Verdict, port: &mut impl Port) {
        self.reassembly.put_back(datagram.frame);
        self.settle(verdict, port);
    }

    /// Carries out a verdict on the released fragments, and records it.
    fn settle(&mut self, verdict: Verdict, port: &mut impl Port) {
        let verdict = match verdict {
            Verdict::Transmit(_) => {
                self.dispose(Verdict::Consumed, port);
                verdict
            }
            verdict => self.dispose(verdict, port).unwrap_or(verdict),
        };
        self.transmitter.set_fragments_held(self.reassembly.held());
        self.transmitter.record(verdict, port);
    }

    /// Drops datagrams that have timed out, and the oldest one if there is no room for another fragment.
    pub(crate) fn drop_overdue(&mut self, port: &mut impl Port) {
        while let Some(reason) = self.reassembly.release_overdue(self.cx.now) {
            self.send_icmp_error(reason, port);
            self.dispose(Verdict::Drop(reason), port);
            self.transmitter.set_fragments_held(self.reassembly.held());
        }
    }

    /// Sends an ICMP error to the sender of an incomplete datagram, if its first fragment was received (RFC 792).
    fn send_icmp_error(&mut self, reason: DropReason, port: &mut impl Port) {
        for number in 0..self.reassembly.released().len() {
            let Some(Received { link, frame }) = self.reassembly.join_released(number) else { continue };
            if let Ok(Parsed::Ip(packet)) = parse(frame.bytes())
                && packet.fragment == Fragment::First
                && let Some(error) = IcmpError::of(&packet, &frame, link, Verdict::Drop(reason))
            {
                self.transmitter.send_icmp_error(&error, self.cx, port);
            }
            self.reassembly.put_back(frame);
        }
    }

    /// Carries out a verdict on the released fragments. Returns the final verdict on the last of them.
    fn dispose(&mut self, verdict: Verdict, port: &mut impl Port) -> Option<Verdict> {
        self.reassembly
            .released()
            .drain(..)
            .map(|received| self.transmitter.settle(received, verdict, port))
            .last()
    }

    /// Sends a datagram, which had `length` bytes when it was received, in fragments as large as the largest received
    /// one, or smaller if the path MTU requires it. Fragments of an outer IPv6 packet are at least as long as the
    /// minimum MTU of IPv6: because of its long headers, smaller fragments would be far more numerous, or contain no
    /// data.
    fn send(
        &mut self,
        datagram: &Datagram,
        length: usize,
        link: LinkId,
        mtu: usize,
        port: &mut impl Port,
    ) -> Verdict {
        let bytes = datagram.frame.bytes();
        let is_outer_v6 =
            bytes.len() > ethernet::HEADER_LEN + length && bytes[ethernet::HEADER_LEN] >> 4 == 6;
        let least = if is_outer_v6 { ipv6::MIN_MTU as usize } else { 0 };
        self.transmitter.send_copies(&datagram.frame, link, datagram.largest.max(least).min(mtu), port)
    }
}
