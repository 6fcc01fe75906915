//! The time from a packet that announces its connection to the connection's presence at the other director.
//!
//! Every [`EACH`] a client sends three datagrams of a new connection, of which the third one announces it. Then the
//! other director is asked, each millisecond, what it would do with one more of them, until it knows the connection
//! (`xvs explain` over the control socket, a look-up there). So a lag is right to about two milliseconds, and includes
//! the way of the datagram to the first director. Not here: the other connections (`load.rs`).

use std::net::{SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use xvs::cluster::{real_server, virtual_endpoint};
use xvs::{Cluster, Host, namespace};
use xvs_model::protocol::client::Client;
use xvs_model::protocol::question;
use xvs_model::report::explain::{Proto, Question};

use crate::fill::PORT;
use crate::pair::CLIENT;

/// From a marker to the next.
const EACH: Duration = Duration::from_millis(50);
/// A marker that is not known after this is lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// The ports of markers, each of which is used once.
const FIRST_PORT: u16 = 20_000;

/// What was measured.
#[derive(Default)]
pub(crate) struct Lags {
    /// In milliseconds, in ascending order.
    millis: Vec<f64>,
    /// Markers that never arrived although the announcing director has all three datagrams.
    pub(crate) lost: usize,
    /// Markers of which a datagram was lost on the way to the announcing director.
    pub(crate) incomplete: usize,
    /// The next port.
    port: u16,
}

impl Lags {
    /// No marker yet.
    pub(crate) fn none() -> Self {
        Self { port: FIRST_PORT, ..Self::default() }
    }

    /// The time within which this percentage of markers has arrived.
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = (self.millis.len() * percent).div_ceil(100).max(1) - 1;
        self.millis.get(at).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn count(&self) -> usize {
        self.millis.len()
    }
}

/// The socket of a real server that receives markers and reads none, so that it drops them without an ICMP error.
pub(crate) fn sink(cluster: &Cluster) -> UdpSocket {
    cluster.run(Host::RealServer(1), || UdpSocket::bind((real_server(1), PORT)).expect("the port is free"))
}

/// The thread of the markers.
pub(crate) struct Markers {
    running: Arc<AtomicBool>,
    thread: JoinHandle<()>,
    lags: Receiver<Lags>,
}

impl Markers {
    /// Sends markers that the director of a host is to learn of from the other one. `before`: the former markers.
    pub(crate) fn start(cluster: &Cluster, learns: Host, before: &Lags) -> Self {
        let running = Arc::new(AtomicBool::new(true));
        let (flag, port) = (Arc::clone(&running), before.port);
        let announces = if learns == Host::Backup { Host::Director } else { Host::Backup };
        let sockets = [learns, announces].map(|host| cluster.socket(host));
        let (sender, lags) = mpsc::channel();
        let thread = namespace::spawn(&cluster.namespace(Host::Client), move || {
            // `stop` waits for this.
            let _ = sender.send(run(&sockets, port, &flag));
        });
        Self { running, thread, lags }
    }

    /// Waits for the last markers.
    pub(crate) fn stop(self) -> Lags {
        // Relaxed: the flag publishes no other data.
        self.running.store(false, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic");
        self.lags.recv().expect("the thread has sent it")
    }
}

fn run(sockets: &[PathBuf; 2], port: u16, running: &AtomicBool) -> Lags {
    let [mut learns, mut announces] =
        sockets.each_ref().map(|socket| Client::connect(socket).expect("xvsd listens"));
    let mut lags = Lags { port, ..Lags::default() };
    let mut waiting: Vec<(SocketAddrV4, Instant)> = Vec::new();
    let mut next = Instant::now();
    loop {
        let is_running = running.load(Ordering::Relaxed);
        if !is_running && waiting.is_empty() {
            lags.millis.sort_by(f64::total_cmp);
            return lags;
        }
        if is_running && next <= Instant::now() {
            next = Instant::now() + EACH;
            let from = SocketAddrV4::new(CLIENT, lags.port);
            lags.port += 1;
            waiting.push((from, mark(from)));
        }
        // All are asked for: behind one that is lost, others arrive in time.
        waiting.retain(|(from, sent)| {
            let is_late = sent.elapsed() > PATIENCE;
            let is_known = packets(&mut learns, Proto::Udp, *from, PORT).is_some();
            if is_known {
                lags.millis.push(sent.elapsed().as_secs_f64() * 1e3);
            } else if is_late && packets(&mut announces, Proto::Udp, *from, PORT) >= Some(3) {
                lags.lost += 1;
            } else if is_late {
                lags.incomplete += 1;
            }
            !is_known && !is_late
        });
        thread::sleep(Duration::from_millis(1));
    }
}

/// Sends three datagrams from here. Returns when the third one was sent.
fn mark(from: SocketAddrV4) -> Instant {
    let socket = UdpSocket::bind(from).expect("the address is there and the port free");
    socket.connect(virtual_endpoint(PORT)).expect("there is a route");
    let mut sent = Instant::now();
    for _ in 0..3 {
        sent = Instant::now();
        // One that is lost makes an incomplete marker.
        let _ = socket.send(&[0]);
    }
    sent
}

/// The packets of the connection from there to a port of the VIP that a director knows of; `None`: it does not know the
/// connection.
pub(crate) fn packets(director: &mut Client, proto: Proto, from: SocketAddrV4, port: u16) -> Option<u32> {
    let [from, to] =
        [from, virtual_endpoint(port)].map(|at| Some(xvs_proto::Endpoint::new(*at.ip(), at.port())));
    let asked =
        Question { interface: Some("lan".to_owned()), proto: Some(proto), from, to, ..Question::default() };
    question::explain(asked).ask(director).expect("xvsd answers").met.map(|met| met.packets)
}
