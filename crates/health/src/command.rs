//! Execution of the commands of a keepalived.conf, with a time limit.
//!
//! A program is executed without a shell; any other command runs under `sh -c`. It has a process group of its own; its
//! standard input, output and error are /dev/null, its environment is [`ENVIRONMENT`], and it has no capabilities but
//! those of its user. When its time is over or the caller drops the future, it gets
//! SIGTERM, two seconds later its whole group gets SIGKILL, and it is reaped; until then no command with the same
//! [`RunLock`] starts. Processes that a command leaves in the background when it ends by itself live on, because that
//! may be intended.
//!
//! Cost: a process; if the command runs as another user than xvsd, the start copies xvsd (`fork`). Lookups of users and
//! files may block, so commands are started on a blocking thread. Not here: the meaning of exit codes (`script.rs`),
//! and the order of several commands (`notify.rs`).

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
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use xvs_model::health_checks::check::{Probe, Script};
use xvs_model::health_checks::fault::{Fault, Severity};
use xvs_model::health_checks::virtual_server::{Configuration, Globals};

use crate::blocking::run_blocking;

/// Lets one of the commands that share it run at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct RunLock {
    lock: Arc<Mutex<()>>,
    /// Whether the command that holds the lock has started.
    is_started: Arc<AtomicBool>,
}

/// The descriptor limit for commands: the one that xvsd was started with, before it raised its own. Some programs close
/// every possible descriptor in a loop, so a high limit would slow them down.
pub(super) static DESCRIPTORS: OnceLock<Rlimit> = OnceLock::new();

/// A command with all that is needed to run it.
#[derive(Debug, Clone)]
pub(super) struct Program {
    script: Script,
    security: Security,
    run_lock: RunLock,
}

