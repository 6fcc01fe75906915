//! The system calls that xvsd uses, by the kind of its threads, and the filters (seccomp) that refuse all others.
//!
//! With `user` the process gets the filters of `Kind::Control` before it has threads. Each thread inherits the filters
//! of the thread that starts it, and some add the narrower filter of their kind. A refused call fails with EPERM and is
//! counted; `xvs status`, the log and the metrics show it. Cost: one bit test for each call, because the kernel knows
//! for each number whether it is always allowed (kernel/seccomp.c, `seccomp_cache_check_allow`). Keeper, helper and the
//! programs that they execute have no filter.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};
use xvs_model::report::warning::{Warning, WarningKind};
use xvs_xdp::refused_calls;

/// The role of a thread, which determines the calls that it may use. Its number is also that of its counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Main, the control thread, and all that are of no other kind.
    Control,
    /// Reads what others send: clients of the control socket and of metrics, other directors, checked servers.
    Reader,
    /// Forwards packets.
    Worker,
}

use Kind::{Control, Reader, Worker};

impl Kind {
    const ALL: [Self; refused_calls::KINDS] = [Control, Reader, Worker];

    /// The name in warnings and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Control => "control",
            Reader => "reader",
            Worker => "worker",
        }
    }
}

/// A call with its number.
type Call = (&'static str, c_long);

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name)),*] };
}

const EACH: &[Kind] = &[Control, Reader, Worker];
const OTHERS: &[Kind] = &[Control, Reader];

/// The calls by purpose, each with the kinds that may use them. Calls that do the same are all listed, because versions
/// of the C library differ.
const CALLS: &[(&[Kind], &[Call])] = &[
    // Memory: the allocator, stacks, files. A worker allocates when it begins, and with new sockets.
    (EACH, calls![SYS_brk SYS_madvise SYS_membarrier SYS_mmap SYS_mprotect SYS_mremap SYS_mseal SYS_munmap]),
    // Locks and threads, but no processes (`no_processes`). A worker closes its sockets on threads of their own.
    (
        EACH,
        calls![
            SYS_clone SYS_clone3 SYS_exit SYS_exit_group SYS_futex SYS_futex_waitv SYS_getcpu SYS_gettid SYS_prctl SYS_rseq
            SYS_sched_getaffinity SYS_sched_yield SYS_set_robust_list SYS_set_tid_address
        ],
    ),
    // Signals: the return from a handler, the stack for overflows of the stack, an abort.
    (
        EACH,
        calls![
            SYS_getpid SYS_restart_syscall SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_tgkill
        ],
    ),
    // Time.
    (EACH, calls![SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_gettimeofday SYS_nanosleep]),
    // Frames: waiting, sending, statistics of sockets, TAPs, the descriptor that wakes a worker.
    (
        EACH,
        calls![
            SYS_close SYS_epoll_ctl SYS_epoll_pwait SYS_fcntl SYS_getsockopt SYS_ppoll SYS_read SYS_readv SYS_recvfrom
            SYS_recvmsg SYS_sendmsg SYS_sendto SYS_write SYS_writev
        ],
    ),
    // Random numbers of hash tables.
    (EACH, calls![SYS_getrandom]),
    // Waiting for many descriptors.
    (
        OTHERS,
        calls![
            SYS_epoll_create1 SYS_epoll_pwait2 SYS_eventfd2 SYS_pselect6 SYS_timerfd_create SYS_timerfd_gettime
            SYS_timerfd_settime
        ],
    ),
    // Sockets, of the families below.
    (
        OTHERS,
        calls![
            SYS_accept SYS_accept4 SYS_bind SYS_connect SYS_getpeername SYS_getsockname SYS_listen SYS_recvmmsg SYS_sendmmsg
            SYS_setsockopt SYS_shutdown SYS_socket SYS_socketpair
        ],
    ),
    // Files: configuration, journal, certificates, /proc, the FIFO of notices; who may use the control socket.
    (
        OTHERS,
        calls![
            SYS_copy_file_range SYS_dup SYS_dup3 SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir
            SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_fdatasync SYS_flock SYS_fstat SYS_fstatfs SYS_fsync
            SYS_ftruncate SYS_getcwd SYS_getdents64 SYS_ioctl SYS_lseek SYS_mkdirat SYS_mknodat SYS_newfstatat SYS_openat
            SYS_openat2 SYS_pipe2 SYS_pread64 SYS_preadv SYS_pwrite64 SYS_pwritev SYS_readlinkat SYS_renameat
            SYS_renameat2 SYS_statfs SYS_statx SYS_umask SYS_unlinkat
        ],
    ),
    // Memory as files, and whether the connection table has huge pages.
    (OTHERS, calls![SYS_memfd_create SYS_mincore]),
    // The process itself: its user, limits and use of resources; other processes by their descriptors.
    (
        OTHERS,
        calls![
            SYS_capget SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getpriority SYS_getppid SYS_getresgid
            SYS_getresuid SYS_getrusage SYS_getuid SYS_kill SYS_pidfd_open SYS_pidfd_send_signal SYS_prlimit64
            SYS_sched_getparam SYS_sched_getscheduler SYS_setpriority SYS_sysinfo SYS_times SYS_uname SYS_wait4
            SYS_waitid
        ],
    ),
    // The narrower filters of threads that these threads start.
    (OTHERS, calls![SYS_seccomp]),
    // XDP programs and maps that are open.
    (&[Control], calls![SYS_bpf]),
    // The cores and the priority of a worker, which it sets before it has its own filter.
    (
        &[Control],
        calls![
            SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_setaffinity SYS_sched_setscheduler
        ],
    ),
    // xvsd re-executes itself, with its capabilities, after a take-over that failed too late.
    (&[Control], calls![SYS_capset SYS_execve]),
];

