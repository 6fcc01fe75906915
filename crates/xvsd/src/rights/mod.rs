//! The rights that xvsd gives up at its start, and the rights that it needs (capabilities and open files).
//!
//! Rights are given up before there are threads, but after the start of the helper, which keeps all rights. Needed
//! rights are checked before anything else is started, so the error names the missing right and not the system call
//! that fails without it. Locked memory is checked with the packet memory, whose error names it.

pub(crate) mod ownership;
pub mod scripts;
pub mod seccomp;

use std::ffi::CString;
use std::io;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{self, User};
use rustix::fs::{Gid, Uid};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getegid, geteuid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::system::uname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};
use xvs_ctl::config::{Config, ConfigError};
use xvs_dataplane::steering::objects::{Load, OpenFormerMaps};
use xvs_helper::client;
use xvs_helper::process::Known;
use xvs_helper::task::known;
use xvs_host::ipvs::ReadTable;
use xvs_host::loopback::AcceptOwnAddresses;
use xvs_host::netfilter::FollowNftables;
use xvs_host::network::clsact::ProvideClsact;
use xvs_host::network::deferral::DeferInterrupts;
use xvs_host::network::neighbours::ChangeNeighbours;
use xvs_host::reserved_ports::ReservePorts;
use xvs_xdp::bpf::{AttachTc, DetachTc, MakeKeySet};
use xvs_xdp::device::SetReceiveQueues;
use xvs_xdp::pins;
use xvs_xdp::polling::PREFER_BUSY_POLLING;
use xvs_xdp::tap::MakeTap;

use crate::error::{DaemonError, system};
use crate::metrics::exporter::CLIENTS as METRICS_CLIENTS;
use crate::rights::ownership::{Owner, give};
use crate::socket::CLIENTS as CONTROL_CLIENTS;

/// The environment variable with the open directory of pins, for a process that re-executes itself.
const PINS: &str = "XVSD_PINS";
/// The environment variable for such a process that already has its filters of system calls.
const FILTERS: &str = "XVSD_FILTERS";

/// The capabilities of an xvsd with `user`: for AF_XDP and raw sockets; packet memory; the priority of workers; ports
/// below 1024 of metrics and of health checks.
const KEPT: CapabilitySet = CapabilitySet::NET_RAW
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_NICE)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Additional requirements of earlier kernels, each with the first kernel that does not have it: CAP_BPF to use maps
/// that are open while `kernel.unprivileged_bpf_disabled` is not 0 (kernel/bpf/syscall.c, `__sys_bpf`), CAP_NET_ADMIN
/// for the mark of a socket, which a health check may have (net/core/sock.c, `SO_MARK`).
const KEPT_BEFORE: [((u32, u32), CapabilitySet); 2] =
    [((5, 19), CapabilitySet::BPF), ((5, 17), CapabilitySet::NET_ADMIN)];

/// The tasks of the helper process for an xvsd that has only these rights.
pub const TASKS: &[Known] = &[
    known::<Load>(),
    known::<OpenFormerMaps>(),
    known::<MakeKeySet>(),
    known::<MakeTap>(),
    known::<ProvideClsact>(),
    known::<AttachTc>(),
    known::<DetachTc>(),
    known::<AcceptOwnAddresses>(),
    known::<ChangeNeighbours>(),
    known::<ReservePorts>(),
    known::<DeferInterrupts>(),
    known::<SetReceiveQueues>(),
    PREFER_BUSY_POLLING,
    known::<FollowNftables>(),
    known::<ReadTable>(),
];

/// The minimum number of open files: 112 for the start with two interfaces and few health checks at once, and those of
/// all permitted clients. Clients therefore never take the last one; otherwise xvsd could answer no client, not even
/// root or `xvs healthy`.
const FILES_MIN: u64 = 112 + client_files();

/// The files of all clients: two for one of the control socket, one for one of metrics.
const fn client_files() -> u64 {
    2 * CONTROL_CLIENTS as u64 + METRICS_CLIENTS as u64
}

/// The capabilities that the kernel requires, each with others that it accepts instead.
const NEEDED: [(&str, CapabilitySet); 4] = [
    ("CAP_NET_ADMIN", CapabilitySet::NET_ADMIN),
    ("CAP_NET_RAW", CapabilitySet::NET_RAW),
    ("CAP_BPF", CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN)),
    ("CAP_PERFMON", CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN)),
];

/// Gives up what this process does not use. No program that it executes can have more rights than the process itself.
/// With `user` it becomes that user, with only `KEPT` and the system calls that xvsd uses; the helper carries out
/// tasks.
///
/// # Errors
/// There is no such user, this process may not become it or lacks rights, or the user cannot have the folders of xvsd.
pub fn give_up(config: &Config) -> Result<(), DaemonError> {
    // Filters that this process already has find the handler before anything else is tried.
    let has_filters = std::env::var_os(FILTERS).is_some();
    if has_filters {
        seccomp::keep_limits().map_err(system(SECCOMP))?;
        // It has given up its rights, also if xvs.toml has no user any more.
        client::use_for_tasks();
    }
    if let Some(path) = std::env::var_os(PINS) {
        pins::keep_path(PathBuf::from(path));
    }
    // rustix reads the auxiliary vector once; before Linux 6.4 from /proc/self/auxv, which belongs to root as soon as
    // this process has another user.
    let _ = rustix::param::page_size();
    if let Some(name) = &config.user {
        let owner = owner(name)?;
        if !has_filters {
            has_needed()?;
            client::use_for_tasks();
        }
        if geteuid() != owner.user {
            give(config, owner).map_err(system("user: a folder of xvsd"))?;
        }
        limit_to(name, owner).map_err(system("user: becoming the user"))?;
    }
    set_no_new_privs(true).map_err(|error| system("no_new_privs")(error.into()))?;
    if config.user.is_some() && !has_filters {
        seccomp::limit_process().map_err(system(SECCOMP))?;
    }
    Ok(())
}

