//! One trial of `xvs doctor --report`: test frames between an interface in some mode and another interface.
//!
//! The frames are UDP to a benchmarking address (RFC 2544, 198.18.0.0/15), and only these are taken: all other packets
//! go to the kernel as usual. Frames of each size show which sizes a mode loses; frames of the smallest and the largest
//! size, sent as fast as one core can, show its rate. Only frames with unchanged content count. Nothing stays attached.
//! `report.rs` chooses the modes.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde::Serialize;
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};
use xvs_helper::task::Task as _;
use xvs_host::network::deferral::DeferInterrupts;
use xvs_proto::addr::Protocol;
use xvs_proto::network::LinkId;
use xvs_proto::{MacAddr, ethernet, ipv4, udp};
use xvs_xdp::device::has_carrier;
use xvs_xdp::{
    Attached, BURST, CopyMode, Frame, Mode, ONE_BUFFER_MTU, Queues, RingSizes, Sockets, Wanted, WantedMode,
    card,
};

use crate::doctor::tunables::interrupts_handled;

/// The result for a mode that the driver accepts.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Trial {
    /// How the interface's frames reach its sockets, such as `native, zero-copy`.
    pub sockets: String,
    /// From the attachment to the first frame that arrived, in milliseconds. Absent: none arrived, or there is no
    /// second interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Frames in each direction, the examined interface as the receiver first; empty without `pause_ms`.
    pub directions: Vec<Direction>,
}

/// Frames from one interface to the other.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Direction {
    /// The sender.
    pub from: String,
    /// The receiver.
    pub to: String,
    /// The sizes of frames that were sent and of which none arrived whole, in bytes.
    pub lost_sizes: Vec<usize>,
    /// The sizes of frames that the sender did not take, in bytes.
    pub unsent_sizes: Vec<usize>,
    /// The rates, as fast as one core can send.
    pub rates: Vec<Rate>,
}

/// Frames of one size for a second.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Rate {
    /// The size of each, in bytes, without the checksum of the frame.
    pub frame_bytes: usize,
    /// Frames sent for a second.
    pub sent_per_second: u64,
    /// Frames received for a second.
    pub received_per_second: u64,
    /// The interrupts of the receiving card meanwhile.
    pub interrupts: u64,
    /// The increments of the receiving card's counters, with the names of `ethtool -S`.
    pub counted: BTreeMap<String, u64>,
}

/// The program that takes frames of trials.
///
/// # Errors
/// The kernel refuses it.
pub(super) fn steering() -> Result<Steering, Box<dyn Error>> {
    let mut steering = Steering::load(MapSizes::default())
        .map_err(|error| format!("the XDP program cannot be loaded: {error}"))?;
    let wide = [BENCHMARKS.parse().expect("a prefix")].into();
    steering.update(&SteeringRules { wide, ..Default::default() })?;
    Ok(steering)
}

/// Tries a mode of an interface, or busy polling in it, until the operator ends it. `source`: the other interface, on
/// the same wire or switch.
///
/// # Errors
/// The mode cannot be had, or the operator has ended it.
pub(super) fn run(
    steering: &Steering,
    interface: &str,
    source: Option<&mut End>,
    (mode, busy): (WantedMode, bool),
    ended: &AtomicBool,
) -> Result<Trial, Box<dyn Error>> {
    // An earlier trial may have made the card renegotiate its link.
    for name in [Some(interface), source.as_ref().map(|source| source.name())].into_iter().flatten() {
        await_carrier(name, ended)?;
    }
    let begun = Instant::now();
    let mut end = End::open(steering, interface, mode)?;
    if busy {
        end.poll_busily().map_err(|error| format!("no preferred busy polling: {error}"))?;
    }
    let sockets = end.sockets();
    let Some(source) = source else { return Ok(Trial { sockets, pause_ms: None, directions: Vec::new() }) };
    let mut pause_ms = None;
    let mut directions = Vec::new();
    if await_a_frame(source, &mut end, ended)? {
        pause_ms = Some(begun.elapsed().as_millis() as u64);
        directions.push(direction(source, &mut end, ended)?);
        directions.push(direction(&mut end, source, ended)?);
    }
    Ok(Trial { sockets, pause_ms, directions })
}