/// Forms of the calls above that this architecture has in addition. `no_processes` refuses fork and vfork.
#[cfg(target_arch = "x86_64")]
const MORE: &[(&[Kind], &[Call])] = &[
    (EACH, calls![SYS_arch_prctl SYS_poll SYS_time]),
    (
        OTHERS,
        calls![
            SYS_access SYS_chmod SYS_chown SYS_dup2 SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_fork SYS_getdents
            SYS_getrlimit SYS_lchown SYS_lstat SYS_mkdir SYS_mknod SYS_open SYS_pipe SYS_readlink SYS_rename
            SYS_rmdir SYS_select SYS_setrlimit SYS_stat SYS_unlink SYS_vfork
        ],
    ),
];
#[cfg(not(target_arch = "x86_64"))]
const MORE: &[(&[Kind], &[Call])] = &[];

/// The calls of a kind.
fn calls(kind: Kind) -> impl Iterator<Item = Call> {
    CALLS
        .iter()
        .chain(MORE)
        .filter(move |(kinds, _)| kinds.contains(&kind))
        .flat_map(|(_, calls)| calls.iter().copied())
}

/// The arguments with which a kind may use a call, as alternatives; none: all arguments.
fn call_rules(kind: Kind, number: c_long) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq, Ne};
    match (kind, number) {
        (_, libc::SYS_socket | libc::SYS_socketpair) => {
            FAMILIES.into_iter().map(|family| rule(0, Eq, family)).collect()
        }
        // No memory of a worker becomes a program.
        (Worker, libc::SYS_mmap | libc::SYS_mprotect) => {
            Ok(vec![rule(2, MaskedEq(libc::PROT_EXEC as u64), 0)?])
        }
        // The helper makes maps and loads programs.
        (_, libc::SYS_bpf) => {
            let others = NO_BPF.map(|command| SeccompCondition::new(0, SeccompCmpArgLen::Dword, Ne, command));
            Ok(vec![SeccompRule::new(others.into_iter().collect::<Result<_, _>>()?)?])
        }
        _ => Ok(Vec::new()),
    }
}

/// `BPF_MAP_CREATE`, `BPF_PROG_LOAD`, `BPF_BTF_LOAD` (linux/bpf.h).
const NO_BPF: [u64; 3] = [0, 5, 18];

