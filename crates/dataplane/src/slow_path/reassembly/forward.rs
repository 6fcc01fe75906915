//! What becomes of fragments: they wait, and what they are together takes the way of any packet.
//!
//! Runs for each fragment, at the end of a burst. A whole datagram goes to its connection once, is counted once with
//! all its bytes, and leaves in fragments no larger than the largest in which it came; its own fragments are consumed
//! then. If it is not a service's, the kernel gets them as they came. Not here: which fragments belong together
//! (`reassembly.rs`), how a packet is cut (`pieces.rs`).

use xvs_proto::LinkId;
use xvs_proto::{Family, Fragment, Packet, Parsed, ethernet, ipv6, parse};

use super::{Datagram, Gathered};
use crate::burst::context::Context;
use crate::burst::dispatch::Dispatch;
use crate::burst::flows::Flows;
use crate::burst::framed_packet::FramedPacket;
use crate::port::{Port, Received};
use crate::slow_path::icmp_reply::IcmpError;
use crate::verdict::{DropReason, Verdict};

/// How a packet is decided, from its look-up to its verdict.
pub(crate) type Process = fn(&mut Flows, FramedPacket<'_>, Context<'_>) -> Verdict;

impl Dispatch<'_> {
    /// Takes a fragment to where it belongs. The verdict is that on its datagram, if it was the last one missing.
    pub(crate) fn fragment(
        &mut self,
        received: Received,
        packet: &Packet,
        process: Process,
        port: &mut impl Port,
    ) {
        self.drop_overdue(port);
        let verdict = match self.reassembly.take(received, packet, self.at.now) {
            Gathered::Waits => Verdict::Held,
            Gathered::HandedOver => Verdict::Consumed,
            Gathered::Refused(reason) => Verdict::Drop(reason),
            Gathered::Whole(datagram) => self.forward(datagram, process, port),
        };
        let verdict = match verdict {
            Verdict::Transmit(_) => {
                self.dispose(Verdict::Consumed, port);
                verdict
            }
            verdict => self.dispose(verdict, port).unwrap_or(verdict),
        };
        self.transmitter.counters().held.set(self.reassembly.held() as u64);
        self.transmitter.record(verdict, port);
    }

    /// Drops those whose time is over, and the oldest if there is no room for one more.
    pub(crate) fn drop_overdue(&mut self, port: &mut impl Port) {
        while let Some(reason) = self.reassembly.release_overdue(self.at.now) {
            self.send_icmp_error(reason, port);
            self.dispose(Verdict::Drop(reason), port);
            self.transmitter.counters().held.set(self.reassembly.held() as u64);
        }
    }

    /// Tells the sender of an incomplete datagram, if its first fragment is here (RFC 792).
    fn send_icmp_error(&mut self, reason: DropReason, port: &mut impl Port) {
        for received in self.reassembly.released().iter() {
            if let Ok(Parsed::Ip(packet)) = parse(received.frame.bytes())
                && packet.fragment == Fragment::First
                && let Some(error) =
                    IcmpError::of(&packet, &received.frame, received.link, Verdict::Drop(reason))
            {
                self.transmitter.send_icmp_error(&error, self.at, port);
            }
        }
    }

    /// Carries a verdict out on the fragments that wait no longer; the one on the last of them.
    fn dispose(&mut self, verdict: Verdict, port: &mut impl Port) -> Option<Verdict> {
        let released = self.reassembly.released().drain(..);
        released.map(|received| self.transmitter.settle(received, verdict, port)).last()
    }

    fn forward(&mut self, mut datagram: Datagram, process: Process, port: &mut impl Port) -> Verdict {
        let verdict = match parse(datagram.frame.bytes()) {
            Ok(Parsed::Ip(packet)) => {
                let longest_fragment = (packet.family() == Family::V6).then_some(datagram.largest);
                let length = packet.length();
                let packet = Packet { longest_fragment, ..packet };
                match self.decide(&mut datagram, &packet, process, port) {
                    Verdict::Transmit(link) => self.send(&datagram, length, link, usize::MAX, port),
                    Verdict::Fragment { link, mtu } => self.send(&datagram, length, link, mtu as usize, port),
                    verdict => verdict,
                }
            }
            Ok(Parsed::Other) => Verdict::PassToKernel,
            Err(malformed) => Verdict::Drop(DropReason::Malformed(malformed)),
        };
        self.reassembly.put_back(datagram);
        verdict
    }

    /// Sends a datagram that had so many bytes when it came, in fragments as large as it came in, where its way takes
    /// them. An outer packet of IPv6 is cut into no less than what every way takes: with its long headers small
    /// fragments would become many more, or have no room.
    fn send(
        &mut self,
        datagram: &Datagram,
        length: usize,
        link: LinkId,
        mtu: usize,
        port: &mut impl Port,
    ) -> Verdict {
        let bytes = datagram.frame.bytes();
        let is_outer = bytes.len() > ethernet::HEADER_LEN + length;
        let is_v6 = bytes[ethernet::HEADER_LEN] >> 4 == 6;
        let least = if is_outer && is_v6 { ipv6::MIN_MTU as usize } else { 0 };
        self.transmitter.send_copies(bytes, link, datagram.largest.max(least).min(mtu), port)
    }

    /// Finds or makes the datagram's connection and edits it on its way; its sender is told of a drop.
    fn decide(
        &mut self,
        datagram: &mut Datagram,
        packet: &Packet,
        process: Process,
        port: &mut impl Port,
    ) -> Verdict {
        let hash = self.flows.hash(&packet.connection_key());
        let whole = FramedPacket { frame: &mut datagram.frame, link: datagram.link, packet, hash };
        let verdict = process(self.flows, whole, self.at);
        if let Some(error) = IcmpError::of(packet, &datagram.frame, datagram.link, verdict) {
            self.reply(error, hash, port);
        }
        verdict
    }
}
