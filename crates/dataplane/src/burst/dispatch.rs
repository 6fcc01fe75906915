//! Dispatch: the last stage of a burst, which carries out each frame's verdict.
//!
//! Runs for each frame after the whole burst is decided. Packets of flows already have their verdicts. ICMP errors and
//! fragments (`general_path/reassembly/forward.rs`), which are rare, are processed only here. `transmit.rs` sends and
//! counts.

use xvs_proto::Packet;
use xvs_xdp::Frame;

use super::classify::Class;
use super::context::{Context, FramedPacket};
use super::flows::Flows;
use super::record::{Decided, Step};
use super::transmit::Transmitter;
use crate::conn::ConnId;
use crate::general_path::icmp_error::{self, ErrorAction};
use crate::general_path::icmp_originate::IcmpError;
use crate::general_path::reassembly::{Datagram, Reassembly};
use crate::general_path::syn_proxy::{self, Written};
use crate::general_path::{no_destination, vip_probe};
use crate::port::{Port, Received, write_back};
use crate::verdict::{DropReason, Verdict};

/// The stages that dispatch uses.
pub(crate) struct Dispatch<'a> {
    /// Fragments of incomplete datagrams.
    pub(crate) reassembly: &'a mut Reassembly,
    /// The connections.
    pub(crate) flows: &'a mut Flows,
    /// Transmission.
    pub(crate) transmitter: &'a mut Transmitter,
    /// The snapshot and the time.
    pub(crate) cx: Context<'a>,
}

impl Dispatch<'_> {
    /// Carries out the decision on a frame. If the frame is a fragment that completes a datagram, returns the datagram.
    #[inline]
    pub(crate) fn frame(
        &mut self,
        received: Received,
        decided: Decided<'_>,
        port: &mut impl Port,
    ) -> Option<Datagram> {
        let Step { class, hash, verdict } = match decided {
            Decided::Forwarded(link) => {
                self.transmitter.forward(received, link, port);
                return None;
            }
            Decided::General(step) => step,
        };
        // Mutable only from here on: otherwise each forwarded frame is copied in pieces and read back whole, 3 ns.
        let mut received = received;
        if let Some(surplus) = received.frame.split_surplus() {
            port.recycle(surplus);
        }
        let verdict = match class {
            // The sender gets no ICMP error.
            Class::Decided(verdict) => *verdict,
            Class::Flow(packet) => self.packet(&received, packet, *hash, *verdict, port),
            Class::Error(packet) => self.error(&mut received, packet, port),
            Class::Fragment(packet) => return self.fragment(received, packet, port),
        };
        self.transmitter.carry_out(received, verdict, port);
        None
    }

    /// Sends an ICMP error to the sender of a packet whose verdict requires one. Returns the verdict.
    fn packet(
        &mut self,
        received: &Received,
        packet: &Packet,
        hash: u64,
        verdict: Verdict,
        port: &mut impl Port,
    ) -> Verdict {
        if let Some(error) = IcmpError::of(packet, &received.frame, received.link, verdict) {
            self.reply(error, hash, port);
        }
        verdict
    }

    /// Processes an ICMP error about another packet.
    fn error(&mut self, received: &mut Received, packet: &Packet, port: &mut impl Port) -> Verdict {
        let Received { link, frame } = received;
        if let Some(whole) = frame.is_chain().then(|| self.reassembly.join(frame)).flatten() {
            let mut joined = Received { link: *link, frame: whole };
            let verdict = self.error(&mut joined, packet, port);
            let fits = write_back(&joined.frame, frame);
            self.reassembly.put_back(joined.frame);
            return if fits { verdict } else { Verdict::Drop(DropReason::NoHeadroom) };
        }
        let mut p = FramedPacket { frame, link: *link, packet, hash: 0, is_reassembled: false };
        match icmp_error::process(self.flows, &mut p, self.cx) {
            ErrorAction::Verdict(verdict) => verdict,
            ErrorAction::Relay(relay) => {
                let error = relay.icmp_error(p.frame, p.link);
                if let Some(bytes) = self.transmitter.send_icmp_error(&error, self.cx, port) {
                    icmp_error::count_relay(self.flows, &relay, bytes, self.cx);
                }
                Verdict::Consumed
            }
        }
    }

    /// Sends the director's own packets to the ends of connections.
    pub(crate) fn answer(&mut self, port: &mut impl Port) {
        for answer in self.flows.answers.drain(..) {
            self.transmitter.answer(&answer, self.cx.snapshot, port);
        }
    }

    /// The client's SYN of the next connection whose destination has not answered it, to be sent again.
    pub(crate) fn next_unanswered_syn(&mut self, port: &mut impl Port) -> Option<(ConnId, Frame, Written)> {
        while let Some(id) = self.flows.unanswered_syns.pop() {
            let Some(mut frame) = port.allocate() else {
                // An entry may be reused after the burst.
                self.flows.unanswered_syns.clear();
                return None;
            };
            match syn_proxy::syn(self.flows, &mut frame, id) {
                Some(syn) => return Some((id, frame, syn)),
                None => self.transmitter.carry_out_made(frame, Verdict::Consumed, port),
            }
        }
        None
    }

    /// Sends the packets of due probes, including those that became due through replies in this burst.
    pub(crate) fn probe(&mut self, port: &mut impl Port) {
        if let Some(probes) = &self.cx.snapshot.vip_probes {
            vip_probe::send(probes, self.flows, self.transmitter, self.cx, port);
        }
    }

    /// Sends an ICMP error to the sender of a dropped packet, if one is due.
    pub(crate) fn reply(&mut self, error: IcmpError<'_>, hash: u64, port: &mut impl Port) {
        let connection = self.flows.find_request(error.packet, hash);
        if let Some(error) = no_destination::admit(self.flows, error, connection)
            && let Some(bytes) = self.transmitter.send_icmp_error(&error, self.cx, port)
        {
            self.flows.count_icmp_error(connection, bytes, self.cx.snapshot);
        }
    }
}

/// Drops all waiting fragments and packets, for a worker that ends.
pub(crate) fn abandon(reassembly: &mut Reassembly, transmitter: &mut Transmitter, port: &mut impl Port) {
    while reassembly.abandon() {
        for received in reassembly.released().drain(..) {
            transmitter.settle(received, Verdict::Drop(DropReason::FragmentTimeout), port);
        }
    }
    transmitter.set_fragments_held(0);
    transmitter.abandon(port);
}
