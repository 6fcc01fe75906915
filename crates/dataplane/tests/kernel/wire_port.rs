//! The port on real interfaces: frames are forwarded between two veth pairs, and every frame is accounted for when a
//! ring is full, when a link goes down and comes up again, and at the end. Needs root; see `support/testbed.rs`.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::testbed::{
    CLIENT, CLIENT_MAC, Host, LAN, LAN_MAC, SERVER_MAC, Testbed, VIP, WAN, WAN_MAC, assert_balanced,
    attach_both, open_port,
};
use etherparse::PacketBuilder;
use xvs_dataplane::port::xdp::XdpPort;
use xvs_dataplane::port::{Port, Woken};
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};
use xvs_proto::LinkId;
use xvs_proto::{Endpoint, Protocol, ethernet};
use xvs_xdp::{
    Attached, BURST, CopyMode, Mode, ONE_BUFFER_MTU, Queues, RingSizes, SocketError, Sockets, Wanted,
};

/// Steers UDP to and from port 53 of the virtual address.
fn steering() -> Steering {
    let mut steering = Steering::load(MapSizes::default()).expect("run as root");
    let echo = (Protocol::UDP, Endpoint::new(VIP, 53));
    let rules =
        SteeringRules { services: [echo].into(), nat_destinations: [echo].into(), ..Default::default() };
    steering.update(&rules).unwrap();
    steering
}

/// Bytes that differ between datagrams and within a datagram.
fn datagram(number: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (number.wrapping_mul(31) + at) as u8).collect()
}

/// Forwards one burst: a frame that one link receives leaves by the other.
fn forward_burst(port: &mut XdpPort) {
    let mut burst = Vec::with_capacity(BURST);
    port.receive(&mut burst);
    for mut received in burst {
        let (out, source, dest) =
            if received.link == WAN { (LAN, LAN_MAC, SERVER_MAC) } else { (WAN, WAN_MAC, CLIENT_MAC) };
        ethernet::set_addresses(
            received.frame.bytes_mut(),
            xvs_proto::MacAddr(source),
            xvs_proto::MacAddr(dest),
        );
        if let Err(frame) = port.transmit(out, received.frame) {
            port.recycle(frame);
        }
    }
    port.flush();
}

/// Sends `count` datagrams of `len` bytes from the client to the server and back, through the port, some at a time.
fn echo_through(testbed: &Testbed, port: &mut XdpPort, count: u32, len: usize) {
    // A process that another test starts has a copy of the former round's socket until it executes its program.
    let server = testbed.inside(Host::Server, || {
        let bound = (0..1_000).find_map(|_| {
            let bound = UdpSocket::bind((Ipv4Addr::from(VIP), 53));
            bound.inspect_err(|_| thread::sleep(Duration::from_millis(10))).ok()
        });
        bound.expect("port 53 is free")
    });
    let client = testbed.inside(Host::Client, || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((Ipv4Addr::from(VIP), 53)).unwrap();
        socket
    });
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
    let done = AtomicBool::new(false);
    let waker = port.waker();
    thread::scope(|scope| {
        let ends = scope.spawn(|| {
            // The forwarding ends even if an assertion below fails.
            struct End<'a>(&'a AtomicBool, xvs_dataplane::port::xdp::Waker);
            impl Drop for End<'_> {
                fn drop(&mut self) {
                    self.0.store(true, Ordering::Release);
                    self.1.wake();
                }
            }
            let _end = End(&done, waker);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let mut buffer = [0; 9000];
                    for _ in 0..count {
                        let (len, from) = server.recv_from(&mut buffer).expect("the request arrives");
                        server.send_to(&buffer[..len], from).unwrap();
                    }
                });
                let numbers: Vec<u32> = (0..count).collect();
                // The buffers of the sockets hold no more large datagrams.
                for window in numbers.chunks(if len > 4096 { 4 } else { 32 }) {
                    for number in window {
                        client.send(&datagram(*number, len)).unwrap();
                    }
                    for number in window {
                        let mut buffer = [0; 9000];
                        let received = client.recv(&mut buffer).expect("the echo arrives");
                        assert!(buffer[..received] == datagram(*number, len), "datagram {number}");
                    }
                }
            });
        });
        while !done.load(Ordering::Acquire) {
            forward_burst(port);
            port.wait(None);
        }
        ends.join().unwrap();
    });
    port.flush();
}

