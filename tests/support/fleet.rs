//! A fleet as in `docs/examples/anycast`: directors behind a router that chooses one per flow (ECMP), with BIRD on all.
//!
//! The example's files run as they stand, but for what differs between directors; a director's rules may be others. Not
//! here: clients and real servers.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, Host, VIP, succeed};
use crate::director::{Director, program};
use crate::wait;

/// The directors of a fleet, by their numbers from 1.
pub const FLEET: [Host; 5] =
    [Host::Director, Host::Backup, Host::Further(3), Host::Further(4), Host::Further(5)];

/// The router and the files of the directors.
pub struct Fleet<'a> {
    cluster: &'a Cluster,
    directors: usize,
    bfd_multiplier: u8,
    _router: Program,
}

/// What a director has beside the files of the example.
#[derive(Clone, Copy, Debug, Default)]
pub struct More<'a> {
    /// Keys of xvs.toml.
    pub keys: &'a str,
    /// Sections of xvs.toml.
    pub sections: &'a str,
    /// Variables, as `NAME=VALUE`, of the environment of xvsd.
    pub variables: &'a [&'a str],
}

/// A director of a fleet; all its programs are killed when it is dropped.
pub struct Member<'a> {
    fleet: &'a Fleet<'a>,
    number: usize,
    /// Its xvsd.
    pub director: Director<'a>,
    arguments: [String; 2],
    variables: Vec<String>,
    bird: Program,
    announce: Program,
}

/// The text of a file of the example.
pub fn example(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/examples/anycast").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

impl<'a> Fleet<'a> {
    /// Makes the network with several directors, and starts the router's BIRD. BFD's time is 100 ms by the multiplier,
    /// which is 3 in the example.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn start(cluster: &'a Cluster, directors: usize, bfd_multiplier: u8) -> Self {
        cluster.make_fleet(directors);
        let file = |name: &str, host: Host| {
            let path = cluster.state().join(format!("{}-{name}", host.name()));
            fs::write(&path, with_bfd(&example(name), bfd_multiplier))
                .expect("the cluster's folder takes a new file");
            path.display().to_string()
        };
        let apply =
            |host, name| succeed(cluster.command(host, "sysctl").args(["-q", "-p", &file(name, host)]));
        apply(Host::Router, "router.sysctl.conf");
        for host in &FLEET[..directors] {
            apply(*host, "director.sysctl.conf");
            // The script would make a dummy, which not each kernel has.
            cluster.ip(*host, "link add fleet type bridge");
            for addr in [VIP.to_string()]
                .into_iter()
                .chain((1..=directors.max(4)).map(|number| format!("203.0.113.{number}")))
            {
                cluster.ip(*host, &format!("address add {addr}/32 dev lo"));
            }
        }
        let conf = file("bird-router.conf", Host::Router);
        Self { cluster, directors, bfd_multiplier, _router: bird(cluster, Host::Router, &conf) }
    }

    /// Starts a director, by its number from 1, with these rules, and with BIRD and `xvs-announce`.
    ///
    /// # Panics
    ///
    /// If one of the programs fails.
    pub fn member(&'a self, number: usize, rules: &str) -> Member<'a> {
        self.member_with(number, rules, More::default())
    }

    /// The same, with more than the files of the example.
    ///
    /// # Panics
    ///
    /// As [`Self::member`].
    pub fn member_with(&'a self, number: usize, rules: &str, more: More<'_>) -> Member<'a> {
        let (cluster, host) = (self.cluster, FLEET[number - 1]);
        let state = |name: &str| cluster.state().join(format!("{}-{name}", host.name()));
        let write = |name: &str, text: &str| {
            fs::write(state(name), text).expect("the cluster's folder takes a file");
            fs::set_permissions(state(name), Permissions::from_mode(0o600)).expect("the file is there");
            state(name).display().to_string()
        };
        let own = format!("203.0.113.{number}");
        let rules = rules.replace("203.0.113.1\n", "203.0.113.1 --standby\n");
        let rules = write("rules", &rules.replace(&format!("{own} --standby"), &own));
        let key = write("sync.key", &"5e".repeat(32));
        let config = example("xvs.toml").replace("/etc/xvs/rules", &rules).replace("/etc/xvs/sync.key", &key);
        let config = write("xvs.toml", &format!("workers = 1\n{}{config}{}", more.keys, more.sections));
        let conf = with_bfd(&example("bird-director.conf"), self.bfd_multiplier)
            .replace("router id 192.0.2.1;", &format!("router id 192.0.2.{number};"))
            .replace("OWN = [ 203.0.113.1/32 ]", &format!("OWN = [ {own}/32 ]"));
        // Of the fifth director, which the example does not have.
        let fourth = "    route 203.0.113.4/32 via \"fleet\";\n";
        assert!(conf.contains(fourth), "the example has four directors");
        let fifth = fourth.replace(".4/", ".5/");
        let conf = if self.directors > 4 { conf.replace(fourth, &[fourth, &fifth].concat()) } else { conf };
        let conf = write("bird.conf", &conf);
        let arguments = ["--config".to_owned(), config];
        let director =
            Director::start_in(cluster, host, &arguments.each_ref().map(String::as_str), more.variables);
        let variables = more.variables.iter().map(|one| (*one).to_owned()).collect();
        // As after a start of the machine.
        cluster.ip(host, "link set fleet down");
        let bird = bird(cluster, host, &conf);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/xvs-announce");
        let programs = program("xvs");
        let folder = programs.parent().expect("a program is in a folder").display();
        let line = format!("PATH={folder}:$PATH exec {}", script.display());
        let announce = Program::start(cluster, host, "announce", &line);
        Member { fleet: self, number, director, arguments, variables, bird, announce }
    }

    /// The directors, by their numbers, that the router sends clients' packets to now, in order.
    pub fn next_hops(&self) -> Vec<usize> {
        let route = self.cluster.ip(Host::Router, &format!("route show {VIP}"));
        let via = route.split_whitespace().filter_map(|word| word.strip_prefix("192.0.2.")?.parse().ok());
        let mut via: Vec<usize> = via.collect();
        via.sort_unstable();
        via
    }

    /// Waits until clients' packets go to these directors.
    pub fn await_next_hops(&self, directors: &[usize]) {
        let what = format!("packets go to the directors {directors:?}");
        wait::until(&what, || (self.next_hops() == directors).then_some(()));
    }
}

