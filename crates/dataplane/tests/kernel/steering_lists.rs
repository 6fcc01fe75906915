//! Access lists in the steering program, run by the kernel on literal frames, against the check of the workers. Needs
//! root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; fails without them.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use etherparse::PacketBuilder;
use xvs_dataplane::snapshot::lists::{List, Lists, Networks, Scope};
use xvs_dataplane::snapshot::{Service, Snapshot};
use xvs_dataplane::steering::{Steering, SteeringRules, Verdict};
use xvs_proto::{Endpoint, LinkId, Parsed, Prefix, parse};
use xvs_sched::scheduler::{self, Setup};
use xvs_sched::{ClientAddress, ServiceKey};

const VIP: &str = "198.51.100.1";
const WIDE: &str = "198.51.100.2";
const MARKED: &str = "198.51.100.3";
const VIP6: &str = "2001:db8:100::1";

fn tcp(addr: &str, port: u16) -> ServiceKey {
    ServiceKey::tcp(Endpoint::new(addr.parse::<IpAddr>().unwrap(), port))
}

fn services() -> [ServiceKey; 6] {
    [tcp(VIP, 80), tcp(VIP, 81), tcp(WIDE, 0), tcp(WIDE, 443), tcp(VIP6, 80), tcp(MARKED, 80)]
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for key in services() {
        snapshot.services.insert(Arc::new(Service {
            key,
            rule: "".into(),
            is_starting: false,
            scheduler: scheduler::build("rr", &Setup::default()).unwrap(),
            persistence: None,
            quic: None,
            one_packet: false,
            client_address: ClientAddress::Hidden,
            client_limit: None,
            syn_proxy: Default::default(),
            place: Arc::default(),
            members: Box::default(),
            live: Arc::default(),
        }));
    }
    snapshot
}

/// The services, and all traffic to the address of one by the network of a mark.
fn rules() -> SteeringRules {
    let endpoints = services().map(|key| match key {
        ServiceKey::Address { protocol, endpoint } => (protocol, endpoint),
        ServiceKey::Mark { .. } => unreachable!(),
    });
    let wide = [format!("{MARKED}/32").parse().unwrap()].into();
    SteeringRules { services: endpoints.into(), wide, ..SteeringRules::default() }
}

/// A program with [`rules`].
fn steering() -> Steering {
    let mut steering =
        Steering::load_for_test_runs().expect("run as root: the kernel must take BPF programs");
    steering.update(&rules()).unwrap();
    steering
}

fn frame(from: IpAddr, to: &str, port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (from, to.parse().unwrap()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => unreachable!("both are of one family"),
    };
    ip.tcp(1024, port, 1, 1000).write(&mut frame, b"hello").unwrap();
    frame
}

fn refused(snapshot: &Snapshot, frame: &[u8]) -> bool {
    let Ok(Parsed::Ip(packet)) = parse(frame) else { panic!("{frame:02x?}") };
    snapshot.refuses(LinkId(0), &packet, || false).is_some()
}

fn networks(prefixes: impl IntoIterator<Item = Prefix>) -> Option<Arc<Networks>> {
    Some(Arc::new(prefixes.into_iter().collect())).filter(|networks: &Arc<Networks>| !networks.is_empty())
}

fn list(texts: &[&str]) -> List {
    List { parts: [networks(texts.iter().map(|text| text.parse().unwrap())), None], ..List::default() }
}

/// Numbers that look random, the same in each run (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// An address of few that lie near each other, so that networks of all lengths contain some and not others.
    fn v4(&mut self) -> IpAddr {
        let bits = 1u32 << self.below(32) | 1 << self.below(32);
        IpAddr::from((0xcb00_7100 ^ bits).to_be_bytes())
    }

    fn v6(&mut self) -> IpAddr {
        let bits = 1u128 << self.below(128) | 1 << self.below(128);
        IpAddr::from((0x2001_0db8_0001_0002_0003_0004_0005_0006 ^ bits).to_be_bytes())
    }

    fn prefix(&mut self) -> Prefix {
        let long = self.below(4) > 0;
        match self.below(2) {
            0 => Prefix::new(self.v4(), if long { 20 + self.below(13) } else { self.below(33) } as u8),
            _ => Prefix::new(self.v6(), if long { 40 + self.below(89) } else { self.below(129) } as u8),
        }
        .unwrap()
    }

    fn list(&mut self, most: u64) -> List {
        let mut part = || {
            let count = self.below(most + 1);
            networks((0..count).map(|_| self.prefix()).collect::<Vec<_>>())
        };
        List { parts: [part(), part()], ..List::default() }
    }

    fn scope(&mut self) -> Scope {
        let most = [0, 0, 3, 40];
        let deny = self.below(4);
        let allow = self.below(4);
        Scope { deny: self.list(most[deny as usize]), allow: self.list(most[allow as usize]) }
    }
}

