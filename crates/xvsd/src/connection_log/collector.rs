//! The UDP socket to the IPFIX collector (RFC 7011 §10.3), and the messages beside records: templates at the beginning,
//! again after some minutes, and after each new socket. UDP reports no loss; a collector sees a gap in the sequence
//! numbers. `ipfix.rs` encodes the messages.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{ip_mtu, ipv6_mtu};
use xvs_dataplane::conn::log::LogRecord;

use super::dates::Dates;
use super::ipfix::{Message, templates};
use super::sink::Sink;
use crate::date::date_millis;

/// How long the kernel may take for a message while its queue is full.
const PATIENCE: Duration = Duration::from_secs(1);
/// The time between two attempts to get a socket.
const RETRY: Duration = Duration::from_secs(1);
/// The longest message, with room for headers of a tunnel in a packet of Ethernet.
const LONGEST: usize = 1400;
/// The longest message if the path's MTU is not known (RFC 7011 §10.3.3).
const LONGEST_UNKNOWN: usize = 512;

/// The collector, and the socket to it while there is one.
pub(super) struct Collector {
    addr: SocketAddr,
    /// The time after which templates are sent again.
    pause: Duration,
    open: Option<Open>,
    retry: Option<Instant>,
    /// Records sent so far (RFC 7011 §3.1); it wraps.
    sequence: u32,
}

struct Open {
    socket: UdpSocket,
    max_bytes: usize,
    /// When the templates were sent.
    templates: Option<Instant>,
    /// The records of the last message, which a refusal is about.
    last: u32,
}

impl Collector {
    pub(super) fn new(addr: SocketAddr, pause: Duration) -> Self {
        Self { addr, pause, open: None, retry: None, sequence: 0 }
    }

    /// Sends records, in as few messages as hold them. Each is counted as written or as lost.
    pub(super) fn send(&mut self, batch: &[LogRecord], dates: Dates, sink: &Sink) {
        let [first, ..] = batch else { return };
        if let Err(error) = self.prepare(first, dates) {
            return self.lose(batch.len() as u32, &error, sink);
        }
        let max_bytes = self.open.as_ref().map_or(LONGEST_UNKNOWN, |open| open.max_bytes);
        let mut message = Message::new();
        for (number, record) in batch.iter().enumerate() {
            if !message.add(record, dates, max_bytes) {
                let full = std::mem::replace(&mut message, Message::new());
                if let Err(error) = self.send_message(full, sink) {
                    return self.lose((batch.len() - number) as u32, &error, sink);
                }
                // Each record fits into a separate message.
                message.add(record, dates, max_bytes);
            }
        }
        // The message's records are counted; there are no others.
        let _ = self.send_message(message, sink);
    }

    /// Counts records that are not sent. The collector sees a gap of as many in the sequence numbers.
    fn lose(&mut self, records: u32, error: &io::Error, sink: &Sink) {
        self.sequence = self.sequence.wrapping_add(records);
        sink.lost(records.into(), error, NEXT);
    }

    /// Sends a message, or counts its records as lost.
    ///
    /// # Errors
    /// The next message would fare no better: the socket is unusable, or its queue is full.
    fn send_message(&mut self, message: Message, sink: &Sink) -> io::Result<()> {
        let records = message.records();
        let bytes = message.finish(self.sequence, date_seconds());
        let Some(open) = &mut self.open else { return Err(no_socket()) };
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let mut sent = open.socket.send(&bytes);
        if let Err(error) = &sent
            && refused(error)
        {
            // It is about an earlier message; this one is not sent yet.
            sink.lost(open.last.into(), error, NEXT);
            sent = open.socket.send(&bytes);
        }
        let Err(error) = sent else {
            open.last = records;
            self.sequence = self.sequence.wrapping_add(records);
            sink.wrote(records.into());
            return Ok(());
        };
        open.last = 0;
        self.lose(records, &error, sink);
        match error.kind() {
            io::ErrorKind::ConnectionRefused => return Ok(()),
            io::ErrorKind::WouldBlock => {}
            // Another socket may find another route, or another MTU.
            _ => (self.open, self.retry) = (None, Some(Instant::now() + RETRY)),
        }
        Err(error)
    }

