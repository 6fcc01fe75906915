//! A client that sends requests to a web service at a steady pace, and records the outcome of each.
//!
//! From `start` to its end a request begins every [`PACE`], each on a new TCP connection and a thread of its own, so
//! one that hangs delays no other. No test asserts its times. Not here: curl (`clients.rs`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Host};
use crate::{namespace, wait};

/// Time from the start of one request to that of the next.
pub const PACE: Duration = Duration::from_millis(20);

/// One request.
#[derive(Clone, Debug)]
pub struct TimedRequest {
    /// When its connection was opened.
    pub began: Instant,
    /// The page, which is the server's name, or the error; `None` while the request runs.
    pub outcome: Option<Result<String, ErrorKind>>,
}

impl TimedRequest {
    /// Whether this server answered.
    pub fn is_by(&self, server: &str) -> bool {
        matches!(&self.outcome, Some(Ok(page)) if page == server)
    }

    /// Whether the request failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }
}

/// A running client, which ends when it is dropped.
#[derive(Debug)]
pub struct RequestStream {
    running: Arc<AtomicBool>,
    requests: Arc<Mutex<Vec<TimedRequest>>>,
    thread: Option<JoinHandle<()>>,
}

impl RequestStream {
    /// Starts a client on the cluster's client host. `patience` is the time limit of a request, from its SYN to the
    /// last byte.
    pub fn start(cluster: &Cluster, target: impl Into<SocketAddr>, patience: Duration) -> Self {
        let target = target.into();
        let (running, requests) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let (flag, list) = (Arc::clone(&running), Arc::clone(&requests));
        let thread = namespace::spawn(&cluster.namespace(Host::Client), move || {
            // Threads that this thread starts inherit its namespace.
            thread::scope(|scope| {
                let begun = Instant::now();
                // Relaxed: the flag publishes no other data.
                for number in (0..).take_while(|_| flag.load(Ordering::Relaxed)) {
                    thread::sleep((begun + PACE * number).saturating_duration_since(Instant::now()));
                    let list = &list;
                    scope.spawn(move || send_one(target, patience, list));
                }
            });
        });
        Self { running, requests, thread: Some(thread) }
    }

    /// The requests that have begun so far, in their order.
    ///
    /// # Panics
    ///
    /// If a request's thread panicked.
    pub fn so_far(&self) -> Vec<TimedRequest> {
        self.requests.lock().expect("no request panics").clone()
    }

    /// Waits until this server alone has answered the requests of half a second.
    #[track_caller]
    pub fn await_all_by(&self, server: &str) {
        const ENOUGH: usize = 25;
        const UNDER_WAY: usize = 5;
        let first = self.so_far().len();
        wait::until(&format!("{server} alone answers"), || {
            let requests = self.so_far();
            let end = requests.len().saturating_sub(UNDER_WAY).max(first);
            let last = &requests[end.saturating_sub(ENOUGH).max(first)..end];
            (last.len() == ENOUGH && last.iter().all(|one| one.is_by(server))).then_some(())
        });
    }

    /// Waits until a request that begins from now on is answered by this server, and returns how long that took.
    #[track_caller]
    pub fn await_one_by(&self, server: &str) -> Duration {
        let now = Instant::now();
        wait::until(&format!("{server} answers"), || {
            let by = |one: &TimedRequest| one.began >= now && one.is_by(server);
            self.so_far().into_iter().find(by).map(|one| one.began - now)
        })
    }

    /// Ends the client and returns its requests, all of which have ended.
    pub fn end(mut self) -> Vec<TimedRequest> {
        self.stop();
        self.so_far()
    }

    fn stop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was printed.
            let _ = thread.join();
        }
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.stop();
    }
}

fn send_one(target: SocketAddr, patience: Duration, list: &Mutex<Vec<TimedRequest>>) {
    let lock = || list.lock().expect("no request panics");
    let place = {
        let mut requests = lock();
        requests.push(TimedRequest { began: Instant::now(), outcome: None });
        requests.len() - 1
    };
    let outcome = page(target, Instant::now() + patience);
    lock()[place].outcome = Some(outcome.map_err(|error| error.kind()));
}

/// The page of a successful response, from a connection of its own.
fn page(target: SocketAddr, deadline: Instant) -> io::Result<String> {
    let left = || match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::from(ErrorKind::TimedOut)),
        left => Ok(left),
    };
    let mut stream = TcpStream::connect_timeout(&target, left()?)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => break,
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    let answer = String::from_utf8(answer).map_err(|_| ErrorKind::InvalidData)?;
    let (head, page) = answer.split_once("\r\n\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(page.trim_end().to_owned()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}