#[test]
fn the_program_refuses_what_workers_refuse_over_random_lists_and_packets() {
    let (mut steering, mut snapshot, mut numbers) = (steering(), snapshot(), Numbers(0x9e37_79b9));
    let (mut refusals, mut passes) = (0, 0);
    for round in 0..40 {
        // Half of them without the network of a mark.
        if round == 20 {
            steering.update(&SteeringRules { wide: Default::default(), ..rules() }).unwrap();
        }
        let own: Vec<_> = services().into_iter().filter(|_| numbers.below(2) == 0).collect();
        let own: Vec<_> = own.into_iter().map(|key| (key, numbers.scope())).collect();
        let lists = Arc::new(Lists::new(numbers.scope(), own));
        steering.set_lists(Some((lists.clone(), vec![tcp(WIDE, 0)]))).unwrap();
        snapshot.lists = Some(lists);
        for _ in 0..200 {
            let (to, port) = [
                (VIP, 80),
                (VIP, 81),
                (VIP, 22),
                (WIDE, 443),
                (WIDE, 5000),
                (VIP6, 80),
                (VIP6, 22),
                (MARKED, 80),
            ][numbers.below(8) as usize];
            let from = if to == VIP6 { numbers.v6() } else { numbers.v4() };
            let frame = frame(from, to, port);
            let expected = match (to, port) {
                (VIP | VIP6, 22) => Verdict::Kernel,
                // A mark may choose another service: workers decide.
                (MARKED, _) if round < 20 => Verdict::Steered,
                _ if refused(&snapshot, &frame) => Verdict::Refused,
                _ => Verdict::Steered,
            };
            match expected {
                Verdict::Refused => refusals += 1,
                _ => passes += 1,
            }
            assert_eq!(steering.test_run(&frame).unwrap(), expected, "round {round}: {from} to {to}:{port}");
        }
    }
    assert!(refusals > 1000 && passes > 1000, "{refusals} {passes}");
    steering.set_lists(None).unwrap();
    for _ in 0..100 {
        assert_eq!(steering.test_run(&frame(numbers.v4(), VIP, 80)).unwrap(), Verdict::Steered);
    }
}

#[test]
fn a_refused_packet_is_counted_at_its_list_and_other_packets_of_its_sender_are_not_refused() {
    let mut steering = steering();
    let own = Scope { allow: list(&["203.0.113.0/24"]), ..Scope::default() };
    let all = Scope { deny: list(&["203.0.113.7", "2001:db8::/32"]), ..Scope::default() };
    let lists = Arc::new(Lists::new(all, [(tcp(VIP, 81), own)]));
    steering.set_lists(Some((lists.clone(), Vec::new()))).unwrap();
    let verdict =
        |from: &str, to: &str, port| steering.test_run(&frame(from.parse().unwrap(), to, port)).unwrap();
    assert_eq!(verdict("203.0.113.7", VIP, 80), Verdict::Refused);
    assert_eq!(verdict("203.0.113.7", VIP, 81), Verdict::Refused);
    assert_eq!(verdict("203.0.113.8", VIP, 81), Verdict::Steered);
    assert_eq!(verdict("203.0.112.8", VIP, 81), Verdict::Refused);
    assert_eq!(verdict("2001:db8:1::1", VIP6, 80), Verdict::Refused);
    // Other traffic, and a service of every port that is not certain to have the packet.
    assert_eq!(verdict("203.0.113.7", VIP, 22), Verdict::Kernel);
    assert_eq!(verdict("203.0.113.7", WIDE, 5000), Verdict::Steered);
    let mut fragment = frame("203.0.113.7".parse().unwrap(), VIP, 80);
    fragment[14 + 6] |= 0x20;
    assert_eq!(steering.test_run(&fragment).unwrap(), Verdict::Steered);
    let echo = [&frame("203.0.113.7".parse().unwrap(), VIP, 80)[..23], &[1], &[8; 30]].concat();
    assert_ne!(steering.test_run(&echo).unwrap(), Verdict::Refused);
    steering.count_drops();
    steering.count_drops();
    let dropped = |list: &List| list.dropped.load(Ordering::Relaxed);
    assert_eq!(dropped(&lists.all.deny), 3);
    assert_eq!(dropped(&lists.services[&tcp(VIP, 81)].allow), 1);
}

#[test]
fn packets_to_local_ports_of_fullnat_are_left_to_the_workers_because_they_may_be_replies() {
    let mut steering = steering();
    let translated = [(WIDE.parse().unwrap(), (6000, 6999))].into();
    steering.update(&SteeringRules { translated, ..rules() }).unwrap();
    let lists = Arc::new(Lists::new(Scope { allow: list(&["203.0.113.0/24"]), ..Scope::default() }, []));
    steering.set_lists(Some((lists.clone(), vec![tcp(WIDE, 0)]))).unwrap();
    for (port, expected) in [
        (5999, Verdict::Refused),
        (6000, Verdict::Steered),
        (6999, Verdict::Steered),
        (7000, Verdict::Refused),
    ] {
        let frame = frame("203.0.112.8".parse().unwrap(), WIDE, port);
        assert_eq!(steering.test_run(&frame).unwrap(), expected, "{port}");
    }
    steering.count_drops();
    assert_eq!(lists.all.allow.dropped.load(Ordering::Relaxed), 2);
}

#[test]
fn a_set_of_a_million_networks_is_replaced_as_a_whole() {
    let (mut steering, mut snapshot) = (steering(), snapshot());
    for seed in [1, 2] {
        let mut numbers = Numbers(seed);
        let mut address = || IpAddr::from((numbers.next() as u32 | 0x8000_0000).to_be_bytes());
        let prefixes: Vec<_> = (0..1_000_000).map(|_| Prefix::host(address())).collect();
        let deny = List { parts: [None, networks(prefixes.iter().copied())], ..List::default() };
        let lists = Arc::new(Lists::new(Scope { deny, ..Scope::default() }, []));
        steering.set_lists(Some((lists.clone(), Vec::new()))).unwrap();
        snapshot.lists = Some(lists);
        for prefix in prefixes.iter().step_by(10_007) {
            assert_eq!(
                steering.test_run(&frame(prefix.addr(), VIP, 80)).unwrap(),
                Verdict::Refused,
                "{prefix}"
            );
        }
        let mut others = Numbers(seed + 7);
        for _ in 0..1000 {
            let frame = frame(IpAddr::from((others.next() as u32).to_be_bytes()), VIP, 80);
            let expected = if refused(&snapshot, &frame) { Verdict::Refused } else { Verdict::Steered };
            assert_eq!(steering.test_run(&frame).unwrap(), expected);
        }
    }
}
