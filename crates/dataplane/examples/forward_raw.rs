//! A minimal forwarder over AF_XDP: a frame that arrives by one of two interfaces leaves by the other, with rewritten
//! Ethernet addresses. It reads nothing else.
//!
//! ```text
//! forward_raw d0=02:00:00:00:00:d0,02:00:00:00:00:c0 d1=02:00:00:00:00:d1,02:00:00:00:00:50
//! ```
//!
//! Each argument names an interface, its own link address, and that of the host behind it.
//!
//! The director is measured against it: same port, same kernel, no pipeline. It takes all TCP and UDP packets, also
//! those to this machine, so do not run it on the interface by which you log in. It prints `ready` and runs until it is
//! killed; the kernel then has its interfaces back. Needs root.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use xvs_dataplane::port::Port;
use xvs_dataplane::port::xdp::{OwnPackets, Waker, XdpPort};
use xvs_dataplane::steering::reinject::Reinjector;
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};
use xvs_proto::{MacAddr, ethernet};
use xvs_xdp::polling::Poll;
use xvs_xdp::{BURST, Queues, RingSizes, Sockets, Wanted, precede_receive_threads};

const USAGE: &str = "usage: forward_raw INTERFACE=OWN_MAC,NEXT_MAC INTERFACE=OWN_MAC,NEXT_MAC";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, second] = &arguments[..] else { return Err(USAGE.into()) };
    let ends = [End::parse(first)?, End::parse(second)?];

    let mut steering = Steering::load(MapSizes::default())?;
    let everything = ["0.0.0.0/0".parse()?, "::/0".parse()?].into();
    steering.update(&SteeringRules { wide: everything, ..Default::default() })?;
    let links = [
        steering.attach(ends[0].interface, Wanted::default(), None)?,
        steering.attach(ends[1].interface, Wanted::default(), None)?,
    ];
    let queues: Vec<Vec<u32>> = links.iter().map(|link| (0..link.receive_queues()).collect()).collect();
    let owned: Vec<_> =
        links.iter().zip(&queues).map(|(attached, queues)| Queues { attached, queues }).collect();
    let sockets = Sockets::open(&owned, RingSizes::default())?;
    let modes = links.each_ref().map(|link| link.mode());
    println!("{} {}, {} {}, {}", first, modes[0], second, modes[1], sockets.copy_mode());
    let reinjectors = [Arc::new(Reinjector::open(&links[0])?), Arc::new(Reinjector::open(&links[1])?)];
    let port = XdpPort::open(
        sockets,
        reinjectors.into(),
        Waker::new()?,
        OwnPackets::Leave,
        Arc::default(),
        Poll::Sleep,
    )?;
    precede_receive_threads()?;
    println!("ready");
    std::io::stdout().flush()?;
    forward(port, &ends)
}

/// An interface, its own address and that of the host behind it.
struct End<'a> {
    interface: &'a str,
    mac: MacAddr,
    next: MacAddr,
}

impl<'a> End<'a> {
    fn parse(argument: &'a str) -> Result<Self, Box<dyn Error>> {
        let (interface, addresses) = argument.split_once('=').ok_or(USAGE)?;
        let (own, next) = addresses.split_once(',').ok_or(USAGE)?;
        Ok(Self { interface, mac: own.parse()?, next: next.parse()? })
    }
}

fn forward(mut port: XdpPort, ends: &[End<'_>; 2]) -> ! {
    let mut burst = Vec::with_capacity(BURST);
    loop {
        port.receive(&mut burst);
        if burst.is_empty() {
            port.wait(None);
        }
        for mut received in burst.drain(..) {
            let mut out = received.link;
            out.0 ^= 1;
            let end = &ends[usize::from(out.0)];
            ethernet::set_addresses(received.frame.bytes_mut(), end.mac, end.next);
            if let Err(frame) = port.transmit(out, received.frame) {
                port.recycle(frame);
            }
        }
        port.flush();
    }
}
