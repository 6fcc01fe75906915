//! Load for a running xvsd, with many services, and timing of its commands: the control part of `scripts/bench`.
//!
//! ```text
//! control_source /run/xvs/xvsd.sock 4711 target/release      (the socket, the process, the folder of the programs)
//! control_source SOCKET PROCESS FOLDER 100000 10 65536       (the services, real servers of each, their addresses)
//! ```
//!
//! Fills the daemon to 100, 1,000 and 10,000 services of five real servers each, or to a tenth of the given number and
//! to this number, with `xvsadm -R`. At each size it sends single commands as `xvsadm` does, each over a connection of
//! its own, and reverts them; it also runs the listings, a whole save and restore, a plan and an application of the
//! same rules and a frame of `xvs top` as processes, and requests the pages that xvsd serves. Prints medians of the CPU
//! time of all threads of xvsd and of the client together, and their ratios to those at the first size; for whole
//! programs also the wall-clock time; and the memory of xvsd. At the end the file `rules` of the folder for temporary
//! files has all rules, and nothing is configured. Not here: starting the daemon; traffic.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{ClockId, clock_gettime};
use xvs_model::config::command::Command as Change;
use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::service::ServiceOptions;
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Client, Director};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_proto::{Endpoint, Family};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

const USAGE: &str = "usage: control_source SOCKET PROCESS FOLDER [SERVICES SERVERS ADDRESSES]";
/// Rounds of commands at each size; listings and restores have fewer.
const ROUNDS: usize = 200;
const LISTINGS: usize = 5;
/// Where xvsd serves metrics and the status page.
const METRICS: &str = "127.0.0.1:9112";
const COMMANDS: [&str; 7] = ["-A", "-a", "-e", "-E", "-d", "-D", "-Ln SERVICE"];
const WHOLE: [&str; 10] =
    ["-Ln", "-Ln --stats", "-Sn", "plan", "apply", "top --once", "/metrics", "/status.json", "-C", "-R"];

/// Seconds of CPU time, and of wall-clock time.
type Samples = Vec<(f64, f64)>;
type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (socket, process, folder, sizes, rules) = match &arguments[..] {
        [socket, process, folder] => (socket, process, folder, vec![100, 1_000, 10_000], Rules::default()),
        [socket, process, folder, services, each, addresses] => {
            let size: usize = services.parse()?;
            let rules = Rules {
                first: Ipv4Addr::new(10, 0, 0, 1),
                each: each.parse()?,
                addresses: addresses.parse()?,
            };
            (socket, process, folder, vec![size / 10, size], rules)
        }
        _ => return Err(USAGE.into()),
    };
    let bench = Bench {
        socket: Path::new(socket),
        xvsd: Path::new("/proc").join(process),
        folder: Path::new(folder),
        saved: std::env::temp_dir().join("rules"),
        rules,
    };
    bench.xvsadm(&["-C"], "")?;
    let mut measured = Vec::new();
    let mut filled = 0;
    for &size in &sizes {
        let (_, (_, wall)) = bench.xvsadm(&["-R"], &bench.rules.of(filled..size))?;
        println!("control: {size} services after {wall:.2} s, {} MiB", bench.anonymous_mib()?);
        filled = size;
        measured.push((bench.commands(size)?, bench.whole(size)?));
        println!("control: {size} services after all commands, {} MiB", bench.anonymous_mib()?);
    }
    bench.xvsadm(&["-C"], "")?;
    let head: String = sizes.iter().map(|size| format!("{size:>19}")).collect();
    println!(
        "control: services of {} real servers each; milliseconds of CPU time, and × those of {}",
        bench.rules.each, sizes[0]
    );
    println!("  {:13}{head}", "one command");
    for (at, name) in COMMANDS.iter().enumerate() {
        row(name, measured.iter().map(|(commands, _)| median(&commands[at], |(cpu, _)| *cpu)));
    }
    println!("  {:13}{head}", "a program");
    for (at, name) in WHOLE.iter().enumerate() {
        row(name, measured.iter().map(|(_, whole)| median(&whole[at], |(cpu, _)| *cpu)));
    }
    println!("  {:13}{head}", "on the wall");
    for (at, name) in WHOLE.iter().enumerate() {
        row(name, measured.iter().map(|(_, whole)| median(&whole[at], |(_, wall)| *wall)));
    }
    Ok(())
}

