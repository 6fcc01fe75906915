//! The server of the control socket.
//!
//! One thread accepts connections, and one thread serves each client. The [`Handler`] interprets requests. Bounded: the
//! number of clients, fewer of them without permission to change; the size of a request; the time for a message to
//! arrive and for a reply to be taken. A client that exceeds a bound is disconnected, with the reason if that is
//! possible; other clients are not affected. If all slots are taken, a client that may make changes gets the slot of
//! the client that has been idle longest, for at least a second. Forgotten connections therefore delay no command. A
//! client whose request has arrived also gets the slot of a client that has never sent a request.
//!
//! A lock file beside the socket decides which server serves. The server holds it while it lives; the kernel releases
//! it if the process dies. A second server therefore refuses to start, and a stale socket is replaced.

pub(crate) mod capture;
pub mod dispatch;
mod folder;
pub mod peer;
mod places;
mod refused_changes;
mod request_line;
mod room;
mod start_error;
mod streams;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use xvs_ctl::events::Listener;
use xvs_host::lock_file;
use xvs_host::lock_file::{Held, Lock, LockAttempt, Owner};
use xvs_host::process::END;
use xvs_model::config::refusal::CommandError;
use xvs_model::protocol::framing::{
    FrameError, ReplyMessage, RequestMessage, VERSION, decode, read_admitted, write_message,
};
use xvs_model::protocol::question::{Reply, Request};
use xvs_model::protocol::request::Access;
use xvs_model::report::capture::{CaptureRequest, CapturedPacket, Missed};
use xvs_model::report::connection::{ConnectionRow, Filter};
use xvs_model::report::event::EventQuery;

use crate::lock::lock;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::socket::folder::Folder;
use crate::socket::peer::Rules;
use crate::socket::places::{Clients, Served, has_sent};
use crate::socket::refused_changes::RefusedChanges;
use crate::socket::request_line::request_line;
use crate::socket::room::LargeRequests;
use crate::socket::start_error::beside;
use crate::threads::spawn_stoppable;

pub use crate::socket::peer::Peer;
pub use crate::socket::start_error::StartError;

/// Answers requests. Called from many threads at once, each of which serves one client.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. The server has checked that `peer` may send it.
    ///
    /// # Errors
    /// The error that the client gets.
    fn handle(&self, request: Request, peer: &Peer) -> Result<Reply, CommandError>;

    /// Passes every connection to `each` until it breaks, which it does when the client is gone. `each` waits for the
    /// client, so no lock may be held during the call.
    ///
    /// # Errors
    ///
    /// The error for the client.
    fn connections(&self, each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>)
    -> Result<(), CommandError>;

    /// Passes every connection that matches `filter` to `each`, with its details, like [`Self::connections`].
    ///
    /// # Errors
    ///
    /// Same as [`Self::connections`].
    fn find(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> ControlFlow<()>,
    ) -> Result<(), CommandError> {
        self.connections(&mut |row| if filter.matches(&row) { each(row) } else { ControlFlow::Continue(()) })
    }

    /// A listener to events.
    ///
    /// # Errors
    /// The error that the client gets.
    fn events(&self, _query: EventQuery) -> Result<Listener, CommandError> {
        Err(CommandError::failed("there are no events here"))
    }

    /// Passes captured packets to `each` until it breaks. `each` waits for some time if it gets none.
    ///
    /// # Errors
    /// The error that the client gets.
    fn capture(
        &self,
        _: &CaptureRequest,
        _: &Peer,
        _: &mut dyn FnMut(Vec<CapturedPacket>) -> ControlFlow<()>,
    ) -> Result<Missed, CommandError> {
        Err(CommandError::failed("a director in memory has no packet capture"))
    }
}

