//! `xvs top`: the traffic of services and real servers, live in a terminal, or as one plain frame.
//!
//! One thread requests the totals at every interval, also after a failure, so `top` survives a restart of xvsd. The
//! main thread draws and reads keys (`terminal.rs`).

use std::io::{IsTerminal, Write};
use std::time::Duration;
use std::{io, thread};

use clap::Args;
use clients::Clients;
use minute::Charset;
use screen::Screen;
use terminal::{View, await_silently, shown, watch};
use view::{Columns, Rows, Sort, header};
use xvs_model::protocol::client::{Client, Failure, default_socket};
use xvs_model::protocol::question;
use xvs_model::report::traffic::Traffic;

use crate::output::exit::{DONE, Done};
use crate::output::late_reply;

mod clients;
mod minute;
mod screen;
mod terminal;
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
    /// Show clients of services with limits (`xvs limit`) instead of services, the most refused first
    #[arg(long)]
    clients: bool,
    /// Print one plain frame, without a limit of lines, and end
    #[arg(long)]
    once: bool,
}

const KEYS: &str = "\
Keys:
  c p b         sort by connections, packets, bytes
  a i r n       sort by active, inactive, first reply, name
  /             filter: Enter keeps the text, Esc clears it
  arrows, PgUp, PgDn, Home, End   scroll
  ?             these keys
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
    if arguments.clients {
        let mut view = Clients::new(clients::sample(&mut client)?, &arguments.filter);
        if arguments.once {
            thread::sleep(interval);
            view.take(Ok(clients::sample(&mut client)?));
            view.lines().iter().try_for_each(|line| writeln!(out, "{line}"))?;
            return Ok(DONE);
        }
        return shown(view, watch(client.waiting_by(await_silently), socket, interval, clients::sample)?);
    }
    let first = sample(&mut client)?;
    if arguments.once {
        thread::sleep(interval);
        once(arguments, &first, &sample(&mut client)?, out)?;
        return Ok(DONE);
    }
    let screen = Screen::new(first, arguments.sort, arguments.filter.clone(), Charset::of_locale());
    shown(screen, watch(client.waiting_by(await_silently), socket, interval, sample)?)
}

/// One frame as text.
fn once(arguments: &Arguments, before: &Traffic, now: &Traffic, out: &mut dyn Write) -> io::Result<()> {
    let all = Rows::new(Some(before), now, arguments.sort, &arguments.filter);
    let columns = Columns::all(PLAIN_WIDTH, &all, arguments.sort);
    for line in header(Some(before), now, PLAIN_WIDTH).iter().chain([&columns.titles()]) {
        writeln!(out, "{line}")?;
    }
    [&all.total].into_iter().chain(&all.rows).try_for_each(|row| writeln!(out, "{}", row.line(&columns)))
}

fn sample(client: &mut Client) -> Result<Traffic, Failure> {
    question::traffic().ask(client).map(|traffic| *traffic)
}

/// Columns of a frame printed by `--once`, unless names are longer.
const PLAIN_WIDTH: usize = 94;
