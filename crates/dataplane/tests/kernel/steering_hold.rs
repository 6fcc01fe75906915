//! The hold of the steering program, run by the kernel on frames that find no socket (BPF_PROG_TEST_RUN). Needs root,
//! or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; fails without them.

use std::time::Duration;

use etherparse::PacketBuilder;
use xvs_dataplane::clock::Clock;
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, Protocol};

const CLIENT: [u8; 4] = [203, 0, 113, 7];
const VIP: [u8; 4] = [192, 0, 2, 1];
const REAL: [u8; 4] = [198, 51, 100, 2];

/// A loaded program that steers a service and the replies of its real server.
fn steering() -> Steering {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    let rules = SteeringRules {
        services: [(Protocol::TCP, Endpoint::new(VIP, 80))].into(),
        nat_destinations: [(Protocol::TCP, Endpoint::new(REAL, 8080))].into(),
        ..Default::default()
    };
    steering.update(&rules).unwrap();
    steering
}

fn tcp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.0, to.0, 64)
        .tcp(from.1, to.1, 1, 1000)
        .write(&mut frame, b"hello")
        .unwrap();
    frame
}

/// The machine's time, which the program compares beats with.
fn now() -> Duration {
    Clock::Monotonic.elapsed()
}

#[test]
fn a_frame_that_finds_no_socket_is_held_and_counted_until_the_last_beat_is_as_old_as_the_hold() {
    let steering = steering();
    let (hold, ours) = (steering.hold(), tcp((CLIENT, 1), (VIP, 80)));
    let verdict = |frame: &[u8]| steering.test_run_without_sockets(frame).unwrap();
    hold.set(Duration::from_secs(3600), now());
    assert_eq!((verdict(&ours), verdict(&ours), hold.dropped()), (Verdict::Held, Verdict::Held, 2));
    let reply = tcp((REAL, 8080), (CLIENT, 1));
    assert_eq!((verdict(&reply), hold.dropped()), (Verdict::Held, 3), "a reply to translate");
    let other = tcp((CLIENT, 1), (VIP, 81));
    assert_eq!((verdict(&other), hold.dropped()), (Verdict::Kernel, 3), "other traffic");
    // A beat that a worker stored after the program read the clock.
    hold.beat(now() + Duration::from_secs(1));
    assert_eq!((verdict(&ours), hold.dropped()), (Verdict::Held, 4));
    let length = Duration::from_millis(1);
    hold.set(length, now().saturating_sub(Duration::from_secs(1)));
    assert_eq!((verdict(&ours), hold.dropped()), (Verdict::Kernel, 4), "the hold is over");
    hold.set(Duration::from_secs(3600), now());
    assert_eq!((verdict(&ours), hold.dropped()), (Verdict::Held, 5), "a worker beats again");
}

#[test]
fn without_a_hold_a_frame_that_finds_no_socket_goes_to_the_kernel() {
    let (steering, ours) = (steering(), tcp((CLIENT, 1), (VIP, 80)));
    assert_eq!(steering.test_run_without_sockets(&ours).unwrap(), Verdict::Kernel);
    steering.hold().set(Duration::ZERO, now());
    assert_eq!(steering.test_run_without_sockets(&ours).unwrap(), Verdict::Kernel);
    assert_eq!(steering.hold().dropped(), 0);
}
