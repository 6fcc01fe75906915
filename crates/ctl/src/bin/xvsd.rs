//! `xvsd`: the director's daemon, in the foreground.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing_subscriber::EnvFilter;
use xvs_ctl::config::Config;
use xvs_ctl::daemon::Daemon;
use xvs_ctl::front::Front;
use xvs_ctl::server::{Server, Settings};

/// The director: takes the packets of virtual services from its interfaces and sends them to real servers.
///
/// Runs in the foreground until SIGTERM or SIGINT. Services are configured with xvsadm.
#[derive(Debug, Parser)]
#[command(name = "xvsd", version)]
struct Arguments {
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
    /// Log error, warn, info or debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Arguments {
    fn config(self) -> anyhow::Result<Config> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        if !self.interfaces.is_empty() {
            config.interfaces = self.interfaces;
        }
        config.workers = self.workers.or(config.workers);
        config.socket = self.socket.unwrap_or(config.socket);
        config.conn_table_size = self.conn_table_size.unwrap_or(config.conn_table_size);
        config.log = self.log.unwrap_or(config.log);
        config.check()?;
        Ok(config)
    }
}

fn main() -> anyhow::Result<()> {
    let config = Arguments::parse().config()?;
    let filter = EnvFilter::try_new(&config.log).with_context(|| format!("log = {:?}", config.log))?;
    let stderr = std::io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    // Before anything is touched, so that a signal during the start still ends in order.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let front = Arc::new(Front::default());
    let settings = Settings { mode: config.mode()?, ..Settings::of(&config.socket) };
    let server = Server::start(settings, front.clone())?;
    let daemon = Daemon::start(&config)?;
    front.open(daemon.handle());
    tracing::info!("ready: {} on {}", config.interfaces.join(", "), config.socket.display());
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("systemd was not told: {error}");
    }
    if let Some(signal) = signals.forever().next() {
        tracing::info!("signal {signal}: stopping");
    }
    drop(server);
    daemon.stop();
    tracing::info!("stopped");
    Ok(())
}
