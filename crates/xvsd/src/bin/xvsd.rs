//! `xvsd`: the director's daemon, in the foreground.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded, select};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use xvs_ctl::arguments::{Arguments, parsed};
use xvs_ctl::config::{Config, ConfigError};
use xvs_ctl::journal::start::Files;
use xvs_health::prepare::Prepared;
use xvs_helper::process::Rules;
use xvs_helper::{client, process};
use xvsd::daemon::Daemon;
use xvsd::daemon::ending::{Ending, Stop};
use xvsd::daemon::watchdog::Watchdog;
use xvsd::error::DaemonError;
use xvsd::fleet::check_files;
use xvsd::health_checks::HealthError;
use xvsd::keepalived_conf;
use xvsd::keepalived_conf::Loss;
use xvsd::log::Log;
use xvsd::metrics::admission::Admission;
use xvsd::metrics::exporter::Listener;
use xvsd::reload::Reloader;
use xvsd::restart::successor;
use xvsd::restart::take_over::{TakeOver, TakeOverError};
use xvsd::rights;
use xvsd::rights::scripts::permits;
use xvsd::rights::seccomp;
use xvsd::socket::dispatch::Dispatch;
use xvsd::socket::{Server, Settings, check_folder};
use xvsd::threads::{panicked, spawn_stoppable};

/// The rules of its helper.
const RULES: Rules = Rules { successor: successor::starter, permits, tasks: rights::TASKS };

fn main() -> ExitCode {
    if let Some(code) = process::serve_if_one(successor::command, RULES) {
        return code;
    }
    successor::take_name();
    successor::tell_number();
    let arguments: Arguments = match parsed() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let takes_over = arguments.takes_over();
    if takes_over && !successor::is_one() {
        return successor::start();
    }
    let config = match arguments.clone().config() {
        Ok(config) => config,
        Err(error) => return fail(&error, MISCONFIGURED, None),
    };
    if let Err(error) = process::start(successor::command()) {
        return fail(&error, FAILED, None);
    }
    let take_over = takes_over.then(|| TakeOver::connect(&config.socket));
    // Before there are other threads, each of which would have separate rights.
    if let Err(error) = rights::give_up(&config) {
        return fail(&error, if error.is_lasting() { MISCONFIGURED } else { FAILED }, None);
    }
    let log = match config
        .log_filter()
        .map_err(Box::<dyn Error>::from)
        .and_then(|filter| Ok(Log::to_stderr(filter, config.log_format, io::stderr().is_terminal())?))
    {
        Ok(log) => log,
        Err(error) => return fail(&*error, FAILED, None),
    };
    match run(arguments, &config, take_over, &log) {
        Ok(code) => code,
        Err(error) => {
            // The fault may be a refused call that the control thread has not reported yet.
            seccomp::warnings().for_each(|warning| tracing::warn!("{warning}"));
            let lasting = match error.downcast_ref() {
                // A certificate may be being renewed: a supervisor tries again.
                Some(ConfigError::Credentials(_)) => false,
                Some(_) => true,
                None if matches!(error.downcast_ref(), Some(HealthError::File(_))) => true,
                None => error.downcast_ref().is_some_and(DaemonError::is_lasting),
            };
            fail(&*error, if lasting { MISCONFIGURED } else { FAILED }, Some(log))
        }
    }
}

/// The content of the files that the configuration names.
struct ReadFiles {
    state: Files,
    keepalived: Option<Prepared>,
    admission: Admission,
}

impl ReadFiles {
    fn of(config: &Config) -> Result<Self, ConfigError> {
        // They may be being renewed, and are read again for each connection; a reload refuses them.
        if let Err(error) = check_files(&config.fleet) {
            tracing::warn!("{error}");
        }
        Ok(Self {
            state: config.read_files()?,
            keepalived: keepalived_conf::of(config)?,
            admission: Admission::read(config)?,
        })
    }
}

/// Runs the daemon until a signal or a fault ends it.
fn run(
    arguments: Arguments,
    config: &Config,
    take_over: Option<Result<TakeOver, TakeOverError>>,
    log: &Log,
) -> Result<ExitCode, Box<dyn Error>> {
    let takes_over = take_over.is_some();
    client::follow()?;
    let files = ReadFiles::of(config)?;
    rights::check()?;
    // Before anything is started, so that a signal during the start also ends in order.
    let signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (stop, stop_requests) = bounded(1);
    // A second SIGHUP waits while one is carried out; further ones are covered by the second.
    let (reload, reload_signal) = bounded(1);
    spawn_stoppable("xvs-signals", {
        let stop = stop.clone();
        move || forward_signals(signals, &stop, &reload)
    })?;
    let dispatch = Arc::new(Dispatch::new(stop));
    let settings = Settings {
        mode: config.mode()?,
        request_limit_bytes: config.request_limit_bytes(),
        ..Settings::of(&config.socket)
    };
    let mut take_over = take_over.transpose()?;
    if takes_over {
        check_folder(&config.socket)?;
    }
    take_over.as_mut().map(TakeOver::begin).transpose()?;
    let listening = if takes_over {
        None
    } else {
        let server = Server::start(settings.clone(), dispatch.clone())?;
        Some((server, config.metrics_address.map(Listener::bind).transpose()?))
    };
    let mut daemon = Daemon::start(config, log.losses(), take_over.as_ref())?;
    let loss = if arguments.accepts_loss() { Loss::Accepted } else { Loss::Refused };
    if let Err(error) = serve(&mut daemon, config, (files.state, files.keepalived), loss, take_over) {
        daemon.stop(Ending::Hold);
        return Err(error);
    }
    let (server, listener) = match listening {
        Some(listening) => listening,
        // The socket and the address of the former xvsd are free now, and this one must go on in any case.
        None => (start_server(&settings, &dispatch, &stop_requests)?, bind_metrics(config)),
    };
    let metrics = (listener, files.admission);
    let reloader = Reloader::start((arguments, config.clone()), daemon.handle(), log.set(), metrics)?;
    dispatch.open(daemon.handle(), reloader.clone());
    spawn_stoppable("xvs-reload", {
        let reloader = reloader.clone();
        move || reload_on_signal(&reload_signal, &reloader)
    })?;
    tracing::info!(
        "ready: {} on {}",
        config.interfaces.names().collect::<Vec<_>>().join(", "),
        config.socket.display()
    );
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!("systemd could not be notified: {error}");
    }
    if takes_over {
        successor::is_ready();
    }
    let watchdog = Watchdog::start(daemon.handle())?;
    let (code, ending) = select! {
        recv(stop_requests) -> request => {
            let Stop { why, ending } = request?;
            tracing::info!("{why}: stopping");
            (ExitCode::SUCCESS, ending)
        }
        recv(daemon.ended()) -> thread => unexpected(&thread.unwrap_or_default()),
        recv(panicked()) -> thread => unexpected(&thread.unwrap_or_default()),
    };
    end_in_time();
    drop(watchdog);
    drop(server);
    reloader.stop();
    daemon.stop(ending);
    tracing::info!("stopped");
    Ok(code)
}

