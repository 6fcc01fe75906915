//! The world of the suite `fleet`, and its faults: each begins, goes on, and ends.
//!
//! Frames are lost in the switch, by rules of nft that know its ports. What the rig does to a director is recorded as
//! its ability to serve. Not here: which faults follow each other (`schedule.rs`), planted bugs (`plant.rs`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::{Signal, kill_process};
use xvs::cluster::{REAL_SERVERS, VIP, succeed};
use xvs::director::{process, program};
use xvs::etcd::Etcd;
use xvs::fleet::{FLEET, Fleet, Member, More};
use xvs::{Cluster, Director, Host, wait};

use crate::history::Event;
use crate::observe::{Recorder, digest_of};
use crate::rules::{of_example, services};
use crate::schedule::{Fault, MEMBERS, Place, Step};

pub(crate) const SERVERS: [Host; 4] =
    [REAL_SERVERS[0], REAL_SERVERS[1], Host::RealServer(3), Host::RealServer(4)];
/// From one change to the next of a fault that goes on.
const TICK: Duration = Duration::from_millis(250);
/// The file systems of etcd's data, whose log takes 64 MB at once and as much for the next one, and of xvsd's state.
pub(crate) const ETCD_SIZE: &str = "160m";
const STATE_SIZE: &str = "64m";
/// What makes them full.
const FILLER: &str = "filler";

