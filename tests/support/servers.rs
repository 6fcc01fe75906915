//! Servers on the cluster's hosts: a TCP sink with receipts, a UDP echo, FTP, HTTP in several moods, an agent.
//!
//! Threads of the test, listening in a host's namespace from `start` until they are dropped. Each reply
//! names the host, so a test sees which server the director chose. Not here: nginx, which netlab starts.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketType};

use crate::cluster::{Cluster, Host};
use crate::namespace;
use crate::wait::DEADLINE;

/// The bytes that a [`Sink`] received on one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Name of the host that received them.
    pub host: String,
    /// Number of bytes.
    pub length_bytes: u64,
    /// Their [`checksum`].
    pub checksum: u64,
}

/// The checksum that both ends of an upload compare.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Accepts TCP connections, reads each to its end, then sends the [`Receipt`] as a line of text.
#[derive(Debug)]
pub struct Sink {
    _listener: Listener,
}

impl Sink {
    /// Listens on all addresses of the host, of both families; returns when it listens.
    pub fn start(cluster: &Cluster, host: Host, port: u16) -> Self {
        Self { _listener: Listener::tcp(cluster, host, port, take) }
    }
}

fn take(mut connection: TcpStream, name: &str) -> io::Result<()> {
    connection.set_read_timeout(Some(IDLE))?;
    let mut hasher = DefaultHasher::new();
    let mut length = 0_u64;
    let mut buffer = vec![0; 65536];
    loop {
        let count = connection.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.write(&buffer[..count]);
        length += count as u64;
    }
    writeln!(connection, "{name} {length} {}", hasher.finish())
}

/// How long a client may be silent between two parts of an upload, while it waits for something else.
const IDLE: Duration = Duration::from_secs(300);

/// Sends each datagram back with the host's name in front: `rs1 hello`.
#[derive(Debug)]
pub struct Echo {
    _listener: Listener,
}

impl Echo {
    /// Listens on one address, so replies come from it; returns when it listens.
    pub fn start(cluster: &Cluster, host: Host, endpoint: impl Into<SocketAddr>) -> Self {
        let endpoint = endpoint.into();
        let prefix = format!("{} ", host.name());
        let listener = Listener::start(cluster, host, move |running, listening| {
            let socket = UdpSocket::bind(endpoint).expect("netlab lets real servers bind the VIP");
            socket.set_read_timeout(Some(TICK)).expect("the time limit is not zero");
            listening.send(()).expect("`Listener::start` waits for this");
            let mut datagram = prefix.clone().into_bytes();
            // Relaxed: the flag publishes no other data.
            while running.load(Ordering::Relaxed) {
                datagram.resize(65536, 0);
                if let Ok((count, client)) = socket.recv_from(&mut datagram[prefix.len()..]) {
                    datagram.truncate(prefix.len() + count);
                    // A reply that can't be sent is a lost datagram; clients repeat the request.
                    let _ = socket.send_to(&datagram, client);
                }
            }
        });
        Self { _listener: listener }
    }
}

/// Serves a file by FTP, for every user name and file name: its text is the host's name.
///
/// Source: RFC 959; RFC 2428 (`EPSV`, `EPRT`).
#[derive(Debug)]
pub struct Ftp {
    _listener: Listener,
}

impl Ftp {
    /// Listens on port 21 of all addresses of the host; returns when it listens.
    pub fn start(cluster: &Cluster, host: Host) -> Self {
        Self { _listener: Listener::tcp(cluster, host, 21, serve_file) }
    }
}

/// How the client wants the data connection.
enum Transfer {
    Passive(TcpListener),
    Active(SocketAddr),
}

impl Transfer {
    fn passive() -> io::Result<(Self, u16)> {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        set_socket_timeout(&listener, Timeout::Recv, Some(DEADLINE))?;
        let port = listener.local_addr()?.port();
        Ok((Self::Passive(listener), port))
    }

