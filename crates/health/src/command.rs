//! Execution of the commands in keepalived.conf, with a time limit.
//!
//! A program is executed without a shell; any other command runs under `sh -c`. It has a separate process group; its
//! standard input, output and error are /dev/null, its environment is `LANG` and `PATH`, and it has no capabilities
//! except those of its user. When its time is over or the caller drops the future, it gets SIGTERM; two seconds later
//! its whole group gets SIGKILL, and it is reaped. Until then no command with the same [`RunLock`] starts. Background
//! processes of a command that ends by itself continue, because that may be intended.
//!
//! The helper process runs them (crate `helper`), and looks up users and files. Cost: a process and a few messages.
//! `script.rs` interprets exit codes, and `notify.rs` orders several commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fmt, io};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use xvs_helper::client::{Run, obstacle};
use xvs_helper::request::{End, Event, Request, Script as Requested};
use xvs_model::health_checks::check::{Probe, Script};
use xvs_model::health_checks::fault::{Fault, Severity};
use xvs_model::health_checks::virtual_server::{Configuration, Globals};

/// Permits one of the commands that share it to run at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct RunLock {
    lock: Arc<Mutex<()>>,
    /// Whether the command that holds the lock has started.
    is_started: Arc<AtomicBool>,
}

impl RunLock {
    fn is_started(&self) -> bool {
        self.is_started.load(Ordering::Relaxed)
    }
}

/// A command with all that is needed to run it.
#[derive(Debug, Clone)]
pub(super) struct Program {
    script: Script,
    /// `enable_script_security`
    is_checked: bool,
    run_lock: RunLock,
}

/// The outcome of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It ended by itself with this code.
    Exit(i32),
    /// A signal ended it.
    Signal(i32),
    /// The command did not end before the deadline; it is being killed.
    Late,
    /// The command was not started: its predecessor has not ended, although it was killed.
    Busy,
    /// It cannot be run, for this reason.
    Refused(String),
    /// The command was not started for lack of a local resource, for this reason.
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
    /// A script with the `global_defs` that apply to all scripts.
    pub(super) fn new(script: &Script, globals: &Globals, run_lock: RunLock) -> Self {
        let mut script = script.clone();
        if let (None, Some((user, group))) = (&script.user, &globals.script_user) {
            (script.user, script.group) = (Some(user.clone()), group.clone());
        }
        Self { script, is_checked: globals.enable_script_security, run_lock }
    }

    /// Runs the command as soon as the lock is free. Dropping the future ends the command.
    pub(super) async fn run(&self, deadline: Instant) -> Outcome {
        let Ok(guard) = timeout_at(deadline, Arc::clone(&self.run_lock.lock).lock_owned()).await else {
            return if self.run_lock.is_started() { Outcome::Busy } else { not_in_time() };
        };
        self.run_lock.is_started.store(false, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        tokio::spawn(self.clone().run_to_end(guard, sender));
        match timeout_at(deadline, receiver).await {
            Ok(outcome) => outcome
                .unwrap_or_else(|_| Outcome::NotStarted("internal error of xvsd; see its log".to_owned())),
            Err(_) if self.run_lock.is_started() => Outcome::Late,
            Err(_) => not_in_time(),
        }
    }

    /// Starts the command and waits for its end. Ends it when the receiver of `sender` is dropped.
    async fn run_to_end(self, _guard: OwnedMutexGuard<()>, mut sender: oneshot::Sender<Outcome>) {
        let outcome = match self.start() {
            Ok(mut process) => match process.event().await {
                Event::Started => {
                    self.run_lock.is_started.store(true, Ordering::Relaxed);
                    tokio::select! {
                        biased;
                        outcome = process.event() => outcome.into(),
                        () = sender.closed() => process.terminate().await,
                    }
                }
                event => event.into(),
            },
            Err(error) => Outcome::NotStarted(error.to_string()),
        };
        let _ = sender.send(outcome);
    }

    fn start(&self) -> io::Result<Process> {
        let run = Run::request(&Request::Script(self.requested()), &[])?;
        #[expect(deprecated, reason = "its replacement is unsafe")]
        let run = AsyncFd::with_interest(run, Interest::READABLE)?;
        Ok(Process { run, has_ended: false })
    }

    /// The request to the helper.
    pub(super) fn requested(&self) -> Requested {
        let Script { argv, text, user, group, .. } = self.script.clone();
        Requested { text, argv, user, group, is_checked: self.is_checked }
    }

    /// Waits until no run is in progress.
    pub(super) async fn wait_until_ended(&self) {
        drop(self.run_lock.lock.lock().await);
    }

    /// The reason why the command cannot be run now; `None` if it can. Waits for look-ups of users and files.
    pub(super) fn obstacle(&self) -> Option<String> {
        obstacle(self.requested())
    }
}

/// A command that was not started before the deadline gives no result for the server.
fn not_in_time() -> Outcome {
    Outcome::NotStarted(
        "it could not be started in time: the lookup of a user or a file takes too long".to_owned(),
    )
}

