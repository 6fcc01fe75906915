//! The thread of a backup daemon that fetches the connection tables of other directors.
//!
//! It fetches a director's table when it first receives messages from the director, and when it may have missed
//! messages. Workers enter the connections like those in messages; the thread waits while they are busy.
//! `send_table.rs` is the master's side, and describes the format.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use xvs_ctl::sync::receiver::{Receiver, Refused};
use xvs_dataplane::port::xdp::Waker;

use super::channel::{Broken, Channel};
use super::key::SyncKey;
use super::sockets;
use crate::sync_peers::Peers;

/// The data for fetching tables.
pub(super) struct TableFetcher {
    pub(super) receiver: Arc<Receiver>,
    pub(super) key: SyncKey,
    pub(super) peers: Arc<Peers>,
    pub(super) wakers: Vec<Waker>,
}

/// Why a table was not fetched.
#[derive(Debug, thiserror::Error)]
enum NotFetched {
    #[error("it refuses the connection: it has no sync_key_file, or is a kernel")]
    NoServer,
    #[error("no connection: {0}")]
    NotConnected(io::Error),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("a message was refused: {0}")]
    Refused(#[from] Refused),
    #[error("it does not begin with the number of connections; the other xvsd is of another version")]
    NoNumber,
}

impl TableFetcher {
    /// Fetches wanted tables until `stop` is set.
    pub(super) fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let Some(peer) = self.peers.take_wanted(Instant::now()) else {
                thread::sleep(TURN);
                continue;
            };
            let begun = Instant::now();
            match self.fetch(peer, stop) {
                Ok(connections) => {
                    tracing::info!(
                        "{connections} connections fetched from {} in {:.1} s",
                        peer.ip(),
                        begun.elapsed().as_secs_f32()
                    );
                    self.peers.has_whole(peer, Instant::now());
                }
                Err(NotFetched::Broken(Broken::Stopped)) => {}
                Err(error) => {
                    if self.peers.has_none(peer, &error.to_string(), Instant::now()) {
                        tracing::warn!("the connection table of {} was not fetched: {error}", peer.ip());
                    }
                }
            }
        }
    }

    /// Fetches a table. Returns the number of its connections.
    fn fetch(&self, peer: SocketAddr, stop: &AtomicBool) -> Result<u64, NotFetched> {
        match sockets::connect(peer, &self.receiver.daemon.interface, CONNECT) {
            Ok(stream) => self.receive(stream, peer, stop),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(NotFetched::NoServer),
            Err(error) => Err(NotFetched::NotConnected(error)),
        }
    }

    fn receive(&self, stream: TcpStream, peer: SocketAddr, stop: &AtomicBool) -> Result<u64, NotFetched> {
        let mut channel = Channel::connect(stream, &self.key, stop)?;
        let of = channel.receive()?.try_into().map(u64::from_be_bytes).map_err(|_| NotFetched::NoNumber)?;
        let mut connections = 0;
        loop {
            self.peers.moves(peer, connections, of);
            let message = channel.receive()?;
            if message.is_empty() {
                return Ok(connections);
            }
            connections += self.receiver.receive_of_table(message, |inbox, hash| {
                self.wakers.iter().for_each(Waker::wake);
                while inbox.is_busy(hash) && !stop.load(Ordering::Relaxed) {
                    thread::sleep(BUSY);
                }
            })?;
            self.wakers.iter().for_each(Waker::wake);
        }
    }
}

