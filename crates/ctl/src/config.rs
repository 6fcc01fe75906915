//! `xvs.toml`: every key, its default, its unit. The empty file works.
//!
//! Read once, at start. Services stand elsewhere: in commands, and in the file that `rules` names.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use xvs_dataplane::conn::TableConfig;
use xvs_dataplane::shm::Memory;
use xvs_model::client::DEFAULT_SOCKET;
use xvs_model::load_feedback::Feedback;
use xvs_model::reconcile::Repair;
use xvs_model::rules::RuleLine;
use xvs_model::settings::Ipvs;
use xvs_xdp::RingSizes;

use crate::keepalived_conf::read_usable;
use crate::registry::SIP_CALLS;
use xvs_health::prepare::Prepared;
use xvs_ipvsadm::{SystemResolver, read_rules};

/// What `xvsd` is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The interfaces whose packets the director takes, by name. Default: none, so that nothing is attached unasked.
    pub interfaces: Vec<String>,
    /// How many workers, each pinned to a core of its own. Default: as many as the interface with the fewest receive
    /// queues has, but one less than the machine has cores, and at least one.
    pub workers: Option<usize>,
    /// How many connections the table holds. Default: 1,048,576. Memory is touched when used: 64 bytes each, 128 with IPv6.
    pub conn_table_size: usize,
    /// When the table's memory is allocated: `"on-demand"`, as it is used, or `"resident"`, at the start, in huge pages if
    /// the kernel finds them: for tables that are expected to fill. Default: on demand.
    pub conn_table_memory: TableMemory,
    /// How many SIP calls can be told apart at once, of all services with `--pe sip`, shared out among the workers. Default: 65,536. 264 bytes each, taken when the first such service is added.
    pub sip_calls: usize,
    /// How many frames each of a worker's queues has waiting for packets, a power of two. Default: 1,024.
    pub receive_ring: u32,
    /// How many frames each of a worker's queues may have waiting to be sent, a power of two. Default: 512. With both
    /// defaults and two interfaces a worker locks 7 MiB.
    pub transmit_ring: u32,
    /// The control socket. Default: `/run/xvs/xvsd.sock`.
    pub socket: PathBuf,
    /// The control socket's permissions, as an octal text. Default: `"0660"`: the daemon's user and the group `xvs`.
    pub socket_mode: String,
    /// Where Prometheus may scrape `/metrics`, as `"127.0.0.1:9112"`. Default: nowhere.
    pub metrics_address: Option<SocketAddr>,
    /// How many destinations of each service have metrics of their own. Default: 1,000; the service's own metrics
    /// contain all.
    pub metrics_destinations: usize,
    /// Rules to begin with, as `xvsadm -S` prints them. Default: none.
    pub rules: Option<PathBuf>,
    /// What is logged: `error`, `warn`, `info`, `debug`, or a filter such as `info,xvs_host::network=debug`.
    /// A filter is a list of `TARGET=LEVEL`; one word alone must be a level.
    pub log: String,
    /// What the kernel has as `net.ipv4.vs.*`.
    pub ipvs: Ipvs,
    /// Weights that follow load reports.
    pub feedback: Feedback,
    /// Services and health checks of a keepalived.conf.
    pub keepalived: Keepalived,
}

/// What is taken of a keepalived.conf.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keepalived {
    /// The file. Default: none.
    pub file: Option<PathBuf>,
    /// The machine that its lines with @ are for. Default: the first label of the host's name.
    pub config_id: Option<String>,
    /// Whether what somebody else changes of its services is put back within a second: `true` or `false`. Default: `false`,
    /// it is shown by `xvs health`.
    pub repair: Repair,
}

/// When the connection table's memory is allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableMemory {
    /// As it is used.
    OnDemand,
    /// At the start.
    Resident,
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
            conn_table_memory: TableMemory::OnDemand,
            sip_calls: SIP_CALLS,
            receive_ring: RingSizes::default().receive,
            transmit_ring: RingSizes::default().transmit,
            socket: PathBuf::from(DEFAULT_SOCKET),
            socket_mode: "0660".to_owned(),
            metrics_address: None,
            metrics_destinations: 1000,
            rules: None,
            log: "info".to_owned(),
            ipvs: Ipvs::default(),
            feedback: Feedback::default(),
            keepalived: Keepalived::default(),
        }
    }
}