/// The part of the start that fails without filters.
const SECCOMP: &str = "user: the filters of system calls (seccomp)";

/// The account of `user`, which this process can become.
fn owner(name: &str) -> Result<Owner, DaemonError> {
    let user = User::from_name(name).map_err(|error| system("user: looking it up")(error.into()))?.ok_or_else(|| {
        refused(
            name,
            "there is no such user; `groupadd --force --system xvs && useradd --system --gid xvs xvs` makes xvs",
        )
    })?;
    let owner = Owner { user: Uid::from_raw(user.uid.as_raw()), group: Gid::from_raw(user.gid.as_raw()) };
    if owner.user.is_root() {
        return Err(refused(name, "root has every right; name another user, or leave the key out"));
    }
    if geteuid() != owner.user && !geteuid().is_root() {
        return Err(refused(
            name,
            "xvsd is started as another user and not as root; start it as root, or leave the key out",
        ));
    }
    Ok(owner)
}

fn refused(user: &str, why: &'static str) -> DaemonError {
    DaemonError::Config(ConfigError::Value { key: "user", value: user.to_owned(), why })
}

fn limit_to(name: &str, owner: Owner) -> io::Result<()> {
    let has = capabilities(None)?;
    let kept = kept(&uname().release().to_string_lossy());
    if has.permitted.contains(CapabilitySet::SETPCAP) {
        for one in CapabilitySet::all().difference(kept).iter() {
            // An error: a capability that this kernel does not have.
            if capability_is_in_bounding_set(one).unwrap_or(false) {
                remove_capability_from_bounding_set(one)?;
            }
        }
    }
    if geteuid() != owner.user || getegid() != owner.group {
        set_keep_capabilities(true)?;
        let user = owner.user.as_raw().into();
        let group = owner.group.as_raw().into();
        unistd::initgroups(&CString::new(name)?, group)?;
        unistd::setresgid(group, group, group)?;
        unistd::setresuid(user, user, user)?;
    }
    let left = has.permitted.intersection(kept);
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: left, permitted: left, inheritable })?;
    // Scripts of the same user must not read its memory.
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// The capabilities that xvsd keeps on a kernel with this release.
fn kept(release: &str) -> CapabilitySet {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let kernel = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    KEPT_BEFORE.iter().filter(|(first, _)| kernel < *first).fold(KEPT, |kept, (_, one)| kept.union(*one))
}

/// Passes the rights of this process on to the xvsd that this command is about to execute in its place.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn pass_on(command: &mut Command) -> io::Result<()> {
    if let Some(path) = pins::kept()? {
        command.env(PINS, path);
    }
    if seccomp::is_limited() {
        command.env(FILTERS, "");
    }
    if !geteuid().is_root() {
        let has = capabilities(None)?;
        set_capabilities(None, CapabilitySets { inheritable: has.permitted, ..has })?;
        for one in has.permitted.iter() {
            configure_capability_in_ambient_set(one, true)?;
        }
    }
    Ok(())
}

/// Checks the process's limit of open files, and its capabilities unless the helper has those that it gave up.
///
/// # Errors
/// [`DaemonError::Rights`] or [`DaemonError::Files`].
pub fn check() -> Result<(), DaemonError> {
    if !client::is_used_for_tasks() {
        has_needed()?;
    }
    // The helper has started, so scripts get the limit with which xvsd was started.
    let files = getrlimit(Resource::Nofile);
    if files.current.is_some_and(|limit| limit < FILES_MIN) {
        // An error: the limit stays, and is read below.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    }
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < FILES_MIN => Err(DaemonError::Files { limit, needed: FILES_MIN }),
        _ => Ok(()),
    }
}

/// Checks that the process has the capabilities that xvsd and its helper need together.
fn has_needed() -> Result<(), DaemonError> {
    let has = capabilities(None).map_err(|error| system("capabilities")(error.into()))?.effective;
    let missing: Vec<_> =
        NEEDED.iter().filter(|(_, any)| !has.intersects(*any)).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(DaemonError::Rights { missing: missing.join(", "), units: missing.join(" ") })
}

#[cfg(test)]
mod tests {
    use crate::rights::*;

    #[test]
    fn earlier_kernels_leave_xvsd_what_they_demand_for_open_maps_and_for_marks_of_sockets() {
        let (bpf, net_admin) = (CapabilitySet::BPF, CapabilitySet::NET_ADMIN);
        for (release, more) in [
            ("5.15.0-164-generic", bpf.union(net_admin)),
            ("5.17.3", bpf),
            ("5.18.0-0.deb11.4-amd64", bpf),
            ("5.19.0", CapabilitySet::empty()),
            ("6.1.0-41-amd64", CapabilitySet::empty()),
        ] {
            assert_eq!(kept(release), KEPT.union(more), "{release}");
        }
    }
}
