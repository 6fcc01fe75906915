//! The control socket's client and server together, and the server with clients that violate its limits.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are tests too")]

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs, io, process, thread};
use xvs::director::program;
use xvs::wait;
use xvs_model::protocol::client::Director;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xvs_ctl::events::{Events, LISTENERS, Listener};
use xvs_model::config::command::Command;
use xvs_model::config::refusal::CommandError;
use xvs_model::config::timeouts::Timeouts;
use xvs_model::protocol::client::{Client, Failure};
use xvs_model::protocol::framing::{
    ReplyMessage, RequestMessage, VERSION, decode, read_frame, write_message,
};
use xvs_model::protocol::question::{ControlRequest, Reply, Request};
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Missed};
use xvs_model::report::connection::ConnectionRow;
use xvs_model::report::event::{Begin, EventQuery, KEPT, Kind, Then};
use xvs_proto::{Endpoint, Protocol};
use xvsd::socket::{Handler, Peer, Server, Settings, StartError};

/// A folder for each test, removed when it is dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("xvs-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("xvsd.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Handler that accepts and records every request, lists `connections` connections, and has one packet for each
/// capture.
#[derive(Default)]
pub(crate) struct Recorder {
    captures_ended: Mutex<u32>,
    asked: Mutex<Vec<Request>>,
    connections: u16,
    events: Arc<Events>,
}

impl Handler for Recorder {
    fn handle(&self, request: Request, _: &Peer) -> Result<Reply, CommandError> {
        let reply = match &request {
            Request::Control(ControlRequest::Timeouts) => Ok(Reply::Timeouts(Timeouts::default())),
            Request::Control(ControlRequest::ListServices) => Ok(Reply::Services(Vec::new())),
            Request::Status => panic!("the handler is broken"),
            _ => Ok(Reply::Done),
        };
        self.asked.lock().unwrap().push(request);
        reply
    }

