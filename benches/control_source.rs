//! Load for a running xvsd, with many services, and timing of its commands: the control part of `scripts/bench`.
//!
//! ```text
//! control_source /run/xvs/xvsd.sock 4711 target/release/xvsadm      (the socket, the process, the program)
//! ```
//!
//! Fills the daemon to 100, 1,000 and 10,000 services of five real servers each, with `xvsadm -R`. At each size it
//! sends single commands as `xvsadm` does, each over a connection of its own, and reverts them; it also runs the
//! listings and a whole save and restore as processes. Prints medians of the CPU time of all threads of xvsd and of the
//! client together, and their ratios to those at 100; for whole programs also the wall-clock time. At the end nothing
//! is configured. Not here: starting the daemon; traffic.

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use rustix::time::{ClockId, clock_gettime};
use xvs_model::config::command::Command as Change;
use xvs_model::config::destination::DestinationOptions;
use xvs_model::config::rule::{Object, Rule};
use xvs_model::config::service::ServiceOptions;
use xvs_model::protocol::client::{Client, Director};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{ControlRequest, Request};
use xvs_proto::{Endpoint, Family};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

const USAGE: &str = "usage: control_source SOCKET PROCESS XVSADM";
const SIZES: [usize; 3] = [100, 1_000, 10_000];
/// Real servers of a service.
const EACH: usize = 5;
/// Rounds of commands at each size; listings and restores have fewer.
const ROUNDS: usize = 200;
const LISTINGS: usize = 5;
const COMMANDS: [&str; 7] = ["-A", "-a", "-e", "-E", "-d", "-D", "-Ln SERVICE"];
const WHOLE: [&str; 5] = ["-Ln", "-Ln --stats", "-Sn", "-C", "-R"];

/// Seconds of CPU time, and of wall-clock time.
type Samples = Vec<(f64, f64)>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [socket, xvsd, xvsadm] = &arguments[..] else { return Err(USAGE.into()) };
    let bench = Bench { socket, xvsd: Path::new("/proc").join(xvsd), xvsadm };
    bench.xvsadm(&["-C"], "")?;
    let mut measured = Vec::new();
    let mut filled = 0;
    for size in SIZES {
        let rules: String = (filled..size).map(rules).collect();
        bench.xvsadm(&["-R"], &rules)?;
        filled = size;
        measured.push((bench.commands(size)?, bench.whole(size)?));
    }
    bench.xvsadm(&["-C"], "")?;
    let head = SIZES.map(|size| format!("{size:>19}")).concat();
    println!(
        "control: services of {EACH} real servers each; milliseconds of CPU time, and × those of {}",
        SIZES[0]
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
fn cpu(process: &Path) -> Result<f64, Box<dyn Error>> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(process.join("task"))? {
        // A client's thread may have ended; its few microseconds of a command are then lost.
        let Ok(times) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds += times.split(' ').next().ok_or("no time in schedstat")?.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

struct Bench<'a> {
    socket: &'a Path,
    xvsd: PathBuf,
    xvsadm: &'a Path,
}

impl Bench<'_> {
    /// Runs the program, which must succeed. Returns its output and its time.
    fn xvsadm(&self, words: &[&str], stdin: &str) -> Result<(String, (f64, f64)), Box<dyn Error>> {
        let (start, before) = (Instant::now(), cpu(&self.xvsd)?);
        let mut child = Command::new(self.xvsadm)
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
            return Err(format!("xvsadm {}: {status}", words.join(" ")).into());
        }
        Ok((printed, (cpu(&self.xvsd)? - before + own, wall)))
    }

    /// Sends one request over a connection of its own. Returns its time.
    fn ask(&self, request: Request) -> Result<(f64, f64), Box<dyn Error>> {
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
    fn commands(&self, size: usize) -> Result<[Samples; 7], Box<dyn Error>> {
        let mut samples = [const { Samples::new() }; 7];
        for round in 0..ROUNDS {
            let key = service(size + round);
            let endpoint = server(size + round, 0);
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
                ControlRequest::ListService(service(round % size)),
            ];
            for (samples, request) in samples.iter_mut().zip(requests) {
                samples.push(self.ask(request.into())?);
            }
        }
        Ok(samples)
    }

    /// Commands on the whole configuration, as processes.
    fn whole(&self, size: usize) -> Result<[Samples; 5], Box<dyn Error>> {
        let mut samples = [const { Samples::new() }; 5];
        for _ in 0..LISTINGS {
            let mut run = |at: usize, words: &[&str], stdin: &str| -> Result<String, Box<dyn Error>> {
                let (printed, taken) = self.xvsadm(words, stdin)?;
                samples[at].push(taken);
                Ok(printed)
            };
            let listed = run(0, &["-Ln"], "")?;
            let expected = 3 + size * (1 + EACH);
            if listed.lines().count() != expected {
                return Err(format!("{} lines instead of {expected}", listed.lines().count()).into());
            }
            run(1, &["-Ln", "--stats"], "")?;
            let saved = run(2, &["-Sn"], "")?;
            run(3, &["-C"], "")?;
            run(4, &["-R"], &saved)?;
        }
        Ok(samples)
    }
}

/// A service on one of 200 virtual addresses.
fn service(number: usize) -> ServiceKey {
    ServiceKey::tcp(Endpoint::new([198, 51, 100, 20 + (number % 200) as u8], 1 + (number / 200) as u16))
}

/// One of 200 real servers.
fn server(service: usize, number: usize) -> Endpoint {
    let last = 20 + ((service * EACH + number) % 200) as u8;
    Endpoint::new([192, 0, 2, last], 1 + (service / 40) as u16)
}

/// A service with its real servers, as `xvsadm -R` reads them.
fn rules(number: usize) -> String {
    let ServiceKey::Address { endpoint, .. } = service(number) else { unreachable!("they have addresses") };
    let servers = (0..EACH).map(|of| format!("-a -t {endpoint} -r {} -m -w 1\n", server(number, of)));
    format!("-A -t {endpoint} -s wlc\n{}", servers.collect::<String>())
}