/// Settings of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The socket's path; its directory is created if it is missing.
    pub socket: PathBuf,
    /// File mode of the socket: the users that may connect.
    pub mode: u32,
    /// The group of the socket, whose members may make changes; without effect if the system has no such group.
    pub group: String,
    /// Clients at one time.
    pub clients: usize,
    /// Maximum number of simultaneous clients that may only read; fewer than `clients`, so that clients that may make
    /// changes are always admitted.
    pub readers: usize,
    /// Clients at one time of one user that may only read.
    pub readers_per_user: usize,
    /// The longest request of clients that may change. Other clients have [`READER_LIMIT_BYTES`].
    pub request_limit_bytes: u32,
    /// How long a client may be silent between requests.
    pub idle: Duration,
    /// The time that a message may take to arrive once it has begun, and that a reply may take to be read.
    pub transfer: Duration,
}

impl Settings {
    /// The default settings for this socket.
    pub fn of(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            mode: 0o660,
            group: "xvs".to_owned(),
            clients: CLIENTS,
            readers: 48,
            readers_per_user: 16,
            request_limit_bytes: 64 << 20,
            idle: Duration::from_secs(300),
            transfer: Duration::from_secs(10),
        }
    }
}

/// A running server; dropping it stops it and closes every client's connection.
#[derive(Debug)]
pub struct Server {
    // Dropped in this order: the socket is removed before the lock is released. Otherwise the next server's socket
    // could be removed.
    listener: Arc<UnixListener>,
    accepting: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    folder: Folder,
    _lock: Lock,
}

/// State shared by the threads of a server.
#[derive(Debug)]
struct Shared {
    settings: Settings,
    rules: Rules,
    /// The connected clients, by a number that is never reused.
    clients: Mutex<Clients>,
    refused_changes: Mutex<RefusedChanges>,
    large: LargeRequests,
}

/// Checks the directory of a socket that a successor will serve: later it is too late to refuse the directory.
///
/// # Errors
///
/// The reason why [`Server::start`] would refuse it.
pub fn check_folder(socket: &Path) -> Result<(), StartError> {
    Folder::of(socket).map(drop)
}

impl Server {
    /// Starts to serve.
    ///
    /// # Errors
    /// [`StartError::InUse`] if another server runs; then nothing has changed.
    pub fn start(settings: Settings, handler: Arc<dyn Handler>) -> Result<Self, StartError> {
        let path = settings.socket.clone();
        let folder = Folder::of(&path)?;
        let held = take_lock(&path)?;
        let rules = Rules::of_group(&settings.group);
        let listener = Arc::new(folder.bind(rules.group(), settings.mode)?);
        let shared = Arc::new(Shared {
            settings,
            rules,
            clients: Mutex::default(),
            refused_changes: Mutex::default(),
            large: LargeRequests::default(),
        });
        let accepting = {
            let (listener, shared) = (Arc::clone(&listener), Arc::clone(&shared));
            spawn_stoppable("control-accept", move || {
                // The threads of clients inherit the limits.
                limit_thread(Kind::Reader);
                accept(&listener, &shared, &handler);
            })
            .map_err(StartError::system("thread for", &path))?
        };
        Ok(Self { listener, accepting: Some(accepting), shared, folder, _lock: held })
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.shared.settings.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        {
            let mut clients = lock(&self.shared.clients);
            clients.stopping = true;
            for served in clients.served.values() {
                // An error means that the client has disconnected already.
                let _ = served.stream.shutdown(Shutdown::Both);
            }
        }
        // Wakes accept(2), which fails from then on. An error means that the thread has ended already.
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            // The thread's panic was reported when it happened.
            let _ = accepting.join();
        }
        self.folder.remove();
    }
}

