//! The configuration file `xvs.toml`: its keys, their defaults and units. An empty file is valid.
//!
//! Read at the start and at each reload. Services come from commands and from the rules file.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use tracing_subscriber::EnvFilter;
use xvs_dataplane::conn::TableConfig;
use xvs_dataplane::conn::log::ConnectionLog;
use xvs_dataplane::offload::Settings;
use xvs_dataplane::shm::Memory;
use xvs_dataplane::steering::MapSizes;
use xvs_host::instance::name_of;
use xvs_host::memory::CgroupLimit;
use xvs_ipvsadm::{SystemResolver, read_rules};
use xvs_model::config::rules::RuleLine;
use xvs_model::config::unknown_name;
use xvs_model::objects::list_key::{ListKey, ListKind};
use xvs_model::report::setting::{Setting, Source, flattened};

use crate::control::list_sources::ListFiles;
use crate::journal::format::FileRecord;
use crate::journal::start::{Files, has_loaded};

pub mod connection_log;
mod error;
pub mod fleet;
mod interfaces;
pub mod kernel;
mod keys;
mod limits;

pub use self::error::ConfigError;
use self::error::wrong;
pub use self::interfaces::Interfaces;
pub use self::kernel::KernelMode;
pub use self::keys::{Config, InForce, Keepalived, LogFormat, OffloadMode, TableMemory};
pub use self::limits::Limits;

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`] or [`ConfigError::Syntax`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        let config: Self = parsed(path, &text)?;
        Ok(Self {
            sources: keyed(parsed(path, &text)?).into_iter().map(|(key, _)| (key, Source::Toml)).collect(),
            toml: Some(FileRecord::of(path, text.as_bytes())),
            ..config
        })
    }

    /// Whether xvs.toml or the command line has this key.
    pub fn is_given(&self, key: &str) -> bool {
        self.sources.contains_key(key)
    }

    /// The settings as they are at the start; `workers` is the number of workers that were started.
    pub fn settings(&self, workers: usize) -> Vec<Setting> {
        let document = serde_json::to_value(Self { workers: Some(workers), ..self.clone() });
        document
            .map(keyed)
            .unwrap_or_default()
            .into_iter()
            .map(|(key, value)| Setting {
                source: self.sources.get(&key).copied().unwrap_or_default(),
                key,
                value,
            })
            .collect()
    }

    /// Checks what deserialization does not: ranges of values, and the interfaces.
    ///
    /// # Errors
    /// [`ConfigError::Value`]; [`ConfigError::NoInterface`] and [`ConfigError::InterfaceTwice`].
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.workers == Some(0) {
            return wrong("workers", 0, "at least one worker is needed; leave it out for the default");
        }
        let Limits { clients, ipv4_prefix, ipv6_prefix } = self.limits;
        for (key, value, range, why) in [
            ("conn_table_size", self.conn_table_size, 1024..=1 << 27, "from 1024 to 134217728 connections"),
            ("limits.clients", clients, 1024..=1 << 24, "from 1024 to 16777216 clients"),
            ("limits.ipv4_prefix", ipv4_prefix.into(), 8..=32, "from 8 to 32 bits"),
            ("limits.ipv6_prefix", ipv6_prefix.into(), 16..=128, "from 16 to 128 bits"),
            ("sip_calls", self.sip_calls, 1024..=1 << 24, "from 1024 to 16777216 calls"),
        ] {
            if !range.contains(&value) {
                return wrong(key, value, why);
            }
        }
        if !MapSizes::ENDPOINTS.contains(&self.steered_endpoints) {
            return wrong("steered_endpoints", self.steered_endpoints, "from 1024 to 16777216 endpoints");
        }
        if self.socket.as_os_str().len() > SOCKET_MAX {
            return wrong("socket", &self.socket, "a path of at most 103 bytes");
        }
        if self.offload_after > 1000 {
            return wrong("offload_after", self.offload_after, "from 0 to 1000 packets");
        }
        for (key, ring) in [("receive_ring", self.receive_ring), ("transmit_ring", self.transmit_ring)] {
            if !ring.is_power_of_two() || !(64..=1 << 16).contains(&ring) {
                return wrong(key, ring, "a power of two from 64 to 65536 frames");
            }
        }
        match (&self.metrics_certificate, &self.metrics_private_key) {
            (Some(certificate), None) => {
                let why = "without a private key; name its file with metrics_private_key";
                return wrong("metrics_certificate", certificate, why);
            }
            (None, Some(key)) => {
                let why = "without a certificate; name its file with metrics_certificate";
                return wrong("metrics_private_key", key, why);
            }
            _ => {}
        }
        if self.status_page && self.metrics_address.is_none() {
            return wrong("status_page", true, "without an address; name one with metrics_address");
        }
        self.connection_log.check()?;
        self.fleet.check()?;
        self.check_kernel()?;
        self.mode()?;
        self.log_filter()?;
        let mut seen = BTreeSet::new();
        match self.interfaces.names().find(|name| !seen.insert(*name)) {
            _ if self.interfaces.is_empty() => Err(ConfigError::NoInterface),
            Some(twice) => Err(ConfigError::InterfaceTwice(twice.to_owned())),
            None => match self.offload_excluded.iter().find(|name| !seen.contains(name.as_str())) {
                Some(unknown) => Err(ConfigError::ExcludedUnknown(unknown.clone())),
                None => Ok(()),
            },
        }
    }

    /// Refuses another source of services beside the kernel's IPVS.
    fn check_kernel(&self) -> Result<(), ConfigError> {
        let why = if self.kernel.rules == KernelMode::Off {
            return Ok(());
        } else if self.rules.is_some() {
            "services come from the kernel's IPVS, or from `rules`; leave one of them out"
        } else if self.keepalived.file.is_some() {
            "services come from the kernel's IPVS, or from [keepalived] file; leave one of them out"
        } else if !self.fleet.etcd.is_empty() {
            "services come from the kernel's IPVS, or from [fleet] etcd; leave one of them out"
        } else {
            return Ok(());
        };
        Err(ConfigError::Value { key: "kernel.rules", value: "\"follow\"".to_owned(), why })
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

    /// Reads the files that the desired state is loaded from. An unusable rules file is accepted if the journal was
    /// loaded from the same content: then its lines are not needed, and its names may no longer resolve.
    ///
    /// # Errors
    /// [`ConfigError::Rules`].
    pub fn read_files(&self) -> Result<Files, ConfigError> {
        let mut files = Files {
            toml: self.toml.clone(),
            toml_keys: self
                .sources
                .iter()
                .filter(|(_, source)| **source == Source::Toml)
                .map(|(key, _)| key.clone())
                .collect(),
            has_fleet: !self.fleet.etcd.is_empty(),
            ..Files::default()
        };
        if let Some(path) = &self.rules {
            let bytes = read_bytes(path)?;
            let record = FileRecord::of(path, &bytes);
            let state = self.state_directory.as_ref().map(|parent| parent.join(name_of(&self.socket)));
            files.rule_lines = parse_rules(path, &bytes).or_else(|error| match state {
                Some(state) if has_loaded(&state, &record, files.has_fleet) => Ok(Vec::new()),
                _ => Err(error),
            })?;
            files.rules = Some(record);
        }
        Ok(files)
    }

    /// The files of the access lists of all services.
    pub fn list_files(&self) -> ListFiles {
        [(ListKind::Deny, &self.deny_file), (ListKind::Allow, &self.allow_file)]
            .into_iter()
            .filter_map(|(kind, file)| Some((ListKey { kind, service: None }, file.clone()?)))
            .collect()
    }

    /// The filter of logged messages.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn log_filter(&self) -> Result<EnvFilter, ConfigError> {
        // The filter would take an unknown word as the name of a target, and nothing else would be logged.
        let is_unknown_word = !self.log.contains(['=', ',']) && !LEVELS.contains(&self.log.as_str());
        match EnvFilter::try_new(&self.log) {
            Ok(filter) if !is_unknown_word => Ok(filter),
            _ => wrong(
                "log",
                &self.log,
                "error, warn, info, debug, or a filter such as info,xvs_host::network=debug",
            ),
        }
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

    /// The number of connections that can be offloaded at once; `None`: offload is off.
    pub fn records(&self) -> Option<u32> {
        (self.offload != OffloadMode::Off).then(|| Settings::records_beside(self.conn_table_size))
    }

    /// The longest request on the control socket: a restore of as many real servers as can be steered.
    pub fn request_limit_bytes(&self) -> u32 {
        self.steered_endpoints.saturating_mul(RULE_BYTES).max(64 << 20)
    }

    /// The sizes of the maps of the XDP program.
    pub fn map_sizes(&self) -> MapSizes {
        let records = self.records().unwrap_or(MapSizes::default().records);
        MapSizes { records, endpoints: self.steered_endpoints }
    }

    /// Checks that a full table, the workers' packet memory, the records of offload, the maps of steering and the rest
    /// of xvsd fit into the limit of a control group. Reserved huge pages, of which `free_huge_bytes` are free, do not
    /// count for it; files on a tmpfs cannot be in them.
    ///
    /// # Errors
    /// [`ConfigError::TableOverLimit`].
    pub fn check_limit(
        &self,
        table: &TableConfig,
        packet_bytes: u64,
        free_huge_bytes: u64,
        limit: &CgroupLimit,
    ) -> Result<(), ConfigError> {
        let mut needed = table.full_bytes() as u64 + packet_bytes + self.map_sizes().bytes() + REST_BYTES;
        let mapped = table.mapped_bytes() as u64;
        let may_be_reserved = self.state_directory.is_none() && table.memory != Memory::SmallPages;
        if may_be_reserved && mapped <= free_huge_bytes {
            needed -= mapped;
        }
        if let Some(records) = self.records() {
            needed += u64::from(records) * Settings::RECORD_BYTES;
        }
        if self.connection_log.settings().is_some() {
            needed += ConnectionLog::full_bytes(table.capacity) as u64;
        }
        match needed <= limit.bytes {
            true => Ok(()),
            false => Err(ConfigError::TableOverLimit {
                size: table.capacity,
                needed_mib: needed >> 20,
                limit_mib: limit.bytes >> 20,
                file: limit.file.clone(),
            }),
        }
    }

    /// The control socket's permissions.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn mode(&self) -> Result<u32, ConfigError> {
        match u32::from_str_radix(&self.socket_mode, 8) {
            Ok(mode @ ..=0o777) => Ok(mode),
            _ => wrong("socket_mode", &self.socket_mode, "an octal text such as \"0660\""),
        }
    }
}

/// The longest path of a control socket: what the system allows, less the ending `.new` with which it is made.
const SOCKET_MAX: usize = 103;

/// As many bytes as a rule of a real server has in a request, with all of its options.
const RULE_BYTES: u32 = 256;

/// Memory that xvsd has beside that of connections and packets, with few services.
const REST_BYTES: u64 = 16 << 20;

fn read_bytes(rules: &Path) -> Result<Vec<u8>, ConfigError> {
    fs::read(rules).map_err(|error| ConfigError::Rules { path: rules.to_owned(), text: error.to_string() })
}

fn parse_rules(path: &Path, bytes: &[u8]) -> Result<Vec<RuleLine>, ConfigError> {
    // A comment may be in any encoding; a rule that is not in ASCII is refused with its line.
    read_rules(&String::from_utf8_lossy(bytes), &SystemResolver::default())
        .map_err(|fault| ConfigError::Rules { path: path.to_owned(), text: fault.to_string() })
}

fn parsed<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text)
        .map_err(|error| ConfigError::Syntax { path: path.to_owned(), text: described(&error) })
}

/// The error with its place, in words instead of types of Rust, and with advice if a key is not known.
fn described(error: &toml::de::Error) -> String {
    let text = NUMBERS.iter().fold(error.to_string(), |text, (kind, words)| {
        text.replace(&format!("expected {kind}\n"), &format!("expected {words}\n"))
    });
    let mut quoted = error.message().split('`').skip(1).step_by(2);
    let unknown = error.message().starts_with("unknown field").then(|| quoted.next()).flatten();
    match unknown.and_then(|name| unknown_name::advice(name, quoted)) {
        // In place of the list of all keys.
        Some(advice) => {
            let meant = format!("unknown field `{}`; {advice}", unknown.unwrap_or_default());
            text.trim_end().replace(error.message(), &meant)
        }
        None => text,
    }
}

