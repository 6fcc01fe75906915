//! Tests beyond the recordings: live numbers, local destinations, JSON, batches, refusals that only xvs has.

use std::io;

use xvs_model::config::command::Command;
use xvs_model::config::destination::{DestinationOptions, Tunnel, TunnelChecksum};
use xvs_model::config::refusal::CommandError;
use xvs_model::config::service::ServiceOptions;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::objects::mark::MarkRule;
use xvs_model::objects::{Object, Rule};
use xvs_model::protocol::client::{Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::{ConnectionRow, EngineData};
use xvs_model::report::listing::{DestinationRow, Rates, ServiceRow, Stats};
use xvs_proto::{Endpoint, Family, Protocol};
use xvs_sched::{ForwardingMethod, ServiceKey, Weight};

use crate::output;
use crate::resolver::FixedNames;
use crate::streams::Output;

/// A director that replies with the given rows and records the requests.
#[derive(Default)]
struct Script {
    requests: Vec<Request>,
    rows: Vec<ServiceRow>,
    marks: Vec<MarkRule>,
    connections: Vec<ConnectionRow>,
    /// Refused changes, by their number, with the error.
    refused: Vec<(usize, CommandError)>,
    changes: usize,
}

impl Script {
    fn change(&mut self) -> Result<(), CommandError> {
        self.changes += 1;
        let refused = self.refused.iter().find(|(number, _)| *number == self.changes);
        refused.map_or(Ok(()), |(_, error)| Err(error.clone()))
    }
}

impl Director for Script {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        self.requests.push(request.clone());
        Ok(match request {
            Request::Control(ControlRequest::Change(_)) => self.change().map(|()| Reply::Done)?,
            Request::Control(ControlRequest::Restore(commands)) => {
                Reply::Restored(commands.iter().map(|_| self.change()).collect())
            }
            Request::Control(ControlRequest::ListServices) => Reply::Services(self.rows.clone()),
            Request::Control(ControlRequest::Timeouts) => Reply::Timeouts(Timeouts::default()),
            Request::Control(ControlRequest::Rules) => {
                Reply::rules_of(&self.rows, self.marks.iter().cloned().map(Rule::Mark))
            }
            _ => Reply::Done,
        })
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        self.connections.drain(..).try_for_each(each).map_err(Failure::Printing)
    }
}

fn run(script: &mut Script, line: &str, stdin: &str) -> Output {
    let argv: Vec<String> = format!("xvsadm {line}").split(' ').map(str::to_owned).collect();
    output(&argv, stdin, script, &FixedNames::default())
}

fn v4(a: u8, b: u8, c: u8, d: u8, port: u16) -> Endpoint {
    Endpoint::new([a, b, c, d], port)
}

fn stats() -> Stats {
    Stats {
        connections: 123,
        in_packets: 99_999_999,
        out_packets: 100_000_000,
        in_bytes: 1_234_567_890,
        out_bytes: 123_456_789_012,
    }
}

fn rates() -> Rates {
    Rates { connections: 12, in_packets: 3400, out_packets: 0, in_bytes: 999_999_999, out_bytes: 1234 }
}

/// The service in the recorded listings of ipvsadm 1.31.
fn row() -> ServiceRow {
    let dest = |last, method, weight| DestinationRow {
        endpoint: v4(10, 0, 0, last, 80),
        options: DestinationOptions {
            method,
            weight: Weight(weight),
            upper_threshold: 200,
            lower_threshold: 100,
            tunnel: Tunnel::Ipip,
        },
        weight_in_force: Weight(weight),
        active: 5,
        inactive: 7,
        persistent: 2,
        stats: stats(),
        rates: rates(),
        responses: Default::default(),
    };
    ServiceRow {
        key: ServiceKey::tcp(v4(192, 168, 100, 200, 80)),
        options: ServiceOptions::of(Family::V4),
        stats: stats(),
        rates: rates(),
        destinations: vec![
            dest(10, ForwardingMethod::Nat, 1),
            dest(9, ForwardingMethod::Local, 2),
            dest(8, ForwardingMethod::Tunnel, 3),
        ],
    }
}