/// Takes the lock file beside the socket. Waits for the end of a holder that accepts no connections any more.
fn take_lock(socket: &Path) -> Result<Lock, StartError> {
    let path = beside(socket, ".lock");
    // A killed process may accept connections for some milliseconds more.
    let accepts = UnixStream::connect(socket).is_ok();
    match lock_file::lock_within(&path, Owner::Own, if accepts { END / 10 } else { END }) {
        Ok(LockAttempt::Locked(lock)) => Ok(lock),
        Ok(LockAttempt::Held(Held { by, .. })) => Err(StartError::InUse { socket: socket.to_owned(), by }),
        Err(error) => Err(StartError::System { call: "lock", path, error }),
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, handler: &Arc<dyn Handler>) {
    let mut silent = 0;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if lock(&shared.clients).stopping => return,
            Err(error) => {
                tracing::warn!(%error, "accepting a control client");
                // Without free descriptors accept fails at once, repeatedly: do not occupy the core.
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        let peer = match shared.rules.peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "no credentials of a control client");
                continue;
            }
        };
        let Some(client) = Client::register(stream, peer, shared, &mut silent) else { continue };
        let handler = Arc::clone(handler);
        if let Err(error) = thread::Builder::new()
            .name("control-client".to_owned())
            .spawn(move || client.serve(handler.as_ref()))
        {
            tracing::warn!(%error, "no thread for a control client");
        }
    }
}

/// A connected client; dropping it frees its slot.
struct Client {
    number: u64,
    stream: UnixStream,
    peer: Peer,
    shared: Arc<Shared>,
}

impl Client {
    /// Registers a client, or refuses it because all slots are taken. `silent` is the number of refused clients before
    /// it that had sent no request.
    fn register(stream: UnixStream, peer: Peer, shared: &Arc<Shared>, silent: &mut u32) -> Option<Self> {
        let second = stream.try_clone().ok()?;
        let until = Instant::now() + PLACE_WAIT;
        let mut clients = lock(&shared.clients);
        let has_place = |clients: &mut Clients, has_request| {
            clients.have_room_for(&peer, &shared.settings)
                || clients.replace_idle(&peer, Instant::now(), has_request)
        };
        let mut has_one = has_place(&mut clients, false);
        if !has_one {
            drop(clients);
            // A client that has waited behind silent ones has had time to send its request.
            let has_request = has_sent(&stream, FIRST_REQUEST / 2_u32.pow(*silent));
            *silent = if has_request { 0 } else { (*silent + 1).min(8) };
            clients = lock(&shared.clients);
        }
        // Most requests take some milliseconds, so a slot becomes free soon. Other clients wait in the socket's queue
        // in the meantime; there is no slot for them either.
        while !has_one
            && *silent == 0
            && !clients.stopping
            && peer.access == Access::Change
            && Instant::now() < until
        {
            drop(clients);
            thread::sleep(PLACE_PAUSE);
            clients = lock(&shared.clients);
            has_one = has_place(&mut clients, true);
        }
        if clients.stopping {
            return None;
        }
        if !has_one {
            drop(clients);
            // The message fits into an empty socket buffer, so this does not wait. If it fails, the client sees the
            // connection end.
            let _ = send(&stream, Err(CommandError::TooManyClients), Part::Last, Duration::from_secs(1));
            return None;
        }
        let number = clients.next;
        clients.next += 1;
        clients.served.insert(
            number,
            Served { stream: second, peer: peer.clone(), idle_since: Some(Instant::now()), has_asked: false },
        );
        drop(clients);
        Some(Self { number, stream, peer, shared: Arc::clone(shared) })
    }

    /// Answers requests until the client disconnects or exceeds a bound.
    fn serve(&self, handler: &dyn Handler) {
        let Shared { settings, large, .. } = &*self.shared;
        let pid = self.peer.pid;
        let limit = match self.peer.access {
            Access::Change => settings.request_limit_bytes,
            Access::Read => READER_LIMIT_BYTES.min(settings.request_limit_bytes),
        };
        loop {
            let mut incoming =
                Incoming { client: self, first: settings.idle, rest: settings.transfer, until: None };
            let (frame, room) = match read_admitted(&mut incoming, |bytes| large.take(bytes, limit)) {
                Ok(Some(read)) => read,
                Ok(None) => return,
                Err(FrameError::TooLong { bytes, limit }) => {
                    let refused = CommandError::TooLong { bytes: bytes.into(), limit: limit.into() };
                    // The start of the next message is unknown, so the connection ends after this reply.
                    let _ = self.send(Err(refused), Part::Last);
                    return;
                }
                Err(FrameError::NoRoom) => {
                    let why = "other clients send as much as all may send at a time; try again";
                    let _ = self.send(Err(CommandError::failed(why)), Part::Last);
                    return;
                }
                Err(FrameError::Io(error)) => {
                    tracing::debug!(pid, %error, "control client dropped");
                    return;
                }
            };
            let sent = Instant::now();
            if let Err(error) = self.answer(&frame, handler) {
                tracing::debug!(pid, %error, "control client dropped");
                return;
            }
            drop(room);
            self.set_idle_since(Some(sent));
        }
    }