const FAMILIES: [i32; 6] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_XDP];

/// A rule for the lower half of an argument.
fn rule(argument: u8, compare: SeccompCmpOp, value: i32) -> Result<SeccompRule, BackendError> {
    let value = u64::from(value.cast_unsigned());
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, value)?])
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn program(rules: Rules, others: SeccompAction, these: SeccompAction) -> Result<BpfProgram, BackendError> {
    SeccompFilter::new(rules, others, these, ARCH.try_into()?)?.try_into()
}

/// The filter that traps all but the calls of a kind. The signal has the kind's number.
fn only_calls_of(kind: Kind) -> Result<BpfProgram, BackendError> {
    let rules: Rules = calls(kind)
        .map(|(_, number)| Ok((number, call_rules(kind, number)?)))
        .collect::<Result<_, BackendError>>()?;
    let mut program = program(rules, SeccompAction::Trap, SeccompAction::Allow)?;
    for one in &mut program {
        if u32::from(one.code) == libc::BPF_RET && one.k == libc::SECCOMP_RET_TRAP {
            one.k |= kind as u32;
        }
    }
    Ok(program)
}

/// The filters that refuse every new process. The C library makes these calls with all signals blocked, and a trap
/// would end xvsd, so they fail uncounted. The flags of clone3 are behind a pointer, and the C library uses clone if
/// there is no clone3.
fn no_processes() -> Result<[BpfProgram; 2], BackendError> {
    let is_process = rule(0, SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64), 0)?;
    let begin = Rules::from([
        (libc::SYS_clone, vec![is_process]),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_fork, Vec::new()),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_vfork, Vec::new()),
    ]);
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    Ok([refusal(begin, libc::EPERM)?, refusal(clone3, libc::ENOSYS)?])
}

/// A filter that lets these calls fail, and allows all others.
fn refusal(calls: Rules, error: i32) -> Result<BpfProgram, BackendError> {
    program(calls, SeccompAction::Allow, SeccompAction::Errno(error as u32))
}

/// Whether this process has filters. Relaxed: set before there are other threads.
static IS_LIMITED: AtomicBool = AtomicBool::new(false);

/// Limits this thread, and all that it starts, to the calls of [`Kind::Control`]. Called before there are others.
///
/// # Errors
/// The kernel refuses it, or this architecture is unknown.
pub(super) fn limit_process() -> io::Result<()> {
    keep_limits()?;
    for filter in no_processes().map_err(io::Error::other)? {
        apply_filter(&filter).map_err(io::Error::other)?;
    }
    add(Control)
}

/// Permits threads to add the filters for their kinds, in a process that is about to have filters, or that has kept
/// them since before it re-executed itself.
///
/// # Errors
///
/// The kernel's.
pub(super) fn keep_limits() -> io::Result<()> {
    IS_LIMITED.store(true, Ordering::Relaxed);
    refused_calls::handle()
}

/// Whether this process has filters.
pub(super) fn is_limited() -> bool {
    IS_LIMITED.load(Ordering::Relaxed)
}

/// Limits this thread, and all that it starts, to the calls of a kind, if the process is limited.
pub(crate) fn limit_thread(kind: Kind) {
    if is_limited()
        && let Err(error) = add(kind)
    {
        tracing::warn!("a thread of the kind {} may use all calls of xvsd: {error}", kind.name());
    }
}

fn add(kind: Kind) -> io::Result<()> {
    let filter = only_calls_of(kind).map_err(io::Error::other)?;
    apply_filter(&filter).map_err(io::Error::other)
}

/// Calls that were refused.
pub(crate) struct Refused {
    pub(crate) kind: Kind,
    /// The name if any thread of xvsd may use the call, otherwise the number.
    pub(crate) call: String,
    pub(crate) count: u64,
}

/// All calls that were refused since the start.
pub(crate) fn refused() -> impl Iterator<Item = Refused> {
    refused_calls::refused().map(|(kind, number, count)| Refused {
        kind: Kind::ALL[kind],
        call: call_name(number),
        count,
    })
}

