//! The real keepalived on a director, for VRRP alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, Host};

/// A keepalived on a director, as operators run it; ended when dropped.
#[derive(Debug)]
pub struct Keepalived {
    process: Child,
    log: PathBuf,
}

impl Keepalived {
    /// Starts it with this file, for VRRP alone.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(cluster: &Cluster, host: Host, conf: &Path) -> Self {
        let file = |ending| cluster.state().join(format!("{}-keepalived.{ending}", host.name()));
        let log = file("log");
        // One that was started before has ended.
        let out = File::create(&log).expect("the cluster's folder takes a new file");
        let err = out.try_clone().expect("a file can be cloned");
        let mut command = cluster.command(host, "keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--no-syslog", "--log-detail"]);
        command.arg("--use-file").arg(conf);
        command.arg("--pid").arg(file("pid")).arg("--vrrp_pid").arg(file("vrrp.pid"));
        let process = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        Self { process: process.expect("scripts/netlab can be started"), log }
    }

    /// Ends it as systemd does.
    ///
    /// # Panics
    ///
    /// If it has ended already.
    pub fn stop(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).expect("it was not waited for yet");
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        self.stop();
        // It is a child of this process.
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}
