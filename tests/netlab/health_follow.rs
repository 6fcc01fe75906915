//! Effects of failing and recovering real servers on clients, scripts and the listing.
//!
//! With a running xvsd and a keepalived.conf; each test has a cluster of its own. Needs root. Not here: how soon a
//! failure is detected (`tests/netlab/health_detect.rs`), and changes by a reload (`tests/netlab/health.rs`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use xvs::cluster::{VIP, complete, real_server, succeed, virtual_endpoint};
use xvs::director::program;
use xvs::request_stream::RequestStream;
use xvs::servers::{Mood, Moody, Sink};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// The port of the checks; the end of a sink there takes its real server down.
const LIFE: u16 = 9000;
const UPLOADS: u16 = 9001;
const MOODY: u16 = 8081;

const FIRST: Host = Host::RealServer(1);
const SECOND: Host = Host::RealServer(2);

/// Writes a file of one virtual server with these lines, after the lines `before`.
fn write(cluster: &Cluster, before: &str, port: u16, lines: &str) -> PathBuf {
    let text = format!(
        "{before}virtual_server {VIP} {port} {{\nlb_algo rr\nlb_kind NAT\nprotocol TCP\ndelay_loop 0.1\nwarmup 0\n\
         connect_timeout 5\ndelay_before_retry 0.05\n{lines}\n}}\n"
    );
    let path = cluster.state().join("keepalived.conf");
    fs::write(&path, text).expect("the cluster's folder takes a new file");
    path
}

/// Starts xvsd with such a file.
fn watched<'a>(cluster: &'a Cluster, before: &str, port: u16, lines: &str) -> Director<'a> {
    let path = write(cluster, before, port, lines);
    Director::start_with(cluster, Workers::One, &["--keepalived", &path.display().to_string()])
}

fn server(number: u8, port: u16, lines: &str) -> String {
    format!("real_server {} {port} {{\n{lines}\n}}\n", real_server(number))
}

/// A real server that is up while there is a sink at [`LIFE`].
fn living(number: u8, port: u16) -> String {
    server(number, port, &format!("TCP_CHECK {{\nconnect_port {LIFE}\n}}"))
}

/// Waits until the saved rule of a real server ends with `weight`.
#[track_caller]
fn await_weight(director: &Director<'_>, server: &str, weight: &str) {
    wait::until(&format!("{server} has {weight}"), || {
        let saved = director.adm("-S -n");
        saved
            .lines()
            .any(|line| line.contains(&format!("-r {server}:")) && line.ends_with(weight))
            .then_some(())
    });
}

/// The report about the first real server's check.
fn check(cluster: &Cluster) -> Value {
    let mut command = cluster.command(Host::Director, program("xvs"));
    let output = complete(command.args(["health", "--json"])).stdout;
    let report: Value = serde_json::from_slice(&output).expect("JSON");
    report["virtual_servers"][0]["real_servers"][0]["checks"][0].clone()
}

/// Moves a service between the real server and the sorry server during requests of a client; returns the errors.
fn to_the_sorry_server_and_back(lines: &str) -> Vec<ErrorKind> {
    const TIMES: usize = 5;
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut life = Some(Sink::start(&cluster, FIRST, LIFE));
    let sorry = format!("sorry_server {} 8080\n", real_server(2));
    let director = watched(&cluster, "", 80, &(sorry + lines + &living(1, 80)));
    let requests = RequestStream::start(&cluster, virtual_endpoint(80), Duration::from_secs(10));
    for _ in 0..TIMES {
        requests.await_all_by("rs1");
        drop(life.take());
        requests.await_all_by("rs2");
        life = Some(Sink::start(&cluster, FIRST, LIFE));
    }
    requests.await_all_by("rs1");
    let events = director.xvs("events --no-follow --last 1000");
    let moves: Vec<_> = events.lines().filter_map(|line| line.split_once(", change: ")).collect();
    let at_once =
        |configuration: &str| moves.iter().filter(|(when, _)| when.ends_with(configuration)).count();
    let configurations = moves.iter().filter_map(|(when, _)| when.split_once(' ')).map(|(_, what)| what);
    assert!(
        configurations.clone().all(|what| at_once(what) >= 2),
        "one is out and the other in at once:\n{events}"
    );
    assert!(configurations.collect::<BTreeSet<_>>().len() > 2 * TIMES, "{events}");
    drop(life);
    let ended = requests.end();
    let failed: Vec<_> = ended.iter().filter_map(|one| one.outcome.clone()?.err()).collect();
    let inhibited = if lines.is_empty() { "removed" } else { "inhibited" };
    eprintln!("{inhibited}: {} requests, {TIMES} times there and back, failed: {failed:?}", ended.len());
    failed
}

#[test]
fn a_sorry_server_takes_over_and_yields_and_the_service_is_never_empty() {
    let failed = to_the_sorry_server_and_back("");
    // Packets in transit to a removed real server may be lost, as with IPVS; a new connection never finds an empty
    // service.
    assert!(!failed.contains(&ErrorKind::ConnectionRefused), "{failed:?}");
}

