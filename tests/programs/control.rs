//! From a command over the socket to the next packet: the control socket's server with a director in the lab.
//!
//! A change is in force for the first frame after its reply. A batch of any length makes one snapshot, a single command
//! one, a refused command none. Not here: the socket's limits and hostile clients (`socket.rs`), the daemon
//! (`netlab/daemon.rs`).

use std::fmt::Write;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use xvs::frames::SYN;
use xvs::lab_cluster::{CLIENT, INSIDE, VIP, at, server};
use xvs::{Datagram, LabCluster, Transport};
use xvs_ipvsadm::Output;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::client::{Client, Director, Failure};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::connection::{ConnectionRow, Ended, Filter, Kind};
use xvs_proto::Endpoint;
use xvsd::socket::{Handler, Peer, Server, Settings};

/// Handler of the socket's requests, with a director in the lab.
struct Desk(Mutex<LabCluster>);

impl Desk {
    fn cluster(&self) -> MutexGuard<'_, LabCluster> {
        self.0.lock().expect("no client's thread has panicked")
    }

    /// Passes the rows of a listing to the client.
    fn rows(
        &self,
        list: impl FnOnce(
            &mut dyn Director,
            &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
        ) -> Result<(), Failure>,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        let mut rows = Vec::new();
        let mut keep = |row| {
            rows.push(row);
            Ok(())
        };
        list(&mut self.cluster().lab().director, &mut keep).map_err(refusal)?;
        let _ = rows.into_iter().try_for_each(each);
        Ok(())
    }
}

fn refusal(failure: Failure) -> CommandError {
    match failure {
        Failure::Refused(refusal) => refusal,
        other => CommandError::Failed { why: other.to_string() },
    }
}

impl Handler for Desk {
    fn handle(&self, request: Request, _: &Peer) -> Result<Reply, CommandError> {
        self.cluster().lab().director.call(request).map_err(refusal)
    }

    fn connections(
        &self,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        self.rows(|director, keep| director.connections(keep), each)
    }

    fn find(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        self.rows(|director, keep| director.find(filter, keep), each)
    }
}

/// A director in the lab that listens on a socket of its own.
struct Served {
    desk: Arc<Desk>,
    socket: PathBuf,
    _server: Server,
}

impl Served {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        // Relaxed: the numbers only have to differ.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("xvs-control-{}-{number}", std::process::id()));
        let socket = folder.join("xvsd.sock");
        let desk = Arc::new(Desk(Mutex::new(LabCluster::new())));
        let server = Server::start(Settings::of(&socket), desk.clone()).expect("the socket is served");
        Self { desk, socket, _server: server }
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket).expect("the server answers")
    }

    fn publications(&self) -> u64 {
        self.desk.cluster().lab().director.publications()
    }

    /// The verdict on a client's first packet to the virtual address, and the destination link address of the sent
    /// frame.
    fn first_packet(&self, client_port: u16, port: u16) -> (String, Option<[u8; 6]>) {
        let first = Datagram::new(Transport::Tcp(SYN), at(CLIENT, client_port), at(VIP, port));
        let judged = self.desk.cluster().from_client(&first);
        let mac = judged.sent.first().map(|(_, frame)| frame[..6].try_into().expect("six bytes"));
        (judged.verdict, mac)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Only the socket's lock file is left; it does no harm if it stays.
        let _ = self.socket.parent().map(std::fs::remove_dir_all);
    }
}

fn run(client: &mut Client, line: &str, stdin: &str) -> Output {
    let argv: Vec<_> = std::iter::once("ipvsadm").chain(line.split_whitespace()).map(str::to_owned).collect();
    xvs_ipvsadm::output(&argv, stdin, client, &xvs_ipvsadm::SystemResolver::default())
}

#[track_caller]
fn done(client: &mut Client, line: &str) -> String {
    let Output { exit, stdout, stderr } = run(client, line, "");
    assert_eq!((exit, stderr.as_str()), (0, ""), "{line}");
    stdout
}

/// 100 services, each with 99 servers, as `ipvsadm -S -n` writes them.
fn ten_thousand_lines() -> String {
    let mut rules = String::new();
    for port in 1001..=1100 {
        writeln!(rules, "-A -t {VIP}:{port} -s rr").expect("a text");
        for number in 1..=99 {
            let weight = number % 7 + 1;
            writeln!(rules, "-a -t {VIP}:{port} -r 203.0.113.{}:{port} -g -w {weight}", number + 100)
                .expect("a text");
        }
    }
    rules
}

