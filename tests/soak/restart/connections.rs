//! TCP connections of the suites `restart`, `failover`, `anycast`, `attack` and `fleet`: a client that keeps thousands
//! of them busy, and their real servers.
//!
//! The client and each real server have a thread each, with epoll. A request is eight bytes: a seed and a length. The
//! answer has this length; its bytes follow from the seed and continue from request to request, and the client checks
//! them. So it finds bytes that are lost, repeated, or of another connection. One connection in ten downloads, the
//! others send short requests. A connection is lost when it is reset or closed, has wrong bytes, or makes no progress
//! for 30 seconds. Not here: the phases (`main.rs`).

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with};
use xvs::cluster::virtual_endpoint;
use xvs::{Cluster, Host, Method, namespace};

/// The forwarding methods, each with a port of the VIP and of the real servers.
pub(crate) const METHODS: [(Method, &str, u16); 4] = [
    (Method::Nat, "NAT", 9001),
    (Method::FullNat, "FULLNAT", 9002),
    (Method::DirectRouting, "DR", 9003),
    (Method::Tunnel, "tunnel", 9004),
];

/// Without progress for so long, a connection is lost.
const PATIENCE: Duration = Duration::from_secs(30);
const TICK: Duration = Duration::from_millis(10);
/// Of a new connection each; 50 a second.
const NEW_INTERVAL: Duration = Duration::from_millis(20);
/// A request of every tenth lasting connection, of the others, and of a new connection.
const DOWNLOAD: (u32, Duration) = (32 << 10, Duration::from_secs(1));
const KEEP_ALIVE: (u32, Duration) = (64, Duration::from_secs(2));
const PAGE: u32 = 2 << 10;
/// The number of bytes after which the answers repeat, a prime.
const PERIOD: usize = 65_521;

/// What has happened since the start.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Lasting connections that were open once, by method.
    pub(crate) open: [usize; METHODS.len()],
    /// The lasting connections that were lost.
    pub(crate) lost: Vec<Loss>,
    /// New connections that had their whole answer, by method.
    pub(crate) served: [usize; METHODS.len()],
    /// When new connections began, and how long the handshakes took that are complete.
    pub(crate) begun: Vec<Instant>,
    pub(crate) handshakes: Vec<(Instant, Duration)>,
    /// Why new connections failed.
    pub(crate) failed: Vec<(usize, String)>,
    /// Bytes of answers that were compared.
    pub(crate) bytes: u64,
    /// Longest time from a request to the end of its answer.
    pub(crate) longest_answer: Duration,
    /// Every lasting connection has had the answer to a request that was sent after this.
    pub(crate) answered: Instant,
}

/// A lasting connection that was lost.
#[derive(Clone, Debug)]
pub(crate) struct Loss {
    pub(crate) method: usize,
    pub(crate) why: String,
    /// That of the client.
    pub(crate) port: u16,
    /// Its last progress.
    pub(crate) progress: Instant,
    pub(crate) at: Instant,
}

impl Tally {
    /// Prints a row for each method, which may have another name, and why connections were lost or refused.
    pub(crate) fn print(&self, names: [&str; METHODS.len()], servers: &[Servers]) {
        println!("\nmethod      open  lost  new  refused");
        for (at, name) in names.iter().enumerate() {
            let lost = self.lost.iter().filter(|loss| loss.method == at).count();
            let failed = self.failed.iter().filter(|(method, _)| *method == at).count();
            println!("{name:<8} {:>7} {lost:>5} {:>5} {failed:>8}", self.open[at], self.served[at]);
        }
        for Loss { method, why, port, progress, at } in self.lost.iter().take(20) {
            let silent = at.duration_since(*progress);
            println!("{}, port {port}: {why}, {silent:.1?} after its last progress", names[*method]);
        }
        for (method, why) in self.failed.iter().take(20) {
            println!("{}: {why}", names[*method]);
        }
        let open = servers.iter().map(Servers::open).sum::<usize>();
        println!("{} MB compared; servers have {open} connections", self.bytes >> 20);
    }
}