#[test]
fn an_inhibited_sorry_server_and_an_inhibited_real_server_lose_no_request() {
    let failed = to_the_sorry_server_and_back("sorry_server_inhibit\ninhibit_on_failure\n");
    assert_eq!(failed, []);
}

#[test]
fn repeated_reloads_cost_no_request_and_return_no_real_server_that_is_down() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let _life = Sink::start(&cluster, FIRST, LIFE);
    let lines = |weight| format!("weight {weight}\n{}{}", living(1, 80), living(2, 80));
    let director = watched(&cluster, "", 80, &lines(1));
    let second = format!("-r {}:", real_server(2));
    wait::until("the second is out", || (!director.adm("-S -n").contains(&second)).then_some(()));
    let requests = RequestStream::start(&cluster, virtual_endpoint(80), Duration::from_secs(10));
    for weight in 2..22 {
        write(&cluster, "", 80, &lines(weight));
        assert!(director.xvs("reload").ends_with("checks: 2 (0 new, 0 gone); the table: 1 change\n"));
        assert!(director.adm("-S -n").ends_with(&format!("-m -w {weight}\n")));
    }
    let ended = requests.end();
    assert!(ended.iter().all(|one| one.is_by("rs1")), "{ended:?}");
}

/// A director with two sinks and a connection to each of them; the first sink's real server is going to fail.
struct HalfOut<'a> {
    cluster: &'a Cluster,
    director: Director<'a>,
    begun: [TcpStream; 2],
    _sinks: [Sink; 3],
}

impl<'a> HalfOut<'a> {
    fn new(cluster: &'a Cluster, lines: &str) -> Self {
        let [first, second] = [FIRST, SECOND].map(|host| Sink::start(cluster, host, UPLOADS));
        let [life, living_on] = [FIRST, SECOND].map(|host| Sink::start(cluster, host, LIFE));
        let lines = lines.to_owned() + &living(1, UPLOADS) + &living(2, UPLOADS);
        let director = watched(cluster, "", UPLOADS, &lines);
        let begun = [(), ()].map(|()| {
            let mut stream = connection(cluster);
            stream.write_all(b"before and ").expect("upload");
            stream
        });
        drop(life);
        Self { cluster, director, begun, _sinks: [first, second, living_on] }
    }

    /// New connections go to the second; more bytes are sent on the open ones.
    fn send(&mut self) {
        for _ in 0..4 {
            let receipt = clients::upload(connection(self.cluster), b"new").expect("upload");
            assert_eq!(receipt, clients::receipt("rs2", b"new"));
        }
        for stream in &mut self.begun {
            stream.write_all(b"after").expect("upload");
        }
    }

    /// Asserts that each connection has delivered all bytes to its own server.
    fn assert_arrived(self) {
        let mut receipts = self.begun.map(|stream| clients::upload(stream, b"").expect("it goes on"));
        receipts.sort_by(|one, other| one.host.cmp(&other.host));
        assert_eq!(receipts, ["rs1", "rs2"].map(|host| clients::receipt(host, b"before and after")));
    }
}

fn connection(cluster: &Cluster) -> TcpStream {
    let connected = cluster.run(Host::Client, || clients::connect(virtual_endpoint(UPLOADS)));
    connected.expect("the service answers")
}

#[test]
fn connections_of_an_inhibited_real_server_continue_and_new_ones_go_elsewhere() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut half = HalfOut::new(&cluster, "inhibit_on_failure\n");
    await_weight(&half.director, &real_server(1).to_string(), "-w 0");
    half.send();
    half.assert_arrived();
}

#[test]
fn connections_of_a_removed_real_server_wait_for_its_return_and_new_ones_go_elsewhere() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let mut half = HalfOut::new(&cluster, "");
    let first = format!("-r {}:", real_server(1));
    wait::until("the first is out", || (!half.director.adm("-S -n").contains(&first)).then_some(()));
    half.send();
    let _life = Sink::start(&cluster, FIRST, LIFE);
    await_weight(&half.director, &real_server(1).to_string(), "-w 1");
    half.assert_arrived();
}

#[test]
fn three_failures_in_a_row_remove_a_real_server_and_two_passes_return_it() {
    use Mood::{Unwell as U, Well as W};
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let moody = Moody::start(&cluster, FIRST, MOODY);
    let asks = format!("HTTP_GET {{\nconnect_port {MOODY}\nurl {{\npath /\n}}\n}}");
    let director = watched(&cluster, "", 80, &format!("retry 2\nrise 2\n{}", server(1, 80, &asks)));
    wait::until("the check passes", || (check(&cluster)["state"] == "up").then_some(()));
    // Down after the sixth, up after the twelfth, down after the fifteenth, up at the end.
    moody.becomes(&[U, U, W, U, U, U, W, U, U, U, W, W, U, U, U, W]);
    let changes = || {
        let events = director.xvs("events --no-follow --last 1000");
        let word =
            |line: &str| ["is up", "is down"].into_iter().find(|word| line.contains(&format!(" 80 {word}")));
        events.lines().filter_map(word).collect::<Vec<_>>()
    };
    wait::until("all answers are given", || (moody.to_come() == 0).then_some(()));
    wait::until("it is back", || changes().last().is_some_and(|last| *last == "is up").then_some(()));
    assert_eq!(changes(), ["is down", "is up", "is down", "is up"]);
    await_weight(&director, &real_server(1).to_string(), "-w 1");
}

