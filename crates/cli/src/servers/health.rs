//! `xvs health`: the real servers that are up, and the reasons why others are down.
//!
//! A line for each virtual server, each of its real servers and each of their checks, in the order of the file, all
//! from one report.

use std::io::Write;
use std::time::SystemTime;

use clap::Args;
use xvs_model::protocol::client::Director;
use xvs_model::protocol::question;
use xvs_model::report::event::millis_since_1970;
use xvs_model::report::health::{
    AgentHealth, AgentMode, CheckHealth, Counts, HealthReport, RealServerHealth, SorryServerHealth,
    VirtualServerHealth, Weights, ago,
};

use xvs_model::report::unanswered::REPORTED;

use crate::output::exit::{DONE, Done, FAILED};
use crate::output::text::{WIDTH, line, print, wrapped};

/// The arguments of `xvs health`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only virtual servers with one of these texts in their name or a service's name, such as 198.51.100.100:80
    #[arg(value_name = "VIRTUAL_SERVER")]
    virtual_servers: Vec<String>,
    /// Only virtual servers without quorum and real servers that are down or failing
    #[arg(long)]
    down: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, director: &mut dyn Director, out: &mut dyn Write) -> Done {
    let mut report = question::health().ask(director)?.ok_or(NOTHING_CHECKED)?;
    for wanted in &arguments.virtual_servers {
        if !report.virtual_servers.iter().any(|server| is_like(server, wanted)) {
            return Err(format!("no virtual server of {} matches `{wanted}`", report.file).into());
        }
    }
    let wanted = &arguments.virtual_servers;
    report
        .virtual_servers
        .retain(|server| wanted.is_empty() || wanted.iter().any(|text| is_like(server, text)));
    let counts = report.counts();
    if arguments.down {
        report.virtual_servers.retain_mut(keep_trouble);
    }
    let now_millis = millis_since_1970(SystemTime::now());
    print(&report, arguments.json, |report| screen(report, counts, now_millis), out)?;
    let Counts { real_servers, real_servers_up, virtual_servers, virtual_servers_well } = counts;
    let all_well = real_servers_up == real_servers && virtual_servers_well == virtual_servers;
    Ok(if all_well && report.drift.is_empty() { DONE } else { FAILED })
}

const NOTHING_CHECKED: &str = "xvsd runs no checks: it has no keepalived.conf; name one by `xvsd \
                               --keepalived FILE`, or as `file` under [keepalived] in xvs.toml, and restart \
                               it";

fn is_like(server: &VirtualServerHealth, text: &str) -> bool {
    server.services.iter().chain([&server.name]).any(|name| name.contains(text))
}

/// Removes from a virtual server all that is up; returns whether anything is left.
fn keep_trouble(server: &mut VirtualServerHealth) -> bool {
    server.real_servers.retain(|server| server.trouble().is_some());
    !server.is_well || !server.real_servers.is_empty()
}

/// The report as text.
fn screen(report: &HealthReport, counts: Counts, now_millis: u64) -> String {
    let mut text = line("health", &counted(counts));
    text += &line("file", &format!("{}, read {} ago", report.file, ago(report.read_at_millis, now_millis)));
    report.first_faults.iter().for_each(|fault| text += &line("fault", fault));
    let more = report.faults.saturating_sub(report.first_faults.len());
    if more > 0 {
        text += &line("fault", &format!("and {more} more; xvsd's log has all of them"));
    }
    for refused in report.refused.iter().flat_map(|why| why.lines()) {
        text += &line("refused", refused);
    }
    if !report.drift.is_empty() {
        text += &line("drift", "services of the file were changed by hand; these commands undo it:");
        report.drift.iter().for_each(|command| text += &format!("  {command}\n"));
    }
    let rows: Vec<_> =
        report.virtual_servers.iter().flat_map(|server| virtual_server(server, now_millis)).collect();
    text + &table(&rows)
}

/// The number of real servers that are up and of virtual servers that have their quorum, as text.
pub(crate) fn counted(counts: Counts) -> String {
    let Counts { real_servers, real_servers_up, virtual_servers, virtual_servers_well } = counts;
    format!(
        "{real_servers_up} of {real_servers} real servers up, \
         {virtual_servers_well} of {virtual_servers} virtual servers with quorum"
    )
}

/// The cells of a line.
#[derive(Default)]
struct Row {
    indent: usize,
    what: String,
    state: String,
    /// For how long the state has lasted.
    since: String,
    more: String,
}

