//! Time until a failing real server gets no more connections, for each kind of failure; lost requests, and the return.
//!
//! A client begins fifty connections a second throughout. Times are printed with the bound that follows from the
//! settings, and never asserted: the assertions are about the servers that answer and the listing. A time begins before
//! the command that makes the server fail. Needs root. Not here: other effects of a change
//! (`tests/netlab/health_follow.rs`).

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::{VIP, real_server, succeed, virtual_endpoint};
use xvs::request_stream::RequestStream;
use xvs::servers::{Mood, Moody};
use xvs::{Cluster, Director, Host, Method, Workers, traffic, wait};

/// Ports of the services whose first real server is nginx, and the [`Moody`] server.
const WEB: u16 = 80;
const OTHER: u16 = 81;

/// The port of the [`Moody`] server.
const MOODY: u16 = 8081;

/// How long a client waits for a response.
const PATIENCE: Duration = Duration::from_secs(1);

/// The settings in the file: the interval, the timeout, the number of failures, and the interval between them.
const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_millis(300);
const FALL: u32 = 2;
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

fn file(cluster: &Cluster) -> PathBuf {
    let server = |number, port| {
        let addr = real_server(number);
        format!("real_server {addr} {port} {{\nHTTP_GET {{\nurl {{\npath /\nstatus_code 200\n}}\n}}\n}}\n")
    };
    let service = |port, first| {
        format!(
            "virtual_server {VIP} {port} {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\nwarmup 0\ndelay_loop {}\n\
             connect_timeout {}\nretry {}\ndelay_before_retry {}\n{}{}}}\n",
            INTERVAL.as_secs_f64(),
            TIMEOUT.as_secs_f64(),
            FALL - 1,
            RETRY_INTERVAL.as_secs_f64(),
            server(1, first),
            server(2, WEB)
        )
    };
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, service(WEB, WEB) + &service(OTHER, MOODY)).expect("the cluster's folder takes a file");
    path
}

/// Bound on the time from a failure to the last connection to the server.
fn bound(answers: Answers) -> Duration {
    let timeouts = match answers {
        Answers::AtOnce => Duration::ZERO,
        Answers::Late => TIMEOUT * FALL,
    };
    // Jitter makes intervals up to 5 % longer.
    (INTERVAL + RETRY_INTERVAL * (FALL - 1)).mul_f64(1.05) + timeouts
}

/// How soon a client notices that the server has failed.
#[derive(Clone, Copy)]
enum Answers {
    AtOnce,
    Late,
}

/// The first real server.
struct Victim<'a> {
    cluster: &'a Cluster,
    moody: Moody,
}

impl Victim<'_> {
    fn run(&self, host: Host, command: &str) {
        let mut words = command.split_whitespace();
        let program = words.next().expect("a command has a first word");
        succeed(self.cluster.command(host, program).args(words));
    }

    fn own(&self, command: &str) {
        self.run(Host::RealServer(1), command);
    }

    fn folder(&self) -> PathBuf {
        self.cluster.state().join("rs1")
    }

    /// nginx's master, if it runs.
    fn master(&self) -> Option<Pid> {
        let written = fs::read_to_string(self.folder().join("nginx.pid")).ok()?;
        Pid::from_raw(written.trim().parse().ok()?)
    }

    /// nginx's processes, its master first.
    fn nginx(&self) -> Vec<Pid> {
        let master = self.master().expect("nginx runs");
        let number = master.as_raw_nonzero();
        let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children"));
        let children = children.expect("the kernel tells the children of a process");
        let children = children.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?));
        [master].into_iter().chain(children).collect()
    }

    fn signal_nginx(&self, signal: Signal) {
        for process in self.nginx() {
            kill_process(process, signal).expect("nginx runs");
        }
    }

    fn start_nginx(&self) {
        wait::until("nginx has ended", || self.master().is_none().then_some(()));
        let folder = self.folder();
        let folder = folder.display();
        self.own(&format!("nginx -e {folder}/error.log -p {folder} -c {folder}/nginx.conf"));
    }

    /// Applies this statement of nft to each packet to it.
    fn filter(&self, statement: &str) {
        let chain = "add chain inet fault input { type filter hook input priority 0; }";
        let rules = format!("add table inet fault; {chain}; add rule inet fault input {statement}");
        succeed(self.cluster.command(Host::RealServer(1), "nft").arg(rules));
    }
}

