//! `xvs events` and the log of a running daemon: changes with their origin, and changes of the network.
//!
//! Each test has a cluster of its own. Needs root. Not here: one listener that is too slow
//! (`tests/programs/socket.rs`).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::Value;
use xvs::cluster::{VIP, real_server, succeed};
use xvs::director::{Protocol, program};
use xvs::wait::{self, DEADLINE};
use xvs::{Cluster, Director, Host, Method, Workers, clients, traffic};
use xvs_model::protocol::framing::{
    ReplyMessage, RequestMessage, VERSION, decode, read_frame, write_message,
};
use xvs_model::protocol::question::Request;
use xvs_model::report::capture::CaptureRequest;
use xvs_model::report::event::{Begin, EventQuery, Then};

/// A running `xvs events --json`.
struct Listener {
    process: Child,
    lines: Receiver<String>,
}

impl Listener {
    /// Follows all events, from the first one kept on.
    fn start(cluster: &Cluster) -> Self {
        let mut command = cluster.command(Host::Director, program("xvs"));
        command.args(["events", "--json", "--last", "1024"]).stdout(Stdio::piped());
        let mut process = command.spawn().expect("xvs can be started");
        let out = process.stdout.take().expect("it was asked for");
        let (send, lines) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines.take_while(|line| send.send(line.clone()).is_ok()).for_each(drop);
        });
        Self { process, lines }
    }

    /// The next event for which `found` is true.
    #[track_caller]
    fn until(&self, what: &str, found: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(DEADLINE);
            let line = line.unwrap_or_else(|error| panic!("{what}: {error} after {seen:#?}"));
            let event: Value = serde_json::from_str(&line).expect("JSON");
            if found(&event) {
                return event;
            }
            seen.push(line);
        }
    }

    #[track_caller]
    fn until_event(&self, kind: &str, what: &str) -> Value {
        self.until(what, |event| {
            event["kind"] == kind && event["what"].as_str().is_some_and(|text| text.contains(what))
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_change_is_reported_with_its_origin_and_command_line_and_logged_with_its_result() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let listener = Listener::start(&cluster);
    let service = format!("-t {VIP}:80");
    director.adm(&format!("-A {service} -s wlc"));
    let added = listener.until_event("change", &format!("xvsadm -A {service} -s wlc"));
    assert_eq!((&added["by"]["uid"], &added["by"]["program"]), (&0.into(), &"xvsadm".into()), "{added}");
    assert!(added["by"]["pid"].as_i64().is_some_and(|pid| pid > 0) && added["refused"].is_null(), "{added}");

    let again = director.adm_reading(&format!("-A {service} -s wlc"), "");
    assert!(!again.status.success());
    let refused = listener.until_event("change", &format!("xvsadm -A {service} -s wlc"));
    assert!(refused["refused"].as_str().is_some_and(|why| why.contains("exists already")), "{refused}");
    assert_eq!(refused["epoch"], added["epoch"], "nothing has changed");

    let server = format!("-a {service} -r {}:80 -m -w 3 -x 9 -y 7", real_server(1));
    let output = director.adm_reading("-R", &format!("{server}\n-D -t {VIP}:81\n"));
    assert!(!output.status.success());
    let restored = listener.until_event("change", &format!("xvsadm {server}"));
    assert!(restored["epoch"].as_u64() > refused["epoch"].as_u64());
    assert_eq!(listener.until_event("change", "xvsadm -D")["epoch"], restored["epoch"], "one snapshot");
    director.xvs("set sloppy_tcp 1");
    assert_eq!(listener.until_event("change", "xvs set sloppy_tcp 1")["by"]["program"], "xvs");

    let log = wait::until("the log of the last change", || {
        Some(director.log()).filter(|log| log.contains("xvs set sloppy_tcp 1"))
    });
    let logged = |end: &str| {
        let line = log.lines().find(|line| line.ends_with(end));
        assert!(line.is_some_and(|line| line.contains("uid 0, xvs")), "{end}:\n{log}");
    };
    logged(&format!("(process {}): xvsadm -A {service} -s wlc", added["by"]["pid"]));
    logged(&format!("xvsadm {server}"));
    logged("xvs set sloppy_tcp 1");
    assert!(log.contains(&format!("-A {service} -s wlc: refused: virtual service")), "{log}");
    assert!(log.contains(&format!("xvsadm -D -t {VIP}:81: refused: ")), "{log}");

    let last = director.xvs("events --last 2 --no-follow");
    assert_eq!(last.lines().count(), 2, "{last}");
    assert!(last.ends_with("xvs set sloppy_tcp 1\n"), "{last}");
    let all = director.xvs("events --since 1h --no-follow");
    assert!(all.lines().count() >= 5 && all.contains(": refused: "), "{all}");
}

#[test]
fn links_warnings_and_moved_weights_are_reported_when_they_begin_and_end() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    let listener = Listener::start(&cluster);
    let on_director = |line: &str| {
        let (name, words) = line.split_once(' ').expect("a program and its words");
        succeed(cluster.command(Host::Director, name).args(words.split(' ')))
    };
    on_director("ip link set wan down");
    listener.until_event("link", "wan is down");
    on_director("ip link set wan up");
    listener.until_event("link", "wan is up");

    let rule = format!("-t mangle -A PREROUTING -d {VIP} -m length --length 100 -j MARK --set-mark 1");
    on_director(&format!("iptables-nft {rule}"));
    listener.until_event("warning", "is not followed: xvs does not know the match length");
    on_director("iptables-nft -t mangle -F");
    listener.until_event("over", "is not followed: xvs does not know the match length");

    director.adm(&format!("-A -t {VIP}:80 -s wlc"));
    director.adm(&format!("-a -t {VIP}:80 -r {}:80 -m -w 10", real_server(1)));
    director.xvs("set feedback.services all");
    director.xvs(&format!("feedback {} 100", real_server(1)));
    let moved = listener.until("a weight", |event| event["kind"] == "weight");
    let what = moved["what"].as_str().expect("a sentence");
    assert!(
        what.starts_with(&format!("weight of {}:80 in TCP {VIP}:80 from 10 to ", real_server(1))),
        "{what}"
    );
    assert!(what.ends_with("its load is 100 %"), "{what}");
    succeed(cluster.command(Host::Director, program("xvs")).args(["set", "feedback.services", ""]));
    listener.until_event("weight", "its load is not known any more");
    on_director("ip link del wan");
    listener.until_event("link", "wan is gone");
}

#[test]
fn two_hundred_clients_that_stop_reading_events_and_packets_take_bounded_memory() {
    let cluster = traffic::prepared(Method::Nat, Workers::One);
    let director = Director::start(&cluster, Workers::One);
    director.add_service(Protocol::Tcp, 80, Method::Nat);
    let before = resident_mib(&director);
    let socket = format!("/proc/{}/root/run/xvs/xvsd.sock", director.process());
    let deaf = |request: Request| {
        let mut stream = UnixStream::connect(&socket).expect("xvsd listens");
        // A refused client is gone already.
        let _ = write_message(&mut stream, &RequestMessage { version: VERSION, request });
        stream
    };
    let query = EventQuery { from: Begin::Last(1024), then: Then::Follow };
    let requests =
        (0..100).flat_map(|_| [Request::Events(query), Request::Capture(CaptureRequest::everything(4096))]);
    let _streams: Vec<_> = requests
        .enumerate()
        .map(|(number, request)| {
            let mut stream = deaf(request);
            // Four captures run at a time. A client of these reads one reply, before another could take its place.
            if number < 8 {
                accepted(&mut stream);
            }
            stream
        })
        .collect();
    // More events than are kept, and many times the packets that wait for a capture.
    let change = format!("-E -t {VIP}:80 -s wrr\n-E -t {VIP}:80 -s rr\n");
    for _ in 0..8 {
        assert!(director.adm_reading("-R", &change.repeat(128)).status.success());
    }
    for _ in 0..3 {
        let body = clients::fetch(&cluster, &format!("http://{VIP}/blob")).expect("a download");
        assert!(body == cluster.blob(), "{} bytes", body.len());
    }
    let listed = director.adm("-Ln");
    assert!(listed.contains(&format!("TCP  {VIP}:80 rr")), "{listed}");
    let grown = resident_mib(&director).saturating_sub(before);
    assert!(grown < 100, "{before} MiB before, {grown} MiB more");
}

/// Reads one reply, which must be that of a request that was accepted.
fn accepted(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(DEADLINE)).expect("the time limit is not zero");
    let frame = read_frame(stream, 1 << 20).expect("a reply").expect("an open connection");
    let reply: ReplyMessage = decode(&frame).expect("a reply");
    assert!(reply.answer.is_ok(), "{reply:?}");
}

/// The daemon's resident memory.
fn resident_mib(director: &Director<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", director.process())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux has it");
    line.trim_end_matches("kB").trim().parse::<u64>().expect("a number") / 1024
}
