//! A stream of datagrams through the director, with sequence numbers: its gaps and losses at the real server.
//!
//! A thread sends 10,000 datagrams a second, another receives. A sender that was not scheduled catches up at once, so
//! its own longest pause is counted too: on a busy machine it explains gaps. Not here: TCP (`connections.rs`).

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use xvs::cluster::virtual_endpoint;
use xvs::{Cluster, Host, namespace};

/// The port of the VIP and of the real server.
pub(crate) const PORT: u16 = 5300;
pub(crate) const PACKETS_PER_SECOND: u64 = 10_000;

/// What happened to the stream since [`Stream::begin`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Window {
    /// The first sequence number, and after the end the one that no longer counts.
    first: u64,
    end: Option<u64>,
    /// The next sequence number.
    next: u64,
    /// Datagrams that arrived.
    arrived: u64,
    /// Longest time without one.
    pub(crate) longest_gap: Duration,
    /// Longest time in which the sender sent none.
    pub(crate) longest_pause_of_sender: Duration,
    arrived_at: Option<Instant>,
}

impl Window {
    /// Datagrams that were sent and did not arrive.
    pub(crate) fn lost(&self) -> u64 {
        (self.end.unwrap_or(self.next) - self.first).saturating_sub(self.arrived)
    }

    /// The same as a part of all.
    pub(crate) fn lost_percent(&self) -> f64 {
        100.0 * self.lost() as f64 / (self.arrived + self.lost()).max(1) as f64
    }

    /// A gap that ends now, or has not ended.
    fn gap(&mut self, now: Instant) {
        self.longest_gap = self.longest_gap.max(self.arrived_at.map_or(Duration::ZERO, |at| now - at));
    }
}

/// Both threads; they end when this is dropped.
pub(crate) struct Stream {
    window: Arc<Mutex<Window>>,
    running: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    /// Starts the receiver on the first real server, then the sender on the client.
    pub(crate) fn start(cluster: &Cluster) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let window = Arc::new(Mutex::new(Window::default()));
        let receiver = cluster.run(Host::RealServer(1), || receiver().expect("the port is free"));
        let sender = cluster.run(Host::Client, || sender().expect("the client has a route to the VIP"));
        let (flag, counts) = (Arc::clone(&running), Arc::clone(&window));
        let receive = thread::spawn(move || receive(&receiver, &flag, &counts));
        let (flag, counts) = (Arc::clone(&running), Arc::clone(&window));
        let send = namespace::spawn(&cluster.namespace(Host::Client), move || send(&sender, &flag, &counts));
        Self { window, running, threads: vec![receive, send] }
    }

    /// Begins anew to count.
    pub(crate) fn begin(&self) {
        let mut window = self.window.lock().expect("no thread panics");
        let next = window.next;
        *window = Window { first: next, next, arrived_at: Some(Instant::now()), ..Window::default() };
    }

    /// Stops counting, and returns what was counted.
    pub(crate) fn end(&self) -> Window {
        let mut window = self.window.lock().expect("no thread panics");
        window.end = Some(window.next);
        drop(window);
        // What is under way arrives.
        thread::sleep(Duration::from_millis(200));
        let mut window = *self.window.lock().expect("no thread panics");
        window.gap(Instant::now());
        window
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.running.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn receiver() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    // A receiver that is not scheduled loses nothing.
    set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

fn sender() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(virtual_endpoint(PORT))?;
    Ok(socket)
}

fn receive(socket: &UdpSocket, running: &AtomicBool, window: &Mutex<Window>) {
    let mut datagram = [0; 64];
    // Relaxed: the flag publishes no other data.
    while running.load(Ordering::Relaxed) {
        let Ok(count) = socket.recv(&mut datagram) else { continue };
        let Some(sequence) = datagram[..count].first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)) else {
            continue;
        };
        let mut window = window.lock().expect("no thread panics");
        let now = Instant::now();
        window.gap(now);
        window.arrived_at = Some(now);
        if sequence >= window.first && window.end.is_none_or(|end| sequence < end) {
            window.arrived += 1;
        }
    }
}

fn send(socket: &UdpSocket, running: &AtomicBool, window: &Mutex<Window>) {
    let start = Instant::now();
    let (mut sequence, mut sent_at) = (0_u64, start);
    while running.load(Ordering::Relaxed) {
        let due = start.elapsed().as_nanos() as u64 * PACKETS_PER_SECOND / 1_000_000_000;
        if sequence < due {
            let pause = sent_at.elapsed();
            let mut window = window.lock().expect("no thread panics");
            window.longest_pause_of_sender = window.longest_pause_of_sender.max(pause);
            window.next = due;
            drop(window);
            sent_at = Instant::now();
        }
        while sequence < due {
            // An ICMP error to an earlier datagram, or a full queue: it is lost.
            let _ = socket.send(&sequence.to_ne_bytes());
            sequence += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
}
