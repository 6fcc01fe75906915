//! An interface's properties and its XDP program, read and not changed.
//!
//! For `xvs doctor`, with or without a running director. Cost: some requests to the kernel. What the driver or the
//! rights of the process withhold is left empty. Not here: whether any of it is a problem.

use std::collections::BTreeSet;
use std::io;

use super::bpf::{XdpState, program_info, query_xdp};
use super::mode::{Mode, stacked};
use super::sys::{Request, index_of};

/// An interface of this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's index.
    pub ifindex: u32,
    /// Its driver; empty if unknown.
    pub driver: String,
    /// `bond`, `bridge` or `team`, if it consists of other interfaces.
    pub stacked: Option<&'static str>,
    /// The largest packet that it sends, in bytes, without link header.
    pub mtu: u32,
    /// Its receive queues.
    pub receive_queues: u32,
    /// The most receive queues that it can have; 0 if the driver does not say.
    pub most_receive_queues: u32,
    /// The word of `ethtool -L` that sets the number of receive queues.
    pub queues_word: &'static str,
    /// The features that are on, by the names of `ethtool -k`; features that have one name there are listed by their
    /// own names.
    pub features: BTreeSet<String>,
    /// Whether the driver runs XDP programs and executes their redirects. Kernels before 6.3 do not say, which reads as
    /// `false`.
    pub native: bool,
    /// Whether the driver shares frames with sockets without copying. As for `native`.
    pub zero_copy: bool,
    /// Its XDP program.
    pub program: Option<Program>,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The kernel's id.
    pub id: u32,
    /// Where it runs. `None`: in the device itself.
    pub mode: Option<Mode>,
    /// Its owner. `None` if this process may not read it.
    pub owner: Option<Owner>,
}

/// The owner of an XDP program, by the program's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A director.
    Director,
    /// `xvs realserver`.
    RealServer,
    /// Another one, by the program's name.
    Other(String),
}

impl Device {
    /// Reads the interface of this name.
    ///
    /// # Errors
    /// ENODEV if there is none; otherwise the kernel's error.
    pub fn look(interface: &str) -> io::Result<Self> {
        let ifindex = index_of(interface)?;
        let mut request = Request::new(interface)?;
        let xdp = query_xdp(ifindex)?;
        let (queues_word, most_receive_queues) = request.most_receive_queues()?;
        let has = |wanted: u64| xdp.features & wanted == wanted;
        Ok(Self {
            ifindex,
            driver: request.driver()?,
            stacked: stacked(interface)?,
            mtu: request.mtu()?,
            receive_queues: request.receive_queues()?,
            most_receive_queues,
            queues_word,
            features: request.features()?,
            native: has(BASIC | REDIRECT),
            zero_copy: has(BASIC | REDIRECT | ZERO_COPY),
            program: Program::of(&xdp),
        })
    }
}

impl Program {
    fn of(found: &XdpState) -> Option<Self> {
        let (id, mode) = found.program?;
        let owner = program_info(id).ok().map(|info| match info.name.as_str() {
            DIRECTOR_PROGRAM => Owner::Director,
            REAL_SERVER_PROGRAM => Owner::RealServer,
            _ => Owner::Other(info.name),
        });
        Some(Self { id, mode, owner })
    }
}

/// The name of the director's XDP program.
const DIRECTOR_PROGRAM: &str = "redirect";
/// The name of the XDP program that decapsulates on a real server.
const REAL_SERVER_PROGRAM: &str = "xvs_decap";
/// `enum netdev_xdp_act` (linux/netdev.h).
const BASIC: u64 = 1;
const REDIRECT: u64 = 1 << 1;
const ZERO_COPY: u64 = 1 << 3;
