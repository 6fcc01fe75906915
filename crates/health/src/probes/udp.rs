//! `UDP_CHECK`: a datagram and, if configured, the reply to it.
//!
//! Runs once for each probe. Without `require_reply`, silence until the deadline passes, and so does any datagram; an
//! ICMP error fails. With `require_reply`, the first datagram is the reply. Cost: a buffer for the longest permitted
//! reply.

use std::io;

use socket2::Type;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};
use xvs_model::health_checks::check::{Reply, Target, Udp};

use crate::probes::probe_result::ProbeResult;
use crate::probes::socket;

/// Probes the target once, at most until the deadline.
pub(crate) async fn probe(target: &Target, udp: &Udp, deadline: Instant) -> ProbeResult {
    let within = socket::within(deadline);
    let payload = match &udp.payload {
        Some(payload) => payload,
        None => &fastrand::u128(..).to_be_bytes().repeat(2),
    };
    let socket = match socket::open(target, Type::DGRAM, None)
        .and_then(|socket| socket::send(payload, socket, target, target.endpoint))
    {
        Ok(socket) => socket,
        Err(result) => return result,
    };
    match (timeout_at(deadline, answer(&socket, udp)).await, &udp.reply) {
        (Ok(Ok(datagram)), Some(reply)) => match objection(reply, &datagram) {
            None => ProbeResult::Passed(0),
            Some(why) => ProbeResult::Failed(why),
        },
        (Ok(Ok(_)) | Err(_), None) => ProbeResult::Passed(0),
        (Err(_), Some(_)) => ProbeResult::Failed(format!("no answer {within}")),
        (Ok(Err(error)), _) => socket::network_error(&error, "", target.endpoint),
    }
}

/// The first datagram that is received, truncated to one byte more than the longest permitted reply.
async fn answer(socket: &UdpSocket, udp: &Udp) -> io::Result<Vec<u8>> {
    let most = udp.reply.as_ref().map_or(0, |reply| usize::from(*reply.length.end()));
    let mut datagram = vec![0; most + 1];
    let length = socket.recv(&mut datagram).await?;
    datagram.truncate(length);
    Ok(datagram)
}

/// The reason why a reply fails; `None` if it passes.
///
/// The length counts only if a pattern is configured. A reply shorter than the pattern is compared up to its end.
fn objection(reply: &Reply, datagram: &[u8]) -> Option<String> {
    let least = usize::from(*reply.length.start());
    let most = usize::from(*reply.length.end());
    if reply.pattern.is_empty() {
        return None;
    }
    if datagram.len() > most {
        return Some(format!("a reply of more than {most} bytes"));
    }
    if datagram.len() < least {
        return Some(format!("a reply of {} bytes; the minimum is {least}", datagram.len()));
    }
    let at = datagram
        .iter()
        .zip(&reply.pattern)
        .position(|(byte, (wanted, mask))| byte & mask != wanted & mask)?;
    let (wanted, mask) = reply.pattern[at];
    let high = digit(wanted >> 4, mask >> 4);
    let low = digit(wanted & 0xf, mask & 0xf);
    Some(format!("byte {at} of the answer is {:02x}, not {high}{low}", datagram[at]))
}

