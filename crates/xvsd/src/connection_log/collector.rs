//! The UDP socket to the collector of IPFIX (RFC 7011 §10.3), with what is sent besides records: templates at the
//! begin, again after some minutes, and after each new socket. UDP reports no loss; a collector sees a gap in the
//! sequence numbers. Not here: the bytes (`ipfix.rs`).

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

    /// Sends records, in as few messages as hold them.
    pub(super) fn send(&mut self, batch: &[LogRecord], dates: Dates, sink: &Sink) {
        let [first, ..] = batch else { return };
        if let Err(error) = self.prepare(first, dates) {
            return sink.lost(batch.len() as u64, &error, NEXT);
        }
        let max_bytes = self.open.as_ref().map_or(LONGEST_UNKNOWN, |open| open.max_bytes);
        let mut message = Message::new();
        for record in batch {
            if !message.add(record, dates, max_bytes) {
                self.send_message(std::mem::replace(&mut message, Message::new()), sink);
                // Each record fits into a message of its own.
                message.add(record, dates, max_bytes);
            }
        }
        self.send_message(message, sink);
    }

    fn send_message(&mut self, message: Message, sink: &Sink) {
        let records = message.records();
        let bytes = message.finish(self.sequence, date_seconds());
        self.sequence = self.sequence.wrapping_add(records);
        let Some(open) = &mut self.open else { return };
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let mut sent = open.socket.send(&bytes);
        if let Err(error) = &sent
            && refused(error)
        {
            // It is about an earlier message; this one is not sent yet.
            sink.lost(open.last.into(), error, NEXT);
            sent = open.socket.send(&bytes);
        }
        match sent {
            Ok(_) => {
                open.last = records;
                sink.wrote(records.into());
            }
            Err(error) => {
                open.last = 0;
                sink.lost(records.into(), &error, NEXT);
                if !refused(&error) && error.kind() != io::ErrorKind::WouldBlock {
                    // Another socket may find another route, or another MTU.
                    (self.open, self.retry) = (None, Some(Instant::now() + RETRY));
                }
            }
        }
    }

    /// Opens the socket if there is none, and sends the templates if they are due.
    fn prepare(&mut self, example: &LogRecord, dates: Dates) -> io::Result<()> {
        if self.open.is_none() {
            if self.retry.is_some_and(|retry| Instant::now() < retry) {
                return Err(io::Error::other("there is no socket to it"));
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

fn date_seconds() -> u32 {
    (date_millis() / 1000) as u32
}

const NEXT: &str = "see whether the collector listens and is reachable; xvsd tries again";

#[cfg(test)]
mod tests {
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
