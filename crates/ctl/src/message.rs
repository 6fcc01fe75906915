//! What travels over the control socket: commands, requests, replies, refusals.
//!
//! A message is a 4-byte big-endian length and that many bytes of JSON. Every message carries
//! [`VERSION`]; a request gets one reply, or several parts of one with `more` set in all but the last, so that a
//! listing of connections never has to be in memory as a whole. Lengths are checked before anything is allocated.
//!
//! Not here: sockets ([`crate::server`], [`crate::client`]), and what a command means ([`crate::state`]).

use std::io::{self, Read, Write};
use std::net::IpAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use xvs_proto::{Endpoint, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight, scheduler};

use crate::capturing::{CaptureRequest, CapturedPacket, Missed};
use crate::events::{Asked, Heard};
use crate::explain::Question;
use crate::feedback::Server;
use crate::filter::Filter;
use crate::locals::LocalAddress;
use crate::marks::MarkRule;
use crate::plan::Difference;
use crate::state::{DestinationOptions, ServiceOptions, SyncDaemon, SyncRole, Timeouts};
use crate::traffic::Traffic;

/// The version of everything below. Both ends must have the same.
pub const VERSION: u32 = 2;

/// One change of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// A new service, without destinations.
    AddService {
        /// Which.
        key: ServiceKey,
        /// All that is said of it.
        options: ServiceOptions,
    },
    /// Replaces all options of a service; its destinations stay.
    EditService {
        /// Which.
        key: ServiceKey,
        /// All that is said of it.
        options: ServiceOptions,
    },
    /// Deletes a service with its destinations.
    DeleteService(ServiceKey),
    /// A new destination, before the others.
    AddDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
        /// All that is said of it.
        options: DestinationOptions,
    },
    /// Replaces all options of a destination; it keeps its place.
    EditDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
        /// All that is said of it.
        options: DestinationOptions,
    },
    /// Deletes a destination.
    DeleteDestination {
        /// Of which service.
        service: ServiceKey,
        /// Which.
        endpoint: Endpoint,
    },
    /// Deletes all services.
    Flush,
    /// Zeroes the counters of one service and its destinations, or of all.
    Zero(Option<ServiceKey>),
    /// New timeouts; a 0 keeps the value in force.
    SetTimeouts(Timeouts),
    /// Starts a synchronization daemon.
    StartDaemon(SyncDaemon),
    /// Stops one.
    StopDaemon(SyncRole),
    /// A new mark rule, behind the others.
    AddMark(MarkRule),
    /// Deletes the mark rule that says the same.
    DeleteMark(MarkRule),
    /// A new local address for FULLNAT.
    AddLocal(LocalAddress),
    /// Deletes a local address; connections that come from it go on.
    DeleteLocal(IpAddr),
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// One change; answered by [`Reply::Done`].
    Change(Command),
    /// Several changes, published at once. A refused one is reported and the others are carried out; answered by
    /// [`Reply::Restored`].
    Restore(Vec<Command>),
    /// Makes what runs as these rules want it, as one change, or not at all; answered by [`Reply::Applied`] with what
    /// differed.
    Apply {
        /// What makes the wanted state out of nothing.
        rules: Vec<Command>,
        /// After how many seconds it is taken back, if nobody confirms it.
        confirm_within_seconds: Option<u32>,
    },
    /// Decides about rules that were applied to be confirmed; answered by [`Reply::Done`], or by [`Reply::Applied`] with
    /// what was taken back.
    Confirm(Verdict),
    /// What makes the state that runs out of nothing; answered by [`Reply::Rules`].
    Rules,
    /// Every service; answered by [`Reply::Services`].
    ListServices,
    /// One service; answered by [`Reply::Services`] with one row.
    ListService(ServiceKey),
    /// Every connection and template; answered by [`Reply::Connections`] in parts.
    ListConnections,
    /// The connections, or templates, that fit, each with its detail; answered by [`Reply::Connections`] in parts.
    FindConnections(Filter),
    /// How many there are; answered by [`Reply::Report`] with a number.
    CountConnections(Filter),
    /// Ends those that fit, and tells nobody; answered by [`Reply::Report`] with their number.
    EndConnections(Filter),
    /// Has TCP connections that fit reset at their next packet, and ends others; answered by [`Reply::Report`] with
    /// [`Ended`](crate::connections::Ended).
    ResetConnections(Filter),
    /// The timeouts in force.
    Timeouts,
    /// The synchronization daemons that run.
    Daemons,
    /// The mark rules that were set; answered by [`Reply::Marks`].
    Marks,
    /// The local addresses of FULLNAT; answered by [`Reply::LocalAddresses`].
    LocalAddresses,
    /// How much of them is in use; answered by [`Reply::Report`] with a [`LocalReport`](crate::locals::LocalReport).
    LocalUse,
    /// Sets what `sysctl net.ipv4.vs.KEY` sets in the kernel, or `feedback.KEY`.
    Set {
        /// The setting's name.
        key: String,
        /// Its new value as typed.
        value: String,
    },
    /// A real server's load.
    ReportLoad {
        /// Whose.
        server: Server,
        /// 0 to 100.
        load_percent: f64,
    },
    /// Weights that follow load reports; answered by [`Reply::Report`] with
    /// [`FeedbackRow`](crate::feedback::FeedbackRow)s.
    Feedback,
    /// What is known of the health of real servers; answered by [`Reply::Report`].
    Health,
    /// How the daemon is; answered by [`Reply::Report`].
    Status,
    /// Whether the director moves; answered by [`Reply::Done`], or refused with what does not.
    Healthy {
        /// How long workers and the control thread may take to show it.
        within_millis: u32,
    },
    /// Every counter; answered by [`Reply::Report`].
    Counters,
    /// What carries how much; answered by [`Reply::Traffic`].
    Traffic,
    /// What changed and changes; answered by [`Reply::Events`] in parts.
    Events(Asked),
    /// What would become of a packet; answered by [`Reply::Report`] with a [`Report`](crate::explain::Report).
    Explain(Question),
    /// Packets as they pass, until the client sends anything more or hangs up; answered by [`Reply::Captured`] in parts,
    /// the first of which says that it has begun, and by [`Reply::CaptureEnded`].
    Capture(CaptureRequest),
    /// What `xvs doctor` compares with the machine; answered by [`Reply::Report`] with
    /// [`DaemonFacts`](crate::doctor::facts::DaemonFacts).
    Examine,
    /// Reads the keepalived.conf anew; answered by [`Reply::Report`] with a line that says what has changed.
    Reload,
}

