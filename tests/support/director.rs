//! The daemon under test: its start in the director's namespace, commands to it, and its end.
//!
//! [`Director::start`] returns when the daemon has logged that it is ready. The log goes to a file, which a failing
//! test prints. Cost: the start of a process. Not here: the texts of its log (`log_texts.rs`).

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use std::{env, thread};

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};
use xvs_host::process::Process;

use crate::cluster::{Cluster, Host, REAL_SERVERS, real_server, succeed, virtual_endpoint};
use crate::log_texts;
use crate::method::Method;
use crate::wait;

/// Number of worker threads and of each interface's queues: a queue belongs to one worker.
#[derive(Clone, Copy, Debug)]
pub enum Workers {
    /// One thread, single-queue interfaces.
    One,
    /// Two threads: the two directions of a connection may belong to different ones.
    Two,
}

impl Workers {
    /// As a number.
    pub fn count(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// A running `xvsd`; killed when dropped.
#[derive(Debug)]
pub struct Director<'a> {
    cluster: &'a Cluster,
    host: Host,
    process: Child,
    log: PathBuf,
    /// Whether `process` has only started the daemon.
    is_successor: bool,
}

impl<'a> Director<'a> {
    /// Starts the daemon on `wan` and `lan` and waits until it is ready.
    ///
    /// # Panics
    ///
    /// With its log if it ends first, or does not become ready.
    pub fn start(cluster: &'a Cluster, workers: Workers) -> Self {
        Self::start_with(cluster, workers, &[])
    }

    /// The same, with more arguments.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_with(cluster: &'a Cluster, workers: Workers, more: &[&str]) -> Self {
        let workers = workers.count().to_string();
        let arguments = ["--interface", "wan", "--interface", "lan", "--workers", &workers];
        Self::start_on(cluster, Host::Director, &[&arguments, more].concat())
    }

