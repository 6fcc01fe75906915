//! The table of the keys of xvs.toml: each key's meaning, name, type and default, and how a new value takes effect.
//!
//! The keys of the sections `[ipvs]` and `[feedback]` are in `xvs_model`; those of `[connection_log]`, `[fleet]` and
//! `[limits]` are in files beside this one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xvs_dataplane::shm::Memory;
use xvs_dataplane::steering::MapSizes;
use xvs_model::config::hold::HoldTime;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::reconcile::Repair;
use xvs_model::config::settings::Ipvs;
use xvs_model::protocol::client::DEFAULT_SOCKET;
use xvs_model::report::setting::Source;
use xvs_xdp::RingSizes;
use xvs_xdp::polling::Poll;

use crate::config::connection_log::ConnectionLog;
use crate::config::fleet::Fleet;
use crate::config::interfaces::Interfaces;
use crate::config::kernel::Kernel;
use crate::config::limits::Limits;
use crate::journal::format::FileRecord;
use crate::registry::SIP_CALLS;

/// How a running director takes a new value over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InForce {
    /// The process changes it.
    InPlace,
    /// A successor begins with it, and takes over.
    BySuccessor,
    /// Only a start begins with it.
    AtRestart,
    /// The file is loaded by `xvs apply`, or at the next start.
    ByApply,
}