/// An interface with its sockets.
pub(super) struct End {
    sockets: Sockets,
    attached: Attached,
    mac: MacAddr,
    /// Whether [`Self::poll_busily`] was called.
    busy: bool,
    /// For received frames.
    burst: Vec<Frame>,
    /// The number of the next frame.
    next: u16,
}

impl End {
    /// Attaches the program in this mode, or the best one, and opens a socket for each queue.
    ///
    /// # Errors
    /// The mode cannot be had.
    pub(super) fn open(steering: &Steering, name: &str, mode: WantedMode) -> Result<Self, Box<dyn Error>> {
        let attached = steering.attach(name, Wanted { mode, queues: None }, None)?;
        let mtu = attached.mtu();
        if attached.mode() == Mode::Generic && matches!(mode, WantedMode::Copy | WantedMode::ZeroCopy) {
            let why = attached.native_refused().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(format!("native mode is refused by {name} at an MTU of {mtu}{why}").into());
        }
        let queues: Vec<u32> = (0..attached.receive_queues()).collect();
        let sizes = RingSizes {
            receive: attached.card_ring().next_power_of_two().max(LEAST_RING),
            ..Default::default()
        };
        let owned = [Queues { attached: &attached, queues: &queues }];
        let sockets = Sockets::open(&owned, sizes)?;
        if mode == WantedMode::ZeroCopy && sockets.copy_mode() != &CopyMode::ZeroCopy {
            return Err(format!("zero-copy is refused by {name} at an MTU of {mtu}").into());
        }
        let mac = attached.link_address().map_err(|error| format!("the address of {name}: {error}"))?;
        Ok(Self { sockets, mac: MacAddr(mac), attached, busy: false, burst: Vec::new(), next: 0 })
    }

    /// How its frames reach its sockets.
    pub(super) fn sockets(&self) -> String {
        let copy = if self.sockets.copy_mode() == &CopyMode::ZeroCopy { "zero-copy" } else { "copy" };
        format!("{}, {copy}", self.attached.mode())
    }

    /// From now on it drives the driver itself.
    fn poll_busily(&mut self) -> io::Result<()> {
        self.busy = true;
        self.sockets.prefer_busy_polling()?;
        self.defer_interrupts(true)
    }

    fn defer_interrupts(&self, defer: bool) -> io::Result<()> {
        let interface = self.attached.interface().to_owned();
        DeferInterrupts { interface, index: self.attached.index(), defer }.run(&[]).map(drop)
    }

    fn name(&self) -> &str {
        self.attached.interface()
    }

    /// The size of the largest frame that its network carries and one buffer holds.
    fn largest(&self) -> usize {
        ethernet::HEADER_LEN + self.attached.mtu().min(ONE_BUFFER_MTU) as usize
    }

    /// Queues a frame of this size for another interface. `false`: there is no room now.
    fn queue(&mut self, to: MacAddr, frame_bytes: usize) -> bool {
        let Some(mut frame) = self.sockets.pool().take() else { return false };
        if !frame.resize(frame_bytes) {
            self.sockets.pool().put(frame);
            return false;
        }
        write_frame(frame.bytes_mut(), self.mac, to, self.next);
        self.next = self.next.wrapping_add(1);
        match self.sockets.transmit(LinkId(0), frame) {
            Ok(()) => true,
            Err(frame) => {
                self.sockets.pool().put(frame);
                false
            }
        }
    }