/// Sends a frame that no host answers (experimental EtherType, IEEE 802) to the server.
fn send_one(port: &mut XdpPort, link: LinkId) -> bool {
    let mut frame = port.allocate().expect("a frame is free");
    assert!(frame.resize(20) && frame.grow_front(40), "the packet begins in the headroom");
    frame.bytes_mut().fill(0xa5);
    ethernet::emit(frame.bytes_mut(), xvs_proto::MacAddr(LAN_MAC), xvs_proto::MacAddr(SERVER_MAC), 0x88b5);
    port.transmit(link, frame).map_err(|frame| port.recycle(frame)).is_ok()
}

/// Flushes until the kernel has sent and returned all frames.
fn drain(port: &mut XdpPort) {
    for _ in 0..10_000 {
        port.flush();
        if port.sockets().statistics().all(|(_, _, held)| held.lent_to_transmit == 0) {
            return;
        }
        port.wait(Some(Duration::from_millis(1)));
    }
    panic!("frames stay in the TX rings: {:?}", port.sockets().statistics().collect::<Vec<_>>());
}

fn total(port: &XdpPort) -> u32 {
    let census = port.census();
    census.home + census.out + census.lent
}

/// Runs a test on the director, with a port on its two interfaces and the number of the port's frames.
fn with_port(testbed: &Testbed, test: impl FnOnce(&[Attached; 2], &mut XdpPort, u32) + Send) {
    testbed.inside(Host::Director, || {
        let steering = steering();
        let links = attach_both(&steering);
        let mut port = open_port(&[&links[0], &links[1]]);
        let total = total(&port);
        test(&links, &mut port, total);
    });
}

#[test]
fn datagrams_are_forwarded_in_both_directions_and_every_frame_is_accounted_for() {
    let testbed = Testbed::new();
    with_port(&testbed, |links, port, total| {
        assert_eq!(links[0].mode(), Mode::Native, "{:?}", links[0].native_refused());
        assert_eq!(*port.sockets().copy_mode(), CopyMode::Copy { because_of: "d0".into() });
        assert_balanced(port, total);
        echo_through(&testbed, port, 5_000, 18);
        drain(port);
        assert_balanced(port, total);
    });
}

