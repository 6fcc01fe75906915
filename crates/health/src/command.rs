//! Runs a command of a keepalived.conf, and has patience with it up to a time.
//!
//! A program runs as it is written, without a shell; what is no program goes through `sh -c`. It has a process group of its
//! own, nothing to read from and nobody who reads what it prints. One that is not waited for any longer, because its time is
//! over or the asker has gone, is told to end by SIGTERM, killed two seconds later with all of its group, and reaped; until
//! then no other takes its turn. What a command that ends by itself has left in the background lives on: it may be meant so.
//!
//! Cost: a process; where it runs as another user than xvsd, xvsd is copied for it (`fork`). Looking up users and files may
//! take long, so that starting has a thread of its own. Not here: what its exit code means (`script.rs`), and the order of
//! several (`notify.rs`).

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use nix::unistd::{Group, User};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getegid, geteuid, kill_process_group, pidfd_open, prlimit,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use xvs_model::check::{Probe, Script};
use xvs_model::fault::{Fault, Place, Severity};
use xvs_model::virtual_server::{Configuration, Globals};

use crate::blocking::run_blocking;

/// Of those who share one, one runs at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct RunLock {
    lock: Arc<Mutex<()>>,
    /// Whether who has it has come as far as to run.
    is_started: Arc<AtomicBool>,
}

/// How many descriptors commands may have: what xvsd was started with, whatever it has taken for itself since. Some close
/// all that there may be, one by one.
pub(super) static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// A command that can be run again and again.
#[derive(Debug, Clone)]
pub(super) struct Program {
    script: Script,
    security: Security,
    run_lock: RunLock,
}

/// Whether a program that runs as root is looked at before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    Checked,
    Trusted,
}

/// What came of running a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ended by itself with this code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// It had not ended in time, and is being ended.
    Late,
    /// The one before it has not ended yet, although it was killed.
    Busy,
    /// It is nothing that could be run, in words.
    Refused(String),
    /// It could not be run for lack of something here, in words.
    NotStarted(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code @ 126) => write!(f, "exit code {code}: it may not be executed"),
            Self::Exit(code @ 127) => write!(f, "exit code {code}: there is no such command"),
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::Late => write!(f, "it did not end in time and is ended"),
            Self::Busy => write!(f, "the one before it does not end, though it was killed"),
            Self::Refused(why) | Self::NotStarted(why) => f.write_str(why),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.script.fmt(f)
    }
}

impl Program {
    /// A script with what holds for all of them.
    pub(super) fn new(script: &Script, globals: &Globals, run_lock: RunLock) -> Self {
        let mut script = script.clone();
        if let (None, Some((user, group))) = (&script.user, &globals.script_user) {
            (script.user, script.group) = (Some(user.clone()), group.clone());
        }
        let security = if globals.enable_script_security { Security::Checked } else { Security::Trusted };
        Self { script, security, run_lock }
    }

    /// Runs it once its turn has come. Whoever drops this ends it.
    pub(super) async fn run(&self, deadline: Instant) -> Outcome {
        let is_started = || self.run_lock.is_started.load(Ordering::Relaxed);
        let Ok(turn) = timeout_at(deadline, Arc::clone(&self.run_lock.lock).lock_owned()).await else {
            return if is_started() { Outcome::Busy } else { not_in_time() };
        };
        self.run_lock.is_started.store(false, Ordering::Relaxed);
        let (tells, hears) = oneshot::channel();
        tokio::spawn(self.clone().course(turn, tells));
        match timeout_at(deadline, hears).await {
            Ok(outcome) => {
                outcome.unwrap_or_else(|_| Outcome::NotStarted("what runs it has panicked".to_owned()))
            }
            Err(_) if is_started() => Outcome::Late,
            Err(_) => not_in_time(),
        }
    }

    /// From its start until it is reaped; `tells` is closed when nobody waits any longer.
    async fn course(self, _turn: OwnedMutexGuard<()>, mut tells: oneshot::Sender<Outcome>) {
        let is_started = self.run_lock.is_started.clone();
        let started = run_blocking(move || self.start()).await;
        let outcome = match started {
            Ok(Ok(mut process)) => {
                is_started.store(true, Ordering::Relaxed);
                tokio::select! {
                    biased;
                    () = process.ended() => {}
                    () = tells.closed() => process.end().await,
                }
                process.outcome()
            }
            Ok(Err(outcome)) => outcome,
            Err(error) => Outcome::NotStarted(error.to_string()),
        };
        let _ = tells.send(outcome);
    }

