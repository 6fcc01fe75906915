//! `xvs capture` compared with tcpdump: the captured frames of real connections are those on the wire.
//!
//! Each test has a cluster of its own. Needs root, tcpdump and tshark. Not here: every kind of packet
//! (`lab/capture.rs`).

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use xvs::cluster::{VIP, complete, real_server, succeed, virtual_endpoint};
use xvs::director::{Protocol, program};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic, wait};

/// A running capture program.
struct Capturing {
    process: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Capturing {
    /// Starts it and waits until a line on stderr contains `ready`.
    fn start(mut command: Command, ready: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains(ready) {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "{command:?} ended: {said}");
        }
        Self { process, stderr }
    }

    fn xvs(cluster: &Cluster, words: &[&str]) -> Self {
        let mut command = cluster.command(Host::Director, program("xvs"));
        command.arg("capture").args(words);
        Self::start(command, "capturing")
    }

    /// All frames of this filter at a host's interface.
    fn tcpdump(cluster: &Cluster, host: Host, interface: &str, file: &Path, filter: &str) -> Self {
        let mut command = cluster.command(host, "tcpdump");
        command
            .args(["-Z", "root", "-U", "--immediate-mode", "-n", "-i", interface, "-w"])
            .arg(file)
            .arg(filter);
        Self::start(command, "listening on")
    }

    /// Ends it, and returns its output, the rest of stderr included.
    fn stop(mut self) -> Output {
        // With a count, it may have ended by itself.
        let _ = kill_process(Pid::from_child(&self.process), Signal::INT);
        self.end()
    }

    fn end(&mut self) -> Output {
        let mut stdout = Vec::new();
        self.process.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let mut stderr = Vec::new();
        self.stderr.read_to_end(&mut stderr).unwrap();
        Output { status: self.process.wait().unwrap(), stdout, stderr }
    }
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The bytes of a file's frames, in hexadecimal digits, sorted.
fn frames(file: &Path) -> Vec<String> {
    let dump = succeed(Command::new("tcpdump").args(["-n", "-t", "-xx", "-r"]).arg(file));
    let mut frames: Vec<String> = Vec::new();
    for line in dump.lines() {
        match line.trim_start().strip_prefix("0x").and_then(|line| line.split_once(':')) {
            Some((_, digits)) => frames.last_mut().unwrap().push_str(digits),
            None => frames.push(String::new()),
        }
    }
    frames.sort();
    frames
}

/// A file with the frames of a capture that match a filter of tshark.
fn only(file: &Path, filter: &str) -> PathBuf {
    let part = file.with_extension("part");
    succeed(Command::new("tshark").args(["-n", "-r"]).arg(file).args(["-Y", filter, "-w"]).arg(&part));
    part
}

fn fields(file: &Path, filter: &str, fields: &[&str]) -> Vec<String> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields", "-E", "separator=|"]);
    fields.iter().for_each(|field| _ = command.args(["-e", field]));
    succeed(&mut command).lines().map(str::to_owned).collect()
}

fn prepared(method: Method, workers: Workers) -> Cluster {
    traffic::prepared(method, workers)
}

/// Four pages with this method: `xvs capture` shows on each interface the frames that tcpdump has at the other end.
fn capture_equals_the_wire(method: Method, workers: Workers) {
    let cluster = prepared(method, workers);
    let director = Director::start(&cluster, workers);
    director.add_service(Protocol::Tcp, 80, method);
    let file = |name: &str| cluster.state().join(name);
    let (ours, outside, inside) = (file("ours.pcapng"), file("outside.pcap"), file("inside.pcap"));
    let dumps = [
        Capturing::tcpdump(&cluster, Host::Client, "wan", &outside, "tcp port 80"),
        Capturing::tcpdump(&cluster, Host::Switch, "dr", &inside, "tcp port 80"),
    ];
    let xvs = Capturing::xvs(&cluster, &["-w", ours.to_str().unwrap(), "-t", &format!("{VIP}:80")]);
    let pages = clients::pages(&cluster, &format!("http://{VIP}/"), 4);
    assert!(clients::take_turns(&pages), "{pages:?}");
    // The last segments of connections may still be in transit.
    let (mut before, mut quiet) = ([0; 2], 0);
    wait::until("nothing more comes for some looks", || {
        let now = [&outside, &inside].map(|path| fs::metadata(path).unwrap().len());
        quiet = if now == before { quiet + 1 } else { 0 };
        before = now;
        (quiet == 20).then_some(())
    });
    let ended = xvs.stop();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.success() && said.contains(" 0 frames missed"), "{said}");
    dumps.into_iter().for_each(|dump| assert!(dump.stop().status.success()));
    for (interface, seen) in [("wan", &outside), ("lan", &inside)] {
        let shown = frames(&only(&ours, &format!("frame.interface_name == \"{interface}\"")));
        assert!(shown.len() >= 16, "{} frames by {interface}", shown.len());
        assert_eq!(shown, frames(seen), "{interface}");
    }
    let directions = fields(&ours, "tcp", &["frame.packet_flags_direction", "frame.comment"]);
    let of = |said: &str| directions.iter().filter(|line| line.starts_with(said)).count();
    let (came, left) = (of("0x00000001|xvs: transmit"), of("0x00000002|xvs: transmit"));
    // A neighbour may have to be resolved first.
    let waited = of("0x00000001|xvs: held: ");
    assert_eq!((came + waited, came + left + waited), (left, directions.len()), "{directions:?}");
    let times = fields(&ours, "tcp", &["frame.time_epoch"]);
    assert!(times.iter().all(|time| time.len() == "1700000000.123456789".len()), "{times:?}");
}

