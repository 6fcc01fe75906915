//! A network namespace of a test, removed when it is dropped.

use std::ffi::OsStr;
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::namespace;

/// A new namespace, with the loopback interface up.
pub struct Netns {
    /// Its name in `/run/netns`.
    pub name: String,
}

impl Netns {
    /// A namespace whose name contains `purpose`, a word.
    pub fn new(purpose: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("xvs-{purpose}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        must(Command::new("ip").args(["netns", "add", &name]));
        let netns = Self { name };
        netns.ip("link set lo up");
        netns
    }

    /// Runs `ip` in it, which must succeed.
    pub fn ip(&self, words: &str) {
        let words: Vec<&str> = words.split_whitespace().collect();
        must(self.command("ip").args(words));
    }

    /// Makes a veth pair between this namespace and another, both ends up, checksum offload off.
    pub fn veth(&self, here: &str, other: &Self, there: &str) {
        self.ip(&format!("link add {here} type veth peer name {there} netns {}", other.name));
        for (netns, dev) in [(self, here), (other, there)] {
            must(netns.command("ethtool").args(["-K", dev, "tx", "off"]));
            netns.ip(&format!("link set {dev} up"));
        }
    }

    /// A program to run in it.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// `unshare`, for more of its options and a program: in the namespace, and what the program mounts ends with it.
    pub fn command_with_mounts(&self) -> Command {
        // In a chroot, / is not a mount point, so its propagation cannot be changed.
        let slave = ["--mount", "--propagation", "slave"];
        let is_root_a_mount = Command::new("unshare").args(slave).arg("true").output();
        let propagation =
            if is_root_a_mount.is_ok_and(|output| output.status.success()) { "slave" } else { "unchanged" };
        let mut command = self.command("unshare");
        command.args(["--mount", "--propagation", propagation]);
        command
    }

    /// Runs `work` on a thread in it: the test's own thread may be shared with other tests.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::run(&self.name, work)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Runs a command that must succeed.
pub fn must(command: &mut Command) -> Output {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup installs it"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} (needs root): {stderr}");
    output
}
