//! The connections of the suite `sync`: a client that begins thousands a second, without a socket for each.
//!
//! Each connection has an address of its own in [`CLIENTS`] and this schedule: a SYN, an ACK, data, with which it is
//! announced, and after [`LIFE`] a FIN. One in [`LASTING_EACH`] has no FIN and sends data in turn with the others of
//! its kind. The packets are numbered: five of each connection, of five different ones, follow each other, so that a
//! packet's number says all about it. A raw socket sends them, and the client's kernel finds the director that has the
//! VIP. Direct routing, so the client needs no answers. Not here: what arrives (`fates.rs`).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, ipproto, send, socket_with};
use xvs::cluster::virtual_endpoint;
use xvs::{Cluster, Host, namespace};

/// The port of the service.
pub(crate) const PORT: u16 = 9010;
/// The network of the clients; the last three bytes are the number of a connection.
pub(crate) const CLIENTS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
/// The most connections.
pub(crate) const CONNECTIONS_MAX: u64 = 1 << 24;
/// From a connection's SYN to its FIN.
pub(crate) const LIFE: Duration = Duration::from_secs(4);
/// One connection in so many lasts.
const LASTING_EACH: u64 = 64;
/// From a connection's packet to the next one, until it is announced.
const HANDSHAKE: Duration = Duration::from_millis(10);
/// How often due packets are sent, and how many at once if the thread was late.
const TICK: Duration = Duration::from_millis(1);
const BURST_MAX: u64 = 2000;

/// What a packet is to its connection; the number is a bit of what real servers remember.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Syn,
    Ack,
    /// The third packet, which announces the connection.
    Data,
    Fin,
    /// More data of a lasting connection.
    More,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Syn, Self::Ack, Self::Data, Self::Fin, Self::More];

    /// Its bit in what real servers remember, before and after the failover.
    pub(crate) fn bit(self, half: Half) -> u64 {
        1 << self.window(half)
    }

    fn window(self, half: Half) -> u16 {
        self as u16 + if half == Half::First { 0 } else { 8 }
    }
}

/// Before or after the failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    First,
    Second,
}

/// When packets are sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// New connections a second.
    pub(crate) rate: u64,
}

impl Schedule {
    /// Packets a second.
    fn packets(self) -> u64 {
        self.rate * Kind::ALL.len() as u64
    }

    /// The number of connections that begin in a time.
    fn within(self, time: Duration) -> u64 {
        time.as_millis() as u64 * self.rate / 1000
    }

    /// The number of a connection's packet that announces it.
    pub(crate) fn announcing(self, connection: u64) -> u64 {
        (connection + 2 * self.within(HANDSHAKE)) * Kind::ALL.len() as u64 + Kind::Data as u64
    }

    /// Lasting connections that were announced before this packet.
    pub(crate) fn lasting(self, number: u64) -> u64 {
        let announced = (number / Kind::ALL.len() as u64).checked_sub(2 * self.within(HANDSHAKE));
        announced.map_or(0, |announced| announced.div_ceil(LASTING_EACH))
    }

    /// The packet by which each connection that was announced before this one has had its FIN or its turn.
    pub(crate) fn round_after(self, number: u64) -> u64 {
        let lasting = self.lasting(number);
        // Meanwhile more are announced.
        let turns = lasting + lasting / (LASTING_EACH - 1) + 1;
        number + self.within(LIFE + 2 * HANDSHAKE).max(turns) * Kind::ALL.len() as u64
    }

    /// The packet with this number; `None`: no connection has one then. `turn`: the next lasting connection.
    fn packet(self, number: u64, turn: &mut u64) -> Option<(Kind, u64)> {
        let kind = Kind::ALL[(number % Kind::ALL.len() as u64) as usize];
        let slot = number / Kind::ALL.len() as u64;
        let connection = match kind {
            Kind::Syn => Some(slot),
            Kind::Ack => slot.checked_sub(self.within(HANDSHAKE)),
            Kind::Data => slot.checked_sub(2 * self.within(HANDSHAKE)),
            Kind::Fin => slot.checked_sub(self.within(LIFE)).filter(|one| !is_lasting(*one)),
            Kind::More => {
                let lasting = self.lasting(number);
                *turn = if *turn < lasting { *turn } else { 0 };
                let connection = *turn * LASTING_EACH;
                *turn += 1;
                (lasting > 0).then_some(connection)
            }
        };
        connection.filter(|one| *one < CONNECTIONS_MAX).map(|connection| (kind, connection))
    }
}

