//! A machine with Debian and the package of xvs: its own network, host name, and files below /etc, /usr, /var and /run.
//!
//! One kind is made in a tenth of a second from this machine's files; its services are in `systemd.rs`. The other is a
//! bare Debian that its own systemd boots, in some seconds. Nothing that is written in a machine reaches its source.
//! Dropping it ends all its processes, and all is gone. Needs root, and the kernel's overlayfs.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::complete;
use crate::director::program;
use crate::netns::{Netns, must};
use crate::wait;

/// What a login and systemd have there.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running machine.
pub struct Machine {
    /// Its network.
    pub netns: Netns,
    pub(crate) services: BTreeMap<String, Service>,
    /// What holds its namespaces, or the systemd-nspawn that has booted it.
    process: Child,
    /// A process with its namespaces: the former, or its systemd.
    pid: u32,
    is_booted: bool,
    folder: PathBuf,
}

/// A running service; killed when dropped.
pub(crate) struct Service(pub(crate) Child);

impl Drop for Service {
    fn drop(&mut self) {
        // Neither call fails for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// A machine with this host name, and without a network.
    ///
    /// # Panics
    ///
    /// If it cannot be made.
    pub fn new(name: &str) -> Self {
        let netns = Netns::new(name);
        let folder = env::temp_dir().join(&netns.name);
        fs::create_dir(&folder).expect("a new folder");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        let programs = program("xvs").with_file_name("");
        let mut command = netns.command_with_mounts();
        command
            .arg("--uts")
            .arg(sources.join("tests/first_hour/machine"))
            .arg(&folder)
            .arg(sources)
            .arg(programs)
            .arg(name);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("nsenter can be started");
        let stdout = process.stdout.take().expect("it is a pipe");
        let pid = process.id();
        let machine = Self { netns, services: BTreeMap::new(), process, pid, is_booted: false, folder };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said).expect("a pipe can be read");
        assert_eq!(said, "ready\n", "{name} has failed");
        machine
    }

    /// A machine with this host name, and without a network, booted from the root directory that
    /// `tests/first_hour/debian` has made. A script of sh, which may be empty, runs in it before. It has a systemd, and
    /// packages to install.
    ///
    /// # Panics
    ///
    /// If it cannot be made, or does not boot within the time limit.
    pub fn boot(name: &str, root: &Path, preparation: &str) -> Self {
        let netns = Netns::new(name);
        let folder = env::temp_dir().join(&netns.name);
        fs::create_dir(&folder).expect("a new folder");
        let boot = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/first_hour/boot");
        let mut command = Command::new("unshare");
        command.arg("--mount").arg(boot).arg(&folder).arg(root).arg(&netns.name).arg(name).arg(preparation);
        let log = File::create(folder.with_extension("log")).expect("a new file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let process = command.spawn().expect("unshare can be started");
        let mut machine = Self { netns, services: BTreeMap::new(), process, pid: 0, is_booted: true, folder };
        wait::until("the machine boots", || {
            machine.pid = machine.pids().next().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
            let is_booting = || machine.shell("systemctl is-active multi-user.target").stdout == b"active\n";
            (machine.pid != 0 && is_booting()).then_some(())
        });
        machine
    }

    /// Whether it has a systemd of its own.
    pub fn is_booted(&self) -> bool {
        self.is_booted
    }

    /// Its processes, the first one first.
    fn pids(&self) -> impl Iterator<Item = Pid> + use<> {
        let pids = must(Command::new("ip").args(["netns", "pids", &self.netns.name]));
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        let pids: Vec<_> = pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect();
        pids.into_iter()
    }

    /// A program to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid.to_string()]);
        command.args(["--net", "--mount", "--uts", "--root", "--wd"]);
        if self.is_booted {
            command.args(["--pid", "--ipc", "--cgroup"]);
        }
        command.arg(program);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Runs a line of a shell to its end.
    pub fn shell(&self, line: &str) -> Output {
        complete(self.command("sh").args(["-c", line]))
    }

    /// Where a file of it is for this process.
    pub fn path(&self, file: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid)).join(file.trim_start_matches('/'))
    }

    /// The file for the log of a service.
    pub(crate) fn log(&self, unit: &str) -> PathBuf {
        self.folder.join(format!("{unit}.log"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            for unit in self.services.keys() {
                let log = fs::read_to_string(self.log(unit)).unwrap_or_default();
                eprintln!("---- {} of {}\n{log}", unit, self.netns.name);
            }
            if self.is_booted {
                let log = fs::read_to_string(self.folder.with_extension("log")).unwrap_or_default();
                eprintln!("---- console of {}\n{log}", self.netns.name);
                let log = self.shell("journalctl --no-pager --lines=60 --unit=xvsd --unit=keepalived");
                eprintln!("---- {}\n{}", self.netns.name, String::from_utf8_lossy(&log.stdout));
            }
        }
        for pid in self.pids() {
            // It may have ended meanwhile. Other failures cannot be handled here, nor those below.
            let _ = kill_process(pid, Signal::KILL);
        }
        // One that has not booted has no process in its network yet.
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.services.clear();
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(self.folder.with_extension("log"));
    }
}
