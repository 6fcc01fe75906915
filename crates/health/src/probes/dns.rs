//! `DNS_CHECK`: a DNS query over UDP.
//!
//! Runs once for each probe. A response without an error passes, with or without records. Responses to other queries
//! are ignored. Source: RFC 1035 §4.1. Cost: two buffers of 512 bytes.

use std::io;

use socket2::Type;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::{Dns, Target};

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Probes the target once, at most until the deadline.
pub(crate) async fn probe(target: &Target, dns: &Dns, deadline: Instant) -> ProbeResult {
    let peer = target.endpoint;
    let within = socket::within(deadline);
    let id = fastrand::u16(..);
    let Some(query) = query(id, dns) else {
        return ProbeResult::NotRun(format!("{} {}. cannot be queried", dns.kind, dns.name));
    };
    let socket = match socket::open(target, Type::DGRAM, None)
        .and_then(|socket| socket::send(&query, socket, target, peer))
    {
        Ok(socket) => socket,
        Err(result) => return result,
    };
    match timeout_at(deadline, response_code(&socket, id)).await {
        Ok(Ok(0)) => ProbeResult::Passed(0),
        Ok(Ok(code)) => ProbeResult::Failed(format!("answered {}", name(code))),
        Ok(Err(error)) => socket::network_error(&error, "", peer),
        Err(_) => ProbeResult::Failed(format!("no answer {within}")),
    }
}

/// The response code of the first response with this query ID.
async fn response_code(socket: &UdpSocket, id: u16) -> io::Result<u8> {
    let mut datagram = [0; MESSAGE_BYTES];
    loop {
        let length = socket.recv(&mut datagram).await?;
        let [high, low, flags, more_flags, ..] = datagram;
        if length >= HEADER_BYTES && [high, low] == id.to_be_bytes() && flags & RESPONSE != 0 {
            return Ok(more_flags & 0xf);
        }
    }
}

/// A query with this ID; `None` if the record type is unknown, or the name has an empty or too long label.
fn query(id: u16, dns: &Dns) -> Option<Vec<u8>> {
    let kind: u16 = match dns.kind.as_str() {
        "A" => 1,
        "NS" => 2,
        "CNAME" => 5,
        "SOA" => 6,
        "MX" => 15,
        "TXT" => 16,
        "AAAA" => 28,
        "RRSIG" => 46,
        "DNSKEY" => 48,
        _ => return None,
    };
    let mut message = Vec::with_capacity(MESSAGE_BYTES);
    message.extend(id.to_be_bytes());
    // Recursion is desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in dns.name.split('.').filter(|_| !dns.name.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    // Class IN.
    message.extend([0, 1]);
    Some(message)
}

/// The name of a response code. Source: RFC 1035 §4.1.1, IANA DNS RCODEs.
fn name(code: u8) -> String {
    match code {
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        _ => format!("with code {code}"),
    }
}

/// Source: RFC 1035 §4.1.1.
const HEADER_BYTES: usize = 12;
/// The QR bit.
const RESPONSE: u8 = 0x80;
/// Source: RFC 1035 §4.2.1.
const MESSAGE_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Server;
    use std::time::Duration;

    use crate::probes::dns::*;
    use crate::probes::socket::testing::{soon, target};

    fn dns(kind: &str, name: &str) -> Dns {
        Dns { kind: kind.to_owned(), name: name.to_owned() }
    }

    /// The result of a probe of a server that sends these datagrams; `ID` represents the query ID, `IN` another one.
    async fn probed(with: &[&[u8]]) -> ProbeResult {
        let server = Server::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let target = target(server.local_addr().unwrap());
        let with: Vec<_> = with.iter().map(|datagram| datagram.to_vec()).collect();
        let server = tokio::task::spawn_blocking(move || {
            let mut query = [0; 64];
            let (_, client) = server.recv_from(&mut query).unwrap();
            for mut datagram in with {
                for byte in datagram.iter_mut().take(2) {
                    *byte = match *byte {
                        b'I' => query[0],
                        b'D' => query[1],
                        b'N' => !query[1],
                        other => other,
                    };
                }
                server.send_to(&datagram, client).unwrap();
            }
            server
        });
        let result = probe(&target, &dns("A", "example.com"), soon()).await;
        server.await.unwrap();
        result
    }

    #[test]
    fn a_query_is_as_rfc_1035_has_it() {
        let wanted =
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x1c\x00\x01";
        assert_eq!(query(0x1234, &dns("AAAA", "example.com")).unwrap(), wanted);
        let root = b"\xff\x00\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x06\x00\x01";
        assert_eq!(query(0xff00, &dns("SOA", "")).unwrap(), root);
        let numbers =
            [("A", 1), ("NS", 2), ("CNAME", 5), ("MX", 15), ("TXT", 16), ("RRSIG", 46), ("DNSKEY", 48)];
        for (kind, number) in numbers {
            let query = query(1, &dns(kind, "")).unwrap();
            assert_eq!(query[13..], [0, number, 0, 1], "{kind}");
        }
        assert_eq!(query(1, &dns("A", "a..b")), None);
        assert_eq!(query(1, &dns("WKS", "a")), None);
    }

    #[tokio::test]
    async fn a_response_without_an_error_passes_even_without_records() {
        assert_eq!(probed(&[b"ID\x81\x80\0\x01\0\0\0\0\0\0"]).await, ProbeResult::Passed(0));
        // A truncated response passes, too.
        assert_eq!(probed(&[b"ID\x83\x80\0\x01\0\0\0\0\0\0\x07exa"]).await, ProbeResult::Passed(0));
    }

    #[tokio::test]
    async fn a_response_with_an_error_fails() {
        for (code, why) in [
            (1, "answered FORMERR"),
            (2, "answered SERVFAIL"),
            (3, "answered NXDOMAIN"),
            (4, "answered NOTIMP"),
            (5, "answered REFUSED"),
            (9, "answered with code 9"),
        ] {
            let datagram = [b'I', b'D', 0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0];
            assert_eq!(probed(&[&datagram]).await, ProbeResult::Failed(why.to_owned()));
        }
    }

    #[tokio::test]
    async fn datagrams_that_are_no_response_to_this_query_are_ignored() {
        let noise: [&[u8]; 4] = [
            b"",
            // Shorter than a header.
            b"ID\x81\x83\0\x01\0\0\0\0\0",
            // A query.
            b"ID\x01\x03\0\x01\0\0\0\0\0\0",
            // Another query ID.
            b"IN\x81\x83\0\x01\0\0\0\0\0\0",
        ];
        let result = b"ID\x81\x80\0\x01\0\0\0\0\0\0".as_slice();
        assert_eq!(probed(&[&noise[..], &[result]].concat()).await, ProbeResult::Passed(0));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_fails_at_the_deadline() {
        let server = Server::bind("127.0.0.1:0").unwrap();
        let result = probe(&target(server.local_addr().unwrap()), &dns("SOA", ""), soon()).await;
        assert_eq!(result, ProbeResult::Failed("no answer within 5s".to_owned()));
    }

    #[tokio::test]
    async fn a_closed_port_fails_and_a_missing_source_address_counts_as_not_run() {
        let closed = target(Server::bind("[::1]:0").unwrap().local_addr().unwrap());
        let why = format!("connection refused by {}", closed.endpoint);
        assert_eq!(probe(&closed, &dns("SOA", ""), soon()).await, ProbeResult::Failed(why));
        let unasked = Target { source: Some("2001:db8::7".parse().unwrap()), ..closed };
        assert!(matches!(probe(&unasked, &dns("SOA", ""), soon()).await, ProbeResult::NotRun(_)));
    }
}
