//! Sends the forged packets of the suite at a given rate. Not here: how they are made (`forge.bpf.c`).

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

/// Sends forged packets from an interface.
pub(crate) struct Forge {
    object: Object,
    frame: Vec<u8>,
    /// The packets of one call, which lasts two seconds: a call costs some hundredths of a second.
    group: u32,
}

impl Forge {
    /// `program`: `forge.bpf.c`, compiled. `to`: an interface of the thread's namespace, and the MAC address of the
    /// director there. `rate`: packets a second; `None`: without a pause.
    pub(crate) fn new(
        program: &[u8],
        kind: Kind,
        port: u16,
        (interface, director): (&str, Mac),
        rate: Option<u64>,
    ) -> Result<Self, Box<dyn Error>> {
        let (mut packet, places) = kind.template(port);
        // The program fills the identification in.
        packet[4..6].fill(0);
        let mut frame = ethernet([2, 0, 0, 0, 0, 1], director, etherparse::EtherType::IPV4, &packet);
        resum(&mut frame);
        frame.resize(FRAME_BYTES, 0);
        let mut file = ObjectFile::open(program)?;
        let words = [Device::look(interface)?.ifindex].into_iter().chain(places);
        let interval = rate.map_or(0, |rate| (1_000_000_000 << 10) / rate.max(1));
        let constants = interval.to_ne_bytes().into_iter().chain(words.flat_map(u32::to_ne_bytes));
        file.set_constants(&constants.chain(frame.iter().copied()).collect::<Vec<u8>>())?;
        let group = rate.map_or(GROUP, |rate| 2 * rate).max(1) as u32;
        Ok(Self { object: file.load()?, frame, group })
    }

    /// Sends packets for a time; returns how many. The interface may have no room for some of them.
    pub(crate) fn send(&self, time: Duration) -> u64 {
        // Clients and servers have the same core.
        setpriority_process(None, 19).expect("a lower priority is always granted");
        let program = self.object.program(c"forge").expect("it is loaded");
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < time {
            run_live(program, &self.frame, self.group, 64).expect("the kernel runs the program");
            sent += u64::from(self.group);
        }
        sent
    }
}

/// The length of each frame; what is behind the packet is padding.
const FRAME_BYTES: usize = 96;
/// The packets of one call without a pause.
const GROUP: u64 = 200_000;

/// Rules of nft by which a real server drops forged packets that reach it with their source, and those to a UDP port.
pub(crate) fn dropped(udp: u16) -> String {
    format!(
        "add table ip forged; add chain ip forged input {{ type filter hook prerouting priority raw; }}; \
         add rule ip forged input ip saddr {SOURCES}/8 drop; add rule ip forged input udp dport {udp} drop"
    )
}

/// The MAC address that `ip link show` or `ip neighbour show` prints.
pub(crate) fn mac(shown: &str) -> Option<Mac> {
    let before = |word: &&str| !["link/ether", "lladdr"].contains(word);
    let address = shown.split_whitespace().skip_while(before).nth(1)?;
    Some(address.parse::<xvs_proto::MacAddr>().ok()?.0)
}