fn virtual_server(server: &VirtualServerHealth, now_millis: u64) -> Vec<Row> {
    let services = match server.services.len() {
        1 => String::new(),
        many => format!(", {many} services"),
    };
    let hysteresis = match server.hysteresis {
        0 => String::new(),
        hysteresis => format!(", hysteresis {hysteresis}"),
    };
    let mut rows = vec![Row {
        indent: 0,
        what: server.title().to_owned(),
        state: if server.is_well { "well" } else { "no quorum" }.to_owned(),
        since: ago(server.since_millis, now_millis),
        more: format!("weight {}, quorum {}{hysteresis}{services}", server.live_weight, server.quorum),
    }];
    rows.extend(server.real_servers.iter().flat_map(|server| real_server(server, now_millis)));
    rows.extend(server.sorry_server.as_ref().map(|SorryServerHealth { endpoint, serves }| Row {
        indent: 2,
        what: endpoint.clone(),
        state: if *serves { "serving" } else { "standby" }.to_owned(),
        since: String::new(),
        more: "sorry server".to_owned(),
    }));
    rows
}

fn real_server(server: &RealServerHealth, now_millis: u64) -> Vec<Row> {
    let unanswered = match server.unanswered {
        0..REPORTED => String::new(),
        connections => format!(", {connections} connections, none answered"),
    };
    let unchecked = if server.checks.is_empty() { ", no check" } else { "" };
    let mut rows = vec![Row {
        indent: 2,
        what: server.name().to_owned(),
        state: if server.is_up { "up" } else { "down" }.to_owned(),
        since: ago(server.since_millis, now_millis),
        more: weights(&server.weights) + unchecked + &unanswered,
    }];
    rows.extend(server.checks.iter().flat_map(|one| check(one, now_millis)));
    rows
}

/// A check, its agent's last answer and its last failure.
fn check(check: &CheckHealth, now_millis: u64) -> Vec<Row> {
    let mut more = Vec::new();
    if check.not_run.is_some() {
        more.push("cannot run".to_owned());
    }
    if let Some(next) = check.next_millis {
        more.push(format!("next in {} s", next.saturating_sub(now_millis).div_ceil(1000)));
    }
    let mut rows = vec![Row {
        indent: 4,
        what: check.probe.clone(),
        state: check.state.to_string(),
        since: ago(check.since_millis, now_millis),
        more: more.join(", "),
    }];
    let answer = check.agent.as_ref().map(|agent| (answer(agent), agent.at_millis));
    let error = check
        .last_error
        .as_ref()
        .map(|error| (error.what.clone(), error.at_millis))
        // An answer that takes the server down is the error too.
        .filter(|(what, _)| answer.as_ref().is_none_or(|(answer, _)| !answer.starts_with(what)));
    rows.extend(answer.into_iter().chain(error).map(|(what, at_millis)| Row {
        indent: 6,
        what: format!("{} ago: {what}", ago(at_millis, now_millis)),
        ..Row::default()
    }));
    rows
}

/// An agent's last answer, and what follows from it and those before.
fn answer(agent: &AgentHealth) -> String {
    let AgentHealth { answer, weight_percent, mode, excessive_percent, .. } = agent;
    let mut effects = Vec::new();
    if *mode != AgentMode::Ready {
        effects.push(mode.to_string());
    }
    if *weight_percent != 100 {
        let most = if excessive_percent.is_some() { ", the most that counts" } else { "" };
        effects.push(format!("{weight_percent} % of the weight{most}"));
    }
    let colon = if effects.is_empty() { "" } else { ": " };
    format!("the agent says `{answer}`{colon}{}", effects.join(", "))
}

/// The weight in the file, and the weights that differ from it.
fn weights(weights: &Weights) -> String {
    let Weights { operator, health, feedback, in_force, slow_start_percent, disabled } = *weights;
    let mut text = format!("weight {operator}");
    if let Some(weight) = health.filter(|weight| *weight != operator) {
        text += &format!(", {weight} by health");
    }
    if let Some(weight) = feedback {
        text += &format!(", {weight} by load");
    }
    if disabled {
        text += ", disabled";
    }
    if let Some(percent) = slow_start_percent {
        text += &format!(", slow start: {percent} % of its share");
    }
    match in_force {
        None => text += ", absent",
        Some(0) if disabled => {}
        Some(weight) if feedback.or(health) == Some(weight) => {}
        Some(weight) => text += &format!(", {weight} in force"),
    }
    text
}