/// The client's thread; ends when dropped.
pub(crate) struct Client {
    tally: Arc<Mutex<Tally>>,
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Opens `count` lasting connections by each method and from then on 50 new ones a second. A lasting connection
    /// that is lost is replaced after this time, if there is one.
    pub(crate) fn start(cluster: &Cluster, count: usize, replace: Option<Duration>) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let tally = Tally {
            open: [0; METHODS.len()],
            lost: Vec::new(),
            served: [0; METHODS.len()],
            begun: Vec::new(),
            handshakes: Vec::new(),
            failed: Vec::new(),
            bytes: 0,
            longest_answer: Duration::ZERO,
            answered: Instant::now(),
        };
        let tally = Arc::new(Mutex::new(tally));
        let (flag, counts) = (Arc::clone(&running), Arc::clone(&tally));
        let thread = namespace::spawn(&cluster.namespace(Host::Client), move || {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor is left");
            let pattern = pattern();
            let (connections, next) = (HashMap::new(), 0);
            let due = VecDeque::new();
            Load { epoll, pattern, connections, next, tally: counts, begun: 0, replace, due }
                .run(&flag, count);
        });
        Self { tally, running, thread: Some(thread) }
    }

    /// What has happened so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.lock().expect("the client does not panic").clone()
    }

    /// The same, and the longest answer is forgotten.
    pub(crate) fn take_longest_answer(&self) -> Duration {
        std::mem::take(&mut self.tally.lock().expect("the client does not panic").longest_answer)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    stream: TcpStream,
    method: usize,
    /// None of a new connection, which ends after one answer.
    request: Option<(u32, Duration)>,
    seed: u32,
    begun: Instant,
    is_open: bool,
    /// Bytes that were asked for, and that have arrived.
    asked: u64,
    got: u64,
    asked_at: Instant,
    progress_at: Instant,
    /// When the last request was sent that has its whole answer.
    answered: Instant,
}

struct Load {
    epoll: OwnedFd,
    pattern: Vec<u8>,
    connections: HashMap<u64, Connection>,
    next: u64,
    tally: Arc<Mutex<Tally>>,
    /// Lasting connections that were begun.
    begun: usize,
    /// After what time a lost one is replaced, and when those are due that will be, with their methods.
    replace: Option<Duration>,
    due: VecDeque<(Instant, usize)>,
}

impl Load {
    fn run(mut self, running: &AtomicBool, count: usize) {
        let mut events = Vec::with_capacity(1024);
        let (mut ticked, mut new_at, mut turn) = (Instant::now(), Instant::now(), 0);
        // Relaxed: the flag publishes no other data.
        while running.load(Ordering::Relaxed) {
            wait(&self.epoll, &mut events);
            for event in events.drain(..) {
                let id = event.data.u64();
                self.advance(id);
            }
            if ticked.elapsed() < TICK {
                continue;
            }
            ticked = Instant::now();
            for _ in 0..10 {
                if self.begun < count * METHODS.len() {
                    let downloads = (self.begun / METHODS.len()).is_multiple_of(10);
                    let request = if downloads { DOWNLOAD } else { KEEP_ALIVE };
                    self.open(self.begun % METHODS.len(), Some(request));
                    self.begun += 1;
                }
            }
            while self.due.front().is_some_and(|(at, _)| *at < ticked) {
                let (_, method) = self.due.pop_front().expect("it was looked at");
                self.open(method, Some(KEEP_ALIVE));
            }
            while self.begun == count * METHODS.len() && new_at < ticked {
                self.open(turn % METHODS.len(), None);
                (turn, new_at) = (turn + 1, new_at.max(ticked - 10 * NEW_INTERVAL) + NEW_INTERVAL);
            }
            self.tick();
        }
    }

    fn open(&mut self, method: usize, request: Option<(u32, Duration)>) {
        let id = self.next;
        self.next += 1;
        match begin(METHODS[method].2) {
            Ok(stream) => {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                epoll::add(&self.epoll, &stream, epoll::EventData::new_u64(id), flags)
                    .expect("a new descriptor");
                let now = Instant::now();
                if request.is_none() {
                    self.tally.lock().expect("no thread panics").begun.push(now);
                }
                let connection = Connection {
                    stream,
                    method,
                    request,
                    seed: id as u32,
                    begun: now,
                    is_open: false,
                    asked: 0,
                    got: 0,
                    asked_at: now,
                    progress_at: now,
                    answered: now - PATIENCE,
                };
                self.connections.insert(id, connection);
            }
            Err(error) => {
                let now = Instant::now();
                let why = format!("connect: {error}");
                self.ended(Loss { method, why, port: 0, progress: now, at: now }, request.is_some());
            }
        }
    }

