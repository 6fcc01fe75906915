//! `xvs stop`: ends xvsd, or releases what an earlier xvsd has left.

use std::error::Error;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fs, thread};

use clap::Args;
use xvs_host::instance::name_of;
use xvs_host::lock_file::{Held, LockAttempt, Owner, lock_within};
use xvs_host::process::{END, Process};
use xvs_model::protocol::client::{Failure, default_socket};
use xvs_model::protocol::question;
use xvs_xdp::pins::{Pins, folder};

use crate::connected;
use crate::output::exit::{DONE, Done};

/// The longest wait for the end of xvsd. Its scripts and its last bursts are given less.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The time between two checks.
const INTERVAL: Duration = Duration::from_millis(20);
/// Where directors keep their state.
const STATE: &str = "/dev/shm/xvs";

/// The arguments of `xvs stop`.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Give the kernel all packets at once, and forget connections, services and settings; also after xvsd has ended
    #[arg(long)]
    release: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let (socket, release) = (default_socket(), arguments.release);
    if listens(&socket) || !release {
        end(&socket, release)?;
        return Ok(DONE);
    }
    let left = left_behind(&socket)?;
    if left.is_empty() {
        writeln!(out, "no xvsd listens on {}, and none has left anything", socket.display())?;
    }
    for what in left {
        writeln!(out, "{what}")?;
    }
    Ok(DONE)
}

/// Whether a process accepts connections on the socket, as far as that can be known.
fn listens(socket: &Path) -> bool {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    !UnixStream::connect(socket).is_err_and(|error| matches!(error.kind(), NotFound | ConnectionRefused))
}

/// Ends xvsd, and waits for its end.
fn end(socket: &Path, release: bool) -> Result<(), Box<dyn Error>> {
    let mut client = connected()?;
    // Opened before its end, when no other process can have its number.
    let process = client.process().and_then(|number| Process::open(number).ok());
    match question::stop(release).ask(&mut client) {
        // It may end before it has sent the reply; then the wait below succeeds.
        Ok(()) | Err(Failure::Transport(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let until = Instant::now() + LONGEST_WAIT;
    while process.as_ref().map_or_else(|| listens(socket), |process| !process.has_ended()) {
        if Instant::now() >= until {
            return Err(format!(
                "xvsd has not ended for {} s; see its log, or `kill -KILL` its process",
                LONGEST_WAIT.as_secs()
            )
            .into());
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Removes what an xvsd with this socket has left; returns a line for each removed thing.
fn left_behind(socket: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    if socket.file_name().is_none() {
        return Err(format!(
            "{} is no path of a socket; set XVS_SOCKET to that of the director",
            socket.display()
        )
        .into());
    }
    let director = name_of(socket);
    let state: PathBuf = [STATE, &director].iter().collect();
    // The parent directory may belong to the user of xvsd, who could place a different file there.
    if fs::symlink_metadata(&state).is_ok_and(|found| !found.is_dir()) {
        return Err(format!("{} is no folder; remove it", state.display()).into());
    }
    // It forwards also while it has no socket, as for a moment after a take-over. The lock may be that of its `user`.
    let _lock = match lock_within(&state.join("lock"), Owner::Anyone, END) {
        Ok(LockAttempt::Locked(lock)) => Some(lock),
        Ok(LockAttempt::Held(Held { by, .. })) => {
            let by = by.map_or_else(|| "another process".to_owned(), |by| format!("process {by}"));
            return Err(format!("{} is used by {by}; try again, or end that first", state.display()).into());
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(refused(&state, &error)),
    };
    let mut removed = Vec::new();
    if let Some(folder) = folder() {
        let released = Pins::of(&folder, &director)
            .release()
            .map_err(|error| format!("pins of {} in {}: {error}", socket.display(), folder.display()))?;
        removed.extend(released.iter().map(|interface| format!("{interface}: the kernel has its packets")));
    }
    match fs::remove_dir_all(&state) {
        Ok(()) => removed.push(format!("{}: removed", state.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(&state, &error)),
    }
    Ok(removed)
}

fn refused(state: &Path, error: &io::Error) -> Box<dyn Error> {
    format!("{}: {error}; run it as root", state.display()).into()
}