/// Puts the rules and the services of the health checks in force, and begins to forward.
fn serve(
    daemon: &mut Daemon,
    config: &Config,
    (rules, keepalived): (Files, Option<Prepared>),
    loss: Loss,
    take_over: Option<TakeOver>,
) -> Result<(), Box<dyn Error>> {
    daemon.begin(rules)?;
    daemon.follow_fleet(&config.fleet)?;
    daemon.follow_kernel(&config.kernel)?;
    daemon.start_health_checks(&config.keepalived, keepalived, loss)?;
    Ok(daemon.serve(take_over)?)
}

/// Starts the server of the control socket. Tries again until that succeeds, or there is a request to stop.
fn start_server(
    settings: &Settings,
    dispatch: &Arc<Dispatch>,
    stop_requests: &Receiver<Stop>,
) -> Result<Server, Box<dyn Error>> {
    loop {
        match Server::start(settings.clone(), dispatch.clone()) {
            Err(error) if stop_requests.is_empty() => {
                tracing::error!("{error}; tried again every second");
                thread::sleep(Duration::from_secs(1));
            }
            started => return Ok(started?),
        }
    }
}

/// Binds the address of metrics, if there is one and the system permits it.
fn bind_metrics(config: &Config) -> Option<Listener> {
    config.metrics_address.map(Listener::bind).transpose().unwrap_or_else(|error| {
        tracing::error!("{error}; no metrics are served until the next `xvsd --take-over`");
        None
    })
}

/// Ends this process by force if its orderly end takes too long, because a thread hangs.
fn end_in_time() {
    // Without a thread the end is only orderly.
    let _ = spawn_stoppable("xvs-ending", || {
        thread::sleep(ENDING);
        tracing::error!("a thread has hung for {ENDING:?}, by a bug of xvsd: ending at once");
        std::process::exit(i32::from(FAILED));
    });
}

fn unexpected(thread: &str) -> (ExitCode, Ending) {
    tracing::error!("the thread {thread} has ended unexpectedly, by a bug of xvsd; stopping");
    (ExitCode::from(FAILED), Ending::Hold)
}

/// Forwards signals. A second signal to stop ends the process at once.
fn forward_signals(mut signals: Signals, stop: &Sender<Stop>, reload: &Sender<()>) {
    let mut stopping = false;
    for signal in signals.forever() {
        match signal {
            // A reload that waits already covers this one.
            SIGHUP => _ = reload.try_send(()),
            _ if stopping => {
                tracing::warn!("signal {signal} again: ending at once");
                std::process::exit(i32::from(FAILED));
            }
            _ => {
                stopping = true;
                // Received by `run`, unless it is stopping already.
                let _ = stop.send(Stop { why: format!("signal {signal}"), ending: Ending::Hold });
            }
        }
    }
}

/// Reads the files again at each SIGHUP.
fn reload_on_signal(signals: &Receiver<()>, reloader: &Reloader) {
    for () in signals {
        match reloader.reload(Loss::Refused) {
            Ok(changes) => changes.lines().for_each(|line| tracing::info!("SIGHUP: {line}")),
            Err(error) => tracing::error!("SIGHUP: {error}"),
        }
    }
}

/// Prints the error in one line, after those of the log if there is one.
fn fail(error: &dyn Error, code: u8, log: Option<Log>) -> ExitCode {
    // First, because writing may wait for a reader.
    if successor::is_one() {
        successor::has_failed(error);
    }
    if !log.is_some_and(|log| log.end(error)) {
        // If it cannot be read there, the exit code remains.
        let _ = writeln!(io::stderr(), "xvsd: {error}");
    }
    ExitCode::from(code)
}

/// How long an orderly end may take; systemd kills a process after 90 s.
const ENDING: Duration = Duration::from_secs(30);
/// The daemon could not start, or ended by a fault.
const FAILED: u8 = 1;
/// The command line, xvs.toml or the rights are wrong, so that a retry fails again; clap uses the same code.
const MISCONFIGURED: u8 = 2;