#[test]
fn a_change_is_in_force_for_the_next_packet_after_its_reply() {
    let served = Served::new();
    let mut client = served.client();
    assert_eq!(served.first_packet(1, 80).0, "pass");
    done(&mut client, &format!("-A -t {VIP}:80 -s rr"));
    assert_eq!(served.first_packet(2, 80).0, "drop no_destination");
    done(&mut client, &format!("-a -t {VIP}:80 -r {}", server(1)));
    assert_eq!(served.first_packet(3, 80).1, Some([2, 0, 0, 0, 2, 11]));
    done(&mut client, &format!("-a -t {VIP}:80 -r {}", server(2)));
    done(&mut client, &format!("-e -t {VIP}:80 -r {} -w 0", server(1)));
    assert_eq!(served.first_packet(4, 80).1, Some([2, 0, 0, 0, 2, 12]));
    done(&mut client, &format!("-d -t {VIP}:80 -r {}", server(2)));
    assert_eq!(served.first_packet(4, 80).0, "drop destination_unavailable");
    assert_eq!(served.first_packet(5, 80).0, "drop no_destination");
    done(&mut client, "-C");
    assert_eq!(served.first_packet(6, 80).0, "pass");
}

#[test]
fn each_command_publishes_one_snapshot_and_a_refused_one_none() {
    let served = Served::new();
    let mut client = served.client();
    let before = served.publications();
    done(&mut client, &format!("-A -t {VIP}:80 -s rr"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {}", server(1)));
    assert_eq!(served.publications(), before + 2);
    for (line, text) in [
        (format!("-A -t {VIP}:80"), "Service already exists\n"),
        (format!("-a -t {VIP}:80 -r {}", server(1)), "Destination already exists\n"),
        (format!("-d -t {VIP}:80 -r {}", server(2)), "No such destination\n"),
        (format!("-D -t {VIP}:81"), "No such service\n"),
        (format!("-A -t {VIP}:81 -s nonsense"), "Scheduler or persistence engine not found\n"),
    ] {
        let Output { exit, stdout, stderr } = run(&mut client, &line, "");
        assert_eq!((exit, stdout.as_str(), stderr.as_str()), (255, "", text), "{line}");
    }
    done(&mut client, "-L -n");
    done(&mut client, "-L -n -c");
    assert_eq!(served.publications(), before + 2);
}

#[test]
fn a_load_report_publishes_a_snapshot_only_if_it_moves_a_weight() {
    let served = Served::new();
    let mut client = served.client();
    done(&mut client, &format!("-A -t {VIP}:80 -s wrr"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {} -g -w 1", server(1)));
    let report = |client: &mut Client, load_percent| {
        let server = server(1).to_string().parse().expect("an address");
        client.call(ControlRequest::ReportLoad { server, load_percent }.into())
    };
    let before = served.publications();
    assert!(matches!(report(&mut client, 0.0), Err(Failure::Refused(CommandError::NotFollowed { .. }))));
    let set = ControlRequest::Set { key: "feedback.services".to_owned(), value: "all".to_owned() };
    assert_eq!(client.call(set.into()).ok(), Some(Reply::Done));
    assert!(matches!(report(&mut client, 101.0), Err(Failure::Refused(CommandError::BadSetting { .. }))));
    assert_eq!(served.publications(), before + 1);
    for (load, weight, publications) in [(0.0, "6", 2), (0.0, "10", 3), (0.0, "10", 3), (95.0, "10", 3)] {
        assert_eq!(report(&mut client, load).ok(), Some(Reply::Done));
        let listing = done(&mut client, "-L -n");
        assert_eq!(listing.split_whitespace().rev().nth(2), Some(weight), "{listing}");
        assert_eq!(served.publications(), before + publications);
    }
    let rows = client.call(ControlRequest::Feedback.into());
    let Ok(Reply::Feedback(rows)) = rows else { panic!("{rows:?}") };
    assert_eq!((rows[0].weight_in_force.0, rows[0].own_weight.0), (10, 1));
}

#[test]
fn a_restore_of_ten_thousand_lines_publishes_one_snapshot_and_saves_unchanged() {
    let served = Served::new();
    let mut client = served.client();
    let rules = ten_thousand_lines();
    assert_eq!(rules.lines().count(), 10_000);
    let before = served.publications();
    let Output { exit, stdout, stderr } = run(&mut client, "-R", &rules);
    assert_eq!((exit, stdout.as_str(), stderr.as_str()), (0, "", ""));
    assert_eq!(served.publications(), before + 1);
    let saved = done(&mut client, "-S -n");
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&saved), sorted(&rules));
    // The destination added last is chosen first, and its link address is not resolved.
    assert_eq!(served.first_packet(1, 1100).0, "consumed no_neighbour");
    let before = served.publications();
    assert_eq!(run(&mut client, "-R", &format!("-C\n{saved}")).exit, 0);
    assert_eq!(served.publications(), before + 1);
}

#[test]
fn a_restore_reports_refused_lines_ends_at_a_syntax_error_and_publishes_one_snapshot() {
    let served = Served::new();
    let mut client = served.client();
    let before = served.publications();
    let rules = format!(
        "-A -t {VIP}:80\n-A -t {VIP}:80\n-a -t {VIP}:80 -r {}\n-A -t nonsense:\n-A -t {VIP}:81\n",
        server(1)
    );
    let Output { exit, stderr, .. } = run(&mut client, "-R", &rules);
    assert_eq!(exit, 2);
    assert_eq!(stderr, "Service already exists\nillegal virtual server address[:port] specified\n");
    assert_eq!(served.publications(), before + 1);
    assert_eq!(served.first_packet(1, 80).1, Some([2, 0, 0, 0, 2, 11]));
    assert_eq!(served.first_packet(1, 81).0, "pass");
}

#[test]
fn ten_thousand_single_commands_are_each_in_force_at_their_reply() {
    let served = Served::new();
    let mut client = served.client();
    done(&mut client, &format!("-A -t {VIP}:80 -s rr"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {}", server(1)));
    let before = served.publications();
    for turn in 0..10_000u32 {
        done(&mut client, &format!("-e -t {VIP}:80 -r {} -w {}", server(1), turn % 2));
        if turn % 100 < 2 {
            let want = if turn % 2 == 0 { "drop no_destination" } else { "transmit" };
            assert_eq!(served.first_packet(turn as u16 + 1, 80).0, want);
        }
    }
    assert_eq!(served.publications(), before + 10_000);
}

#[test]
fn a_director_with_many_services_accepts_single_commands() {
    let served = Served::new();
    let mut client = served.client();
    assert_eq!(run(&mut client, "-R", &ten_thousand_lines()).exit, 0);
    let before = served.publications();
    for turn in 0..20 {
        done(&mut client, &format!("-e -t {VIP}:1001 -r 203.0.113.101 -w {turn}"));
    }
    assert_eq!(served.publications(), before + 20);
}

#[test]
fn concurrent_changes_of_clients_are_each_made_as_a_whole() {
    let served = Served::new();
    let before = served.publications();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let mut client = served.client();
            scope.spawn(move || {
                for port in 0..100 {
                    let port = 1000 * (number + 1) + port;
                    done(&mut client, &format!("-A -t {VIP}:{port} -s rr"));
                    done(&mut client, &format!("-a -t {VIP}:{port} -r {}", server(1)));
                }
            });
        }
    });
    assert_eq!(served.publications(), before + 800);
    let saved = done(&mut served.client(), "-S -n");
    assert_eq!(saved.lines().count(), 800);
    assert_eq!(served.first_packet(1, 4099).0, "transmit");
}

#[test]
fn a_listing_of_many_connections_arrives_complete_in_parts() {
    let served = Served::new();
    let mut client = served.client();
    done(&mut client, &format!("-A -t {VIP}:80 -s rr"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {}", server(1)));
    for port in 1..=5000 {
        assert_eq!(served.first_packet(port, 80).0, if port == 20 { "pass" } else { "transmit" });
    }
    let listing = done(&mut client, "-L -n -c");
    let mut clients: Vec<_> =
        listing.lines().skip(2).filter_map(|line| line.split_whitespace().nth(3)).collect();
    clients.sort_unstable();
    clients.dedup();
    assert_eq!(clients.len(), 4999);
}

/// Runs `xvs` with these arguments, which must succeed, and returns its output.
#[track_caller]
fn xvs(client: &mut Client, words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
    let Output { exit, stdout, stderr } = xvs_cli::output(&words, client);
    assert_eq!((exit, stderr.as_str()), (0, ""), "{words:?}");
    stdout
}

#[test]
fn connections_are_found_by_their_properties_and_counted_without_being_listed() {
    let served = Served::new();
    let mut client = served.client();
    xvs(&mut client, &["laddr", "add", &INSIDE.to_string(), "--ports", "5000-5000"]);
    done(&mut client, &format!("-A -t {VIP}:80 -s rr"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {}:80 --fullnat", server(1)));
    done(&mut client, &format!("-A -t {VIP}:0 -s rr -p 100"));
    done(&mut client, &format!("-a -t {VIP}:0 -r {}:0", server(2)));
    for (client_port, port) in [(1000, 80), (1001, 81), (1002, 82)] {
        assert_eq!(served.first_packet(client_port, port).0, "transmit");
    }
    assert_eq!(
        xvs(&mut client, &["connections", "--client", &format!("{CLIENT}:1000")]),
        "Pro  Expires State       Client                Virtual               Real server           Packets How\n\
         TCP    01:00 SYN_RECV    192.0.2.200:1000      198.51.100.1:80       203.0.113.11:80             1 \
         FullNat, from 203.0.113.1:5000\n"
    );
    let every_port = format!("TCP {VIP}:0");
    for (words, count) in [
        (&["--service", &every_port][..], 2),
        (&["-t", &format!("{VIP}:80")], 1),
        (&["--service", &every_port, "--client", "192.0.2.0/24:1001"], 1),
        (&["--dest", &format!("{}:82", server(2))], 1),
        (&["--dest", "203.0.113.0/24", "--state", "syn_recv,close"], 3),
        (&["--state", "ESTABLISHED"], 0),
        (&["--templates"], 1),
        (&["--templates", "--service", &every_port, "--state", "NONE"], 1),
        (&["--client", "2001:db8::/32"], 0),
    ] {
        let words = [&["connections"], words].concat();
        assert_eq!(xvs(&mut client, &[&words[..], &["--count"]].concat()), format!("{count}\n"), "{words:?}");
        let json = xvs(&mut client, &[&words[..], &["--json"]].concat());
        let rows: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(rows.as_array().expect("an array").len(), count, "{words:?}");
    }
    let templates = xvs(&mut client, &["connections", "--templates"]);
    assert!(templates.ends_with(" Route, controls 2\n"), "{templates}");
    assert_eq!(xvs(&mut client, &["connections", "--state", "CLOSE"]), "no connection matches\n");
    // After the removal of its real server, a connection still belongs to its service.
    done(&mut client, &format!("-d -t {VIP}:0 -r {}:0", server(2)));
    assert_eq!(xvs(&mut client, &["connections", "-t", &format!("{VIP}:0"), "--count"]), "2\n");
}

#[test]
fn ended_connections_and_templates_are_not_counted_and_their_clients_are_scheduled_anew() {
    let served = Served::new();
    let mut client = served.client();
    done(&mut client, &format!("-A -t {VIP}:80 -s rr -p 100"));
    done(&mut client, &format!("-a -t {VIP}:80 -r {} -g", server(1)));
    for port in 1000..1005 {
        assert_eq!(served.first_packet(port, 80).0, "transmit");
    }
    done(&mut client, &format!("-a -t {VIP}:80 -r {} -g", server(2)));
    done(&mut client, &format!("-e -t {VIP}:80 -r {} -g -w 0", server(1)));
    assert_eq!(served.first_packet(1005, 80).1, Some([2, 0, 0, 0, 2, 11]), "its template leads it there");
    let end = |client: &mut Client, kind| {
        let service = Some(format!("TCP {VIP}:80").parse().expect("a service"));
        let server = Some(Endpoint::new(server(1), 80));
        client.call(Request::EndConnections(Filter { kind, service, server, ..Filter::default() })).ok()
    };
    let ended = |ended| Some(Reply::Ended(Ended { ended, marked: 0 }));
    assert_eq!(end(&mut client, Kind::Templates), ended(0), "it controls connections");
    assert_eq!(end(&mut client, Kind::Connections), ended(6));
    assert_eq!(end(&mut client, Kind::Templates), ended(1));
    assert_eq!(served.desk.cluster().load(at(server(1), 80)), (0, 0));
    let listed: serde_json::Value = serde_json::from_str(&done(&mut client, "-L -n --json")).expect("JSON");
    let templates = listed[0]["destinations"].as_array().expect("two servers");
    assert!(templates.iter().all(|dest| dest["persistent"] == 0), "{listed}");
    assert_eq!(served.first_packet(1005, 80).1, Some([2, 0, 0, 0, 2, 12]));
    assert_eq!(served.desk.cluster().counters()["swept_drained"], 7);
}
