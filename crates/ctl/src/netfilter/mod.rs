//! Follows the rules by which the kernel's netfilter marks packets: iptables of both kinds, and nftables.
//!
//! What has changed is told by netlink, for nftables and iptables-nft; iptables-legacy tells nobody, so while it has a
//! table mangle, that is read once a second. Rules are read as the programs print them (`nft`, `iptables-nft-save`,
//! `iptables-legacy-save` and their likes for IPv6); a program that is not installed has no rules. Runs on a thread of
//! its own, in the network namespace of the thread that started it. Cost: a few processes at a change, one small file a
//! second else. Not here: what the rules come to ([`crate::marks`]).

use std::fs;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use xvs_proto::{Family, Protocol};

use crate::marks::Table;

mod nft;
mod range;
mod save;
#[cfg(test)]
mod tests;

/// The kernel's mark rules at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Tables with chains that packets pass before IPVS would see them.
    pub tables: Vec<Table>,
    /// Sentences for the operator: what could not be read.
    pub warnings: Vec<String>,
}

/// Follows on a thread of its own; dropping it stops the thread and waits for its end.
#[derive(Debug)]
pub struct Following {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

/// Follows the mark rules of the calling thread's namespace. `report` is called on the new thread, first with what there
/// is, then whenever that is different.
///
/// # Errors
/// The system's refusal of a socket or a thread.
pub fn follow(mut report: impl FnMut(Found) + Send + 'static) -> io::Result<Following> {
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let events = Events::open(Arc::clone(&stop))?;
    let run = move || {
        let mut reading = Reading::default();
        let mut found = reading.all();
        report(found.clone());
        loop {
            match events.wait(LEGACY_INTERVAL) {
                Ok(Woken::Stopped) => return,
                Ok(Woken::Changed) => reading.nft = read_nft(),
                Ok(Woken::TimedOut) => {}
                Err(error) => {
                    tracing::warn!("following netfilter's rules: {error}; everything is read anew");
                    // A fault that stays must not become a busy loop.
                    thread::sleep(LEGACY_INTERVAL);
                    reading.nft = read_nft();
                }
            }
            reading.legacy = read_legacy();
            let now = reading.found();
            if now != found {
                found = now;
                report(found.clone());
            }
        }
    };
    let thread = thread::Builder::new().name("xvs-netfilter".to_owned()).spawn(run)?;
    Ok(Following { stop, thread: Some(thread) })
}

impl Drop for Following {
    fn drop(&mut self) {
        // The counter would have to be full to refuse, and then the wait has ended too.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that followed netfilter's rules had panicked");
        }
    }
}

/// What each kind of program has told last.
#[derive(Default)]
struct Reading {
    nft: Found,
    legacy: Found,
}

impl Reading {
    fn all(&mut self) -> Found {
        (self.nft, self.legacy) = (read_nft(), read_legacy());
        self.found()
    }

    /// Of one priority, legacy comes first: the kernel's own order is that in which they were registered.
    fn found(&self) -> Found {
        Found {
            tables: [self.legacy.tables.as_slice(), &self.nft.tables].concat(),
            warnings: [self.legacy.warnings.as_slice(), &self.nft.warnings].concat(),
        }
    }
}

/// The tables of nftables, iptables-nft's among them: those nft cannot say, because they hold iptables' own matches.
fn read_nft() -> Found {
    let mut found = Found::default();
    let ruleset = output(&["nft", "-j", "list", "ruleset"], &mut found.warnings);
    let ruleset = ruleset.and_then(|text| nft::Ruleset::parse(&text));
    let mut by_iptables = Vec::new();
    for (family, programs) in [
        (Family::V4, ["iptables-nft-save", "iptables-save"]),
        (Family::V6, ["ip6tables-nft-save", "ip6tables-save"]),
    ] {
        if ruleset.as_ref().is_some_and(|ruleset| !ruleset.has_mangle(family)) {
            continue;
        }
        let text = programs.iter().find_map(|program| {
            is_of(program, "nf_tables").then(|| output(&[program], &mut found.warnings)).flatten()
        });
        if let Some(table) = text.and_then(|text| save::read(&text, family)) {
            found.tables.push(table);
            by_iptables.push(family);
        }
    }
    if let Some(ruleset) = ruleset {
        let listing = output(&["nft", "-a", "list", "ruleset"], &mut found.warnings).unwrap_or_default();
        found.tables.extend(ruleset.tables(&listing, &by_iptables));
    }
    found
}