/// Whether a program that runs as root is checked first (`enable_script_security`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Security {
    Checked,
    Trusted,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ended by itself with this code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// It did not end before the deadline; it is being killed.
    Late,
    /// It was not started: the command before it has not ended, although it was killed.
    Busy,
    /// It cannot be run, for this reason.
    Refused(String),
    /// It was not started for lack of a local resource, for this reason.
    NotStarted(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code @ 126) => write!(f, "exit code {code}: it may not be executed"),
            Self::Exit(code @ 127) => write!(f, "exit code {code}: there is no such command"),
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => write!(f, "ended by signal {number}"),
            Self::Late => write!(f, "it did not end in time and was killed"),
            Self::Busy => write!(f, "the run before it has not ended, although it was killed"),
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
    /// A script with the `global_defs` for all scripts.
    pub(super) fn new(script: &Script, globals: &Globals, run_lock: RunLock) -> Self {
        let mut script = script.clone();
        if let (None, Some((user, group))) = (&script.user, &globals.script_user) {
            (script.user, script.group) = (Some(user.clone()), group.clone());
        }
        let security = if globals.enable_script_security { Security::Checked } else { Security::Trusted };
        Self { script, security, run_lock }
    }

    /// Runs the command as soon as the lock is free. Dropping the future ends the command.
    pub(super) async fn run(&self, deadline: Instant) -> Outcome {
        let is_started = || self.run_lock.is_started.load(Ordering::Relaxed);
        let Ok(guard) = timeout_at(deadline, Arc::clone(&self.run_lock.lock).lock_owned()).await else {
            return if is_started() { Outcome::Busy } else { not_in_time() };
        };
        self.run_lock.is_started.store(false, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(self.clone().run_to_end(guard, sender));
        match timeout_at(deadline, receiver).await {
            Ok(outcome) => outcome
                .unwrap_or_else(|_| Outcome::NotStarted("internal error of xvsd; see its log".to_owned())),
            Err(_) if is_started() => Outcome::Late,
            Err(_) => not_in_time(),
        }
    }

    /// Starts the command and waits until it is reaped. Ends it when the receiver of `sender` is dropped.
    async fn run_to_end(self, _guard: OwnedMutexGuard<()>, mut sender: oneshot::Sender<Outcome>) {
        let is_started = self.run_lock.is_started.clone();
        let started = run_blocking(move || self.start()).await;
        let outcome = match started {
            Ok(Ok(mut process)) => {
                is_started.store(true, Ordering::Relaxed);
                tokio::select! {
                    biased;
                    () = process.wait() => {}
                    () = sender.closed() => process.terminate().await,
                }
                process.reap()
            }
            Ok(Err(outcome)) => outcome,
            Err(error) => Outcome::NotStarted(error.to_string()),
        };
        let _ = sender.send(outcome);
    }

    fn start(&self) -> Result<Process, Outcome> {
        let account = self.account().map_err(Outcome::Refused)?;
        let mut command =
            self.command(account.is_none_or(|(user, _)| user == 0)).map_err(Outcome::Refused)?;
        // xvsd's own environment may hold secrets, and names that change which code a program runs.
        command.env_clear().envs(ENVIRONMENT);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        if let Some((user, group)) = account {
            command.uid(user).gid(group);
        }
        keep_capabilities().map_err(|error| Outcome::Refused(format!("its capabilities: {error}")))?;
        let child = command.spawn().map_err(|error| self.not_started(&error))?;
        if let Some(limit) = DESCRIPTORS.get() {
            // This fails if the command has ended or the change is not permitted; then it keeps the limit of xvsd.
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

    /// The IDs of the user and the group that the command runs as; `None`: those of xvsd.
    fn account(&self) -> Result<Option<(u32, u32)>, String> {
        let account = match &self.script.user {
            Some(user) => account(user, self.script.group.as_deref())?,
            None => match user(DEFAULT_USER)? {
                Some(user) => (user.uid.as_raw(), user.gid.as_raw()),
                None => return Ok(None),
            },
        };
        // Without a change of user the start need not copy the page tables of xvsd.
        Ok((account != (geteuid().as_raw(), getegid().as_raw())).then_some(account))
    }

    /// The command to execute.
    fn command(&self, is_root: bool) -> Result<Command, String> {
        let argv = &self.script.argv;
        let is_checked = self.security == Security::Checked && is_root;
        let Some(program) = program(&argv[0]) else {
            if is_checked {
                let why = "is no program; with `enable_script_security` root runs only programs";
                return Err(format!("`{}` {why}", argv[0]));
            }
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(&self.script.text);
            return Ok(shell);
        };
        if is_checked {
            require_root_only(&program, LINKS_MAX)?;
        }
        let mut command = Command::new(program);
        command.arg0(&argv[0]).args(&argv[1..]);
        Ok(command)
    }

    /// Waits until no run is in progress.
    pub(super) async fn wait_until_ended(&self) {
        drop(self.run_lock.lock.lock().await);
    }

    /// Why the command cannot be run now; `None`: it can. Looks up users and files, which may block.
    pub(super) fn obstacle(&self) -> Option<String> {
        let account = match self.account() {
            Ok(account) => account,
            Err(why) => return Some(why),
        };
        self.command(account.is_none_or(|(user, _)| user == 0)).err()
    }
}

/// Keeps xvsd's capabilities from the programs that this thread starts. Without inheritable capabilities the thread has
/// no ambient ones, and a program has those that its user and its file give it, as always with root. The thread's own
/// stay as they are. Source: capabilities(7), «Transformation of capabilities during execve()».
fn keep_capabilities() -> io::Result<()> {
    let sets = capabilities(None)?;
    if !sets.inheritable.is_empty() {
        set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets })?;
    }
    Ok(())
}

/// A command that was not started before the deadline gives no result for the server.
fn not_in_time() -> Outcome {
    Outcome::NotStarted(
        "it could not be started in time: the lookup of a user or a file takes too long".to_owned(),
    )
}

/// The commands of a configuration that cannot be run now. Looks up users and files, which may block.
pub(super) fn faults(configuration: &Configuration) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut check = |script: &Script| {
        if let Some(why) = Program::new(script, &configuration.globals, RunLock::default()).obstacle() {
            let text = format!("`{}` cannot be run: {why}", script.text);
            faults.push(Fault { place: script.place.clone(), severity: Severity::Warning, text });
        }
    };
    for server in &configuration.virtual_servers {
        let scripts = server.quorum_up.iter().chain(&server.quorum_down);
        scripts.for_each(&mut check);
        for server in &server.real_servers {
            let scripts = server.notify_up.iter().chain(&server.notify_down);
            scripts.for_each(&mut check);
            for one in &server.checks {
                if let Probe::Script(script, _) = &one.probe {
                    check(script);
                }
            }
        }
    }
    faults
}

/// A running command. Dropping this kills it.
struct Process {
    child: Child,
    /// Readable when the process has ended (pidfd).
    end: AsyncFd<OwnedFd>,
    group: Pid,
    is_reaped: bool,
}

