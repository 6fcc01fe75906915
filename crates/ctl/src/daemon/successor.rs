//! The process that takes over: started in the background by `xvsd --take-over`, which returns when it forwards.
//!
//! So systemd's ExecReload ends when the take-over has succeeded or failed, and an operator sees the error.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs};

/// The variable of a successor's environment.
const VARIABLE: &str = "XVSD_SUCCESSOR";
/// What the successor prints when it forwards.
const READY: &[u8] = b"ready\n";

/// Whether this process is a successor in the background.
pub fn is_one() -> bool {
    env::var_os(VARIABLE).is_some()
}

/// This program, for a process that is no successor.
pub(crate) fn command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_remove(VARIABLE);
    command
}

/// Starts a successor with this process's command line, and waits until it forwards or has failed.
pub fn start() -> ExitCode {
    let mut command = command();
    command.args(env::args_os().skip(1)).env(VARIABLE, "1").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let started = command.spawn().and_then(|mut process| {
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

/// Tells the process that waits for this successor that it forwards.
pub fn is_ready() {
    // Nobody may wait any more.
    let _ = io::stdout().write_all(READY).and_then(|()| io::stdout().flush());
    // A pipe without a reader would be an error later on.
    if let Ok(null) = fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(null);
    }
}
