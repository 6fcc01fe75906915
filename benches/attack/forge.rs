//! The forged packets of the suite, as many a second as wanted. Not here: how they are made (`forge.bpf.c`).

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;
use xvs::cluster::virtual_endpoint;
use xvs::frames::{ACK, Complaint, Datagram, Mac, SYN, Transport, ethernet, resum};
use xvs_xdp::bpf::{Object, ObjectFile, run_live};
use xvs_xdp::device::Device;

/// The network of the sources; the last three bytes are random.
pub(crate) const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
/// The client, whose connections ICMP errors are about.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);

/// A kind of forged packets, to a port of the VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP with these control bits.
    Tcp(u8),
    Udp,
    /// First fragments of UDP datagrams that are never whole.
    Fragment,
    /// Errors about replies from the port: host unreachable.
    IcmpError,
}

impl Kind {
    pub(crate) const SYN: Self = Self::Tcp(SYN);
    pub(crate) const SYN_ACK: Self = Self::Tcp(SYN | ACK);
    pub(crate) const ACK: Self = Self::Tcp(ACK);

    /// The packet without its random parts, and their places in the frame: `sum_at`, `port_at`, `number_at`,
    /// `sums_source` of `forge.bpf.c`.
    fn template(self, port: u16) -> (Vec<u8>, [u32; 4]) {
        let (source, dest) = (SocketAddrV4::new(SOURCES, 0), virtual_endpoint(port));
        let packet = |transport| Datagram::new(transport, source.into(), dest.into()).packet();
        match self {
            Self::Tcp(flags) => {
                let mut packet = packet(Transport::Tcp(flags));
                // Its sequence number, which the program replaces.
                let number = [packet[24], packet[25], packet[26], packet[27]];
                packet[24..28].fill(0);
                let sum = u16::from_be_bytes([packet[36], packet[37]]);
                let sum = number.chunks(2).fold(u32::from(!sum), |sum, word| {
                    sum + u32::from(!u16::from_be_bytes([word[0], word[1]]))
                });
                let sum = (sum & 0xffff) + (sum >> 16);
                let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
                packet[36..38].copy_from_slice(&sum.to_be_bytes());
                (packet, [14 + 36, 14 + 20, 14 + 24, 1])
            }
            Self::Udp => (packet(Transport::UdpUnsummed), [0, 14 + 20, 0, 0]),
            Self::Fragment => {
                let datagram = Datagram::new(Transport::UdpUnsummed, source.into(), dest.into());
                let mut packet = datagram.carrying(48).packet();
                packet[6] |= 0x20;
                (packet, [0, 14 + 20, 0, 0])
            }
            Self::IcmpError => {
                let client = SocketAddrV4::new(CLIENT, 0);
                let reply = Datagram::new(Transport::Tcp(ACK), dest.into(), client.into()).packet();
                (Complaint::HOST_UNREACHABLE.about(&reply, SOURCES, 0), [14 + 22, 14 + 28 + 22, 0, 0])
            }
        }
    }
}

/// Sends forged packets from the interface `wan` of the thread's namespace.
pub(crate) struct Forge {
    object: Object,
    frame: Vec<u8>,
}

impl Forge {
    /// `program`: `forge.bpf.c`, compiled. `director`: its MAC address.
    pub(crate) fn new(program: &[u8], kind: Kind, port: u16, director: Mac) -> Result<Self, Box<dyn Error>> {
        let (mut packet, places) = kind.template(port);
        // The program fills the identification in.
        packet[4..6].fill(0);
        let mut frame = ethernet([2, 0, 0, 0, 0, 1], director, etherparse::EtherType::IPV4, &packet);
        resum(&mut frame);
        frame.resize(FRAME_BYTES, 0);
        let mut file = ObjectFile::open(program)?;
        let words = [Device::look("wan")?.ifindex].into_iter().chain(places);
        let constants = words.flat_map(u32::to_ne_bytes).chain(frame.iter().copied());
        file.set_constants(&constants.collect::<Vec<u8>>())?;
        Ok(Self { object: file.load()?, frame })
    }

    /// Sends `rate` packets a second for a time, or as many as it can; returns how many. The interface may have no room
    /// for some of them.
    pub(crate) fn send(&self, rate: Option<u64>, time: Duration) -> u64 {
        // Clients and servers have the same core.
        setpriority_process(None, 19).expect("a lower priority is always granted");
        let program = self.object.program(c"forge").expect("it is loaded");
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            let due = match rate {
                Some(rate) => (start.elapsed().as_micros() as u64 * rate / 1_000_000).saturating_sub(sent),
                None => GROUP,
            };
            if due == 0 {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            let now = due.min(GROUP);
            run_live(program, &self.frame, now as u32, 64).expect("the kernel runs the program");
            sent += now;
        }
        sent
    }
}

/// The length of each frame; what is behind the packet is padding.
const FRAME_BYTES: usize = 96;
/// The most packets that are sent in one call: the far end of a veth has room for 256.
const GROUP: u64 = 128;
