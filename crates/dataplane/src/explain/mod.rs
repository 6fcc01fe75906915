//! The explanation of a packet's fate in the director, without any effect.
//!
//! Runs when an operator requests it, on the thread of the request, never on a worker. The packet passes through the
//! same stages as every packet, with a port in memory, a copy of the configuration (`snapshot/copy.rs`) and a small
//! table with the same secret. Look-ups that find nothing there are repeated in the live table; their results are
//! copied, and the stages run again, until no look-up misses a connection that exists. The stages themselves thereby
//! find everything on which a packet depends. The explanation is then read from their state.
//!
//! Workers, listings and counters see no change. [`Caveat`]s name the unknown: random choices of a worker, and state
//! that only the worker has. Cost: a copy of the configuration and a table in memory for each run, and usually two or
//! three runs. `ctl` writes the sentences of an explanation.

mod dry_run;
mod pass_reason;
mod result;

use std::collections::HashSet;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xvs_proto::network::RouteKey;
use xvs_proto::{LinkId, Packet};
use xvs_sched::ServiceKey;
use xvs_xdp::FrameLayout;

use self::dry_run::DryRun;
use crate::burst::classify::Class;
use crate::clock::Millis;
use crate::conn::{Copied, Direction, TableReader};
use crate::egress::{Path, RouteTo};
use crate::offload::{NotOffloaded, Offload};
use crate::port::memory::Bytes;
use crate::snapshot::Snapshot;
use crate::snapshot::marks::Step;
use crate::verdict::Verdict;

pub use crate::snapshot::copy::{Candidate, Decision};

/// The live state of the director.
pub struct Live<'a> {
    /// The snapshot in force.
    pub snapshot: &'a Snapshot,
    /// A reader of the connections; locked only during a look-up.
    pub reader: &'a Mutex<TableReader>,
    /// The time of the workers.
    pub now: Millis,
    /// The offload of connections; `None`: it is off.
    pub offload: Option<&'a Offload>,
}

impl Live<'_> {
    /// Locks the reader. A panic in another thread leaves it intact.
    fn reader(&self) -> MutexGuard<'_, TableReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The explanation of a packet.
#[derive(Debug)]
pub struct Explanation {
    /// The link on which the packet is received, after VLAN tags were removed.
    pub link: LinkId,
    /// The packet's class.
    pub class: Class,
    /// The packet that an ICMP error quotes.
    pub quote: Option<Packet>,
    /// The existing connection to which the packet belongs, in its current state, and the packet's direction.
    pub met: Option<(Copied, Direction)>,
    /// Whether that connection is offloaded; `None` if there is none, or offload is off.
    pub offloaded: Option<Result<(), NotOffloaded>>,
    /// The packet's firewall mark; 0 if there is none.
    pub mark: u32,
    /// The last rule that changed the mark.
    pub marked_by: Option<Step>,
    /// The service that the packet matches, or that of its connection.
    pub service: Option<ServiceKey>,
    /// The choice that the packet's QUIC connection ID makes, and its reason; `None` if the service has no QUIC
    /// configurations.
    pub quic: Option<String>,
    /// The scheduler's decision, if there was one.
    pub decision: Option<Decision>,
    /// The template that determines the packet's destination, in its later state.
    pub template: Option<(Origin, Copied)>,
    /// The packet's connection, in its later state.
    pub connection: Option<(Origin, Copied)>,
    /// The route by which it is or should be sent.
    pub route: Option<Route>,
    /// The final verdict on it.
    pub verdict: Verdict,
    /// Why it goes to the kernel, if it does.
    pub why_passed: Option<&'static str>,
    /// The action of the SYN proxy, if any.
    pub syn_proxy: Option<&'static str>,
    /// Whether the packet makes the director reset its connection. The reset for the packet's sender is the last frame
    /// in `sent`.
    pub resets: bool,
    /// The frames that are sent: the packet, possibly in fragments, or an ICMP error to its sender; or the rewritten
    /// packet that the kernel gets.
    pub sent: Vec<Bytes>,
    /// The reasons why the director may act differently.
    pub caveats: Vec<Caveat>,
}

/// Whether a connection existed before the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It existed.
    Found,
    /// The packet creates it.
    Made,
}

/// The route to a destination or client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The key of the look-up: the address of the destination or client, and the fields that policy rules examine.
    pub key: RouteKey,
    /// The result of the route look-up.
    pub result: RouteTo,
    /// The path, with its link addresses if they are known.
    pub path: Path,
}

/// A reason why the director may act differently from the explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caveat {
    /// `drop_packet` is in force: one out of several packets that would begin a connection is dropped.
    DropPacket {
        /// The number of packets of which one is dropped.
        rate: u32,
    },
    /// The scheduler chooses at random.
    Drawn,
    /// The local port is the next free one of the worker that receives the packet.
    LocalPort,
    /// The table is full: the worker determines which connection is evicted for a new one, if any.
    TableFull,
    /// The packet is one fragment of a datagram; the fragments that wait at the worker are not known.
    Fragment,
    /// The packet's sender gets an ICMP error, unless the rate limit is reached.
    RateLimit,
}

impl Caveat {
    /// The name that programs read.
    pub fn name(self) -> &'static str {
        match self {
            Self::DropPacket { .. } => "drop_packet",
            Self::Drawn => "drawn",
            Self::LocalPort => "local_port",
            Self::TableFull => "table_full",
            Self::Fragment => "fragment",
            Self::RateLimit => "rate_limit",
        }
    }
}

/// The size of the largest explained frame, in bytes: larger than the MTU of any interface that receives packets for
/// services.
pub const FRAME_BYTES: usize = (LAYOUT.frame_size_bytes - LAYOUT.headroom_bytes) as usize;

/// Frames that contain any packet of the usual MTUs in one buffer, and more than the pipeline takes for one packet that
/// it does not fragment.
const LAYOUT: FrameLayout = FrameLayout { frame_size_bytes: 16 << 10, headroom_bytes: 256, frames: 8 };
/// The shortest payload of a fragment that is not the last: that of IPv4's least MTU, 68 bytes (RFC 791, section 3.2).
const SHORTEST_FRAGMENT: u32 = 48;
/// Maximum number of runs of the stages: one for each local port that FULLNAT may try, and one that finds no further
/// miss.
const RUNS: usize = 80;

/// Explains a frame that would be received on a link.
///
/// # Errors
///
/// `InvalidInput` if the frame is longer than [`FRAME_BYTES`]; otherwise the machine has no memory for a small table.
pub fn explain(live: &Live<'_>, link: LinkId, frame: &[u8]) -> io::Result<Explanation> {
    if frame.len() > FRAME_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a frame of {} bytes; at most {FRAME_BYTES} are possible", frame.len()),
        ));
    }
    let mut known = Vec::new();
    let mut tried = HashSet::new();
    for _ in 0..RUNS {
        let mut run = DryRun::run(live, &known, link, frame)?;
        let found: Vec<Copied> = run
            .missed()
            .into_iter()
            .filter(|sought| tried.insert(*sought))
            .filter_map(|sought| live.reader().copy(&sought, &live.snapshot.call_ids))
            .collect();
        if found.is_empty() {
            return Ok(run.into_explanation(live));
        }
        known.extend(found);
    }
    Ok(DryRun::run(live, &known, link, frame)?.into_explanation(live))
}
