//! `xvsd --take-over`, the successor's side: the successor prepares everything while the running xvsd forwards. Then
//! the running xvsd closes its sockets, and the successor continues with the same connection table.
//!
//! The steps are requests over the control socket of the running xvsd, which forwards again if the successor ends
//! before the last one. `hand_over.rs` is the side of the running xvsd.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use xvs_host::process::{END, Process};
use xvs_model::protocol::client::{Client, Failure};
use xvs_model::protocol::question::Request;
use xvs_model::protocol::request::TakeOverStep;
use xvs_model::protocol::{late_reply, question};

/// A take-over that is under way.
pub struct TakeOver {
    client: Client,
    /// The running xvsd. Its reply to the first step shows that the process had not ended when this was opened.
    former: Option<Process>,
    socket: PathBuf,
    /// When the running xvsd stopped forwarding.
    paused_at: Instant,
    /// The time without forwarding.
    pause_time: Duration,
    watchdog: Option<Duration>,
}

/// Waits for the answer to a step, but not for ever: the running xvsd may hang.
fn await_answer(stream: &UnixStream, request: &Request) -> Result<(), Failure> {
    late_reply::wait(stream, request, &mut |notice| tracing::warn!("{notice}"))
}

/// Why a take-over fails. The running xvsd continues.
#[derive(Debug, Error)]
#[error("{socket}: xvsd cannot be taken over: {why}{step}", socket = socket.display(), step = step(why))]
pub struct TakeOverError {
    socket: PathBuf,
    why: Failure,
}

/// The step after a failure that does not name one.
fn step(why: &Failure) -> &'static str {
    match why {
        Failure::Transport(_) => "; if none runs, start it without --take-over",
        Failure::Refused(_) | Failure::Printing(_) => "",
    }
}

impl TakeOver {
    /// Connects to the running xvsd, which from now on knows this process by its present user.
    ///
    /// # Errors
    /// No xvsd runs.
    pub fn connect(socket: &Path) -> Result<Self, TakeOverError> {
        let client =
            Client::connect(socket).map_err(|why| TakeOverError { socket: socket.to_owned(), why })?;
        Ok(Self {
            client: client.waiting_by(await_answer),
            former: None,
            socket: socket.to_owned(),
            paused_at: Instant::now(),
            pause_time: Duration::ZERO,
            watchdog: None,
        })
    }

    /// Announces the successor. From now on the running xvsd changes nothing but connections.
    ///
    /// # Errors
    /// It refuses.
    pub fn begin(&mut self) -> Result<(), TakeOverError> {
        self.former =
            self.client.process().and_then(|number| Process::of_peer(self.client.socket(), number).ok());
        self.watchdog = self.step(TakeOverStep::Begin)?.map(Duration::from_millis);
        Ok(())
    }

    /// The time of systemd's watchdog, which the running xvsd notifies.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Lets the running xvsd close its sockets.
    ///
    /// # Errors
    /// It does not answer, or has given up.
    pub fn pause(&mut self) -> Result<(), TakeOverError> {
        self.paused_at = Instant::now();
        self.step(TakeOverStep::Pause).map(drop)
    }

    /// Takes the connection table: the running xvsd cannot simply continue any more.
    ///
    /// # Errors
    /// As for [`Self::pause`].
    pub fn take_table(&mut self) -> Result<(), TakeOverError> {
        self.step(TakeOverStep::TakeTable).map(drop)
    }

    /// Notes that this process forwards.
    pub(crate) fn forwards(&mut self) {
        self.pause_time = self.paused_at.elapsed();
    }

    /// The time without forwarding.
    pub fn pause_time(&self) -> Duration {
        self.pause_time
    }

    /// Ends the former xvsd, and returns when it has ended.
    pub fn end_former(mut self) {
        // Without a reply it has ended already.
        let _ = self.step(TakeOverStep::Done);
        if let Some(former) = self.former.filter(|former| !former.ends_within(END)) {
            tracing::warn!("the former xvsd does not end: it is killed");
            if !former.kill() {
                tracing::error!(
                    "the former xvsd still runs, and keeps its socket; end it as root: kill -KILL"
                );
            }
        }
    }

    /// Carries out a step. The answer to the first one is the time of systemd's watchdog in milliseconds.
    fn step(&mut self, step: TakeOverStep) -> Result<Option<u64>, TakeOverError> {
        question::take_over(step)
            .ask(&mut self.client)
            .map_err(|why| TakeOverError { socket: self.socket.clone(), why })
    }
}
