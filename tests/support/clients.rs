//! Clients: requests of the cluster's client host to the VIP, and checks of the responses.
//!
//! Each call blocks until the response is there or a time limit ends the test. Downloads are made by curl from
//! nginx, uploads and datagrams by sockets of the test. Not here: expected responses.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::cluster::{Cluster, Host, complete, virtual_endpoint};
use crate::servers::{Receipt, checksum};
use crate::wait::{self, DEADLINE};

/// The response to curl on the client: the body, or curl's error.
pub fn fetch(cluster: &Cluster, url: &str) -> Result<Vec<u8>, String> {
    let output = complete(curl(cluster).arg(url));
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Names of the servers that answered `count` requests, one connection each.
///
/// # Panics
///
/// With curl's error if one fails.
pub fn pages(cluster: &Cluster, url: &str, count: usize) -> Vec<String> {
    let page = || fetch(cluster, url).unwrap_or_else(|error| panic!("no page from {url}: {error}"));
    (0..count).map(|_| String::from_utf8_lossy(&page()).trim_end().to_owned()).collect()
}

/// curl on the client, quiet, with a time limit.
pub fn curl(cluster: &Cluster) -> Command {
    let mut command = cluster.command(Host::Client, "curl");
    command.args(["--silent", "--show-error", "--max-time"]).arg(DEADLINE.as_secs().to_string());
    command
}

/// Opens a connection from this thread's namespace, with [`DEADLINE`] for each wait.
pub fn connect(target: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target.into(), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// Sends `bytes` to a [`Sink`](crate::servers::Sink) and returns its receipt.
pub fn upload(mut stream: TcpStream, bytes: &[u8]) -> io::Result<Receipt> {
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut line = String::new();
    stream.read_to_string(&mut line)?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let malformed = || io::Error::other(format!("a sink answered {line:?}"));
    let [host, length, checksum] = words[..] else { return Err(malformed()) };
    Ok(Receipt {
        host: host.to_owned(),
        length_bytes: length.parse().map_err(|_| malformed())?,
        checksum: checksum.parse().map_err(|_| malformed())?,
    })
}

/// An upload of the client to the VIP, of which one half is sent.
#[derive(Debug)]
pub struct HalfUpload(TcpStream);

const HALF: &[u8] = b"half of an upload, ";

impl HalfUpload {
    /// Opens a connection, and sends the first half.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub fn begin(cluster: &Cluster, port: u16) -> Self {
        let mut stream = cluster.run(Host::Client, || connect(virtual_endpoint(port))).expect("connection");
        stream.write_all(HALF).expect("first half");
        Self(stream)
    }

    /// Sends the rest; the receipt shows that one server got all of it.
    ///
    /// # Panics
    ///
    /// If it did not.
    pub fn finish(self) {
        let got = upload(self.0, HALF).expect("second half");
        assert_eq!(got, receipt(&got.host, &[HALF, HALF].concat()));
    }
}

/// The receipt that `host` has to return for `bytes`.
pub fn receipt(host: &str, bytes: &[u8]) -> Receipt {
    Receipt { host: host.to_owned(), length_bytes: bytes.len() as u64, checksum: checksum(bytes) }
}

/// Opens `count` connections from the client and, once all are open, uploads `bytes` on all of them at once.
///
/// # Panics
///
/// If one of them can't be opened or breaks.
pub fn parallel_uploads(
    cluster: &Cluster,
    target: impl Into<SocketAddr>,
    count: usize,
    bytes: &[u8],
) -> Vec<Receipt> {
    let target = target.into();
    let tried = AtomicUsize::new(0);
    thread::scope(|scope| {
        let started: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    cluster.run(Host::Client, || {
                        let stream = connect(target);
                        // Counts failed ones too: the others wait for all.
                        tried.fetch_add(1, Ordering::Relaxed);
                        wait::until("every connection has been tried", || {
                            (tried.load(Ordering::Relaxed) == count).then_some(())
                        });
                        upload(stream?, bytes)
                    })
                })
            })
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("connect and upload do not panic").expect("upload"))
            .collect()
    })
}

/// A UDP client on the client host: one port, one flow.
#[derive(Debug)]
pub struct Asker {
    socket: UdpSocket,
    sent: Cell<u64>,
}

impl Asker {
    /// Binds a free port and connects it to `target`.
    ///
    /// # Panics
    ///
    /// If the client has no route to it.
    pub fn new(cluster: &Cluster, target: impl Into<SocketAddr>) -> Self {
        let target = target.into();
        let any: SocketAddr = match target {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = cluster.run(Host::Client, || {
            let socket = UdpSocket::bind(any).expect("a port is free");
            // Connected: the kernel refuses a reply from any other address than the VIP.
            socket.connect(target).expect("the client has a route to the VIP");
            socket
        });
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("the time limit is not zero");
        Self { socket, sent: Cell::new(0) }
    }

    /// The number of datagrams that it has sent.
    pub fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Its own address and port.
    ///
    /// # Panics
    ///
    /// If the kernel does not say it.
    pub fn addr(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is bound")
    }

    /// Sends a request until a reply to it arrives, and returns the name of the server that replied.
    ///
    /// Datagrams may get lost, so a request is repeated; a late reply to an earlier one is skipped.
    ///
    /// # Panics
    ///
    /// If no reply arrives, or a datagram can't be sent.
    pub fn ask(&self, question: &[u8]) -> String {
        wait::until("a reply to a datagram", || {
            // Either call may return an ICMP error to an earlier request; the next try is independent of it.
            self.socket.send(question).ok()?;
            self.sent.set(self.sent.get() + 1);
            let mut reply = vec![0; 65536];
            while let Ok(count) = self.socket.recv(&mut reply) {
                let mut parts = reply[..count].splitn(2, |&byte| byte == b' ');
                if let (Some(name), Some(body)) = (parts.next(), parts.next())
                    && body == question
                {
                    return Some(String::from_utf8_lossy(name).into_owned());
                }
            }
            None
        })
    }
}

/// Whether each name differs from the one before: real servers take turns.
pub fn take_turns(names: &[String]) -> bool {
    names.windows(2).all(|pair| pair[0] != pair[1])
}
