//! What would become of a packet, and why, with no effect.
//!
//! Runs when an operator asks, on the thread of who asks, never on a worker. The packet goes through the stages that every
//! packet goes through, over a port in memory, a copy of the configuration (`snapshot/apart.rs`) and a table of its own
//! with the same secret. What the stages look for there in vain is looked for in the live table as a listing does, copied,
//! and the stages are run anew, until they miss nothing that is there: so no second list says what a packet depends on.
//! Then what they did is read off.
//!
//! Promise: nothing that workers, listings or counters see has changed. What cannot be known is said by [`Caveat`]s: what a
//! worker draws at random, and what only it remembers. Cost: that of a copy of the configuration, and a table in memory,
//! for each run; mostly two or three of them. Not here: words (`ctl`, `explain.rs`).

mod dry_run;
mod pass_reason;
mod result;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use xvs_proto::Packet;
use xvs_sched::ServiceKey;

use crate::burst::classify::Class;
use crate::clock::Millis;
use crate::conn::{Copied, Direction, Sought, TableReader};
use crate::egress::Path;
use crate::egress::RouteTo;
use crate::explain::dry_run::DryRun;
use crate::port::memory::Bytes;
use crate::snapshot::Snapshot;
use crate::snapshot::marks::Step;
use crate::verdict::Verdict;
use xvs_proto::LinkId;
use xvs_xdp::FrameLayout;

pub use crate::snapshot::copy::{Candidate, Decision};

/// The director as it is.
pub struct Live<'a> {
    /// What is in force.
    pub snapshot: &'a Snapshot,
    /// The way to the connections; taken for the moment of a look-up.
    pub reader: &'a Mutex<TableReader>,
    /// What time it is for the workers.
    pub now: Millis,
}

impl Live<'_> {
    /// The reader; a panic elsewhere leaves it whole.
    fn reader(&self) -> MutexGuard<'_, TableReader> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a packet.
#[derive(Debug)]
pub struct Explanation {
    /// Where it comes in, after a VLAN's tag was taken off.
    pub link: LinkId,
    /// What it is.
    pub class: Class,
    /// The packet that an ICMP error quotes.
    pub quote: Option<Packet>,
    /// The connection that it meets, as it is now, and which way it goes there.
    pub met: Option<(Copied, Direction)>,
    /// Its firewall mark; 0: none.
    pub mark: u32,
    /// The last rule that changed the mark.
    pub marked_by: Option<Step>,
    /// The service that it belongs to, or whose connection it meets.
    pub service: Option<ServiceKey>,
    /// What the scheduler was asked, if it was.
    pub decision: Option<Decision>,
    /// The template that says where its connection goes, as it then is.
    pub template: Option<(Origin, Copied)>,
    /// Its connection as it then is.
    pub connection: Option<(Origin, Copied)>,
    /// Where it is sent to, or should be.
    pub route: Option<Route>,
    /// What becomes of it in the end.
    pub verdict: Verdict,
    /// Why the kernel gets it, if it does.
    pub why_passed: Option<&'static str>,
    /// Whether its connection is reset by it; its sender's reset is the last that leaves.
    pub resets: bool,
    /// What leaves: it, in pieces perhaps, or what its sender is told.
    pub sent: Vec<Bytes>,
    /// What may be otherwise.
    pub caveats: Vec<Caveat>,
}

/// Whether something was there before the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was.
    Found,
    /// The packet makes it.
    Made,
}

/// The way to the next machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// To whom: a destination or a client.
    pub to: IpAddr,
    /// By which route.
    pub result: RouteTo,
    /// Whether it can be gone.
    pub path: Path,
}

/// Why what happens may differ from what was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caveat {
    /// `drop_packet` is in force: one of so many packets that would begin a connection is dropped.
    DropPacket {
        /// Of how many.
        rate: u32,
    },
    /// The scheduler draws.
    Drawn,
    /// The local port is the next free one of the worker that the packet meets.
    LocalPort,
    /// The table is full: whose place a new connection takes, if any, depends on the worker.
    TableFull,
    /// It is one fragment of a datagram: what others wait at the worker is not known.
    Fragment,
    /// Its sender is told unless too many were told in this second.
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

/// Bytes that a frame can have at most: more than any interface's that packets of services come in by.
pub const FRAME_BYTES: usize = (LAYOUT.frame_size_bytes - LAYOUT.headroom_bytes) as usize;

/// Frames as AF_XDP has them; enough for a packet and all its pieces.
const LAYOUT: FrameLayout = FrameLayout { frame_size_bytes: 4096, headroom_bytes: 256, frames: 256 };
/// How often the stages are run at most: FULLNAT looks at so many local ports, and once more finds none.
const RUNS: usize = 80;

/// What would become of a frame that came in by a link.
///
/// # Errors
/// `InvalidInput` if it is longer than [`FRAME_BYTES`]; else the machine has no memory for a small table.
pub fn explain(live: &Live<'_>, link: LinkId, frame: &[u8]) -> io::Result<Explanation> {
    if frame.len() > FRAME_BYTES {
        let text = format!("a frame of {} bytes; at most {FRAME_BYTES} are possible", frame.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let copy = |sought: Sought| live.reader().copy(&sought, &live.snapshot.call_ids);
    let (mut known, mut tried) = (Vec::new(), HashSet::new());
    for _ in 0..RUNS {
        let mut run = DryRun::run(live, &known, link, frame)?;
        let missed = run.missed().into_iter().filter(|sought| tried.insert(*sought));
        let found: Vec<Copied> = missed.filter_map(copy).collect();
        if found.is_empty() {
            return Ok(run.into_explanation(live));
        }
        known.extend(found);
    }
    Ok(DryRun::run(live, &known, link, frame)?.into_explanation(live))
}