    fn connections(
        &self,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        for port in 1..=self.connections {
            if each(connection(port)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn events(&self, asked: EventQuery) -> Result<Listener, CommandError> {
        self.events.listen(asked)
    }

    fn capture(
        &self,
        wanted: &CaptureRequest,
        _: &Peer,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        self.asked.lock().unwrap().push(Request::Capture(wanted.clone()));
        let packet = CapturedPacket { verdict: "pass".to_owned(), reason: None, frames: Vec::new() };
        let parts = [vec![], vec![packet]].into_iter().chain(std::iter::repeat_with(Vec::new));
        for part in parts {
            if each(part).is_break() {
                break;
            }
        }
        *self.captures_ended.lock().unwrap() += 1;
        Ok(Missed::from([("wan".to_owned(), 7)]))
    }
}

fn connection(port: u16) -> ConnectionRow {
    let endpoint = |last, port| Endpoint::new(Ipv4Addr::new(192, 0, 2, last), port);
    ConnectionRow {
        protocol: Protocol::TCP,
        expires_seconds: 60,
        state: "ESTABLISHED".to_owned(),
        client: endpoint(1, port),
        virtual_endpoint: endpoint(2, 80),
        dest: endpoint(3, 80),
        local: None,
        engine: None,
        detail: None,
    }
}

fn serve(folder: &Folder, handler: Recorder, adjust: impl FnOnce(&mut Settings)) -> (Server, Arc<Recorder>) {
    let mut settings = Settings::of(folder.socket());
    adjust(&mut settings);
    let handler = Arc::new(handler);
    (Server::start(settings, Arc::clone(&handler) as Arc<dyn Handler>).unwrap(), handler)
}

fn raw_reply(stream: &mut UnixStream) -> ReplyMessage {
    decode(&read_frame(stream, 1 << 20).unwrap().unwrap()).unwrap()
}

/// Whether the other end has closed: end of file, or a connection reset.
fn closed(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[test]
fn a_request_reaches_the_handler_and_its_reply_the_client() {
    let folder = Folder::new("request");
    let (_server, handler) = serve(&folder, Recorder::default(), |_| {});
    let mut client = Client::connect(&folder.socket()).unwrap();
    assert_eq!(client.call(ControlRequest::Change(Command::Flush).into()).unwrap(), Reply::Done);
    assert_eq!(client.call(ControlRequest::Timeouts.into()).unwrap(), Reply::Timeouts(Timeouts::default()));
    assert_eq!(
        *handler.asked.lock().unwrap(),
        [ControlRequest::Change(Command::Flush).into(), ControlRequest::Timeouts.into()]
    );
}

#[test]
fn connections_arrive_in_order_and_in_bounded_parts() {
    let folder = Folder::new("parts");
    let (_server, _) = serve(&folder, Recorder { connections: 2000, ..Recorder::default() }, |_| {});
    let mut ports = Vec::new();
    let mut client = Client::connect(&folder.socket()).unwrap();
    let mut each = |row: ConnectionRow| {
        ports.push(row.client.port);
        Ok(())
    };
    client.connections(&mut each).unwrap();
    assert!(ports.iter().copied().eq(1..=2000));

    let mut stream = UnixStream::connect(folder.socket()).unwrap();
    let message = RequestMessage { version: VERSION, request: Request::ListConnections };
    write_message(&mut stream, &message).unwrap();
    let mut sizes = Vec::new();
    loop {
        let part = raw_reply(&mut stream);
        let Ok(Reply::Connections(rows)) = part.answer else { panic!("{:?}", part.answer) };
        sizes.push(rows.len());
        if !part.more {
            break;
        }
    }
    assert_eq!(sizes, [512, 512, 512, 464]);
}

fn follow(folder: &Folder, from: Begin) -> UnixStream {
    let mut stream = UnixStream::connect(folder.socket()).unwrap();
    let request = Request::Events(EventQuery { from, then: Then::Follow });
    write_message(&mut stream, &RequestMessage { version: VERSION, request }).unwrap();
    stream
}

#[test]
fn a_request_for_events_is_answered_before_the_first_event() {
    let folder = Folder::new("answered");
    let (_server, handler) = serve(&folder, Recorder::default(), |_| {});
    let mut stream = follow(&folder, Begin::Now);
    for events in [0, 1] {
        let part = raw_reply(&mut stream);
        let Ok(Reply::Events(heard)) = part.answer else { panic!("{:?}", part.answer) };
        assert_eq!((heard.events.len(), part.more), (events, true));
        handler.events.record(Kind::Link, 1, "wan is down".to_owned());
    }
}

#[test]
fn a_listener_that_does_not_read_delays_no_other_and_receives_the_number_of_missed_events() {
    let folder = Folder::new("events");
    let (_server, handler) = serve(&folder, Recorder::default(), |_| {});
    let tell = |count: u64| (0..count).for_each(|_| handler.events.record(Kind::Link, 1, "x".repeat(500)));
    tell(1);
    let mut stream = follow(&folder, Begin::Last(1));
    // The listener is registered now; ten times the number of kept events is far more than a socket's buffers hold.
    let mut next = raw_reply(&mut stream);
    tell(10 * KEPT as u64);
    let (mut last, mut missed) = (0, 0);
    loop {
        let Ok(Reply::Events(heard)) = next.answer else { panic!("{:?}", next.answer) };
        assert!(next.more);
        missed += heard.missed;
        for (event, number) in heard.events.iter().zip(last + heard.missed + 1..) {
            assert_eq!(event.number, number);
        }
        last += heard.missed + heard.events.len() as u64;
        if last == 10 * KEPT as u64 + 1 {
            break;
        }
        next = raw_reply(&mut stream);
    }
    assert!(missed > 0, "all of it was read");
}

#[test]
fn without_follow_the_events_end_with_the_last_and_a_listener_that_leaves_frees_its_place() {
    let folder = Folder::new("listeners");
    let (_server, handler) = serve(&folder, Recorder::default(), |_| {});
    (0..100).for_each(|_| handler.events.record(Kind::Link, 1, "wan is down".to_owned()));
    let mut numbers = Vec::new();
    let asked = EventQuery { from: Begin::Last(70), then: Then::End };
    let listen = |each: &mut dyn FnMut(u64)| {
        Client::connect(&folder.socket()).unwrap().events(asked, &mut |heard| {
            heard.events.iter().for_each(|event| each(event.number));
            Ok(())
        })
    };
    listen(&mut |number| numbers.push(number)).unwrap();
    assert_eq!(numbers, (31..=100).collect::<Vec<_>>());
    let mut all = Vec::new();
    while all.len() < LISTENERS {
        let mut stream = follow(&folder, Begin::Last(1));
        // The place of the listener before becomes free a moment after its end.
        if raw_reply(&mut stream).answer.is_ok() {
            all.push(stream);
        }
    }
    assert!(listen(&mut |_| {}).is_err_and(|error| error.to_string().contains("end one")));
    drop(all);
    while listen(&mut |_| {}).is_err() {}
}

#[test]
fn a_malformed_request_is_refused_and_the_connection_continues() {
    let folder = Folder::new("garbage");
    let (_server, _) = serve(&folder, Recorder::default(), |_| {});
    let mut stream = UnixStream::connect(folder.socket()).unwrap();
    let unknown = format!(r#"{{"version":{VERSION},"request":"no such"}}"#);
    let garbage: [&[u8]; 4] = [b"", b"{", b"\xff\xfe", unknown.as_bytes()];
    for text in garbage {
        stream.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
        stream.write_all(text).unwrap();
        assert!(matches!(raw_reply(&mut stream).answer, Err(CommandError::Malformed { .. })), "{text:?}");
    }
    for theirs in [VERSION - 1, VERSION + 1] {
        write_message(
            &mut stream,
            &RequestMessage { version: theirs, request: ControlRequest::Timeouts.into() },
        )
        .unwrap();
        let refused = CommandError::WrongVersion { ours: VERSION, theirs };
        assert_eq!(raw_reply(&mut stream).answer, Err(refused));
    }
    write_message(
        &mut stream,
        &RequestMessage { version: VERSION, request: ControlRequest::Timeouts.into() },
    )
    .unwrap();
    assert_eq!(raw_reply(&mut stream).answer, Ok(Reply::Timeouts(Timeouts::default())));
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_bytes_arrive() {
    let folder = Folder::new("length");
    let (_server, _) =
        serve(&folder, Recorder::default(), |settings| settings.request_limit_bytes = 16 << 20);
    let mut stream = UnixStream::connect(folder.socket()).unwrap();
    stream.write_all(&100_000_000_u32.to_be_bytes()).unwrap();
    let refused = CommandError::TooLong { bytes: 100_000_000, limit: 16 << 20 };
    assert_eq!(raw_reply(&mut stream).answer, Err(refused));
    assert!(closed(&mut stream));
    Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
}

#[test]
fn a_request_above_the_size_limit_is_refused() {
    let folder = Folder::new("much");
    let (_server, handler) =
        serve(&folder, Recorder::default(), |settings| settings.request_limit_bytes = 1000);
    let mut client = Client::connect(&folder.socket()).unwrap();
    // More than the socket's buffers hold, so the refusal arrives while the client still writes.
    let refused = client.call(ControlRequest::Restore(vec![Command::Flush; 1 << 20]).into());
    assert!(
        matches!(refused, Err(Failure::Refused(CommandError::TooLong { limit: 1000, .. }))),
        "{refused:?}"
    );
    assert!(handler.asked.lock().unwrap().is_empty());
}

#[test]
fn large_requests_of_all_clients_together_are_limited() {
    let folder = Folder::new("together");
    let (_server, _) = serve(&folder, Recorder::default(), |settings| settings.request_limit_bytes = 1 << 20);
    let begin = |length: u32| {
        let mut client = UnixStream::connect(folder.socket()).unwrap();
        client.write_all(&length.to_be_bytes()).unwrap();
        client
    };
    // Both anew each time: if the second was read first, the first was refused.
    let (first, refused) = wait::until("the second is refused", || {
        let (first, mut second) = (begin(900_000), begin(300_000));
        second.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let frame = read_frame(&mut second, 1 << 20).ok().flatten()?;
        Some((first, decode::<ReplyMessage>(&frame).unwrap()))
    });
    assert!(refused.answer.unwrap_err().to_string().contains("try again"));
    Client::connect(&folder.socket())
        .unwrap()
        .call(ControlRequest::Timeouts.into())
        .expect("small ones go on");
    drop(first);
    wait::until("the room is free again", || {
        let mut client = Client::connect(&folder.socket()).unwrap();
        client.call(ControlRequest::Restore(vec![Command::Flush; 1 << 15]).into()).ok()
    });
}

#[test]
fn a_request_is_answered_though_many_clients_before_it_have_connected_and_say_nothing() {
    let folder = Folder::new("silent");
    let (_server, _) = serve(&folder, Recorder::default(), |settings| settings.clients = 4);
    let silent: Vec<_> = (0..200).map(|_| UnixStream::connect(folder.socket()).unwrap()).collect();
    Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
    drop(silent);
}

#[test]
fn a_stuck_client_delays_no_other() {
    let folder = Folder::new("stuck");
    let (_server, _) = serve(&folder, Recorder { connections: 60_000, ..Recorder::default() }, |settings| {
        settings.idle = Duration::from_millis(500);
        settings.transfer = Duration::from_millis(500);
    });
    let mut silent = UnixStream::connect(folder.socket()).unwrap();
    let mut half = UnixStream::connect(folder.socket()).unwrap();
    half.write_all(&10_u32.to_be_bytes()).unwrap();
    half.write_all(b"{").unwrap();
    // Requests megabytes and reads nothing.
    let mut deaf = UnixStream::connect(folder.socket()).unwrap();
    write_message(&mut deaf, &RequestMessage { version: VERSION, request: Request::ListConnections })
        .unwrap();
    Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
    assert!(closed(&mut silent));
    assert!(closed(&mut half));
    // The server closes the connection although the client has read nothing.
    poll(&mut [PollFd::new(&deaf, PollFlags::HUP)], None).unwrap();
}

#[test]
fn a_handler_that_panics_fails_only_its_client() {
    let folder = Folder::new("panic");
    let (_server, _) = serve(&folder, Recorder::default(), |settings| settings.clients = 1);
    let broken = Client::connect(&folder.socket()).unwrap().call(Request::Status);
    assert!(matches!(broken, Err(Failure::Transport(_))), "{broken:?}");
    let mut next = Client::connect(&folder.socket()).unwrap();
    assert_eq!(next.call(ControlRequest::Timeouts.into()).unwrap(), Reply::Timeouts(Timeouts::default()));
}

#[test]
fn a_listener_that_reads_nothing_is_closed_after_the_time_of_an_idle_client() {
    let folder = Folder::new("events-closed");
    let idle = |settings: &mut Settings| settings.idle = Duration::from_millis(1);
    let (_server, handler) = serve(&folder, Recorder::default(), idle);
    let stream = follow(&folder, Begin::Now);
    // More than a socket's buffers hold, piece by piece, because only so many events are kept.
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let closed = (0..10_000).any(|_| {
        handler.events.record(Kind::Link, 1, "x".repeat(5000));
        poll(&mut [PollFd::new(&stream, PollFlags::HUP)], Some(&moment)).unwrap() > 0
    });
    assert!(closed, "50 MB wait for a listener that reads nothing");
}

#[test]
fn a_client_gets_the_place_of_the_client_that_was_idle_longest_if_all_are_taken() {
    let folder = Folder::new("idle");
    let (_server, handler) = serve(&folder, Recorder::default(), |settings| settings.clients = 3);
    handler.events.record(Kind::Link, 1, "wan is down".to_owned());
    let mut busy = follow(&folder, Begin::Last(1));
    raw_reply(&mut busy).answer.unwrap();
    let mut idle = [(); 2].map(|()| Client::connect(&folder.socket()).unwrap());
    for client in idle.iter_mut().rev() {
        client.call(ControlRequest::Timeouts.into()).unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    let mut third = Client::connect(&folder.socket()).unwrap();
    third.call(ControlRequest::Timeouts.into()).unwrap();
    // A question would be asked again by another connection.
    let set = ControlRequest::Set { key: "sloppy_tcp".to_owned(), value: "1".to_owned() };
    assert!(idle[1].call(set.into()).is_err(), "its last request is the oldest");
    idle[0].call(ControlRequest::Timeouts.into()).unwrap();
    third.call(ControlRequest::Timeouts.into()).unwrap();
    handler.events.record(Kind::Link, 1, "wan is up".to_owned());
    raw_reply(&mut busy).answer.expect("a listener keeps its place");
}

#[test]
fn one_client_too_many_is_refused_until_another_one_leaves() {
    let folder = Folder::new("many");
    let (_server, _) = serve(&folder, Recorder::default(), |settings| settings.clients = 1);
    let mut first = UnixStream::connect(folder.socket()).unwrap();
    let request = Request::Capture(all());
    write_message(&mut first, &RequestMessage { version: VERSION, request }).unwrap();
    raw_reply(&mut first).answer.unwrap();
    let refused = Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into());
    assert!(matches!(refused, Err(Failure::Refused(CommandError::TooManyClients))), "{refused:?}");
    drop(first);
    let served = |_| Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).is_ok();
    assert!((0..10_000).any(served), "the place is never free again");
}

#[test]
fn a_second_server_fails_and_the_first_is_unaffected() {
    let folder = Folder::new("second");
    let (server, _) = serve(&folder, Recorder::default(), |_| {});
    let second = Server::start(Settings::of(folder.socket()), Arc::new(Recorder::default()));
    let Err(StartError::InUse { socket, by }) = second else { panic!("{second:?}") };
    assert_eq!((socket.as_path(), by), (server.socket(), Some(process::id())));
    let mode = fs::metadata(folder.0.join("xvsd.sock.lock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "who can open it could keep every server from starting");
    Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
    drop(server);
    assert!(!folder.socket().exists());
    let (_third, _) = serve(&folder, Recorder::default(), |_| {});
    Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
}

#[test]
fn a_stale_socket_is_replaced_without_a_moment_with_none_and_a_file_in_its_place_is_not() {
    let folder = Folder::new("stale");
    for _ in 0..50 {
        drop(UnixListener::bind(folder.socket()).unwrap());
        let started = AtomicBool::new(false);
        let (_server, _) = thread::scope(|scope| {
            scope.spawn(|| {
                while !started.load(Ordering::Relaxed) {
                    fs::symlink_metadata(folder.socket()).expect("a socket");
                }
            });
            let server = serve(&folder, Recorder::default(), |_| {});
            started.store(true, Ordering::Relaxed);
            server
        });
        Client::connect(&folder.socket()).unwrap().call(ControlRequest::Timeouts.into()).unwrap();
    }
    for path in [folder.socket(), folder.socket().with_added_extension("new")] {
        fs::write(&path, "precious").unwrap();
        let refused = Server::start(Settings::of(folder.socket()), Arc::new(Recorder::default()));
        assert!(matches!(&refused, Err(StartError::NotASocket(file)) if *file == path), "{refused:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }
}

/// Runs `xvsadm` as user 65534 with these groups; `None` without root.
fn as_nobody(folder: &Folder, groups: &str, arguments: &[&str]) -> Option<(i32, String)> {
    run_as_nobody(&program("xvsadm"), folder, groups, arguments)
}

/// The same for any program.
fn run_as_nobody(built: &Path, folder: &Folder, groups: &str, arguments: &[&str]) -> Option<(i32, String)> {
    if !is_root() {
        eprintln!("skipped: running a program as another user needs root");
        return None;
    }
    let program = folder.0.join("program");
    fs::copy(built, &program).unwrap();
    let output = Process::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", groups])
        .arg(&program)
        .args(arguments)
        .env("XVS_SOCKET", folder.socket())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some((output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap()))
}

pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

#[test]
fn others_may_read_and_only_members_of_the_group_may_change() {
    let folder = Folder::new("rights");
    let group = fs::read_to_string("/etc/group").unwrap();
    let (name, number) = group
        .lines()
        .rev()
        .find_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?.to_owned(), fields.nth(1)?.to_owned())).filter(|(_, number)| number != "0")
        })
        .unwrap();
    let (_server, handler) = serve(&folder, Recorder::default(), |settings| {
        settings.mode = 0o666;
        settings.group = name;
    });
    let denied = "Permission denied (you must be root)\n".to_owned();
    let Some(listed) = as_nobody(&folder, "--clear-groups", &["-L", "-n"]) else { return };
    assert_eq!(listed, (0, String::new()));
    assert_eq!(as_nobody(&folder, "--clear-groups", &["-C"]), Some((255, denied)));
    assert_eq!(*handler.asked.lock().unwrap(), [ControlRequest::ListServices.into()]);
    let groups = format!("--groups={number}");
    assert_eq!(as_nobody(&folder, &groups, &["-C"]), Some((0, String::new())));
    assert_eq!(handler.asked.lock().unwrap().last(), Some(&ControlRequest::Change(Command::Flush).into()));
}

#[test]
fn packets_are_shown_to_root_and_the_group_alone() {
    let folder = Folder::new("capture-rights");
    let (_server, handler) = serve(&folder, Recorder::default(), |settings| settings.mode = 0o666);
    let words = ["capture", "--text", "--count", "1"];
    let nobody = |groups: &str| run_as_nobody(&program("xvs"), &folder, groups, &words);
    let Some((code, said)) = nobody("--clear-groups") else { return };
    assert!(code == 3 && said.contains("group xvs") && said.contains("see packets"), "{code}: {said}");
    assert!(handler.asked.lock().unwrap().is_empty());
}

fn all() -> CaptureRequest {
    CaptureRequest::everything(64)
}

#[test]
fn a_capture_ends_with_counts_at_its_clients_request() {
    let folder = Folder::new("capture-end");
    let (_server, handler) = serve(&folder, Recorder::default(), |_| {});
    let mut client = Client::connect(&folder.socket()).unwrap();
    let stopper = client.stopper().unwrap();
    let mut parts = Vec::new();
    let missed = client.capture(all(), &mut |part| {
        parts.push(part.len());
        if part.len() == 1 {
            stopper.stop();
        }
        Ok(())
    });
    assert_eq!((missed.unwrap(), parts), (Missed::from([("wan".to_owned(), 7)]), vec![0, 1]));
    assert_eq!(*handler.captures_ended.lock().unwrap(), 1);
}

#[test]
fn a_capture_ends_when_its_client_disconnects() {
    let folder = Folder::new("capture-gone");
    let (server, handler) = serve(&folder, Recorder::default(), |_| {});
    let mut client = Client::connect(&folder.socket()).unwrap();
    let enough = client.capture(all(), &mut |_| Err(io::ErrorKind::StorageFull.into()));
    assert!(matches!(enough, Err(Failure::Printing(_))), "{enough:?}");
    drop(client);
    while *handler.captures_ended.lock().unwrap() == 0 {
        thread::yield_now();
    }
    drop(server);
}

#[test]
fn without_a_daemon_xvsadm_names_the_socket_and_how_to_start_one() {
    let folder = Folder::new("absent");
    let output =
        Process::new(program("xvsadm")).arg("-L").env("XVS_SOCKET", folder.socket()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains(folder.socket().to_str().unwrap()), "{message}");
    assert!(message.contains("`systemctl start xvsd`"), "{message}");
}
