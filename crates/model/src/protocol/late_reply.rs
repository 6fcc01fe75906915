//! Late replies: a notice after a second, and the end of the wait.
//!
//! A stopped xvsd accepts requests, because the kernel does, and answers none. A request that only reads ends after a
//! minute with an error: with a million real servers some take ten seconds, and queue behind others. So does a step of
//! a take-over, which the running xvsd then undoes. Any other request that changes something ends after ten minutes:
//! xvsd may still carry it out. A request that changes the rules in etcd waits for etcd, and xvsd answers it in any
//! case.

use std::fs;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::protocol::client::Failure;
use crate::protocol::question::Request;
use crate::protocol::request::Access;

/// Time until the notice.
const NOTICE_AFTER: Duration = Duration::from_secs(1);
/// Time until a request that reads ends.
const READ_AT_MOST: Duration = Duration::from_secs(60);
/// Time until a request that changes something ends: several times as long as the largest change takes.
const CHANGE_AT_MOST: Duration = Duration::from_secs(600);

/// Waits until the reply to a request begins. `notify` gets the notice, a sentence for the operator.
///
/// # Errors
///
/// [`Failure::Transport`] if a request that only reads is not answered.
pub fn wait(stream: &UnixStream, request: &Request, notify: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let then = match access(request) {
        Access::Read => READ_AT_MOST,
        Access::Change => CHANGE_AT_MOST,
    };
    wait_for(stream, request, [NOTICE_AFTER, then - NOTICE_AFTER], notify)
}

/// How a request is waited for. Without its client, a capture or a take-over ends, as a read does.
fn access(request: &Request) -> Access {
    match request {
        Request::Capture(_) | Request::TakeOver(_) => Access::Read,
        _ => request.access(),
    }
}

fn wait_for(
    stream: &UnixStream,
    request: &Request,
    [first, then]: [Duration; 2],
    notify: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    if is_readable(stream, first) {
        return Ok(());
    }
    // The kernel reports 0 for a process of another PID namespace.
    let daemon =
        getsockopt(stream, sockopt::PeerCredentials).ok().map(|peer| peer.pid()).filter(|pid| *pid != 0);
    let name = daemon.map_or("xvsd".to_owned(), |pid| format!("xvsd (process {pid})"));
    let runs = match request {
        Request::Fleet(_) => WAITS_FOR_ETCD,
        Request::Reload | Request::ReloadAcceptingLoss => RELOADS,
        _ => RUNS,
    };
    let why = daemon.map_or(runs.to_owned(), |pid| match is_stopped(pid) {
        true => format!("it is stopped; `kill -CONT {pid}` lets it go on"),
        false => runs.to_owned(),
    });
    let may_still = match access(request) {
        Access::Read => "",
        Access::Change => "; it may still carry out the change",
    };
    let more = humantime::format_duration(then);
    notify(&format!("{name} does not answer yet: {why}; waiting for {more} more{may_still}"));
    if is_readable(stream, then) {
        return Ok(());
    }
    let waited = humantime::format_duration(first + then);
    Err(Failure::Transport(format!("{name} has not answered for {waited}: {why}{may_still}")))
}

/// The possible state of an xvsd that is not stopped, and the next step.
const RUNS: &str = "it is busy or hangs; `xvs healthy` names what makes no progress";

/// The possible state of an xvsd that is asked to reload.
const RELOADS: &str =
    "it reloads, which takes some seconds by a successor, and longer if etcd does not answer";

/// The possible state of an xvsd that is asked to change the rules in etcd.
const WAITS_FOR_ETCD: &str = "it waits for etcd; `xvs status` shows whether that answers";

/// Whether a reply, or the end of the connection, arrives within this time.
fn is_readable(stream: &UnixStream, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = left.try_into().expect("a few seconds fit into a timespec");
        match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            // If the wait fails, the reading of the reply reports it.
            other => return other != Ok(0),
        }
    }
}

/// Whether a signal has stopped a process; a debugger's stop is not ended by SIGCONT. Source: proc_pid_stat(5).
fn is_stopped(pid: i32) -> bool {
    has_stopped_state(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

fn has_stopped_state(stat: &str) -> bool {
    // The name before it may contain any character.
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state == Some('T')
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use crate::protocol::request::{FleetRequest, Verdict};

    use crate::protocol::late_reply::*;

    /// The notices and the result of a wait of some milliseconds.
    fn waited(stream: &UnixStream, request: &Request) -> (Vec<String>, Result<(), String>) {
        let mut notices = Vec::new();
        let times = [Duration::from_millis(1); 2];
        let result = wait_for(stream, request, times, &mut |notice| notices.push(notice.to_owned()));
        (notices, result.map_err(|failure| failure.to_string()))
    }

    #[test]
    fn a_process_is_stopped_by_a_signal_and_not_by_a_debugger() {
        for (state, is_stopped) in [('T', true), ('t', false), ('S', false)] {
            assert_eq!(has_stopped_state(&format!("7 (a) T b) {state} 1 7 7")), is_stopped, "{state}");
        }
    }

    #[test]
    fn a_request_that_is_not_answered_ends_with_the_next_step_and_a_change_may_still_be_carried_out() {
        let (mut daemon, client) = UnixStream::pair().unwrap();
        let name = format!("xvsd (process {})", std::process::id());
        let (notices, result) = waited(&client, &Request::Status);
        assert_eq!(notices, [format!("{name} does not answer yet: {RUNS}; waiting for 1ms more")]);
        assert_eq!(result, Err(format!("{name} has not answered for 2ms: {RUNS}")));
        let changes = [
            (Request::Reload, RELOADS),
            (Request::Fleet(FleetRequest::Confirm(Verdict::Keep)), WAITS_FOR_ETCD),
        ];
        for (change, why) in changes {
            let (notices, result) = waited(&client, &change);
            let still = "; it may still carry out the change";
            let notice = format!("{name} does not answer yet: {why}; waiting for 1ms more{still}");
            assert_eq!(notices, [notice]);
            assert_eq!(result, Err(format!("{name} has not answered for 2ms: {why}{still}")));
        }
        daemon.write_all(b"x").unwrap();
        assert_eq!(waited(&client, &Request::Status), (Vec::new(), Ok(())));
    }
}
