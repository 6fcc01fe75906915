//! System calls that a filter (seccomp) refuses: a signal handler makes them fail and counts them.
//!
//! If a filter returns SECCOMP_RET_TRAP for a call, the kernel sends SIGSYS to the calling thread instead of executing
//! the call. The handler runs on that thread. It does two things, both allowed in a signal handler: it adds to a
//! counter, and stores EPERM as the result of the call. `rights/seccomp.rs` in `xvsd` defines the filters.
//!
//! Source: seccomp(2), "SECCOMP_RET_TRAP"; syscall(2) for the registers.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, zeroed};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, ptr};

use super::sys::check;

/// The number of filter kinds, each of which has separate counters.
pub const KINDS: usize = 3;

/// More than the number of system calls. The last index counts all higher numbers, such as those of the x32 ABI.
const NUMBERS: usize = 512;

/// Refused calls, by the filter's kind and the call's number. Relaxed: they order nothing.
static REFUSED: [[AtomicU64; NUMBERS]; KINDS] = [const { [const { AtomicU64::new(0) }; NUMBERS] }; KINDS];

/// The value of `si_code` in a signal from a filter (asm-generic/siginfo.h).
const SYS_SECCOMP: c_int = 1;

/// From now on, calls that a filter traps fail with EPERM and are counted. The data of SECCOMP_RET_TRAP is the filter's
/// kind, which is below [`KINDS`].
///
/// # Errors
///
/// The kernel's.
pub fn handle() -> io::Result<()> {
    // SAFETY: a `sigaction` consists of integers, an address and an optional function, which may all be 0.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = refuse as *const () as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: `refuse` has the signature that SA_SIGINFO requires, and does only what a handler may do.
    check(unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) })?;
    let mut signals = MaybeUninit::uninit();
    // SAFETY: the call initializes the set.
    check(unsafe { libc::sigemptyset(signals.as_mut_ptr()) })?;
    // SAFETY: the call before this one has initialized the set.
    check(unsafe { libc::sigaddset(signals.as_mut_ptr(), libc::SIGSYS) })?;
    // The kernel kills a process that blocks a signal which cannot be delivered later. SAFETY: the set is initialized,
    // and no former set is requested.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, signals.as_ptr(), ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// The refused calls: the filter's kind, the call's number, and the count.
pub fn refused() -> impl Iterator<Item = (usize, usize, u64)> {
    REFUSED.iter().enumerate().flat_map(|(kind, all)| {
        all.iter()
            .map(|count| count.load(Ordering::Relaxed))
            .enumerate()
            .filter(|(_, count)| *count > 0)
            .map(move |(number, count)| (kind, number, count))
    })
}

extern "C" fn refuse(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the signal's information, which nothing else uses while the handler runs.
    let info = unsafe { &*info };
    if info.si_code != SYS_SECCOMP {
        return;
    }
    // SAFETY: the kernel passes the interrupted thread's registers, which it reads again when the handler returns.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let number = refuse_in(context);
    if let Some(of_kind) = usize::try_from(info.si_errno).ok().and_then(|kind| REFUSED.get(kind)) {
        of_kind[number.min(NUMBERS - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

/// Sets the result of the call to EPERM, and returns its number.
#[cfg(target_arch = "x86_64")]
fn refuse_in(context: &mut libc::ucontext_t) -> usize {
    let rax = &mut context.uc_mcontext.gregs[libc::REG_RAX as usize];
    std::mem::replace(rax, -i64::from(libc::EPERM)) as usize
}

/// Sets the result of the call to EPERM, and returns its number.
#[cfg(target_arch = "aarch64")]
fn refuse_in(context: &mut libc::ucontext_t) -> usize {
    let registers = &mut context.uc_mcontext.regs;
    registers[0] = (-i64::from(libc::EPERM)) as u64;
    registers[8] as usize
}
