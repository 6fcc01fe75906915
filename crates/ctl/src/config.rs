//! The configuration file `xvs.toml`: its keys, their defaults and units. An empty file is valid.
//!
//! Read at the start and at each reload. Not here: services, which come from commands and from the file of `rules`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use xvs_dataplane::conn::TableConfig;
use xvs_dataplane::shm::Memory;
use xvs_host::instance::name_of;
use xvs_host::memory::CgroupLimit;
use xvs_ipvsadm::{SystemResolver, read_rules};
use xvs_model::config::access_list::{ListKey, ListKind};
use xvs_model::config::hold::HoldTime;
use xvs_model::config::load_feedback::Feedback;
use xvs_model::config::reconcile::Repair;
use xvs_model::config::rules::RuleLine;
use xvs_model::config::settings::Ipvs;
use xvs_model::protocol::client::DEFAULT_SOCKET;
use xvs_model::report::setting::{Setting, Source, flattened};
use xvs_xdp::RingSizes;

use crate::config::fleet::Fleet;
use crate::control::list_sources::ListFiles;
use crate::journal::format::FileRecord;
use crate::journal::start::{Files, has_loaded};
use crate::registry::SIP_CALLS;

pub mod fleet;
mod limits;

pub use limits::Limits;

/// The configuration of `xvsd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interfaces that the director receives packets from, by name. Default: none, so that no interface is attached
    /// without request.
    pub interfaces: Vec<String>,
    /// The number of workers, each pinned to its own core. Default: the number of receive queues of the interface with
    /// the fewest, but at most one less than the machine has cores, and at least one.
    pub workers: Option<usize>,
    /// The number of connections that the table can hold. Default: 1,048,576. Each uses 64 bytes of memory, 128 with
    /// IPv6.
    pub conn_table_size: usize,
    /// The directory on a tmpfs where the state is that outlives xvsd, such as connections; each xvsd has a directory
    /// in it. `""`: nothing outlives it. Default: `/dev/shm/xvs`; if that cannot be used, xvsd warns and goes on
    /// without.
    #[serde(with = "empty_is_none")]
    pub state_directory: Option<PathBuf>,
    /// `"on-demand"`, or `"resident"`: in huge pages if the kernel has them, for tables that are expected to fill. Both
    /// are allocated at the start; without a state directory, the first one as it is used. Default: on demand.
    pub conn_table_memory: TableMemory,
    /// The number of concurrent SIP calls of all services with `--pe sip`, shared out among the workers. Default:
    /// 65,536. Each uses 264 bytes, allocated when the first such service is added.
    pub sip_calls: usize,
    /// The number of frames that each queue of a worker offers to the kernel for packets, a power of two. Default:
    /// 4,096.
    pub receive_ring: u32,
    /// The largest number of frames that wait in each queue of a worker to be sent, a power of two. Default: 512. With
    /// both defaults and two interfaces a worker locks 19 MiB of memory.
    pub transmit_ring: u32,
    /// Whether the XDP program forwards packets of established connections itself: `"auto"`, where the kernel would
    /// copy them to a worker; `"on"`; `"off"`. Default: auto.
    pub offload: OffloadMode,
    /// The packets of a client that workers process before its connection is offloaded, from 0 to 1,000. Default: 4.
    pub offload_after: u32,
    /// The interfaces by which the XDP program forwards nothing, neither what arrives nor what leaves. Default: none.
    pub offload_excluded: Vec<String>,
    /// The user that xvsd runs as, with the capabilities alone that it uses; it needs to start as root. Default: the
    /// user that it is started as, with all that this one may do.
    pub user: Option<String>,
    /// The control socket. Default: `/run/xvs/xvsd.sock`.
    pub socket: PathBuf,
    /// The control socket's permissions, as octal text. Default: `"0660"`: the daemon's user and the group `xvs`.
    pub socket_mode: String,
    /// The address at which Prometheus can scrape `/metrics`, such as `"127.0.0.1:9112"`. Default: none.
    pub metrics_address: Option<SocketAddr>,
    /// The largest number of destinations of a service that have their own metrics. Default: 1,000. The service's
    /// metrics include all destinations.
    pub metrics_destinations: usize,
    /// The file of the certificate for TLS at `metrics_address`, in PEM, with those of its authorities behind it.
    /// Default: none, so that metrics are served without TLS.
    pub metrics_certificate: Option<PathBuf>,
    /// The file of its private key, in PEM, not encrypted; not every user may read it.
    pub metrics_private_key: Option<PathBuf>,
    /// The file of the token, one word, that a client sends as `Authorization: Bearer`; not every user may read it.
    /// Default: none, so that every client may read metrics.
    pub metrics_token_file: Option<PathBuf>,
    /// Whether `metrics_address` also serves the status page, at `/`. Default: `false`.
    pub status_page: bool,
    /// Names by which browsers may ask for the status page, beside addresses, `localhost` and the host name. Default:
    /// none.
    pub status_page_names: Vec<String>,
    /// A file of initial rules, as printed by `xvsadm -S`. Default: none.
    pub rules: Option<PathBuf>,
    /// A file of networks, one a line, whose packets no service gets. Read again at each reload. Default: none.
    pub deny_file: Option<PathBuf>,
    /// A file of the only networks whose packets services get. Read again at each reload. Default: none.
    pub allow_file: Option<PathBuf>,
    /// The file of the key that directors share, 64 hexadecimal digits: who has it may fetch the connection table of
    /// another one. Read when a daemon of synchronization starts. Default: none, so that no table is fetched or sent.
    pub sync_key_file: Option<PathBuf>,
    /// How long the packets of services are kept from the kernel after xvsd has ended, so that it resets no
    /// connection: a text such as `"10s"` or `"500ms"`, at most `"1h"`; `"0"`: not at all. Default: `"10s"`.
    pub hold: HoldTime,
    /// The logged messages: `error`, `warn`, `info`, `debug`, or a filter such as `info,xvs_host::network=debug`.
    /// A filter is a list of `TARGET=LEVEL`; a single word must be a level.
    pub log: String,
    /// The form of a line of the log: `"text"`, or `"json"`, an object. Default: text.
    pub log_format: LogFormat,
    /// The settings that the kernel has as `net.ipv4.vs.*`.
    pub ipvs: Ipvs,
    /// Weights that follow load reports.
    pub feedback: Feedback,
    /// Limits of clients.
    pub limits: Limits,
    /// Rules that several directors follow in etcd.
    pub fleet: Fleet,
    /// Services and health checks of a keepalived.conf.
    pub keepalived: Keepalived,
    /// The sources of the values that are no defaults, by the settings' keys.
    #[serde(skip)]
    pub sources: BTreeMap<String, Source>,
    /// The file that this was read from.
    #[serde(skip)]
    pub toml: Option<FileRecord>,
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
    /// As it is used.
    OnDemand,
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
            TableMemory::Resident => Self::Resident,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            workers: None,
            conn_table_size: 1 << 20,
            state_directory: Some(PathBuf::from("/dev/shm/xvs")),
            conn_table_memory: TableMemory::OnDemand,
            sip_calls: SIP_CALLS,
            receive_ring: RingSizes::default().receive,
            transmit_ring: RingSizes::default().transmit,
            offload: OffloadMode::Auto,
            offload_after: 4,
            offload_excluded: Vec::new(),
            user: None,
            socket: PathBuf::from(DEFAULT_SOCKET),
            socket_mode: "0660".to_owned(),
            metrics_address: None,
            metrics_destinations: 1000,
            metrics_certificate: None,
            metrics_private_key: None,
            metrics_token_file: None,
            status_page: false,
            status_page_names: Vec::new(),
            rules: None,
            deny_file: None,
            allow_file: None,
            sync_key_file: None,
            hold: HoldTime::default(),
            log: "info".to_owned(),
            log_format: LogFormat::Text,
            ipvs: Ipvs::default(),
            feedback: Feedback::default(),
            limits: Limits::default(),
            fleet: Fleet::default(),
            keepalived: Keepalived::default(),
            sources: BTreeMap::new(),
            toml: None,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}; name another file with --config, or omit --config", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The OS error.
        error: std::io::Error,
    },
    /// The file has a syntax error or an unknown key; the text names line and column.
    #[error("{path}: {text}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The error and its place.
        text: String,
    },
    /// The file of initial rules cannot be used; the text names the line.
    #[error("rules {path}: {text}; correct the file, or omit `rules` and run `xvsadm -R`", path = path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// The error and its place.
        text: String,
    },
    /// The keepalived.conf cannot be used; the text names each error with its line.
    #[error("{text}\n{path}: refused; `xvs check --keepalived {path}` shows all faults", path = path.display())]
    Keepalived {
        /// The file.
        path: PathBuf,
        /// The error and its place.
        text: String,
    },
    /// A file of certificate, key or token of metrics, or of a certificate or key for etcd, cannot be used; the text
    /// names key and file.
    #[error("{0}")]
    Credentials(String),
    /// A connection table that is larger than the machine's memory.
    #[error(
        "conn_table_size = {size}: a full table takes {needed_mib} MiB, and the machine has {memory_mib} MiB; choose a smaller size"
    )]
    TableTooLarge {
        /// The number of connections.
        size: usize,
        /// The memory that they take, in MiB.
        needed_mib: u64,
        /// The machine's memory, in MiB.
        memory_mib: u64,
    },
    /// A connection table that is larger than the limit of a control group.
    #[error(
        "conn_table_size = {size}: the full table takes {needed_mib} MiB, and {file} allows {limit_mib} MiB for all of xvsd, so the \
         kernel would kill it; raise the limit (MemoryMax= of the unit, --memory of the container) above {enough_mib} MiB, or \
         choose a smaller size",
        file = file.display()
    )]
    TableOverLimit {
        /// The number of connections.
        size: usize,
        /// The memory that they take, in MiB.
        needed_mib: u64,
        /// The limit, in MiB.
        limit_mib: u64,
        /// A sufficient limit, in MiB.
        enough_mib: u64,
        /// The file that has the limit.
        file: PathBuf,
    },
    /// No interface is given.
    #[error("no interface to take packets from; name one with --interface, or `interfaces` in xvs.toml")]
    NoInterface,
    /// An interface is given twice.
    #[error("interface {0} is named twice")]
    InterfaceTwice(String),
    /// Another interface than those given is excluded from the offload.
    #[error("offload_excluded: {0} is none of `interfaces`")]
    ExcludedUnknown(String),
    /// An invalid value.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The valid values.
        why: &'static str,
    },
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] or [`ConfigError::Syntax`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let syntax =
            |error: toml::de::Error| ConfigError::Syntax { path: path.to_owned(), text: error.to_string() };
        let config: Self = toml::from_str(&text).map_err(syntax)?;
        let document: serde_json::Value = toml::from_str(&text).map_err(syntax)?;
        let given = keyed(document).into_iter().map(|(key, _)| (key, Source::Toml));
        let toml = Some(FileRecord::of(path, text.as_bytes()));
        Ok(Self { sources: given.collect(), toml, ..config })
    }

    /// Whether xvs.toml or the command line has this key.
    pub fn is_given(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// The settings as they are at the start; `workers` is the number of workers that were started.
    pub fn settings(&self, workers: usize) -> Vec<Setting> {
        let document = serde_json::to_value(Self { workers: Some(workers), ..self.clone() });
        let setting = |(key, value): (String, _)| {
            let source = self.sources.get(&key).copied().unwrap_or_default();
            Setting { key, value, source }
        };
        document.map(keyed).unwrap_or_default().into_iter().map(setting).collect()
    }

    /// Checks what deserialization does not: ranges of values, and the interfaces.
    ///
    /// # Errors
    /// [`ConfigError::Value`]; [`ConfigError::NoInterface`] and [`ConfigError::InterfaceTwice`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |key, value: String, why| Err(ConfigError::Value { key, value, why });
        if self.workers == Some(0) {
            return wrong(
                "workers",
                "0".to_owned(),
                "at least one worker is needed; leave it out for the default",
            );
        }
        if !(1024..=1 << 27).contains(&self.conn_table_size) {
            return wrong(
                "conn_table_size",
                self.conn_table_size.to_string(),
                "from 1024 to 134217728 connections",
            );
        }
        let Limits { clients, ipv4_prefix, ipv6_prefix } = self.limits;
        if !(1024..=1 << 24).contains(&clients) {
            return wrong("limits.clients", clients.to_string(), "from 1024 to 16777216 clients");
        }
        if !(8..=32).contains(&ipv4_prefix) {
            return wrong("limits.ipv4_prefix", ipv4_prefix.to_string(), "from 8 to 32 bits");
        }
        if !(16..=128).contains(&ipv6_prefix) {
            return wrong("limits.ipv6_prefix", ipv6_prefix.to_string(), "from 16 to 128 bits");
        }
        if !(1024..=1 << 24).contains(&self.sip_calls) {
            return wrong("sip_calls", self.sip_calls.to_string(), "from 1024 to 16777216 calls");
        }
        if self.offload_after > 1000 {
            return wrong("offload_after", self.offload_after.to_string(), "from 0 to 1000 packets");
        }
        for (key, ring) in [("receive_ring", self.receive_ring), ("transmit_ring", self.transmit_ring)] {
            if !ring.is_power_of_two() || !(64..=1 << 16).contains(&ring) {
                return wrong(key, ring.to_string(), "a power of two from 64 to 65536 frames");
            }
        }
        match (&self.metrics_certificate, &self.metrics_private_key) {
            (Some(certificate), None) => {
                let why = "without a private key; name its file with metrics_private_key";
                return wrong("metrics_certificate", format!("{certificate:?}"), why);
            }
            (None, Some(key)) => {
                let why = "without a certificate; name its file with metrics_certificate";
                return wrong("metrics_private_key", format!("{key:?}"), why);
            }
            _ => {}
        }
        if self.status_page && self.metrics_address.is_none() {
            return wrong(
                "status_page",
                "true".to_owned(),
                "without an address; name one with metrics_address",
            );
        }
        self.fleet.check()?;
        self.mode()?;
        self.log_filter()?;
        let mut seen = BTreeSet::new();
        match self.interfaces.iter().find(|name| !seen.insert(*name)) {
            _ if self.interfaces.is_empty() => Err(ConfigError::NoInterface),
            Some(twice) => Err(ConfigError::InterfaceTwice(twice.clone())),
            None => match self.offload_excluded.iter().find(|name| !seen.contains(name)) {
                Some(unknown) => Err(ConfigError::ExcludedUnknown(unknown.clone())),
                None => Ok(()),
            },
        }
    }

    /// The rules file that the running state is compared with: none if the rules come from etcd.
    pub fn compared_rules(&self) -> Option<PathBuf> {
        self.rules.clone().filter(|_| self.fleet.etcd.is_empty())
    }

    /// Reads the initial rules; empty if no file is given.
    ///
    /// # Errors
    /// [`ConfigError::Rules`].
    pub fn read_rules(&self) -> Result<Vec<RuleLine>, ConfigError> {
        let Some(path) = &self.rules else { return Ok(Vec::new()) };
        parse_rules(path, &read_bytes(path)?)
    }

    /// Reads the files that the desired state is loaded from. The rules may be unusable if the journal was loaded from
    /// the same content: they are not needed then, and a name in them may not be resolvable now.
    ///
    /// # Errors
    /// [`ConfigError::Rules`].
    pub fn read_files(&self) -> Result<Files, ConfigError> {
        let keys = self.sources.iter().filter(|(_, source)| **source == Source::Toml);
        let mut files = Files {
            toml: self.toml.clone(),
            toml_keys: keys.map(|(key, _)| key.clone()).collect(),
            has_fleet: !self.fleet.etcd.is_empty(),
            ..Files::default()
        };
        if let Some(path) = &self.rules {
            let bytes = read_bytes(path)?;
            let record = FileRecord::of(path, &bytes);
            let state = self.state_directory.as_ref().map(|parent| parent.join(name_of(&self.socket)));
            let is_loaded = || state.is_some_and(|state| has_loaded(&state, &record, files.has_fleet));
            files.rule_lines = parse_rules(path, &bytes).or_else(|error| match is_loaded() {
                true => Ok(Vec::new()),
                false => Err(error),
            })?;
            files.rules = Some(record);
        }
        Ok(files)
    }

    /// The files of the access lists of all services.
    pub fn list_files(&self) -> ListFiles {
        let files = [(ListKind::Deny, &self.deny_file), (ListKind::Allow, &self.allow_file)];
        let given = files.into_iter().filter_map(|(kind, file)| Some((kind, file.clone()?)));
        given.map(|(kind, file)| (ListKey { kind, service: None }, file)).collect()
    }

    /// The filter of logged messages.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn log_filter(&self) -> Result<EnvFilter, ConfigError> {
        let wrong = || ConfigError::Value {
            key: "log",
            value: format!("{:?}", self.log),
            why: "error, warn, info, debug, or a filter such as info,xvs_host::network=debug",
        };
        // The filter would take an unknown word as the name of a target, and nothing else would be logged.
        let is_word = !self.log.contains(['=', ',']);
        if is_word && !LEVELS.contains(&self.log.as_str()) {
            return Err(wrong());
        }
        EnvFilter::try_new(&self.log).map_err(|_| wrong())
    }

    /// Checks that a full table fits into the machine's memory, `memory_bytes` in all. The table's memory is allocated
    /// as it is used, so a table that is too large would fail only later, under load.
    ///
    /// # Errors
    /// [`ConfigError::TableTooLarge`].
    pub fn check_table(table: &TableConfig, memory_bytes: u64) -> Result<(), ConfigError> {
        let needed = table.full_bytes() as u64;
        match needed <= memory_bytes {
            true => Ok(()),
            false => Err(ConfigError::TableTooLarge {
                size: table.capacity,
                needed_mib: needed >> 20,
                memory_mib: memory_bytes >> 20,
            }),
        }
    }

    /// Checks that a table fits, beside the workers' packet memory and the rest of xvsd, into what a control group
    /// allows once all of it is used.
    ///
    /// # Errors
    /// [`ConfigError::TableOverLimit`].
    pub fn check_limit(
        table: &TableConfig,
        packet_bytes: u64,
        limit: &CgroupLimit,
    ) -> Result<(), ConfigError> {
        let needed = table.full_bytes() as u64;
        let enough = needed + packet_bytes + REST_BYTES;
        match enough <= limit.bytes {
            true => Ok(()),
            false => Err(ConfigError::TableOverLimit {
                size: table.capacity,
                needed_mib: needed >> 20,
                limit_mib: limit.bytes >> 20,
                enough_mib: enough >> 20,
                file: limit.file.clone(),
            }),
        }
    }

    /// The control socket's permissions.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn mode(&self) -> Result<u32, ConfigError> {
        u32::from_str_radix(&self.socket_mode, 8).ok().filter(|mode| *mode <= 0o777).ok_or_else(|| {
            ConfigError::Value {
                key: "socket_mode",
                value: format!("{:?}", self.socket_mode),
                why: "an octal text such as \"0660\"",
            }
        })
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