    /// The data connection; an active one comes from port 20 of the server's own address.
    fn open(&self, own: IpAddr) -> io::Result<TcpStream> {
        match self {
            Self::Passive(listener) => Ok(listener.accept()?.0),
            Self::Active(client) => {
                let family = if own.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = net::socket(family, SocketType::STREAM, None)?;
                set_socket_reuseaddr(&socket, true)?;
                set_socket_timeout(&socket, Timeout::Send, Some(DEADLINE))?;
                net::bind(&socket, &SocketAddr::new(own, 20))?;
                net::connect(&socket, client)?;
                Ok(TcpStream::from(socket))
            }
        }
    }
}

/// One control connection, from the greeting to `QUIT`.
fn serve_file(mut control: TcpStream, text: &str) -> io::Result<()> {
    control.set_read_timeout(Some(DEADLINE))?;
    let own = control.local_addr()?.ip().to_canonical();
    let mut requests = BufReader::new(control.try_clone()?);
    // Replaced by each command for another one.
    let mut transfer = Transfer::passive()?.0;
    control.write_all(format!("220 {text}\r\n").as_bytes())?;
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 {
        let (command, argument) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let reply = match command {
            "USER" => "331 any password".to_owned(),
            "PASS" => "230 welcome".to_owned(),
            "PWD" => "257 \"/\"".to_owned(),
            "TYPE" => "200 as it is".to_owned(),
            "EPSV" => {
                let (passive, port) = Transfer::passive()?;
                transfer = passive;
                format!("229 passive (|||{port}|)")
            }
            "PASV" if own.is_ipv4() => {
                let (passive, port) = Transfer::passive()?;
                transfer = passive;
                let numbers = own.to_string().replace('.', ",");
                format!("227 Entering Passive Mode ({numbers},{},{}).", port >> 8, port & 0xff)
            }
            "PORT" | "EPRT" => match active(argument) {
                Some(client) => {
                    transfer = Transfer::Active(client);
                    "200 active".to_owned()
                }
                None => "501 no endpoint".to_owned(),
            },
            "RETR" => {
                control.write_all(b"150 here it comes\r\n")?;
                match transfer.open(own) {
                    Ok(mut data) => {
                        writeln!(data, "{text}")?;
                        "226 that was it".to_owned()
                    }
                    Err(error) => format!("425 {error}"),
                }
            }
            "QUIT" => return control.write_all(b"221 bye\r\n"),
            _ => "502 not here".to_owned(),
        };
        // One segment for each line, as servers send them.
        control.write_all(format!("{reply}\r\n").as_bytes())?;
        line.clear();
    }
    Ok(())
}

/// The endpoint in the argument of `PORT` or `EPRT`.
fn active(argument: &str) -> Option<SocketAddr> {
    if let Some(fields) = argument.strip_prefix('|') {
        let mut fields = fields.split('|').skip(1);
        return Some(SocketAddr::new(fields.next()?.parse().ok()?, fields.next()?.parse().ok()?));
    }
    let numbers: Result<Vec<u8>, _> = argument.split(',').map(str::parse).collect();
    let [a, b, c, d, high, low] = numbers.ok()?.try_into().ok()?;
    Some(SocketAddr::new([a, b, c, d].into(), u16::from_be_bytes([high, low])))
}

/// How a [`Moody`] answers a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// With the host's name.
    Well,
    /// With status 500.
    Unwell,
    /// With the host's name, at one byte per second.
    Slow,
    /// With nothing; the connection stays open.
    Silent,
}

/// An HTTP server whose behaviour a test sets.
#[derive(Debug)]
pub struct Moody {
    moods: Arc<Mutex<VecDeque<Mood>>>,
    _listener: Listener,
}

impl Moody {
    /// Listens on all addresses of the host, in the normal mood; returns when it listens.
    pub fn start(cluster: &Cluster, host: Host, port: u16) -> Self {
        let moods = Arc::new(Mutex::new(VecDeque::from([Mood::Well])));
        let own = Arc::clone(&moods);
        let answer = move |connection, name: &str| answer(connection, name, &own);
        Self { moods, _listener: Listener::tcp(cluster, host, port, answer) }
    }

    /// Sets the moods of the next requests, one each; the last one applies to all later requests.
    ///
    /// # Panics
    ///
    /// If `moods` is empty.
    pub fn becomes(&self, moods: &[Mood]) {
        assert!(!moods.is_empty());
        *self.moods.lock().expect("no request panics") = moods.iter().copied().collect();
    }

