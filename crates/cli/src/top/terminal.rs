//! The terminal of `xvs top`: draws a view, passes keys to it, and samples the director at every interval.
//!
//! The terminal is restored at the end, after a key, a signal, an error or a panic.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam::channel::{Receiver, TryRecvError, bounded};
use ratatui::crossterm::event;
use ratatui::crossterm::event::Event;
use ratatui::{DefaultTerminal, Frame};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use xvs_model::protocol::client::{Client, Failure};
use xvs_model::protocol::question::Request;

use crate::output::exit::{DONE, Done};

/// What is drawn, and how it reacts to keys and samples.
pub(super) trait View {
    /// The reply that it shows.
    type Sample;

    /// Takes a new sample, or the error of the request.
    fn take(&mut self, sample: Result<Self::Sample, Failure>);

    /// Handles a key.
    fn handle(&mut self, event: &Event) -> After;

    /// Draws the whole screen in the terminal's current size.
    fn draw(&mut self, frame: &mut Frame<'_>);
}

/// The next step after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    GoOn,
    Quit,
}

/// Shows a view in the terminal until a key or a signal ends it.
pub(super) fn shown<V: View>(view: V, samples: Receiver<Result<V::Sample, Failure>>) -> Done {
    let signalled = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register_usize(signal, signalled.clone(), signal as usize)?;
    }
    let ended = ratatui::try_init()
        .map_err(Into::into)
        .and_then(|mut terminal| live(&mut terminal, view, &samples, &signalled));
    // Also after an initialization that failed midway. The error is ignored: a terminal that cannot be restored is
    // gone.
    let _ = ratatui::try_restore();
    ended
}

/// Draws new samples and handles keys until a key or a signal ends it.
fn live<V: View>(
    terminal: &mut DefaultTerminal,
    mut view: V,
    samples: &Receiver<Result<V::Sample, Failure>>,
    signalled: &AtomicUsize,
) -> Done {
    loop {
        match samples.try_recv() {
            Ok(sample) => view.take(sample),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err("a fault of xvs: the thread that requests totals has ended".into());
            }
        }
        terminal.draw(|frame| view.draw(frame))?;
        // Relaxed: no other memory is read because of this value.
        match signalled.load(Ordering::Relaxed) {
            0 => {}
            // The exit code of shells for a signal.
            signal => return Ok(128 + signal as u8),
        }
        if event::poll(REACTION)? && view.handle(&event::read()?) == After::Quit {
            return Ok(DONE);
        }
    }
}

/// Samples at each interval, on a thread that ends with the receiver.
pub(super) fn watch<L: Send + 'static>(
    client: Client,
    socket: PathBuf,
    interval: Duration,
    sample: fn(&mut Client) -> Result<L, Failure>,
) -> io::Result<Receiver<Result<L, Failure>>> {
    let (send, samples) = bounded(1);
    let mut client = Some(client);
    thread::Builder::new().name("xvs-top".to_owned()).spawn(move || {
        loop {
            thread::sleep(interval);
            let sample = again(&mut client, &socket, sample);
            if sample.is_err() {
                client = None;
            }
            if send.send(sample).is_err() {
                return;
            }
        }
    })?;
    Ok(samples)
}

fn again<L>(
    client: &mut Option<Client>,
    socket: &Path,
    sample: fn(&mut Client) -> Result<L, Failure>,
) -> Result<L, Failure> {
    let client = match client {
        Some(client) => client,
        none => none.insert(Client::connect(socket)?.waiting_by(await_silently)),
    };
    sample(client)
}

/// A notice would be written over the screen, which has the error of a reply that never begins.
pub(super) fn await_silently(stream: &UnixStream, request: &Request) -> Result<(), Failure> {
    xvs_model::protocol::late_reply::wait(stream, request, &mut |_| {})
}

/// Longest delay before a key, a signal or a reply is handled.
const REACTION: Duration = Duration::from_millis(100);