    /// Starts the daemon on a host, with these arguments, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_on(cluster: &'a Cluster, host: Host, arguments: &[&str]) -> Self {
        Self::launch(cluster, host, arguments, &[]).ready()
    }

    /// The same, with these variables, as `NAME=VALUE`, in its environment.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_in(cluster: &'a Cluster, host: Host, arguments: &[&str], variables: &[&str]) -> Self {
        Self::launch(cluster, host, arguments, variables).ready()
    }

    /// The same as [`Self::start_with`] with one worker, and with this variable, as `NAME=VALUE`, in its environment.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_with_variable(cluster: &'a Cluster, variable: &str, more: &[&str]) -> Self {
        let arguments = ["--interface", "wan", "--interface", "lan", "--workers", "1"];
        Self::launch(cluster, Host::Director, &[&arguments, more].concat(), &[variable]).ready()
    }

    /// Waits until it is ready.
    fn ready(mut self) -> Self {
        let this = &mut self;
        wait::until("xvsd says that it is ready", || {
            let log = this.log();
            if let Some(status) = this.process.try_wait().expect("xvsd is a child of this process") {
                panic!("xvsd ended, {status}, before it was ready:\n{log}");
            }
            log_texts::says_ready(&log).then_some(())
        });
        self
    }

    /// Starts the daemon on `wan` and `lan` with its log going to `stderr`, and waits until it serves.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_logging_to(cluster: &'a Cluster, stderr: impl Into<Stdio>) -> Self {
        let arguments = ["--interface", "wan", "--interface", "lan", "--workers", "1"];
        let mut this = Self::spawn(cluster, Host::Director, &arguments, &[], PathBuf::new(), stderr.into());
        wait::until("xvsd serves", || {
            if let Some(status) = this.process.try_wait().expect("xvsd is a child of this process") {
                panic!("xvsd ended, {status}, before it was ready");
            }
            let mut healthy = cluster.command(Host::Director, program("xvs"));
            healthy.arg("healthy").output().expect("xvs can be started").status.success().then_some(())
        });
        this
    }

    /// Starts the daemon with arguments that it must refuse; returns its exit status and its log.
    ///
    /// # Panics
    ///
    /// With its log if it continues to run.
    pub fn refusal(cluster: &'a Cluster, arguments: &[&str]) -> (ExitStatus, String) {
        let mut this = Self::launch(cluster, Host::Director, arguments, &[]);
        let status = this.wait();
        (status, this.log())
    }

    /// Lets a successor with these arguments take over from the running daemon of the director's host, as
    /// [`Self::start_with`] starts one.
    ///
    /// # Errors
    /// The log of a successor that has failed.
    pub fn take_over(cluster: &'a Cluster, workers: Workers, more: &[&str]) -> Result<Self, String> {
        Self::begin_take_over(cluster, workers, more).succeeded()
    }

    /// The same on a host, with all its arguments, and with an nft that takes one and a half seconds.
    ///
    /// # Errors
    /// As [`Self::take_over`].
    ///
    /// # Panics
    /// If the cluster's folder takes no program.
    pub fn take_over_slowly(cluster: &'a Cluster, host: Host, arguments: &[&str]) -> Result<Self, String> {
        let folder = cluster.state().join("slow");
        let nft = folder.join("nft");
        let script = "#!/bin/sh\nsleep 1.5\nPATH=${PATH#*:} exec nft \"$@\"\n";
        fs::create_dir_all(&folder).and_then(|()| fs::write(&nft, script)).expect("a program");
        fs::set_permissions(&nft, Permissions::from_mode(0o755)).expect("its mode");
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", folder.display());
        Self::launch(cluster, host, &[&["--take-over"], arguments].concat(), &[&path]).succeeded()
    }

    /// The same on a host, with all its arguments.
    ///
    /// # Errors
    /// As [`Self::take_over`].
    pub fn take_over_on(cluster: &'a Cluster, host: Host, arguments: &[&str]) -> Result<Self, String> {
        Self::take_over_in(cluster, host, arguments, &[])
    }

    /// The same, with these variables, as `NAME=VALUE`, in its environment.
    ///
    /// # Errors
    /// As [`Self::take_over`].
    pub fn take_over_in(
        cluster: &'a Cluster,
        host: Host,
        arguments: &[&str],
        variables: &[&str],
    ) -> Result<Self, String> {
        Self::launch(cluster, host, &[&["--take-over"], arguments].concat(), variables).succeeded()
    }

    fn succeeded(mut self) -> Result<Self, String> {
        self.is_successor = self.wait().success();
        if self.is_successor {
            return Ok(self);
        }
        // The process that has started the successor ends before the successor has printed the error.
        let is_error = |line: &str| line.starts_with("xvsd: ") && line.ends_with('\n');
        let said = || Some(self.log()).filter(|log| log.split_inclusive('\n').any(is_error));
        Err(wait::until("the successor says why it fails", said))
    }

    /// The same, and returns at once.
    pub fn begin_take_over(cluster: &'a Cluster, workers: Workers, more: &[&str]) -> Self {
        let workers = workers.count().to_string();
        let arguments = ["--take-over", "--interface", "wan", "--interface", "lan", "--workers", &workers];
        Self::launch(cluster, Host::Director, &[&arguments, more].concat(), &[])
    }

    /// Kills the process that [`Self::begin_take_over`] puts in the background, this time after its start.
    pub fn kill_successor_after(&mut self, time: Duration) {
        let successor = wait::until("the successor has been started", || {
            let namespace = self.cluster.namespace(self.host);
            let found = succeed(Command::new("ip").args(["netns", "pids", &namespace]));
            let is_successor = |process: &&str| {
                let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
                environment.split(|byte| *byte == 0).any(|one| one == b"XVSD_SUCCESSOR=takes over")
            };
            // One that was killed may still be ending.
            let mut found = found.lines().filter(is_successor).filter_map(|one| one.parse().ok());
            found.find_map(|process| Process::open(process).ok().filter(|one| !one.has_ended()))
        });
        thread::sleep(time);
        successor.kill();
        assert!(successor.ends_within(wait::DEADLINE));
        self.wait();
    }

    fn launch(cluster: &'a Cluster, host: Host, arguments: &[&str], variables: &[&str]) -> Self {
        // A second daemon in one cluster has a log of its own.
        let log = (0..)
            .map(|number| cluster.state().join(format!("xvsd-{number}.log")))
            .find(|path| !path.exists())
            .expect("numbers do not run out");
        let err = File::create_new(&log).expect("the cluster's folder takes a new file");
        Self::spawn(cluster, host, arguments, variables, log, err.into())
    }

    fn spawn(
        cluster: &'a Cluster,
        host: Host,
        arguments: &[&str],
        variables: &[&str],
        log: PathBuf,
        stderr: Stdio,
    ) -> Self {
        let mut command = cluster.command(host, "env");
        command.args(variables).arg(program("xvsd")).args(arguments);
        // A test that drops a director expects the kernel to have its packets. A table of the usual size takes longer
        // to allocate than all else at the start.
        for (option, key, value) in
            [("--hold", "hold = ", "0"), ("--conn-table-size", "conn_table_size = ", "65536")]
        {
            let in_file = |name: &&str| fs::read_to_string(name).is_ok_and(|text| text.contains(key));
            if !arguments.contains(&option) && !arguments.iter().any(in_file) {
                command.args([option, value]);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
        Self { cluster, host, process, log, is_successor: false }
    }

    /// Waits for the daemon's end.
    fn wait(&mut self) -> ExitStatus {
        wait::until("xvsd ends", || self.process.try_wait().expect("xvsd is a child of this process"))
    }

    /// Waits for the end of a daemon that ends by itself.
    pub fn has_ended(&mut self) -> ExitStatus {
        self.wait()
    }

    /// Waits until the daemon is healthy, or has ended; returns which.
    pub fn forwards_or_has_ended(&mut self) -> bool {
        wait::until("xvsd is healthy or has ended", || {
            if self.process.try_wait().expect("xvsd is a child of this process").is_some() {
                return Some(false);
            }
            let healthy = self.cluster.command(Host::Director, program("xvs")).arg("healthy").output();
            healthy.expect("xvs can be started").status.success().then_some(true)
        })
    }

    /// Waits for the end of a daemon whose reload has started a successor, which has the same log and is ended on drop.
    pub fn is_taken_over(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{status}: {}", self.log());
        self.is_successor = true;
    }

    /// Kills the daemon so that it can't clean up.
    pub fn kill(&mut self) {
        assert!(!self.is_successor, "the process that has started it has ended");
        self.process.kill().expect("xvsd runs");
        self.wait();
    }

    /// The daemon's process id.
    pub fn process(&self) -> u32 {
        self.process.id()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("xvsd runs");
    }

    /// Ends the daemon as systemd does, and returns its exit status.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Runs `xvsadm` with these arguments, which must succeed, and returns its output.
    ///
    /// # Panics
    ///
    /// With its output if its exit code is not 0.
    pub fn adm(&self, arguments: &str) -> String {
        succeed(&mut self.adm_command(arguments))
    }

    /// Runs `xvsadm` with these arguments and this input.
    pub fn adm_reading(&self, arguments: &str, input: &str) -> Output {
        let mut command = self.adm_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("scripts/netlab can be started");
        let mut stdin = process.stdin.take().expect("stdin is piped");
        thread::scope(|scope| {
            // A command that stops reading early breaks the pipe; its exit code shows the cause.
            scope.spawn(move || stdin.write_all(input.as_bytes()));
            process.wait_with_output().expect("xvsadm is a child of this process")
        })
    }

    /// Runs `xvs status` and returns its output, wrapped lines joined.
    ///
    /// # Panics
    ///
    /// With its output if its exit code is not 0.
    pub fn status(&self) -> String {
        self.xvs("status").replace("\n           ", " ")
    }

    /// Runs `xvs` with these arguments and returns its output.
    ///
    /// # Panics
    ///
    /// As [`Self::status`].
    pub fn xvs(&self, arguments: &str) -> String {
        let mut command = self.cluster.command(self.host, program("xvs"));
        succeed(command.args(arguments.split_whitespace()))
    }

    /// Adds a round-robin service of the VIP with both real servers, unless an earlier daemon has left it.
    pub fn add_service(&self, protocol: Protocol, port: u16, method: Method) {
        let service = format!("{} {}", protocol.option(), virtual_endpoint(port));
        if self.adm("-Sn").contains(&format!("-A {service} ")) {
            return;
        }
        self.adm(&format!("-A {service} -s rr"));
        for number in 1..=REAL_SERVERS.len() as u8 {
            self.adm(&format!("-a {service} -r {}:{port} {}", real_server(number), method.option()));
        }
    }

    /// Everything the daemon has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the log was made before the daemon")
    }

    fn adm_command(&self, arguments: &str) -> Command {
        let mut command = self.cluster.command(self.host, program("xvsadm"));
        command.args(arguments.split_whitespace());
        command
    }
}