macro_rules! keys {
    ($($(#[$about:meta])* $key:ident: $kind:ty = $default:expr, $in_force:ident;)*) => {
        /// The configuration of `xvsd`.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[$about])* pub $key: $kind,)*
            /// The sources of the values that are no defaults, by the settings' keys.
            #[serde(skip)]
            pub sources: BTreeMap<String, Source>,
            /// The file that this was read from.
            #[serde(skip)]
            pub toml: Option<FileRecord>,
        }

        impl Default for Config {
            fn default() -> Self {
                Self { $($key: $default,)* sources: BTreeMap::new(), toml: None }
            }
        }

        impl Config {
            /// How a new value of a key or of a section comes into force; `None`: there is no such key.
            pub fn in_force(key: &str) -> Option<InForce> {
                match key {
                    $(stringify!($key) => Some(InForce::$in_force),)*
                    _ => None,
                }
            }
        }
    };
}

keys! {
    /// The interfaces that the director receives packets from: their names, or a section for each. Default: none, so
    /// that no interface is attached without request.
    interfaces: Interfaces = Interfaces::default(), BySuccessor;
    /// The number of workers, each pinned to its own core. Default: the number of receive queues of the interface with
    /// the fewest, but at most one less than the machine has cores, and at least one.
    workers: Option<usize> = None, BySuccessor;
    /// The number of connections that the table can hold. Each uses 64 bytes of memory, 128 with IPv6.
    conn_table_size: usize = 1 << 20, AtRestart;
    /// The directory on a tmpfs where the state is that outlives xvsd, such as connections; each xvsd has a directory
    /// in it. `""`: nothing outlives it. Default: `/dev/shm/xvs`; if that cannot be used, xvsd warns and goes on
    /// without.
    #[serde(with = "empty_is_none")]
    state_directory: Option<PathBuf> = Some(PathBuf::from("/dev/shm/xvs")), AtRestart;
    /// `"on-demand"`: in huge pages if the kernel has any; allocated at the start, without a state directory as it is
    /// used. `"small-pages"`: the same in small pages. `"resident"`: all in huge pages at the start.
    conn_table_memory: TableMemory = TableMemory::OnDemand, BySuccessor;
    /// The largest number of endpoints, and of addresses, that the XDP program steers: those of services, of real
    /// servers behind NAT or tunnels, and of the machine. Each takes 32 bytes of the kernel's memory, and 88 for each
    /// endpoint and each address that is steered.
    steered_endpoints: u32 = MapSizes::default().endpoints, BySuccessor;
    /// The number of concurrent SIP calls of all services with `--pe sip`, shared out among the workers. Each uses 264
    /// bytes, allocated when the first such service is added.
    sip_calls: usize = SIP_CALLS, BySuccessor;
    /// The number of frames that each queue of a worker offers to the kernel for packets, a power of two.
    receive_ring: u32 = RingSizes::default().receive, BySuccessor;
    /// The largest number of frames that wait in each queue of a worker to be sent, a power of two.
    transmit_ring: u32 = RingSizes::default().transmit, BySuccessor;
    /// How workers wait for packets: `"sleep"`; `"adaptive"`, which drives the drivers under load; `"busy"`, which does
    /// always and never sleeps.
    poll: Poll = Poll::Sleep, BySuccessor;
    /// Whether the XDP program forwards packets of established connections itself: `"auto"`, where the kernel would
    /// copy them to a worker; `"on"`; `"off"`.
    offload: OffloadMode = OffloadMode::Auto, BySuccessor;
    /// The packets of a client that workers process before its connection is offloaded, from 0 to 1,000.
    offload_after: u32 = 1, BySuccessor;
    /// The interfaces by which the XDP program forwards nothing, neither what arrives nor what leaves.
    offload_excluded: Vec<String> = Vec::new(), BySuccessor;
    /// The user that xvsd runs as, with the capabilities alone that it uses; it needs to start as root. Default: the
    /// user that it is started as, with all that this one may do.
    user: Option<String> = None, BySuccessor;
    /// The control socket.
    socket: PathBuf = PathBuf::from(DEFAULT_SOCKET), AtRestart;
    /// The control socket's permissions, as octal text. Default: `"0660"`: the daemon's user and the group `xvs`.
    socket_mode: String = "0660".to_owned(), InPlace;
    /// The address at which Prometheus can scrape `/metrics`, such as `"127.0.0.1:9112"`.
    metrics_address: Option<SocketAddr> = None, InPlace;
    /// The largest number of destinations of a service that have their own metrics. The service's metrics include all
    /// destinations.
    metrics_destinations: usize = 1000, InPlace;
    /// Whether these destinations also have the histogram `xvs_destination_response_seconds`, 21 lines each.
    metrics_response_times: bool = true, InPlace;
    /// The file of the certificate for TLS at `metrics_address`, in PEM, with those of its authorities behind it.
    /// Default: none, so that metrics are served without TLS.
    metrics_certificate: Option<PathBuf> = None, InPlace;
    /// The file of its private key, in PEM, not encrypted; not every user may read it.
    metrics_private_key: Option<PathBuf> = None, InPlace;
    /// The file of the token, one word, that a client sends as `Authorization: Bearer`; not every user may read it.
    /// Default: none, so that every client may read metrics.
    metrics_token_file: Option<PathBuf> = None, InPlace;
    /// Whether `metrics_address` also serves the status page, at `/`.
    status_page: bool = false, InPlace;
    /// Names by which browsers may ask for the status page, beside addresses, `localhost` and the host name.
    status_page_names: Vec<String> = Vec::new(), InPlace;
    /// A file of initial rules, as printed by `xvsadm -S`.
    rules: Option<PathBuf> = None, ByApply;
    /// A file of networks, one a line, whose packets no service gets. Read again at each reload.
    deny_file: Option<PathBuf> = None, InPlace;
    /// A file of the only networks whose packets services get. Read again at each reload.
    allow_file: Option<PathBuf> = None, InPlace;
    /// The file of the key that directors share, 64 hexadecimal digits: who has it may fetch the connection table of
    /// another one. Read when a daemon of synchronization starts. Default: none, so that no table is fetched or sent.
    sync_key_file: Option<PathBuf> = None, BySuccessor;
    /// How long the packets of services are kept from the kernel after xvsd has ended, so that it resets no connection:
    /// a text such as `"10s"` or `"500ms"`, at most `"1h"`; `"0"`: not at all.
    hold: HoldTime = HoldTime::default(), InPlace;
    /// The logged messages: `error`, `warn`, `info`, `debug`, or a filter such as `info,xvs_host::network=debug`. A
    /// filter is a list of `TARGET=LEVEL`; a single word must be a level.
    log: String = "info".to_owned(), InPlace;
    /// The form of a line of the log: `"text"`, or `"json"`, an object.
    log_format: LogFormat = LogFormat::Text, InPlace;
    /// The settings that the kernel has as `net.ipv4.vs.*`.
    ipvs: Ipvs = Ipvs::default(), InPlace;
    /// Weights that follow load reports.
    feedback: Feedback = Feedback::default(), InPlace;
    /// Limits of clients.
    limits: Limits = Limits::default(), BySuccessor;
    /// The log of connections.
    connection_log: ConnectionLog = ConnectionLog::default(), BySuccessor;
    /// Rules that several directors follow in etcd.
    fleet: Fleet = Fleet::default(), BySuccessor;
    /// The kernel's IPVS beside xvs.
    kernel: Kernel = Kernel::default(), BySuccessor;
    /// Services and health checks of a keepalived.conf.
    keepalived: Keepalived = Keepalived::default(), InPlace;
}

/// Whether the XDP program forwards packets of established connections itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffloadMode {
    /// Where the kernel would copy them.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The section `[keepalived]`: the use of a keepalived.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keepalived {
    /// The file. Default: none.
    pub file: Option<PathBuf>,
    /// The name that selects its lines with `@`. Default: the first label of the host name.
    pub config_id: Option<String>,
    /// Whether manual changes to its services are undone within a second: `true` or `false`. Default: `false`; `xvs
    /// health` shows them.
    pub repair: Repair,
}

/// When the connection table's memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableMemory {
    /// As it is used, in huge pages if the kernel has any.
    OnDemand,
    /// As it is used, in small pages.
    SmallPages,
    /// At the start.
    Resident,
}

/// The form of a line of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Time, level, target, message and fields, for a person.
    Text,
    /// An object of JSON with these.
    Json,
}

impl From<TableMemory> for Memory {
    fn from(memory: TableMemory) -> Self {
        match memory {
            TableMemory::OnDemand => Self::OnDemand,
            TableMemory::SmallPages => Self::SmallPages,
            TableMemory::Resident => Self::Resident,
        }
    }
}

/// An optional path, of which the empty text is none.
mod empty_is_none {
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        path.clone().unwrap_or_default().serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        let path = PathBuf::deserialize(from)?;
        Ok(Some(path).filter(|path| !path.as_os_str().is_empty()))
    }
}
