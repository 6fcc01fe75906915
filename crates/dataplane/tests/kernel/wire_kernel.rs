//! The kernel beside the director: frames that are passed to it, interfaces after shutdown, and refusals to attach.
//! Needs root; see `support/testbed.rs`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::testbed::{DIRECTOR, Host, LAN_MAC, Testbed, assert_balanced, attach_both, open_port};
use xvs_dataplane::port::Port;
use xvs_dataplane::steering::losses::{Leaving, Losses};
use xvs_dataplane::steering::{MapSizes, Steering, SteeringRules};
use xvs_proto::{Endpoint, Protocol};
use xvs_xdp::BURST;
use xvs_xdp::{AttachError, Mode, Wanted, index_of};

/// Steers TCP to a port of the director on which no program listens.
fn steering() -> Steering {
    let mut steering = Steering::load(MapSizes::default()).expect("run as root");
    let services = [(Protocol::TCP, Endpoint::new(DIRECTOR, 81))].into();
    steering.update(&SteeringRules { services, ..Default::default() }).unwrap();
    steering
}

/// Connects from the client while the director passes every frame to its kernel. Returns the result of the connection,
/// and the number of passed frames.
fn connect_with_everything_passed(testbed: &Testbed, expected: Mode) -> (io::Result<TcpStream>, usize) {
    testbed.inside(Host::Director, || {
        let steering = steering();
        let attached = steering.attach("d0", Wanted::default(), None).unwrap();
        assert_eq!(attached.mode(), expected, "{:?}", attached.native_refused());
        let mut port = open_port(&[&attached]);
        let total = port.census().home + port.census().lent;
        let done = AtomicBool::new(false);
        let waker = port.waker();
        let mut passed = 0;
        let result = thread::scope(|scope| {
            let client = scope.spawn(|| {
                let result = testbed.inside(Host::Client, || {
                    let address = SocketAddr::from((Ipv4Addr::from(DIRECTOR), 81));
                    TcpStream::connect_timeout(&address, Duration::from_secs(20))
                });
                done.store(true, Ordering::Release);
                waker.wake();
                result
            });
            let mut burst = Vec::with_capacity(BURST);
            while !done.load(Ordering::Acquire) {
                port.receive(&mut burst);
                for received in burst.drain(..) {
                    passed += 1;
                    if let Err(frame) = port.pass_to_kernel(received.link, received.frame) {
                        port.recycle(frame);
                    }
                }
                port.flush();
                port.wait(None);
            }
            client.join().unwrap()
        });
        assert_balanced(&port, total);
        (result, passed)
    })
}

fn assert_refused_by_the_kernel(testbed: &Testbed, mode: Mode) {
    let (result, passed) = connect_with_everything_passed(testbed, mode);
    let error = result.expect_err("nothing listens there");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
    assert_eq!(passed, 1, "the SYN was steered once and never again");
}

#[test]
fn a_syn_passed_to_the_kernel_is_answered_as_if_the_interface_had_received_it() {
    let testbed = Testbed::new();
    assert_refused_by_the_kernel(&testbed, Mode::Native);
}

#[test]
fn a_syn_passed_to_the_kernel_in_generic_mode_is_not_steered_again() {
    let testbed = Testbed::new();
    testbed.only_generic_on_d0();
    assert_refused_by_the_kernel(&testbed, Mode::Generic);
}

#[test]
fn packets_that_are_not_steered_reach_the_kernel_directly() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let steering = steering();
        let links = attach_both(&steering);
        let port = open_port(&[&links[0], &links[1]]);
        testbed.on(Host::Client, "ping -q -c 1 -W 20 203.0.113.1");
        drop(port);
        testbed.on(Host::Client, "ping -q -c 1 -W 20 203.0.113.1");
    });
}