impl<'a> Member<'a> {
    /// Starts xvsd again after its death. Returns the former one, which is to be kept: if it was a successor, its drop
    /// would end the new one.
    ///
    /// # Panics
    ///
    /// As [`Director::start_on`].
    pub fn start_director(&mut self) -> Director<'a> {
        let variables: Vec<&str> = self.variables.iter().map(String::as_str).collect();
        let arguments = self.arguments.each_ref().map(String::as_str);
        let new = Director::start_in(self.fleet.cluster, self.host(), &arguments, &variables);
        std::mem::replace(&mut self.director, new)
    }

    /// Lets a successor take over from xvsd. Returns the former one, which is to be kept as well.
    ///
    /// # Errors
    /// The log of a successor that has failed.
    pub fn take_over(&mut self) -> Result<Director<'a>, String> {
        let variables: Vec<&str> = self.variables.iter().map(String::as_str).collect();
        let arguments = self.arguments.each_ref().map(String::as_str);
        let new = Director::take_over_in(self.fleet.cluster, self.host(), &arguments, &variables)?;
        Ok(std::mem::replace(&mut self.director, new))
    }

    /// Sends `xvs-announce` a signal.
    pub fn signal_announce(&self, signal: Signal) {
        self.announce.signal(signal);
    }

    fn host(&self) -> Host {
        FLEET[self.number - 1]
    }

    /// Begins an orderly end: `xvs-announce` is to withdraw the addresses.
    pub fn begin_drain(&self) {
        self.announce.signal(Signal::TERM);
    }

    /// Whether the drain is over.
    pub fn is_drained(&mut self) -> bool {
        self.announce.process.try_wait().expect("it is a child of this process").is_some()
    }

    /// Ends BIRD.
    pub fn end_bird(&mut self) {
        self.bird.signal(Signal::TERM);
        wait::until("bird ends", || self.bird.process.try_wait().expect("it is a child of this process"));
    }

    /// Starts BIRD again.
    pub fn start_bird(&mut self) {
        let conf = self.fleet.cluster.state().join(format!("{}-bird.conf", self.host().name()));
        self.bird = bird(self.fleet.cluster, self.host(), &conf.display().to_string());
    }

    /// What BIRD answers to a command of birdc; empty if it does not run yet.
    pub fn birdc(&self, command: &str) -> String {
        let socket = self.fleet.cluster.state().join(format!("{}-bird/bird.ctl", self.host().name()));
        let mut birdc = self.fleet.cluster.command(self.host(), "birdc");
        birdc.arg("-s").arg(socket).args(command.split(' '));
        let output = birdc.output().expect("scripts/netlab can be started");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Cuts its cable and kills all its programs, as if the machine had died.
    pub fn die(mut self) {
        self.fleet.cluster.ip(Host::Switch, &format!("link set {} down", self.host().name()));
        self.director.kill();
    }

    /// Connects the cable again.
    pub fn connect(fleet: &Fleet<'_>, number: usize) {
        fleet.cluster.ip(Host::Switch, &format!("link set {} up", FLEET[number - 1].name()));
    }
}

/// A configuration of BIRD with this multiplier for BFD.
fn with_bfd(conf: &str, multiplier: u8) -> String {
    conf.replace("multiplier 3;", &format!("multiplier {multiplier};"))
}

/// Starts BIRD in the foreground, with its control socket in the host's own /run/bird.
fn bird(cluster: &Cluster, host: Host, conf: &str) -> Program {
    Program::start(cluster, host, "bird", &format!("exec bird -f -c {conf}"))
}

/// A program that is killed when it is dropped.
struct Program {
    process: Child,
    log: PathBuf,
}

impl Program {
    /// Runs a line of a shell script as a program.
    fn start(cluster: &Cluster, host: Host, name: &str, line: &str) -> Self {
        let log = cluster.state().join(format!("{}-{name}.log", host.name()));
        let out =
            File::options().create(true).append(true).open(&log).expect("the cluster's folder takes a file");
        let err = out.try_clone().expect("a file can be cloned");
        let run = cluster.state().join(format!("{}-bird", host.name()));
        fs::create_dir_all(&run).expect("the cluster's folder takes a folder");
        let lines = format!("mkdir -p /run/bird; mount --bind {} /run/bird\n{line}", run.display());
        let mut command = cluster.command(host, "sh");
        command.args(["-e", "-c", &lines]).stdin(Stdio::null()).stdout(out).stderr(err);
        Self { process: command.spawn().expect("scripts/netlab can be started"), log }
    }

    fn signal(&self, signal: Signal) {
        // It fails for a program that has ended.
        let _ = kill_process(Pid::from_child(&self.process), signal);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            self.signal(Signal::KILL);
        }
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
