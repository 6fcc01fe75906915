//! Runs the programs that print netfilter's rules, with a time limit.
//!
//! If a program fails or exceeds the limit, its last output remains valid and a message reports the failure, so one
//! failure does not remove the mark rules. A program that is not installed has no output. Blocks for at most
//! [`TIME_LIMIT`] for each program, and not at all once the follower is stopped. Cost: a process, which the helper
//! executes (crate `helper`), and memory for its last output.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use xvs_helper::client::Run;
use xvs_helper::request::{End, Event, Request};

use crate::follower_thread::Stopper;
use crate::notice::Notice;

/// The programs and their last outputs.
pub(super) struct Programs {
    /// Becomes readable when the follower is stopped.
    stopper: Stopper,
    time_limit: Duration,
    last: BTreeMap<String, String>,
    /// Sentences for the operator about programs that failed since [`Self::begin`].
    pub(super) failures: Vec<Notice>,
}

/// The outcome of a run.
enum Outcome {
    /// Success, with the standard output.
    Printed(String),
    /// Failure, with the reason.
    Failed(String),
    /// The follower was stopped meanwhile.
    Stopped,
}

impl Programs {
    pub(super) fn new(stopper: Stopper) -> Self {
        Self { stopper, time_limit: TIME_LIMIT, last: BTreeMap::new(), failures: Vec::new() }
    }

    /// Clears the failures.
    pub(super) fn begin(&mut self) {
        self.failures.clear();
    }

    /// The output of a program, or its last output if it fails; `None` if it is not installed or has never succeeded.
    pub(super) fn output(&mut self, argv: &[&str]) -> Option<String> {
        let name = argv.join(" ");
        let why = match self.run(argv) {
            Ok(Outcome::Printed(text)) => {
                self.last.insert(name, text.clone());
                return Some(text);
            }
            Ok(Outcome::Failed(why)) => why,
            Ok(Outcome::Stopped) => return None,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.last.remove(&name);
                return None;
            }
            Err(error) => error.to_string(),
        };
        let last = self.last.get(&name);
        let effect = match last {
            Some(_) => "the rules of its last success are followed until it succeeds again",
            None => "its mark rules are not followed until it succeeds",
        };
        self.failures.push(Notice::new(&name, format!("`{name}` failed ({why}); {effect}")));
        last.cloned()
    }

    /// Whether a program is installed and its version contains `kind`. A failure is not reported.
    pub(super) fn is_variant(&mut self, program: &str, kind: &str) -> bool {
        let reported = self.failures.len();
        let version = self.output(&[program, "-V"]);
        self.failures.truncate(reported);
        version.is_some_and(|version| version.contains(kind))
    }

    fn run(&self, argv: &[&str]) -> io::Result<Outcome> {
        // Output goes into memory files: unlike a pipe, they need no reader while the program runs.
        let mut text = memory()?;
        let mut errors = memory()?;
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let run = Run::request(&Request::Netfilter(argv), &[text.as_fd(), errors.as_fd()])?;
        let code = match self.await_end(&run)? {
            Ok(Event::Exit(0)) => return Ok(Outcome::Printed(written(&mut text)?)),
            Ok(Event::Exit(code)) => format!("exit code {code}"),
            Ok(Event::Signal(number)) => format!("signal {number}"),
            Ok(Event::Missing(why)) => return Err(io::Error::new(io::ErrorKind::NotFound, why)),
            Ok(Event::Refused(why) | Event::NotStarted(why)) => return Err(io::Error::other(why)),
            Ok(event) => return Err(io::Error::other(format!("internal error: {event:?}"))),
            Err(given_up) => {
                run.end(End::Kill);
                return Ok(given_up);
            }
        };
        Ok(Outcome::Failed(written(&mut errors)?.trim().lines().next().map_or(code, str::to_owned)))
    }

    /// Waits until a program has ended; returns an outcome if the wait was abandoned.
    fn await_end(&self, run: &Run) -> io::Result<Result<Event, Outcome>> {
        let began = Instant::now();
        loop {
            let left =
                Timespec::try_from(self.time_limit.saturating_sub(began.elapsed())).unwrap_or_default();
            let mut fds = [self.stopper.poll_fd(), PollFd::new(run, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    return Ok(Err(Outcome::Failed(format!("it took longer than {:?}", self.time_limit))));
                }
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Err(Outcome::Stopped)),
                Ok(_) => match run.event() {
                    Some(Event::Started) | None => {}
                    Some(event) => return Ok(Ok(event)),
                },
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A file in memory.
fn memory() -> io::Result<File> {
    Ok(memfd_create("xvs-netfilter", MemfdFlags::CLOEXEC)?.into())
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The time limit for a program, many times the time that a very large ruleset needs.
const TIME_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {

    use crate::netfilter::programs::*;

    fn programs() -> Programs {
        Programs::new(Stopper::open().unwrap())
    }

    #[test]
    fn the_last_output_of_a_failing_program_remains_valid_and_the_failure_is_reported() {
        let mut programs = programs();
        let rules = std::env::temp_dir().join(format!("xvs-programs-{}", std::process::id()));
        let argv = ["cat", rules.to_str().unwrap()];
        assert_eq!(programs.output(&argv), None);
        assert!(
            programs.failures[0].text.contains("No such file")
                && programs.failures[0].text.contains("are not followed")
        );

        std::fs::write(&rules, "rules\n").unwrap();
        programs.begin();
        assert_eq!(programs.output(&argv).as_deref(), Some("rules\n"));
        assert!(programs.failures.is_empty());

        std::fs::remove_file(&rules).unwrap();
        assert_eq!(programs.output(&argv).as_deref(), Some("rules\n"));
        assert!(programs.failures[0].text.ends_with("are followed until it succeeds again"));
    }

    #[test]
    fn a_program_that_is_not_installed_has_no_output_and_is_no_failure() {
        let mut programs = programs();
        assert_eq!(programs.output(&["no-such-program-of-netfilter"]), None);
        assert!(programs.failures.is_empty());
    }

    #[test]
    fn a_program_that_hangs_is_killed_and_reported() {
        let mut programs = Programs { time_limit: Duration::from_millis(1), ..programs() };
        assert_eq!(programs.output(&["sleep", "1000"]), None);
        assert!(programs.failures[0].text.contains("it took longer than 1ms"), "{:?}", programs.failures);
    }

    #[test]
    fn programs_are_not_waited_for_once_the_follower_is_stopped() {
        let mut programs = programs();
        programs.stopper.stop();
        assert_eq!(programs.output(&["sleep", "1000"]), None);
        assert!(programs.failures.is_empty());
    }

    #[test]
    fn a_program_may_print_more_than_a_pipe_holds() {
        let zeros = programs().output(&["head", "-c", "1000000", "/dev/zero"]);
        assert_eq!(zeros.map(|text| text.len()), Some(1_000_000));
    }
}