    /// Records since when the client has been idle. Returns whether it still has its slot.
    fn set_idle_since(&self, idle_since: Option<Instant>) -> bool {
        let mut clients = lock(&self.shared.clients);
        let Some(served) = clients.served.get_mut(&self.number) else { return false };
        served.idle_since = idle_since;
        served.has_asked = true;
        true
    }

    fn answer(&self, frame: &[u8], handler: &dyn Handler) -> io::Result<()> {
        let peer = &self.peer;
        let request = match decode::<RequestMessage>(frame) {
            Ok(message) => message.request,
            Err(refused) => return self.send(Err(refused), Part::Last),
        };
        if request.access() > peer.access {
            let mut refused_changes = lock(&self.shared.refused_changes);
            if let Some(line) = refused_changes.line(peer, &request_line(&request), Instant::now()) {
                tracing::warn!("{line}");
            }
            drop(refused_changes);
            return self.send(Err(CommandError::PermissionDenied), Part::Last);
        }
        match request {
            Request::ListConnections => self.stream(|each| handler.connections(each)),
            Request::FindConnections(filter) => self.stream(|each| handler.find(&filter, each)),
            Request::Events(query) => match handler.events(query) {
                Ok(listener) => self.stream_events(listener),
                Err(refused) => self.send(Err(refused), Part::Last),
            },
            Request::Capture(wanted) => self.stream_packets(handler, &wanted),
            request => self.send(handler.handle(request, peer), Part::Last),
        }
    }

    fn send(&self, answer: Result<Reply, CommandError>, part: Part) -> io::Result<()> {
        send(&self.stream, answer, part, self.shared.settings.transfer)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        lock(&self.shared.clients).served.remove(&self.number);
        // The registered clone of the stream is closed later; this ends the connection now.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Whether further parts of the same reply follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Last,
    MoreFollow,
}

fn send(
    stream: &UnixStream,
    answer: Result<Reply, CommandError>,
    part: Part,
    within: Duration,
) -> io::Result<()> {
    let message = ReplyMessage { version: VERSION, answer, more: part == Part::MoreFollow };
    write_message(&mut Outgoing { stream, until: Instant::now() + within }, &message)
}

/// Reads one message: waits `first` for its first byte, then `rest` for the whole message. From the first byte on the
/// client keeps its slot; if another client already has the slot, the message is not read.
struct Incoming<'a> {
    client: &'a Client,
    first: Duration,
    rest: Duration,
    until: Option<Instant>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let remaining = match self.until {
            None => self.first,
            Some(until) => remaining(until)?,
        };
        let mut stream = &self.client.stream;
        stream.set_read_timeout(Some(remaining))?;
        let count = stream.read(buffer)?;
        if self.until.is_none() {
            if count > 0 && !self.client.set_idle_since(None) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            self.until = Some(Instant::now() + self.rest);
        }
        Ok(count)
    }
}

/// Writes one message, which the client has to read before `until`.
struct Outgoing<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Write for Outgoing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(remaining(self.until)?))?;
        (&mut &*self.stream).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time until then; never zero, which a socket interprets as "no timeout".