    /// Opens the socket if there is none, and sends the templates if they are due.
    fn prepare(&mut self, example: &LogRecord, dates: Dates) -> io::Result<()> {
        if self.open.is_none() {
            if self.retry.is_some_and(|retry| Instant::now() < retry) {
                return Err(no_socket());
            }
            let opened = Open::to(self.addr);
            self.retry = opened.is_err().then(|| Instant::now() + RETRY);
            self.open = Some(opened?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        if open.templates.is_none_or(|sent| sent.elapsed() >= self.pause) {
            for message in templates(example, dates) {
                let bytes = message.finish(self.sequence, date_seconds());
                // Once more: a refusal is about an earlier message.
                open.socket.send(&bytes).or_else(|_| open.socket.send(&bytes))?;
            }
            open.templates = Some(Instant::now());
        }
        Ok(())
    }
}

impl Open {
    fn to(addr: SocketAddr) -> io::Result<Self> {
        let any = match addr.ip() {
            IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(addr)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let (mtu, headers) = match addr {
            SocketAddr::V4(_) => (ip_mtu(&socket), 28),
            SocketAddr::V6(_) => (ipv6_mtu(&socket), 48),
        };
        let max_bytes =
            mtu.map_or(LONGEST_UNKNOWN, |mtu| (mtu as usize).saturating_sub(headers).min(LONGEST));
        Ok(Self { socket, max_bytes: max_bytes.max(LONGEST_UNKNOWN), templates: None, last: 0 })
    }
}

fn no_socket() -> io::Error {
    io::Error::other("there is no socket to it")
}

fn date_seconds() -> u32 {
    (date_millis() / 1000) as u32
}

const NEXT: &str = "see whether the collector listens and is reachable; xvsd tries again";

#[cfg(test)]
mod tests {
    use rustix::net::{Shutdown, shutdown};

    use super::super::line::tests::{DATES, example};
    use super::*;

    #[test]
    fn templates_come_first_and_records_are_numbered_in_messages_that_fit_a_packet() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sink = Sink::new("collector".to_owned());
        let mut collector = Collector::new(to.local_addr().unwrap(), Duration::from_secs(60));
        collector.send(&[example(); 20], DATES, &sink);
        collector.send(&[example()], DATES, &sink);
        let mut bytes = [0xa5; 2000];
        // Set, sequence number, and length of each message.
        let mut next = || {
            let length = to.recv(&mut bytes).unwrap();
            let number = u32::from_be_bytes(bytes[8..12].try_into().unwrap());
            (u16::from_be_bytes(bytes[16..18].try_into().unwrap()), number, length)
        };
        let found: Vec<_> = (0..5).map(|_| next()).collect();
        let sets: Vec<_> = found.iter().map(|(set, number, _)| (*set, *number)).collect();
        assert_eq!(sets, [(2, 0), (2, 0), (268, 0), (268, 16), (268, 20)]);
        assert!(found.iter().all(|(.., length)| *length <= LONGEST), "{found:?}");
        assert_eq!((sink.status().records, sink.status().lost_records), (21, 0));
    }

    #[test]
    fn all_records_of_a_batch_that_cannot_be_sent_are_counted_and_missing_in_the_sequence_numbers() {
        let to = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sink = Sink::new("collector".to_owned());
        let mut collector = Collector::new(to.local_addr().unwrap(), Duration::from_secs(60));
        let counted = || (sink.status().records, sink.status().lost_records);
        collector.send(&[example()], DATES, &sink);
        // From now on, sending fails with EPIPE.
        shutdown(&collector.open.as_ref().unwrap().socket, Shutdown::Write).unwrap();
        collector.send(&[example(); 60], DATES, &sink);
        assert_eq!(counted(), (1, 60), "in four messages");
        assert!(sink.warning().unwrap().text.contains("Broken pipe"), "{:?}", sink.warning());
        collector.send(&[example()], DATES, &sink);
        assert_eq!(counted(), (1, 61), "before the next attempt");
        collector.retry = None;
        collector.send(&[example()], DATES, &sink);
        assert_eq!(counted(), (2, 61));
        let mut bytes = [0xa5; 2000];
        // Each socket begins with two messages of templates.
        let numbers = [(); 6].map(|()| {
            to.recv(&mut bytes).unwrap();
            u32::from_be_bytes(bytes[8..12].try_into().unwrap())
        });
        assert_eq!(numbers, [0, 0, 0, 62, 62, 62]);
    }

    #[test]
    fn records_that_the_collectors_host_refuses_are_counted_with_a_warning_until_one_is_taken() {
        let gone = UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = gone.local_addr().unwrap();
        drop(gone);
        let sink = Sink::new("collector".to_owned());
        let mut collector = Collector::new(addr, Duration::from_secs(60));
        collector.send(&[example()], DATES, &sink);
        collector.send(&[example()], DATES, &sink);
        assert!(sink.status().lost_records >= 1);
        let back = UdpSocket::bind(addr).unwrap();
        collector.send(&[example()], DATES, &sink);
        collector.send(&[example()], DATES, &sink);
        assert_eq!(sink.warning(), None);
        drop(back);
    }
}