    fn start(&self) -> Result<Process, Outcome> {
        let who = self.who().map_err(Outcome::Refused)?;
        let mut command = self.command(who.is_none_or(|(user, _)| user == 0)).map_err(Outcome::Refused)?;
        // They change what programs are.
        for name in ["IFS", "LD_PRELOAD", "LD_LIBRARY_PATH"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some((user, group)) = who {
            command.uid(user).gid(group);
        }
        let child = command.spawn().map_err(|error| self.not_started(&error))?;
        if let Some(limit) = DESCRIPTORS.get() {
            // It may have ended, or not be allowed: then it has what xvsd has.
            let _ = prlimit(Some(Pid::from_child(&child)), Resource::Nofile, *limit);
        }
        Process::of(child).map_err(|error| self.not_started(&error))
    }

    fn not_started(&self, error: &io::Error) -> Outcome {
        let why = format!("{}: {error}", self.script.argv[0]);
        let lacks = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
        match Errno::from_io_error(error).is_some_and(|errno| lacks.contains(&errno)) {
            true => Outcome::NotStarted(why),
            false => Outcome::Refused(why),
        }
    }

    /// The user and the group that it runs as; `None`: those of xvsd.
    fn who(&self) -> Result<Option<(u32, u32)>, String> {
        let who = match &self.script.user {
            Some(user) => account(user, self.script.group.as_deref())?,
            None => match user(DEFAULT_USER)? {
                Some(user) => (user.uid.as_raw(), user.gid.as_raw()),
                None => return Ok(None),
            },
        };
        // Without a change of user the kernel need not copy what xvsd has in memory.
        Ok((who != (geteuid().as_raw(), getegid().as_raw())).then_some(who))
    }

    /// What is executed.
    fn command(&self, is_root: bool) -> Result<Command, String> {
        let argv = &self.script.argv;
        let is_checked = self.security == Security::Checked && is_root;
        let Some(program) = program(&argv[0]) else {
            if is_checked {
                let why = "is no program, and with `enable_script_security` root runs nothing else";
                return Err(format!("`{}` {why}", argv[0]));
            }
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(&self.script.text);
            return Ok(shell);
        };
        if is_checked {
            roots_alone(&program, LINKS_MAX)?;
        }
        let mut command = Command::new(program);
        command.arg0(&argv[0]).args(&argv[1..]);
        Ok(command)
    }

    /// Waits until it runs no more.
    pub(super) async fn wait_until_ended(&self) {
        drop(self.run_lock.lock.lock().await);
    }

    /// Why it could not be run now, if so. Looks at users and files, which may take long.
    pub(super) fn obstacle(&self) -> Option<String> {
        let who = match self.who() {
            Ok(who) => who,
            Err(why) => return Some(why),
        };
        self.command(who.is_none_or(|(user, _)| user == 0)).err()
    }
}

/// What was not even started says nothing of what it would have said.
fn not_in_time() -> Outcome {
    Outcome::NotStarted(
        "it could not be started in time: a look-up of a user or a file takes long".to_owned(),
    )
}

/// Commands of a configuration that cannot be run as things are. Looks at users and files, which may take long.
pub(super) fn faults(configuration: &Configuration) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut look = |place: &Place, script: &Script| {
        if let Some(why) = Program::new(script, &configuration.globals, RunLock::default()).obstacle() {
            let text = format!("`{}` cannot be run: {why}", script.text);
            faults.push(Fault { place: place.clone(), severity: Severity::Warning, text });
        }
    };
    for server in &configuration.virtual_servers {
        let scripts = server.quorum_up.iter().chain(&server.quorum_down);
        scripts.for_each(|script| look(&server.place, script));
        for server in &server.real_servers {
            let scripts = server.notify_up.iter().chain(&server.notify_down);
            scripts.for_each(|script| look(&server.place, script));
            for check in &server.checks {
                if let Probe::Script(script, _) = &check.probe {
                    look(&check.place, script);
                }
            }
        }
    }
    faults
}

/// A command that was started. It does not outlive this.
struct Process {
    child: Child,
    /// Readable when it has ended.
    end: AsyncFd<OwnedFd>,
    group: Pid,
    is_reaped: bool,
}

