//! Limits of SYNs in the steering program, run by the kernel on literal frames. Needs root, or CAP_BPF, CAP_NET_ADMIN
//! and CAP_PERFMON; fails without them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use etherparse::PacketBuilder;
use xvs_dataplane::snapshot::syn_limits::{SynLimit, SynLimits};
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ServiceKey, SynRate};

const VIP: &str = "198.51.100.1";
const WIDE: &str = "198.51.100.2";
const MARKED: &str = "198.51.100.3";
const VIP6: &str = "2001:db8:100::1";

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// This many SYNs at once, and then one a second.
const BURST: u32 = 5;

fn endpoint(addr: &str, port: u16) -> Endpoint {
    Endpoint::new(addr.parse::<IpAddr>().unwrap(), port)
}

fn rules() -> SteeringRules {
    let services = [(VIP, 80), (VIP, 81), (WIDE, 0), (MARKED, 80), (VIP6, 80)];
    SteeringRules {
        services: services.map(|(addr, port)| (Protocol::TCP, endpoint(addr, port))).into(),
        wide: [format!("{MARKED}/31").parse().unwrap()].into(),
        ..SteeringRules::default()
    }
}

fn steering() -> Steering {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    steering.update(&rules()).unwrap();
    steering
}

fn limit() -> Arc<SynLimit> {
    Arc::new(SynLimit::new(SynRate { rate: 1, burst: BURST }, Arc::default()))
}

fn limits(keys: &[(&str, u16)]) -> SynLimits {
    keys.iter().map(|(addr, port)| (ServiceKey::tcp(endpoint(addr, *port)), limit())).collect()
}

fn frame(to: &str, port: u16, flags: u8) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match to.parse().unwrap() {
        IpAddr::V4(to) => ethernet.ipv4([203, 0, 113, 7], to.octets(), 64),
        IpAddr::V6(to) => ethernet.ipv6([0x20; 16], to.octets(), 64),
    };
    let mut tcp = ip.tcp(1024, port, 1, 1000);
    tcp = if flags & SYN != 0 { tcp.syn() } else { tcp };
    tcp = if flags & ACK != 0 { tcp.ack(1) } else { tcp };
    tcp = if flags & RST != 0 { tcp.rst() } else { tcp };
    let mut frame = Vec::new();
    tcp.write(&mut frame, b"").unwrap();
    frame
}

/// Runs the program on `frames` copies of a frame. Returns how many it steers; it refuses the others.
fn steered(steering: &Steering, frame: &[u8], frames: usize) -> usize {
    let verdicts = (0..frames).map(|_| steering.test_run(frame).unwrap());
    verdicts
        .inspect(|verdict| assert!([Verdict::Steered, Verdict::Refused].contains(verdict)))
        .filter(|verdict| *verdict == Verdict::Steered)
        .count()
}

/// Asserts that a burst of SYNs to an endpoint passes, and no more than one for each second that this took.
fn limits_syns(steering: &Steering, addr: &str, port: u16) -> usize {
    let began = Instant::now();
    let passed = steered(steering, &frame(addr, port, SYN), 100);
    let most = BURST as usize + began.elapsed().as_secs() as usize + 1;
    assert!((BURST as usize..=most).contains(&passed), "{addr}:{port}: {passed}");
    passed
}

fn dropped(limits: &SynLimits, addr: &str, port: u16) -> u64 {
    limits[&ServiceKey::tcp(endpoint(addr, port))].dropped.load(Ordering::Relaxed)
}

#[test]
fn a_burst_of_syns_passes_and_other_segments_and_services_are_not_concerned() {
    let mut steering = steering();
    let limits = limits(&[(VIP, 80), (VIP6, 80)]);
    steering.set_syn_limits(&limits).unwrap();
    for vip in [VIP, VIP6] {
        let passed = limits_syns(&steering, vip, 80);
        for flags in [ACK, RST, SYN | ACK, SYN | RST, 0] {
            assert_eq!(steered(&steering, &frame(vip, 80, flags), 20), 20, "{flags:#x}");
        }
        steering.count_drops();
        steering.count_drops();
        assert_eq!(dropped(&limits, vip, 80), (100 - passed) as u64);
    }
    assert_eq!(steered(&steering, &frame(VIP, 81, SYN), 20), 20);
    assert_eq!(steering.test_run(&frame(VIP, 22, SYN)).unwrap(), Verdict::Kernel);
    let mut fragment = frame(VIP, 80, SYN);
    fragment[14 + 6] |= 0x20;
    assert_eq!(steered(&steering, &fragment, 20), 20, "workers decide on fragments");
}

#[test]
fn the_program_leaves_services_of_every_port_and_at_marked_addresses_to_workers() {
    let mut steering = steering();
    steering.set_syn_limits(&limits(&[(WIDE, 0), (MARKED, 80), (VIP, 80)])).unwrap();
    assert_eq!(steered(&steering, &frame(WIDE, 443, SYN), 20), 20);
    assert_eq!(steered(&steering, &frame(MARKED, 80, SYN), 20), 20);
    steering.update(&SteeringRules { wide: Default::default(), ..rules() }).unwrap();
    limits_syns(&steering, MARKED, 80);
    steering.update(&rules()).unwrap();
    assert_eq!(steered(&steering, &frame(MARKED, 80, SYN), 20), 20);
    limits_syns(&steering, VIP, 80);
}

#[test]
fn a_limit_that_is_changed_or_deleted_holds_from_then_on_and_that_of_a_service_that_is_added_too() {
    let mut steering = steering();
    let first = limits(&[(VIP, 80), (VIP, 81)]);
    steering.set_syn_limits(&first).unwrap();
    [80, 81].iter().for_each(|port| _ = limits_syns(&steering, VIP, *port));
    // One is deleted, another one changed.
    let second = limits(&[(VIP, 81)]);
    steering.set_syn_limits(&second).unwrap();
    assert_eq!(steered(&steering, &frame(VIP, 80, SYN), 20), 20);
    let passed = limits_syns(&steering, VIP, 81);
    steering.count_drops();
    assert_eq!(dropped(&second, VIP, 81), (100 - passed) as u64, "not those of the former limit");
    // The service is deleted and added again.
    let without = [(Protocol::TCP, endpoint(VIP, 81))].into();
    steering.subtract(&SteeringRules { services: without, ..SteeringRules::default() }).unwrap();
    assert_eq!(steering.test_run(&frame(VIP, 81, SYN)).unwrap(), Verdict::Kernel);
    steering.update(&rules()).unwrap();
    assert!(steered(&steering, &frame(VIP, 81, SYN), 100) < 100);
    steering.set_syn_limits(&SynLimits::default()).unwrap();
    assert_eq!(steered(&steering, &frame(VIP, 81, SYN), 20), 20);
}