/// Sends datagrams of this MTU through a director, one of whose interfaces may be in generic mode.
fn echo_packets_of(mtu: u32, mode: Mode) {
    let testbed = Testbed::new();
    for (host, device) in
        [(Host::Client, "c0"), (Host::Director, "d0"), (Host::Director, "d1"), (Host::Server, "s0")]
    {
        testbed.on(host, &format!("ip link set dev {device} mtu {mtu}"));
    }
    if mode == Mode::Generic {
        testbed.only_generic_on_d0();
    }
    with_port(&testbed, |links, port, total| {
        assert_eq!(links[0].mode(), mode, "{:?}", links[0].native_refused());
        echo_through(&testbed, port, 100, mtu as usize - 28);
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn the_largest_packets_of_one_buffer_are_forwarded_in_both_directions() {
    echo_packets_of(ONE_BUFFER_MTU, Mode::Native);
}

#[test]
fn packets_of_several_buffers_are_forwarded_in_both_directions_in_every_mode() {
    for mtu in [ONE_BUFFER_MTU + 1, 9000] {
        echo_packets_of(mtu, Mode::Native);
        echo_packets_of(mtu, Mode::Generic);
    }
}

#[test]
fn frames_arrive_byte_for_byte_with_their_tags() {
    let testbed = Testbed::new();
    // The client is a port too: it sends the frames of the wire.
    let (client_end, mut client) = testbed.inside(Host::Client, || {
        let attached =
            Steering::load(MapSizes::default()).unwrap().attach("c0", Wanted::default(), None).unwrap();
        let port = open_port(&[&attached]);
        (attached, port)
    });
    let (director_end, mut director) = testbed.inside(Host::Director, || {
        let attached = steering().attach("d0", Wanted::default(), None).unwrap();
        let port = open_port(&[&attached]);
        (attached, port)
    });
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(CLIENT_MAC, WAN_MAC)
        .ipv4(CLIENT, VIP, 64)
        .udp(4000, 53)
        .write(&mut plain, &[0xa5; 400])
        .unwrap();
    let tagged = |tags: &[u8]| [&plain[..12], tags, &plain[12..]].concat();
    let sent = [plain.clone(), tagged(&[0x81, 0, 0, 100]), tagged(&[0x88, 0xa8, 0, 10, 0x81, 0, 0x60, 100])];
    for bytes in &sent {
        let mut frame = client.allocate().unwrap();
        assert!(frame.resize(bytes.len()));
        frame.bytes_mut().copy_from_slice(bytes);
        client.transmit(WAN, frame).unwrap();
    }
    client.flush();

    let mut burst = Vec::new();
    while burst.len() < sent.len() {
        assert_eq!(director.wait(Some(Duration::from_secs(20))), Woken::Ready, "{} arrived", burst.len());
        director.receive(&mut burst);
    }
    for (received, bytes) in burst.into_iter().zip(&sent) {
        assert_eq!(received.frame.bytes(), bytes);
        director.recycle(received.frame);
    }
    director.flush();
    drop((client, client_end, director, director_end));
}

#[test]
fn one_interface_in_generic_mode_and_one_in_native_mode_work_together() {
    let testbed = Testbed::new();
    testbed.only_generic_on_d0();
    with_port(&testbed, |links, port, total| {
        assert_eq!(links.each_ref().map(|link| link.mode()), [Mode::Generic, Mode::Native]);
        echo_through(&testbed, port, 1_000, 1472);
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn a_worker_with_several_queues_of_each_interface_serves_them_all() {
    let testbed = Testbed::with_queues(2);
    with_port(&testbed, |links, port, total| {
        assert_eq!(links.each_ref().map(|link| link.receive_queues()), [2, 2]);
        assert_eq!(port.sockets().fds().count(), 4);
        // Each round is another flow, which the kernel may assign to another queue.
        for _ in 0..16 {
            echo_through(&testbed, port, 64, 18);
        }
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn a_full_ring_refuses_frames_until_it_is_flushed() {
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, total| {
        for _ in 0..3 {
            let accepted = (0..600).filter(|_| send_one(port, LAN)).count();
            assert_eq!(accepted, RingSizes::default().transmit as usize);
            assert_balanced(port, total);
            drain(port);
            assert_balanced(port, total);
        }
        assert!(!send_one(port, LinkId(2)), "there is no such link");
        echo_through(&testbed, port, 100, 18);
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn a_full_ring_takes_a_packet_of_several_buffers_whole_or_not_at_all() {
    let send_large = |port: &mut XdpPort| {
        let mut frame = port.allocate_packet(6000).expect("frames are free");
        frame.write(|_, part| part.fill(0xa5));
        ethernet::emit(
            frame.bytes_mut(),
            xvs_proto::MacAddr(LAN_MAC),
            xvs_proto::MacAddr(SERVER_MAC),
            0x88b5,
        );
        port.transmit(LAN, frame).map_err(|frame| port.recycle(frame)).is_ok()
    };
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, total| {
        assert!(!send_large(port), "with an MTU of 1500 the sockets are for packets of one buffer");
        assert_balanced(port, total);
    });
    testbed.on(Host::Server, "ip link set dev s0 mtu 9000");
    testbed.on(Host::Director, "ip link set dev d1 mtu 9000");
    with_port(&testbed, |_, port, total| {
        let slots = RingSizes::default().transmit;
        assert!((1..slots).all(|_| send_one(port, LAN)));
        assert!(!send_large(port), "one slot is left, and two are needed");
        assert_balanced(port, total);
        drain(port);
        assert!((2..slots).all(|_| send_one(port, LAN)) && send_large(port) && !send_one(port, LAN));
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn each_packet_that_the_port_does_not_get_is_counted_once() {
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, total| {
        let sent = u64::from(RingSizes::default().receive) + 500;
        testbed.inside(Host::Client, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            (0..sent)
                .for_each(|_| assert_eq!(socket.send_to(b"flood", (Ipv4Addr::from(VIP), 53)).unwrap(), 5));
        });
        let (mut received, mut burst) = (0, Vec::with_capacity(BURST));
        assert_eq!(port.wait(Some(Duration::ZERO)), Woken::Ready);
        loop {
            port.receive(&mut burst);
            if burst.is_empty() {
                break;
            }
            received += burst.len() as u64;
            burst.drain(..).for_each(|received| port.recycle(received.frame));
            port.flush();
        }
        let lost = port.kernel_drops();
        assert!(lost.fill_ring_empty > 0, "{lost:?}");
        assert_eq!(received + lost.ring_full + lost.fill_ring_empty + lost.other, sent, "{lost:?}");
        assert_balanced(port, total);
    });
}

#[test]
fn a_link_that_is_down_refuses_frames_until_it_is_up() {
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, total| {
        echo_through(&testbed, port, 100, 18);

        testbed.on(Host::Director, "ip link set d1 down");
        assert!(send_one(port, LAN), "the port does not know yet");
        port.flush();
        for _ in 0..3 {
            assert!(!send_one(port, LAN));
            port.flush();
        }
        assert!(send_one(port, WAN), "the other link is up");
        assert_balanced(port, total);

        testbed.on(Host::Director, "ip link set d1 up");
        // The server sends nothing before its kernel has noticed the carrier.
        testbed.until(Host::Server, "ip link show s0", |link| link.contains("state UP"));
        assert!(!send_one(port, LAN), "the first attempt detects it");
        port.flush();
        assert!(send_one(port, LAN));
        drain(port);
        echo_through(&testbed, port, 100, 18);
        drain(port);
        assert_balanced(port, total);
    });
}

#[test]
fn a_removed_link_refuses_frames_and_the_others_continue() {
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, total| {
        testbed.on(Host::Director, "ip link del d1");
        assert!(send_one(port, LAN), "the port does not know yet");
        port.flush();
        assert!(!send_one(port, LAN));
        port.flush();
        assert!(send_one(port, WAN));
        port.flush();
        assert_eq!(port.wait(Some(Duration::ZERO)), Woken::TimedOut, "a worker can still sleep");
        assert_balanced(port, total);
    });
}

#[test]
fn a_call_ends_the_wait_even_if_it_came_before_the_wait() {
    let testbed = Testbed::new();
    with_port(&testbed, |_, port, _| {
        assert_eq!(port.wait(Some(Duration::ZERO)), Woken::TimedOut);
        port.waker().wake();
        port.waker().wake();
        assert_eq!(port.wait(None), Woken::Ready);
        assert_eq!(port.wait(Some(Duration::ZERO)), Woken::TimedOut, "both calls ended one wait");
    });
}

#[test]
fn a_second_socket_on_a_queue_is_refused() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let steering = steering();
        let attached = steering.attach("d0", Wanted::default(), None).unwrap();
        let queues = [Queues { attached: &attached, queues: &[0] }];
        let first = Sockets::open(&queues, RingSizes::default()).unwrap();
        let Err(error) = Sockets::open(&queues, RingSizes::default()) else { panic!("both opened") };
        assert!(
            matches!(&error, SocketError::Occupied { interface, queue: 0 } if interface == "d0"),
            "{error}"
        );
        drop(first);
        Sockets::open(&queues, RingSizes::default()).expect("free again");
    });
}

#[test]
fn a_started_program_does_not_inherit_the_socket_of_a_queue() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let steering = steering();
        let attached = steering.attach("d0", Wanted::default(), None).unwrap();
        let queues = [Queues { attached: &attached, queues: &[0] }];
        let _sockets = Sockets::open(&queues, RingSizes::default()).unwrap();
        let has_sockets = || {
            let mut list = Command::new("ls");
            list.args(["-l", "/proc/self/fd"]).stdin(Stdio::null()).stderr(Stdio::null());
            String::from_utf8(list.output().unwrap().stdout).unwrap().contains("socket:")
        };
        // A socket of another test may be inherited at this moment.
        assert!((0..100).any(|_| !has_sockets()));
    });
}