/// Whether a connection has no FIN.
pub(crate) fn is_lasting(connection: u64) -> bool {
    connection.is_multiple_of(LASTING_EACH)
}

/// Where the load stands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Position {
    /// The next packet.
    pub(crate) number: u64,
    /// The lasting connection whose turn it is.
    pub(crate) turn: u64,
}

/// What was sent from a start to a stop.
pub(crate) struct Sent {
    pub(crate) position: Position,
    /// When which packet was the next.
    times: Vec<(u64, Instant)>,
}

impl Sent {
    /// When this packet was sent, to about a millisecond; the start, if it was sent before.
    pub(crate) fn time(&self, number: u64) -> Instant {
        let at = self.times.partition_point(|(next, _)| *next <= number);
        self.times[at.min(self.times.len() - 1)].1
    }

    /// New connections a second, as they were sent.
    pub(crate) fn rate(&self) -> f64 {
        let [first, .., last] = self.times[..] else { return 0.0 };
        (last.0 - first.0) as f64 / Kind::ALL.len() as f64 / (last.1 - first.1).as_secs_f64()
    }
}

/// The thread that sends.
pub(crate) struct Load {
    running: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    sent: std::sync::mpsc::Receiver<Sent>,
}

impl Load {
    /// Goes on from a position.
    pub(crate) fn start(cluster: &Cluster, schedule: Schedule, position: Position, half: Half) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&running);
        let (sender, sent) = std::sync::mpsc::channel();
        let thread = namespace::spawn(&cluster.namespace(Host::Client), move || {
            // `stop` waits for this.
            let _ = sender.send(run(schedule, position, half, &flag));
        });
        Self { running, thread, sent }
    }

    pub(crate) fn stop(self) -> Sent {
        // Relaxed: the flag publishes no other data.
        self.running.store(false, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic");
        self.sent.recv().expect("the thread has sent it")
    }
}

fn run(schedule: Schedule, mut position: Position, half: Half, running: &AtomicBool) -> Sent {
    let socket = raw().expect("root may open raw sockets");
    let mut packet = Vec::new();
    let (mut start, mut first) = (Instant::now(), position.number);
    let mut times = vec![(first, start)];
    while running.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() as u64 * schedule.packets() / 1_000_000;
        if first + due > position.number + BURST_MAX {
            // What was due while this thread had no core is sent later.
            (start, first) = (Instant::now(), position.number);
            continue;
        }
        while position.number < first + due {
            if let Some((kind, connection)) = schedule.packet(position.number, &mut position.turn) {
                write(&mut packet, kind.window(half), kind, connection, position.number);
                // While no director has the VIP, the kernel may know no link address for it.
                let _ = send(&socket, &packet, SendFlags::empty());
            }
            position.number += 1;
        }
        times.push((position.number, Instant::now()));
        thread::sleep(TICK);
    }
    Sent { position, times }
}

/// A socket that sends whole IPv4 packets to the VIP.
fn raw() -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::RAW))?;
    connect(&socket, &std::net::SocketAddr::from(virtual_endpoint(PORT)))?;
    Ok(socket)
}

/// The client of a connection.
pub(crate) fn client(connection: u64) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(CLIENTS.to_bits() + connection as u32), 40_000)
}

fn write(packet: &mut Vec<u8>, window: u16, kind: Kind, connection: u64, number: u64) {
    packet.clear();
    let client = client(connection);
    let vip = virtual_endpoint(PORT);
    let tcp = PacketBuilder::ipv4(client.ip().octets(), vip.ip().octets(), 64);
    let tcp = tcp.tcp(client.port(), vip.port(), number as u32, window);
    let tcp = match kind {
        Kind::Syn => tcp.syn(),
        Kind::Ack => tcp.ack(1),
        Kind::Data | Kind::More => tcp.ack(1).psh(),
        Kind::Fin => tcp.ack(1).fin(),
    };
    tcp.write(packet, &[]).expect("a vector takes all");
}