    /// Sends what is queued, and calls `count` with the size of each frame of `from` that has arrived whole.
    fn exchange(&mut self, from: MacAddr, mut count: impl FnMut(usize)) {
        if self.busy {
            self.sockets.drive();
        }
        let burst = &mut self.burst;
        self.sockets.receive(BURST, |_, frame| burst.push(frame));
        for frame in burst.drain(..) {
            if !frame.is_chain() && is_whole(frame.bytes(), from) {
                count(frame.len());
            }
            self.sockets.pool().put(frame);
        }
        self.sockets.flush();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.busy {
            // The interface may be gone.
            let _ = self.defer_interrupts(false);
        }
    }
}

fn await_carrier(name: &str, ended: &AtomicBool) -> Result<(), Box<dyn Error>> {
    let until = Instant::now() + PATIENCE;
    while !has_carrier(name).map_err(|error| format!("{name}: {error}"))? {
        go_on(ended)?;
        if Instant::now() > until {
            return Err(format!("{name} has no carrier for {} s", PATIENCE.as_secs()).into());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Sends frames until one arrives; `false`: none does.
fn await_a_frame(from: &mut End, to: &mut End, ended: &AtomicBool) -> Result<bool, Box<dyn Error>> {
    let until = Instant::now() + PATIENCE;
    let mut arrived = false;
    while !arrived && Instant::now() < until {
        go_on(ended)?;
        from.queue(to.mac, LEAST);
        from.exchange(to.mac, |_| ());
        thread::sleep(Duration::from_millis(5));
        to.exchange(from.mac, |_| arrived = true);
    }
    Ok(arrived)
}

/// # Errors
/// The operator has ended it.
pub(super) fn go_on(ended: &AtomicBool) -> Result<(), Box<dyn Error>> {
    if ended.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
}

fn direction(from: &mut End, to: &mut End, ended: &AtomicBool) -> Result<Direction, Box<dyn Error>> {
    let largest = from.largest().min(to.largest());
    let mut lost_sizes = Vec::new();
    let mut unsent_sizes = Vec::new();
    for size in (LEAST..largest).step_by(STEP).chain([largest]) {
        go_on(ended)?;
        match send_some(from, to, size) {
            (0, _) => unsent_sizes.push(size),
            (_, false) => lost_sizes.push(size),
            (_, true) => {}
        }
    }
    let mut rates = Vec::new();
    for size in [LEAST, largest] {
        go_on(ended)?;
        rates.push(rate(from, to, size));
    }
    Ok(Direction { from: from.name().to_owned(), to: to.name().to_owned(), lost_sizes, unsent_sizes, rates })
}

/// How many frames of a size were sent until one arrived whole, and whether one did.
fn send_some(from: &mut End, to: &mut End, frame_bytes: usize) -> (usize, bool) {
    let until = Instant::now() + WIRE;
    let mut sent = 0;
    let mut arrived = false;
    while !arrived && Instant::now() < until {
        if sent < TRIES && from.queue(to.mac, frame_bytes) {
            sent += 1;
        }
        from.exchange(to.mac, |_| ());
        to.exchange(from.mac, |size| arrived |= size == frame_bytes);
    }
    (sent, arrived)
}

fn rate(from: &mut End, to: &mut End, frame_bytes: usize) -> Rate {
    let receiver = to.name().to_owned();
    let before = card::statistics(&receiver).unwrap_or_default();
    let interrupts = interrupts_handled(&receiver);
    let from_mac = from.mac;
    let to_mac = to.mac;
    let ended = AtomicBool::new(false);
    let begun = Instant::now();
    let (sent, (received, last)) = thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut received = 0_u64;
            let mut last = begun;
            while !ended.load(Ordering::Relaxed) {
                let before = received;
                to.exchange(from_mac, |size| received += u64::from(size == frame_bytes));
                if received != before {
                    last = Instant::now();
                }
            }
            (received, last)
        });
        let mut sent = 0_u64;
        while begun.elapsed() < PERIOD {
            sent += (0..BURST).take_while(|_| from.queue(to_mac, frame_bytes)).count() as u64;
            from.exchange(to_mac, |_| ());
        }
        thread::sleep(WIRE);
        ended.store(true, Ordering::Relaxed);
        (sent, receiving.join().expect("the receiver does not panic"))
    });
    let mut counted = BTreeMap::new();
    for (name, now) in card::statistics(&receiver).unwrap_or_default() {
        let more = now.wrapping_sub(before.get(&name).copied().unwrap_or(0));
        if more != 0 {
            counted.insert(name, more);
        }
    }
    Rate {
        frame_bytes,
        sent_per_second: per_second(sent, PERIOD),
        received_per_second: per_second(received, (last - begun).max(PERIOD)),
        interrupts: interrupts_handled(&receiver).saturating_sub(interrupts),
        counted,
    }
}