/// Memory that xvsd has beside its connection table and its packet memory, with few services.
const REST_BYTES: u64 = 16 << 20;

fn read_bytes(rules: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(rules).map_err(|error| ConfigError::Rules { path: rules.to_owned(), text: error.to_string() })
}

fn parse_rules(path: &Path, bytes: &[u8]) -> Result<Vec<RuleLine>, ConfigError> {
    // A comment may be in any encoding; a rule that is not in ASCII is refused with its line.
    read_rules(&String::from_utf8_lossy(bytes), &SystemResolver::default())
        .map_err(|text| ConfigError::Rules { path: path.to_owned(), text })
}

/// The settings of a document of xvs.toml by their keys, as `xvs get` names them.
fn keyed(document: serde_json::Value) -> Vec<(String, serde_json::Value)> {
    let mut all = flattened("", document);
    for (key, _) in &mut all {
        if let Some(bare) = key.strip_prefix("ipvs.") {
            *key = bare.to_owned();
        }
    }
    all
}

const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        match toml::from_str::<Config>(text) {
            Err(error) => error.to_string(),
            Ok(config) => config.check().unwrap_err().to_string(),
        }
    }

    #[test]
    fn the_empty_file_is_the_default_configuration() {
        let mut config: Config = toml::from_str("").unwrap();
        assert_eq!(config, Config::default());
        assert!(matches!(config.check(), Err(ConfigError::NoInterface)));
        config.interfaces.push("wan".to_owned());
        assert!(config.check().is_ok());
    }

    #[test]
    fn a_file_with_every_key_of_version_0_1_0_is_read() {
        let text = r#"
interfaces = ["eth0", "eth1"]
workers = 2
conn_table_size = 1048576
conn_table_memory = "on-demand"
sip_calls = 65536
receive_ring = 4096
transmit_ring = 512
socket = "/run/xvs/xvsd.sock"
socket_mode = "0660"
sync_key_file = "/etc/xvs/sync.key"
hold = "10s"
state_directory = "/dev/shm/xvs"
rules = "/etc/xvs.rules"
metrics_address = "127.0.0.1:9112"
metrics_destinations = 1000
log = "info,xvs_host::network=debug"

[ipvs]
expire_nodest_conn = 1
mss_clamp = "tunnels"
sync_threshold = "3 50"

[feedback]

[keepalived]
file = "/etc/keepalived/keepalived.conf"
"#;
        let config: Config = toml::from_str(text).unwrap();
        assert!(config.check().is_ok());
        assert_ne!(config.ipvs, Config::default().ipvs);
        assert_eq!((config.workers, config.hold), (Some(2), Config::default().hold));
    }

    #[test]
    fn the_section_keepalived_has_file_config_id_and_repair() {
        let text =
            "[keepalived]\nfile = \"/etc/keepalived/keepalived.conf\"\nconfig_id = \"lb1\"\nrepair = true";
        let Config { keepalived, .. } = toml::from_str(text).unwrap();
        assert_eq!(keepalived.file, Some("/etc/keepalived/keepalived.conf".into()));
        assert_eq!((keepalived.config_id.as_deref(), keepalived.repair), (Some("lb1"), Repair::Always));
        assert_eq!(Keepalived::default().repair, Repair::Never);
    }

    #[test]
    fn an_interface_that_is_excluded_from_the_offload_is_one_of_the_directors() {
        let error = error_of("interfaces = [\"wan\"]\noffload_excluded = [\"wan\", \"lan\"]");
        assert_eq!(error, "offload_excluded: lan is none of `interfaces`");
    }

    #[test]
    fn an_interface_given_twice_is_refused_by_its_name() {
        let error = error_of("interfaces = [\"wan\", \"lan\", \"wan\"]");
        assert_eq!(error, "interface wan is named twice");
    }

    #[test]
    fn a_word_that_is_not_a_level_is_refused_and_a_filter_is_accepted() {
        for word in ["warning", "INFOO", "", "trace all", "xvs_host::network=loud"] {
            let error = error_of(&format!("interfaces = [\"wan\"]\nlog = {word:?}"));
            assert!(error.starts_with("log = ") && error.contains("debug"), "{word}: {error}");
        }
        for filter in ["warn", "debug", "info,xvs_host::network=debug", "xvs_ctl=debug"] {
            let config: Config = toml::from_str(&format!("log = {filter:?}")).unwrap();
            assert!(config.log_filter().is_ok(), "{filter}");
        }
    }

    #[test]
    fn an_unknown_key_or_a_wrong_unit_names_its_line() {
        let error = error_of("workers = 2\n\nconn_tabel_size = 5\n");
        assert!(error.contains("line 3") && error.contains("conn_tabel_size"), "{error}");
        let error = error_of("workers = 2\nconn_table_size = \"1 million\"\n");
        assert!(error.contains("line 2"), "{error}");
        let error = error_of("conn_table_memory = \"huge\"\n");
        assert!(error.contains("line 1") && error.contains("resident"), "{error}");
        let error = error_of("[ipvs]\nicmp_msgs_per_sec = \"1000/s\"\n");
        assert!(error.contains("line 2"), "{error}");
        let error = error_of("[ipvs]\nconn_reuse_mod = 1\n");
        assert!(error.contains("line 2") && error.contains("conn_reuse_mod"), "{error}");
        let error = error_of("[feedback]\nstep = 0\n");
        assert!(error.contains("line 2") && error.contains("1 to 1000"), "{error}");
        let error = error_of("[feedback]\nservices = \"TCP 80\"\n");
        assert!(error.contains("line 2") && error.contains("FWM 7"), "{error}");
        let error = error_of("workers = 2\nhold = \"2 days\"\n");
        assert!(error.contains("line 2") && error.contains("100ms to 1h"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_names_its_key_and_the_range() {
        assert!(error_of("workers = 0").contains("workers = 0"));
        for size in ["0", "5", "200000000"] {
            let error = error_of(&format!("conn_table_size = {size}"));
            assert_eq!(error, format!("conn_table_size = {size}: from 1024 to 134217728 connections"));
        }
        let error = error_of("sip_calls = 1000");
        assert_eq!(error, "sip_calls = 1000: from 1024 to 16777216 calls");
        assert!(error_of("receive_ring = 1000").contains("receive_ring = 1000"));
        assert!(error_of("socket_mode = \"0999\"").contains("socket_mode"));
    }

    #[test]
    fn a_certificate_of_metrics_without_its_key_and_a_key_without_its_certificate_name_the_missing_one() {
        let text = "interfaces = [\"wan\"]\nmetrics_certificate = \"/a\"\n";
        let error = error_of(text);
        let expected =
            "metrics_certificate = \"/a\": without a private key; name its file with metrics_private_key";
        assert_eq!(error, expected);
        let error = error_of(&text.replace("certificate", "private_key"));
        assert!(error.ends_with("name its file with metrics_certificate"), "{error}");
    }

    #[test]
    fn a_status_page_without_an_address_is_refused() {
        let text = "interfaces = [\"wan\"]\nstatus_page = true\n";
        let expected = "status_page = true: without an address; name one with metrics_address";
        assert_eq!(error_of(text), expected);
        let config: Config = toml::from_str(&format!("metrics_address = \"[::1]:9112\"\n{text}")).unwrap();
        assert!(config.check().is_ok() && config.status_page);
    }

    #[test]
    fn a_table_larger_than_the_machines_memory_is_refused_with_both_sizes() {
        let table = TableConfig { capacity: 1 << 20, workers: 2, memory: Memory::OnDemand };
        // Per entry: 144 bytes, 25 of the index, 8 for each worker's timers; and a little for the slots that workers
        // reserve.
        let full = 185 << 20;
        assert!(Config::check_table(&table, full + (1 << 20)).is_ok());
        let error = Config::check_table(&table, full - 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "conn_table_size = 1048576: a full table takes 185 MiB, and the machine has 184 MiB; choose a smaller size"
        );
    }

    #[test]
    fn a_table_beyond_the_limit_of_a_control_group_is_refused_with_the_limit_that_is_enough() {
        let table = TableConfig { capacity: 1 << 20, workers: 2, memory: Memory::Resident };
        let limit = |mib: u64| CgroupLimit { bytes: mib << 20, file: "/sys/fs/cgroup/memory.max".into() };
        let packet_bytes = 2 * (19 << 20);
        let error = Config::check_limit(&table, packet_bytes, &limit(100)).unwrap_err().to_string();
        let expected = "conn_table_size = 1048576: the full table takes 185 MiB, and /sys/fs/cgroup/memory.max allows 100 MiB for all of \
                        xvsd, so the kernel would kill it; raise the limit (MemoryMax= of the unit, --memory of the \
                        container) above 239 MiB, or choose a smaller size";
        assert_eq!(error, expected);
        assert!(Config::check_limit(&table, packet_bytes, &limit(240)).is_ok());
        assert!(Config::check_limit(&table, 4 * packet_bytes, &limit(240)).is_err(), "with more workers");
    }
}
