//! One trial of `xvs doctor --report`: frames of our own between an interface in some mode and another one.
//!
//! The frames are UDP to an address of benchmarks (RFC 2544, 198.18.0.0/15), and only these are taken: all other
//! packets go to the kernel as ever. Frames of each size show which ones a mode loses; frames of the least and of the
//! greatest size, as fast as one core can send, show what it can. Nothing stays attached. Not here: which modes are
//! tried (`report.rs`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{io, thread};

use serde::Serialize;
use xvs_dataplane::steering::{Steering, SteeringRules};
use xvs_helper::task::Task as _;
use xvs_host::network::deferral::DeferInterrupts;
use xvs_proto::addr::Protocol;
use xvs_proto::network::LinkId;
use xvs_proto::{MacAddr, ethernet, ipv4, udp};
use xvs_xdp::{
    Attached, BURST, CopyMode, Frame, Mode, ONE_BUFFER_MTU, Queues, RingSizes, Sockets, WantedMode, card,
};

/// What came of a mode.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Trial {
    /// From the attachment to the first frame that arrived, in milliseconds. Absent: without a second interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// Frames in each direction, the examined interface as the receiver first.
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
    /// The sizes of frames of which none arrived, in bytes.
    pub lost_sizes: Vec<usize>,
    /// As fast as one core can send.
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
    /// What the receiving card has counted meanwhile, by the names of `ethtool -S`.
    pub counted: BTreeMap<String, u64>,
}

/// Tries a mode of an interface, or busy polling in it. `source`: the other interface, on the same wire or switch, in
/// the best mode that it has.
///
/// # Errors
/// The mode cannot be had, or no frame arrives; as a clause.
pub(super) fn run(
    interface: &str,
    source: Option<&str>,
    mode: WantedMode,
    busy: bool,
) -> Result<Trial, String> {
    let mut steering =
        Steering::load().map_err(|error| format!("the XDP program cannot be loaded: {error}"))?;
    let wide = [BENCHMARKS.parse().expect("a prefix")].into();
    steering.update(&SteeringRules { wide, ..Default::default() }).map_err(|error| error.to_string())?;
    let begun = Instant::now();
    let mut end = End::open(&steering, interface, mode)?;
    if busy {
        end.poll_busily().map_err(|error| format!("no preferred busy polling: {error}"))?;
    }
    let Some(source) = source else { return Ok(Trial { pause_ms: None, directions: Vec::new() }) };
    let mut source = End::open(&steering, source, WantedMode::Auto)?;
    await_a_frame(&mut source, &mut end)?;
    let pause_ms = Some(begun.elapsed().as_millis() as u64);
    let directions = vec![direction(&mut source, &mut end), direction(&mut end, &mut source)];
    Ok(Trial { pause_ms, directions })
}

/// An interface with its sockets.
struct End {
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
    fn open(steering: &Steering, name: &str, wanted: WantedMode) -> Result<Self, String> {
        let attached = steering.attach(name, wanted, None).map_err(|error| error.to_string())?;
        if attached.mode() == Mode::Generic && matches!(wanted, WantedMode::Copy | WantedMode::ZeroCopy) {
            let why = attached.native_refused().map(|error| format!(": {error}")).unwrap_or_default();
            return Err(format!("the driver of {name} has no native mode{why}"));
        }
        let queues: Vec<u32> = (0..attached.receive_queues()).collect();
        let sizes = RingSizes::default();
        let receive = sizes.receive.max(attached.card_ring().next_power_of_two());
        let owned = [Queues { attached: &attached, queues: &queues }];
        let sockets =
            Sockets::open(&owned, RingSizes { receive, ..sizes }).map_err(|error| error.to_string())?;
        if wanted == WantedMode::ZeroCopy && sockets.copy_mode() != &CopyMode::ZeroCopy {
            return Err(format!("the driver of {name} has no zero-copy"));
        }
        let mac = attached.link_address().map_err(|error| format!("the address of {name}: {error}"))?;
        Ok(Self { sockets, mac: MacAddr(mac), attached, busy: false, burst: Vec::new(), next: 0 })
    }

    /// From now on it drives the driver itself.
    fn poll_busily(&mut self) -> io::Result<()> {
        self.busy = true;
        self.sockets.prefer_busy_polling()?;
        self.defer_interrupts(true)
    }