/// The tables of iptables-legacy. Its program would make the table mangle by asking for it, so it is asked only where
/// there is one.
fn read_legacy() -> Found {
    let mut found = Found::default();
    for (family, names, programs) in [
        (Family::V4, "ip_tables_names", ["iptables-legacy-save", "iptables-save"]),
        (Family::V6, "ip6_tables_names", ["ip6tables-legacy-save", "ip6tables-save"]),
    ] {
        let names = fs::read_to_string(format!("/proc/thread-self/net/{names}")).unwrap_or_default();
        if !names.lines().any(|name| name == "mangle") {
            continue;
        }
        let text = programs.iter().find_map(|program| {
            let legacy = program.contains("legacy") || is_of(program, "legacy");
            legacy.then(|| output(&[program, "-t", "mangle"], &mut found.warnings)).flatten()
        });
        found.tables.extend(text.and_then(|text| save::read(&text, family)));
    }
    found
}

/// Whether a program of iptables is there and of this kind, as its version says.
fn is_of(program: &str, kind: &str) -> bool {
    let mut ignored = Vec::new();
    output(&[program, "-V"], &mut ignored).is_some_and(|version| version.contains(kind))
}

/// What a program prints; `None` if it is not there, or has failed, which is told.
fn output(argv: &[&str], warnings: &mut Vec<String>) -> Option<String> {
    // A daemon's path may lack where such programs are.
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    let why = match Command::new(argv[0]).args(&argv[1..]).env("PATH", path).output() {
        Ok(output) if output.status.success() => {
            return Some(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => error.to_string(),
    };
    let why = why.lines().next().unwrap_or_default().to_owned();
    warnings
        .push(format!("`{}` failed ({why}); mark rules that it would tell are not followed", argv.join(" ")));
    None
}

/// Why [`Events::wait`] has returned.
enum Woken {
    Changed,
    TimedOut,
    Stopped,
}

/// The kernel's word that rules of nftables have changed.
struct Events {
    socket: Socket,
    stop: Arc<OwnedFd>,
}

impl Events {
    fn open(stop: Arc<OwnedFd>) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        socket.add_membership(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, stop })
    }

    fn wait(&self, at_most: Duration) -> io::Result<Woken> {
        let mut fds = [
            PollFd::from_borrowed_fd(rustix::fd::AsFd::as_fd(&self.socket), PollFlags::IN),
            PollFd::new(&*self.stop, PollFlags::IN),
        ];
        let at_most = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(&mut fds, Some(&at_most)) {
            Ok(_) if !fds[1].revents().is_empty() => Ok(Woken::Stopped),
            Ok(_) if !fds[0].revents().is_empty() => {
                // A change is several messages: those that come while the first are read are read with them.
                thread::sleep(GATHER);
                self.drain().map(|()| Woken::Changed)
            }
            Ok(_) | Err(Errno::INTR) => Ok(Woken::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes all messages: that there were some is all that counts.
    fn drain(&self) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(64 * 1024);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Some were lost.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Where on its way a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hook {
    Prerouting,
    Input,
}

/// One order for chains of both hooks.
fn place(hook: Hook, priority: i64) -> i64 {
    match hook {
        Hook::Prerouting => priority,
        // Priorities have 32 bits.
        Hook::Input => priority + (1 << 40),
    }
}

/// Protocols by their names in rules.
fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "sctp" => Some(Protocol::SCTP),
        "icmp" => Some(Protocol::ICMP),
        "ipip" | "ipencap" => Some(Protocol::IPIP),
        "gre" => Some(Protocol::GRE),
        "esp" => Some(Protocol(50)),
        "ah" => Some(Protocol(51)),
        "icmpv6" | "ipv6-icmp" => Some(Protocol(58)),
        "udplite" => Some(Protocol(136)),
        _ => None,
    }
}

/// `include/uapi/linux/netfilter/nfnetlink.h`.
const NFNLGRP_NFTABLES: u32 = 7;
/// How often tables that tell of no changes are read.
const LEGACY_INTERVAL: Duration = Duration::from_secs(1);
/// How long messages of a change are gathered.
const GATHER: Duration = Duration::from_millis(20);
