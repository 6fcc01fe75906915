//! A machine with Debian and the package of xvs: its own network, host name, and files below /etc, /usr, /var and /run.
//!
//! Made in a tenth of a second from this machine's files; nothing that is written there reaches them. Dropping it ends
//! all its processes, and all is gone. Its services are in `systemd.rs`. Needs root, and the kernel's overlayfs.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::complete;
use crate::director::program;
use crate::netns::{Netns, must};

/// What a login and systemd have there.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running machine.
pub struct Machine {
    /// Its network.
    pub netns: Netns,
    pub(crate) services: BTreeMap<String, Service>,
    /// The process that holds its namespaces.
    process: Child,
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
        // In a chroot, / is not a mount point, so its propagation cannot be changed.
        let isolated = complete(Command::new("unshare").args(["--mount", "--propagation", "slave", "true"]));
        let propagation = if isolated.status.success() { "slave" } else { "unchanged" };
        let mut command = netns.command("unshare");
        command.args(["--mount", "--uts", "--propagation", propagation]);
        command
            .arg(sources.join("tests/first_hour/machine"))
            .arg(&folder)
            .arg(sources)
            .arg(programs)
            .arg(name);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("nsenter can be started");
        let stdout = process.stdout.take().expect("it is a pipe");
        let machine = Self { netns, services: BTreeMap::new(), process, folder };
        let mut said = String::new();
        BufReader::new(stdout).read_line(&mut said).expect("a pipe can be read");
        assert_eq!(said, "ready\n", "{name} has failed");
        machine
    }

    /// A program to run there.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.process.id().to_string()]);
        command.args(["--net", "--mount", "--uts", "--root", "--wd"]).arg(program);
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
        Path::new(&format!("/proc/{}/root", self.process.id())).join(file.trim_start_matches('/'))
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
        }
        let pids = must(Command::new("ip").args(["netns", "pids", &self.netns.name]));
        let pids = String::from_utf8_lossy(&pids.stdout).into_owned();
        for pid in pids.lines().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
            // It may have ended meanwhile. Other failures cannot be handled here, nor those below.
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.wait();
        self.services.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