/// A hexadecimal digit of the pattern; `x`: any.
fn digit(wanted: u8, mask: u8) -> String {
    if mask == 0 { "x".to_owned() } else { format!("{wanted:x}") }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, UdpSocket};
    use std::time::Duration;

    use socket2::{Domain, Protocol, Socket};

    use crate::probes::socket::testing::{soon, target};
    use crate::probes::udp::*;

    fn server(addr: &str) -> (UdpSocket, Target) {
        let server = UdpSocket::bind(addr).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let target = target(server.local_addr().unwrap());
        (server, target)
    }

    fn reply(pattern: &[(u8, u8)], length: std::ops::RangeInclusive<u16>) -> Option<Reply> {
        Some(Reply { pattern: pattern.to_vec(), length })
    }

    /// The result of a probe of a server that replies with this datagram.
    async fn probed(udp: &Udp, with: &[u8]) -> ProbeResult {
        let (server, target) = server("127.0.0.1:0");
        let server = tokio::task::spawn_blocking({
            let with = with.to_vec();
            move || {
                let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
                server.send_to(&with, client).unwrap();
                server
            }
        });
        let result = probe(&target, udp, soon()).await;
        server.await.unwrap();
        result
    }

    #[tokio::test(start_paused = true)]
    async fn silence_passes_unless_a_reply_is_required() {
        let (server, target) = server("127.0.0.1:0");
        let any = Udp { payload: Some(b"\x01\x02".to_vec()), reply: None };
        assert_eq!(probe(&target, &any, soon()).await, ProbeResult::Passed(0));
        let mut datagram = [0xa5; 64];
        assert_eq!(server.recv(&mut datagram).unwrap(), 2);
        assert_eq!(datagram[..3], [1, 2, 0xa5]);
        let wanting = Udp { payload: None, reply: reply(&[], 0..=255) };
        let why = "no answer within 5s".to_owned();
        assert_eq!(probe(&target, &wanting, soon()).await, ProbeResult::Failed(why));
        assert_eq!(server.recv(&mut datagram).unwrap(), 32);
    }

    #[tokio::test]
    async fn a_closed_port_fails_although_silence_passes() {
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let (_, target) = server(addr);
            let why = format!("connection refused by {}", target.endpoint);
            let any = Udp { payload: None, reply: None };
            assert_eq!(probe(&target, &any, soon()).await, ProbeResult::Failed(why));
        }
    }

    #[tokio::test]
    async fn a_host_that_a_router_reports_unreachable_fails() {
        let (server, target) = server("127.0.0.1:0");
        let router = tokio::task::spawn_blocking(move || {
            let (_, client) = server.recv_from(&mut [0; 64]).unwrap();
            let (from, to) = (client.port().to_be_bytes(), server.local_addr().unwrap().port().to_be_bytes());
            // RFC 792: host unreachable, with the IPv4 and UDP headers of the probe; the checksum is set below.
            let mut error = vec![3, 1, 0, 0, 0, 0, 0, 0];
            error.extend([0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 17, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1]);
            error.extend([from, to, [0, 40], [0, 0]].concat());
            let sum: u32 = error.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
            let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
            error[2..4].copy_from_slice(&checksum.to_be_bytes());
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
            raw.send_to(&error, &client.into()).unwrap();
            server
        });
        let why = format!("host unreachable: {}", target.endpoint);
        let result = probe(&target, &Udp { payload: None, reply: None }, soon()).await;
        assert_eq!(result, ProbeResult::Failed(why));
        router.await.unwrap();
    }

    #[tokio::test]
    async fn the_first_datagram_is_the_reply_and_is_compared_with_the_pattern() {
        let of = |reply| Udp { payload: None, reply };
        assert_eq!(probed(&of(None), b"anything").await, ProbeResult::Passed(0));
        assert_eq!(probed(&of(reply(&[], 4..=4)), b"anything").await, ProbeResult::Passed(0));
        let wanting = of(reply(&[(0x61, 0xff), (0x60, 0xf0)], 1..=3));
        assert_eq!(probed(&wanting, b"abc").await, ProbeResult::Passed(0));
        assert_eq!(probed(&wanting, b"a").await, ProbeResult::Passed(0));
        for (with, why) in [
            (&b"bb"[..], "byte 0 of the answer is 62, not 61"),
            (b"a1", "byte 1 of the answer is 31, not 6x"),
            (b"", "a reply of 0 bytes; the minimum is 1"),
            (b"abcd", "a reply of more than 3 bytes"),
        ] {
            assert_eq!(probed(&wanting, with).await, ProbeResult::Failed(why.to_owned()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_datagram_from_another_address_is_no_reply() {
        let own: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let own = UdpSocket::bind(own).unwrap().local_addr().unwrap();
        let (_server, endpoint) = server("127.0.0.1:0");
        let target = Target { source: Some(own.ip()), source_port: Some(own.port()), ..endpoint };
        let probed = tokio::spawn(async move {
            let wanting = Udp { payload: None, reply: reply(&[], 0..=255) };
            probe(&target, &wanting, soon()).await
        });
        tokio::task::yield_now().await;
        UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"me", own).unwrap();
        assert_eq!(probed.await.unwrap(), ProbeResult::Failed("no answer within 5s".to_owned()));
    }
}