fn listed(options: &str) -> String {
    let mut script = Script { rows: vec![row()], ..Script::default() };
    let output = run(&mut script, &format!("-Ln{options}"), "");
    assert_eq!((output.exit, output.stderr.as_str()), (0, ""));
    output.stdout.split_once('\n').unwrap().1.to_owned()
}

#[test]
fn live_numbers_and_local_destinations_are_listed_as_recorded() {
    assert_eq!(
        listed(""),
        "Prot LocalAddress:Port Scheduler Flags\n\
         \x20 -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n\
         TCP  192.168.100.200:80 wlc\n\
         \x20 -> 10.0.0.8:80                  Tunnel  3      5          7         \n\
         \x20 -> 10.0.0.9:80                  Local   2      5          7         \n\
         \x20 -> 10.0.0.10:80                 Masq    1      5          7         \n"
    );
    let tunnels = listed(" --tun-info");
    assert!(
        tunnels.contains(
            "  -> 10.0.0.8:80                  Tunnel  ipip          3      5          7         \n"
        )
    );
    assert!(
        tunnels.contains(
            "  -> 10.0.0.9:80                  Local   n/a           2      5          7         \n"
        )
    );
    assert_eq!(
        listed(" --thresholds").lines().nth(3),
        Some("  -> 10.0.0.8:80                  200        100        5          7         ")
    );
    assert_eq!(
        listed(" --persistent-conn").lines().nth(3),
        Some("  -> 10.0.0.8:80                  3         2           5          7         ")
    );
}

#[test]
fn counters_and_rates_are_scaled_as_recorded() {
    assert_eq!(
        listed(" --stats").lines().nth(2),
        Some("TCP  192.168.100.200:80                123 99999999  100000K    1234M     123G")
    );
    assert_eq!(
        listed(" --stats --exact").lines().nth(2),
        Some("TCP  192.168.100.200:80                123 99999999 100000000 1234567890 123456789012")
    );
    let rates = listed(" --rate");
    assert_eq!(
        rates.lines().nth(2),
        Some("TCP  192.168.100.200:80                 12     3400        0  999999K     1234")
    );
    assert_eq!(
        rates.lines().nth(3),
        Some("  -> 10.0.0.8:80                        12     3400        0  999999K     1234")
    );
}

#[test]
fn local_destinations_are_saved_as_direct_routing_and_tunnels_with_their_type() {
    let mut rows = row();
    rows.destinations[2].options.tunnel = Tunnel::Gue { port: 6080, checksum: TunnelChecksum::Full };
    let mut script = Script { rows: vec![rows], ..Script::default() };
    assert_eq!(
        run(&mut script, "-Sn", "").stdout,
        "-A -t 192.168.100.200:80 -s wlc\n\
         -a -t 192.168.100.200:80 -r 10.0.0.8:80 -i -w 3 --tun-type gue --tun-port 6080 --tun-csum\n\
         -a -t 192.168.100.200:80 -r 10.0.0.9:80 -g -w 2\n\
         -a -t 192.168.100.200:80 -r 10.0.0.10:80 -m -w 1\n"
    );
}

fn connections() -> Vec<ConnectionRow> {
    let row = |protocol, expires_seconds, state: &str, ends: [Endpoint; 3]| ConnectionRow {
        protocol,
        expires_seconds,
        state: state.to_owned(),
        client: ends[0],
        virtual_endpoint: ends[1],
        dest: ends[2],
        local: None,
        engine: None,
        detail: None,
    };
    let v6 = |text: &str, port| Endpoint::new(text.parse::<std::net::IpAddr>().unwrap(), port);
    let sip = ConnectionRow {
        engine: Some(EngineData { name: "sip".to_owned(), data: "abc@x".into() }),
        ..row(
            Protocol::UDP,
            299,
            "UDP",
            [v4(192, 168, 1, 100, 54321), v4(1, 2, 3, 4, 5060), v4(10, 0, 0, 10, 5060)],
        )
    };
    vec![
        row(
            Protocol::TCP,
            899,
            "ESTABLISHED",
            [v4(192, 168, 1, 100, 54321), v4(192, 168, 100, 200, 80), v4(10, 0, 0, 10, 80)],
        ),
        row(Protocol::IP, 100, "NONE", [v4(192, 168, 1, 0, 0), v4(0, 0, 0, 7, 0), v4(10, 0, 0, 10, 0)]),
        row(
            Protocol::TCP,
            59,
            "SYN_RECV",
            [v6("2001:db8::1", 54321), v6("2001:db8::80", 80), v6("fd00::a", 80)],
        ),
        row(
            Protocol::SCTP,
            7261,
            "S-ACK-SENT",
            [v4(192, 168, 1, 100, 54321), v4(1, 2, 3, 5, 9899), v4(10, 0, 0, 10, 9899)],
        ),
        sip,
    ]
}

