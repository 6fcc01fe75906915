//! A port that maps VLANs and bonds to the interfaces below them, by the links in a snapshot.
//!
//! Exists for one burst, around the worker's port. A frame from an active member of a bond gets the bond as its link. A
//! frame with the tag of a known VLAN loses the tag and gets the VLAN as its link. A frame that is sent on a VLAN, or
//! returns from it to the kernel, gets the tag and leaves on the interface below. A frame for a bond leaves on the
//! active member that its flow's hash chooses: the frames of a flow stay in order. No stage therefore handles tags and
//! members, and a tag is kept, changed or removed as the links on either side require. A frame with an unknown tag, or
//! with two, stays unchanged and goes to the kernel. A frame from an inactive member gets that member as its link.
//! Priority bits are not kept. Cost: two bytes read for each frame, and 12 moved for each tag; with bonds, a look-up
//! for each received frame, and another read of the headers of each sent frame.

use std::time::Duration;

use xvs_proto::ethernet::{self, TAG_LEN};
use xvs_proto::{Fragment, HashSecret, LinkId};
use xvs_xdp::{Census, Frame};

use super::{Port, Received, Woken, packet_of};
use crate::egress::Egress;

/// A port, and the links of its tags.
pub struct Tagged<'a, P> {
    port: &'a mut P,
    egress: &'a Egress,
}

impl<'a, P: Port> Tagged<'a, P> {
    /// Wraps this port, with the tags of these links.
    pub fn new(port: &'a mut P, egress: &'a Egress) -> Self {
        Self { port, egress }
    }

    /// Returns the interface on which a frame for this link leaves, and the frame with the link's tag; for a link's own
    /// end, the own end of the interface. Returns the unchanged frame if it has no room for a tag, or the bond has no
    /// active member.
    fn lower(&self, link: LinkId, mut frame: Frame) -> Result<(LinkId, Frame), Frame> {
        let tag = self.egress.tag(link.wire());
        let below = tag.map_or(link.wire(), |(below, _)| below);
        let interface = match self.egress.members(below) {
            None => below,
            Some([]) => return Err(frame),
            Some([only]) => *only,
            Some(members) => members[place(&frame, members.len())],
        };
        if let Some((_, vlan)) = tag {
            if !frame.grow_front(TAG_LEN) {
                return Err(frame);
            }
            ethernet::push_tag(frame.bytes_mut(), vlan);
        }
        Ok((if link.is_own() { interface.own() } else { interface }, frame))
    }
}

/// The index of the member that carries the flow of an untagged frame. Fragments have no ports, so only their addresses
/// count.
fn place(frame: &Frame, members: usize) -> usize {
    let Some(packet) = packet_of(frame) else { return 0 };
    let mut flow = packet.flow;
    if !matches!(packet.fragment, Fragment::Whole) {
        flow.source.port = 0;
        flow.dest.port = 0;
    }
    (((flow.hash(&MEMBERS) >> 32) * members as u64) >> 32) as usize
}

/// The key of the hash that chooses members: a sender that finds it out can only choose a member.
const MEMBERS: HashSecret = HashSecret([0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d]);

impl<P: Port> Port for Tagged<'_, P> {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let before = burst.len();
        self.port.receive(burst);
        if self.egress.has_bonds() {
            burst[before..].iter_mut().for_each(|received| received.link = self.egress.above(received.link));
        }
        burst[before..].iter_mut().for_each(|received| untag(received, self.egress));
    }

    #[inline]
    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        // Handled separately, so that a frame without a tag is not moved.
        if !self.egress.is_layered(link.wire()) {
            return self.port.transmit(link, frame);
        }
        let (link, frame) = self.lower(link, frame)?;
        self.port.transmit(link, frame)
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let (link, frame) = self.lower(link, frame)?;
        self.port.pass_to_kernel(link, frame)
    }

    fn allocate(&mut self) -> Option<Frame> {
        self.port.allocate()
    }

    fn recycle(&mut self, frame: Frame) {
        self.port.recycle(frame);
    }

    fn flush(&mut self) {
        self.port.flush();
    }

    fn wait(&mut self, at_most: Option<Duration>) -> Woken {
        self.port.wait(at_most)
    }

    fn census(&self) -> Census {
        self.port.census()
    }
}