/// Rows in columns, with an empty line before each virtual server. A text too long for its column gets a line to
/// itself; a text too long for the last column is wrapped.
fn table(rows: &[Row]) -> String {
    let width = |column: fn(&Row) -> usize| rows.iter().map(column).max().unwrap_or(0);
    // Errors have no maximum length, so they do not widen the column.
    let label = rows
        .iter()
        .filter(|row| !row.state.is_empty())
        .map(|row| row.indent + row.what.chars().count())
        .filter(|width| *width <= LABEL)
        .max()
        .unwrap_or(0);
    let (state, since) = (width(|row| row.state.len()), width(|row| row.since.len()));
    let behind = label + state + since + 6;
    let mut text = String::new();
    for Row { indent, what, state: word, since: time, more } in rows {
        if *indent == 0 {
            text.push('\n');
        }
        if word.is_empty() {
            text += &wrapped(&" ".repeat(*indent), what, indent + 2, WIDTH);
            continue;
        }
        let mut what = format!("{:indent$}{what}", "");
        if what.chars().count() > label {
            text += &format!("{what}\n");
            what.clear();
        }
        let cells = format!("{what:<label$}  {word:<state$}  {time:<since$}  ");
        text += &wrapped(&cells, more, behind, WIDTH);
    }
    text
}

/// Longest name that widens the column of names; longer names have a line of their own.
const LABEL: usize = 36;

#[cfg(test)]
mod tests {
    use std::io;
    use xvs_model::protocol::client::Failure;
    use xvs_model::protocol::question::{Reply, Request};

    use clap::Parser;
    use xvs_model::report::connection::ConnectionRow;
    use xvs_model::report::health::sample::{
        NOW, check, real_server, report, seconds_ago, virtual_server as sample,
    };
    use xvs_model::report::health::{CheckError, CheckState};

    use crate::servers::health::*;
    use crate::{Cli, Command};

    const DOWN: CheckState = CheckState::Down;
    const UP: CheckState = CheckState::Up;

