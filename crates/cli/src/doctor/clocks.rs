//! Comparison of another director's clock with this machine's: logs, captures and synchronized state are compared by
//! time.
//!
//! Measured with ICMP timestamp requests (RFC 792), which the other machine's kernel answers in milliseconds, without a
//! program there. The answer with the shortest round trip counts, because its error is the smallest. IPv4 only: ICMPv6
//! has no such message.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};
use xvs_proto::icmp;

use crate::doctor::facts::{Clock, Facts};
use crate::doctor::finding::Finding;

/// Measures the clock of a machine. Takes a second if it does not answer.
pub(super) fn ask(addr: IpAddr) -> Clock {
    let ahead_millis = match addr {
        IpAddr::V4(addr) => ask_v4(addr).map_err(|error| error.to_string()),
        IpAddr::V6(_) => Err("clocks are compared over IPv4 only".to_owned()),
    };
    Clock { addr, ahead_millis }
}

fn ask_v4(addr: Ipv4Addr) -> io::Result<i64> {
    let socket =
        socket_with(AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMP))?;
    connect(&socket, &SocketAddrV4::new(addr, 0))?;
    let id = std::process::id() as u16;
    let mut answers = Vec::new();
    for sequence in 0..TIMES {
        let began = Instant::now();
        let asked = millis_of_day();
        send(&socket, &question(id, sequence, asked), SendFlags::empty())?;
        while let Some(left) = PATIENCE.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            set_socket_timeout(&socket, Timeout::Recv, Some(left))?;
            let mut packet = [0; 128];
            let Ok((bytes, _)) = recv(&socket, &mut packet[..], RecvFlags::empty()) else { break };
            if let Some((received, sent)) = answer(&packet[..bytes], id, sequence) {
                let back = millis_of_day();
                answers.push((began.elapsed(), (ahead(asked, received) + ahead(back, sent)) / 2));
                break;
            }
        }
        // A machine that does not answer the first request will not answer the next.
        if answers.is_empty() {
            break;
        }
    }
    answers
        .into_iter()
        .min()
        .map(|(_, ahead)| ahead)
        .ok_or_else(|| io::Error::other("it does not answer ICMP timestamp requests"))
}

/// A timestamp request (RFC 792).
fn question(id: u16, sequence: u16, millis: u32) -> [u8; 20] {
    let mut message = [0; 20];
    message[0] = REQUEST;
    message[4..6].copy_from_slice(&id.to_be_bytes());
    message[6..8].copy_from_slice(&sequence.to_be_bytes());
    message[8..12].copy_from_slice(&millis.to_be_bytes());
    icmp::write_checksum(&mut message);
    message
}

/// The receive and transmit timestamps of an IPv4 packet that answers this request, in milliseconds since midnight.
fn answer(packet: &[u8], id: u16, sequence: u16) -> Option<(u32, u32)> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let (words, _) = packet.get(header..header + 20)?.as_chunks();
    let [kind, asked, _, received, sent] = [0, 1, 2, 3, 4].map(|at: usize| u32::from_be_bytes(words[at]));
    let ours = kind >> 24 == u32::from(REPLY) && asked == u32::from(id) << 16 | u32::from(sequence);
    // The highest bit marks a time that is not in milliseconds since midnight (RFC 792).
    (ours && received < DAY && sent < DAY).then_some((received, sent))
}

/// By how much the second of two times of day is later, in milliseconds; negative if earlier. The shorter of the two
/// distances around midnight.
fn ahead(ours: u32, theirs: u32) -> i64 {
    let day = i64::from(DAY);
    let apart = i64::from(theirs) - i64::from(ours);
    (apart + day / 2).rem_euclid(day) - day / 2
}

/// Milliseconds since midnight (UTC).
fn millis_of_day() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (now.as_millis() % u128::from(DAY)) as u32
}

/// Types of ICMP messages.
const REQUEST: u8 = 13;
const REPLY: u8 = 14;
/// Milliseconds.
const DAY: u32 = 24 * 60 * 60 * 1000;
const TIMES: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(1);
/// Difference in milliseconds from which on the seconds in two logs cannot be compared.
const APART_MILLIS: i64 = 1000;

/// The difference to the clock of each director that was named.
pub(super) fn clocks(facts: &Facts) -> Vec<Finding> {
    facts.clocks.iter().map(judge).collect()
}

fn judge(Clock { addr, ahead_millis }: &Clock) -> Finding {
    let clock = Finding::of("clock", addr).seen("ICMP timestamp");
    match ahead_millis {
        Err(why) => clock.warn(why),
        Ok(ahead) if ahead.abs() < APART_MILLIS => {
            clock.ok(format!("{} ms apart from this machine's clock", ahead.abs()))
        }
        Ok(ahead) => {
            let side = if *ahead > 0 { "ahead of" } else { "behind" };
            clock
                .warn(format!("{:.1} s {side} this machine's clock", ahead.abs() as f64 / 1000.0))
                .mend("timedatectl set-ntp true")
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::doctor::clocks::*;
    use crate::doctor::finding::Level;

    #[test]
    fn a_request_has_the_bytes_of_rfc_792_and_only_its_own_answer_is_accepted() {
        let mut message = question(0x1234, 2, 0x0102_0304);
        assert_eq!(message[..2], [13, 0]);
        assert_eq!(message[4..12], [0x12, 0x34, 0, 2, 1, 2, 3, 4]);
        assert!(icmp::is_summed(&message));
        message[0] = 14;
        message[12..20].copy_from_slice(&[0, 0, 0, 7, 0, 0, 0, 9]);
        let packet = [&[0x46; 24][..], &message].concat();
        assert_eq!(answer(&packet, 0x1234, 2), Some((7, 9)), "behind a header with options");
        assert_eq!(answer(&packet, 0x1234, 3), None);
        assert_eq!(answer(&packet[..43], 0x1234, 2), None);
        assert_eq!(answer(&[], 0x1234, 2), None);
        let mut of_another_kind = packet;
        of_another_kind[36] = 0x80;
        assert_eq!(answer(&of_another_kind, 0x1234, 2), None);
    }

    #[test]
    fn times_of_day_differ_by_the_shorter_distance_around_midnight() {
        assert_eq!(ahead(1000, 1500), 500);
        assert_eq!(ahead(1500, 1000), -500);
        assert_eq!(ahead(DAY - 100, 100), 200);
        assert_eq!(ahead(100, DAY - 100), -200);
    }

    #[test]
    fn clocks_a_second_apart_are_a_warning_that_names_the_later_one() {
        let found = |ahead_millis| {
            let addr = IpAddr::from([192, 0, 2, 2]);
            let facts = Facts { clocks: vec![Clock { addr, ahead_millis }], ..Facts::default() };
            let [finding] = &clocks(&facts)[..] else { panic!("one finding") };
            (finding.level, finding.found.clone())
        };
        assert_eq!(found(Ok(-999)), (Level::Ok, "999 ms apart from this machine's clock".to_owned()));
        assert_eq!(found(Ok(61_250)), (Level::Warn, "61.2 s ahead of this machine's clock".to_owned()));
        assert_eq!(found(Ok(-1000)), (Level::Warn, "1.0 s behind this machine's clock".to_owned()));
        assert_eq!(found(Err("why".to_owned())), (Level::Warn, "why".to_owned()));
    }
}
