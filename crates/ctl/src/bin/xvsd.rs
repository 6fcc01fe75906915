//! `xvsd`: the director's daemon, in the foreground.

use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::thread;

use clap::Parser;
use crossbeam::channel::{Sender, bounded, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xvs_ctl::adm::RuleLine;
use xvs_ctl::config::{Config, ConfigError};
use xvs_ctl::daemon::Daemon;
use xvs_ctl::exporter::Listener;
use xvs_ctl::front::Front;
use xvs_ctl::metrics;
use xvs_ctl::server::{Server, Settings};

/// The director: takes the packets of virtual services from its interfaces and sends them to real servers.
///
/// Runs in the foreground until SIGTERM or SIGINT; a second one ends it at once. Services are configured with xvsadm.
/// Exits with 0 when told to end, 2 if command line or configuration are wrong, 1 if it cannot start or has a fault.
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
    /// Begin with the rules of this file, as `xvsadm -Sn` prints them
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// Let Prometheus scrape /metrics at this address and port
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Log error, warn, info or debug
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
}

impl Arguments {
    fn config(self) -> Result<Config, ConfigError> {
        let mut config = self.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
        if !self.interfaces.is_empty() {
            config.interfaces = self.interfaces;
        }
        config.workers = self.workers.or(config.workers);
        config.socket = self.socket.unwrap_or(config.socket);
        config.conn_table_size = self.conn_table_size.unwrap_or(config.conn_table_size);
        config.rules = self.rules.or(config.rules);
        config.metrics_address = self.metrics.or(config.metrics_address);
        config.log = self.log.unwrap_or(config.log);
        config.check()?;
        Ok(config)
    }
}

fn main() -> ExitCode {
    let config = match Arguments::parse().config() {
        Ok(config) => config,
        Err(error) => return fail(&error, MISCONFIGURED),
    };
    let rules = match config.read_rules() {
        Ok(rules) => rules,
        Err(error) => return fail(&error, MISCONFIGURED),
    };
    match run(&config, rules) {
        Ok(code) => code,
        Err(error) => fail(&*error, FAILED),
    }
}

/// From the first socket to the last packet.
fn run(config: &Config, rules: Vec<RuleLine>) -> Result<ExitCode, Box<dyn Error>> {
    let stderr = std::io::stderr;
    tracing_subscriber::fmt()
        .with_env_filter(config.log_filter()?)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .init();
    // Before anything is touched, so that a signal during the start still ends in order.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (stop, told_to_stop) = bounded(1);
    thread::Builder::new().name("xvs-signals".to_owned()).spawn(move || heed(signals, &stop))?;
    let front = Arc::new(Front::default());
    let settings = Settings { mode: config.mode()?, ..Settings::of(&config.socket) };
    let server = Server::start(settings, front.clone())?;
    let listener = config.metrics_address.map(Listener::bind).transpose()?;
    let daemon = Daemon::start(config)?;
    if let Err(error) = daemon.load(rules) {
        daemon.stop();
        return Err(format!("rules: {error}").into());
    }
    front.open(daemon.handle());
    let handle = daemon.handle();
    let told = config.metrics_destinations;
    let serve = |listener: Listener| listener.serve(move || metrics::page(handle.shared(), told));
    let exporter = listener.map(serve).transpose()?;
    tracing::info!("ready: {} on {}", config.interfaces.join(", "), config.socket.display());
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("systemd was not told: {error}");
    }
    let code = select! {
        recv(told_to_stop) -> signal => {
            tracing::info!("signal {}: stopping", signal.unwrap_or_default());
            ExitCode::SUCCESS
        }
        recv(daemon.ended()) -> thread => {
            tracing::error!("the thread {} has ended by a fault of xvsd; stopping", thread.unwrap_or_default());
            ExitCode::from(FAILED)
        }
    };
    drop(server);
    drop(exporter);
    daemon.stop();
    tracing::info!("stopped");
    Ok(code)
}

/// Passes the first signal to end on; at the second one nobody wants to wait any more.
fn heed(mut signals: Signals, stop: &Sender<i32>) {
    let mut stopping = false;
    for signal in signals.forever() {
        match signal {
            SIGHUP => {
                tracing::warn!("SIGHUP: xvsd does not read its configuration anew; restart it for that")
            }
            _ if stopping => {
                tracing::warn!("signal {signal} again: ending at once");
                process::exit(i32::from(FAILED));
            }
            _ => {
                stopping = true;
                // Main waits for it, unless it is ending already.
                let _ = stop.send(signal);
            }
        }
    }
}

/// Says why, on a line.
fn fail(error: &dyn Error, code: u8) -> ExitCode {
    eprintln!("xvsd: {error}");
    ExitCode::from(code)
}

/// It could not start, or a fault ended it.
const FAILED: u8 = 1;
/// The command line or xvs.toml is wrong; clap exits with the same.
const MISCONFIGURED: u8 = 2;
