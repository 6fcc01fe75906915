//! The successor: started in the background by `xvsd --take-over`, which returns when the successor forwards.
//!
//! systemd's ExecReload therefore ends when the take-over has succeeded or failed, and an operator sees the error. An
//! intermediate process ends at once, so the successor is a child of process 1 when it notifies systemd that it is the
//! main process: systemd kills a main process that is not its child, instead of waiting for its end.

use std::error::Error;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, process};

use crossbeam::channel::Sender;
use rustix::thread::set_name;
use sd_notify::NotifyState;
use xvs_helper::client::Run;
use xvs_helper::process::as_xvsd;
use xvs_helper::request::{Event, Request};
use xvs_host::process::Process;

use crate::threads::spawn_stoppable;

/// The environment variable with the role of a process in this procedure.
const VARIABLE: &str = "XVSD_SUCCESSOR";
/// It starts the successor.
const STARTS: &str = "starts";
/// It is the successor.
const TAKES_OVER: &str = "takes over";
/// The text that the successor prints when it forwards.
const READY: &[u8] = b"ready\n";
/// The option of a successor.
const TAKE_OVER: &str = "--take-over";
/// Enough for every error.
const SAID_MAX: u64 = 64 << 10;

/// Gives this process its name, by which `pidof`, `killall` and keepalived find it: a process executed through
/// /proc/self/exe is called `exe`. Called on the main thread.
pub fn take_name() {
    // On an error the name stays, and everything else works.
    let _ = set_name(c"xvsd");
}

/// Whether this process is a successor in the background.
pub fn is_one() -> bool {
    env::var(VARIABLE).as_deref() == Ok(TAKES_OVER)
}

/// This program with this process's command line, for a process that is no successor.
pub fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    // `ps` shows it, and some programs search for processes by it. This process may be the helper, which has another
    // name.
    command.arg0("xvsd").args(env::args_os().skip(1).filter(|one| one != TAKE_OVER)).env_remove(VARIABLE);
    as_xvsd(&mut command);
    command
}

/// The command that starts a successor with this process's command line. The successor prints its number, then its
/// messages.
pub fn starter() -> Command {
    let mut command = command();
    // systemd's watchdog belongs to the service, not to this process.
    command.arg(TAKE_OVER).env(VARIABLE, STARTS).env_remove("WATCHDOG_PID").process_group(0);
    command
}

/// The number of the successor, which it prints first.
fn number(mut out: &PipeReader) -> io::Result<u32> {
    let mut number = [0; size_of::<u32>()];
    out.read_exact(&mut number)?;
    Ok(u32::from_ne_bytes(number))
}

/// Carries out `xvsd --take-over` in a process that is not the successor itself: starts the successor, and waits until
/// it forwards or has failed.
pub fn start() -> ExitCode {
    match env::var(VARIABLE).as_deref() {
        Ok(STARTS) => start_and_end(),
        _ => start_and_wait(),
    }
    .unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "xvsd: the process that takes over cannot be started: {error}");
        ExitCode::FAILURE
    })
}

/// The process between the two.
fn start_and_end() -> io::Result<ExitCode> {
    command().arg(TAKE_OVER).env(VARIABLE, TAKES_OVER).spawn()?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the number of this process, if it is a successor, before anything else that it prints.
pub fn tell_number() {
    if is_one() {
        let mut out = io::stdout();
        // The reader may no longer wait.
        let _ = out.write_all(&process::id().to_ne_bytes()).and_then(|()| out.flush());
    }
}

fn start_and_wait() -> io::Result<ExitCode> {
    let (mut out, its) = io::pipe()?;
    // Dropped, and with it the pipe's other end.
    let mut between = starter().stdin(Stdio::null()).stdout(its).spawn()?;
    let started = number(&out);
    between.wait()?;
    let successor = started?;
    let mut said = vec![0; READY.len()];
    // A successor that fails has printed why.
    if out.read_exact(&mut said).is_err() || said != READY {
        return Ok(ExitCode::FAILURE);
    }
    announce_main(successor);
    Ok(ExitCode::SUCCESS)
}

/// Starts a successor with this process's command line, for a reload. If it ends, the channel gets its error.
///
/// # Errors
/// The process cannot be started.
pub(crate) fn start_for_reload(result: Sender<Result<(), String>>) -> io::Result<Process> {
    let (out, its) = io::pipe()?;
    // The helper has the rights that a successor needs at its start.
    let run = Run::request(&Request::Successor, &[its.as_fd()])?;
    drop(its);
    let process = number(&out).and_then(Process::open).map_err(|error| match run.last_event() {
        Some(Event::Missing(why) | Event::Refused(why) | Event::NotStarted(why)) => io::Error::other(why),
        _ => error,
    })?;
    spawn_stoppable("xvs-successor", move || {
        let mut said = Vec::new();
        let read = out.take(SAID_MAX).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said).trim_end().to_owned();
        let why = match said.is_empty() || read.is_err() {
            true => "it has ended; see the log of xvsd".to_owned(),
            false => said,
        };
        // The receiver may no longer wait.
        let _ = result.send(Err(why));
    })?;
    Ok(process)
}

/// Notifies systemd that a process is the main one of its unit from now on. systemd accepts that (`NotifyAccess=exec`)
/// from the main process, which hands over, and from the process of ExecReload, which waits for the successor of an
/// xvsd that does not send the notification; not from other processes of the unit, such as scripts of other users.
pub fn announce_main(process: u32) {
    if let Err(error) = sd_notify::notify(&[NotifyState::MainPid(process)]) {
        tracing::warn!("systemd could not be notified: {error}");
    }
}

/// Reports the error to the process that waits for this successor.
pub fn has_failed(error: &dyn Error) {
    // The reader may no longer wait.
    let _ = writeln!(io::stdout(), "{error}");
}

/// Reports to the process that waits for this successor that it forwards.
pub fn is_ready() {
    // The reader may no longer wait.
    let _ = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
    // A pipe without a reader would be an error later on.
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
