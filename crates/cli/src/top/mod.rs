//! `xvs top`: the traffic of services and real servers, live in a terminal, or as one plain frame.
//!
//! One thread requests the totals at every interval, also after a failure, so `top` survives a restart of xvsd. The
//! main thread draws and reads keys. The terminal is restored at the end, whether by a key, a signal, an error or a
//! panic.

use std::io::{IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use std::{io, thread};

use clap::Args;
use crossbeam::channel::{Receiver, TryRecvError, bounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use screen::{After, Screen};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use view::{Rows, Sort, header, titles};
use xvs_model::protocol::client::{Client, Director, Failure, default_socket};
use xvs_model::protocol::reply::Reply;
use xvs_model::protocol::request::{Access, Request};
use xvs_model::report::traffic::Traffic;

use crate::output::exit::{DONE, Done};
use crate::output::late_reply;

mod screen;
mod view;

/// The arguments of `xvs top`.
#[derive(Debug, Args)]
#[command(after_help = KEYS)]
pub(super) struct Arguments {
    /// Sort by this, the largest first
    #[arg(long, value_enum, default_value = "connections")]
    sort: Sort,
    /// Show rows that contain this text; case does not matter
    #[arg(long, default_value = "", hide_default_value = true)]
    filter: String,
    /// Update interval in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
    /// Print one plain frame, without a limit of lines, and end
    #[arg(long)]
    once: bool,
}

const KEYS: &str = "\
Keys:
  c p b a i n   sort by connections, packets, bytes, active, inactive, name
  /             filter: type a text, Enter to keep it, Esc to clear it
  arrows, PgUp, PgDn, Home, End   scroll
  q, Esc        quit";

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let socket = default_socket();
    let interval = Duration::from_secs(arguments.interval);
    if !arguments.once {
        let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        if !terminal || std::env::var_os("TERM").is_none_or(|name| name.is_empty() || name == "dumb") {
            return Err(
                "top needs a terminal for its keys and its screen; `xvs top --once` prints one frame, \
                        `xvs status` shows whether there are warnings"
                    .into(),
            );
        }
    }
    let mut client = late_reply::connect(&socket)?;
    let first = look(&mut client)?;
    if arguments.once {
        thread::sleep(interval);
        once(arguments, &first, &look(&mut client)?, out)?;
        return Ok(DONE);
    }
    let looks = watch(client.waiting_by(await_silently), socket, interval)?;
    let told_to_end = Arc::new(AtomicUsize::new(0));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        flag::register_usize(signal, told_to_end.clone(), signal as usize)?;
    }
    let screen = Screen::new(first, arguments.sort, arguments.filter.clone());
    let ended = ratatui::try_init()
        .map_err(Into::into)
        .and_then(|mut terminal| live(&mut terminal, screen, &looks, &told_to_end));
    // Also after an initialization that failed half-way. The error is ignored: a terminal that cannot be restored is
    // gone.
    let _ = ratatui::try_restore();
    ended
}

/// One frame as text.
fn once(arguments: &Arguments, before: &Traffic, now: &Traffic, out: &mut dyn Write) -> io::Result<()> {
    let Rows { total, rows } = Rows::new(Some(before), now, arguments.sort, &arguments.filter);
    for line in header(Some(before), now, PLAIN_WIDTH).iter().chain([&titles(arguments.sort, PLAIN_WIDTH)]) {
        writeln!(out, "{line}")?;
    }
    [total].iter().chain(&rows).try_for_each(|row| writeln!(out, "{}", row.line(PLAIN_WIDTH)))
}

/// Draws new totals and obeys keys, until a key or a signal ends it.
fn live(
    terminal: &mut DefaultTerminal,
    mut screen: Screen,
    looks: &Receiver<Result<Traffic, String>>,
    told_to_end: &AtomicUsize,
) -> Done {
    loop {
        match looks.try_recv() {
            Ok(look) => screen.take(look),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err("a fault of xvs: the thread that requests totals has ended".into());
            }
        }
        terminal.draw(|frame| screen.draw(frame))?;
        // Relaxed: no other memory is read because of this value.
        match told_to_end.load(Ordering::Relaxed) {
            0 => {}
            // The exit code of shells for a signal.
            signal => return Ok(128 + signal as u8),
        }
        if event::poll(REACTION)? && screen.heed(&event::read()?) == After::Quit {
            return Ok(DONE);
        }
    }
}

/// Requests totals at each interval, on a thread that ends with the receiver.
fn watch(
    client: Client,
    socket: PathBuf,
    interval: Duration,
) -> io::Result<Receiver<Result<Traffic, String>>> {
    let (send, looks) = bounded(1);
    let mut client = Some(client);
    let ask = move || loop {
        thread::sleep(interval);
        let look = again(&mut client, &socket).map_err(|error| error.to_string());
        if look.is_err() {
            client = None;
        }
        if send.send(look).is_err() {
            return;
        }
    };
    thread::Builder::new().name("xvs-top".to_owned()).spawn(ask)?;
    Ok(looks)
}

fn again(client: &mut Option<Client>, socket: &Path) -> Result<Traffic, Failure> {
    let client = match client {
        Some(client) => client,
        none => none.insert(Client::connect(socket)?.waiting_by(await_silently)),
    };
    look(client)
}

/// A notice would be written over the screen, which has the error of a reply that never begins.
fn await_silently(stream: &UnixStream, access: Access) -> Result<(), Failure> {
    xvs_model::protocol::late_reply::wait(stream, access, &mut |_| {})
}

fn look(client: &mut Client) -> Result<Traffic, Failure> {
    match client.call(Request::Traffic)? {
        Reply::Traffic(traffic) => Ok(*traffic),
        other => Err(Failure::unexpected(&other)),
    }
}

/// Longest delay before a key, a signal or a reply is handled.
const REACTION: Duration = Duration::from_millis(100);
/// Columns of a frame printed by `--once`.
const PLAIN_WIDTH: usize = 80;