    /// Number of requests left before the last mood.
    ///
    /// # Panics
    ///
    /// If a request's thread panicked.
    pub fn to_come(&self) -> usize {
        self.moods.lock().expect("no request panics").len() - 1
    }
}

fn answer(mut connection: TcpStream, name: &str, moods: &Mutex<VecDeque<Mood>>) -> io::Result<()> {
    connection.set_read_timeout(Some(DEADLINE))?;
    let mut request = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mood = {
        let mut moods = moods.lock().expect("no request panics");
        if moods.len() > 1 { moods.pop_front() } else { moods.front().copied() }
    };
    match mood.expect("one of them stays") {
        Mood::Well => write!(connection, "HTTP/1.0 200 OK\r\n\r\n{name}\n"),
        Mood::Unwell => write!(connection, "HTTP/1.0 500 Internal Server Error\r\n\r\n"),
        Mood::Slow => {
            for byte in format!("HTTP/1.0 200 OK\r\n\r\n{name}\n").bytes() {
                thread::sleep(Duration::from_secs(1));
                connection.write_all(&[byte])?;
            }
            Ok(())
        }
        // Blocks until the client closes.
        Mood::Silent => connection.read(&mut [0]).map(drop),
    }
}

/// An agent of HAProxy's agent-check: sends a line that a test sets, and closes the connection.
#[derive(Debug)]
pub struct Agent {
    line: Arc<Mutex<String>>,
    _listener: Listener,
}

impl Agent {
    /// Listens on all addresses of the host; returns when it listens.
    pub fn start(cluster: &Cluster, host: Host, port: u16, line: &str) -> Self {
        let line = Arc::new(Mutex::new(line.to_owned()));
        let own = Arc::clone(&line);
        let answer = move |mut connection: TcpStream, _: &str| {
            let mut question = [0; 6];
            connection.read_exact(&mut question)?;
            if question != *b"state\n" {
                return Ok(());
            }
            let line = own.lock().expect("no answer panics").clone();
            connection.write_all(line.as_bytes())
        };
        Self { line, _listener: Listener::tcp(cluster, host, port, answer) }
    }

    /// Sets what it says from the next question on.
    ///
    /// # Panics
    ///
    /// If an answer's thread panicked.
    pub fn says(&self, line: &str) {
        line.clone_into(&mut self.line.lock().expect("no answer panics"));
    }
}

/// A server's thread, which ends when it is dropped.
#[derive(Debug)]
pub struct Listener {
    running: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Serves each connection to a port of all addresses on a thread of its own; `serve` receives the host's name.
    ///
    /// # Panics
    ///
    /// If the port is not free.
    pub fn tcp(
        cluster: &Cluster,
        host: Host,
        port: u16,
        serve: impl Fn(TcpStream, &str) -> io::Result<()> + Clone + Send + 'static,
    ) -> Self {
        let name = host.name();
        Self::start(cluster, host, move |running, listening| {
            let socket = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("the port is free");
            // accept() obeys the receive timeout, for which `TcpListener` has no method.
            set_socket_timeout(&socket, Timeout::Recv, Some(TICK)).expect("a TCP socket has timeouts");
            listening.send(()).expect("`Listener::start` waits for this");
            // Relaxed: the flag publishes no other data.
            while running.load(Ordering::Relaxed) {
                if let Ok((connection, _)) = socket.accept() {
                    let (name, serve) = (name.clone(), serve.clone());
                    // The client notices a broken connection.
                    thread::spawn(move || serve(connection, &name));
                }
            }
        })
    }

    fn start(
        cluster: &Cluster,
        host: Host,
        serve: impl FnOnce(&AtomicBool, mpsc::Sender<()>) + Send + 'static,
    ) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let (sender, listening) = mpsc::channel();
        let flag = Arc::clone(&running);
        let thread = namespace::spawn(&cluster.namespace(host), move || serve(&flag, sender));
        listening.recv().unwrap_or_else(|_| panic!("the server on {} did not start", host.name()));
        Self { running, thread: Some(thread) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed, and the test fails for lack of a reply.
            let _ = thread.join();
        }
    }
}

/// Interval at which a server checks whether it has to end.
const TICK: Duration = Duration::from_millis(100);
