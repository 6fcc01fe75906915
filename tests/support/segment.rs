//! TCP segments, as their senders write them and their receivers read them.

use std::net::IpAddr;

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TcpSlice, TransportSlice};

use crate::frames::Mac;

/// A segment, as its sender writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// SYN.
    pub syn: bool,
    /// ACK, with the number.
    pub ack: Option<u32>,
    /// RST.
    pub rst: bool,
    /// The number of the first byte.
    pub sequence: u32,
    /// The options.
    pub options: Vec<TcpOptionElement>,
    /// The data.
    pub data: Vec<u8>,
}

impl Segment {
    /// The frame that carries it between these ends and link addresses.
    ///
    /// # Panics
    /// If the ends are of two families, or the options do not fit.
    pub fn frame(&self, from: (IpAddr, u16), to: (IpAddr, u16), macs: (Mac, Mac)) -> Vec<u8> {
        let link = PacketBuilder::ethernet2(macs.0, macs.1);
        let network = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("one family"),
        };
        let mut tcp = network.tcp(from.1, to.1, self.sequence, 64240);
        if self.syn {
            tcp = tcp.syn();
        }
        if self.rst {
            tcp = tcp.rst();
        }
        if let Some(number) = self.ack {
            tcp = tcp.ack(number);
        }
        let tcp = tcp.options(&self.options).expect("the options fit");
        let mut frame = Vec::new();
        tcp.write(&mut frame, &self.data).expect("a vector takes all");
        frame
    }

    /// The segment in a frame, which must have a valid checksum and be of these ends.
    ///
    /// # Panics
    /// If it is not so.
    pub fn between(frame: &[u8], from: (IpAddr, u16), to: (IpAddr, u16)) -> Self {
        let packet = SlicedPacket::from_ethernet(frame).expect("a frame");
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("TCP") };
        let header = tcp.to_header();
        let sum = match (from.0, to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                header.calc_checksum_ipv4_raw(from.octets(), to.octets(), tcp.payload())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                header.calc_checksum_ipv6_raw(from.octets(), to.octets(), tcp.payload())
            }
            _ => panic!("one family"),
        };
        assert_eq!(Ok(tcp.checksum()), sum, "{from:?} to {to:?}");
        assert_eq!((tcp.source_port(), tcp.destination_port()), (from.1, to.1));
        Self::of(tcp)
    }

    fn of(tcp: &TcpSlice<'_>) -> Self {
        Self {
            syn: tcp.syn(),
            ack: tcp.ack().then(|| tcp.acknowledgment_number()),
            rst: tcp.rst(),
            sequence: tcp.sequence_number(),
            options: tcp.options_iterator().map(|option| option.expect("an option that is read")).collect(),
            data: tcp.payload().to_vec(),
        }
    }
}
