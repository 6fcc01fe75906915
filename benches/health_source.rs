//! An xvsd with checks of ten thousand real servers, and its timing: the health part of `scripts/bench`.
//!
//! ```text
//! health_source target/release/xvsd 10.9.0.0 /tmp/folder      (the program, the first real server, a folder)
//! health_source XVSD ADDRESS FOLDER 100000                    (real servers, each checked every ten seconds)
//! ```
//!
//! Writes a keepalived.conf of 1,000 virtual servers of ten real servers with a check each, and starts `xvsd` with it
//! repeatedly: with checks of each kind every 60 and 10 seconds, and as often as possible; with a number of real
//! servers every ten seconds. It times the start until readiness, and reloads; for the thread of the checks it prints
//! the CPU time per check and its share of a core. The real servers must answer at port 80. Each `xvsd` ends with its
//! part. Not here: the real servers.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{fs, thread};

use xvs_model::protocol::client::{Client, Director};
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::report::health::HealthReport;

const USAGE: &str = "usage: health_source XVSD ADDRESS FOLDER [SERVERS]";
/// Real servers of a virtual server.
const EACH: usize = 10;
const KINDS: [(&str, &str); 2] =
    [("TCP_CHECK", "TCP_CHECK {\n}\n"), ("HTTP_GET", "HTTP_GET {\nurl {\npath /\nstatus_code 200\n}\n}\n")];
/// Intervals of checks in seconds; the last one is shorter than one round of checks takes.
const INTERVALS: [f64; 3] = [60.0, 10.0, 0.2];
/// How long checks are measured.
const WINDOW: Duration = Duration::from_secs(20);
/// Time from readiness to the measurement: the first checks are due after a second.
const BEFORE: Duration = Duration::from_secs(3);
const RELOADS: usize = 5;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (xvsd, servers, folder, count, intervals) = match &arguments[..] {
        [xvsd, servers, folder] => (xvsd, servers, folder, 10_000, &INTERVALS[..]),
        [xvsd, servers, folder, count] => (xvsd, servers, folder, count.parse()?, &INTERVALS[1..2]),
        _ => return Err(USAGE.into()),
    };
    let virtual_servers = count / EACH;
    let bench =
        Bench { xvsd: xvsd.into(), servers: servers.parse()?, folder: folder.into(), virtual_servers };
    println!("health: {virtual_servers} virtual servers of {EACH} real servers, a check each");
    for kind in KINDS {
        println!("  {}", kind.0);
        let mut starts = Vec::new();
        for &interval in intervals {
            let mut file = bench.file(kind.1, interval);
            let start = Instant::now();
            let daemon = bench.start(&file)?;
            starts.push(start.elapsed().as_secs_f64());
            let made = daemon.checks()?;
            println!(
                "    every {interval:4} s: {:7.0} checks a second, {:5.1} ms of CPU time for 1,000, {:.0} % of a core, {} failed; \
                 {:.0} MiB",
                made.asked / made.seconds,
                made.cpu_seconds * 1e6 / made.asked,
                made.cpu_seconds * 100.0 / made.seconds,
                made.failed,
                daemon.resident_mib()?
            );
            if interval == intervals[0] {
                bench.reloads(&daemon, &mut file)?;
            }
        }
        println!("    from the start to readiness, seconds: {starts:.2?}");
    }
    Ok(())
}

struct Bench {
    xvsd: PathBuf,
    servers: Ipv4Addr,
    folder: PathBuf,
    virtual_servers: usize,
}

impl Bench {
    /// A file whose first weight and number of virtual servers can be changed.
    fn file(&self, check: &'static str, interval: f64) -> Watched {
        Watched {
            path: self.folder.join("keepalived.conf"),
            check,
            interval,
            weight: 1,
            servers: self.servers,
            virtual_servers: self.virtual_servers,
        }
    }

    /// Starts xvsd with a file; returns when it reports readiness.
    fn start(&self, file: &Watched) -> Result<Daemon> {
        file.write()?;
        let notify = self.folder.join("notify");
        let _ = fs::remove_file(&notify);
        let told = UnixDatagram::bind(&notify)?;
        told.set_read_timeout(Some(Duration::from_secs(300)))?;
        let log = File::create(self.folder.join("forwarder.log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM"])
            .arg(&self.xvsd)
            .args(["--interface", "wan", "--interface", "lan", "--workers", "1", "--keepalived"])
            .arg(&file.path)
            .env("NOTIFY_SOCKET", &notify)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let daemon = Daemon { process: Path::new("/proc").join(child.id().to_string()), child };
        let mut said = [0; 256];
        let length = told.recv(&mut said)?;
        match said[..length].starts_with(b"READY=1") {
            true => Ok(daemon),
            false => Err("the first notification of xvsd is not READY=1".into()),
        }
    }

