//! The process that takes over: started in the background by `xvsd --take-over`, which returns when it forwards.
//!
//! So systemd's ExecReload ends when the take-over has succeeded or failed, and an operator sees the error.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};
use std::{env, fs, thread};

use crossbeam::channel::Sender;

/// The variable of a successor's environment.
const VARIABLE: &str = "XVSD_SUCCESSOR";
/// What the successor prints when it forwards.
const READY: &[u8] = b"ready\n";
/// The option of a successor.
const TAKE_OVER: &str = "--take-over";
/// Enough for every error.
const SAID_MAX: u64 = 64 << 10;

/// Whether this process is a successor in the background.
pub fn is_one() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// This program with this process's command line, for a process that is no successor.
pub(crate) fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(env::args_os().skip(1).filter(|one| one != TAKE_OVER)).env_remove(VARIABLE);
    command
}

/// Starts a successor with this process's command line, which prints to a pipe.
fn launch() -> io::Result<Child> {
    let mut command = command();
    // systemd's watchdog is that of the service, not of this process.
    command.arg(TAKE_OVER).env(VARIABLE, "1").env_remove("WATCHDOG_PID").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

/// Starts a successor with this process's command line, and waits until it forwards or has failed.
pub fn start() -> ExitCode {
    let started = launch().and_then(|mut process| {
        let mut said = vec![0; READY.len()];
        let is_ready = process.stdout.take().is_some_and(|mut out| out.read_exact(&mut said).is_ok());
        if is_ready && said == READY {
            return Ok(ExitCode::SUCCESS);
        }
        // It has printed why.
        let code = process.wait()?.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.filter(|code| *code != 0).unwrap_or(1)))
    });
    started.unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "xvsd: the process that takes over cannot be started: {error}");
        ExitCode::FAILURE
    })
}

/// Starts a successor with this process's command line, for a reload. If it ends, the channel gets its error.
///
/// # Errors
/// The process cannot be started.
pub(crate) fn start_for_reload(result: Sender<Result<(), String>>) -> io::Result<Child> {
    let mut process = launch()?;
    let out = process.stdout.take();
    thread::Builder::new().name("xvs-successor".to_owned()).spawn(move || {
        let mut said = Vec::new();
        let read = out.map(|out| out.take(SAID_MAX).read_to_end(&mut said));
        let said = String::from_utf8_lossy(&said).trim_end().to_owned();
        let why = match said.is_empty() || read.is_none_or(|read| read.is_err()) {
            true => "it has ended; see the log of xvsd".to_owned(),
            false => said,
        };
        // Nobody may wait any more.
        let _ = result.send(Err(why));
    })?;
    Ok(process)
}

/// Tells the process that waits for this successor why it fails.
pub fn has_failed(error: &dyn Error) {
    // Nobody may wait any more.
    let _ = writeln!(io::stdout(), "{error}");
}

/// Tells the process that waits for this successor that it forwards.
pub fn is_ready() {
    // Nobody may wait any more.
    let _ = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
    // A pipe without a reader would be an error later on.
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
