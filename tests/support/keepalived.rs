//! The real keepalived on a director, for VRRP alone.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, Host};
use crate::wait;

/// The two directors of [`Cluster::with_backup`]; the first is preferred.
pub const DIRECTORS: [Host; 2] = [Host::Director, Host::Backup];

/// The file of a director's keepalived.
pub fn conf(cluster: &Cluster, host: Host) -> PathBuf {
    cluster.state().join(format!("{}-keepalived.conf", host.name()))
}

/// The part of a director's file for VRRP: the addresses that move, and more of the instance.
pub fn vrrp_instance(host: Host, addresses: &[Ipv4Addr], more: &str) -> String {
    let priority = if host == Host::Director { 150 } else { 100 };
    let addresses: String = addresses.iter().map(|addr| format!("{addr}/32 dev lan\n")).collect();
    format!(
        "vrrp_instance service {{
            state BACKUP
            interface lan
            virtual_router_id 51
            priority {priority}
            advert_int 1
            virtual_ipaddress {{
                {addresses}
            }}
            {more}
        }}\n"
    )
}

/// Waits until a director alone has these addresses on `lan`.
pub fn await_addresses(cluster: &Cluster, host: Host, addresses: &[Ipv4Addr]) {
    wait::until(&format!("{} has the addresses, alone", host.name()), || {
        let has = |host| {
            let shown = cluster.ip(host, "address show dev lan");
            addresses.iter().all(|addr| shown.contains(&format!("{addr}/32")))
        };
        DIRECTORS.into_iter().all(|other| has(other) == (other == host)).then_some(())
    });
}

/// A keepalived on a director, as operators run it; ended when dropped.
#[derive(Debug)]
pub struct Keepalived {
    process: Child,
    log: PathBuf,
}

impl Keepalived {
    /// Starts it with the file of [`conf`], for VRRP alone.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(cluster: &Cluster, host: Host) -> Self {
        let file = |ending| cluster.state().join(format!("{}-keepalived.{ending}", host.name()));
        let log = file("log");
        // One that was started before has ended.
        let out = File::create(&log).expect("the cluster's folder takes a new file");
        let err = out.try_clone().expect("a file can be cloned");
        let mut command = cluster.command(host, "keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--no-syslog", "--log-detail"]);
        command.arg("--use-file").arg(conf(cluster, host));
        command.arg("--pid").arg(file("pid")).arg("--vrrp_pid").arg(file("vrrp.pid"));
        // keepalived 2.3 locks the default one also without BFD, so another keepalived could not start.
        command.arg("--bfd_pid").arg(file("bfd.pid"));
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
