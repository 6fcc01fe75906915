//! The client side of the control socket, and the trait [`Director`].
//!
//! A client sends one request at a time and reads its reply before it sends the next. It waits for the reply without a
//! timeout, unless [`Client::waiting_by`] sets another wait: the server closes connections that are stuck.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use thiserror::Error;

use crate::config::refusal::CommandError;
use crate::protocol::framing::{
    FrameError, ReplyMessage, RequestMessage, VERSION, decode, read_frame, write_message,
};
use crate::protocol::question::{self, ControlRequest, Question, Reply, Request};
use crate::report::capture::{CaptureRequest, CapturedPacket, Missed};
use crate::report::connection::{ConnectionRow, Filter};
use crate::report::event::{EventBatch, EventQuery};

/// A director that answers requests: the daemon behind its socket, or one in memory.
pub trait Director {
    /// Sends a request that has one reply.
    ///
    /// # Errors
    ///
    /// [`Failure::Refused`] if the director refuses it, otherwise [`Failure::Transport`].
    fn call(&mut self, request: Request) -> Result<Reply, Failure>;

    /// Waits for the end of a director that has handed over, and until its successor can be called.
    ///
    /// # Errors
    /// [`Failure::Transport`]: no successor answers.
    fn await_successor(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// Passes every connection to `each`, one by one, until `each` fails.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call), and [`Failure::Printing`] with the error of `each`.
    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure>;

    /// Passes every matching connection, with its detail, to `each`, one by one, until `each` fails.
    ///
    /// # Errors
    /// As [`Self::connections`].
    fn find(
        &mut self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.connections(&mut |row| if filter.matches(&row) { each(row) } else { Ok(()) })
    }
}

impl<T, R: Into<Request>> Question<T, R> {
    /// Asks a director.
    ///
    /// # Errors
    /// The director refuses the request, cannot be reached, or sends another kind of reply.
    pub fn ask(self, director: &mut (impl Director + ?Sized)) -> Result<T, Failure> {
        let reply = director.call(self.request.into())?;
        (self.read)(reply).map_err(|other| Failure::unexpected(&other))
    }
}

/// Why there is no reply.
#[derive(Debug, Error)]
pub enum Failure {
    /// The director refused the request.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// No director can be reached, or the connection to it broke.
    #[error("{0}")]
    Transport(String),
    /// Printing the rows of a listing failed.
    #[error("printing: {0}")]
    Printing(#[source] io::Error),
}

impl Failure {
    /// The error for a reply that does not belong to the request.
    pub fn unexpected(reply: &Reply) -> Self {
        Self::Transport(reply.unexpected())
    }
}

/// A connection to the daemon.
///
/// ```no_run
/// use std::path::Path;
/// use xvs_model::protocol::client::{Client, DEFAULT_SOCKET};
/// use xvs_model::protocol::question;
///
/// let mut client = Client::connect(Path::new(DEFAULT_SOCKET))?;
/// let status = question::status().ask(&mut client)?;
/// assert!(status.warnings.is_empty(), "{:?}", status.warnings);
/// # Ok::<(), xvs_model::protocol::client::Failure>(())
/// ```
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    wait: Option<Wait>,
}

/// Waits until the reply to a request begins, or fails. Called between a request and its reply.
pub type Wait = fn(&UnixStream, &Request) -> Result<(), Failure>;

impl Client {
    /// Connects to the daemon that serves this socket.
    ///
    /// # Errors
    /// [`Failure::Transport`] that names the socket and the next step.
    pub fn connect(socket: &Path) -> Result<Self, Failure> {
        Self::connect_within(socket, SUCCESSION)
    }

    /// Like [`connect`](Self::connect), with retries during `wait` while nothing listens.
    fn connect_within(socket: &Path, wait: Duration) -> Result<Self, Failure> {
        let stream = connected(socket, wait).map_err(|error| {
            let path = socket.display();
            Failure::Transport(match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => format!(
                    "no xvsd listens on {path} ({error}); start it with `systemctl start xvsd` \
                     (`journalctl -u xvsd -n 20` shows why it ended), or set XVS_SOCKET to the socket of one that runs"
                ),
                io::ErrorKind::PermissionDenied => {
                    format!("no access to {path} ({error}); be root or in the group xvs")
                }
                _ => format!("connecting to {path}: {error}"),
            })
        })?;
        Ok(Self { stream, socket: socket.to_owned(), wait: None })
    }

    /// The connection's socket.
    pub fn socket(&self) -> &UnixStream {
        &self.stream
    }