/// Removes the tag of a received frame and sets its link to the VLAN, if that is a known link.
#[inline]
fn untag(received: &mut Received, egress: &Egress) {
    let Some(vlan) = ethernet::vlan(received.frame.bytes()) else { return };
    if let Some(link) = egress.untagged(received.link.wire(), vlan) {
        received.link = if received.link.is_own() { link.own() } else { link };
        ethernet::pop_tag(received.frame.bytes_mut());
        received.frame.shrink_front(TAG_LEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::{Bytes, MemoryPort};
    use xvs_proto::network::{LinkKind, Network};
    use xvs_xdp::BURST;

    const WAN: LinkId = LinkId(0);
    const FIVE: LinkId = LinkId(1);

    /// An interface, and VLAN 5 over it.
    fn links() -> Egress {
        let mut network = Network::default();
        for name in ["wan", "five"] {
            network.add_link(name, "02:00:00:00:01:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.make_vlan("five", 5, "wan").unwrap();
        Egress::build(&network)
    }

    /// A frame with these tags, each a type and its control information, before an IPv4 packet.
    fn frame(tags: &[[u8; 4]]) -> Vec<u8> {
        [&(0..12).collect::<Vec<u8>>()[..], &tags.concat(), &[0x08, 0x00, 0x45, 0xa5]].concat()
    }

    /// The link and bytes of a frame that this interface receives, and the frame that goes back to the kernel.
    fn received_by(egress: &Egress, interface: LinkId, bytes: &[u8]) -> (LinkId, Vec<u8>, Bytes) {
        let mut port = MemoryPort::with_links(3);
        assert!(port.inject(interface, bytes));
        let mut burst = Vec::with_capacity(BURST);
        let mut tagged = Tagged::new(&mut port, egress);
        tagged.receive(&mut burst);
        let Received { link, frame } = burst.remove(0);
        let received = frame.bytes().to_vec();
        tagged.pass_to_kernel(link, frame).unwrap();
        (link, received, port.take_passed().remove(0))
    }

    #[test]
    fn a_frame_of_a_known_vlan_is_received_untagged_and_goes_back_to_the_kernel_unchanged() {
        let tagged = frame(&[[0x81, 0, 0, 5]]);
        let received = received_by(&links(), WAN, &tagged);
        assert_eq!(received, (FIVE, frame(&[]), Bytes { link: WAN, frame: tagged }));
    }

    #[test]
    fn frames_with_unknown_or_double_or_8021ad_tags_are_unchanged() {
        for tags in [&[[0x81, 0, 0, 6]][..], &[[0x81, 0, 0, 5], [0x81, 0, 0, 5]], &[[0x88, 0xa8, 0, 5]], &[]]
        {
            let bytes = frame(tags);
            let received = received_by(&links(), WAN, &bytes);
            assert_eq!(received, (WAN, bytes.clone(), Bytes { link: WAN, frame: bytes }));
        }
    }

    #[test]
    fn a_tag_that_carries_only_a_priority_is_removed() {
        let (link, received, _) = received_by(&links(), WAN, &frame(&[[0x81, 0, 0xe0, 0]]));
        assert_eq!((link, received), (WAN, frame(&[])));
    }

    #[test]
    fn a_frame_sent_by_a_vlan_leaves_tagged_by_the_interface_below() {
        let (mut port, egress) = (MemoryPort::with_links(1), links());
        let mut tagged = Tagged::new(&mut port, &egress);
        let mut outgoing = tagged.allocate().unwrap();
        assert!(outgoing.resize(frame(&[]).len()));
        outgoing.bytes_mut().copy_from_slice(&frame(&[]));
        tagged.transmit(FIVE, outgoing).unwrap();
        assert_eq!(port.take_transmitted(), [Bytes { link: WAN, frame: frame(&[[0x81, 0, 0, 5]]) }]);
    }

    const BOND: LinkId = LinkId(3);
    const OVER_BOND: LinkId = LinkId(4);

    /// Three members, of which these are active, their bond, and VLAN 5 on the bond.
    fn bonded(active: [bool; 3]) -> Egress {
        let mut network = Network::default();
        for name in ["eth0", "eth1", "eth2", "bond0", "five"] {
            network.add_link(name, "02:00:00:00:01:01".parse().unwrap(), &[], 1500).unwrap();
        }
        network.make_vlan("five", 5, "bond0").unwrap();
        network.links[3].kind = LinkKind::Bond;
        let bond = network.links[3].ifindex;
        for (member, active) in network.links.iter_mut().zip(active) {
            (member.master, member.active) = (Some(bond), active);
        }
        Egress::build(&network)
    }

    /// A UDP packet from this port, or a fragment of one.
    fn datagram(port: u16, is_fragment: bool) -> Vec<u8> {
        let mut bytes = b"\x02\0\0\0\x01\x01\x02\0\0\0\x02\x02\x08\0\
            \x45\0\0\x1c\0\0\0\0\x40\x11\xf6\xc5\xc0\0\x02\x01\xc0\0\x02\x0a\
            \0\0\0\x35\0\x08\0\0"
            .to_vec();
        bytes[34..36].copy_from_slice(&port.to_be_bytes());
        if is_fragment {
            // More fragments follow; the header's checksum.
            (bytes[20], bytes[24]) = (0x20, 0xd6);
        }
        bytes
    }

    /// A datagram of the same flow that fills several frames.
    fn large_datagram(port: u16) -> Vec<u8> {
        let addresses = ([192, 0, 2, 1], [192, 0, 2, 10]);
        let ends = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 2, 2], [2, 0, 0, 0, 1, 1]);
        let mut bytes = Vec::new();
        ends.ipv4(addresses.0, addresses.1, 64).udp(port, 53).write(&mut bytes, &[0; 8000]).unwrap();
        bytes
    }

    /// The interfaces on which these frames leave, if they are sent on this link.
    fn sent(egress: &Egress, link: LinkId, frames: &[Vec<u8>]) -> Vec<Bytes> {
        let mut port = MemoryPort::with_links(3);
        let mut tagged = Tagged::new(&mut port, egress);
        for bytes in frames {
            let mut frame = tagged.allocate_packet(bytes.len()).unwrap();
            frame.write(|at, part| part.copy_from_slice(&bytes[at..][..part.len()]));
            if let Err(frame) = tagged.transmit(link, frame) {
                let kept: Vec<_> = frame.parts().flatten().copied().collect();
                assert_eq!(kept, *bytes, "a frame that is not sent is unchanged");
                tagged.recycle(frame);
            }
        }
        port.take_transmitted()
    }

    #[test]
    fn frames_of_active_members_are_the_bonds_and_those_of_an_inactive_one_its_own() {
        let egress = bonded([false, true, false]);
        let (plain, unknown, of_vlan) = (frame(&[]), frame(&[[0x81, 0, 0, 6]]), frame(&[[0x81, 0, 0, 5]]));
        for (interface, sent, link, received) in [
            (LinkId(1), &plain, BOND, &plain),
            (LinkId(1), &unknown, BOND, &unknown),
            (LinkId(1), &of_vlan, OVER_BOND, &plain),
            (LinkId(0), &plain, LinkId(0), &plain),
            (LinkId(0), &unknown, LinkId(0), &unknown),
        ] {
            let back = Bytes { link: interface, frame: sent.clone() };
            assert_eq!(received_by(&egress, interface, sent), (link, received.clone(), back));
        }
    }

    #[test]
    fn a_bond_with_one_active_member_sends_by_it_and_one_without_sends_nothing() {
        let frames: Vec<_> = (1000..1064).map(|port| datagram(port, false)).collect();
        for (active, by) in [([true, false, false], 0), ([false, false, true], 2)] {
            let sent = sent(&bonded(active), BOND, &frames);
            assert_eq!(sent.len(), 64);
            assert!(sent.iter().all(|bytes| bytes.link == LinkId(by)));
        }
        assert_eq!(sent(&bonded([false; 3]), BOND, &frames), []);
        assert_eq!(sent(&bonded([false; 3]), OVER_BOND, &frames), []);
    }

    #[test]
    fn flows_are_spread_over_active_members_a_flow_stays_with_one_and_so_do_fragments() {
        let egress = bonded([true, false, true]);
        let flows: Vec<_> = (1000..1064).map(|port| datagram(port, false)).collect();
        let (first, again) = (sent(&egress, BOND, &flows), sent(&egress, BOND, &flows));
        assert_eq!(first, again);
        let by = |link| first.iter().filter(|bytes| bytes.link == link).count();
        assert_eq!((by(LinkId(1)), by(LinkId(0)) + by(LinkId(2))), (0, 64));
        assert!(by(LinkId(0)) > 16 && by(LinkId(2)) > 16, "{} and {}", by(LinkId(0)), by(LinkId(2)));
        let links = |sent: &[Bytes]| sent.iter().map(|bytes| bytes.link).collect::<Vec<_>>();
        let of_vlan = sent(&egress, OVER_BOND, &flows);
        assert_eq!(links(&of_vlan), links(&first));
        assert!(of_vlan.iter().all(|bytes| ethernet::vlan(&bytes.frame) == Some(5)));
        let in_parts: Vec<_> = (1000..1064).map(large_datagram).collect();
        assert_eq!(links(&sent(&egress, BOND, &in_parts)), links(&first), "the length does not count");
        let fragments: Vec<_> = (1000..1064).map(|port| datagram(port, true)).collect();
        let of_fragments = links(&sent(&egress, BOND, &fragments));
        assert!(of_fragments.iter().all(|link| *link == of_fragments[0]), "ports of fragments do not count");
    }
}
