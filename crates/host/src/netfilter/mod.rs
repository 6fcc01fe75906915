//! Follows netfilter's rules that mark packets, of iptables-legacy, iptables-nft and nftables.
//!
//! Netlink announces changes of nftables and iptables-nft. Other reasons to read rules are checked once a second:
//! iptables-legacy, whose changes are not announced, is read while it has tables; nftables is read again after a
//! program failed, and while marks depend on a set whose elements are added by packets or expire.
//!
//! The rules are the output of `nft`, `iptables-nft-save`, `iptables-legacy-save` and their counterparts for IPv6; a
//! program that is not installed has no rules. Runs on a separate thread, in the network namespace of the thread that
//! started it. Cost: a few processes for a change, which run at most a fifth of the time, and one small file read each
//! second. `xvs_ctl::firewall_marks` evaluates the rules.

use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use serde::{Deserialize, Serialize};
use xvs_helper::client::legacy_tables;
use xvs_helper::request::LegacyTables;
use xvs_helper::task::{Answer, Task, only};
use xvs_proto::Family;

use crate::follower_thread::{FollowerThread, Stopper};
use crate::netfilter::chain::Table;
use crate::netfilter::programs::Programs;
use crate::notice::Notice;

pub mod chain;
mod hook;
pub mod iptables_save;
pub mod nft;
mod nft_rule;
mod programs;
mod range;

/// The kernel's mark rules at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KernelMarkRules {
    /// Tables with base chains that the kernel calls before IPVS.
    pub tables: Vec<Table>,
    /// Sentences for the operator: programs that failed.
    pub warnings: Vec<Notice>,
}

/// Reads the current rules in the calling thread's network namespace, also those that set no marks.
///
/// # Errors
///
/// The system refuses a descriptor.
pub fn read_all() -> io::Result<KernelMarkRules> {
    let mut reader = Reader { scope: Scope::All, ..Reader::new(Programs::new(Stopper::open()?)) };
    reader.nft();
    reader.legacy();
    Ok(reader.found())
}

/// Follows the mark rules in the calling thread's network namespace. `report` is called on the new thread, first with
/// the current rules, then after each change.
///
/// # Errors
///
/// The system refuses a socket or a thread.
pub fn follow(report: impl FnMut(KernelMarkRules) + Send + 'static) -> io::Result<FollowerThread> {
    let stopper = Stopper::open()?;
    let events = Events::open(stopper.clone())?;
    let reader = Reader::new(Programs::new(stopper.clone()));
    FollowerThread::start("xvs-netfilter", "netfilter's rules", stopper, move || run(&events, reader, report))
}

/// Reads the rules until the stop.
fn run(events: &Events, mut reader: Reader, mut report: impl FnMut(KernelMarkRules)) {
    let mut found = None;
    let mut is_due = true;
    loop {
        let began = Instant::now();
        if is_due {
            reader.nft();
        }
        reader.legacy();
        let took = began.elapsed();
        // A reading that was interrupted by the stop may be incomplete.
        if matches!(events.pause(Duration::ZERO), Ok(Woken::Stopped)) {
            return;
        }
        let now = reader.found();
        if found.as_ref() != Some(&now) {
            report(now.clone());
            found = Some(now);
        }
        let pause = if is_due { (took * 4).min(PAUSE_MAX) } else { Duration::ZERO };
        is_due = match events.pause(pause).and_then(|woken| match woken {
            Woken::Stopped => Ok(woken),
            _ => events.wait(INTERVAL),
        }) {
            Ok(Woken::Stopped) => return,
            Ok(Woken::Changed) => true,
            Ok(Woken::TimedOut) => reader.reread_nft,
            Err(error) => {
                tracing::warn!("following netfilter's rules: {error}; all rules are read again");
                // A persistent error must not become a busy loop.
                thread::sleep(INTERVAL);
                true
            }
        };
    }
}

/// The tables that a [`Reader`] reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// Tables that may mark packets.
    Marking,
    All,
}

/// The rules that were read last, by kind of program.
struct Reader {
    programs: Programs,
    scope: Scope,
    nft: KernelMarkRules,
    legacy: KernelMarkRules,
    /// Whether nftables has to be read again without an announced change.
    reread_nft: bool,
    /// The names of the tables of iptables-legacy that were read last, by family.
    legacy_names: [String; 2],
}

impl Reader {
    fn new(programs: Programs) -> Self {
        Self {
            programs,
            scope: Scope::Marking,
            nft: KernelMarkRules::default(),
            legacy: KernelMarkRules::default(),
            reread_nft: false,
            legacy_names: Default::default(),
        }
    }

    fn found(&self) -> KernelMarkRules {
        KernelMarkRules {
            tables: [self.legacy.tables.as_slice(), &self.nft.tables].concat(),
            warnings: [self.legacy.warnings.as_slice(), &self.nft.warnings].concat(),
        }
    }