/// The commands in a configuration that cannot be run now, as faults. Looks up users and files, which may block.
pub(super) fn faults(configuration: &Configuration) -> Vec<Fault> {
    scripts(configuration)
        .filter_map(|script| {
            let why = Program::new(script, &configuration.globals, RunLock::default()).obstacle()?;
            let text = format!("`{}` cannot be run: {why}", script.text);
            Some(Fault { place: script.place.clone(), severity: Severity::Warning, text })
        })
        .collect()
}

/// The commands in a configuration, without those that read FIFOs.
pub(super) fn scripts(configuration: &Configuration) -> impl Iterator<Item = &Script> {
    configuration.virtual_servers.iter().flat_map(|server| {
        server.quorum_up.iter().chain(&server.quorum_down).chain(server.real_servers.iter().flat_map(
            |server| {
                let checks = server.checks.iter().filter_map(|one| match &one.probe {
                    Probe::Script(script, _) => Some(script),
                    _ => None,
                });
                server.notify_up.iter().chain(&server.notify_down).chain(checks)
            },
        ))
    })
}

/// A requested command. Dropping this kills it.
struct Process {
    /// Readable when there is an event.
    run: AsyncFd<Run>,
    has_ended: bool,
}

impl Process {
    /// Waits for the next event. Cancel safe.
    async fn event(&mut self) -> Event {
        loop {
            // Fails only when the runtime ends; this future is then dropped.
            let Ok(mut ready) = self.run.readable().await else { return std::future::pending().await };
            if let Some(event) = self.run.get_ref().event() {
                self.has_ended = event != Event::Started;
                return event;
            }
            ready.clear_ready();
        }
    }

    /// Ends the command with its group: SIGTERM, then SIGKILL.
    async fn terminate(&mut self) -> Outcome {
        self.run.get_ref().end(End::Terminate);
        if let Ok(event) = timeout(GRACE, self.event()).await {
            return event.into();
        }
        self.run.get_ref().end(End::Kill);
        self.event().await.into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended {
            // The runtime is ending, so no task can wait for the process.
            self.run.get_ref().end(End::Kill);
            let _ = self.run.get_ref().last_event();
        }
    }
}

impl From<Event> for Outcome {
    fn from(event: Event) -> Self {
        match event {
            Event::Exit(code) => Self::Exit(code),
            Event::Signal(number) => Self::Signal(number),
            Event::Missing(why) | Event::Refused(why) => Self::Refused(why),
            Event::NotStarted(why) => Self::NotStarted(why),
            Event::Started | Event::Runnable | Event::Names(_) | Event::Done(_) | Event::Failed(..) => {
                Self::NotStarted("internal error of the helper".to_owned())
            }
        }
    }
}

/// The time from SIGTERM to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
pub(super) mod testing {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::sync::OwnedMutexGuard;
    use tokio::time::Instant;
    use xvs_model::health_checks::check::Script;
    use xvs_model::health_checks::fault::Place;

    use crate::command::{Program, RunLock};

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

        /// Writes a file with this mode, in another process. Otherwise a command that another test starts at the same
        /// time could inherit the open file, and then it cannot be executed (ETXTBSY).
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

    /// A command as written in keepalived.conf.
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

    /// Waits until the helper has reported the start of a command. A paused clock advances as soon as nothing is left
    /// to do, possibly before that.
    pub(crate) async fn until_started(program: &Program) {
        until(|| program.run_lock.is_started.load(Ordering::Relaxed)).await;
    }

    /// Holds a lock like a command that has not started yet.
    pub(crate) fn hold(lock: &RunLock) -> OwnedMutexGuard<()> {
        lock.lock.clone().try_lock_owned().unwrap()
    }

    /// A deadline that no test command reaches.
    pub(crate) fn in_time() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Whether a process runs.
    pub(crate) fn runs(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .unwrap_or_default()
            .rsplit(')')
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use rustix::thread::{CapabilitySet, capabilities};

    use crate::command::testing::{Folder, in_time, runs, until, until_started, written};
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
        assert!(std::env::vars_os().count() > 2);
        let folder = Folder::new();
        assert_eq!(run(&folder.script("cat /proc/$$/environ >seen")).await, Outcome::Exit(0));
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(folder.read("seen"), format!("LANG=C\0PATH={path}\0"));
    }

    #[tokio::test]
    async fn a_command_has_no_capability_that_xvsd_would_pass_on() {
        const MARK: &str = "XVS_TEST_WITH_CAPABILITIES";
        if std::env::var_os(MARK).is_none() {
            // Like an xvsd that is not root and has ambient capabilities: without `noroot`, root has all by itself.
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
        until_started(&program).await;
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
    async fn a_command_that_is_too_long_for_the_helper_is_not_started() {
        let outcome = run(&written(&"x".repeat(200 << 10))).await;
        assert!(matches!(&outcome, Outcome::NotStarted(why) if why.contains("too many")), "{outcome}");
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