/// The types of numbers in a configuration.
const NUMBERS: [(&str, &str); 5] = [
    ("u8", "a number from 0 to 255"),
    ("u16", "a number from 0 to 65535"),
    ("u32", "a number from 0 to 4294967295"),
    ("u64", "a number, 0 or more"),
    ("usize", "a number, 0 or more"),
];

/// The settings of a document of xvs.toml by their keys, as `xvs get` names them.
fn keyed(document: serde_json::Value) -> Vec<(String, serde_json::Value)> {
    flattened("", document)
        .into_iter()
        .map(|(key, value)| (key.strip_prefix("ipvs.").unwrap_or(&key).to_owned(), value))
        .collect()
}

const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

#[cfg(test)]
mod tests {
    use xvs_model::config::reconcile::Repair;

    use super::*;

    fn error_of(text: &str) -> String {
        match toml::from_str::<Config>(text) {
            Err(error) => described(&error),
            Ok(config) => config.check().unwrap_err().to_string(),
        }
    }

    #[test]
    fn the_empty_file_is_the_default_configuration() {
        let mut config: Config = toml::from_str("").unwrap();
        assert_eq!(config, Config::default());
        assert!(matches!(config.check(), Err(ConfigError::NoInterface)));
        config.interfaces = config.interfaces.chosen(vec!["wan".to_owned()]);
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
        assert!(
            error.ends_with("\nunknown field `conn_tabel_size`; did you mean conn_table_size?"),
            "{error}"
        );
        let error = error_of("workers = 2\nconn_table_size = \"1 million\"\n");
        assert!(error.contains("line 2"), "{error}");
        let error = error_of("conn_table_memory = \"huge\"\n");
        assert!(error.contains("line 1") && error.contains("resident"), "{error}");
        let error = error_of("[ipvs]\nicmp_msgs_per_sec = \"1000/s\"\n");
        assert!(error.contains("line 2"), "{error}");
        let error = error_of("[ipvs]\nconn_reuse_mod = 1\n");
        assert!(error.contains("line 2") && error.contains("conn_reuse_mod"), "{error}");
        let error = error_of("[ipvs]\nconntrack = 1\n");
        assert!(error.contains("line 2") && error.contains("; it is always 0 in xvs"), "{error}");
        let error = error_of("[feedback]\nstep = 0\n");
        assert!(error.contains("line 2") && error.contains("1 to 1000"), "{error}");
        let error = error_of("[feedback]\nservices = \"TCP 80\"\n");
        assert!(error.contains("line 2") && error.contains("FWM 7"), "{error}");
        let error = error_of("workers = 2\nhold = \"2 days\"\n");
        assert!(error.contains("line 2") && error.contains("100ms to 1h"), "{error}");
        let error = error_of("workers = \"two\"\n");
        assert!(error.contains("expected a number, 0 or more\n") && !error.contains("usize"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_names_its_key_and_the_range() {
        assert!(error_of("workers = 0").contains("workers = 0"));
        for size in ["0", "5", "200000000"] {
            let error = error_of(&format!("conn_table_size = {size}"));
            assert_eq!(error, format!("conn_table_size = {size}: from 1024 to 134217728 connections"));
        }
        let error = error_of("steered_endpoints = 1023");
        assert_eq!(error, "steered_endpoints = 1023: from 1024 to 16777216 endpoints");
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
    fn a_socket_whose_path_is_too_long_for_the_system_is_refused() {
        let with =
            |length: usize| format!("interfaces = [\"wan\"]\nsocket = \"/{}\"\n", "s".repeat(length - 1));
        let config: Config = toml::from_str(&with(103)).unwrap();
        assert!(config.check().is_ok());
        let error = error_of(&with(104));
        assert!(
            error.starts_with("socket = \"/s") && error.ends_with(": a path of at most 103 bytes"),
            "{error}"
        );
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
        let config = Config { conn_table_size: table.capacity, ..Config::default() };
        let limit = |mib: u64| CgroupLimit { bytes: mib << 20, file: "/sys/fs/cgroup/memory.max".into() };
        let packet_bytes = 2 * (19 << 20);
        let error = config.check_limit(&table, packet_bytes, 0, &limit(100)).unwrap_err().to_string();
        let expected = "conn_table_size = 1048576: with a full table xvsd takes 295 MiB, and /sys/fs/cgroup/memory.max allows 100 MiB, \
                        so the kernel would kill it; raise the limit (MemoryMax= of the unit, --memory of the container) \
                        above that, or choose a smaller size";
        assert_eq!(error, expected);
        assert!(config.check_limit(&table, packet_bytes, 0, &limit(296)).is_ok());
        assert!(config.check_limit(&table, 4 * packet_bytes, 0, &limit(296)).is_err(), "with more workers");
        // 131,072 records of 384 bytes.
        let without_offload = Config { offload: OffloadMode::Off, ..config };
        assert!(without_offload.check_limit(&table, packet_bytes, 0, &limit(248)).is_ok());
    }

    #[test]
    fn reserved_huge_pages_hold_a_table_beside_the_limit_of_a_control_group_and_nothing_else() {
        let table = TableConfig { capacity: 1 << 20, workers: 2, memory: Memory::OnDemand };
        let config = Config { conn_table_size: table.capacity, state_directory: None, ..Config::default() };
        let fits = |config: &Config, table: &TableConfig, free_huge_mib: u64, limit_mib: u64| {
            let limit = CgroupLimit { bytes: limit_mib << 20, file: "/sys/fs/cgroup/memory.max".into() };
            config.check_limit(table, 2 * (19 << 20), free_huge_mib << 20, &limit).is_ok()
        };
        // Packet memory of 38 MiB, records of 48, timers of 16, maps of 8, and 16 for the rest; the table takes 169.
        assert!(fits(&config, &table, 170, 127));
        assert!(!fits(&config, &table, 170, 125), "the other memory does not fit");
        assert!(!fits(&config, &table, 168, 127), "too few are free");
        assert!(!fits(&config, &TableConfig { memory: Memory::SmallPages, ..table }, 170, 127));
        let in_files = Config { conn_table_size: table.capacity, ..Config::default() };
        assert!(!fits(&in_files, &table, 170, 127));
    }
}
