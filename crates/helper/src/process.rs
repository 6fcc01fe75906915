//! The processes of the helper: their start by xvsd, and the work of each.
//!
//! xvsd executes itself with a variable in the environment, before it has threads, files or a configuration. The keeper
//! starts the helper, and starts it again when it ends, because xvsd cannot start it once it has given up its rights.
//! The socket to xvsd is the standard input of both, so it is not lost with the helper: requests wait in it in the
//! meantime. Both processes end when xvsd has closed its end. A keeper that is killed is not replaced: then the helper
//! ends, too, and `xvs status` reports it.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use rustix::fd::AsFd;
use rustix::process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit};

use crate::client;
use crate::message::{pair, send};
use crate::server::{Powers, serve};

pub use crate::server::{Known, Rules};

/// The environment variable that determines the role of a process.
const VARIABLE: &str = "XVSD_HELPER";
const KEEPER: &str = "keeper";
/// xvsd, re-executed in a process that has left its helper's socket as standard input.
const BEHIND: &str = "behind";
/// With the number of helpers before it, and the reason why the last one ended.
const HELPER: &str = "helper";

/// Minimum time from one start of a helper to the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Does the work of the keeper or of the helper if this process is one. `this` is the command of xvsd, without the
/// additions that [`as_xvsd`] removes.
pub fn serve_if_one(this: fn() -> Command, rules: Rules) -> Option<ExitCode> {
    let part = env::var(VARIABLE).ok()?;
    let result = match part.split_once(' ') {
        None if part == BEHIND => return None,
        None if part == KEEPER => keep(this),
        Some((HELPER, before)) => help(before, rules),
        _ => Err(io::Error::other(format!("{VARIABLE} is `{part}`; unset it"))),
    };
    // No error can be reported except by ending, which xvsd logs.
    Some(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Starts the keeper and the helper of this process, whose command is `this`.
///
/// # Errors
/// The system cannot start them.
pub fn start(this: Command) -> io::Result<()> {
    if env::var(VARIABLE).is_ok_and(|part| part == BEHIND) {
        client::set(io::stdin().as_fd().try_clone_to_owned()?, None);
        return Ok(());
    }
    let (own, its) = pair()?;
    // A signal from a terminal does not end it: xvsd itself ends its scripts.
    let keeper = again(this, KEEPER).stdin(Stdio::from(its)).process_group(0).spawn()?;
    client::set(own, Some(keeper));
    Ok(())
}

/// The command of xvsd, for another role.
fn again(mut this: Command, part: &str) -> Command {
    this.arg0("xvs-helper").env(VARIABLE, part).stdout(Stdio::null());
    this
}

/// Makes the xvsd that this command is about to execute in place of this process use the process's helper.
///
/// # Errors
///
/// The system has no room for another descriptor.
pub fn pass_on(command: &mut Command) -> io::Result<()> {
    if let Some(socket) = client::socket() {
        command.stdin(Stdio::from(socket?)).env(VARIABLE, BEHIND);
    }
    Ok(())
}

/// Removes the variable that makes a command a helper.
pub fn as_xvsd(command: &mut Command) -> &mut Command {
    command.env_remove(VARIABLE)
}

fn keep(this: fn() -> Command) -> io::Result<()> {
    // Only for a reader of `ps`.
    let _ = rustix::thread::set_name(c"xvs-keeper");
    let mut before = "0".to_owned();
    for number in 1u32.. {
        let began = Instant::now();
        let mut helper = loop {
            match again(this(), &format!("{HELPER} {before}")).stdin(Stdio::inherit()).spawn() {
                Ok(helper) => break helper,
                // There may be no memory now. If xvsd has ended, the next one ends at once.
                Err(_) => thread::sleep(PAUSE),
            }
        };
        let status = helper.wait()?;
        if status.success() {
            break;
        }
        let why = match (status.code(), status.signal()) {
            (_, Some(signal)) => format!("signal {signal}"),
            (code, None) => format!("exit code {}", code.unwrap_or_default()),
        };
        before = format!("{number} {why}");
        // A helper that always fails must not become a busy loop.
        thread::sleep(PAUSE.saturating_sub(began.elapsed()));
    }
    Ok(())
}

fn help(before: &str, rules: Rules) -> io::Result<()> {
    let _ = rustix::thread::set_name(c"xvs-helper");
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // No program inherits it: each gets a separate standard input.
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    if let Some((count, why)) = before.split_once(' ') {
        send(&socket, &(count.parse::<u32>().map_err(io::Error::other)?, why), &[])?;
    }
    serve(&socket, Powers::Fixed(rules, raise_open_files()))
}

/// Raises this process's limit of open files to the maximum: a running program needs two. Returns the former limit.
fn raise_open_files() -> Rlimit {
    let limit = getrlimit(Resource::Nofile);
    // An error leaves it as it was.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    limit
}