impl Process {
    fn of(mut child: Child) -> io::Result<Self> {
        let group = Pid::from_child(&child);
        #[expect(deprecated, reason = "what takes its place is unsafe, for descriptors that nobody owns")]
        let end = pidfd_open(group, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|end| AsyncFd::with_interest(end, Interest::READABLE));
        match end {
            Ok(end) => Ok(Self { child, end, group, is_reaped: false }),
            Err(error) => {
                // It was not reaped, so the number is still its own.
                let _ = kill_process_group(group, Signal::KILL);
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Waits until it has ended. It is not reaped then, so its number and its group's are nobody else's.
    async fn ended(&self) {
        // Fails only when the runtime goes; then all that is left is to drop it.
        let _ = self.end.readable().await.map(|mut ready| ready.retain_ready());
    }

    /// Ends its group.
    async fn end(&self) {
        let _ = kill_process_group(self.group, Signal::TERM);
        let _ = timeout(GRACE, self.ended()).await;
        // Also those that it leaves behind.
        let _ = kill_process_group(self.group, Signal::KILL);
        self.ended().await;
    }

    /// Reaps it, which has ended.
    fn outcome(&mut self) -> Outcome {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                self.is_reaped = true;
                match (status.code(), status.signal()) {
                    (Some(code), _) => Outcome::Exit(code),
                    (None, signal) => Outcome::Signal(signal.unwrap_or_default()),
                }
            }
            Ok(None) => Outcome::NotStarted("its end cannot be waited for".to_owned()),
            Err(error) => Outcome::NotStarted(error.to_string()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        // The runtime ends, so nobody could wait longer.
        let _ = kill_process_group(self.group, Signal::KILL);
        let most = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(self.end.get_ref(), PollFlags::IN)], Some(&most));
        let _ = self.child.try_wait();
    }
}

/// From SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// Who scripts run as if nobody is named and there is such a user.
const DEFAULT_USER: &str = "keepalived_script";

/// Symbolic links behind one another.
const LINKS_MAX: u32 = 16;

/// A user's number and that of a group, or of its own group.
pub(super) fn account(name: &str, group: Option<&str>) -> Result<(u32, u32), String> {
    let user = user(name)?.ok_or_else(|| format!("there is no user `{name}`"))?;
    let group = match group {
        None => user.gid,
        Some(name) => {
            let group = Group::from_name(name).map_err(|error| format!("looking up `{name}`: {error}"))?;
            group.ok_or_else(|| format!("there is no group `{name}`"))?.gid
        }
    };
    Ok((user.uid.as_raw(), group.as_raw()))
}

fn user(name: &str) -> Result<Option<User>, String> {
    User::from_name(name).map_err(|error| format!("looking up `{name}`: {error}"))
}

/// The program that a name stands for, if it can be executed.
fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| is_program(path))
}

/// Whether a file has the permission, and begins as what the kernel executes.
fn is_program(path: &Path) -> bool {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let may = |metadata: std::fs::Metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    if !path.metadata().is_ok_and(may) {
        return false;
    }
    let mut begin = [0; 4];
    // One that may be executed and not read is a program of its own kind.
    let Ok(mut file) = std::fs::File::open(path) else { return true };
    let length = file.read(&mut begin).unwrap_or(0);
    begin[..length].starts_with(b"#!") || begin == *b"\x7fELF"
}

/// Refuses a file that others than root could change or replace: itself, each folder above it, and each symbolic link.
fn roots_alone(path: &Path, links: u32) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let path = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
    for part in path.ancestors() {
        let failed = |error: io::Error| format!("{}: {error}", part.display());
        let metadata = part.symlink_metadata().map_err(failed)?;
        if metadata.is_symlink() {
            let links = links.checked_sub(1).ok_or_else(|| format!("{}: too many links", part.display()))?;
            let around = part.parent().unwrap_or(part);
            roots_alone(&around.join(part.read_link().map_err(failed)?), links)?;
            continue;
        }
        let mode = metadata.mode();
        if metadata.uid() != 0 || mode & 0o002 != 0 || mode & 0o020 != 0 && metadata.gid() != 0 {
            let why =
                "others than root may change it, and `enable_script_security` forbids to run it as root";
            return Err(format!("{}: {why}", part.display()));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod testing {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::time::Instant;

    use xvs_model::check::Script;

    /// A folder that goes when the test ends. Anybody may write to it.
    pub(crate) struct Folder(pub(crate) PathBuf);

    impl Folder {
        pub(crate) fn new() -> Self {
            use std::os::unix::fs::PermissionsExt;
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("xvs-health-{}-{number}", std::process::id()));
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// What a file holds; nothing if it is not there.
        pub(crate) fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        /// A file with this mode. Another process writes it: one that is started meanwhile by another test would keep it
        /// open for writing, and then it cannot be executed.
        pub(crate) fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
            let path = self.path(name);
            let write = "printf %s \"$1\" >\"$2\" && chmod \"$3\" \"$2\"";
            let mut command = std::process::Command::new("sh");
            command.args(["-c", write, "sh", text]).arg(&path).arg(format!("{mode:o}"));
            assert!(command.status().unwrap().success());
            path
        }

        /// Shell commands that are run in this folder.
        pub(crate) fn script(&self, text: &str) -> Script {
            let text = format!("cd {}\n{text}", self.0.display());
            Script {
                argv: vec!["sh".to_owned(), "-c".to_owned(), text.clone()],
                text,
                user: None,
                group: None,
            }
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// What a keepalived.conf has as a command.
    pub(crate) fn written(text: &str) -> Script {
        let argv = xvs_keepalived::lexer::shell_words(text);
        Script { argv, text: text.to_owned(), user: None, group: None }
    }

    /// Waits until something is so, in real time and however the clock stands.
    #[track_caller]
    pub(crate) fn until(is: impl Fn() -> bool) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let began = std::time::Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(30), "{caller}: it does not come to be so");
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
            }
        }
    }

    /// Longer than what a test runs takes.
    pub(crate) fn in_time() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Whether a process runs.
    pub(crate) fn runs(pid: &str) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    }
}