    fn defer_interrupts(&self, defer: bool) -> io::Result<()> {
        let (interface, index) = (self.attached.interface().to_owned(), self.attached.index());
        DeferInterrupts { interface, index, defer }.run(&[]).map(drop)
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

    /// Counts the frames of benchmarks that have arrived, by their size.
    fn receive(&mut self, mut count: impl FnMut(usize)) {
        if self.busy {
            self.sockets.drive();
        }
        let burst = &mut self.burst;
        self.sockets.receive(BURST, |_, frame| burst.push(frame));
        for frame in burst.drain(..) {
            count(frame.len());
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

/// Sends frames until one arrives: a card may negotiate its link anew when a program is attached.
fn await_a_frame(from: &mut End, to: &mut End) -> Result<(), String> {
    let (until, mut arrived) = (Instant::now() + PATIENCE, false);
    while Instant::now() < until {
        from.queue(to.mac, LEAST);
        from.receive(|_| ());
        thread::sleep(Duration::from_millis(5));
        to.receive(|_| arrived = true);
        if arrived {
            return Ok(());
        }
    }
    let (from, to) = (from.name(), to.name());
    Err(format!(
        "no frame of {from} arrives at {to} within {} s; check that both are up and on one wire or switch",
        PATIENCE.as_secs()
    ))
}

fn direction(from: &mut End, to: &mut End) -> Direction {
    let largest = from.largest().min(to.largest());
    let sizes = (LEAST..largest).step_by(STEP).chain([largest]);
    let lost_sizes = sizes.filter(|&size| !arrives(from, to, size)).collect();
    let rates = [LEAST, largest].map(|size| rate(from, to, size)).into();
    Direction { from: from.name().to_owned(), to: to.name().to_owned(), lost_sizes, rates }
}

/// Whether any of some frames of this size arrives whole.
fn arrives(from: &mut End, to: &mut End, frame_bytes: usize) -> bool {
    for _ in 0..TRIES {
        from.queue(to.mac, frame_bytes);
    }
    let (until, mut arrived) = (Instant::now() + WIRE, false);
    while !arrived && Instant::now() < until {
        from.receive(|_| ());
        to.receive(|size| arrived |= size == frame_bytes);
    }
    arrived
}

fn rate(from: &mut End, to: &mut End, frame_bytes: usize) -> Rate {
    let counters = |end: &End| card::statistics(end.name()).unwrap_or_default();
    let (before, mac, ended) = (counters(to), to.mac, AtomicBool::new(false));
    let begun = Instant::now();
    let (sent, received, last) = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut received, mut last) = (0_u64, begun);
            while !ended.load(Ordering::Relaxed) {
                let before = received;
                to.receive(|size| received += u64::from(size == frame_bytes));
                if received != before {
                    last = Instant::now();
                }
            }
            (received, last)
        });
        let mut sent = 0_u64;
        while begun.elapsed() < PERIOD {
            let queued = (0..BURST).take_while(|_| from.queue(mac, frame_bytes)).count() as u64;
            from.receive(|_| ());
            sent += queued;
        }
        thread::sleep(WIRE);
        ended.store(true, Ordering::Relaxed);
        let (received, last) = receiver.join().expect("the receiver does not panic");
        (sent, received, last)
    });
    let per_second = |frames: u64, time: Duration| (frames as f64 / time.as_secs_f64()) as u64;
    let counted = counters(to).into_iter().filter_map(|(name, now)| {
        let more = now.wrapping_sub(before.get(&name).copied().unwrap_or(0));
        (more != 0).then_some((name, more))
    });
    Rate {
        frame_bytes,
        sent_per_second: per_second(sent, PERIOD),
        received_per_second: per_second(received, (last - begun).max(PERIOD)),
        counted: counted.collect(),
    }
}

/// A UDP datagram of one of 64 flows, so that a card spreads them over its queues. The rest of the frame is as it was.
fn write_frame(bytes: &mut [u8], from: MacAddr, to: MacAddr, number: u16) {
    ethernet::emit(bytes, from, to, ethernet::TYPE_IPV4);
    let (header, datagram) = bytes[ethernet::HEADER_LEN..].split_at_mut(ipv4::HEADER_LEN);
    udp::emit(datagram, FIRST_PORT + number % FLOWS, DISCARD);
    let header_of = ipv4::Header {
        tos: 0,
        payload_len: datagram.len() as u16,
        id: number,
        dont_fragment: true,
        ttl: 2,
        protocol: Protocol::UDP,
        source: SOURCE,
        dest: DEST,
    };
    header_of.emit(header);
}

/// RFC 2544, C.2.2.
const BENCHMARKS: &str = "198.18.0.0/15";
const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const DEST: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// RFC 863.
const DISCARD: u16 = 9;
const FIRST_PORT: u16 = 1024;
const FLOWS: u16 = 64;
/// The least frame of Ethernet, without its checksum.
const LEAST: usize = 60;
/// Between two sizes that are tried.
const STEP: usize = 64;
const TRIES: usize = 8;
/// Long enough for what is in rings and on the wire.
const WIRE: Duration = Duration::from_millis(200);
const PERIOD: Duration = Duration::from_secs(1);
/// The longest negotiation of a link, and more.
const PATIENCE: Duration = Duration::from_secs(15);
