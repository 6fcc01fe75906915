//! A client, a director with two interfaces and a server, each in its own network namespace, connected by veth pairs.
//!
//! ```text
//! client c0 ─── d0 director d1 ─── s0 server
//! 203.0.113.7   .1          198.51.100.1   .2, and the virtual address 192.0.2.1
//! ```
//!
//! Needs root, `ip` and `ethtool`. A command that fails here fails the test and is named. Dropping the [`Testbed`]
//! removes everything. Checksum offload is off on every end: a veth passes on packets without their checksums, and a
//! director that forwards them would have to compute these. Neighbours are permanent, so no ARP is needed.

// Shared code of tests may unwrap as tests do; not every test uses all of it.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use xvs_dataplane::port::xdp::{OwnPackets, Waker, XdpPort};
use xvs_dataplane::steering::Steering;
use xvs_dataplane::steering::reinject::Reinjector;
use xvs_proto::LinkId;
use xvs_xdp::polling::Poll;
use xvs_xdp::{Attached, Queues, RingSizes, Sockets, Wanted};

pub(crate) const CLIENT: [u8; 4] = [203, 0, 113, 7];
pub(crate) const DIRECTOR: [u8; 4] = [203, 0, 113, 1];
pub(crate) const VIP: [u8; 4] = [192, 0, 2, 1];

pub(crate) const WAN: LinkId = LinkId(0);
pub(crate) const LAN: LinkId = LinkId(1);

pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xc0];
pub(crate) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xd0];
pub(crate) const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xd1];
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x50];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// One of the three machines.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Host {
    Client,
    Director,
    Server,
}

pub(crate) struct Testbed {
    names: [String; 3],
}

impl Testbed {
    pub(crate) fn new() -> Self {
        Self::with_queues(1)
    }

    /// A testbed with this number of receive and transmit queues on every end.
    pub(crate) fn with_queues(count: u32) -> Self {
        let queues = format!("numrxqueues {count} numtxqueues {count}");
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |role| format!("xvs-{}-{number}-{role}", std::process::id());
        let testbed = Self { names: ["client", "director", "server"].map(name) };
        let [client, director, server] = &testbed.names;
        for name in &testbed.names {
            run(&format!("ip netns add {name}"));
            run(&format!("nsenter --net=/run/netns/{name} ip link set lo up"));
        }
        run(&format!(
            "nsenter --net=/run/netns/{client} ip link add c0 numrxqueues {count} numtxqueues {} type veth peer name d0 \
             netns {director} {queues}",
            count + 1
        ));
        run(&format!("nsenter --net=/run/netns/{client} ethtool -L c0 tx {count}"));
        run(&format!(
            "nsenter --net=/run/netns/{server} ip link add s0 {queues} type veth peer name d1 netns {director} {queues}"
        ));
        for (name, device, mac, addr) in [
            (client, "c0", "02:00:00:00:00:c0", "203.0.113.7/24"),
            (director, "d0", "02:00:00:00:00:d0", "203.0.113.1/24"),
            (director, "d1", "02:00:00:00:00:d1", "198.51.100.1/24"),
            (server, "s0", "02:00:00:00:00:50", "198.51.100.2/24"),
        ] {
            run(&format!("nsenter --net=/run/netns/{name} ip link set {device} address {mac} up"));
            run(&format!("nsenter --net=/run/netns/{name} ip addr add {addr} dev {device}"));
            run(&format!("nsenter --net=/run/netns/{name} ethtool -K {device} tx off"));
        }
        for (name, device, addr, mac) in [
            (client, "c0", "203.0.113.1", "02:00:00:00:00:d0"),
            (director, "d0", "203.0.113.7", "02:00:00:00:00:c0"),
            (director, "d1", "198.51.100.2", "02:00:00:00:00:50"),
            (server, "s0", "198.51.100.1", "02:00:00:00:00:d1"),
        ] {
            run(&format!(
                "nsenter --net=/run/netns/{name} ip neigh add {addr} lladdr {mac} dev {device} nud permanent"
            ));
        }
        run(&format!("nsenter --net=/run/netns/{server} ip addr add 192.0.2.1/32 dev lo"));
        run(&format!("nsenter --net=/run/netns/{client} ip route add default via 203.0.113.1"));
        run(&format!("nsenter --net=/run/netns/{server} ip route add default via 198.51.100.1"));
        for device in ["all", "d0", "d1"] {
            run(&format!(
                "nsenter --net=/run/netns/{director} sysctl -qw net.ipv4.conf.{device}.rp_filter=1"
            ));
        }
        testbed
    }

    /// Makes veth refuse native mode on the director's first interface (its peer then has more transmit queues than it
    /// has receive queues), and configures the interface so that generic mode is accepted.
    pub(crate) fn only_generic_on_d0(&self) {
        self.on(Host::Client, "ethtool -L c0 tx 2");
        self.on(Host::Director, "ethtool -K d0 gro off rxvlan off");
    }

    /// Runs a command on one of the machines and returns its output.
    pub(crate) fn on(&self, host: Host, command: &str) -> String {
        run(&format!("nsenter --net=/run/netns/{} {command}", self.names[host as usize]))
    }

    /// Repeats a command until `answer` accepts its output, because the kernel needs some time. The number of
    /// repetitions is limited so that a failing test ends.
    pub(crate) fn until(&self, host: Host, command: &str, answer: impl Fn(&str) -> bool) {
        let yes = (0..5_000).any(|_| answer(&self.on(host, command)));
        assert!(yes, "{command}: {}", self.on(host, command));
    }

    /// Runs code on one of the machines: in a new thread, which enters the namespace.
    pub(crate) fn inside<T: Send>(&self, host: Host, code: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.names[host as usize])).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("run as root: a test enters namespaces of its own");
                code()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

/// Runs a command, whose words are separated by spaces.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().expect(command);
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One worker's port over all queues of these interfaces.
pub(crate) fn open_port(links: &[&Attached]) -> XdpPort {
    let all: Vec<Vec<u32>> = links.iter().map(|attached| (0..attached.receive_queues()).collect()).collect();
    let queues: Vec<_> =
        links.iter().zip(&all).map(|(attached, queues)| Queues { attached, queues }).collect();
    let sockets = Sockets::open(&queues, RingSizes::default()).unwrap();
    let reinjectors = links.iter().map(|attached| Arc::new(Reinjector::open(attached).unwrap())).collect();
    XdpPort::open(sockets, reinjectors, Waker::new().unwrap(), OwnPackets::Leave, Arc::default(), Poll::Sleep)
        .unwrap()
}

/// Attaches the director's two interfaces.
pub(crate) fn attach_both(steering: &Steering) -> [Attached; 2] {
    ["d0", "d1"].map(|interface| steering.attach(interface, Wanted::default(), None).unwrap())
}

/// Asserts that the pool and the sockets agree on the place of every frame, and that the test holds none.
pub(crate) fn assert_balanced(port: &XdpPort, total: u32) {
    use xvs_dataplane::port::Port;
    let census = port.census();
    let held = port.sockets().statistics().map(|(_, _, held)| held.lent_to_receive + held.lent_to_transmit);
    assert_eq!(census.lent, held.sum::<u32>(), "{census:?}");
    assert_eq!((census.out, census.home + census.lent), (0, total), "{census:?}");
    for (link, queue, counted) in port.sockets().statistics() {
        assert_eq!(counted.descriptors_refused, 0, "{link:?} {queue}");
        assert_eq!(counted.transmit_invalid, 0, "{link:?} {queue}");
    }
}