    /// Reloads the file repeatedly, changed each time.
    fn reloads(&self, daemon: &Daemon, file: &mut Watched) -> Result<()> {
        type Change = fn(&mut Watched);
        let changes: [(&str, Change); 4] = [
            ("nothing changed", |_| {}),
            ("one weight", |file| file.weight += 1),
            ("one virtual server more", |file| file.virtual_servers += 1),
            ("another interval", |file| file.interval += 1.0),
        ];
        for (name, change) in changes {
            let mut taken = Vec::new();
            for _ in 0..RELOADS {
                change(file);
                file.write()?;
                let (start, cpu) = (Instant::now(), daemon.cpu_seconds(None)?);
                daemon.ask(Request::Reload)?;
                taken.push((start.elapsed().as_secs_f64(), daemon.cpu_seconds(None)? - cpu));
            }
            taken.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (wall, cpu) = taken[RELOADS / 2];
            println!("    read anew, {name:24} {wall:.3} s, {cpu:.3} s of CPU time");
        }
        let start = Instant::now();
        daemon.report()?;
        println!("    a report                            {:.3} s", start.elapsed().as_secs_f64());
        Ok(())
    }
}

/// The content of a file.
struct Watched {
    path: PathBuf,
    check: &'static str,
    interval: f64,
    weight: usize,
    servers: Ipv4Addr,
    virtual_servers: usize,
}

impl Watched {
    fn write(&self) -> Result<()> {
        let mut text = String::new();
        let first = u32::from(self.servers);
        for number in 0..self.virtual_servers {
            writeln!(text, "virtual_server 198.51.100.100 {} {{", 20_000 + number)?;
            writeln!(text, "lb_algo wrr\nlb_kind NAT\nprotocol TCP\ndelay_loop {}", self.interval)?;
            for server in 0..EACH {
                let address = Ipv4Addr::from(first + (number * EACH + server) as u32);
                let weight = if (number, server) == (0, 0) { self.weight } else { 1 };
                writeln!(text, "real_server {address} 80 {{\nweight {weight}\n{}}}", self.check)?;
            }
            text.push_str("}\n");
        }
        Ok(fs::write(&self.path, text)?)
    }
}

/// A running `xvsd`, ended when dropped.
struct Daemon {
    child: Child,
    process: PathBuf,
}

/// Number of checks in a period.
struct Made {
    seconds: f64,
    asked: f64,
    failed: u64,
    cpu_seconds: f64,
}

impl Daemon {
    fn ask(&self, request: Request) -> Result<Reply> {
        Ok(Client::connect(Path::new("/run/xvs/xvsd.sock"))?.call(request)?)
    }

    fn report(&self) -> Result<HealthReport> {
        match self.ask(Request::Health)? {
            Reply::Health(report) => report.ok_or_else(|| "xvsd has no keepalived.conf".into()),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }

    /// Numbers of checks and of failed checks.
    fn counts(&self) -> Result<(u64, u64)> {
        let report = self.report()?;
        let servers = report.virtual_servers.iter().flat_map(|server| &server.real_servers);
        let checks = servers.flat_map(|server| &server.checks);
        Ok(checks.fold((0, 0), |(asked, failed), check| (asked + check.asked, failed + check.failed)))
    }

    fn checks(&self) -> Result<Made> {
        thread::sleep(BEFORE);
        let before = self.counts()?;
        let (start, cpu) = (Instant::now(), self.cpu_seconds(Some("xvs-health"))?);
        thread::sleep(WINDOW);
        let cpu_seconds = self.cpu_seconds(Some("xvs-health"))? - cpu;
        let seconds = start.elapsed().as_secs_f64();
        let after = self.counts()?;
        Ok(Made { seconds, asked: (after.0 - before.0) as f64, failed: after.1 - before.1, cpu_seconds })
    }

    /// CPU time of the threads with this name, or of all threads.
    fn cpu_seconds(&self, name: Option<&str>) -> Result<f64> {
        let mut nanoseconds = 0.0;
        for thread in fs::read_dir(self.process.join("task"))? {
            let thread = thread?.path();
            if let Some(name) = name
                && fs::read_to_string(thread.join("comm")).is_ok_and(|comm| comm.trim_end() != name)
            {
                continue;
            }
            // A client's thread may have ended.
            let Ok(times) = fs::read_to_string(thread.join("schedstat")) else { continue };
            nanoseconds += times.split(' ').next().ok_or("no time in schedstat")?.parse::<f64>()?;
        }
        Ok(nanoseconds / 1e9)
    }

    fn resident_mib(&self) -> Result<f64> {
        let status = fs::read_to_string(self.process.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}