fn remaining(until: Instant) -> io::Result<Duration> {
    match until.checked_duration_since(Instant::now()) {
        Some(remaining) if !remaining.is_zero() => Ok(remaining),
        _ => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// The longest request of clients that may only read. Every query is shorter.
pub const READER_LIMIT_BYTES: u32 = 64 << 10;

/// Clients at one time.
pub(crate) const CLIENTS: usize = 64;

/// The time that the request of a client may take to arrive if all slots are taken.
const FIRST_REQUEST: Duration = Duration::from_millis(4);

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The time that a client that may make changes waits for a slot, and the pause between two checks.
const PLACE_WAIT: Duration = Duration::from_millis(500);
const PLACE_PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use crate::socket::*;

    fn clients(peers: &[Peer]) -> Clients {
        let served = peers.iter().zip(0..).map(|(peer, number)| {
            let (stream, _) = UnixStream::pair().unwrap();
            (number, Served { stream, peer: peer.clone(), idle_since: None, has_asked: true })
        });
        Clients { served: served.collect(), ..Clients::default() }
    }

    #[test]
    fn readers_never_take_all_places_nor_that_of_an_idle_client_and_one_user_never_all_places_of_readers() {
        let settings = Settings { clients: 4, readers: 3, readers_per_user: 2, ..Settings::of("unused") };
        let reader = |uid| Peer { pid: 1, uid, access: Access::Read, process: None };
        let root = || Peer { pid: 1, uid: 0, access: Access::Change, process: None };
        let room = |there: &[Peer], peer| clients(there).have_room_for(&peer, &settings);
        assert!(room(&[reader(1)], reader(1)));
        assert!(!room(&[reader(1), reader(1)], reader(1)), "one user's");
        assert!(room(&[reader(1), reader(1)], reader(2)));
        assert!(!room(&[reader(1), reader(1), reader(2)], reader(3)), "all users'");
        assert!(
            room(&[reader(1), reader(1), reader(2)], root()),
            "the remaining places are for clients that may change"
        );
        let four = [root(), root(), root(), root()];
        assert!(!room(&four, root()));
        assert!(!room(&four, reader(1)));

        let start = Instant::now();
        let idle = |seconds: [Option<u64>; 3]| {
            let mut all = clients(&[root(), reader(1), root()]);
            for (number, seconds) in (0..).zip(seconds) {
                let since = seconds.map(|seconds| start + Duration::from_secs(seconds));
                all.served.get_mut(&number).unwrap().idle_since = since;
            }
            all
        };
        let replaced = |mut all: Clients, peer| {
            let done = all.replace_idle(&peer, start + Duration::from_secs(9), false);
            let gone = (0..3).find(|number| !all.served.contains_key(number));
            assert_eq!(done, gone.is_some());
            gone
        };
        let waiting = || idle([Some(7), Some(4), Some(5)]);
        assert_eq!(replaced(waiting(), root()), Some(1));
        assert_eq!(replaced(waiting(), reader(2)), None, "readers take no other client's place");
        assert_eq!(replaced(idle([Some(7), None, Some(5)]), root()), Some(2), "1 is busy");
        assert_eq!(replaced(idle([Some(9), None, Some(9)]), root()), None, "these have just connected");
    }

    #[test]
    fn a_client_whose_message_has_begun_keeps_its_place_and_one_without_a_place_is_not_read() {
        let root = Peer { pid: 1, uid: 0, access: Access::Change, process: None };
        let shared = Arc::new(Shared {
            settings: Settings::of("unused"),
            rules: Rules::of_group("no such group"),
            clients: Mutex::default(),
            refused_changes: Mutex::default(),
            large: LargeRequests::default(),
        });
        let (mut sender, stream) = UnixStream::pair().unwrap();
        let client = Client::register(stream, root.clone(), &shared, &mut 0).unwrap();
        let later = Instant::now() + Duration::from_secs(9);
        let within = Duration::from_secs(5);
        let begin = || Incoming { client: &client, first: within, rest: within, until: None }.read(&mut [0]);
        sender.write_all(b"ab").unwrap();
        assert_eq!(begin().unwrap(), 1);
        assert!(!lock(&shared.clients).replace_idle(&root, later, true));
        client.set_idle_since(Some(Instant::now()));
        assert!(lock(&shared.clients).replace_idle(&root, later, false));
        assert_eq!(begin().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
