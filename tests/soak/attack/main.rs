//! The suite `scripts/soak attack`: clients of all forwarding methods while forged packets come.
//!
//! ```text
//! attack_soak FORGE.O [CONNECTIONS [SECONDS]]
//! ```
//!
//! Arguments: `forge.bpf.c`, compiled; lasting connections by each forwarding method (250); seconds of each flood (10).
//! The table has 65,536 entries and one worker serves. Each attack runs three times: at full speed, which measures what
//! the worker takes, then at 0.8 × and 3 × that rate, if the source can send so much. Servers drop forged packets that
//! arrive with their forged source. Prints a row for each flood. Fails if a lasting connection is lost, if at 0.8 ×
//! fewer than 99 % of the new connections have their handshake within 3 s, or if five seconds after a flood any new
//! connection has not. Needs root, two cores and `cargo build --workspace --bins` of the same profile.

#[path = "../restart/connections.rs"]
mod connections;
mod forge;

use std::fs;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};
use xvs::cluster::{REAL_SERVERS, succeed, virtual_endpoint};
use xvs::{Cluster, Director, Host, Layout, Method, Workers};

use connections::{Client, METHODS, Servers, Tally};
use forge::{Forge, Kind, SOURCES, mac};

/// The port of a UDP service.
const UDP: u16 = 5301;
/// A handshake within this is in time: the client has repeated its SYN once.
const IN_TIME: Duration = Duration::from_secs(3);
/// After this the director is normal again.
const NORMAL: Duration = Duration::from_secs(5);
/// How long lasting connections may take to be answered: longer than their own patience.
const PATIENCE: Duration = Duration::from_secs(45);

/// An attack: its name, the packets, their port, and the mode of the SYN proxy of that service.
const ATTACKS: [(&str, Kind, u16, &str); 11] = [
    ("SYN, DR", Kind::SYN, 9003, "off"),
    ("SYN, NAT", Kind::SYN, 9001, "off"),
    ("SYN, FULLNAT", Kind::SYN, 9002, "off"),
    ("SYN, NAT, SYN proxy", Kind::SYN, 9001, "on"),
    ("SYN, FULLNAT, SYN proxy", Kind::SYN, 9002, "on"),
    ("ACK, NAT, SYN proxy", Kind::ACK, 9001, "on"),
    ("ACK, NAT", Kind::ACK, 9001, "off"),
    ("SYN+ACK, NAT", Kind::SYN_ACK, 9001, "off"),
    ("UDP, NAT", Kind::Udp, UDP, "off"),
    ("fragments of UDP", Kind::Fragment, UDP, "off"),
    ("ICMP errors, NAT", Kind::IcmpError, 9001, "off"),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers: Option<Vec<u64>> = arguments.iter().skip(1).map(|word| word.parse().ok()).collect();
    let program = arguments.first().map(std::fs::read);
    let (Some(Ok(program)), Some(numbers)) = (program, numbers.filter(|numbers| numbers.len() <= 2)) else {
        eprintln!(
            "usage: attack_soak FORGE.O [CONNECTIONS [SECONDS]], a compiled forge.bpf.c and two numbers"
        );
        return ExitCode::from(2);
    };
    let number = |at: usize, default| numbers.get(at).copied().unwrap_or(default);
    match run(&program, number(0, 250) as usize, Duration::from_secs(number(1, 10))) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn run(program: &[u8], count: usize, time: Duration) -> bool {
    let cluster = Cluster::up(Layout::default());
    Method::Tunnel.prepare(&cluster);
    // Answers to forged packets go to the client, which drops them.
    cluster.ip(Host::Director, &format!("route add {SOURCES}/8 via 198.51.100.10"));
    for server in REAL_SERVERS {
        succeed(cluster.command(server, "nft").arg(forge::dropped(UDP)));
    }
    let director = Director::start_with(&cluster, Workers::One, &["--conn-table-size", "65536"]);
    share_cores(&cluster);
    let servers = REAL_SERVERS.map(|host| Servers::start(&cluster, host));
    director.xvs("laddr add 192.0.2.1 --ports 10000-65535");
    for (method, _, port) in METHODS {
        director.add_service(xvs::director::Protocol::Tcp, port, method);
    }
    director.add_service(xvs::director::Protocol::Udp, UDP, Method::Nat);

    let client = Client::start(&cluster, count, None);
    let soak = Soak { cluster: &cluster, director: &director, client: &client, time };
    println!("{count} lasting connections by each method, 50 new ones a second");
    let start = Instant::now();
    while client.tally().open != [count; METHODS.len()] && start.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(50));
    }
    soak.recover();
    let quiet = soak.window(|| {
        thread::sleep(time);
        0
    });
    println!("without an attack: {:.1} % of handshakes within 3 s", 100.0 * quiet.handshakes);
    println!(
        "\n{:<24} {:>9} {:>9} {:>6} {:>5} {:>10} {:>10} {:>9}",
        "attack", "sent/s", "taken/s", "ratio", "lost", "handshakes", "throughput", "slowest"
    );
    let mut good = quiet.handshakes == 1.0;
    for (name, kind, port, proxy) in ATTACKS {
        good &= soak.attack(program, name, kind, port, proxy, &quiet);
    }
    client.tally().print(METHODS.map(|(_, name, _)| name), &servers);
    println!("\n{}", director.status());
    good
}