/// Writes a script into the cluster's folder; returns its command line in a keepalived.conf, with these arguments.
fn script(folder: &Path, name: &str, lines: &str, arguments: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, lines).expect("the cluster's folder takes a new file");
    format!("\"/bin/sh {} {arguments}\"", path.display())
}

#[test]
fn a_script_sets_the_weight_and_scripts_and_the_fifo_receive_their_arguments() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let folder = cluster.state();
    let (notified, fifo, code) = (folder.join("notified"), folder.join("fifo"), folder.join("code"));
    let exits = |status: u8| {
        // A line that is read is complete.
        fs::write(folder.join("next"), status.to_string()).expect("the cluster's folder takes a new file");
        fs::rename(folder.join("next"), &code).expect("both are in the cluster's folder");
    };
    exits(0);
    let weighs = format!("[ \"$#-$1-$2\" = '2-two words-x' ] || exit 1\nexit $(cat {})\n", code.display());
    let check = script(folder, "weighs", &weighs, "'two words' x");
    let line = format!("echo \"$# $*\" >>{}\n", notified.display());
    let telling = |word, what| format!("{word} {}\n", script(folder, "line", &line, what));
    let asks = format!(
        "weight 5\n{}{}MISC_CHECK {{\nmisc_path {check}\nmisc_timeout 5\nmisc_dynamic\n}}",
        telling("notify_up", "'server up' a"),
        telling("notify_down", "'server down' a b")
    );
    let lines = [
        "quorum 5\n",
        &telling("quorum_up", "quorum up"),
        &telling("quorum_down", "'quorum down'"),
        &server(1, 80, &asks),
    ]
    .concat();
    let before = format!("global_defs {{\nlvs_notify_fifo {}\n}}\n", fifo.display());
    let director = watched(&cluster, &before, 80, &lines);
    let until_notified = |wanted: &str| {
        wait::until(wanted, || (fs::read_to_string(&notified).unwrap_or_default() == wanted).then_some(()));
    };
    let listed = |weight: u8| {
        wait::until(&format!("weight {weight} is listed"), || {
            let listed = director.adm("-L -n");
            let line = listed.lines().find(|line| line.contains(&format!("{}:80", real_server(1))))?;
            (line.split_whitespace().nth(3) == Some(&weight.to_string())).then_some(())
        });
    };
    listed(5);
    exits(12);
    listed(10);
    exits(4);
    listed(2);
    until_notified("2 quorum up\n1 quorum down\n");
    exits(1);
    until_notified("2 quorum up\n1 quorum down\n3 server down a b\n");
    exits(0);
    until_notified("2 quorum up\n1 quorum down\n3 server down a b\n2 server up a\n2 quorum up\n");
    listed(5);
    let mut lines = File::options().read(true).write(true).open(&fifo).expect("xvsd has made the FIFO");
    let mut read = [0; 4096];
    let count = lines.read(&mut read).expect("it has a notification");
    let (server, service) = (format!("RS [{}]:tcp:80", real_server(1)), format!("[{VIP}]:tcp:80"));
    let wanted = format!(
        "VS {service} UP\nVS {service} DOWN\n{server} {service} DOWN\n{server} {service} UP\nVS {service} UP\n"
    );
    assert_eq!(String::from_utf8_lossy(&read[..count]), wanted);
}

#[test]
fn checks_are_suspended_while_the_virtual_address_is_absent_and_resume_when_it_returns() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let life = Sink::start(&cluster, FIRST, LIFE);
    let director = watched(&cluster, "", 80, &("ha_suspend\n".to_owned() + &living(1, 80)));
    let address = |action: &str| {
        let mut ip = cluster.command(Host::Director, "ip");
        succeed(ip.args(["address", action, &format!("{VIP}/32"), "dev", "wan"]));
    };
    let await_state = |state: Value| {
        wait::until(&state.to_string(), || {
            let check = check(&cluster);
            (check["state"] == state).then_some(check)
        })
    };
    await_state("up".into());
    address("delete");
    let mut rests = await_state(json!({ "suspended": { "is_up": true } }));
    drop(life);
    for _ in 0..2 {
        let before = rests;
        rests = wait::until("it rests on", || {
            let check = check(&cluster);
            (check["next_millis"] != before["next_millis"]).then_some(check)
        });
        assert_eq!((&rests["asked"], &rests["state"]), (&before["asked"], &before["state"]));
    }
    await_weight(&director, &real_server(1).to_string(), "-w 1");
    address("add");
    await_state("down".into());
    wait::until("it is out", || (!director.adm("-S -n").contains("-a ")).then_some(()));
}
