//! Short TCP connections of the suite `short`: clients that open them one after the other, and their servers.
//!
//! A request is a random number and how the connection is to end; the answer is the number and the real server. Clients
//! have ports of their own and use these again and again, so most SYNs meet a former connection in TIME_WAIT, at the
//! director and at one end. Both ends say what has failed, with its time. Not here: faults, and what xvs counts
//! (`main.rs`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use xvs::cluster::{REAL_SERVERS, VIP, VIP6, real_server, real_server6, succeed};
use xvs::servers::Listener;
use xvs::{Cluster, Host, Method, namespace};

/// A service, by one forwarding method.
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) method: Method,
    port: u16,
    is_v6: bool,
}

pub(crate) const SERVICES: [Service; 5] = [
    Service { name: "NAT", method: Method::Nat, port: 9001, is_v6: false },
    Service { name: "FULLNAT", method: Method::FullNat, port: 9002, is_v6: false },
    Service { name: "DR", method: Method::DirectRouting, port: 9003, is_v6: false },
    Service { name: "tunnel", method: Method::Tunnel, port: 9004, is_v6: false },
    Service { name: "NAT, IPv6", method: Method::Nat, port: 9005, is_v6: true },
];

impl Service {
    pub(crate) fn endpoint(&self) -> SocketAddr {
        if self.is_v6 { (VIP6, self.port).into() } else { (VIP, self.port).into() }
    }

    /// A real server by its number, from 1.
    pub(crate) fn server(&self, number: u8) -> SocketAddr {
        if self.is_v6 {
            (real_server6(number), self.port).into()
        } else {
            (real_server(number), self.port).into()
        }
    }
}

/// Clients, each with a thread, addresses and ports.
const CLIENTS: u8 = 8;
/// How long an end waits for the other one.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a server waits for a reset, which nobody repeats if it is lost.
const RESET_LIMIT: Duration = Duration::from_secs(3);

/// How a connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// The client closes it first.
    Client,
    /// The server does, at once.
    Server,
    /// The client closes its half before the server answers.
    Half,
    /// The client resets it.
    Reset,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Client, Self::Server, Self::Half, Self::Reset];

    fn random() -> Self {
        match fastrand::u8(..16) {
            0 => Self::Reset,
            1 | 2 => Self::Half,
            3..9 => Self::Server,
            _ => Self::Client,
        }
    }

    /// The first port of the first client, and how many each has. After a server's close a port is free at once. The
    /// client itself waits a second in TIME_WAIT. A reset may be lost, and its connection stays until the server gives
    /// up.
    fn ports(self) -> (u16, u16) {
        match self {
            Self::Client => (10_000, 1500),
            Self::Half => (22_000, 500),
            Self::Server => (26_000, 20),
            Self::Reset => (27_000, 4000),
        }
    }
}

/// What one end says of a connection that has failed.
pub(crate) struct Failure {
    pub(crate) service: usize,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
    pub(crate) why: String,
}

/// What has happened since the start.
#[derive(Default)]
pub(crate) struct Tally {
    is_ending: AtomicBool,
    /// Held by a client for each connection.
    gate: RwLock<()>,
    /// Connections for which a client has sent a SYN, by service.
    made: [AtomicU64; SERVICES.len()],
    /// Those with the right answer and end, by real server.
    pub(crate) served: [[AtomicU64; REAL_SERVERS.len()]; SERVICES.len()],
    pub(crate) failed: Mutex<Vec<Failure>>,
    /// The longest connection that was served, in milliseconds.
    pub(crate) longest_ms: [AtomicU64; SERVICES.len()],
    /// Connections that servers have open.
    pub(crate) open: AtomicU64,
    /// Servers that have waited for a reset in vain.
    pub(crate) lost_resets: AtomicU64,
}

impl Tally {
    pub(crate) fn made(&self) -> [u64; SERVICES.len()] {
        self.made.each_ref().map(|count| count.load(Relaxed))
    }

    fn fail(&self, service: usize, begun: Instant, why: String) {
        let failure = Failure { service, begun, ended: Instant::now(), why };
        self.failed.lock().expect("no thread panics").push(failure);
    }
}

/// Clients and servers; end when dropped.
pub(crate) struct Load {
    pub(crate) tally: Arc<Tally>,
    clients: Vec<JoinHandle<()>>,
    _servers: Vec<Listener>,
}

impl Load {
    /// Starts the servers, and the clients with at most this number of connections in a minute.
    pub(crate) fn start(cluster: &Cluster, in_a_minute: u64) -> Self {
        let tally = Arc::new(Tally::default());
        let mut servers = Vec::new();
        for (at, service) in SERVICES.iter().enumerate() {
            for (host, number) in REAL_SERVERS.into_iter().zip(0..) {
                let tally = Arc::clone(&tally);
                servers.push(Listener::tcp(cluster, host, service.port, move |stream, _| {
                    tally.serve(at, number, stream);
                    Ok(())
                }));
            }
        }
        succeed(cluster.command(Host::Client, "sysctl").args(["-qw", "net.ipv4.tcp_tw_reuse=1"]));
        let pause = Duration::from_secs(60) * u32::from(CLIENTS) / in_a_minute.max(1) as u32;
        let client = |number| {
            cluster.ip(Host::Client, &format!("address add {}/32 dev wan", v4(number)));
            cluster.ip(Host::Client, &format!("address add {}/64 dev wan nodad", v6(number)));
            let tally = Arc::clone(&tally);
            namespace::spawn(&cluster.namespace(Host::Client), move || tally.open_many(number, pause))
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self { tally, clients, _servers: servers }
    }

    /// Lets every client finish its connection, and begin none until this is dropped.
    pub(crate) fn paused(tally: &Tally) -> RwLockWriteGuard<'_, ()> {
        tally.gate.write().expect("no thread panics")
    }
}