#[test]
fn a_call_id_that_would_move_the_cursor_or_begin_a_line_is_listed_with_escapes() {
    let mut connections = connections();
    let engine = connections.last_mut().unwrap().engine.as_mut().unwrap();
    engine.data = "\x1b[2J\nTCP 14:59".into();
    let mut script = Script { connections, ..Script::default() };
    let listed = run(&mut script, "-Lnc --persistent-conn", "").stdout;
    assert!(listed.ends_with(" sip                \\u{1b}[2J\\nTCP 14:59\n"), "{listed}");
}

#[test]
fn connections_are_listed_as_recorded() {
    let mut script = Script { connections: connections(), ..Script::default() };
    assert_eq!(
        run(&mut script, "-Lnc", "").stdout,
        "IPVS connection entries\n\
         pro expire state       source             virtual            destination\n\
         TCP 14:59  ESTABLISHED 192.168.1.100:54321 192.168.100.200:80 10.0.0.10:80\n\
         IP  01:40  NONE        192.168.1.0:0      0.0.0.7:0          10.0.0.10:0\n\
         TCP 00:59  SYN_RECV    [2001:db8::1]:54321 [2001:db8::80]:80  [fd00::a]:80\n\
         SCTP 121:01 S-ACK-SENT  192.168.1.100:54321 1.2.3.5:9899       10.0.0.10:9899\n\
         UDP 04:59  UDP         192.168.1.100:54321 1.2.3.4:5060       10.0.0.10:5060\n"
    );
    let mut script = Script { connections: connections(), ..Script::default() };
    let listed = run(&mut script, "-Lnc --persistent-conn", "").stdout;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(
        lines[1],
        "pro expire state       source             virtual            destination        pe name          pe_data"
    );
    assert_eq!(
        lines.last(),
        Some(
            &"UDP 04:59  UDP         192.168.1.100:54321 1.2.3.4:5060       10.0.0.10:5060   sip                abc@x"
        )
    );
}

#[test]
fn json_listings_are_parsed_back_to_their_rows() {
    let mut script = Script { rows: vec![row()], connections: connections(), ..Script::default() };
    let mut expected = row();
    expected.destinations.reverse();
    for line in ["--json -L", "-L --json", "-Ln --json --stats"] {
        let rows: Vec<ServiceRow> = serde_json::from_str(&run(&mut script, line, "").stdout).unwrap();
        assert_eq!(rows, std::slice::from_ref(&expected));
    }
    let rows: Vec<ConnectionRow> = serde_json::from_str(&run(&mut script, "-Lc --json", "").stdout).unwrap();
    assert_eq!(rows, connections());
    // An empty listing is valid JSON, too.
    assert_eq!(run(&mut script, "-Lc --json", "").stdout, "[\n]\n");
    let timeouts: Timeouts =
        serde_json::from_str(&run(&mut script, "-L --timeout --json", "").stdout).unwrap();
    assert_eq!(timeouts, Timeouts::default());
}

#[test]
fn consecutive_changes_of_a_restore_are_one_batch_and_errors_are_printed_in_the_order_of_lines() {
    let key = |port| ServiceKey::tcp(v4(192, 0, 2, 1, port));
    let refused = vec![(2, CommandError::ServiceExists(key(2))), (3, CommandError::NoSuchService(key(3)))];
    let mut script = Script { refused, ..Script::default() };
    let input = "-C\n-A -t 192.0.2.1:2\n-A -Q\n-D -t 192.0.2.1:3\n-A -t 192.0.2.1:4\n";
    let output = run(&mut script, "-R", input);
    let message = "Service already exists\n-Q: unknown option\nNo such service\n";
    assert_eq!(output, Output { exit: 0, stdout: String::new(), stderr: message.to_owned() });
    let [Request::Control(ControlRequest::Restore(batch))] = script.requests.as_slice() else {
        panic!("{:?}", script.requests)
    };
    assert_eq!(batch.len(), 4);
    assert_eq!((&batch[0], &batch[2]), (&Command::Flush, &Command::Delete(Object::Service(key(3)))));
}