impl Request {
    /// What it takes to be allowed to ask it.
    pub fn access(&self) -> Access {
        match self {
            Self::Change(_)
            | Self::Restore(_)
            | Self::Apply { .. }
            | Self::Confirm(_)
            | Self::EndConnections(_)
            | Self::ResetConnections(_)
            | Self::Set { .. }
            | Self::ReportLoad { .. }
            | Self::Reload => Access::Change,
            // What clients and servers say to each other is in them.
            Self::Capture(_) => Access::Change,
            Self::ListServices
            | Self::ListService(_)
            | Self::ListConnections
            | Self::FindConnections(_)
            | Self::CountConnections(_)
            | Self::Rules
            | Self::Timeouts
            | Self::Daemons
            | Self::Marks
            | Self::LocalAddresses
            | Self::LocalUse
            | Self::Feedback
            | Self::Health
            | Self::Status
            | Self::Healthy { .. }
            | Self::Counters
            | Self::Traffic
            | Self::Events(_)
            | Self::Explain(_)
            | Self::Examine => Access::Read,
        }
    }
}

/// What becomes of rules that wait to be confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// They stay.
    Keep,
    /// What was before is put back, but for what somebody else has changed since.
    TakeBack,
}

/// What a client may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Look.
    Read,
    /// Look and change.
    Change,
}

/// What a client is answered when its request was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The change is in force for every packet from now on.
    Done,
    /// For each command of a batch, in its order, whether it was carried out.
    Restored(Vec<Result<(), CommandError>>),
    /// What differed, and does no more; nothing if there was nothing to do.
    Applied(Vec<Difference>),
    /// The commands that make the state that runs.
    Rules(Vec<Command>),
    /// Services, in no particular order; their destinations in IPVS's.
    Services(Vec<ServiceRow>),
    /// Some connections.
    Connections(Vec<ConnectionRow>),
    /// The timeouts in force.
    Timeouts(Timeouts),
    /// The daemons that run, the master first.
    Daemons(Vec<SyncDaemon>),
    /// The mark rules that were set, in the order in which they apply.
    Marks(Vec<MarkRule>),
    /// The local addresses, in the order of the commands.
    LocalAddresses(Vec<LocalAddress>),
    /// All services, in no particular order.
    Traffic(Traffic),
    /// Some events.
    Events(Heard),
    /// Packets as they passed.
    Captured(Vec<CapturedPacket>),
    /// No more packets are captured.
    CaptureEnded(Missed),
    /// A document whose shape its request defines.
    Report(serde_json::Value),
}

/// A service as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRow {
    /// Which.
    pub key: ServiceKey,
    /// How it treats its connections.
    pub options: ServiceOptions,
    /// What it has carried since its counters were zeroed.
    pub stats: Stats,
    /// What it carries now.
    pub rates: Rates,
    /// Its destinations in IPVS's order.
    pub destinations: Vec<DestinationRow>,
}