/// How long a connection may take to be established.
const CONNECT: Duration = Duration::from_millis(500);
/// The interval of checking for wanted tables.
const TURN: Duration = Duration::from_millis(100);
/// How long the thread waits for busy workers.
const BUSY: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener};

    use arc_swap::ArcSwap;
    use socket2::{Domain, Socket, Type};
    use xvs_dataplane::clock::Clock;
    use xvs_dataplane::conn::tcp::TcpState;
    use xvs_dataplane::conn::{Flags, NewConnection, Spare, Table, TableConfig, TableReader};
    use xvs_dataplane::shm::Memory;
    use xvs_dataplane::snapshot::Snapshot;
    use xvs_dataplane::snapshot::sync_backup::{Inbox, Trust};
    use xvs_model::config::sync_daemon::{SyncDaemon, SyncRole};
    use xvs_model::report::status::{SyncPeer, SyncTable};
    use xvs_proto::{Endpoint, HashSecret, Protocol};
    use xvs_sched::ForwardingMethod;

    use super::*;
    use crate::sync::send_table::TableSender;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A table with this number of connections, the first of which begins.
    fn table(connections: u16) -> Arc<Table> {
        let config = TableConfig { capacity: 1 << 16, workers: 1, memory: Memory::OnDemand };
        let table = Table::create(config).unwrap();
        let mut worker = table.handle(0).unwrap();
        for port in 0..connections {
            let state = if port == 0 { TcpState::SynRecv } else { TcpState::Established };
            worker.insert(&NewConnection {
                protocol: Protocol::TCP,
                client: Endpoint::new([192, 0, 2, 10], port),
                virtual_endpoint: Endpoint::new([198, 51, 100, 1], 80),
                dest: Endpoint::new([203, 0, 113, 11], 8080),
                local: None,
                method: ForwardingMethod::Nat,
                flags: Flags::NONE,
                state: state as u8,
                expires: Clock::Monotonic.now() + Duration::from_secs(600),
                spare: Spare::NONE,
                dest_ref: 0,
                mark: 0,
                controller: None,
            });
        }
        table
    }

    fn sender(table: &Arc<Table>, key: u8) -> (TableSender, TableReader) {
        let sender = TableSender {
            sync_id: 7,
            key: SyncKey([key; 32]),
            published: Arc::new(ArcSwap::from_pointee(Snapshot::default())),
            peers: Arc::default(),
            may_send: Arc::new(std::sync::Mutex::new(true)),
        };
        (sender, table.reader().unwrap())
    }

    fn fetcher(key: u8, sync_id: u8) -> TableFetcher {
        let daemon = SyncDaemon {
            role: SyncRole::Backup,
            interface: "lo".to_owned(),
            sync_id,
            max_len_bytes: 1452,
            group: Ipv4Addr::new(224, 0, 0, 81).into(),
            port: 8848,
            ttl: 1,
            peers: Vec::new(),
        };
        let (inbox, secret) = (Arc::new(Inbox::new(1, Trust::Signed)), HashSecret([1, 2, 3]));
        let receiver = Arc::new(Receiver { daemon, inbox, secret });
        TableFetcher { receiver, key: SyncKey([key; 32]), peers: Arc::default(), wakers: Vec::new() }
    }

    /// Fetches from a sender. Returns the outcome, and what each side knows of the other.
    fn fetched(
        (sender, reader): (TableSender, TableReader),
        fetcher: &TableFetcher,
    ) -> (Result<u64, String>, Option<SyncPeer>, Option<SyncPeer>) {
        let (listener, stop) = (TcpListener::bind(PEER).unwrap(), AtomicBool::new(false));
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let senders = sender.peers.clone();
        fetcher.peers.heard(PEER, true, Ok(()), Instant::now());
        let outcome = thread::scope(|scope| {
            scope.spawn(|| sender.run(reader, &listener, &stop));
            let stream = TcpStream::connect(address).unwrap();
            let outcome = fetcher.receive(stream, PEER, &stop).map_err(|error| error.to_string());
            let is_sending =
                || senders.report(Instant::now()).iter().any(|peer| peer.table == SyncTable::Moving);
            while is_sending() {
                thread::sleep(BUSY);
            }
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        let [theirs, own] = [&senders, &fetcher.peers].map(|peers| peers.report(Instant::now()).pop());
        (outcome, theirs, own)
    }

    #[test]
    fn a_fetched_table_has_every_connection_that_was_established_with_its_remaining_time() {
        let fetcher = fetcher(1, 7);
        let (outcome, theirs, own) = fetched(sender(&table(8000), 1), &fetcher);
        assert_eq!(outcome, Ok(7999));
        let [theirs, own] = [theirs, own].map(|peer| peer.unwrap());
        assert_eq!((theirs.table, theirs.connections), (SyncTable::Whole, 7999));
        assert_eq!((own.connections, own.of), (7999, 8000));
        let mut ports = Vec::new();
        while let Some(received) = fetcher.receiver.inbox.take(0) {
            ports.push(received.entry.client.port);
            let remaining = received.entry.remaining_millis.unwrap();
            assert!((540_000..=600_000).contains(&remaining), "{remaining}");
        }
        ports.sort_unstable();
        assert_eq!(ports, (1..8000).collect::<Vec<_>>());
    }

    #[test]
    fn a_table_waits_while_workers_are_busy() {
        let fetcher = fetcher(1, 0);
        let inbox = fetcher.receiver.inbox.clone();
        let (outcome, ..) = thread::scope(|scope| {
            scope.spawn(|| {
                while !inbox.is_busy(0) {
                    thread::sleep(BUSY);
                }
                // Without a pause of the fetcher the queue would be full by now.
                thread::sleep(20 * TURN);
                let mut left = 39_999;
                while left > 0 && inbox.counters.lost.load(Ordering::Relaxed) == 0 {
                    left -= u32::from(inbox.take(0).is_some());
                }
            });
            fetched(sender(&table(40_000), 1), &fetcher)
        });
        assert_eq!(outcome, Ok(39_999));
        assert_eq!(inbox.counters.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn neither_side_tells_a_director_with_another_key_anything() {
        let fetcher = fetcher(1, 7);
        let (outcome, theirs, _) = fetched(sender(&table(10), 2), &fetcher);
        let why = "it has refused the handshake; perhaps the other director has another sync_key_file";
        assert_eq!(outcome.unwrap_err(), why);
        assert_eq!(theirs, None);
        assert!(fetcher.receiver.inbox.take(0).is_none());
    }

    #[test]
    fn a_table_of_another_sync_id_is_refused() {
        let (outcome, ..) = fetched(sender(&table(10), 1), &fetcher(1, 8));
        assert_eq!(
            outcome.unwrap_err(),
            "a message was refused: it is of sync id 7; both directors need the same --syncid"
        );
    }

    #[test]
    fn a_table_that_is_cut_is_not_complete() {
        let (fetcher, stop) = (fetcher(1, 7), AtomicBool::new(false));
        let listener = TcpListener::bind(PEER).unwrap();
        let address = listener.local_addr().unwrap();
        let outcome = thread::scope(|scope| {
            scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                let mut channel = Channel::accept(stream, &SyncKey([1; 32]), &stop).unwrap();
                channel.send(&8_u64.to_be_bytes()).unwrap();
            });
            fetcher.receive(TcpStream::connect(address).unwrap(), PEER, &stop)
        });
        assert!(matches!(outcome, Err(NotFetched::Broken(Broken::Closed))), "{outcome:?}");
    }

    #[test]
    fn a_copy_of_a_handshake_gets_no_table() {
        let (listener, stop) = (TcpListener::bind(PEER).unwrap(), AtomicBool::new(false));
        let address = listener.local_addr().unwrap();
        let first = thread::scope(|scope| {
            let heard = scope.spawn(|| {
                let mut first = vec![0; 50];
                listener.accept().unwrap().0.read_exact(&mut first).unwrap();
                first
            });
            let stream = TcpStream::connect(address).unwrap();
            assert!(Channel::connect(stream, &SyncKey([1; 32]), &stop).is_err());
            heard.join().unwrap()
        });
        let ((sender, reader), mut answer) = (sender(&table(10), 1), Vec::new());
        let peers = sender.peers.clone();
        listener.set_nonblocking(true).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| sender.run(reader, &listener, &stop));
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&first).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut answer).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        // The second message of the handshake, which reveals nothing without the key.
        assert_eq!(answer.len(), 50);
        assert!(peers.report(Instant::now()).is_empty());
    }

    #[test]
    fn connections_that_say_nothing_delay_no_director_that_joins() {
        let (listener, stop) = (TcpListener::bind(PEER).unwrap(), AtomicBool::new(false));
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let table = table(100);
        let ((sender, reader), fetcher) = (sender(&table, 1), fetcher(1, 7));
        // They are before the director, of its address and of others, also with a part of a message.
        let connect = |last: u8| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
            socket.connect(&address.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            stream.write_all(&[0, 48][..usize::from(last % 3)]).unwrap();
            stream
        };
        let silent: Vec<_> = (1..=60).map(connect).collect();
        let outcome = thread::scope(|scope| {
            scope.spawn(|| sender.run(reader, &listener, &stop));
            let outcome = fetcher.receive(TcpStream::connect(address).unwrap(), PEER, &stop);
            stop.store(true, Ordering::Relaxed);
            outcome
        });
        assert_eq!(outcome.map_err(|error| error.to_string()), Ok(99));
        drop(silent);
    }

    #[test]
    fn a_peer_that_sends_a_byte_now_and_then_does_not_delay_the_end_of_the_daemon() {
        let (listener, stop) = (TcpListener::bind(PEER).unwrap(), AtomicBool::new(false));
        let mut drip = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let outcome = thread::scope(|scope| {
            let accepting = scope.spawn(|| Channel::accept(stream, &SyncKey([1; 32]), &stop).map(|_| ()));
            drip.write_all(&[0, 48]).unwrap();
            for at in 0..40 {
                thread::sleep(BUSY);
                let _ = drip.write_all(&[at]);
                stop.store(at > 10, Ordering::Relaxed);
            }
            accepting.join().unwrap()
        });
        assert!(matches!(outcome, Err(Broken::Stopped)), "{outcome:?}");
        assert!(drip.write_all(&[0]).is_err() || drip.read(&mut [0]).is_ok_and(|len| len == 0));
    }
}
