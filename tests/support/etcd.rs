//! A real etcd, with TLS and client certificates, of one member on the second real server, or of three on the first
//! three.
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

const PORT: u16 = 2379;
/// Of the members among themselves.
const PEER_PORT: u16 = 2380;

/// A running member of etcd; killed when dropped.
#[derive(Debug)]
pub struct Etcd<'a> {
    cluster: &'a Cluster,
    /// That of its real server.
    number: u8,
    process: Child,
    folder: PathBuf,
    data: PathBuf,
    options: Vec<String>,
}

impl<'a> Etcd<'a> {
    /// Starts an empty etcd with these options, and waits until it answers.
    ///
    /// # Panics
    ///
    /// If a program of `scripts/setup` is missing, or etcd does not answer.
    pub fn start(cluster: &'a Cluster, options: &[&str]) -> Self {
        let folder = certified(cluster, &[2]);
        let data = folder.join("data");
        let options = options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let process = launch(cluster, 2, &folder, &data, &options);
        let this = Self { cluster, number: 2, process, folder, data, options };
        this.answers();
        this
    }

    /// Starts an empty etcd of three members with these options, and waits until each answers. The data of each is in a
    /// folder of [`Self::data`], which `prepare` can replace by another file system before.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub fn start_three(cluster: &'a Cluster, options: &[&str], prepare: impl Fn(&Path)) -> [Self; 3] {
        let numbers = [1, 2, 3];
        let folder = certified(cluster, &numbers);
        let peer = |number| format!("http://{}:{PEER_PORT}", real_server(number));
        let all = numbers.map(|number| format!("m{number}={}", peer(number))).join(",");
        let members = numbers.map(|number| {
            let data = folder.join(number.to_string()).join("data");
            fs::create_dir_all(&data).expect("the folder takes a new one");
            prepare(&data);
            fs::set_permissions(&data, Permissions::from_mode(0o700)).expect("it was made above");
            let name = format!("m{number}");
            let own =
                ["--name", &name, "--initial-cluster", &all, "--initial-advertise-peer-urls", &peer(number)];
            let own = own.into_iter().chain(options.iter().copied()).map(str::to_owned);
            let options: Vec<_> = own.chain(["--listen-peer-urls".to_owned(), peer(number)]).collect();
            let process = launch(cluster, number, &folder, &data, &options);
            Self { cluster, number, process, folder: folder.clone(), data, options }
        });
        members.iter().for_each(Self::answers);
        members
    }

    /// The folder of its data.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its address.
    pub fn address() -> Ipv4Addr {
        real_server(2)
    }

    /// The section of xvs.toml that follows it. The first member of etcd does not run.
    pub fn toml(&self, director: &str) -> String {
        let urls = [PORT + 10, PORT].map(|port| format!("https://{}:{port}", Self::address()));
        self.section(director, &urls)
    }

    /// The section of xvs.toml that follows the three members.
    pub fn toml_of_three(&self, director: &str) -> String {
        let urls = [1, 2, 3].map(|number| format!("https://{}:{PORT}", real_server(number)));
        self.section(director, &urls)
    }

    fn section(&self, director: &str, urls: &[String]) -> String {
        let folder = self.folder.display();
        format!(
            "[fleet]\netcd = {urls:?}\nname = \"prod\"\ndirector = \"{director}\"\n\
             ca_file = \"{folder}/cert.pem\"\ncertificate_file = \"{folder}/cert.pem\"\n\
             private_key_file = \"{folder}/key.pem\"\n",
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
        self.start_at_once();
        self.answers();
    }

    /// The same, and returns at once.
    pub fn start_at_once(&mut self) {
        self.process = launch(self.cluster, self.number, &self.folder, &self.data, &self.options);
    }

    /// Whether it runs.
    ///
    /// # Panics
    ///
    /// If it is waited for elsewhere.
    pub fn runs(&mut self) -> bool {
        self.process.try_wait().expect("etcd is a child of this process").is_none()
    }

    /// Replaces its data by those of a snapshot of `etcdctl snapshot save`. It must not run.
    pub fn restore(&self, snapshot: &str) {
        let data = &self.data;
        fs::remove_dir_all(data).expect("etcd has data");
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
        let mut command = self.cluster.command(Host::RealServer(self.number), "etcdctl");
        command.env("ETCDCTL_API", "3");
        let file = |name: &str| self.folder.join(name).display().to_string();
        command.args(["--cacert", &file("cert.pem"), "--cert", &file("cert.pem"), "--key", &file("key.pem")]);
        command.args(["--endpoints", &format!("https://{}:{PORT}", real_server(self.number))]);
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

/// The folder of an etcd, with a key and a certificate of the members on these real servers.
fn certified(cluster: &Cluster, numbers: &[u8]) -> PathBuf {
    let folder = cluster.state().join("etcd");
    fs::create_dir(&folder).expect("the cluster's folder takes a new one");
    let [key, certificate] = ["key.pem", "cert.pem"].map(|name| folder.join(name));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    let names: Vec<_> = numbers.iter().map(|number| format!("IP:{}", real_server(*number))).collect();
    openssl.args(["-subj", "/CN=etcd", "-addext", &format!("subjectAltName={}", names.join(","))]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    succeed(openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
    fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("it was made above");
    // Of an xvsd that is not root.
    succeed(Command::new("chown").arg("daemon").arg(&key));
    folder
}

fn launch(cluster: &Cluster, number: u8, folder: &Path, data: &Path, options: &[String]) -> Child {
    let url = format!("https://{}:{PORT}", real_server(number));
    let mut command = cluster.command(Host::RealServer(number), "etcd");
    command.arg("--data-dir").arg(data);
    command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url, "--client-cert-auth"]);
    command.arg("--cert-file").arg(folder.join("cert.pem")).arg("--key-file").arg(folder.join("key.pem"));
    command.arg("--trusted-ca-file").arg(folder.join("cert.pem")).args(["--log-level", "error"]);
    let log = File::options().create(true).append(true).open(folder.join("log"));
    command.args(options).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(log.expect("the folder takes a file"));
    command.spawn().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"))
}