/// Why a configuration is not used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {error}; name another file with --config, or leave it out", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's word.
        error: std::io::Error,
    },
    /// The file is not what it should be; the text names line and column.
    #[error("{path}: {text}", path = path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        text: String,
    },
    /// The rules to begin with cannot be read; the text names the line.
    #[error("rules {path}: {text}; mend it, or leave `rules` out and run `xvsadm -R`", path = path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        text: String,
    },
    /// The keepalived.conf cannot be used; the text names each error with its line.
    #[error("{text}\n{path}: refused; `xvs check --keepalived {path}` shows all of it", path = path.display())]
    Keepalived {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        text: String,
    },
    /// A connection table that the machine could not hold.
    #[error(
        "conn_table_size = {size}: full, it takes {needed_mib} MiB, and the machine has {memory_mib} MiB; make it smaller"
    )]
    TableTooLarge {
        /// How many connections.
        size: usize,
        /// What they take, in MiB.
        needed_mib: u64,
        /// All that the machine has, in MiB.
        memory_mib: u64,
    },
    /// None is named.
    #[error("no interface to take packets from; name one with --interface, or `interfaces` in xvs.toml")]
    NoInterface,
    /// One is named twice.
    #[error("interface {0} is named twice")]
    InterfaceTwice(String),
    /// A value that cannot be.
    #[error("{key} = {value}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// What it was given.
        value: String,
        /// What it must be.
        why: &'static str,
    },
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// The file and the line that is wrong.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Syntax { path: path.to_owned(), text: error.to_string() })
    }

    /// Checks what the syntax cannot.
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
        if !(1024..=1 << 24).contains(&self.sip_calls) {
            return wrong("sip_calls", self.sip_calls.to_string(), "from 1024 to 16777216 calls");
        }
        for (key, ring) in [("receive_ring", self.receive_ring), ("transmit_ring", self.transmit_ring)] {
            if !ring.is_power_of_two() || !(64..=1 << 16).contains(&ring) {
                return wrong(key, ring.to_string(), "a power of two from 64 to 65536 frames");
            }
        }
        self.mode()?;
        self.log_filter()?;
        let mut seen = BTreeSet::new();
        match self.interfaces.iter().find(|name| !seen.insert(*name)) {
            _ if self.interfaces.is_empty() => Err(ConfigError::NoInterface),
            Some(twice) => Err(ConfigError::InterfaceTwice(twice.clone())),
            None => Ok(()),
        }
    }

    /// Reads the rules to begin with; none if no file is named.
    ///
    /// # Errors
    /// [`ConfigError::Rules`].
    pub fn read_rules(&self) -> Result<Vec<RuleLine>, ConfigError> {
        let Some(path) = &self.rules else { return Ok(Vec::new()) };
        let wrong = |text| ConfigError::Rules { path: path.clone(), text };
        let bytes = fs::read(path).map_err(|error| wrong(error.to_string()))?;
        // A comment may be in any encoding; a rule that is not in ASCII is told by its line.
        read_rules(&String::from_utf8_lossy(&bytes), &SystemResolver::default()).map_err(wrong)
    }

    /// Reads the keepalived.conf; `None` if no file is named.
    ///
    /// # Errors
    /// [`ConfigError::Keepalived`].
    pub fn read_keepalived(&self) -> Result<Option<Prepared>, ConfigError> {
        let Some(path) = &self.keepalived.file else { return Ok(None) };
        let read = read_usable(path, self.keepalived.config_id.as_deref());
        read.map(Some).map_err(|text| ConfigError::Keepalived { path: path.clone(), text })
    }

    /// What is logged.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn log_filter(&self) -> Result<EnvFilter, ConfigError> {
        let wrong = || ConfigError::Value {
            key: "log",
            value: format!("{:?}", self.log),
            why: "error, warn, info, debug, or a filter such as info,xvs_host::network=debug",
        };
        // The filter takes an unknown word for the name of a target, and then nothing else is logged.
        let is_word = !self.log.contains(['=', ',']);
        if is_word && !LEVELS.contains(&self.log.as_str()) {
            return Err(wrong());
        }
        EnvFilter::try_new(&self.log).map_err(|_| wrong())
    }

    /// Checks a table against the machine: its memory is touched when used, so a table that is too large would be
    /// found out by those whose connections fill it. `memory_bytes` is all that the machine has.
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

    /// The control socket's permissions as a number.
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
    fn a_keepalived_conf_is_named_with_who_reads_it_and_whether_its_services_are_put_back() {
        let text =
            "[keepalived]\nfile = \"/etc/keepalived/keepalived.conf\"\nconfig_id = \"lb1\"\nrepair = true";
        let Config { keepalived, .. } = toml::from_str(text).unwrap();
        assert_eq!(keepalived.file, Some("/etc/keepalived/keepalived.conf".into()));
        assert_eq!((keepalived.config_id.as_deref(), keepalived.repair), (Some("lb1"), Repair::Always));
        assert_eq!(Keepalived::default().repair, Repair::Never);
    }

    #[test]
    fn an_interface_named_twice_is_refused_by_its_name() {
        let error = error_of("interfaces = [\"wan\", \"lan\", \"wan\"]");
        assert_eq!(error, "interface wan is named twice");
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_a_filter_is_taken() {
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
    fn a_table_that_would_outgrow_the_machine_is_refused_with_both_sizes() {
        let table = TableConfig { capacity: 1 << 20, workers: 2, memory: Memory::OnDemand };
        // 128 bytes an entry, 25 of index, 8 for each worker's timers, and a little for what workers hold back.
        let full = 169 << 20;
        assert!(Config::check_table(&table, full + (1 << 20)).is_ok());
        let error = Config::check_table(&table, full - 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "conn_table_size = 1048576: full, it takes 169 MiB, and the machine has 168 MiB; make it smaller"
        );
    }
}
