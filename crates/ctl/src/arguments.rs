//! What `xvsd` takes on its command line: read by the program, and by whoever writes its manual page and completion.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{Config, ConfigError};

/// The director: takes the packets of virtual services from its interfaces and sends them to real servers.
///
/// Runs in the foreground until SIGTERM or SIGINT; a second one ends it at once. Services are configured with xvsadm.
/// Exits with 0 when told to end, 2 if command line or configuration are wrong, 1 if it cannot start or has a fault.
#[derive(Debug, Parser)]
#[command(name = "xvsd", version)]
pub struct Arguments {
    /// Read xvs.toml; what is said here as well overrides it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take packets from this interface; may be given several times
    #[arg(long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Run so many workers, each on a core of its own
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Listen for commands on this socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Hold so many connections
    #[arg(long, value_name = "N")]
    conn_table_size: Option<usize>,
    /// Begin with the rules of this file, as `xvsadm -Sn` prints them
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Begin with the virtual servers of this keepalived.conf, and make its health checks
    #[arg(long, value_name = "FILE")]
    keepalived: Option<PathBuf>,
    /// The machine that its lines with @ are for [default: the first label of this host's name]
    #[arg(long, value_name = "ID")]
    config_id: Option<String>,
    /// Let Prometheus scrape /metrics at this address and port
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Log error, warn, info or debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Arguments {
    /// What it says in all: the file, where one is named, overridden by what else is said.
    ///
    /// # Errors
    /// Those of the file, and of what is said.
    pub fn config(self) -> Result<Config, ConfigError> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        if !self.interfaces.is_empty() {
            config.interfaces = self.interfaces;
        }
        config.workers = self.workers.or(config.workers);
        config.socket = self.socket.unwrap_or(config.socket);
        config.conn_table_size = self.conn_table_size.unwrap_or(config.conn_table_size);
        config.rules = self.rules.or(config.rules);
        config.keepalived.file = self.keepalived.or(config.keepalived.file);
        config.keepalived.config_id = self.config_id.or(config.keepalived.config_id);
        config.metrics_address = self.metrics.or(config.metrics_address);
        config.log = self.log.unwrap_or(config.log);
        config.check()?;
        Ok(config)
    }
}

/// This process's command line, or how to exit where it is wrong or asks for help, which was printed.
pub fn parsed<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|told| match told.print() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("standard output: {error}");
            ExitCode::FAILURE
        }
        // 0 or 2.
        _ => ExitCode::from(told.exit_code() as u8),
    })
}
