//! A client that asks a web service again and again, at a steady pace, and takes down what came of each request.
//!
//! From `start` to its end a request begins every [`PACE`], each on a new TCP connection and a thread of its own, so that one
//! that hangs holds up no other. Nobody asserts its times. Not here: curl (`clients.rs`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Host};
use crate::{namespace, wait};

/// From one request to the next.
pub const PACE: Duration = Duration::from_millis(20);

/// One request.
#[derive(Clone, Debug)]
pub struct Asked {
    /// When its connection was begun.
    pub began: Instant,
    /// The page, which is the server's name, or why there is none; nothing while it is under way.
    pub outcome: Option<Result<String, ErrorKind>>,
}

impl Asked {
    /// Whether this server's page came.
    pub fn is_by(&self, server: &str) -> bool {
        matches!(&self.outcome, Some(Ok(page)) if page == server)
    }

    /// Whether no page came.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }
}

/// The client at work; dropped, it asks no more.
#[derive(Debug)]
pub struct Asking {
    running: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: Option<JoinHandle<()>>,
}

impl Asking {
    /// Begins to ask this endpoint from the cluster's client; a request may take so long, from its SYN to the last byte.
    pub fn start(cluster: &Cluster, target: impl Into<SocketAddr>, patience: Duration) -> Self {
        let target = target.into();
        let (running, asked) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let (flag, list) = (Arc::clone(&running), Arc::clone(&asked));
        let thread = namespace::spawn(&cluster.namespace(Host::Client), move || {
            // Threads that it starts are in its namespace.
            thread::scope(|scope| {
                let begun = Instant::now();
                // Relaxed: the flag stands for nothing but itself.
                for number in (0..).take_while(|_| flag.load(Ordering::Relaxed)) {
                    thread::sleep((begun + PACE * number).saturating_duration_since(Instant::now()));
                    let list = &list;
                    scope.spawn(move || ask_once(target, patience, list));
                }
            });
        });
        Self { running, asked, thread: Some(thread) }
    }

    /// The requests that were begun so far, in that order.
    ///
    /// # Panics
    ///
    /// If one of them did.
    pub fn so_far(&self) -> Vec<Asked> {
        self.asked.lock().expect("no request panics").clone()
    }

    /// Waits until this server, and no other, has answered as many requests as are begun in half a second.
    #[track_caller]
    pub fn await_all_by(&self, server: &str) {
        const ENOUGH: usize = 25;
        const UNDER_WAY: usize = 5;
        let first = self.so_far().len();
        wait::until(&format!("{server} alone answers"), || {
            let asked = self.so_far();
            let end = asked.len().saturating_sub(UNDER_WAY).max(first);
            let last = &asked[end.saturating_sub(ENOUGH).max(first)..end];
            (last.len() == ENOUGH && last.iter().all(|one| one.is_by(server))).then_some(())
        });
    }

    /// Waits until a request that begins from now on is answered by this server, and returns how long that took.
    #[track_caller]
    pub fn await_one_by(&self, server: &str) -> Duration {
        let now = Instant::now();
        wait::until(&format!("{server} answers"), || {
            let by = |one: &Asked| one.began >= now && one.is_by(server);
            self.so_far().into_iter().find(by).map(|one| one.began - now)
        })
    }

    /// Asks no more; the requests, all of which have ended.
    pub fn end(mut self) -> Vec<Asked> {
        self.stop();
        self.so_far()
    }

    fn stop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic was printed.
            let _ = thread.join();
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.stop();
    }
}

fn ask_once(target: SocketAddr, patience: Duration, list: &Mutex<Vec<Asked>>) {
    let lock = || list.lock().expect("no request panics");
    let place = {
        let mut asked = lock();
        asked.push(Asked { began: Instant::now(), outcome: None });
        asked.len() - 1
    };
    let outcome = page(target, Instant::now() + patience);
    lock()[place].outcome = Some(outcome.map_err(|error| error.kind()));
}

/// The page of an answer that is well, from a connection of its own.
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