impl Process {
    fn of(mut child: Child) -> io::Result<Self> {
        let group = Pid::from_child(&child);
        #[expect(deprecated, reason = "its replacement is unsafe")]
        let end = pidfd_open(group, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|end| AsyncFd::with_interest(end, Interest::READABLE));
        match end {
            Ok(end) => Ok(Self { child, end, group, is_reaped: false }),
            Err(error) => {
                // The process is not reaped, so its number is not reused.
                let _ = kill_process_group(group, Signal::KILL);
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Waits until the process has ended. Does not reap it, so the numbers of process and group are not reused.
    async fn wait(&self) {
        // Fails only when the runtime ends; then this is dropped.
        let _ = self.end.readable().await.map(|mut ready| ready.retain_ready());
    }

    /// Ends the process with its group: SIGTERM, then SIGKILL.
    async fn terminate(&self) {
        let _ = kill_process_group(self.group, Signal::TERM);
        let _ = timeout(GRACE, self.wait()).await;
        // Also kills processes that it has left in its group.
        let _ = kill_process_group(self.group, Signal::KILL);
        self.wait().await;
    }

    /// Reaps the process, which has ended.
    fn reap(&mut self) -> Outcome {
        match self.child.try_wait() {
            Ok(Some(status)) => {
                self.is_reaped = true;
                match (status.code(), status.signal()) {
                    (Some(code), _) => Outcome::Exit(code),
                    (None, signal) => Outcome::Signal(signal.unwrap_or_default()),
                }
            }
            Ok(None) => Outcome::NotStarted("xvsd cannot wait for its end".to_owned()),
            Err(error) => Outcome::NotStarted(error.to_string()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        // The runtime is ending, so no task can wait for the process.
        let _ = kill_process_group(self.group, Signal::KILL);
        let most = Timespec { tv_sec: 1, tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(self.end.get_ref(), PollFlags::IN)], Some(&most));
        let _ = self.child.try_wait();
    }
}

/// The time from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// The environment of a command: that of a system service, with the folders that systemd and Debian's root search.
const ENVIRONMENT: [(&str, &str); 2] = [("LANG", "C"), ("PATH", PATH)];
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The default user of scripts, if it exists.
const DEFAULT_USER: &str = "keepalived_script";

/// The length of a chain of symbolic links.
const LINKS_MAX: u32 = 16;

/// The IDs of a user and of a group; without a group name, the user's own group.
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

/// The executable of a name: a path, or found in [`PATH`].
fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| is_program(path));
    }
    std::env::split_paths(PATH).map(|folder| folder.join(name)).find(|path| is_program(path))
}

/// Whether a file is executable, and starts with `#!` or as ELF.
fn is_program(path: &Path) -> bool {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;
    let may = |metadata: std::fs::Metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
    if !path.metadata().is_ok_and(may) {
        return false;
    }
    let mut begin = [0; 4];
    // An executable that cannot be read is taken for a program.
    let Ok(mut file) = std::fs::File::open(path) else { return true };
    let length = file.read(&mut begin).unwrap_or(0);
    begin[..length].starts_with(b"#!") || begin == *b"\x7fELF"
}

/// Refuses a file that users other than root can change or replace. Checks the file, each directory above it, and each
/// symbolic link.
fn require_root_only(path: &Path, links: u32) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let path = std::path::absolute(path).map_err(|error| format!("{}: {error}", path.display()))?;
    for part in path.ancestors() {
        let failed = |error: io::Error| format!("{}: {error}", part.display());
        let metadata = part.symlink_metadata().map_err(failed)?;
        if metadata.is_symlink() {
            let links = links.checked_sub(1).ok_or_else(|| format!("{}: too many links", part.display()))?;
            let around = part.parent().unwrap_or(part);
            require_root_only(&around.join(part.read_link().map_err(failed)?), links)?;
            continue;
        }
        let mode = metadata.mode();
        if metadata.uid() != 0 || mode & 0o002 != 0 || mode & 0o020 != 0 && metadata.gid() != 0 {
            let why = "others than root may change it; with `enable_script_security` it is not run as root";
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

    use xvs_model::health_checks::check::Script;
    use xvs_model::health_checks::fault::Place;

    /// A directory that is removed when the test ends. Every user may write to it.
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

        /// The content of a file; empty if it does not exist.
        pub(crate) fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        /// Writes a file with this mode, in another process. Otherwise a command that another test starts meanwhile
        /// could inherit the open file, and then it cannot be executed (ETXTBSY).
        pub(crate) fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
            let path = self.path(name);
            let write = "printf %s \"$1\" >\"$2\" && chmod \"$3\" \"$2\"";
            let mut command = std::process::Command::new("sh");
            command.args(["-c", write, "sh", text]).arg(&path).arg(format!("{mode:o}"));
            assert!(command.status().unwrap().success());
            path
        }

        /// Shell commands that run in this directory.
        pub(crate) fn script(&self, text: &str) -> Script {
            let text = format!("cd {}\n{text}", self.0.display());
            Script {
                place: Place::default(),
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

    /// A command as a keepalived.conf contains it.
    pub(crate) fn written(text: &str) -> Script {
        let argv = xvs_keepalived::lexer::shell_words(text);
        Script { place: Place::default(), argv, text: text.to_owned(), user: None, group: None }
    }

    /// Waits until a condition holds, in real time even when the clock is paused.
    #[track_caller]
    pub(crate) fn until(is: impl Fn() -> bool) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        async move {
            let began = std::time::Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(30), "{caller}: the condition does not hold");
                std::thread::sleep(Duration::from_millis(1));
                tokio::task::yield_now().await;
            }
        }
    }

