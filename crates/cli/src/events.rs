//! `xvs events`: changes as they happen, one line each, with time and origin.

use std::io;
use std::io::Write;
use std::time::{Duration, SystemTime};

use clap::Args;
use humantime::{format_rfc3339_millis, parse_duration};
use serde::Serialize;
use xvs_model::protocol::client::default_socket;
use xvs_model::report::event::{Begin, Event, EventBatch, EventQuery, KEPT, Then, millis_since_1970};

use crate::output::exit::{DONE, Done};
use crate::output::late_reply;

/// The arguments of `xvs events`.
#[derive(Debug, Args)]
#[command(after_help = format!(
    "Without --last and --since the output begins with the next event. xvsd keeps the last {KEPT} events until it ends."
))]
pub(super) struct Arguments {
    /// Begin with the last N events that xvsd keeps
    #[arg(long, value_name = "N", conflicts_with = "since")]
    last: Option<usize>,
    /// Begin with the events of the last TIME, such as 90s, 10m or 2h
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    since: Option<Duration>,
    /// End after the last event that xvsd keeps, instead of waiting for more
    #[arg(long)]
    no_follow: bool,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

impl Arguments {
    fn asked(&self) -> EventQuery {
        let from = match (self.last, self.since) {
            (Some(count), _) => Begin::Last(count),
            (None, Some(ago)) => {
                let begin = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
                Begin::Since(millis_since_1970(begin))
            }
            (None, None) if self.no_follow => Begin::Last(KEPT),
            (None, None) => Begin::Now,
        };
        EventQuery { from, then: if self.no_follow { Then::End } else { Then::Follow } }
    }
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> Done {
    let show = if arguments.json { show_json } else { show_text };
    let mut client = late_reply::connect(&default_socket())?;
    client.events(arguments.asked(), &mut |heard| {
        show(&heard, out)?;
        // A reader at the other end of a pipe sees each event when it happens.
        out.flush()
    })?;
    Ok(DONE)
}

fn show_text(EventBatch { missed, events }: &EventBatch, out: &mut dyn Write) -> io::Result<()> {
    if *missed > 0 {
        writeln!(out, "… {missed} events are missing here: they came faster than they were read")?;
    }
    events.iter().try_for_each(|event| writeln!(out, "{}", line(event)))
}

fn show_json(EventBatch { missed, events }: &EventBatch, out: &mut dyn Write) -> io::Result<()> {
    if *missed > 0 {
        writeln!(out, "{}", serde_json::to_string(&Missed { missed: *missed })?)?;
    }
    events.iter().try_for_each(|event| writeln!(out, "{}", object(event)?))
}

/// A time in milliseconds since 1970 as text.
pub(super) fn rfc_3339(at_millis: u64) -> String {
    format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(at_millis)).to_string()
}

/// An event as a line of text.
fn line(event: &Event) -> String {
    let Event { epoch, what, by, kind, refused, .. } = event;
    let by = by.as_ref().map_or_else(|| kind.to_string(), ToString::to_string);
    let refused = refused.as_ref().map(|why| format!(": refused: {why}")).unwrap_or_default();
    format!("{} configuration {epoch}, {by}: {what}{refused}", rfc_3339(event.at_millis))
}

/// An event as `--json` prints it.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Object<'a> {
    #[serde(flatten)]
    event: &'a Event,
    /// `at_millis` as text (RFC 3339).
    time: String,
}

/// The object that `--json` prints in place of missing events.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Missed {
    /// The number of events that are missing here.
    missed: u64,
}

/// An event as one line of JSON.
fn object(event: &Event) -> io::Result<String> {
    Ok(serde_json::to_string(&Object { event, time: rfc_3339(event.at_millis) })?)
}

#[cfg(test)]
mod tests {
    use xvs_model::report::event::{Kind, Requester};

    use crate::events::*;

    fn event() -> Event {
        Event {
            number: 7,
            at_millis: 1_795_188_192_123,
            epoch: 12,
            by: Some(Requester { uid: 1000, pid: 4711, program: "xvsadm".to_owned() }),
            kind: Kind::Change,
            what: "xvsadm -C".to_owned(),
            refused: None,
            warning: None,
        }
    }

    #[test]
    fn a_line_has_time_epoch_origin_change_and_the_reason_of_a_refusal() {
        let when = "2026-11-20T15:23:12.123Z configuration 12, ";
        let who = "uid 1000, xvsadm (process 4711): xvsadm -C";
        assert_eq!(line(&event()), format!("{when}{who}"));
        let refused = Event { refused: Some("no".to_owned()), ..event() };
        assert_eq!(line(&refused), format!("{when}{who}: refused: no"));
        let link = Event { by: None, kind: Kind::Link, what: "wan is up".to_owned(), ..event() };
        assert_eq!(line(&link), format!("{when}link: wan is up"));
    }

    #[test]
    fn the_number_of_missed_events_is_printed_in_their_place() {
        let heard = EventBatch { missed: 3, events: vec![event()] };
        let (mut text, mut json) = (Vec::new(), Vec::new());
        show_text(&heard, &mut text).unwrap();
        show_json(&heard, &mut json).unwrap();
        for (out, expected) in [(text, "… 3 events are missing here"), (json, "{\"missed\":3}\n{")] {
            let text = String::from_utf8(out).unwrap();
            assert!(text.starts_with(expected) && text.lines().count() == 2, "{text}");
        }
    }

    #[test]
    fn an_object_parses_as_the_event_and_has_its_time_in_rfc_3339_format() {
        let text = object(&event()).unwrap();
        assert!(!text.contains('\n') && text.contains("\"time\":\"2026-11-20T15:23:12.123Z\""), "{text}");
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event());
    }
}