    /// Reads what has arrived; asks for the first time.
    fn advance(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let mut tally = self.tally.lock().expect("no thread panics");
        let before = connection.got;
        let result = connection.advance(&self.pattern, &mut tally);
        tally.bytes += connection.got - before;
        let is_served =
            connection.request.is_none() && connection.asked > 0 && connection.got == connection.asked;
        if is_served {
            tally.served[connection.method] += 1;
        }
        drop(tally);
        if let Err(why) = result {
            self.fails(id, why);
        } else if is_served {
            self.connections.remove(&id);
        }
    }

    /// Sends the requests that are due; finds the connections without progress.
    fn tick(&mut self) {
        let now = Instant::now();
        let mut answered = now;
        let mut failed = Vec::new();
        for (&id, connection) in &mut self.connections {
            let waits = !connection.is_open || connection.got < connection.asked;
            if connection.request.is_some() {
                answered = answered.min(connection.answered);
            }
            if waits && now.duration_since(connection.progress_at) > PATIENCE {
                failed.push((id, format!("no progress for {PATIENCE:?}")));
            } else if let Some((bytes, interval)) = connection.request
                && !waits
                && now.duration_since(connection.asked_at) > interval
                && let Err(why) = connection.ask(bytes)
            {
                failed.push((id, why));
            }
        }
        for (id, why) in failed {
            self.fails(id, why);
        }
        self.tally.lock().expect("no thread panics").answered = answered;
    }

    fn fails(&mut self, id: u64, why: String) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Connection { method, progress_at: progress, .. } = connection;
        let port = connection.stream.local_addr().map_or(0, |addr| addr.port());
        let loss = Loss { method, why, port, progress, at: Instant::now() };
        self.ended(loss, connection.request.is_some());
    }

    fn ended(&mut self, loss: Loss, is_lasting: bool) {
        let mut tally = self.tally.lock().expect("no thread panics");
        if is_lasting {
            self.due.extend(self.replace.map(|after| (loss.at + after, loss.method)));
            tally.lost.push(loss);
        } else {
            tally.failed.push((loss.method, loss.why));
        }
    }
}

impl Connection {
    fn advance(&mut self, pattern: &[u8], tally: &mut Tally) -> Result<(), String> {
        if !self.is_open {
            match self.stream.take_error() {
                Ok(None) if self.stream.peer_addr().is_ok() => self.is_open = true,
                Ok(None) => return Ok(()),
                Ok(Some(error)) | Err(error) => return Err(format!("connect: {error}")),
            }
            match self.request {
                Some(_) => tally.open[self.method] += 1,
                None => tally.handshakes.push((self.begun, self.begun.elapsed())),
            }
            self.ask(self.request.map_or(PAGE, |(bytes, _)| bytes))?;
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(format!("closed after {} bytes", self.got)),
                Ok(count) => {
                    let start = offset(self.seed, self.got);
                    if buffer[..count] != pattern[start..start + count] {
                        return Err(format!("wrong bytes after {}", self.got));
                    }
                    self.got += count as u64;
                    self.progress_at = Instant::now();
                    if self.got == self.asked {
                        self.answered = self.asked_at;
                        tally.longest_answer = tally.longest_answer.max(self.asked_at.elapsed());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("after {} bytes: {error}", self.got)),
            }
        }
    }

    fn ask(&mut self, bytes: u32) -> Result<(), String> {
        let mut request = [0; 8];
        request[..4].copy_from_slice(&self.seed.to_ne_bytes());
        request[4..].copy_from_slice(&bytes.to_ne_bytes());
        // The socket has room: nothing else is under way.
        self.stream.write_all(&request).map_err(|error| format!("after {} bytes: {error}", self.got))?;
        let now = Instant::now();
        self.asked += u64::from(bytes);
        (self.asked_at, self.progress_at) = (now, now);
        Ok(())
    }
}

