//! A real etcd of one member, with TLS and client certificates, on the second real server.
//!
//! Its data and certificates are in the cluster's folder. Not here: the directors that follow it.

use std::fs::{self, File, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::cluster::{Cluster, Host, complete, real_server, succeed};
use crate::wait;

const HOST: Host = Host::RealServer(2);
const PORT: u16 = 2379;

/// A running etcd; killed when dropped.
#[derive(Debug)]
pub struct Etcd<'a> {
    cluster: &'a Cluster,
    process: Child,
    folder: PathBuf,
    options: Vec<String>,
}

impl<'a> Etcd<'a> {
    /// Starts an empty etcd with these options, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If a program of `scripts/setup` is missing, or etcd does not answer.
    pub fn start(cluster: &'a Cluster, options: &[&str]) -> Self {
        let folder = cluster.state().join("etcd");
        fs::create_dir(&folder).expect("the cluster's folder takes a new one");
        let [key, certificate] = ["key.pem", "cert.pem"].map(|name| folder.join(name));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        let name = format!("subjectAltName=IP:{}", Self::address());
        openssl.args([
            "-subj",
            "/CN=etcd",
            "-addext",
            &name,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
        ]);
        succeed(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("it was made above");
        // Of an xvsd that is not root.
        succeed(Command::new("chown").arg("daemon").arg(&key));
        let options = options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let process = launch(cluster, &folder, &options);
        let this = Self { cluster, process, folder, options };
        this.answers();
        this
    }

    /// Its address.
    pub fn address() -> Ipv4Addr {
        real_server(2)
    }

    /// The section of xvs.toml that follows it. The first member of etcd does not run.
    pub fn toml(&self, director: &str) -> String {
        let folder = self.folder.display();
        format!(
            "[fleet]\netcd = [\"https://{0}:{1}\", \"https://{0}:{PORT}\"]\nname = \"prod\"\ndirector = \"{director}\"\n\
             ca_file = \"{folder}/cert.pem\"\ncertificate_file = \"{folder}/cert.pem\"\n\
             private_key_file = \"{folder}/key.pem\"\n",
            Self::address(),
            PORT + 10,
        )
    }

    /// Runs etcdctl with these words, which must succeed, and returns what it prints.
    ///
    /// # Panics
    ///
    /// With its message if it fails.
    pub fn ctl(&self, words: &[&str]) -> String {
        succeed(self.etcdctl().args(words))
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill().expect("etcd runs");
        self.process.wait().expect("etcd is a child of this process");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("etcd runs");
    }

    /// Starts it again, with the data that it has, and waits until it answers.
    pub fn start_again(&mut self) {
        self.process = launch(self.cluster, &self.folder, &self.options);
        self.answers();
    }

    /// Replaces its data by those of a snapshot of `etcdctl snapshot save`. It must not run.
    pub fn restore(&self, snapshot: &str) {
        let data = self.folder.join("data");
        fs::remove_dir_all(&data).expect("etcd has data");
        let mut etcdctl = Command::new("etcdctl");
        succeed(
            etcdctl.env("ETCDCTL_API", "3").args(["snapshot", "restore", snapshot, "--data-dir"]).arg(data),
        );
    }

    fn answers(&self) {
        wait::until("etcd answers", || {
            complete(self.etcdctl().args(["endpoint", "health"])).status.success().then_some(())
        });
    }

    /// The program etcdctl, with what it needs to reach this etcd.
    pub fn etcdctl(&self) -> Command {
        let mut command = self.cluster.command(HOST, "etcdctl");
        command.env("ETCDCTL_API", "3");
        let file = |name: &str| self.folder.join(name).display().to_string();
        command.args(["--cacert", &file("cert.pem"), "--cert", &file("cert.pem"), "--key", &file("key.pem")]);
        command.args(["--endpoints", &format!("https://{}:{PORT}", Self::address())]);
        command
    }
}

impl Drop for Etcd<'_> {
    fn drop(&mut self) {
        // Neither call fails for one that has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!(
                "---- log of etcd\n{}",
                fs::read_to_string(self.folder.join("log")).unwrap_or_default()
            );
        }
    }
}

fn launch(cluster: &Cluster, folder: &Path, options: &[String]) -> Child {
    let url = format!("https://{}:{PORT}", Etcd::address());
    let mut command = cluster.command(HOST, "etcd");
    command.arg("--data-dir").arg(folder.join("data"));
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--client-cert-auth"]);
    command.arg("--cert-file").arg(folder.join("cert.pem")).arg("--key-file").arg(folder.join("key.pem"));
    command.arg("--trusted-ca-file").arg(folder.join("cert.pem")).args(["--log-level", "error"]);
    let log = File::options().create(true).append(true).open(folder.join("log"));
    command.args(options).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log.expect("the folder takes a file"));
    command.spawn().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"))
}