pub(crate) struct World<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) fleet: &'a Fleet<'a>,
    pub(crate) etcd: [Etcd<'a>; MEMBERS as usize],
    members: [Option<Member<'a>>; FLEET.len()],
    /// Former directors: one that was a successor would end the present one when dropped.
    former: Vec<Director<'a>>,
    pub(crate) recorder: Arc<Recorder>,
    rng: Rng,
    /// Rules that were made.
    rules: u16,
    clock: PathBuf,
    /// Whether each take-over has succeeded.
    pub(crate) is_good: bool,
}

impl<'a> World<'a> {
    /// Starts all directors with their first rules.
    pub(crate) fn start(
        cluster: &'a Cluster,
        fleet: &'a Fleet<'a>,
        etcd: [Etcd<'a>; MEMBERS as usize],
        recorder: Arc<Recorder>,
        seed: u64,
    ) -> Self {
        let clock = clock(cluster);
        let (members, former, rng) = ([const { None }; FLEET.len()], Vec::new(), Rng::with_seed(seed));
        let mut this =
            Self { cluster, fleet, etcd, members, former, recorder, rng, rules: 0, clock, is_good: true };
        for host in FLEET {
            let folder = this.state_of(host).join("shm");
            let mut mount = Command::new("mount");
            succeed(mount.args(["-o", &format!("remount,size={STATE_SIZE}")]).arg(folder));
        }
        let services = this.new_rules();
        this.recorder.record(Event::Applies(digest_of(&services)));
        fs::write(cluster.state().join("first-rules"), services).expect("the cluster's folder takes a file");
        (1..=FLEET.len() as u8).for_each(|number| this.come(number));
        this
    }

    /// All of a step, without its pause.
    pub(crate) fn carry_out(&mut self, step: &Step) {
        for fault in &step.faults {
            self.recorder.record(Event::Begins(fault.to_string()));
            self.begin(*fault);
        }
        let start = Instant::now();
        let mut ticks = 0;
        while start.elapsed() < step.lasts {
            step.faults.iter().for_each(|fault| self.goes_on(*fault, ticks));
            ticks += 1;
            thread::sleep(TICK);
        }
        // That of a process first: it is to be in order with the fault around it.
        for fault in step.faults.iter().rev() {
            self.end(*fault);
            self.recorder.record(Event::Ends(fault.to_string()));
        }
    }

    fn begin(&mut self, fault: Fault) {
        match fault {
            Fault::OneWay(from, to) => self.cut(fault, &[(from, to)]),
            Fault::Partition(one, other) => self.cut(fault, &[(one, other), (other, one)]),
            Fault::Lossy(place) => {
                let random = "numgen random mod 10 == 0 drop".to_owned();
                let rules = ["iifname", "oifname"].map(|end| format!("{end} {:?} {random}", port(place)));
                self.drop_frames(&table(fault), &rules);
            }
            Fault::Flap(number) => self.is_unable(number, "cable"),
            Fault::EtcdKilled(first, count) => self.of_etcd(first, count).for_each(|member| {
                if member.runs() {
                    member.kill();
                }
            }),
            Fault::EtcdFull(first, count) => {
                self.of_etcd(first, count).for_each(|member| fill(member.data()))
            }
            Fault::StateFull(number) => fill(&self.state_of(host(number)).join("shm")),
            Fault::Clock(number, hours) => self.set_clock(number, hours),
            Fault::Kill(number) => self.kill(number),
            Fault::Stop(number) => {
                self.is_unable(number, "stop");
                self.signal(number, Signal::STOP);
            }
            Fault::TakeOver(number) => self.take_over(number),
            Fault::Leave(number) => self.leave(number),
            Fault::Operators(one, other) => self.apply_at_once(&[one, other]),
            Fault::EtcdSlow => {}
        }
    }

    fn goes_on(&mut self, fault: Fault, ticks: u32) {
        match fault {
            Fault::EtcdSlow => {
                let signal = if ticks.is_multiple_of(2) { Signal::STOP } else { Signal::CONT };
                self.etcd.iter().for_each(|member| member.signal(signal));
            }
            Fault::Flap(number) if ticks.is_multiple_of(4) => {
                self.plug(number, if ticks.is_multiple_of(8) { "down" } else { "up" });
            }
            _ => {}
        }
    }

    fn end(&mut self, fault: Fault) {
        match fault {
            Fault::OneWay(..) | Fault::Partition(..) | Fault::Lossy(_) => self.let_frames_pass(&table(fault)),
            Fault::Flap(number) => {
                self.plug(number, "up");
                self.is_able(number);
            }
            Fault::EtcdKilled(first, count) => self.of_etcd(first, count).for_each(Etcd::start_at_once),
            Fault::EtcdSlow => self.etcd.iter().for_each(|member| member.signal(Signal::CONT)),
            Fault::EtcdFull(first, count) => self.of_etcd(first, count).for_each(|member| {
                empty(member.data());
                // It ends when it cannot write.
                if !member.runs() {
                    member.start_at_once();
                }
            }),
            Fault::StateFull(number) => empty(&self.state_of(host(number)).join("shm")),
            Fault::Clock(number, _) => self.set_clock(number, 0),
            Fault::Kill(number) => self.start_again(number),
            Fault::Stop(number) => {
                self.signal(number, Signal::CONT);
                self.is_able(number);
            }
            Fault::Leave(number) => self.come(number),
            Fault::TakeOver(_) | Fault::Operators(..) => {}
        }
    }

    fn of_etcd(&mut self, first: u8, count: u8) -> impl Iterator<Item = &mut Etcd<'a>> {
        let is_meant = move |at: usize| (at as u8 + MEMBERS + 1 - first) % MEMBERS < count;
        self.etcd.iter_mut().enumerate().filter(move |(at, _)| is_meant(*at)).map(|(_, member)| member)
    }

    fn cut(&self, fault: Fault, pairs: &[(Place, Place)]) {
        let rule =
            |(from, to): &(Place, Place)| format!("iifname {:?} oifname {:?} drop", port(*from), port(*to));
        self.drop_frames(&table(fault), &pairs.iter().map(rule).collect::<Vec<_>>());
    }

    /// Lets the switch drop frames by these rules.
    pub(crate) fn drop_frames(&self, table: &str, rules: &[String]) {
        let rules = rules.join("\n");
        let text = format!(
            "table bridge {table} {{ chain drops {{ type filter hook forward priority 0\n{rules}\n}}\n}}"
        );
        succeed(self.cluster.command(Host::Switch, "nft").arg(text));
    }

    pub(crate) fn let_frames_pass(&self, table: &str) {
        succeed(self.cluster.command(Host::Switch, "nft").args(["delete", "table", "bridge", table]));
    }

    fn plug(&self, number: u8, state: &str) {
        self.cluster.ip(Host::Switch, &format!("link set {} {state}", host(number).name()));
    }

    fn is_unable(&self, number: u8, cause: &str) {
        self.recorder.record(Event::Unable(number, cause.to_owned()));
    }

    fn is_able(&self, number: u8) {
        self.recorder.record(Event::Able(number));
    }

    pub(crate) fn member(&mut self, number: u8) -> &mut Member<'a> {
        self.members[usize::from(number) - 1].as_mut().expect("it has not left")
    }

    fn signal(&self, number: u8, signal: Signal) {
        kill_process(process(self.cluster, host(number)), signal).expect("xvsd runs");
    }

    pub(crate) fn kill(&self, number: u8) {
        self.is_unable(number, "kill");
        self.end_by(number, Signal::KILL);
    }

    fn end_by(&self, number: u8, signal: Signal) {
        self.signal(number, signal);
        let socket = self.cluster.socket(host(number));
        wait::until("xvsd ends", || UnixStream::connect(&socket).is_err().then_some(()));
    }

    pub(crate) fn start_again(&mut self, number: u8) {
        let former = self.member(number).start_director();
        self.former.push(former);
        self.is_able(number);
    }

    fn take_over(&mut self, number: u8) {
        match self.member(number).take_over() {
            Ok(former) => self.former.push(former),
            Err(log) => {
                self.is_good = false;
                println!("a take-over of director {number} has failed: {log}");
            }
        }
    }

    /// As `systemctl stop xvsd`.
    fn leave(&mut self, number: u8) {
        self.is_unable(number, "leave");
        self.member(number).begin_drain();
        while !self.member(number).is_drained() {
            thread::sleep(TICK);
        }
        self.end_by(number, Signal::TERM);
        self.members[usize::from(number) - 1] = None;
    }

    fn come(&mut self, number: u8) {
        let file = self.cluster.state().join("first-rules");
        let services = fs::read_to_string(file).expect("it was written at the start");
        let rules = [
            &of_example("#xvs laddr"),
            "#xvs laddr add 203.0.113.5 --standby\n",
            &services,
            &of_example("--start-daemon"),
        ];
        let sections = self.etcd[0].toml_of_three(&format!("lb{number}"));
        let file = self.clock_of(number);
        fs::write(&file, [0; 4096]).expect("the cluster's folder takes a file");
        let variables =
            [format!("LD_PRELOAD={}", self.clock.display()), format!("XVS_CLOCK={}", file.display())];
        let more = More {
            keys: "conn_table_size = 65536\nhold = \"10s\"\n",
            sections: &sections,
            variables: &variables.each_ref().map(String::as_str),
        };
        let member = self.fleet.member_with(number.into(), &rules.concat(), more);
        self.members[usize::from(number) - 1] = Some(member);
        self.is_able(number);
    }

    fn state_of(&self, host: Host) -> PathBuf {
        self.cluster.state().join(host.name())
    }

    fn clock_of(&self, number: u8) -> PathBuf {
        self.cluster.state().join(format!("clock-{number}"))
    }

    fn set_clock(&self, number: u8, hours: i8) {
        let file = File::options().write(true).open(self.clock_of(number)).expect("it was made");
        let seconds = i64::from(hours) * 3600;
        file.write_all_at(&seconds.to_ne_bytes(), 0).expect("the file has the page");
    }

    /// Rules that nobody has applied yet: other weights, and another service beside those of the connections.
    fn new_rules(&mut self) -> String {
        let text = services("mh", SERVERS.len() as u8, || self.rng.u8(1..=3));
        self.rules += 1;
        text + &format!("-A -t {VIP}:{} -s rr\n", 20_000 + self.rules)
    }

    /// An operator on each of these directors applies other rules, all at the same time.
    pub(crate) fn apply_at_once(&mut self, directors: &[u8]) {
        let rules: Vec<_> = directors.iter().map(|director| (*director, self.new_rules())).collect();
        thread::scope(|scope| {
            for (director, rules) in &rules {
                scope.spawn(|| self.apply(*director, rules));
            }
        });
    }

    fn apply(&self, director: u8, rules: &str) {
        let digest = digest_of(rules);
        self.recorder.record(Event::Applies(digest.clone()));
        let mut command = self.cluster.command(host(director), program("xvs"));
        command.args(["fleet", "apply", "-"]).stdin(Stdio::piped());
        let mut xvs =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("xvs can be started");
        let mut stdin = xvs.stdin.take().expect("it is piped");
        stdin.write_all(rules.as_bytes()).expect("xvs reads the rules");
        drop(stdin);
        let mut line = String::new();
        let stdout = xvs.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("xvs prints UTF-8");
        if let Some((_, revision)) = line.trim_end().rsplit_once("as revision ") {
            self.recorder.record(Event::Written(digest, revision.parse().expect("a number")));
        } else {
            let mut why = String::new();
            let stderr = xvs.stderr.take().expect("it is piped");
            BufReader::new(stderr).read_to_string(&mut why).expect("xvs prints UTF-8");
            let known = ["have just become those", "no xvsd listens"];
            if known.iter().any(|text| why.contains(text)) {
                self.recorder.record(Event::Refused(digest));
            } else {
                println!("it is not known whether an operator's rules are in etcd: {}", why.trim_end());
            }
        }
        // It would wait for all directors.
        let _ = xvs.kill();
        let _ = xvs.wait();
    }
}

