//! The command line of `xvsd`, also the source of its manual page and shell completion.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use xvs_model::config::hold::HoldTime;
use xvs_model::report::setting::Source;

use crate::config::{Config, ConfigError};

/// The director: receives packets of virtual services on its interfaces and forwards them to real servers.
///
/// Runs in the foreground until SIGTERM or SIGINT; a second signal ends it at once. Services are configured with
/// xvsadm. Exit code: 0 after a signal, 2 for a wrong command line or configuration or missing rights, which a
/// retry does not change, 1 for another failed start or an internal fault.
#[derive(Debug, Clone, Parser)]
#[command(name = "xvsd", version)]
pub struct Arguments {
    /// The file xvs.toml; other options override its values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Interface that receives packets; may be given several times
    #[arg(long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// Number of workers, each on its own core
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Unix socket for commands
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Size of the connection table, in connections
    #[arg(long, value_name = "N")]
    conn_table_size: Option<usize>,
    /// Rules at the start, as printed by `xvsadm -Sn`
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// keepalived.conf whose virtual servers and health checks run
    #[arg(long, value_name = "FILE")]
    keepalived: Option<PathBuf>,
    /// Name that selects lines with @ of the keepalived.conf [default: the first label of the host name]
    #[arg(long, value_name = "ID")]
    config_id: Option<String>,
    /// Start also if a fault of the keepalived.conf ends services that it served before
    #[arg(long)]
    accept_loss: bool,
    /// Address and port at which Prometheus scrapes /metrics
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Time for which packets of services are kept from the kernel after xvsd has ended, such as 10s; 0: none
    #[arg(long, value_name = "TIME")]
    hold: Option<HoldTime>,
    /// Directory on a tmpfs for the state that outlives xvsd, such as the connection table; "": none
    #[arg(long, value_name = "DIR")]
    state_directory: Option<String>,
    /// Take over from the running xvsd of this socket without losing a connection, and return once the successor
    /// forwards; the successor runs in the background
    #[arg(long)]
    take_over: bool,
    /// Log level: error, warn, info or debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Arguments {
    /// Whether it takes over from a running xvsd.
    pub fn takes_over(&self) -> bool {
        self.take_over
    }

    /// Whether services may end by a fault of the keepalived.conf.
    pub fn accepts_loss(&self) -> bool {
        self.accept_loss
    }

    /// The file xvs.toml.
    pub fn file(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// The configuration: the file's, if one is given, overridden by the other options.
    ///
    /// # Errors
    /// The errors of [`Config::read`] and [`Config::check`].
    pub fn config(self) -> Result<Config, ConfigError> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        let sources = &mut config.sources;
        if !self.interfaces.is_empty() {
            config.interfaces = config.interfaces.chosen(self.interfaces);
            sources.insert("interfaces".to_owned(), Source::CommandLine);
        }
        let directory =
            self.state_directory.map(|directory| (!directory.is_empty()).then(|| directory.into()));
        set(sources, "workers", self.workers.map(Some), &mut config.workers);
        set(sources, "socket", self.socket, &mut config.socket);
        set(sources, "conn_table_size", self.conn_table_size, &mut config.conn_table_size);
        set(sources, "rules", self.rules.map(Some), &mut config.rules);
        set(sources, "keepalived.file", self.keepalived.map(Some), &mut config.keepalived.file);
        set(sources, "keepalived.config_id", self.config_id.map(Some), &mut config.keepalived.config_id);
        set(sources, "metrics_address", self.metrics.map(Some), &mut config.metrics_address);
        set(sources, "hold", self.hold, &mut config.hold);
        set(sources, "state_directory", directory, &mut config.state_directory);
        set(sources, "log", self.log, &mut config.log);
        config.check()?;
        Ok(config)
    }
}

/// Overrides a value of xvs.toml by that of an option, if it is given.
fn set<T>(sources: &mut BTreeMap<String, Source>, key: &str, given: Option<T>, value: &mut T) {
    if let Some(given) = given {
        sources.insert(key.to_owned(), Source::CommandLine);
        *value = given;
    }
}

/// Parses this process's command line. On a fault, or a request for help or the version, the text was printed.
///
/// # Errors
/// The exit code: 0 for help, 1 if help cannot be printed, 2 for a wrong command line.
pub fn parsed<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| match error.print() {
        Err(failed) if failed.kind() != io::ErrorKind::BrokenPipe && !error.use_stderr() => {
            let _ = writeln!(io::stderr(), "standard output: {failed}");
            ExitCode::FAILURE
        }
        // 0 or 2.
        _ => ExitCode::from(error.exit_code() as u8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_of_the_command_line_takes_the_place_of_the_default_and_an_empty_one_is_none() {
        for (given, expected) in [("/dev/shm/of-mine", Some("/dev/shm/of-mine")), ("", None)] {
            let words = ["xvsd", "--interface", "eth0", "--state-directory", given];
            let config = Arguments::parse_from(words).config().unwrap();
            assert_eq!(config.state_directory.as_deref(), expected.map(Path::new));
            assert!(config.is_given("state_directory"));
        }
    }
}