/// A destination as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRow {
    /// Which.
    pub endpoint: Endpoint,
    /// How it is used.
    pub options: DestinationOptions,
    /// What schedulers go by: the weight of `options`, unless load reports have moved it.
    pub weight_in_force: Weight,
    /// Connections in an active state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// What it has carried since its counters were zeroed.
    pub stats: Stats,
    /// What it carries now.
    pub rates: Rates,
}

/// Totals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets towards destinations.
    pub in_packets: u64,
    /// Packets towards clients.
    pub out_packets: u64,
    /// Bytes (IP total length) towards destinations.
    pub in_bytes: u64,
    /// Bytes (IP total length) towards clients.
    pub out_bytes: u64,
}

/// Rates, each per second, as IPVS's estimator has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets towards destinations.
    pub in_packets: u64,
    /// Packets towards clients.
    pub out_packets: u64,
    /// Bytes towards destinations.
    pub in_bytes: u64,
    /// Bytes towards clients.
    pub out_bytes: u64,
}

/// A connection or template as listings show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRow {
    /// Its protocol; [`Protocol::IP`] for the template of a mark.
    pub protocol: Protocol,
    /// Seconds until it expires, if no packet refreshes it.
    pub expires_seconds: u32,
    /// The state's name as IPVS prints it.
    pub state: String,
    /// The client's end; port 0 in a template.
    pub client: Endpoint,
    /// The virtual end; in a mark's template the mark, written as an address.
    pub virtual_endpoint: Endpoint,
    /// The destination's end.
    pub dest: Endpoint,
    /// The director's end towards the destination, under FULLNAT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<Endpoint>,
    /// The persistence engine and what it keeps, for its templates.
    pub engine: Option<EngineData>,
    /// What ipvsadm's listings do not say, if it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<ConnectionDetail>,
}

/// What else there is to say of a connection or template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionDetail {
    /// The service that it belongs to; `None` if that is gone.
    pub service: Option<ServiceKey>,
    /// The destination as the service has it; `None` if that was removed.
    pub server: Option<Endpoint>,
    /// How packets reach its destination.
    pub method: ForwardingMethod,
    /// Packets from its client.
    pub packets: u32,
    /// Of a template: the connections that it controls.
    pub controls: u32,
    /// Whether it is a template.
    pub template: bool,
    /// Its properties, a word each.
    pub flags: Vec<String>,
}

/// What a persistence engine keeps of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineData {
    /// The engine's name.
    pub name: String,
    /// Its data, such as a Call-ID.
    pub data: String,
}

/// Why a request was not carried out. Nothing has changed then, but for [`CommandError::Late`].
///
/// The first group corresponds to what the kernel's IPVS answers by errno.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the message of each variant says what it means and names its fields")]
pub enum CommandError {
    #[error("virtual service {0} exists already; edit it, or delete it first")]
    ServiceExists(ServiceKey),
    #[error("no virtual service {0}; list shows those configured")]
    NoSuchService(ServiceKey),
    #[error("no virtual service {0} that could have destinations; add it first")]
    ServiceNotDefined(ServiceKey),
    #[error("virtual service {service} has destination {endpoint} already; edit it, or delete it first")]
    DestinationExists { service: ServiceKey, endpoint: Endpoint },
    #[error("virtual service {service} has no destination {endpoint}; list shows those it has")]
    NoSuchDestination { service: ServiceKey, endpoint: Endpoint },
    #[error("no scheduler or persistence engine {name:?}; known: {}", known.join(", "))]
    SchedulerNotFound { name: String, known: Vec<String> },
    #[error("{what} is out of range")]
    OutOfRange { what: String },
    #[error("invalid: {why}")]
    InvalidOperation { why: String },
    #[error("protocol {0} has no virtual services; use TCP, UDP or SCTP")]
    ProtocolNotSupported(Protocol),
    #[error("the {} daemon runs already; stop it first", .0.name())]
    DaemonRunning(SyncRole),
    #[error("no {} daemon runs", .0.name())]
    NoDaemon(SyncRole),
    #[error("mark rule {0} exists already; `xvs mark list` shows those there are")]
    MarkExists(String),
    #[error("no mark rule {0}; `xvs mark list` shows those that can be deleted")]
    NoSuchMark(String),
    #[error("local address {} exists already, with ports {}-{}; delete it first to give it others", .0.addr, .0.first_port, .0.last_port)]
    LocalExists(LocalAddress),
    #[error("no local address {0}; `xvs laddr list` shows those there are")]
    NoSuchLocal(IpAddr),
    #[error("no interface {0}; `ip link` shows those there are")]
    NoSuchDevice(String),
    #[error("permission denied: root and the group xvs may change and see packets, others may only look")]
    PermissionDenied,
    #[error("no room for {what}; its size is a setting of xvs.toml")]
    NoRoom { what: String },