fn row(name: &str, medians: impl Iterator<Item = f64>) {
    let medians: Vec<_> = medians.collect();
    let cells = medians.iter().map(|median| format!("{:>10.3} × {:<6.2}", median * 1e3, median / medians[0]));
    println!("  {name:13}{}", cells.collect::<String>());
}

fn median(samples: &Samples, of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// CPU time of all threads of a process, in seconds; also of an ended process that has not been waited for.
fn cpu(process: &Path) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(process.join("task"))? {
        // A client's thread may have ended; its few microseconds of a command are then lost.
        let Ok(times) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds += times.split(' ').next().ok_or("no time in schedstat")?.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

/// The rules of a run.
struct Rules {
    /// The first address of real servers.
    first: Ipv4Addr,
    /// Real servers of a service.
    each: usize,
    /// The addresses of all real servers.
    addresses: usize,
}

/// 200 addresses of the cluster's network, so that each is a next hop.
impl Default for Rules {
    fn default() -> Self {
        Self { first: Ipv4Addr::new(192, 0, 2, 20), each: 5, addresses: 200 }
    }
}

impl Rules {
    /// A service on one of 200 virtual addresses.
    fn service(number: usize) -> ServiceKey {
        ServiceKey::tcp(Endpoint::new([198, 51, 100, 20 + (number % 200) as u8], 1 + (number / 200) as u16))
    }

    /// A real server of a service. No two have the same endpoint.
    fn server(&self, service: usize, number: usize) -> Endpoint {
        let number = service * self.each + number;
        let addr = u32::from(self.first) + (number % self.addresses) as u32;
        Endpoint { addr: Ipv4Addr::from(addr).into(), port: 1 + (number / self.addresses) as u16 }
    }

    /// Services with their real servers, as `xvsadm -R` reads them.
    fn of(&self, services: Range<usize>) -> String {
        let mut text = String::new();
        for service in services {
            let ServiceKey::Address { endpoint, .. } = Self::service(service) else {
                unreachable!("they have addresses")
            };
            text.push_str(&format!("-A -t {endpoint} -s wlc\n"));
            for number in 0..self.each {
                text.push_str(&format!("-a -t {endpoint} -r {} -m -w 1\n", self.server(service, number)));
            }
        }
        text
    }
}

struct Bench<'a> {
    socket: &'a Path,
    xvsd: PathBuf,
    /// Of the programs.
    folder: &'a Path,
    /// Where the saved rules are.
    saved: PathBuf,
    rules: Rules,
}

impl Bench<'_> {
    fn xvsadm(&self, words: &[&str], stdin: &str) -> Result<(String, (f64, f64))> {
        self.run("xvsadm", words, stdin)
    }

    /// Runs the program, which must succeed. Returns its output and its time.
    fn run(&self, program: &str, words: &[&str], stdin: &str) -> Result<(String, (f64, f64))> {
        let (start, before) = (Instant::now(), cpu(&self.xvsd)?);
        let mut child = Command::new(self.folder.join(program))
            .args(words)
            .env("XVS_SOCKET", self.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stdin.as_bytes())?;
        }
        let mut printed = String::new();
        if let Some(mut pipe) = child.stdout.take() {
            pipe.read_to_string(&mut printed)?;
        }
        let pid = Pid::from_child(&child);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        let wall = start.elapsed().as_secs_f64();
        let own = cpu(&Path::new("/proc").join(pid.as_raw_nonzero().to_string()))?;
        let status = child.wait()?;
        if !status.success() {
            return Err(format!("{program} {}: {status}", words.join(" ")).into());
        }
        Ok((printed, (cpu(&self.xvsd)? - before + own, wall)))
    }

    /// Sends one request over a connection of its own. Returns its time.
    fn ask(&self, request: Request) -> Result<(f64, f64)> {
        let own = || {
            let time = clock_gettime(ClockId::ProcessCPUTime);
            time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
        };
        let before = cpu(&self.xvsd)?;
        let (start, mine) = (Instant::now(), own());
        let mut client = Client::connect(self.socket)?;
        let reply = client.call(request)?;
        let (mine, wall) = (own() - mine, start.elapsed().as_secs_f64());
        let taken = (cpu(&self.xvsd)? - before + mine, wall);
        match reply {
            Reply::Done | Reply::Services(_) => Ok(taken),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }

    /// Single commands about an additional service.
    fn commands(&self, size: usize) -> Result<[Samples; 7]> {
        let mut samples = [const { Samples::new() }; 7];
        for round in 0..ROUNDS {
            let key = Rules::service(size + round);
            let endpoint = self.rules.server(size + round, 0);
            let with = |weight| DestinationOptions {
                method: ForwardingMethod::Nat,
                weight: Weight(weight),
                ..DestinationOptions::default()
            };
            let options = ServiceOptions::of(Family::V4);
            let persistent = ServiceOptions { persistence_timeout_seconds: Some(300), ..options.clone() };
            let requests = [
                ControlRequest::Change(Change::Add(Rule::Service { key, options })),
                ControlRequest::Change(Change::Add(Rule::Destination {
                    service: key,
                    endpoint,
                    options: with(1),
                })),
                ControlRequest::Change(Change::EditDestination { service: key, endpoint, options: with(2) }),
                ControlRequest::Change(Change::EditService { key, options: persistent }),
                ControlRequest::Change(Change::Delete(Object::Destination { service: key, endpoint })),
                ControlRequest::Change(Change::Delete(Object::Service(key))),
                ControlRequest::ListService(Rules::service(round % size)),
            ];
            for (samples, request) in samples.iter_mut().zip(requests) {
                samples.push(self.ask(request.into())?);
            }
        }
        Ok(samples)
    }

    /// Requests a page of xvsd, which must have one. Returns its time.
    fn page(&self, path: &str) -> Result<(f64, f64)> {
        let (start, before) = (Instant::now(), cpu(&self.xvsd)?);
        let mut stream = TcpStream::connect(METRICS)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {METRICS}\r\nConnection: close\r\n\r\n")?;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        match received.starts_with(b"HTTP/1.1 200") {
            true => Ok((cpu(&self.xvsd)? - before, start.elapsed().as_secs_f64())),
            false => Err(format!(
                "{path}: {:?}",
                String::from_utf8_lossy(received.get(..200).unwrap_or(&received))
            )
            .into()),
        }
    }

    /// The memory of xvsd alone, without files.
    fn anonymous_mib(&self) -> Result<u64> {
        let status = fs::read_to_string(self.xvsd.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? >> 10)
    }

    /// Commands on the whole configuration, as processes, and pages.
    fn whole(&self, size: usize) -> Result<[Samples; 10]> {
        let mut samples = [const { Samples::new() }; 10];
        let saved = self.saved.to_str().ok_or("a path in UTF-8")?;
        for _ in 0..LISTINGS {
            let (listed, listing) = self.xvsadm(&["-Ln"], "")?;
            let expected = 3 + size * (1 + self.rules.each);
            if listed.lines().count() != expected {
                return Err(format!("{} lines instead of {expected}", listed.lines().count()).into());
            }
            let stats = self.xvsadm(&["-Ln", "--stats"], "")?.1;
            let (rules, saving) = self.xvsadm(&["-Sn"], "")?;
            fs::write(&self.saved, &rules)?;
            let taken = [
                listing,
                stats,
                saving,
                self.run("xvs", &["plan", saved], "")?.1,
                self.run("xvs", &["apply", saved], "")?.1,
                self.run("xvs", &["top", "--once"], "")?.1,
                self.page("/metrics")?,
                self.page("/status.json")?,
                self.xvsadm(&["-C"], "")?.1,
                self.xvsadm(&["-R"], &rules)?.1,
            ];
            samples.iter_mut().zip(taken).for_each(|(samples, taken)| samples.push(taken));
        }
        Ok(samples)
    }
}
