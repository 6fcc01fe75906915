//! An interface's properties and XDP program; read only.
//!
//! For `xvs doctor`, with or without a running director. Cost: some requests to the kernel. Fields that the driver does
//! not report, or that the process may not read, are empty.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

use super::bpf::{XdpState, program_info, query_xdp};
use super::mode::Mode;
use super::pins;
use super::sys::{Request, index_of};

/// An interface in this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's index.
    pub ifindex: u32,
    /// The driver's name; empty if unknown.
    pub driver: String,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// The largest packet that the interface sends, in bytes, without link header.
    pub mtu: u32,
    /// The number of receive queues.
    pub receive_queues: u32,
    /// Maximum number of receive queues; 0 if the driver does not report it.
    pub most_receive_queues: u32,
    /// The `ethtool -L` argument that sets the number of receive queues.
    pub queues_word: &'static str,
    /// The enabled features, by the names in `ethtool -k`. Features that share a name there have separate names here.
    pub features: BTreeSet<String>,
    /// Whether the driver runs XDP programs and executes their redirects. Kernels before 6.3 do not report this; the
    /// field is then `false`.
    pub native: bool,
    /// Whether the driver shares frames with sockets without copying; like `native` with kernels before 6.3.
    pub zero_copy: bool,
    /// The interface's XDP program.
    pub program: Option<Program>,
}

/// Whether an interface is up and has a carrier.
///
/// # Errors
///
/// The kernel's error, ENODEV if there is no such interface.
pub fn has_carrier(interface: &str) -> io::Result<bool> {
    Request::new(interface)?.has_carrier()
}

/// The number of receive queues of an interface.
pub fn receive_queues(interface: &str) -> io::Result<u32> {
    Request::new(interface)?.receive_queues()
}

/// The `ethtool -L` argument that sets an interface's number of receive queues.
pub fn receive_queues_word(interface: &str) -> &'static str {
    Request::new(interface)
        .and_then(|mut request| request.most_receive_queues())
        // The interface is gone.
        .map_or("combined", |(word, _)| word)
}

/// Sets an interface's number of receive queues. The kernel refuses to remove one that has a socket.
#[derive(Debug, Serialize, Deserialize)]
pub struct SetReceiveQueues {
    /// The interface's name.
    pub interface: String,
    /// The kernel's index of it.
    pub index: u32,
    /// The number.
    pub queues: u32,
}

impl Task for SetReceiveQueues {
    const NAME: &'static str = "set-receive-queues";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        if index_of(&self.interface)? != self.index {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        Request::new(&self.interface)?.set_receive_queues(self.queues)?;
        Ok(((), Vec::new()))
    }
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The kernel's id.
    pub id: u32,
    /// Where it runs. `None`: in the device itself.
    pub mode: Option<Mode>,
    /// The program's owner. `None` if this process may not read it.
    pub owner: Option<Owner>,
    /// The process that keeps the program attached through a BPF link, which `ip link` cannot remove. `None` if there
    /// is no such process, or this process may not read it.
    pub process: Option<u32>,
    /// The name of the director that has pinned the program. `None` if there is none, or this process may not read it.
    pub pinned_by: Option<String>,
}

/// The owner of an XDP program, derived from the program's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A director.
    Director,
    /// `xvs realserver`.
    RealServer,
    /// Another one, by the program's name.
    Other(String),
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Some(Owner::Director) => f.write_str("that of another xvsd")?,
            Some(Owner::RealServer) => f.write_str("that of `xvs realserver`")?,
            Some(Owner::Other(name)) if !name.is_empty() => write!(f, "{name}, id {}", self.id)?,
            _ => write!(f, "id {}", self.id)?,
        }
        self.process.map_or(Ok(()), |process| write!(f, ", held by process {process}"))
    }
}

impl Device {
    /// Reads the interface with this name.
    ///
    /// # Errors
    ///
    /// ENODEV if there is none; otherwise the kernel's error.
    pub fn look(interface: &str) -> io::Result<Self> {
        let ifindex = index_of(interface)?;
        let mut request = Request::new(interface)?;
        let xdp = query_xdp(ifindex)?;
        let (queues_word, most_receive_queues) = request.most_receive_queues()?;
        let native = BASIC | REDIRECT;
        let zero_copy = native | ZERO_COPY;
        Ok(Self {
            ifindex,
            driver: request.driver()?,
            loopback: request.is_loopback()?,
            mtu: request.mtu()?,
            receive_queues: request.receive_queues()?,
            most_receive_queues,
            queues_word,
            features: request.features()?,
            native: xdp.features & native == native,
            zero_copy: xdp.features & zero_copy == zero_copy,
            program: Program::of(ifindex, &xdp),
        })
    }
}

impl Program {
    /// The XDP program on the interface with this index, if there is one.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn on(ifindex: u32) -> io::Result<Option<Self>> {
        Ok(Self::of(ifindex, &query_xdp(ifindex)?))
    }

    /// The command that removes the program; `None` if only the end of its process does.
    pub fn detach_command(&self, interface: &str) -> Option<String> {
        let kind = if self.mode == Some(Mode::Generic) { "xdpgeneric" } else { "xdp" };
        match (self.process, &self.owner) {
            // A BPF link ends with its process.
            (Some(_), _) | (None, Some(Owner::Director)) => None,
            (None, Some(Owner::RealServer)) => Some("xvs realserver down --vip ADDRESS".to_owned()),
            (None, _) => Some(format!("ip link set dev {interface} {kind} off")),
        }
    }

    /// How to remove the program, as a clause.
    pub fn remedy(&self, interface: &str) -> String {
        match (self.detach_command(interface), &self.owner) {
            (Some(command), _) => format!("`{command}` removes it"),
            (None, Some(Owner::Director)) => "stop that xvsd".to_owned(),
            (None, _) => "stop that process".to_owned(),
        }
    }

    fn of(ifindex: u32, found: &XdpState) -> Option<Self> {
        let (id, mode) = found.program?;
        let owner = program_info(id).ok().map(|info| match info.name.as_str() {
            DIRECTOR_PROGRAM => Owner::Director,
            REAL_SERVER_PROGRAM => Owner::RealServer,
            _ => Owner::Other(info.name),
        });
        let pinned_by = pins::folder().and_then(|folder| pins::director_of(&folder, id, ifindex));
        Some(Self { id, mode, owner, process: holder(ifindex, id), pinned_by })
    }
}

/// The process that has the BPF link between this program and this interface open. Cost: reads the information about
/// each descriptor of each process.
fn holder(ifindex: u32, program: u32) -> Option<u32> {
    let wanted = [format!("prog_id:\t{program}"), format!("ifindex:\t{ifindex}")];
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .find(|pid| has_descriptor(*pid, &wanted))
}

/// Whether a process has a descriptor whose information contains these lines.
fn has_descriptor(pid: u32, wanted: &[String]) -> bool {
    fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|descriptor| fs::read_to_string(descriptor.path()).unwrap_or_default())
        .any(|info| wanted.iter().all(|wanted| info.lines().any(|line| line == wanted)))
}

/// The name of the director's XDP program.
const DIRECTOR_PROGRAM: &str = "redirect";
/// The name of the XDP program that decapsulates on a real server.
const REAL_SERVER_PROGRAM: &str = "xvs_decap";
/// `enum netdev_xdp_act` (linux/netdev.h).
const BASIC: u64 = 1;
const REDIRECT: u64 = 1 << 1;
const ZERO_COPY: u64 = 1 << 3;