    /// The process of the daemon; `None` if it is in another PID namespace.
    pub fn process(&self) -> Option<u32> {
        // The kernel reports 0 for a process in another PID namespace.
        let peer = getsockopt(&self.stream, sockopt::PeerCredentials).ok()?;
        u32::try_from(peer.pid()).ok().filter(|process| *process != 0)
    }

    /// From now on, waits for each reply to begin with this function.
    #[must_use]
    pub fn waiting_by(self, wait: Wait) -> Self {
        Self { wait: Some(wait), ..self }
    }

    /// Passes events to `each` until `each` fails or, unless they are followed, up to the last remembered one.
    ///
    /// # Errors
    /// As [`Director::connections`].
    pub fn events(
        &mut self,
        query: EventQuery,
        each: &mut dyn FnMut(EventBatch) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.parts(question::events(query), each)
    }

    /// Sends a request, and waits until its reply begins.
    fn ask(&mut self, request: Request) -> Result<(), Failure> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        let message = RequestMessage { version: VERSION, request };
        match write_message(&mut self.stream, &message) {
            // The server may have refused the request and closed while we wrote; then its error can still be read.
            Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {}
            sent => sent.map_err(|error| self.broken(&error))?,
        }
        self.wait.map_or(Ok(()), |wait| wait(&self.stream, &message.request))
    }

    /// One message of a reply, and whether another follows.
    fn receive(&mut self) -> Result<(Reply, bool), Failure> {
        let frame = match read_frame(&mut self.stream, REPLY_LIMIT_BYTES) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Err(self.broken(&"xvsd closed the connection")),
            Err(error @ (FrameError::Io(_) | FrameError::NoRoom | FrameError::TooLong { .. })) => {
                return Err(self.broken(&error));
            }
        };
        let message: ReplyMessage = decode(&frame).map_err(|error| match error {
            // Seen from here, the other end's version is that of xvsd.
            CommandError::WrongVersion { ours, theirs } => {
                CommandError::WrongVersion { ours: theirs, theirs: ours }.into()
            }
            CommandError::Malformed { why } => self.broken(&format_args!("not a reply of xvsd ({why})")),
            other => other.into(),
        })?;
        Ok((message.answer?, message.more))
    }

    /// Sends a request and passes the parts of its reply to `each`.
    fn parts<T>(
        &mut self,
        question: Question<T>,
        each: &mut dyn FnMut(T) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.ask(question.request)?;
        loop {
            let (reply, more) = self.receive()?;
            let part = (question.read)(reply).map_err(|other| Failure::unexpected(&other))?;
            each(part).map_err(Failure::Printing)?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Captures packets and passes them to `each`, part by part, until a [`stopper`](Self::stopper) ends the capture.
    /// The first part is empty: the capture has begun.
    ///
    /// # Errors
    ///
    /// The errors of [`call`](Director::call), and [`Failure::Printing`] with the error of `each`.
    pub fn capture(
        &mut self,
        wanted: CaptureRequest,
        each: &mut dyn FnMut(Vec<CapturedPacket>) -> io::Result<()>,
    ) -> Result<Missed, Failure> {
        self.ask(Request::Capture(wanted))?;
        loop {
            match self.receive()? {
                (Reply::Captured(packets), true) => each(packets).map_err(Failure::Printing)?,
                (Reply::CaptureEnded(missed), false) => return Ok(missed),
                (other, _) => return Err(Failure::unexpected(&other)),
            }
        }
    }

    /// A handle that ends a capture, from any thread.
    ///
    /// # Errors
    /// The OS error if the socket's descriptor cannot be duplicated.
    pub fn stopper(&self) -> io::Result<Stopper> {
        self.stream.try_clone().map(Stopper)
    }

    fn broken(&self, what: &dyn std::fmt::Display) -> Failure {
        Failure::Transport(format!("{}: {what}; see xvsd's log", self.socket.display()))
    }
}

/// A handle that ends a client's capture.
pub struct Stopper(UnixStream);

impl Stopper {
    /// Requests the end of the capture; the daemon sends the packets that it still has.
    pub fn stop(&self) {
        // The connection may have ended already.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl Director for Client {
    fn call(&mut self, request: Request) -> Result<Reply, Failure> {
        let repeatable = request.is_repeatable().then(|| request.clone());
        self.ask(request)?;
        if let Some(request) = repeatable
            && has_ended(&self.stream)
        {
            // An xvsd that has handed over closes its connections; its successor answers.
            *self = Self { wait: self.wait, ..Self::connect_within(&self.socket, ENDING)? };
            self.ask(request)?;
        }
        match self.receive()? {
            (reply, false) => Ok(reply),
            (reply, true) => Err(Failure::unexpected(&reply)),
        }
    }

    fn await_successor(&mut self) -> Result<(), Failure> {
        // The connections end with the process. If that takes longer, the reply has been received all the same.
        let _ = self.stream.set_read_timeout(Some(ENDING));
        has_ended(&self.stream);
        *self = Self { wait: self.wait, ..Self::connect_within(&self.socket, ENDING)? };
        self.call(ControlRequest::Timeouts.into()).map(drop)
    }

    fn connections(&mut self, each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>) -> Result<(), Failure> {
        self.parts(question::list_connections(), &mut |rows| rows.into_iter().try_for_each(&mut *each))
    }

    fn find(
        &mut self,
        filter: &Filter,
        each: &mut dyn FnMut(ConnectionRow) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let wanted = question::find_connections(filter.clone());
        self.parts(wanted, &mut |rows| rows.into_iter().try_for_each(&mut *each))
    }
}

/// Waits for the reply, and returns whether the other end has closed the connection instead.
fn has_ended(stream: &UnixStream) -> bool {
    match recv(stream, &mut [0], RecvFlags::PEEK) {
        Ok((_, length)) => length == 0,
        Err(error) => error == Errno::CONNRESET,
    }
}

/// Connects to a socket, with retries while nothing listens there, as for a moment during a take-over.
fn connected(socket: &Path, wait: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + wait;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && Instant::now() < until => {
                thread::sleep(PAUSE);
            }
            result => return result,
        }
    }
}