#[test]
fn after_shutdown_no_program_and_no_tap_remain() {
    let testbed = Testbed::new();
    let count = |what: &str| testbed.on(Host::Director, "ip -d link").matches(what).count();
    testbed.inside(Host::Director, || {
        let steering = steering();
        let links = attach_both(&steering);
        let port = open_port(&[&links[0], &links[1]]);
        assert_eq!((count("prog/xdp"), count(": xvs")), (2, 2));
        drop((port, links));
    });
    assert_eq!(count("prog/xdp"), 0);
    // A child process of another test that has not executed its program yet may still hold the TAP open.
    testbed.until(Host::Director, "ip link", |links| !links.contains(": xvs"));
}

#[test]
fn the_tap_sends_no_arp_and_has_no_address() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let steering = steering();
        let attached = steering.attach("d0", Wanted::default(), None).unwrap();
        let _port = open_port(&[&attached]);
        let tap = testbed.on(Host::Director, "ip -s addr show xvs0");
        assert!(tap.contains("NOARP") && tap.contains(",UP"), "{tap}");
        assert!(!tap.contains("inet"), "{tap}");
    });
}

#[test]
fn an_interface_that_does_not_exist_is_refused_by_name() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        for name in ["d7", "a-name-longer-than-interfaces-have"] {
            let error = steering().attach(name, Wanted::default(), None).unwrap_err();
            assert!(
                matches!(&error, AttachError::NoSuchInterface { interface } if interface == name),
                "{error}"
            );
        }
    });
}

#[test]
fn an_interface_with_another_program_is_refused_with_the_process_that_holds_it() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let (first, second) = (steering(), steering());
        let held = first.attach("d0", Wanted::default(), None).unwrap();
        let error = second.attach("d0", Wanted::default(), None).unwrap_err();
        let process = std::process::id();
        let text =
            format!("d0 has an XDP program, that of another xvsd, held by process {process}; stop that xvsd");
        assert_eq!(error.to_string(), text);
        drop(held);
        second.attach("d0", Wanted::default(), None).expect("free again");
    });
}

#[test]
fn generic_mode_is_refused_while_packets_are_merged_or_tags_stripped() {
    let testbed = Testbed::new();
    testbed.only_generic_on_d0();
    testbed.inside(Host::Director, || {
        let steering = steering();
        for (feature, remedy) in [("gro", "ethtool -K d0 gro off"), ("rxvlan", "ethtool -K d0 rxvlan off")] {
            testbed.on(Host::Director, &format!("ethtool -K d0 {feature} on"));
            let error = steering.attach("d0", Wanted::default(), None).unwrap_err();
            assert!(matches!(error, AttachError::Refused { .. }), "{error}");
            assert!(error.to_string().contains(remedy), "{error}");
            testbed.on(Host::Director, remedy);
        }
        assert_eq!(steering.attach("d0", Wanted::default(), None).unwrap().mode(), Mode::Generic);
    });
}

#[test]
fn an_mtu_of_packets_in_several_buffers_is_attached_in_every_mode() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        for mode in [Mode::Native, Mode::Generic] {
            testbed.on(Host::Director, "ip link set dev d0 mtu 9000");
            let attached = steering().attach("d0", Wanted::default(), None).unwrap();
            assert_eq!((attached.mode(), attached.mtu(), attached.receive_queues()), (mode, 9000, 1));
            drop(attached);
            testbed.only_generic_on_d0();
        }
    });
}

#[test]
fn a_veth_takes_a_redirected_frame_when_its_peer_has_gro_and_trials_are_not_counted() {
    let testbed = Testbed::new();
    testbed.inside(Host::Director, || {
        let mut losses = Losses::follow().expect("run as root");
        let lan = index_of("d1").unwrap();
        assert!(!losses.is_taken(lan, LAN_MAC));
        testbed.on(Host::Server, "ethtool -K s0 gro on");
        assert!(losses.is_taken(lan, LAN_MAC));
        testbed.on(Host::Server, "ip link set s0 down");
        assert!(!losses.is_taken(lan, LAN_MAC));
        assert_eq!(losses.of(lan), Leaving::default());
    });
    assert!(
        !Losses::follow().expect("run as root").is_taken(u32::MAX, LAN_MAC),
        "there is no such interface"
    );
}
