//! Runs the programs that print the kernel's rules, and has time_limit with them.
//!
//! A program that fails, or does not end in time, is told of; what it printed when it last succeeded counts on, so that
//! one failure does not take the mark rules away. One that is not installed prints nothing. Blocks for at most
//! [`TIME_LIMIT`] a program, and not at all once the follower is to stop. Cost: a process, and the memory of what it printed
//! last. Not here: which programs are run, and what their text means.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The programs, and what they printed last.
pub(super) struct Programs {
    /// Readable as soon as nothing is waited for any more.
    stop: Arc<OwnedFd>,
    time_limit: Duration,
    last: BTreeMap<String, String>,
    /// Sentences for the operator about those that failed since [`Self::begin`].
    pub(super) failures: Vec<String>,
}

/// How a program has ended.
enum Outcome {
    /// Having printed this.
    Printed(String),
    Failed(String),
    /// It was not waited for.
    Stopped,
}

impl Programs {
    pub(super) fn new(stop: Arc<OwnedFd>) -> Self {
        Self { stop, time_limit: TIME_LIMIT, last: BTreeMap::new(), failures: Vec::new() }
    }

    /// Forgets which programs failed.
    pub(super) fn begin(&mut self) {
        self.failures.clear();
    }

    /// What a program prints, or printed when it last succeeded; `None` if it is not there, or never has.
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
        let so = match last {
            Some(_) => "what it said before is followed until it succeeds",
            None => "mark rules that it would tell are not followed until it succeeds",
        };
        self.failures.push(format!("`{name}` failed ({why}); {so}"));
        last.cloned()
    }

    /// Whether a program is there and of this kind, as its version says. That it fails to say so is not told.
    pub(super) fn is_variant(&mut self, program: &str, kind: &str) -> bool {
        let told = self.failures.len();
        let version = self.output(&[program, "-V"]);
        self.failures.truncate(told);
        version.is_some_and(|version| version.contains(kind))
    }

    fn run(&self, argv: &[&str]) -> io::Result<Outcome> {
        // A daemon's path may lack where such programs are.
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
        // Into memory, of which there is enough without anybody who reads meanwhile.
        let (mut text, mut errors) = (memory()?, memory()?);
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("PATH", path).stdin(Stdio::null());
        let mut child = command.stdout(text.try_clone()?).stderr(errors.try_clone()?).spawn()?;
        let outcome = self.await_end(&child);
        if !matches!(outcome, Ok(None)) {
            // One that has ended meanwhile cannot be killed, which is as well.
            let _ = child.kill();
        }
        let status = child.wait()?;
        if let Some(outcome) = outcome? {
            return Ok(outcome);
        }
        if status.success() {
            return Ok(Outcome::Printed(written(&mut text)?));
        }
        let errors = written(&mut errors)?;
        let why = errors.trim().lines().next().map_or_else(|| status.to_string(), str::to_owned);
        Ok(Outcome::Failed(why))
    }

    /// Waits until a process has ended; else says why it is not waited for any longer.
    fn await_end(&self, child: &Child) -> io::Result<Option<Outcome>> {
        let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        let began = Instant::now();
        loop {
            let left = self.time_limit.saturating_sub(began.elapsed());
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut fds = [PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&process, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    return Ok(Some(Outcome::Failed(format!("it took longer than {:?}", self.time_limit))));
                }
                Ok(_) if !fds[0].revents().is_empty() => return Ok(Some(Outcome::Stopped)),
                Ok(_) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A file that is in memory only.
fn memory() -> io::Result<File> {
    Ok(memfd_create("xvs-netfilter", MemfdFlags::CLOEXEC)?.into())
}

fn written(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How long a program may take: many times what rules without number cost it.
const TIME_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use crate::netfilter::programs::*;

    fn programs() -> Programs {
        Programs::new(Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()))
    }

    #[test]
    fn what_a_program_said_last_counts_on_while_it_fails_which_is_told() {
        let mut programs = programs();
        let rules = std::env::temp_dir().join(format!("xvs-programs-{}", std::process::id()));
        let argv = ["cat", rules.to_str().unwrap()];
        assert_eq!(programs.output(&argv), None);
        assert!(
            programs.failures[0].contains("No such file")
                && programs.failures[0].contains("are not followed")
        );

        std::fs::write(&rules, "rules\n").unwrap();
        programs.begin();
        assert_eq!(programs.output(&argv).as_deref(), Some("rules\n"));
        assert_eq!(programs.failures, Vec::<String>::new());

        std::fs::remove_file(&rules).unwrap();
        assert_eq!(programs.output(&argv).as_deref(), Some("rules\n"));
        assert!(programs.failures[0].ends_with("what it said before is followed until it succeeds"));
    }

    #[test]
    fn a_program_that_is_not_there_says_nothing_and_is_no_failure() {
        let mut programs = programs();
        assert_eq!(programs.output(&["no-such-program-of-netfilter"]), None);
        assert_eq!(programs.failures, Vec::<String>::new());
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_told_of() {
        let mut programs = Programs { time_limit: Duration::from_millis(1), ..programs() };
        assert_eq!(programs.output(&["sleep", "1000"]), None);
        assert!(programs.failures[0].contains("it took longer than 1ms"), "{:?}", programs.failures);
    }

    #[test]
    fn nothing_is_waited_for_once_the_follower_is_to_stop() {
        let mut programs = programs();
        rustix::io::write(&*programs.stop, &1u64.to_ne_bytes()).unwrap();
        assert_eq!(programs.output(&["sleep", "1000"]), None);
        assert_eq!(programs.failures, Vec::<String>::new());
    }

    #[test]
    fn a_program_may_print_more_than_a_pipe_holds() {
        let zeros = programs().output(&["head", "-c", "1000000", "/dev/zero"]);
        assert_eq!(zeros.map(|text| text.len()), Some(1_000_000));
    }
}