pub(crate) fn host(number: u8) -> Host {
    FLEET[usize::from(number) - 1]
}

/// The port of the switch.
fn port(place: Place) -> String {
    match place {
        Place::Director(number) => host(number).name(),
        Place::Server(number) => Host::RealServer(number).name(),
        // The other end of the client's second cable was given to it.
        Place::Router => Host::Client.name(),
    }
}

/// The name of a fault's table.
fn table(fault: Fault) -> String {
    fault.to_string().replace('-', "_")
}

/// Fills a file system.
fn fill(folder: &Path) {
    let mut file = File::create(folder.join(FILLER)).expect("the file system has an inode left");
    let block = [0; 64 << 10];
    while file.write_all(&block).is_ok() {}
}

fn empty(folder: &Path) {
    fs::remove_file(folder.join(FILLER)).expect("it was made when the fault began");
}

/// A library in whose `clock_gettime` the date is later by the seconds in the file `XVS_CLOCK`.
fn clock(cluster: &Cluster) -> PathBuf {
    let later = "static const volatile long *later;\n\
        __attribute__((constructor)) static void begin(void) {\n\
            int file = open(getenv(\"XVS_CLOCK\"), O_RDONLY | O_CLOEXEC);\n\
            later = mmap(NULL, 4096, PROT_READ, MAP_SHARED, file, 0);\n\
            close(file);\n\
        }";
    xvs::clock::library(cluster, later, "later && later != MAP_FAILED ? *later : 0")
}