    /// A deadline that no test command reaches.
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
    async fn a_command_sees_nothing_of_the_environment_of_xvsd() {
        // cargo has planted variables in that of this process.
        assert!(std::env::vars_os().count() > ENVIRONMENT.len());
        let folder = Folder::new();
        assert_eq!(run(&folder.script("cat /proc/$$/environ >seen")).await, Outcome::Exit(0));
        let expected = format!("LANG=C\0PATH={PATH}\0");
        assert_eq!(folder.read("seen"), expected);
    }

    #[tokio::test]
    async fn a_command_has_no_capability_that_xvsd_would_pass_on() {
        const MARK: &str = "XVS_TEST_WITH_CAPABILITIES";
        if std::env::var_os(MARK).is_none() {
            // As an xvsd that is not root and has ambient capabilities: without `noroot`, root has all by itself.
            let with =
                ["--securebits", "+noroot", "--inh-caps", "+net_admin", "--ambient-caps", "+net_admin"];
            let test = "command::tests::a_command_has_no_capability_that_xvsd_would_pass_on";
            let own = std::env::current_exe().unwrap();
            let mut again = Command::new("setpriv");
            again.args(with).arg(own).args(["--exact", test]).env(MARK, "");
            let run = again.output().unwrap();
            assert!(
                run.status.success() && String::from_utf8_lossy(&run.stdout).contains("1 passed"),
                "{run:?}"
            );
            return;
        }
        let own = capabilities(None).unwrap();
        assert!(own.permitted.contains(CapabilitySet::NET_ADMIN) && own.inheritable == own.permitted);
        let folder = Folder::new();
        assert_eq!(run(&folder.script("grep ^Cap /proc/$$/status >seen")).await, Outcome::Exit(0));
        let seen = folder.read("seen");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(seen.contains(&format!("{set}:\t0000000000000000\n")), "{seen}");
        }
    }

    #[tokio::test]
    async fn a_command_may_have_as_many_descriptors_as_xvsd_was_started_with() {
        let own = rustix::process::getrlimit(Resource::Nofile);
        DESCRIPTORS.set(Rlimit { current: Some(777), ..own }).ok().unwrap();
        let folder = Folder::new();
        // The command starts before its limit is set.
        let script = folder.script("until [ \"$(ulimit -n)\" = 777 ]; do sleep 0.01; done");
        let program = Program::new(&script, &Globals::default(), RunLock::default());
        assert_eq!(program.run(in_time()).await, Outcome::Exit(0));
    }

    #[tokio::test]
    async fn the_outcome_is_the_exit_code_or_the_signal() {
        let folder = Folder::new();
        for code in [0, 1, 2, 7, 126, 127, 255] {
            assert_eq!(run(&folder.script(&format!("exit {code}"))).await, Outcome::Exit(code));
        }
        assert_eq!(run(&folder.script("kill -KILL $$")).await, Outcome::Signal(9));
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_unchanged_without_a_shell() {
        let folder = Folder::new();
        let text = "#!/bin/sh\nprintf '%s|' \"$@\" >\"${0%/*}/out\"\n";
        let path = folder.write("program", 0o755, text);
        let script = written(&format!("{} 'a b' $HOME * '' && c", path.display()));
        assert_eq!(run(&script).await, Outcome::Exit(0));
        assert_eq!(folder.read("out"), "a b|$HOME|*||&&|c|");
    }

    #[tokio::test]
    async fn a_command_that_is_no_program_runs_in_a_shell_unchanged() {
        let folder = Folder::new();
        let script = written(&format!("cd {} && echo \"x  y\" >out; exit 3", folder.0.display()));
        assert_eq!(run(&script).await, Outcome::Exit(3));
        assert_eq!(folder.read("out"), "x  y\n");
        let plain = folder.write("plain", 0o755, "exit 4");
        assert_eq!(run(&written(&format!("{}", plain.display()))).await, Outcome::Exit(4));
    }

    #[tokio::test]
    async fn a_missing_or_not_executable_command_ends_with_the_codes_of_a_shell() {
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
    async fn a_command_has_no_input_and_its_output_is_discarded() {
        let folder = Folder::new();
        let text = "read line && exit 1; head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2";
        assert_eq!(run(&folder.script(text)).await, Outcome::Exit(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_hangs_and_ignores_sigterm_is_killed_with_its_group_and_reaped() {
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
        // The next run waits until the process has ended.
        program.wait_until_ended().await;
        let leader = folder.read("leader");
        assert!(!Path::new(&format!("/proc/{}", leader.trim())).exists());
        until(|| !runs(&folder.read("pid"))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_run_ends_the_command_which_may_clean_up() {
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
    fn a_command_that_still_runs_when_the_runtime_ends_is_killed() {
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
    async fn a_background_process_of_a_command_lives_on() {
        let folder = Folder::new();
        let script = folder.script("(until [ -e go ]; do sleep 0.01; done; echo 1 >out) &");
        assert_eq!(run(&script).await, Outcome::Exit(0));
        folder.write("go", 0o644, "");
        until(|| folder.read("out") == "1\n").await;
    }

    #[tokio::test]
    async fn runs_of_a_command_never_overlap() {
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
    async fn while_a_killed_run_has_not_ended_the_next_does_not_start() {
        let folder = Folder::new();
        let program = program(&folder.script("echo >ran"));
        let _still_there = program.run_lock.lock.lock().await;
        program.run_lock.is_started.store(true, Ordering::Relaxed);
        assert_eq!(program.run(in_time()).await, Outcome::Busy);
        assert_eq!(folder.read("ran"), "");
    }

    #[tokio::test]
    async fn a_command_runs_as_its_user_and_group_or_script_user_without_other_groups() {
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
    async fn a_missing_user_or_group_is_named() {
        let mut script = written("/bin/true");
        script.user = Some("nosuchuser".to_owned());
        assert_eq!(run(&script).await.to_string(), "there is no user `nosuchuser`");
        (script.user, script.group) = (Some("root".to_owned()), Some("nosuchgroup".to_owned()));
        assert_eq!(program(&script).obstacle().as_deref(), Some("there is no group `nosuchgroup`"));
    }

    #[tokio::test]
    async fn with_script_security_root_runs_only_programs_that_only_root_may_change() {
        let folder = Folder::new();
        let globals = Globals { enable_script_security: true, ..Globals::default() };
        let secured = |script: &Script| Program::new(script, &globals, RunLock::default());
        assert_eq!(secured(&written("/bin/true")).run(in_time()).await, Outcome::Exit(0));
        assert_eq!(secured(&written("true")).obstacle(), None);
        // The directories of the program and of the link are writable for every user.
        let path = folder.write("program", 0o755, "#!/bin/sh\n").display().to_string();
        let mut open = written(&path);
        assert_eq!(run(&open).await, Outcome::Exit(0));
        let refused = secured(&open).run(in_time()).await;
        assert!(matches!(&refused, Outcome::Refused(why) if why.contains("others than root")), "{refused}");
        std::os::unix::fs::symlink("/bin/true", folder.path("link")).unwrap();
        let link = written(&folder.path("link").display().to_string());
        assert!(secured(&link).obstacle().is_some_and(|why| why.contains("others than root")));
        // A shell command cannot be checked.
        assert!(secured(&written("cd / && true")).obstacle().is_some_and(|why| why.contains("no program")));
        open.user = Some("nobody".to_owned());
        assert_eq!(secured(&open).run(in_time()).await, Outcome::Exit(0));
    }

    #[test]
    fn commands_that_cannot_be_run_are_faults_at_their_lines() {
        let folder = Folder::new();
        let text = "global_defs {
            script_user nosuchuser
        }
        virtual_server 10.0.0.1 80 {
            protocol TCP
            lvs_sched rr
            lvs_method DR
            quorum 1
            quorum_up /bin/true nosuchuser
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
        let found: Vec<_> = faults(&configuration)
            .iter()
            .map(|fault| format!("{} {}", fault.place.line, fault.text))
            .collect();
        assert_eq!(
            found,
            [
                "9 `/bin/true` cannot be run: there is no user `nosuchuser`",
                "11 `/bin/true` cannot be run: there is no group `nosuchgroup`",
                "13 `/bin/true` cannot be run: there is no user `nosuchuser`",
            ]
        );
    }
}