/// How long connecting is retried while nothing listens, and the time between two attempts.
const SUCCESSION: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(10);
/// Maximum time for an xvsd that has handed over to end, and then for its successor to listen.
const ENDING: Duration = Duration::from_secs(5);

/// The daemon's socket unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/xvs/xvsd.sock";

/// The socket to connect to: `XVS_SOCKET` if it is set and not empty, otherwise [`DEFAULT_SOCKET`].
pub fn default_socket() -> PathBuf {
    std::env::var_os("XVS_SOCKET")
        .filter(|name| !name.is_empty())
        .map_or_else(|| DEFAULT_SOCKET.into(), PathBuf::from)
}

/// Maximum length of a reply: all services of a large director in one message.
const REPLY_LIMIT_BYTES: u32 = 1 << 30;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::{env, fs, process, thread};

    use crate::protocol::client::*;
    use crate::protocol::question::ControlRequest;

    #[test]
    fn a_reload_or_question_that_an_ending_xvsd_leaves_open_is_answered_by_its_successor_and_a_change_is_not_repeated()
     {
        let socket = env::temp_dir().join(format!("xvs-client-{}.sock", process::id()));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let next = || {
                let mut stream = listener.accept().unwrap().0;
                read_frame(&mut stream, REPLY_LIMIT_BYTES).unwrap().unwrap();
                stream
            };
            for _ in 0..2 {
                drop(next());
                let answer = Ok(Reply::Reloaded("done".to_owned()));
                write_message(&mut next(), &ReplyMessage { version: VERSION, answer, more: false }).unwrap();
            }
            drop(next());
        });
        for request in [Request::Reload, Request::Status] {
            let reply = Client::connect(&socket).unwrap().call(request).unwrap();
            assert_eq!(reply, Reply::Reloaded("done".to_owned()));
        }
        let set = ControlRequest::Set { key: "sloppy_tcp".to_owned(), value: "1".to_owned() };
        let error = Client::connect(&socket).unwrap().call(set.into()).unwrap_err();
        assert!(error.to_string().contains("xvsd closed the connection"), "{error}");
        server.join().unwrap();
        fs::remove_file(&socket).unwrap();
    }

    #[test]
    fn a_client_that_awaits_a_successor_connects_as_soon_as_that_has_replaced_the_socket() {
        let [socket, new] =
            ["", ".new"].map(|end| env::temp_dir().join(format!("xvs-client-{}{end}", process::id())));
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let mut client = Client::connect(&socket).unwrap();
        // From now on the socket refuses connections, for longer than a first connection waits.
        drop(listener);
        let server = thread::spawn({
            let socket = socket.clone();
            move || {
                thread::sleep(SUCCESSION + 4 * PAUSE);
                let listener = UnixListener::bind(&new).unwrap();
                fs::rename(&new, &socket).unwrap();
                let mut stream = listener.accept().unwrap().0;
                read_frame(&mut stream, REPLY_LIMIT_BYTES).unwrap().unwrap();
                let answer = Ok(Reply::Reloaded("done".to_owned()));
                write_message(&mut stream, &ReplyMessage { version: VERSION, answer, more: false }).unwrap();
            }
        });
        client.await_successor().unwrap();
        server.join().unwrap();
        fs::remove_file(&socket).unwrap();
    }
}