#[test]
fn a_wrong_line_ends_a_restore_after_the_lines_before_it_were_run() {
    let refused = vec![(1, CommandError::OutOfRange { what: String::new() })];
    let mut script = Script { refused, ..Script::default() };
    let output = run(&mut script, "-R", "-C\n-A -w 3\n-A -t 192.0.2.1:4\n");
    let message = "Numerical result out of range\n\
                You need to supply the 'service-address' option for the 'add-service' command\n";
    assert_eq!(output.stderr, message);
    assert_eq!((output.exit, script.changes), (2, 1));
}

#[test]
fn called_by_the_names_of_ipvsadms_scripts_it_saves_and_restores_as_they_do() {
    let run_as = |script: &mut Script, words: &[&str], stdin: &str| {
        let argv: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        output(&argv, stdin, script, &FixedNames::default())
    };
    let mut script = Script { rows: vec![row()], ..Script::default() };
    let saved = run(&mut script, "-S -n", "");
    // Arguments that are not options are ignored.
    for words in
        [&["ipvsadm-save", "-n"][..], &["/sbin/ipvsadm-save", "-n", "-n"], &["ipvsadm-save", "all", "-n"]]
    {
        assert_eq!(run_as(&mut script, words, ""), saved, "{words:?}");
    }
    assert_eq!(run_as(&mut script, &["ipvsadm-save"], ""), run(&mut script, "-S", ""));
    for option in ["-h", "--numeric", "-x"] {
        let message = run_as(&mut script, &["ipvsadm-save", option], "");
        assert_eq!((message.exit, message.stdout.as_str()), (1, ""), "{option}");
        assert!(message.stderr.starts_with("ipvsadm-save: "), "{message:?}");
    }

    let rules =
        "# services of the shop\n-A -t 192.0.2.1:80\n\n#xvs laddr add 192.0.2.9\n-D -t 192.0.2.2:80\n";
    let mut script = Script::default();
    let restored = run_as(&mut script, &["/usr/sbin/ipvsadm-restore", "--whatever"], rules);
    assert_eq!((restored.exit, restored.stderr.as_str()), (0, ""));
    let [Request::Control(ControlRequest::Restore(commands))] = &script.requests[..] else {
        panic!("one snapshot: {:?}", script.requests)
    };
    assert!(matches!(
        commands[..],
        [
            Command::Flush,
            Command::Add(Rule::Service { .. }),
            Command::Add(Rule::Local(_)),
            Command::Delete(Object::Service(_))
        ]
    ));
    // The services are deleted even if the first line is wrong; the exit code is that of the last line.
    let mut script = Script::default();
    let faulty = run_as(&mut script, &["ipvsadm-restore"], "-A -t nonsense\n-A -t 192.0.2.1:80\n");
    assert_eq!(faulty.exit, 2);
    assert_eq!(script.requests, [ControlRequest::Restore(vec![Command::Flush]).into()]);
    let mut script = Script::default();
    assert_eq!(run_as(&mut script, &["ipvsadm-restore"], "").exit, 0);
    assert_eq!(script.requests, [ControlRequest::Restore(vec![Command::Flush]).into()]);
    // ipvsadm's `-R` refuses comments.
    assert_eq!(run(&mut Script::default(), "-R", rules).exit, 255);
}

