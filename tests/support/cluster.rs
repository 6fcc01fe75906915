//! A cluster of namespaces, from `scripts/netlab up` to its drop.
//!
//! Made at the start of a test, removed at its end, also by a panic; `scripts/netlab sweep` removes the
//! clusters of a killed test run, which it finds by the run's process id. Addresses are those in netlab's diagram.
//! Not here: the daemon, the VIP on the real servers.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::director::program;
use crate::namespace;

/// The virtual address; the director's kernel has it on `wan`, as IPVS operators do.
pub const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);

/// The same in IPv6.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);

/// The director's own address on `wan`.
pub const DIRECTOR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// The cluster's real servers.
pub const REAL_SERVERS: [Host; 2] = [Host::RealServer(1), Host::RealServer(2)];

/// One machine of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// 198.51.100.10, and 192.0.2.254 for replies that bypass the director.
    Client,
    /// Interfaces `wan` and `lan`.
    Director,
    /// Another director, of [`Cluster::add_backup`]: interface `lan`, 192.0.2.2.
    Backup,
    /// A further director of [`Cluster::make_fleet`], by its number, from 3.
    Further(u8),
    /// The router of [`Cluster::make_fleet`]: 198.51.100.1 on `wan`, 192.0.2.254 on `lan`.
    Router,
    /// Real server by its number, from 1.
    RealServer(u8),
    /// The bridge between director, real servers and the client's interface `back`.
    Switch,
}

impl Host {
    /// Name in netlab, which is also the name in pages and replies.
    pub fn name(self) -> String {
        match self {
            Self::Client => "cl".to_owned(),
            Self::Director => "dr".to_owned(),
            Self::Backup => "dr2".to_owned(),
            Self::Further(number) => format!("dr{number}"),
            Self::Router => "rt".to_owned(),
            Self::RealServer(number) => format!("rs{number}"),
            Self::Switch => "sw".to_owned(),
        }
    }
}

/// The real server's own address.
pub fn real_server(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + number)
}

/// The same in IPv6.
pub fn real_server6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10 + u16::from(number))
}

/// The kind of the director's `wan`.
#[derive(Clone, Copy, Debug)]
pub enum Wan {
    /// A veth, whose driver has native XDP.
    Veth,
    /// A macvlan, whose driver does not have it.
    Macvlan,
}

/// The director's side of a cluster, and the number of real servers.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// RX and TX queues of each of the director's interfaces.
    pub queues: u8,
    /// The interface towards the client.
    pub wan: Wan,
    /// Real servers, up to 4.
    pub servers: u8,
}

impl Default for Layout {
    fn default() -> Self {
        Self { queues: 1, wan: Wan::Veth, servers: 2 }
    }
}

/// A running cluster; removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    state: PathBuf,
}

impl Cluster {
    /// Makes a cluster: one client, the director, real servers with nginx.
    ///
    /// # Panics
    ///
    /// With netlab's message if it fails.
    pub fn up(layout: Layout) -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        // Relaxed: the numbers only have to differ.
        let name = format!("xvs-t{}-{}", process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut command = netlab("up", &name);
        command.args(["--owner", &process::id().to_string(), "--queues", &layout.queues.to_string()]);
        command.args(["--servers", &layout.servers.to_string()]);
        if matches!(layout.wan, Wan::Macvlan) {
            command.arg("--generic");
        }
        let state = PathBuf::from(succeed(&mut command).trim_end());
        Self { name, state }
    }

    /// Adds a second director.
    ///
    /// # Panics
    ///
    /// With netlab's message if it fails.
    pub fn add_backup(&self) {
        succeed(&mut netlab("backup", &self.name));
    }

    /// Makes from 2 to 5 directors that are one-armed behind a router of their own.
    ///
    /// # Panics
    ///
    /// With netlab's message if it fails.
    pub fn make_fleet(&self, directors: usize) {
        succeed(netlab("fleet", &self.name).args(["--directors", &directors.to_string()]));
    }

    /// Makes a cluster with two directors; the real servers have a virtual address and reply themselves.
    ///
    /// # Panics
    ///
    /// With the message of netlab or of `xvs realserver` if it fails.
    pub fn with_backup(vip: Ipv4Addr) -> Self {
        let cluster = Self::up(Layout::default());
        cluster.add_backup();
        let vip = vip.to_string();
        for server in REAL_SERVERS {
            let mut command = cluster.command(server, program("xvs"));
            succeed(command.args(["realserver", "up", "--vip", &vip, "--method", "dr", "--dev", "lan"]));
        }
        cluster
    }

    /// Runs `ip` with these arguments on a host and returns what it prints.
    ///
    /// # Panics
    ///
    /// With its message if it fails.
    pub fn ip(&self, host: Host, words: &str) -> String {
        succeed(self.command(host, "ip").args(words.split_whitespace()))
    }

    /// A program for one of the hosts; the cluster ends it if it still runs then.
    pub fn command(&self, host: Host, program: impl AsRef<Path>) -> Command {
        // As `netlab exec` does, without its shell: a test runs hundreds of commands.
        let mut command = Command::new(self.state.join("enter"));
        command.env_remove("XVS_SOCKET").arg(&self.state).arg(host.name()).arg(program.as_ref());
        command
    }

    /// Runs `work` on one of the hosts: its sockets are in that host's namespace.
    pub fn run<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> T {
        namespace::run(&self.namespace(host), work)
    }

    /// Name of a host's namespace.
    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.name, host.name())
    }

    /// The control socket of a host's director.
    pub fn socket(&self, host: Host) -> PathBuf {
        self.state.join(host.name()).join("run/xvsd.sock")
    }

    /// Folder for the logs of the cluster's programs; removed with the cluster.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The content of `/blob` of every real server's nginx: 20 MB of random bytes.
    pub fn blob(&self) -> Vec<u8> {
        fs::read(self.state.join("blob")).expect("netlab wrote the file when it made the cluster")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A panic in a drop during a panic would abort the run; `sweep` removes what stays after a failure here.
        match netlab("down", &self.name).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("netlab down --name {}: {other:?}", self.name),
        }
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Panics
///
/// If it can't be started or exits with another code than 0, with all its output.
pub fn succeed(command: &mut Command) -> String {
    let output = complete(command);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed, {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Runs a command to its end.
///
/// # Panics
///
/// If it can't be started.
pub fn complete(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"))
}

/// `ADDRESS:PORT` of the virtual address.
pub fn virtual_endpoint(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(VIP, port)
}

fn netlab(action: &str, name: &str) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/netlab"));
    command.args([action, "--name", name]);
    command
}