/// A kind of failure.
struct Failure {
    name: &'static str,
    /// The port of the affected service.
    service: u16,
    answers: Answers,
    fail: fn(&Victim<'_>),
    heal: fn(&Victim<'_>),
}

impl Failure {
    const fn of_nginx(
        name: &'static str,
        answers: Answers,
        fail: fn(&Victim<'_>),
        heal: fn(&Victim<'_>),
    ) -> Self {
        Self { name, service: WEB, answers, fail, heal }
    }

    const fn of_moody(name: &'static str, answers: Answers, fail: fn(&Victim<'_>)) -> Self {
        Self { name, service: OTHER, answers, fail, heal: |victim| victim.moody.becomes(&[Mood::Well]) }
    }
}

use Answers::{AtOnce, Late};

const FAILURES: [Failure; 8] = [
    Failure::of_nginx(
        "stopped",
        AtOnce,
        |victim| kill_process(victim.master().expect("nginx runs"), Signal::TERM).expect("nginx runs"),
        |victim| victim.start_nginx(),
    ),
    Failure::of_nginx(
        "frozen",
        Late,
        |victim| victim.signal_nginx(Signal::STOP),
        |victim| victim.signal_nginx(Signal::CONT),
    ),
    Failure::of_moody("a byte a second", Late, |victim| victim.moody.becomes(&[Mood::Slow])),
    Failure::of_moody("accepts, no answer", Late, |victim| victim.moody.becomes(&[Mood::Silent])),
    Failure::of_moody("status 500", AtOnce, |victim| victim.moody.becomes(&[Mood::Unwell])),
    Failure::of_nginx(
        "refusing (RST)",
        AtOnce,
        |victim| victim.filter("tcp dport 80 reject with tcp reset"),
        |victim| victim.own("nft delete table inet fault"),
    ),
    Failure::of_nginx(
        "unplugged",
        Late,
        |victim| victim.run(Host::Switch, "ip link set rs1 down"),
        |victim| victim.run(Host::Switch, "ip link set rs1 up"),
    ),
    Failure::of_nginx(
        "dead host",
        Late,
        |victim| victim.filter("drop"),
        |victim| victim.own("nft delete table inet fault"),
    ),
];

/// Waits until `xvsadm -Ln` lists the first real server of a service, or no longer lists it.
#[track_caller]
fn await_listed(director: &Director<'_>, service: u16, wanted: bool) {
    wait::until(&format!("the first real server's being listed is {wanted}"), || {
        let listed = director.adm(&format!("-L -n -t {}", virtual_endpoint(service)));
        (listed.contains(&format!("-> {}:", real_server(1))) == wanted).then_some(())
    });
}

/// Makes the first real server fail and recover; asserts its removal and return, and prints times and lost requests.
fn fails_and_returns(failure: &Failure, director: &Director<'_>, victim: &Victim<'_>) {
    await_listed(director, failure.service, true);
    let requests = RequestStream::start(victim.cluster, virtual_endpoint(failure.service), PATIENCE);
    requests.await_one_by("rs1");
    let failed = Instant::now();
    (failure.fail)(victim);
    requests.await_all_by("rs2");
    await_listed(director, failure.service, false);
    let healed = Instant::now();
    (failure.heal)(victim);
    let back = requests.await_one_by("rs1");
    await_listed(director, failure.service, true);
    let ended = requests.end();
    let lost: Vec<_> = ended.iter().filter(|one| one.has_failed()).collect();
    let last = lost.iter().map(|one| one.began).filter(|began| (failed..healed).contains(began)).max();
    let since = |time: Option<Instant>| time.map_or(Duration::ZERO, |time| time.duration_since(failed));
    let after = lost.iter().filter(|one| one.began >= healed).count();
    eprintln!(
        "{:<20} last misdirected {:>5.2} s, bound {:.2} s; {:>2} of {} requests failed, {after} of them after it \
         healed; back after {:.2} s",
        failure.name,
        since(last).as_secs_f64(),
        bound(failure.answers).as_secs_f64(),
        lost.len(),
        ended.len(),
        back.as_secs_f64(),
    );
}

#[test]
fn a_real_server_is_avoided_after_each_kind_of_failure_and_returns_when_it_works() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let victim = Victim { cluster: &cluster, moody: Moody::start(&cluster, Host::RealServer(1), MOODY) };
    let file = file(&cluster).display().to_string();
    let director = Director::start_with(&cluster, Workers::One, &["--keepalived", &file]);
    // Otherwise the first failure would happen before the first check.
    wait::until("every check has been made", || (!director.xvs("health").contains("assumed")).then_some(()));
    for failure in &FAILURES {
        fails_and_returns(failure, &director, &victim);
    }
}