/// The servers of one real server; end when dropped.
pub(crate) struct Servers {
    running: Arc<AtomicBool>,
    /// Connections that are open.
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    /// Listens on the port of every method; returns when it listens.
    pub(crate) fn start(cluster: &Cluster, host: Host) -> Self {
        let (running, open) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (flag, count) = (Arc::clone(&running), Arc::clone(&open));
        let (sender, listening) = mpsc::channel();
        let thread = namespace::spawn(&cluster.namespace(host), move || {
            let listeners = METHODS.map(|(_, _, port)| listen(port).expect("the port is free"));
            sender.send(()).expect("`start` waits for this");
            serve(&listeners, &flag, &count);
        });
        listening.recv().expect("the servers listen");
        Self { running, open, thread: Some(thread) }
    }

    /// Number of connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A connection at its server.
struct Served {
    stream: TcpStream,
    request: [u8; 8],
    filled: usize,
    asked: u64,
    sent: u64,
}

impl Served {
    /// Reads requests and answers as far as it can; false when the client has gone.
    fn advance(&mut self, pattern: &[u8]) -> io::Result<bool> {
        loop {
            match self.stream.read(&mut self.request[self.filled..]) {
                Ok(0) => return Ok(false),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
            if self.filled == self.request.len() {
                self.filled = 0;
                self.asked += u64::from(u32::from_ne_bytes([4, 5, 6, 7].map(|at| self.request[at])));
            }
        }
        let seed = u32::from_ne_bytes([0, 1, 2, 3].map(|at| self.request[at]));
        while self.sent < self.asked {
            let start = offset(seed, self.sent);
            let count = (self.asked - self.sent).min(PERIOD as u64) as usize;
            match self.stream.write(&pattern[start..start + count]) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn serve(listeners: &[TcpListener], running: &AtomicBool, open: &AtomicUsize) {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("a descriptor is left");
    let pattern = pattern();
    for (id, listener) in (0..).zip(listeners) {
        let data = epoll::EventData::new_u64(id);
        epoll::add(&epoll, listener, data, epoll::EventFlags::IN).expect("a new descriptor");
    }
    let mut next = listeners.len() as u64;
    let mut served: HashMap<u64, Served> = HashMap::new();
    let mut events = Vec::with_capacity(1024);
    // Relaxed: the flag publishes no other data.
    while running.load(Ordering::Relaxed) {
        wait(&epoll, &mut events);
        for event in events.drain(..) {
            let id = event.data.u64();
            if let Some(connection) = served.get_mut(&id) {
                // The client notices a broken connection.
                if !connection.advance(&pattern).unwrap_or(false) {
                    served.remove(&id);
                }
            } else if let Some(listener) = listeners.get(id as usize)
                && let Ok((stream, _)) = listener.accept()
                && stream.set_nonblocking(true).is_ok()
            {
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
                epoll::add(&epoll, &stream, epoll::EventData::new_u64(next), flags)
                    .expect("a new descriptor");
                served.insert(next, Served { stream, request: [0; 8], filled: 0, asked: 0, sent: 0 });
                next += 1;
            }
        }
        open.store(served.len(), Ordering::Relaxed);
    }
}

/// A connection to the VIP that is under way.
fn begin(port: u16) -> io::Result<TcpStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    match connect(socket.as_fd(), &SocketAddr::from(virtual_endpoint(port))) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket.into()),
        Err(error) => Err(error.into()),
    }
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Waits a moment for events.
fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>) {
    let moment = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
    events.clear();
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), Some(&moment)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => panic!("epoll: {error}"),
    }
}

/// Two periods of bytes without order.
fn pattern() -> Vec<u8> {
    let mut state = 1_u32;
    let period: Vec<u8> = (0..PERIOD)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect();
    [&period[..], &period].concat()
}

/// Where in the pattern the byte of an answer is.
fn offset(seed: u32, position: u64) -> usize {
    ((u64::from(seed) * 7919 + position) % PERIOD as u64) as usize
}