#[test]
fn both_directions_of_nat_are_captured_as_on_the_wire() {
    capture_equals_the_wire(Method::Nat, Workers::One);
}

#[test]
fn both_directions_of_nat_are_captured_as_on_the_wire_with_two_workers() {
    capture_equals_the_wire(Method::Nat, Workers::Two);
}

#[test]
fn requests_by_direct_routing_are_captured_as_on_the_wire() {
    capture_equals_the_wire(Method::DirectRouting, Workers::One);
}

#[test]
fn drops_are_captured_with_their_reason_and_the_reply_and_a_count_ends_the_capture() {
    let cluster = prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    director.adm(&format!("-A -t {}", virtual_endpoint(81)));
    let file = cluster.state().join("drops.pcapng");
    let mut xvs =
        Capturing::xvs(&cluster, &["-w", file.to_str().unwrap(), "--drops", "--port", "81", "--count", "1"]);
    let mut lines = Capturing::xvs(&cluster, &["--text", "--reason", "no_destination", "--count", "1"]);
    let mut json = Capturing::xvs(&cluster, &["--json", "--drops", "--port", "81", "--count", "1"]);
    clients::pages(&cluster, &format!("http://{VIP}/"), 1);
    assert!(clients::fetch(&cluster, &format!("http://{VIP}:81/")).is_err());
    let packet: serde_json::Value = serde_json::from_slice(&json.end().stdout).unwrap();
    assert_eq!((&packet["reason"], &packet["frames"][1]["way"]), (&"no_destination".into(), &"out".into()));
    assert!(xvs.end().status.success());
    let shown = fields(&file, "frame", &["frame.comment", "tcp.dstport", "icmp.type"]);
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert!(
        shown[0].starts_with("xvs: drop no_destination: each real server that the scheduler may choose"),
        "{shown:?}"
    );
    assert!(shown[0].ends_with("|81|") && shown[1].ends_with("|81|3"), "{shown:?}");
    let output = lines.end();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        line.contains(&format!("> {VIP}:81 TCP S ")) && line.ends_with("-> wan 198.51.100.10\n"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
}

#[test]
fn a_pipe_receives_packets_at_once_and_a_filter_matches_their_server() {
    let cluster = prepared(Method::DirectRouting, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::DirectRouting);
    let rs1 = real_server(1).to_string();
    let file = cluster.state().join("pipe.pcapng");
    let mut xvs = Capturing::xvs(&cluster, &["--address", &rs1, "--seconds", "3"]);
    clients::pages(&cluster, &format!("http://{VIP}/"), 2);
    fs::write(&file, xvs.end().stdout).unwrap();
    let macs = fields(&file, "frame.interface_name == \"lan\" && tcp.flags.syn == 1", &["eth.dst"]);
    let link =
        succeed(cluster.command(Host::RealServer(1), "ip").args(["-br", "link", "show", "dev", "lan"]));
    assert_eq!(macs.len(), 1, "of the two connections one went to the first server");
    assert!(link.contains(&macs[0]), "{link}");
}

#[test]
fn a_full_disk_fails_the_client_and_the_director_continues() {
    let cluster = prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let mut xvs = Capturing::xvs(&cluster, &["-w", "/dev/full"]);
    let page = format!("http://{VIP}/");
    clients::pages(&cluster, &page, 1);
    let ended = xvs.end();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1));
    assert!(said.contains("/dev/full") && said.contains("No space left"), "{said}");
    assert_eq!(clients::pages(&cluster, &page, 2).len(), 2);
}

#[test]
fn the_end_of_the_daemon_ends_the_capture_and_leaves_a_complete_file() {
    let cluster = prepared(Method::Nat, Workers::One);
    let mut director = Director::start(&cluster, Workers::One);
    director.adm(&format!("-A -t {}", virtual_endpoint(81)));
    let file = cluster.state().join("ended.pcapng");
    let mut xvs = Capturing::xvs(&cluster, &["-w", file.to_str().unwrap()]);
    assert!(clients::fetch(&cluster, &format!("http://{VIP}:81/")).is_err());
    wait::until("the packet is written", || (fs::metadata(&file).unwrap().len() > 200).then_some(()));
    director.kill();
    let ended = xvs.end();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(ended.status.code() == Some(4) && said.contains("xvsd closed the connection"), "{said}");
    // The client may have sent its SYN twice.
    let mut interfaces = fields(&file, "tcp.dstport == 81 && !icmp", &["frame.interface_name"]);
    interfaces.dedup();
    assert_eq!(interfaces, ["wan"]);
}

#[test]
fn a_fifth_capture_is_refused_until_one_of_four_has_ended() {
    let cluster = prepared(Method::Nat, Workers::One);
    let _director = Director::start(&cluster, Workers::One);
    let mut four: Vec<_> = (0..4).map(|_| Capturing::xvs(&cluster, &["--text"])).collect();
    let fifth = || {
        let mut command = cluster.command(Host::Director, program("xvs"));
        complete(command.args(["capture", "--text", "--seconds", "1"]))
    };
    let refused = fifth();
    assert_eq!(refused.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("4 captures are running"));
    // A killed client sends no message.
    drop(four.pop());
    wait::until("its place is free", || fifth().status.success().then_some(()));
    assert!(four.pop().unwrap().stop().status.success());
}
