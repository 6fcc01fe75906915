//! A port that removes the VLAN tags of received frames and adds them to sent ones, by the links of a snapshot.
//!
//! Lives for one burst, around the worker's port. A frame with the tag of a known VLAN is received without the tag,
//! from the VLAN's own link. A frame that is sent by such a link, or goes back to the kernel from it, gets the tag and
//! leaves by the interface below. So no stage handles tags, and a tag is kept, changed or removed as the links on
//! either side require. A frame with an unknown tag, or with two, stays unchanged: it goes to the kernel. Priority bits
//! are not kept. Cost: two bytes read for each frame, and 12 moved for each tag.

use std::time::Duration;

use xvs_proto::LinkId;
use xvs_proto::ethernet::{self, TAG_LEN};
use xvs_xdp::{Census, Frame};

use super::{Port, Received, Woken};
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

    /// Adds the tag of this link, and returns the interface by which the frame leaves, or its own end for a VLAN's.
    /// Returns the unchanged frame if it has no room for a tag.
    fn tag(&self, link: LinkId, mut frame: Frame) -> Result<(LinkId, Frame), Frame> {
        let Some((over, vlan)) = self.egress.tag(link.wire()) else { return Ok((link, frame)) };
        if !frame.grow_front(TAG_LEN) {
            return Err(frame);
        }
        ethernet::push_tag(frame.bytes_mut(), vlan);
        Ok((if link.is_own() { over.own() } else { over }, frame))
    }
}

/// Removes the tag of a received frame and sets its link to the VLAN, if that is a link here.
#[inline]
fn untag(received: &mut Received, egress: &Egress) {
    let Some(vlan) = ethernet::vlan(received.frame.bytes()) else { return };
    if let Some(link) = egress.untagged(received.link.wire(), vlan) {
        received.link = if received.link.is_own() { link.own() } else { link };
        ethernet::pop_tag(received.frame.bytes_mut());
        received.frame.shrink_front(TAG_LEN);
    }
}

impl<P: Port> Port for Tagged<'_, P> {
    fn receive(&mut self, burst: &mut Vec<Received>) {
        let before = burst.len();
        self.port.receive(burst);
        burst[before..].iter_mut().for_each(|received| untag(received, self.egress));
    }

    #[inline]
    fn transmit(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        // Apart, so that a frame without a tag is not moved.
        match self.egress.tag(link.wire()) {
            None => self.port.transmit(link, frame),
            Some(_) => {
                let (link, frame) = self.tag(link, frame)?;
                self.port.transmit(link, frame)
            }
        }
    }

    fn pass_to_kernel(&mut self, link: LinkId, frame: Frame) -> Result<(), Frame> {
        let (link, frame) = self.tag(link, frame)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::memory::{Bytes, MemoryPort};
    use xvs_proto::network::Network;
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

    /// The link and bytes of a received frame, and the frame that the kernel gets if it is passed.
    fn passed(bytes: &[u8]) -> (LinkId, Vec<u8>, Bytes) {
        let (mut port, egress) = (MemoryPort::with_links(1), links());
        assert!(port.inject(WAN, bytes));
        let mut burst = Vec::with_capacity(BURST);
        let mut tagged = Tagged::new(&mut port, &egress);
        tagged.receive(&mut burst);
        let Received { link, frame } = burst.remove(0);
        let received = frame.bytes().to_vec();
        tagged.pass_to_kernel(link, frame).unwrap();
        (link, received, port.take_passed().remove(0))
    }

    #[test]
    fn a_frame_of_a_known_vlan_is_received_untagged_and_goes_back_to_the_kernel_unchanged() {
        let tagged = frame(&[[0x81, 0, 0, 5]]);
        let (link, received, back) = passed(&tagged);
        assert_eq!((link, received), (FIVE, frame(&[])));
        assert_eq!(back, Bytes { link: WAN, frame: tagged });
    }

    #[test]
    fn frames_with_unknown_or_double_or_8021ad_tags_are_unchanged() {
        for tags in [&[[0x81, 0, 0, 6]][..], &[[0x81, 0, 0, 5], [0x81, 0, 0, 5]], &[[0x88, 0xa8, 0, 5]], &[]]
        {
            let bytes = frame(tags);
            let (link, received, back) = passed(&bytes);
            assert_eq!((link, received), (WAN, bytes.clone()));
            assert_eq!(back, Bytes { link: WAN, frame: bytes });
        }
    }

    #[test]
    fn a_tag_that_carries_only_a_priority_is_removed() {
        let (link, received, _) = passed(&frame(&[[0x81, 0, 0xe0, 0]]));
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
}