fn per_second(frames: u64, time: Duration) -> u64 {
    (frames as f64 / time.as_secs_f64()) as u64
}

/// A UDP datagram of one of 64 flows, so that a card spreads them over its queues. Each byte of its data is the last
/// one of `number`.
fn write_frame(bytes: &mut [u8], from: MacAddr, to: MacAddr, number: u16) {
    ethernet::emit(bytes, from, to, ethernet::TYPE_IPV4);
    let (header, datagram) = bytes[ethernet::HEADER_LEN..].split_at_mut(ipv4::HEADER_LEN);
    let flow = number % FLOWS;
    datagram.fill(number as u8);
    udp::emit(datagram, FIRST_PORT + flow, DISCARD);
    let header_of = ipv4::Header {
        tos: 0,
        payload_len: datagram.len() as u16,
        id: number,
        dont_fragment: true,
        ttl: 2,
        protocol: Protocol::UDP,
        source: Ipv4Addr::from(u32::from(FIRST_SOURCE) + u32::from(flow)),
        dest: DEST,
    };
    header_of.emit(header);
}

/// Whether it is a frame of this sender as [`write_frame`] wrote it.
fn is_whole(bytes: &[u8], from: MacAddr) -> bool {
    let Some((headers, data)) = bytes.split_at_checked(DATA) else { return false };
    let last_of_number = headers[ethernet::HEADER_LEN + ipv4::field::ID.end - 1];
    ethernet::source(headers) == from && data.iter().all(|&byte| byte == last_of_number)
}

/// RFC 2544, C.2.2.
const BENCHMARKS: &str = "198.18.0.0/15";
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const DEST: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// RFC 863.
const DISCARD: u16 = 9;
const FIRST_PORT: u16 = 1024;
const FLOWS: u16 = 64;
/// The least frame of Ethernet, without its checksum.
const LEAST: usize = 60;
/// The position of a datagram's data.
const DATA: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN + udp::HEADER_LEN;
/// Between two sizes that are tried.
const STEP: usize = 64;
const TRIES: usize = 8;
/// Frames of a receive ring: a card may have dozens of queues, each with its memory.
const LEAST_RING: u32 = 1024;
/// Long enough for what is in rings and on the wire.
const WIRE: Duration = Duration::from_millis(200);
const PERIOD: Duration = Duration::from_secs(1);
/// A switch with spanning tree forwards half a minute after a link has come up (IEEE 802.1D).
const PATIENCE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_counts_only_if_it_is_of_the_sender_and_each_byte_has_arrived() {
        let (from, to) = (MacAddr([2, 0, 0, 0, 0, 1]), MacAddr([2, 0, 0, 0, 0, 2]));
        for (number, len) in [(0x1234, LEAST), (0xff00, 1514)] {
            let mut frame = vec![0xaa; len];
            write_frame(&mut frame, from, to, number);
            assert!(is_whole(&frame, from));
            assert!(!is_whole(&frame, to));
            assert!(!is_whole(&frame[..DATA - 1], from));
            *frame.last_mut().unwrap() ^= 1;
            assert!(!is_whole(&frame, from), "the last byte was not received");
        }
    }
}