#[test]
fn mark_rules_are_saved_last_in_lines_that_ipvsadm_skips_and_restored_even_where_they_are_in_force() {
    let marks = vec![MarkRule {
        dest: Some("192.0.2.100".parse().unwrap()),
        source: None,
        protocol: Some(Protocol::TCP),
        dest_ports: vec![80..=80, 443..=443],
        interface: None,
        mark: 1,
        mask: u32::MAX,
    }];
    let mut script = Script { marks: marks.clone(), rows: vec![row()], ..Script::default() };
    let saved = run(&mut script, "-Sn", "").stdout;
    let xvs_line = "#xvs mark add -d 192.0.2.100/32 -p tcp --dports 80,443 --set-mark 1";
    assert_eq!((saved.lines().last(), saved.matches('#').count()), (Some(xvs_line), 1));

    let exists = CommandError::MarkExists(marks[0].to_string());
    let mut script = Script { refused: vec![(2, exists)], ..Script::default() };
    let output = run(&mut script, "-R", &format!("-A -f 1\n{xvs_line}\n"));
    assert_eq!((output.exit, output.stderr.as_str()), (0, ""));
    let [Request::Control(ControlRequest::Restore(batch))] = script.requests.as_slice() else {
        panic!("{:?}", script.requests)
    };
    assert_eq!(batch[1], Command::Add(Rule::Mark(marks[0].clone())));
    for wrong in ["#xvs mark list", "#xvs mark add"] {
        assert_eq!(run(&mut script, "-R", wrong).exit, 2, "{wrong}");
    }
}

#[test]
fn a_rules_file_is_read_as_a_whole_and_its_first_fault_is_reported_with_its_line() {
    let names = FixedNames::default();
    let text = "# of the web\n-A -t 192.0.2.1:80 -s rr\n\n#xvs mark add -d 192.0.2.1 --set-mark 1\n";
    let lines: Vec<_> = crate::read_rules(text, &names).unwrap().iter().map(|rule| rule.number).collect();
    assert_eq!(lines, [2, 4]);
    for (line, why) in [
        ("-A -t 192.0.2.1:81 -s rr stray", "line 5: unexpected argument stray"),
        ("-A -Q", "line 5: -Q: unknown option"),
        ("-Ln", "line 5: only what changes services can stand here"),
        ("#xvs mark list", "line 5: mark list changes nothing; remove the line"),
    ] {
        assert_eq!(crate::read_rules(&format!("{text}{line}\n"), &names).unwrap_err().to_string(), why);
    }
    assert_eq!(crate::read_rules("", &names), Ok(Vec::new()));
}

#[test]
fn without_a_daemon_one_message_is_printed_and_the_run_ends() {
    struct NoDaemon;
    impl Director for NoDaemon {
        fn call(&mut self, _: Request) -> Result<Reply, Failure> {
            Err(Failure::Transport("no daemon".to_owned()))
        }
        fn connections(&mut self, _: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
            Err(Failure::Transport("no daemon".to_owned()))
        }
    }
    let argv = |line: &str| -> Vec<String> { line.split(' ').map(str::to_owned).collect() };
    for (line, stdin) in
        [("xvsadm -R", "-C\n-C\n-L\n-C\n"), ("xvsadm -L", ""), ("xvsadm -Lc", ""), ("xvsadm -C", "")]
    {
        let output = output(&argv(line), stdin, &mut NoDaemon, &FixedNames::default());
        assert_eq!(
            output,
            Output { exit: 2, stdout: String::new(), stderr: "no daemon\n".to_owned() },
            "{line}"
        );
    }
}

#[test]
fn a_refusal_of_xvs_alone_prints_its_own_sentence_with_exit_code_255() {
    let refused = vec![
        (
            1,
            CommandError::NotSupported {
                object: "FWM 7".to_owned(),
                what: "firewall marks are".to_owned(),
                next: "add a service for each address and port".to_owned(),
            },
        ),
        (
            2,
            CommandError::SchedulerNotFound {
                name: "lc".to_owned(),
                known: vec!["rr".to_owned(), "wlc".to_owned()],
            },
        ),
    ];
    let mut script = Script { refused, ..Script::default() };
    let output = run(&mut script, "-A -f 7", "");
    let message =
        "xvs: FWM 7: firewall marks are not supported yet; add a service for each address and port\n";
    assert_eq!((output.exit, output.stderr.as_str()), (255, message));
    let output = run(&mut script, "-A -t 192.0.2.1:80 -s lc", "");
    let message = "Scheduler or persistence engine not found\n";
    assert_eq!((output.exit, output.stderr.as_str()), (255, message));
}