/// A client's addresses.
fn v4(client: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 200 + client)
}

fn v6(client: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x200 + u16::from(client))
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tally.is_ending.store(true, Relaxed);
        for client in self.clients.drain(..) {
            let _ = client.join();
        }
    }
}

impl Tally {
    /// A client.
    fn open_many(&self, client: u8, pause: Duration) {
        let mut turns = [0; Ending::ALL.len()];
        for at in (0..SERVICES.len()).cycle() {
            let (service, ending) = (&SERVICES[at], Ending::random());
            let (first, count) = ending.ports();
            let turn = &mut turns[ending as usize];
            *turn = (*turn + 1) % count;
            let port = first + u16::from(client) * count + *turn;
            let from: SocketAddr =
                if service.is_v6 { (v6(client), port).into() } else { (v4(client), port).into() };
            let gate = self.gate.read().expect("no thread panics");
            if self.is_ending.load(Relaxed) {
                return;
            }
            let begun = Instant::now();
            match self.open_one(at, from, ending) {
                Ok(Some(server)) => {
                    self.served[at][usize::from(server)].fetch_add(1, Relaxed);
                    self.longest_ms[at].fetch_max(begun.elapsed().as_millis() as u64, Relaxed);
                }
                // A former connection has the port.
                Ok(None) => continue,
                Err(error) => self.fail(at, begun, format!("client {from}: {error}")),
            }
            drop(gate);
            thread::sleep(pause.saturating_sub(begun.elapsed()));
        }
    }

    /// A connection; `None` if its ends are in use. Returns the real server.
    fn open_one(&self, at: usize, from: SocketAddr, ending: Ending) -> io::Result<Option<u8>> {
        let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        // Not for the programs that the suite starts: they would keep it open.
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        set_socket_reuseaddr(&socket, true)?;
        // connect() obeys the timeout of sending.
        set_socket_timeout(&socket, Timeout::Send, Some(LIMIT))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
        let connected = bind(&socket, &from).and_then(|()| connect(&socket, &SERVICES[at].endpoint()));
        if let Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL) = connected {
            return Ok(None);
        }
        self.made[at].fetch_add(1, Relaxed);
        connected.map_err(|error| named("connect", error.into()))?;
        let mut stream = TcpStream::from(socket);
        let number = fastrand::u64(..).to_ne_bytes();
        let mut message = [0; MESSAGE];
        message[..NUMBER].copy_from_slice(&number);
        message[NUMBER] = ending as u8;
        stream.write_all(&message).map_err(|error| named("request", error))?;
        if ending == Ending::Half {
            stream.shutdown(Shutdown::Write).map_err(|error| named("shutdown", error))?;
        }
        stream.read_exact(&mut message).map_err(|error| named("answer", error))?;
        if message[..NUMBER] != number {
            return Err(io::Error::other(format!("an answer to {number:x?}: {message:x?}")));
        }
        match ending {
            Ending::Client => {}
            Ending::Server | Ending::Half => read_end(&mut stream)?,
            Ending::Reset => set_socket_linger(&stream, Some(Duration::ZERO))?,
        }
        Ok(Some(message[NUMBER]))
    }

    /// A server's connection.
    fn serve(&self, at: usize, server: u8, stream: TcpStream) {
        let begun = Instant::now();
        self.open.fetch_add(1, Relaxed);
        if let Err(error) = self.answer(server, stream) {
            self.fail(at, begun, format!("server {}: {error}", server + 1));
        }
        self.open.fetch_sub(1, Relaxed);
    }

    fn answer(&self, server: u8, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(LIMIT))?;
        let mut message = [0; MESSAGE];
        stream.read_exact(&mut message).map_err(|error| named("request", error))?;
        let ending = Ending::ALL.get(usize::from(message[NUMBER])).copied();
        let ending = ending.ok_or_else(|| io::Error::other("not a request"))?;
        if ending == Ending::Half {
            read_end(&mut stream)?;
        }
        message[NUMBER] = server;
        stream.write_all(&message).map_err(|error| named("answer", error))?;
        match ending {
            Ending::Client => read_end(&mut stream),
            Ending::Server | Ending::Half => Ok(()),
            Ending::Reset => {
                stream.set_read_timeout(Some(RESET_LIMIT))?;
                match stream.read(&mut [0]) {
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.lost_resets.fetch_add(1, Relaxed);
                        Ok(())
                    }
                    other => Err(io::Error::other(format!("{other:?} instead of a reset"))),
                }
            }
        }
    }
}

/// Bytes of the number, and of a request or an answer.
const NUMBER: usize = 8;
const MESSAGE: usize = NUMBER + 1;

/// Reads that the other end has closed.
fn read_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0]).map_err(|error| named("end", error))? {
        0 => Ok(()),
        _ => Err(io::Error::other("more bytes than a message has")),
    }
}

fn named(what: &str, error: io::Error) -> io::Error {
    io::Error::other(format!("{what}: {error}"))
}