    #[error(
        "xvs: the change is made, but {who} has not taken it up within a second; `xvs status` tells until it has"
    )]
    Late { who: String },
    #[error("xvs: {object}: {what} not supported yet; {next}")]
    NotSupported { object: String, what: String, next: String },
    #[error("no setting {key:?}; known: {}", known.join(", "))]
    UnknownSetting { key: String, known: Vec<String> },
    #[error("{key} cannot be {value:?}; it takes {range}")]
    BadSetting { key: String, value: String, range: String },
    #[error("no virtual service has real server {0}; `xvsadm -Ln` lists those there are")]
    UnknownServer(Server),
    #[error(
        "no service of real server {server} follows load reports; `xvs set feedback.services \"{service}\"` has that one follow them"
    )]
    NotFollowed { server: Server, service: ServiceKey },
    #[error("the request cannot be read: {why}")]
    Malformed { why: String },
    #[error("a request of {bytes} bytes is longer than the {limit} that xvsd takes; send it in parts")]
    TooLong { bytes: u64, limit: u64 },
    #[error("xvsd speaks version {ours} and was asked in version {theirs}; use programs of one release")]
    WrongVersion { ours: u32, theirs: u32 },
    #[error("xvsd serves as many clients as it takes; try again, or end one")]
    TooManyClients,
    #[error("{why}")]
    Failed { why: String },
}

impl CommandError {
    /// The same, unless the change was made.
    pub fn refusal(&self) -> Option<&Self> {
        (!matches!(self, Self::Late { .. })).then_some(self)
    }

    /// A name that no scheduler has, with those that there are.
    pub fn scheduler_not_found(name: &str) -> Self {
        let known = scheduler::names().map(str::to_owned).collect();
        Self::SchedulerNotFound { name: name.to_owned(), known }
    }

    /// A name that no persistence engine has.
    pub fn engine_not_found(name: &str) -> Self {
        Self::SchedulerNotFound { name: name.to_owned(), known: Vec::new() }
    }
}

/// A request as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub struct RequestMessage {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// What is asked.
    pub request: Request,
}

/// A reply, or one part of it, as it travels.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReplyMessage {
    /// The sender's [`VERSION`].
    pub version: u32,
    /// The answer.
    pub answer: Result<Reply, CommandError>,
    /// Whether another part follows.
    pub more: bool,
}

/// The part of a message that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Writes one message.
///
/// # Errors
/// Those of the writer; `InvalidData` if the message is longer than a length can say.
pub fn write_message(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let mut frame = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut frame, message)?;
    let length = u32::try_from(frame.len() - LENGTH_BYTES)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "message longer than 4 GiB"))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    writer.write_all(&frame)
}

/// Reads the bytes of one message; `None` if the other end closed before it began.
///
/// # Errors
/// [`FrameError::TooLong`] before anything of it is read or allocated; [`FrameError::Io`] also for a message that
/// ends half-way.
pub fn read_frame(reader: &mut impl Read, limit_bytes: u32) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; LENGTH_BYTES];
    let first = reader.read(&mut length)?;
    if first == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut length[first..])?;
    let bytes = u32::from_be_bytes(length);
    if bytes > limit_bytes {
        return Err(FrameError::TooLong { bytes, limit: limit_bytes });
    }
    let mut frame = Vec::new();
    // Grows as bytes arrive: a length alone must not make us allocate.
    if reader.take(u64::from(bytes)).read_to_end(&mut frame)? < bytes as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(frame))
}

/// Reads a message's content; checks the version before the rest.
///
/// # Errors
/// [`CommandError::Malformed`] or [`CommandError::WrongVersion`].
pub fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, CommandError> {
    let malformed = |error: serde_json::Error| CommandError::Malformed { why: error.to_string() };
    let Versioned { version } = serde_json::from_slice(frame).map_err(malformed)?;
    if version != VERSION {
        return Err(CommandError::WrongVersion { ours: VERSION, theirs: version });
    }
    serde_json::from_slice(frame).map_err(malformed)
}

/// Why there is no message.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Its length is above the limit.
    #[error("message of {bytes} bytes, above the limit of {limit}")]
    TooLong {
        /// The length it claims.
        bytes: u32,
        /// The longest allowed.
        limit: u32,
    },
    /// The socket failed, was too slow, or closed half-way.
    #[error(transparent)]
    Io(#[from] io::Error),
}

const LENGTH_BYTES: usize = 4;
