//! `xvs feedback`: reports the load of a real server, or shows the weights that follow load reports or times.

use std::io::Write;

use clap::Args;
use xvs_model::config::load_feedback::FeedbackRow;
use xvs_model::config::load_report::Server;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::response::short_time;

use crate::output::exit::{DONE, Done};
use crate::output::text::print;

/// The arguments of `xvs feedback`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The real server: ADDRESS, for every service that follows reports, or ADDRESS:PORT
    #[arg(requires = "load")]
    server: Option<Server>,
    /// The real server's load in percent: 0 is idle, 100 is fully loaded
    #[arg(allow_negative_numbers = true, value_parser = number)]
    load: Option<f64>,
    /// Print JSON
    #[arg(long, conflicts_with = "server")]
    json: bool,
}

/// A finite number: JSON has no others.
fn number(text: &str) -> Result<f64, &'static str> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or("a number is needed")
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    if let (Some(server), Some(load_percent)) = (arguments.server, arguments.load) {
        question::report_load(server, load_percent).ask(director)?;
        return Ok(DONE);
    }
    let rows = question::feedback().ask(director)?;
    print(&rows, arguments.json, |rows| screen(rows), out)?;
    Ok(DONE)
}

/// The rows as text.
fn screen(rows: &[FeedbackRow]) -> String {
    if rows.is_empty() {
        return "no real server is in a service that follows load reports or times; \
                   `xvs set feedback.services \"TCP 198.51.100.100:80\"` makes that service follow reports, and \
                   feedback.by_response_times the times until the first reply\n"
            .to_owned();
    }
    let mut text = line(["Service", "Real server", "Own", "In force", "Load", "Age"]);
    for row in rows {
        text += &line([
            &row.service,
            &row.server.to_string(),
            &row.own_weight.0.to_string(),
            &row.weight_in_force.0.to_string(),
            &load(row).unwrap_or_else(|| "-".to_owned()),
            &row.age_seconds.map_or("-".to_owned(), |age| format!("{age} s")),
        ]);
    }
    text
}

/// The reported load, or the measured time.
fn load(row: &FeedbackRow) -> Option<String> {
    row.load_percent.map(|percent| percent.to_string()).or_else(|| row.response_micros.map(short_time))
}

fn line([service, server, own, in_force, load, age]: [&str; 6]) -> String {
    format!("{service:<27} {server:<21} {own:>6} {in_force:>8} {load:>6} {age:>6}\n")
}