fn call_name(number: usize) -> String {
    let named = calls(Control).find(|(_, known)| usize::try_from(*known) == Ok(number));
    named.and_then(|(name, _)| name.strip_prefix("SYS_")).map_or(number.to_string(), str::to_owned)
}

/// A warning for each call that was refused to a kind of threads.
pub fn warnings() -> impl Iterator<Item = Warning> {
    refused().map(|Refused { kind, call, .. }| {
        let kind = kind.name();
        let text = format!(
            "a thread of the kind {kind} was refused the system call {call} ({ARCH}), which xvsd does not use; report it, \
             and see docs/rights.md, «System calls»"
        );
        Warning::new(WarningKind::SystemCallRefused, format_args!("{kind} {call}"), text)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::{env, fs, thread};

    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketType, socket};
    use rustix::process::chroot;
    use xvs_xdp::bpf::KeySet;

    use super::*;

    /// The variable by which a test starts itself as the process that has filters.
    const IS_CHILD: &str = "XVS_TEST_FILTERS";

    /// Runs the test of this thread once more in a separate process. `None` in that process.
    fn child() -> Option<()> {
        if env::var_os(IS_CHILD).is_some() {
            return None;
        }
        let mut child = Command::new(env::current_exe().unwrap());
        let name = thread::current().name().unwrap().to_owned();
        let output = child.args(["--exact", &name, "--nocapture"]).env(IS_CHILD, "1").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Some(())
    }

    fn is_refused<T: std::fmt::Debug>(result: io::Result<T>) {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    fn counts() -> Vec<(&'static str, String, u64)> {
        refused().map(|Refused { kind, call, count }| (kind.name(), call, count)).collect()
    }

    /// Needs root, who may do all that is tried.
    #[test]
    fn calls_outside_the_list_of_a_thread_fail_and_are_counted_and_the_process_goes_on() {
        let None = child() else { return };
        chroot("/").unwrap();
        limit_process().unwrap();
        is_refused(chroot("/").map_err(io::Error::from));
        is_refused(chroot("/").map_err(io::Error::from));
        let vsock = || socket(AddressFamily::VSOCK, SocketType::STREAM, None);
        assert_eq!(vsock().unwrap_err(), Errno::PERM);
        fs::read("/proc/self/status").unwrap();

        let refused_to = |kind, call: fn() -> io::Result<()>| {
            let run = move || {
                limit_thread(kind);
                is_refused(call());
                // The thread's child threads have its filters.
                thread::spawn(move || is_refused(call())).join().unwrap();
            };
            thread::spawn(run).join().unwrap();
        };
        refused_to(Worker, || fs::read("/proc/self/status").map(drop));
        refused_to(Reader, || Err(Command::new("true").exec()));

        let chroot = (Control.name(), libc::SYS_chroot.to_string(), 2);
        let of = |kind: Kind, call: &str, count| (kind.name(), call.to_owned(), count);
        assert_eq!(
            counts(),
            [of(Control, "socket", 1), chroot, of(Reader, "execve", 2), of(Worker, "openat", 2),]
        );
        let warnings: Vec<_> = warnings().collect();
        let first = "a thread of the kind control was refused the system call socket (";
        assert!(warnings.len() == 4 && warnings[0].text.starts_with(first), "{warnings:?}");
    }

    #[test]
    fn no_process_begins_and_the_attempt_does_not_end_this_one_although_it_blocks_all_signals() {
        let None = child() else { return };
        limit_process().unwrap();
        is_refused(Command::new("true").spawn());
        assert!(counts().is_empty());
    }

    /// Needs root, who may make maps.
    #[test]
    fn no_thread_makes_maps_for_programs() {
        let None = child() else { return };
        let make = || KeySet::new(1, [[0_u8; 4]].into_iter());
        make().unwrap();
        limit_process().unwrap();
        is_refused(make());
    }

    #[test]
    fn a_process_without_filters_limits_no_thread() {
        let run = || {
            limit_thread(Worker);
            fs::read("/proc/self/status").unwrap()
        };
        thread::spawn(run).join().unwrap();
    }
}