/// What was seen in a time.
struct Window {
    /// Packets a second that were forged, and that the worker has received in all.
    sent: f64,
    received: f64,
    /// Lasting connections that were lost.
    lost: usize,
    /// The share of new connections whose handshake was in time.
    handshakes: f64,
    /// Bytes a second of answers.
    throughput: f64,
    /// The longest time from a request to the end of its answer.
    slowest: Duration,
}

struct Soak<'a> {
    cluster: &'a Cluster,
    director: &'a Director<'a>,
    client: &'a Client,
    time: Duration,
}

impl Soak<'_> {
    fn attack(&self, program: &[u8], name: &str, kind: Kind, port: u16, proxy: &str, quiet: &Window) -> bool {
        if port != UDP {
            self.director.adm(&format!("-E -t {} -s rr --syn-proxy {proxy}", virtual_endpoint(port)));
        }
        let mac = mac(&self.cluster.ip(Host::Director, "link show dev wan")).expect("ip shows the address");
        let send = |rate: Option<u64>, time: Duration| {
            self.cluster.run(Host::Client, || {
                // On the client's core, in a thread of its own because of the priority.
                let forge = Forge::new(program, kind, port, ("wan", mac), rate)
                    .expect("the kernel takes the program");
                forge.send(time)
            })
        };
        let most = self.window(|| send(None, self.time / 4));
        let usual = quiet.received;
        let most = (most.received - usual).max(1.0);
        let mut good = true;
        for ratio in [0.8, 3.0] {
            let window = self.window(|| send(Some((most * ratio) as u64), self.time));
            println!(
                "{name:<24} {:>9.0} {:>9.0} {:>6.2} {:>5} {:>9.1}% {:>9.1}% {:>6} ms",
                window.sent,
                window.received - usual,
                window.sent / most,
                window.lost,
                100.0 * window.handshakes,
                100.0 * window.throughput / quiet.throughput,
                window.slowest.as_millis(),
            );
            thread::sleep(NORMAL);
            let after = self.window(|| {
                thread::sleep(IN_TIME);
                0
            });
            if after.handshakes < 1.0 {
                println!("  5 s afterwards: {:.1} % of handshakes", 100.0 * after.handshakes);
            }
            good &= window.lost + after.lost == 0 && after.handshakes == 1.0;
            good &= ratio > 1.0 || window.handshakes >= 0.99;
        }
        if port != UDP {
            self.director.adm(&format!("-E -t {} -s rr", virtual_endpoint(port)));
        }
        good
    }

    /// Watches the connections while something sends packets, and until each of them was answered again.
    fn window(&self, act: impl FnOnce() -> u64) -> Window {
        self.client.take_longest_answer();
        let (before, received, start) = (self.client.tally(), self.received(), Instant::now());
        let sent = act();
        let (after, received, end) = (self.client.tally(), self.received() - received, Instant::now());
        let seconds = (end - start).as_secs_f64();
        thread::sleep(IN_TIME);
        self.recover();
        let Tally { begun, handshakes, lost, .. } = self.client.tally();
        let is_in = |at: &Instant| (start..end).contains(at);
        let begun = begun.iter().filter(|at| is_in(at)).count();
        let in_time = handshakes.iter().filter(|(at, time)| is_in(at) && *time <= IN_TIME).count();
        Window {
            sent: sent as f64 / seconds,
            received: received as f64 / seconds,
            lost: lost.len() - before.lost.len(),
            handshakes: in_time as f64 / begun.max(1) as f64,
            throughput: (after.bytes - before.bytes) as f64 / seconds,
            slowest: self.client.take_longest_answer(),
        }
    }

    /// Waits until every lasting connection has been answered once more.
    fn recover(&self) {
        let start = Instant::now();
        while self.client.tally().answered < start && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Packets that the worker has received.
    fn received(&self) -> u64 {
        let counters = self.director.xvs("counters");
        let value = counters.lines().find_map(|line| line.strip_prefix("rx_packets "));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    }
}

/// Gives the kernel's work for the director's interfaces to the worker's core, which is the last one, and all else to
/// the first.
fn share_cores(cluster: &Cluster) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let (Some(first), Some(last)) = (cores.first(), cores.last()) else { return };
    let before = napi_threads();
    // The kernel shows the interfaces of the namespace by which sysfs was mounted.
    let threaded = "mount -t sysfs sysfs /sys && for interface in wan lan; do \
                    echo 1 >/sys/class/net/$interface/threaded; done";
    succeed(cluster.command(Host::Director, "sh").args(["-c", threaded]));
    let mut of_worker = CpuSet::new();
    of_worker.set(last.id);
    for thread in napi_threads().into_iter().filter(|thread| !before.contains(thread)) {
        sched_setaffinity(Some(thread), &of_worker).expect("the kernel's threads can be moved");
    }
    core_affinity::set_for_current(*first);
}

fn napi_threads() -> Vec<Pid> {
    let is_napi = |pid: &Pid| {
        let comm = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero()));
        comm.is_ok_and(|comm| comm.starts_with("napi/"))
    };
    let processes = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(is_napi).collect()
}