#[cfg(test)]
mod tests {
    use crate::command::testing::{Folder, in_time, runs, until, written};
    use crate::command::*;

    fn program(script: &Script) -> Program {
        Program::new(script, &Globals::default(), RunLock::default())
    }

    async fn run(script: &Script) -> Outcome {
        program(script).run(in_time()).await
    }

    #[tokio::test]
    async fn a_command_may_have_as_many_descriptors_as_xvsd_was_started_with() {
        let own = rustix::process::getrlimit(Resource::Nofile);
        DESCRIPTORS.set(Rlimit { current: Some(777), ..own }).ok().unwrap();
        let folder = Folder::new();
        // It begins before it is told.
        let script = folder.script("until [ \"$(ulimit -n)\" = 777 ]; do sleep 0.01; done");
        let program = Program::new(&script, &Globals::default(), RunLock::default());
        assert_eq!(program.run(in_time()).await, Outcome::Exit(0));
    }

    #[tokio::test]
    async fn the_exit_code_or_the_signal_is_told() {
        let folder = Folder::new();
        for code in [0, 1, 2, 7, 126, 127, 255] {
            assert_eq!(run(&folder.script(&format!("exit {code}"))).await, Outcome::Exit(code));
        }
        assert_eq!(run(&folder.script("kill -KILL $$")).await, Outcome::Signal(9));
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_as_they_are_written_and_nothing_of_a_shell() {
        let folder = Folder::new();
        let text = "#!/bin/sh\nprintf '%s|' \"$@\" >\"${0%/*}/out\"\n";
        let path = folder.write("program", 0o755, text);
        let script = written(&format!("{} 'a b' $HOME * '' && c", path.display()));
        assert_eq!(run(&script).await, Outcome::Exit(0));
        assert_eq!(folder.read("out"), "a b|$HOME|*||&&|c|");
    }

    #[tokio::test]
    async fn what_is_no_program_is_a_shells_affair_as_it_is_written() {
        let folder = Folder::new();
        let script = written(&format!("cd {} && echo \"x  y\" >out; exit 3", folder.0.display()));
        assert_eq!(run(&script).await, Outcome::Exit(3));
        assert_eq!(folder.read("out"), "x  y\n");
        let plain = folder.write("plain", 0o755, "exit 4");
        assert_eq!(run(&written(&format!("{}", plain.display()))).await, Outcome::Exit(4));
    }

    #[tokio::test]
    async fn what_is_not_there_or_may_not_be_executed_ends_with_the_codes_of_a_shell() {
        let folder = Folder::new();
        let closed = folder.write("closed", 0o644, "#!/bin/sh\n");
        let outcome = run(&written(&format!("{}", closed.display()))).await;
        assert_eq!(outcome.to_string(), "exit code 126: it may not be executed");
        let outcome = run(&written("/nonexistent/check.sh a")).await;
        assert_eq!(outcome.to_string(), "exit code 127: there is no such command");
        let broken = folder.write("broken", 0o755, "#!/nonexistent/interpreter\n");
        let outcome = run(&written(&format!("{}", broken.display()))).await;
        assert!(matches!(&outcome, Outcome::Refused(why) if why.contains("No such file")), "{outcome}");
    }

    #[tokio::test]
    async fn the_environment_is_that_of_xvsd_without_what_changes_what_programs_are() {
        const FOLDER: &str = "XVS_TEST_ENVIRONMENT";
        if let Ok(folder) = std::env::var(FOLDER) {
            let script = written(&format!("cd {folder} && cat /proc/$$/environ >out"));
            assert_eq!(run(&script).await, Outcome::Exit(0));
            return;
        }
        // Once more, as a process that has such variables.
        let folder = Folder::new();
        let name = "command::tests::the_environment_is_that_of_xvsd_without_what_changes_what_programs_are";
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", name]).env(FOLDER, &folder.0).stdout(Stdio::null()).stderr(Stdio::null());
        again.envs([("IFS", "x"), ("LD_PRELOAD", ""), ("LD_LIBRARY_PATH", "/nonexistent")]);
        assert!(again.status().unwrap().success());
        let environment = folder.read("out");
        let names: Vec<_> = environment.split('\0').map(|line| line.split('=').next().unwrap()).collect();
        assert!(names.contains(&FOLDER) && names.contains(&"PATH"), "{names:?}");
        assert!(!names.contains(&"IFS") && !names.iter().any(|name| name.starts_with("LD_")), "{names:?}");
    }

    #[tokio::test]
    async fn nobody_answers_what_it_asks_and_megabytes_that_it_prints_hold_nothing_up() {
        let folder = Folder::new();
        let text = "read line && exit 1; head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2";
        assert_eq!(run(&folder.script(text)).await, Outcome::Exit(0));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_and_takes_no_sigterm_is_killed_with_what_it_has_begun_and_reaped() {
        let folder = Folder::new();
        let text =
            "trap '' TERM\n(trap '' TERM; echo 1 >child; sleep 1000) &\necho $! >pid; echo $$ >leader; wait";
        let program = program(&folder.script(text));
        let hanging = tokio::spawn({
            let program = program.clone();
            async move { program.run(in_time()).await }
        });
        until(|| folder.read("child") == "1\n" && folder.read("leader").ends_with('\n')).await;
        assert_eq!(hanging.await.unwrap(), Outcome::Late);
        // Whoever runs next waits until it is gone.
        program.wait_until_ended().await;
        let leader = folder.read("leader");
        assert!(!Path::new(&format!("/proc/{}", leader.trim())).exists());
        until(|| !runs(&folder.read("pid"))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_wait_any_longer_ends_it_and_it_may_tidy_up() {
        let folder = Folder::new();
        let text = "trap 'echo 1 >tidy; exit' TERM\necho $$ >leader; while :; do sleep 0.01; done";
        let program = program(&folder.script(text));
        let asker = tokio::spawn({
            let program = program.clone();
            async move { program.run(in_time()).await }
        });
        until(|| folder.read("leader").ends_with('\n')).await;
        asker.abort();
        until(|| folder.read("tidy") == "1\n" && !runs(&folder.read("leader"))).await;
        program.wait_until_ended().await;
    }

    #[test]
    fn what_still_runs_when_the_runtime_ends_is_killed() {
        let folder = Folder::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let program = program(&folder.script("echo $$ >leader; sleep 1000"));
        runtime.block_on(async {
            tokio::spawn(async move { program.run(in_time()).await });
            until(|| folder.read("leader").ends_with('\n')).await;
        });
        drop(runtime);
        assert!(!runs(&folder.read("leader")));
    }

    #[tokio::test]
    async fn what_a_command_leaves_in_the_background_lives_on() {
        let folder = Folder::new();
        let script = folder.script("(until [ -e go ]; do sleep 0.01; done; echo 1 >out) &");
        assert_eq!(run(&script).await, Outcome::Exit(0));
        folder.write("go", 0o644, "");
        until(|| folder.read("out") == "1\n").await;
    }

    #[tokio::test]
    async fn it_never_runs_twice_at_once() {
        let folder = Folder::new();
        let text = "mkdir here || exit 9; echo >>runs; sleep 0.01; rmdir here";
        let program = program(&folder.script(text));
        let runs: [_; 5] = std::array::from_fn(|_| {
            let program = program.clone();
            tokio::spawn(async move { program.run(in_time()).await })
        });
        for run in runs {
            assert_eq!(run.await.unwrap(), Outcome::Exit(0));
        }
        assert_eq!(folder.read("runs"), "\n".repeat(5));
    }

    #[tokio::test(start_paused = true)]
    async fn while_one_does_not_end_although_it_was_killed_the_next_does_not_begin() {
        let folder = Folder::new();
        let program = program(&folder.script("echo >ran"));
        let _still_there = program.run_lock.lock.lock().await;
        program.run_lock.is_started.store(true, Ordering::Relaxed);
        assert_eq!(program.run(in_time()).await, Outcome::Busy);
        assert_eq!(folder.read("ran"), "");
    }

    #[tokio::test]
    async fn it_runs_as_its_user_and_group_or_that_of_all_scripts_without_other_groups() {
        let folder = Folder::new();
        let mut script = folder.script("echo $(id -u) $(id -g) $(id -G) >out$(id -g)");
        let globals = Globals { script_user: Some(("nobody".to_owned(), None)), ..Globals::default() };
        let program = Program::new(&script, &globals, RunLock::default());
        assert_eq!(program.run(in_time()).await, Outcome::Exit(0));
        assert_eq!(folder.read("out65534"), "65534 65534 65534\n");
        (script.user, script.group) = (Some("nobody".to_owned()), Some("daemon".to_owned()));
        assert_eq!(run(&script).await, Outcome::Exit(0));
        assert_eq!(folder.read("out1"), "65534 1 1\n");
        (script.user, script.group) = (Some("root".to_owned()), None);
        assert_eq!(
            Program::new(&script, &globals, RunLock::default()).run(in_time()).await,
            Outcome::Exit(0)
        );
        assert!(folder.read("out0").starts_with("0 0 "));
    }

    #[tokio::test]
    async fn a_user_or_a_group_that_is_not_there_is_told() {
        let mut script = written("/bin/true");
        script.user = Some("nosuchuser".to_owned());
        assert_eq!(run(&script).await.to_string(), "there is no user `nosuchuser`");
        (script.user, script.group) = (Some("root".to_owned()), Some("nosuchgroup".to_owned()));
        assert_eq!(program(&script).obstacle().as_deref(), Some("there is no group `nosuchgroup`"));
    }

    #[tokio::test]
    async fn with_script_security_root_runs_only_what_root_alone_may_change() {
        let folder = Folder::new();
        let globals = Globals { enable_script_security: true, ..Globals::default() };
        let secured = |script: &Script| Program::new(script, &globals, RunLock::default());
        assert_eq!(secured(&written("/bin/true")).run(in_time()).await, Outcome::Exit(0));
        assert_eq!(secured(&written("true")).obstacle(), None);
        // Its folder may be written to by anybody; so may that of the link.
        let path = folder.write("program", 0o755, "#!/bin/sh\n").display().to_string();
        let mut open = written(&path);
        assert_eq!(run(&open).await, Outcome::Exit(0));
        let refused = secured(&open).run(in_time()).await;
        assert!(matches!(&refused, Outcome::Refused(why) if why.contains("others than root")), "{refused}");
        std::os::unix::fs::symlink("/bin/true", folder.path("link")).unwrap();
        let link = written(&folder.path("link").display().to_string());
        assert!(secured(&link).obstacle().is_some_and(|why| why.contains("others than root")));
        // A shell's command cannot be looked at.
        assert!(secured(&written("cd / && true")).obstacle().is_some_and(|why| why.contains("no program")));
        open.user = Some("nobody".to_owned());
        assert_eq!(secured(&open).run(in_time()).await, Outcome::Exit(0));
    }

    #[test]
    fn commands_that_cannot_be_run_are_found_where_they_stand() {
        let folder = Folder::new();
        let text = "global_defs {
            script_user nosuchuser
        }
        virtual_server 10.0.0.1 80 {
            protocol TCP
            lvs_sched rr
            lvs_method DR
            quorum_up /bin/true root
            real_server 10.1.0.1 80 {
                notify_up /bin/true root nosuchgroup
                MISC_CHECK {
                    misc_path /bin/true
                }
            }
        }";
        let path = folder.write("k.conf", 0o644, text);
        let configuration = xvs_keepalived::read(&path, "lb1").unwrap();
        assert!(configuration.faults.is_empty());
        let told: Vec<_> = faults(&configuration)
            .iter()
            .map(|fault| format!("{} {}", fault.place.line, fault.text))
            .collect();
        assert_eq!(
            told,
            [
                "9 `/bin/true` cannot be run: there is no group `nosuchgroup`",
                "11 `/bin/true` cannot be run: there is no user `nosuchuser`",
            ]
        );
    }
}
