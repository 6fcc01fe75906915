//! What an interface is, and who uses it: looked at, not changed.
//!
//! For `xvs doctor`, beside a running director or without one. Costs some requests to the kernel; what the driver or
//! the process's rights withhold is empty. Not here: what of it is wrong.

use std::collections::BTreeSet;
use std::io;

use super::bpf::{XdpState, program_info, query_xdp};
use super::mode::{Mode, stacked};
use super::sys::{Request, index_of};

/// An interface of this thread's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The kernel's index of it.
    pub ifindex: u32,
    /// Its driver; empty if it does not say.
    pub driver: String,
    /// `bond`, `bridge` or `team`, if it is made of other interfaces.
    pub stacked: Option<&'static str>,
    /// The largest packet it sends, in bytes, without link header.
    pub mtu: u32,
    /// Its receive queues.
    pub receive_queues: u32,
    /// How many it can have at most; 0 if the driver does not say.
    pub most_receive_queues: u32,
    /// By which word of `ethtool -L` it is given as many.
    pub queues_word: &'static str,
    /// The features that are on, as `ethtool -k` names them or, where that has a name for several, each by its own.
    pub features: BTreeSet<String>,
    /// Whether the driver runs programs and takes what they redirect. Kernels before 6.3 do not say, which looks like no.
    pub native: bool,
    /// Whether it shares frames with sockets, without copying. As for `native`.
    pub zero_copy: bool,
    /// The XDP program that it has.
    pub program: Option<Program>,
}

/// An XDP program on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number of it.
    pub id: u32,
    /// Where it runs; `None`: in the device itself.
    pub mode: Option<Mode>,
    /// Whose it is; `None` where this process may not ask.
    pub owner: Option<Owner>,
}

/// Whose an XDP program is, by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A director's.
    Director,
    /// That of `xvs realserver`.
    RealServer,
    /// Another, by its name.
    Other(String),
}

impl Device {
    /// Looks at the interface of this name.
    ///
    /// # Errors
    /// ENODEV if there is none; what the kernel says else.
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

/// The name of the director's XDP program, by which it is recognised.
const DIRECTOR_PROGRAM: &str = "redirect";
/// The name of the XDP program that decapsulates on a real server.
const REAL_SERVER_PROGRAM: &str = "xvs_decap";
/// `enum netdev_xdp_act` (linux/netdev.h).
const BASIC: u64 = 1;
const REDIRECT: u64 = 1 << 1;
const ZERO_COPY: u64 = 1 << 3;