    /// The printed report; asserts that no line has more than 80 columns or ends with blanks.
    fn printed(report: &HealthReport) -> String {
        let text = screen(report, report.counts(), NOW);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH && line.trim_end() == line), "{text}");
        text
    }

    /// The output below the first empty line.
    fn rows(virtual_servers: Vec<VirtualServerHealth>) -> String {
        let text = printed(&report(virtual_servers));
        text.split_once("\n\n").expect("there is an empty line").1.to_owned()
    }

    /// A virtual server whose second real server has a check in this state.
    fn pair(state: CheckState) -> VirtualServerHealth {
        sample("198.51.100.100", vec![real_server("192.0.2.11", UP), real_server("192.0.2.12", state)])
    }

    #[test]
    fn each_virtual_server_real_server_and_check_has_a_line() {
        let second = VirtualServerHealth { hysteresis: 1, quorum: 2, ..pair(UP) };
        let want = "\
health     4 of 4 real servers up, 2 of 2 virtual servers with quorum
file       /etc/keepalived/keepalived.conf, read 1 h 0 min ago

TCP 198.51.100.100:80  well  1 h 0 min  weight 2, quorum 1
  192.0.2.11:80        up    1 h 0 min  weight 1
    TCP 192.0.2.11:80  up    1 h 0 min  next in 4 s
  192.0.2.12:80        up    1 h 0 min  weight 1
    TCP 192.0.2.12:80  up    1 h 0 min  next in 4 s

TCP 198.51.100.100:80  well  1 h 0 min  weight 2, quorum 2, hysteresis 1
  192.0.2.11:80        up    1 h 0 min  weight 1
    TCP 192.0.2.11:80  up    1 h 0 min  next in 4 s
  192.0.2.12:80        up    1 h 0 min  weight 1
    TCP 192.0.2.12:80  up    1 h 0 min  next in 4 s
";
        assert_eq!(printed(&report(vec![pair(UP), second])), want);
    }

    #[test]
    fn a_failing_check_below_its_fall_count_shows_its_failures_and_the_error() {
        let want = "\
TCP 198.51.100.100:80  well         1 h 0 min  weight 2, quorum 1
  192.0.2.11:80        up           1 h 0 min  weight 1
    TCP 192.0.2.11:80  up           1 h 0 min  next in 4 s
  192.0.2.12:80        up           1 h 0 min  weight 1
    TCP 192.0.2.12:80  failing 1/3  1 h 0 min  next in 4 s
      2 s ago: connection refused by 192.0.2.12:80
";
        assert_eq!(rows(vec![pair(CheckState::Failing { failures: 1, fall: 3 })]), want);
    }

    #[test]
    fn a_check_that_cannot_run_says_so_with_the_reason() {
        let mut server = pair(CheckState::AssumedUp);
        let check = &mut server.real_servers[1].checks[0];
        check.not_run = Some("no socket: Too many open files (os error 24)".to_owned());
        check.last_error = check.not_run.clone().map(|what| CheckError { what, at_millis: seconds_ago(2) });
        let want = "\
TCP 198.51.100.100:80  well        1 h 0 min  weight 2, quorum 1
  192.0.2.11:80        up          1 h 0 min  weight 1
    TCP 192.0.2.11:80  up          1 h 0 min  next in 4 s
  192.0.2.12:80        up          1 h 0 min  weight 1
    TCP 192.0.2.12:80  assumed up  1 h 0 min  cannot run, next in 4 s
      2 s ago: no socket: Too many open files (os error 24)
";
        assert_eq!(rows(vec![server]), want);
    }

    #[test]
    fn a_server_that_is_down_is_absent_or_inhibited_and_a_running_check_shows_no_next_time() {
        let mut inhibited = real_server("192.0.2.13", CheckState::Rising { successes: 1, rise: 2 });
        inhibited.weights = Weights { health: Some(0), in_force: Some(0), ..inhibited.weights };
        inhibited.checks[0].next_millis = None;
        let mut server = pair(DOWN);
        server.real_servers.push(inhibited);
        let want = "\
TCP 198.51.100.100:80  well        1 h 0 min  weight 1, quorum 1
  192.0.2.11:80        up          1 h 0 min  weight 1
    TCP 192.0.2.11:80  up          1 h 0 min  next in 4 s
  192.0.2.12:80        down        12 s       weight 1, absent
    TCP 192.0.2.12:80  down        12 s       next in 4 s
      2 s ago: connection refused by 192.0.2.12:80
  192.0.2.13:80        down        12 s       weight 1, 0 by health
    TCP 192.0.2.13:80  rising 1/2  12 s
      2 s ago: connection refused by 192.0.2.12:80
";
        assert_eq!(rows(vec![server]), want);
    }

    #[test]
    fn an_agents_last_answer_is_shown_with_the_mode_and_the_share_that_it_has_set() {
        let mut server = sample("198.51.100.100", vec![real_server("192.0.2.11", UP)]);
        let check = &mut server.real_servers[0].checks[0];
        check.probe = "agent 192.0.2.11:8001".to_owned();
        let said = |answer: &str, weight_percent, mode| {
            let at_millis = seconds_ago(2);
            Some(AgentHealth {
                answer: answer.to_owned(),
                at_millis,
                weight_percent,
                excessive_percent: None,
                mode,
            })
        };
        check.agent = said("75%", 75, AgentMode::Drain);
        let want = "\
TCP 198.51.100.100:80      well  1 h 0 min  weight 1, quorum 1
  192.0.2.11:80            up    1 h 0 min  weight 1
    agent 192.0.2.11:8001  up    1 h 0 min  next in 4 s
      2 s ago: the agent says `75%`: drain, 75 % of the weight
";
        assert_eq!(rows(vec![server.clone()]), want);
        let check = &mut server.real_servers[0].checks[0];
        check.agent = said("down", 100, AgentMode::Ready);
        let what = "the agent says `down`".to_owned();
        check.last_error = Some(CheckError { what, at_millis: seconds_ago(2) });
        let text = rows(vec![server]);
        assert!(text.ends_with("next in 4 s\n      2 s ago: the agent says `down`\n"), "{text}");
    }

    #[test]
    fn a_sorry_server_shows_whether_it_serves_and_a_group_shows_its_number_of_services() {
        let mut server = pair(DOWN);
        server.real_servers.remove(0);
        server.name = "group G".to_owned();
        server.services.push("FWM 7".to_owned());
        server.sorry_server = Some(SorryServerHealth { endpoint: "192.0.2.99:80".to_owned(), serves: true });
        (server.is_well, server.live_weight, server.since_millis) = (false, 0, seconds_ago(12));
        server.real_servers[0].endpoint = "192.0.2.12:0".to_owned();
        let want = "\
group G                no quorum  12 s  weight 0, quorum 1, 2 services
  192.0.2.12           down       12 s  weight 1, absent
    TCP 192.0.2.12:80  down       12 s  next in 4 s
      2 s ago: connection refused by 192.0.2.12:80
  192.0.2.99:80        serving          sorry server
";
        assert_eq!(rows(vec![server.clone()]), want);
        server.sorry_server.as_mut().unwrap().serves = false;
        assert!(rows(vec![server]).contains("  192.0.2.99:80        standby"));
    }

    #[test]
    fn suspended_and_unfinished_checks_are_marked_and_a_server_may_have_no_check() {
        let mut unchecked = real_server("192.0.2.13", UP);
        unchecked.checks.clear();
        let mut server = pair(CheckState::Suspended { is_up: true });
        server.real_servers[0].checks[0].state = CheckState::AssumedUp;
        server.real_servers.push(unchecked);
        let want = "\
TCP 198.51.100.100:80  well           1 h 0 min  weight 2, quorum 1
  192.0.2.11:80        up             1 h 0 min  weight 1
    TCP 192.0.2.11:80  assumed up     1 h 0 min  next in 4 s
  192.0.2.12:80        up             1 h 0 min  weight 1
    TCP 192.0.2.12:80  suspended, up  1 h 0 min  next in 4 s
      2 s ago: connection refused by 192.0.2.12:80
  192.0.2.13:80        up             1 h 0 min  weight 1, no check
";
        assert_eq!(rows(vec![server]), want);
    }

    #[test]
    fn a_refused_file_and_changes_by_hand_are_shown_first() {
        let file = "/etc/keepalived/keepalived.conf";
        let report = HealthReport {
            refused: Some(format!("{file}:3: error: a `}}` without a `{{` before it\n{file}:9: error: no")),
            faults: 9,
            first_faults: vec![format!("{file}:4: warning: unknown keyword `nat_mask`; it is left out")],
            drift: vec!["xvsadm -e -t 198.51.100.100:80 -r 192.0.2.11:80 -g -w 1".to_owned()],
            ..report(vec![sample("198.51.100.100", Vec::new())])
        };
        let want = "\
health     0 of 0 real servers up, 0 of 1 virtual servers with quorum
file       /etc/keepalived/keepalived.conf, read 1 h 0 min ago
fault      /etc/keepalived/keepalived.conf:4: warning: unknown keyword
           `nat_mask`; it is left out
fault      and 8 more; xvsd's log has all of them
refused    /etc/keepalived/keepalived.conf:3: error: a `}` without a `{` before
           it
refused    /etc/keepalived/keepalived.conf:9: error: no
drift      services of the file were changed by hand; these commands undo it:
  xvsadm -e -t 198.51.100.100:80 -r 192.0.2.11:80 -g -w 1

TCP 198.51.100.100:80  no quorum  1 h 0 min  weight 0, quorum 1
";
        assert_eq!(printed(&report), want);
    }

    #[test]
    fn weights_are_shown_if_they_differ_from_the_weight_in_the_file() {
        let of = |operator, health, feedback, in_force, disabled| {
            weights(&Weights { operator, health, feedback, in_force, slow_start_percent: None, disabled })
        };
        let told = |operator, health, feedback, in_force| of(operator, health, feedback, in_force, false);
        assert_eq!(told(3, Some(3), None, Some(3)), "weight 3");
        assert_eq!(told(3, Some(5), None, Some(5)), "weight 3, 5 by health");
        assert_eq!(told(3, Some(3), Some(2), Some(2)), "weight 3, 2 by load");
        assert_eq!(told(3, Some(0), None, Some(7)), "weight 3, 0 by health, 7 in force");
        // The sorry server serves.
        assert_eq!(told(3, Some(3), None, None), "weight 3, absent");
        assert_eq!(of(3, Some(3), None, Some(0), true), "weight 3, disabled");
        assert_eq!(of(3, None, None, None, true), "weight 3, disabled, absent");
        let slow = Weights { slow_start_percent: Some(37), ..real_server("192.0.2.11", UP).weights };
        assert_eq!(weights(&slow), "weight 1, slow start: 37 % of its share");
    }

    #[test]
    fn a_text_longer_than_its_column_continues_below_and_no_line_is_too_long() {
        let mut server = real_server("192.0.2.12", DOWN);
        let path = format!("HTTP [2001:db8::1]:8080 /{}", "a".repeat(30));
        let mut long = check(&path, CheckState::Failing { failures: 10, fall: 20 }, seconds_ago(86_400 * 20));
        let what = "word ".repeat(30).trim_end().to_owned();
        long.last_error = Some(CheckError { what, at_millis: seconds_ago(5) });
        server.checks.push(long);
        server.checks.push(check("HTTP 192.0.2.12:8080 /health?from=xvs", UP, NOW));
        let text = rows(vec![sample("198.51.100.100", vec![server])]);
        let own_line = format!("    {path}\n{:23}failing 10/20", "");
        assert!(text.contains(&own_line) && text.contains("ago: word word"), "{text}");
    }

    /// A daemon with this report.
    struct Daemon(Option<HealthReport>);

    impl Director for Daemon {
        fn call(&mut self, request: Request) -> Result<Reply, Failure> {
            assert_eq!(request, Request::Health);
            Ok(Reply::Health(self.0.clone()))
        }

        fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// The output of `xvs health`, and its exit code or error.
    fn health(report: Option<&HealthReport>, words: &[&str]) -> (String, Result<u8, String>) {
        let words = ["xvs", "health"].iter().chain(words);
        let Command::Asking(crate::ask::Command::Health(arguments)) =
            Cli::try_parse_from(words).unwrap().command
        else {
            panic!()
        };
        let mut out = Vec::new();
        let done = run(&arguments, &mut Daemon(report.cloned()), &mut out);
        (String::from_utf8(out).unwrap(), done.map_err(|error| error.to_string()))
    }

    #[test]
    fn the_exit_code_covers_the_named_virtual_servers_and_changes_by_hand_and_json_is_the_report() {
        let other = sample("203.0.113.1", vec![real_server("192.0.2.21", UP)]);
        let both = report(vec![pair(DOWN), other]);
        assert_eq!(health(Some(&both), &[]).1, Ok(FAILED));
        let (text, code) = health(Some(&both), &["203.0.113.1"]);
        assert_eq!((code, text.contains("1 of 1 real servers up")), (Ok(DONE), true), "{text}");
        assert_eq!(health(Some(&both), &["203.0.113.1", "100:80"]).1, Ok(FAILED));
        let why = "no virtual server of /etc/keepalived/keepalived.conf matches `nobody`";
        assert_eq!(health(Some(&both), &["203", "nobody"]), (String::new(), Err(why.to_owned())));
        let (text, code) = health(Some(&both), &["--json"]);
        assert_eq!((serde_json::from_str(&text).ok().as_ref(), code), (Some(&both), Ok(FAILED)));
        let lost = VirtualServerHealth { is_well: false, ..pair(UP) };
        assert_eq!(health(Some(&report(vec![lost])), &[]).1, Ok(FAILED));
        let mut changed = report(vec![pair(UP)]);
        assert_eq!(health(Some(&changed), &[]).1, Ok(DONE));
        changed.drift.push("xvsadm -e -t 198.51.100.100:80 -r 192.0.2.11:80 -g -w 1".to_owned());
        assert_eq!(health(Some(&changed), &[]).1, Ok(FAILED));
    }

    #[test]
    fn with_down_only_failures_are_shown_and_everything_is_counted() {
        let failing = pair(CheckState::Failing { failures: 1, fall: 3 });
        let well = sample("203.0.113.1", vec![real_server("192.0.2.21", UP)]);
        let report = report(vec![failing, well, pair(DOWN)]);
        let (text, code) = health(Some(&report), &["--down"]);
        assert!(
            text.starts_with("health     4 of 5 real servers up, 3 of 3 virtual servers with quorum\n"),
            "{text}"
        );
        assert_eq!((text.matches("192.0.2.12:80  ").count(), code), (4, Ok(FAILED)), "{text}");
        assert!(!text.contains("192.0.2.11") && !text.contains("203.0.113.1"), "{text}");
        let (text, _) = health(Some(&report), &["--down", "203.0.113.1"]);
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_daemon_without_checks_is_reported_with_the_next_step_and_a_failure() {
        let (text, done) = health(None, &["--json"]);
        assert!(text.is_empty() && done.unwrap_err().contains("`xvsd --keepalived FILE`"));
    }
}
