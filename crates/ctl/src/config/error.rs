//! Errors for which a configuration is refused, each with the next step.

use std::fmt::Debug;
use std::path::PathBuf;

use thiserror::Error;

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
    #[error("rules {path}: {text}; `xvs check {path}` shows all faults", path = path.display())]
    Rules {
        /// The file.
        path: PathBuf,
        /// The error and its place.
        text: String,
    },
    /// keepalived.conf cannot be used; the text names each error with its line.
    #[error("{text}\n{path}: refused; `xvs check --keepalived {path}` shows all faults", path = path.display())]
    Keepalived {
        /// The file.
        path: PathBuf,
        /// The error and its place.
        text: String,
    },
    /// A certificate, key or token file for metrics, or a certificate or key file for etcd, cannot be used; the text
    /// names it and its key of xvs.toml.
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
        "conn_table_size = {size}: with a full table xvsd takes {needed_mib} MiB, and {file} allows {limit_mib} MiB, so the kernel \
         would kill it; raise the limit (MemoryMax= of the unit, --memory of the container) above that, or choose a smaller size",
        file = file.display()
    )]
    TableOverLimit {
        /// The number of connections.
        size: usize,
        /// The memory that xvsd takes with so many of them, reserved huge pages excepted, in MiB.
        needed_mib: u64,
        /// The limit, in MiB.
        limit_mib: u64,
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
        /// The value.
        value: String,
        /// The valid values.
        why: &'static str,
    },
}

/// Refuses the value of a key, which is printed like text in xvs.toml.
pub(super) fn wrong<T>(key: &'static str, value: impl Debug, why: &'static str) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, value: format!("{value:?}"), why })
}