impl Drop for Director<'_> {
    fn drop(&mut self) {
        if self.is_successor {
            // It fails if another successor or the test has ended this one.
            let _ = self.cluster.command(self.host, program("xvs")).args(["stop", "--release"]).output();
        }
        // Neither call fails for a daemon that has ended already; another failure cannot be handled here.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            eprintln!("---- log of xvsd\n{}", self.log());
        }
    }
}

/// Protocol of a virtual service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `-t`
    Tcp,
    /// `-u`
    Udp,
}

impl Protocol {
    /// The option of `xvsadm`.
    pub fn option(self) -> &'static str {
        match self {
            Self::Tcp => "-t",
            Self::Udp => "-u",
        }
    }
}

/// The process that listens on the socket of a host's director, also if another one has started it.
///
/// # Panics
///
/// If none does.
pub fn process(cluster: &Cluster, host: Host) -> Pid {
    let stream = UnixStream::connect(cluster.socket(host)).expect("xvsd listens");
    socket_peercred(stream).expect("a Unix socket has credentials").pid
}

/// Path of one of the workspace's programs, in the build folder of the running test.
///
/// # Panics
///
/// If it was not built: `cargo test --workspace` builds the programs, `cargo test --test NAME` does not.
pub fn program(name: &str) -> PathBuf {
    let test = env::current_exe().expect("a running program has a path");
    // target/PROFILE/deps/TEST
    let folder = test.ancestors().nth(2).unwrap_or(Path::new("/"));
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing; `cargo build --workspace` makes it", path.display());
    path
}