    /// Reads the tables of nftables. Those of iptables-nft are read by its own program, because nft does not print the
    /// criteria in iptables matches.
    fn nft(&mut self) {
        self.programs.begin();
        let mut tables = Vec::new();
        let json = self.programs.output(&["nft", "-j", "list", "ruleset"]);
        let listing = self.programs.output(&["nft", "-a", "list", "ruleset"]).unwrap_or_default();
        let ruleset = json.and_then(|json| nft::Ruleset::parse(&json, &listing));
        let mut by_iptables = Vec::new();
        let kinds = match self.scope {
            Scope::Marking => &[iptables_save::MANGLE][..],
            Scope::All => &iptables_save::TABLES,
        };
        for (family, programs) in [
            (Family::V4, ["iptables-nft-save", "iptables-save"]),
            (Family::V6, ["ip6tables-nft-save", "ip6tables-save"]),
        ] {
            let kinds: Vec<_> = kinds
                .iter()
                .filter(|kind| ruleset.as_ref().is_none_or(|ruleset| ruleset.has_table(family, kind.name)))
                .collect();
            if kinds.is_empty() {
                continue;
            }
            let text = programs
                .iter()
                .find_map(|program| {
                    let is_nft = self.programs.is_variant(program, "nf_tables");
                    is_nft.then(|| self.programs.output(&[program])).flatten()
                })
                .unwrap_or_default();
            for kind in kinds {
                let Some(mut table) = iptables_save::read(&text, family, kind) else { continue };
                for base in &mut table.bases {
                    base.registered = ruleset
                        .as_ref()
                        .and_then(|ruleset| ruleset.registered_in((family, kind.name), &base.chain));
                }
                tables.push(table);
                by_iptables.push((family, kind.name));
            }
        }
        let warnings = self.programs.failures.clone();
        self.reread_nft = !warnings.is_empty();
        if let Some(ruleset) = ruleset {
            tables.extend(match self.scope {
                Scope::Marking => ruleset.tables(&by_iptables),
                Scope::All => ruleset.all_tables(&by_iptables),
            });
            self.reread_nft |= ruleset.changes_silently();
        }
        self.nft = KernelMarkRules { tables, warnings };
    }

    /// Reads the tables of iptables-legacy. Its program creates the tables that it reads, so it runs only if there are
    /// tables.
    fn legacy(&mut self) {
        self.programs.begin();
        let mut tables = Vec::new();
        for (family, names, programs) in [
            (Family::V4, LegacyTables::V4, ["iptables-legacy-save", "iptables-save"]),
            (Family::V6, LegacyTables::V6, ["ip6tables-legacy-save", "ip6tables-save"]),
        ] {
            let last = &mut self.legacy_names[family as usize];
            match legacy_tables(names) {
                Ok(read) => *last = read,
                Err(error) => {
                    let text = format!(
                        "the tables of iptables-legacy cannot be read ({error}); those that were read last are followed"
                    );
                    self.programs.failures.push(Notice::new(programs[0], text));
                }
            }
            if last.clone().is_empty() {
                continue;
            }
            let text = programs
                .iter()
                .find_map(|program| {
                    let is_legacy = program.contains("legacy") || self.programs.is_variant(program, "legacy");
                    is_legacy.then(|| self.programs.output(&[program])).flatten()
                })
                .unwrap_or_default();
            tables.extend(iptables_save::read_all(&text, family));
        }
        self.legacy = KernelMarkRules { tables, warnings: self.programs.failures.clone() };
    }
}

/// Why [`Events::wait`] returned.
enum Woken {
    Changed,
    TimedOut,
    Stopped,
}

/// The kernel's announcements of changed nftables rules.
struct Events {
    socket: OwnedFd,
    stopper: Stopper,
}

/// Opens a socket that receives these announcements in the calling thread's network namespace.
#[derive(Debug, Serialize, Deserialize)]
pub struct FollowNftables;

impl Task for FollowNftables {
    const NAME: &'static str = "follow-nftables";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
        Ok(((), vec![socket]))
    }
}

impl Events {
    fn open(stopper: Stopper) -> io::Result<Self> {
        let ((), socket) = only(FollowNftables.run(&[])?)?;
        Ok(Self { socket, stopper })
    }

    /// Waits, regardless of changes.
    fn pause(&self, time: Duration) -> io::Result<Woken> {
        self.poll(&mut [self.stopper.poll_fd()], time)
    }

    /// Waits for a change.
    fn wait(&self, at_most: Duration) -> io::Result<Woken> {
        self.poll(&mut [self.stopper.poll_fd(), PollFd::new(&self.socket, PollFlags::IN)], at_most)
    }

    /// Waits for one of these descriptors; the first is the stop's.
    fn poll(&self, fds: &mut [PollFd<'_>], at_most: Duration) -> io::Result<Woken> {
        let at_most = Timespec::try_from(at_most).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
        match poll(fds, Some(&at_most)) {
            Ok(_) if !fds[0].revents().is_empty() => Ok(Woken::Stopped),
            Ok(_) if fds.iter().any(|fd| !fd.revents().is_empty()) => {
                // A change causes several messages; the pause collects them.
                thread::sleep(COLLECT);
                self.drain().map(|()| Woken::Changed)
            }
            Ok(_) | Err(Errno::INTR) => Ok(Woken::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// Discards all messages; their content does not matter.
    fn drain(&self) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::AGAIN) => return Ok(()),
                // With NOBUFS messages were lost.
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The multicast group for nftables changes (`include/uapi/linux/netfilter/nfnetlink.h`).
const NFNLGRP_NFTABLES: u32 = 7;
/// The interval for reading tables without announcements, and for running a failed program again.
const INTERVAL: Duration = Duration::from_secs(1);
/// The maximum pause after a reading: a program that hung did not use the processor.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The time for which the messages of a change are collected.
const COLLECT: Duration = Duration::from_millis(20);
