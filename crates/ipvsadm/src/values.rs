//! Arguments of options: numbers, addresses with ports, masks, scheduler flags, timeouts.
//!
//! They are parsed as the C library's `strtol`, `inet_aton` and `inet_pton` parse them, because scripts rely on it:
//! `-M 24` is 0.0.0.24, and 10.1.100 is 10.1.0.100.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use xvs_model::config::service::SchedulerFlags;
use xvs_model::config::timeouts::Timeouts;
use xvs_proto::Protocol;

use crate::error::LineError;
use crate::resolver::Resolver;

/// The characters that `strtol` skips before a number.
const BLANKS: [char; 6] = [' ', '\t', '\n', '\x0b', '\x0c', '\r'];

/// A decimal number as `atoi` parses it, if it is in range; characters after it are ignored.
pub(super) fn leading_number(text: &str, range: RangeInclusive<u32>) -> Option<u32> {
    let text = text.trim_start_matches(BLANKS);
    let rest = text
        .strip_prefix(['+', '-'])
        .unwrap_or(text)
        .trim_start_matches(|digit: char| digit.is_ascii_digit());
    number(&text[..text.len() - rest.len()], range)
}

/// A decimal number as `strtol` parses it, if it is in range and no character follows it.
pub(super) fn number(text: &str, range: RangeInclusive<u32>) -> Option<u32> {
    let unsigned = text.trim_start_matches(BLANKS);
    let (digits, negative) = match unsigned.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (unsigned.strip_prefix('+').unwrap_or(unsigned), false),
    };
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u32 = digits.parse().ok()?;
    (range.contains(&value) && !(negative && value != 0)).then_some(value)
}

/// An address, and a port if one was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) addr: IpAddr,
    pub(super) port: Option<u16>,
}

/// An address or host name with an optional port or service name; `None` if the text has another form.
///
/// Service names are looked up for `protocol`; without a protocol they are refused.
pub(super) fn endpoint(text: &str, protocol: Option<Protocol>, resolver: &dyn Resolver) -> Option<Given> {
    if text.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    if let Some(inner) = text.strip_prefix('[') {
        let (host, rest) = inner.split_once(']')?;
        let port = port(rest.strip_prefix(':')?, protocol, resolver)?;
        if let Ok(addr) = host.parse::<Ipv6Addr>() {
            return Some(Given { addr: addr.into(), port: Some(port) });
        }
        // ipvsadm ignores the port after an IPv4 address in brackets.
        return Some(Given { addr: ipv4(host, resolver)?.into(), port: None });
    }
    if let Ok(addr) = text.parse::<Ipv6Addr>() {
        return Some(Given { addr: addr.into(), port: None });
    }
    let (host, given) = match text.rsplit_once(':') {
        Some((host, given)) => (host, Some(port(given, protocol, resolver)?)),
        None => (text, None),
    };
    Some(Given { addr: ipv4(host, resolver)?.into(), port: given })
}

fn port(text: &str, protocol: Option<Protocol>, resolver: &dyn Resolver) -> Option<u16> {
    number(text, 0..=u32::from(u16::MAX))
        .and_then(|port| u16::try_from(port).ok())
        .or_else(|| resolver.port(text, protocol?))
}

/// An IPv4 address, or the address of a host name.
pub(super) fn ipv4(text: &str, resolver: &dyn Resolver) -> Option<Ipv4Addr> {
    inet_aton(text).or_else(|| resolver.address(text))
}

/// An IPv4 address as inet_aton(3) parses it: one to four numbers, decimal, octal or hexadecimal; the last one fills
/// the remaining bytes.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u32> = text
        .split(|c: char| c.is_ascii_whitespace())
        .next()?
        .split('.')
        .map(c_number)
        .collect::<Option<_>>()?;
    let (last, front) = parts.split_last()?;
    if front.len() > 3 || front.iter().any(|part| *part > 0xff) {
        return None;
    }
    let left = 32 - 8 * front.len() as u32;
    if u64::from(*last) >> left != 0 {
        return None;
    }
    let high = front.iter().zip([24, 16, 8]).fold(0, |high, (part, shift)| high | part << shift);
    Some(Ipv4Addr::from(high | last))
}

/// A number in C notation: `0x` hexadecimal, `0` octal, otherwise decimal.
fn c_number(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

/// The scheduler flags with these names, separated by commas.
///
/// # Errors
///
/// There is no such flag, or it belongs to another scheduler.
pub fn scheduler_flags(text: &str, scheduler: &str) -> Result<SchedulerFlags, LineError> {
    let mut bits = 0;
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let Some((owner, _, bit)) = FLAGS.iter().find(|(_, name, _)| *name == item) else {
            return Err(LineError::usage(format!("invalid scheduler flag `{item}'")));
        };
        if owner.is_some_and(|owner| owner != scheduler) {
            return Err(LineError::usage(format!("incompatible scheduler flag `{item}'")));
        }
        bits |= bit;
    }
    Ok(SchedulerFlags(bits))
}

/// The names of a scheduler's flags in listings. If a scheduler has named flags, its unnamed ones are not listed.
pub(super) fn flag_names(flags: SchedulerFlags, scheduler: &str) -> String {
    let owner = FLAGS.iter().any(|(owner, ..)| *owner == Some(scheduler)).then_some(scheduler);
    FLAGS
        .iter()
        .filter(|(of, _, bit)| *of == owner && flags.0 & bit != 0)
        .map(|(_, name, _)| *name)
        .collect::<Vec<_>>()
        .join(",")
}

/// Each flag's scheduler (`None`: every scheduler), name and bit.
const FLAGS: [(Option<&str>, &str, u8); 7] = [
    (Some("sh"), "sh-fallback", 1),
    (Some("sh"), "sh-port", 2),
    (Some("mh"), "mh-fallback", 1),
    (Some("mh"), "mh-port", 2),
    (None, "flag-1", 1),
    (None, "flag-2", 2),
    (None, "flag-3", 4),
];

/// The three timeouts of `--set`, and the arguments after them.
pub(super) fn timeouts<'a, 'b>(extra: &'b [&'a str]) -> Result<(Timeouts, &'b [&'a str]), LineError> {
    let Some(([tcp, tcp_fin, udp], rest)) = extra.split_first_chunk() else {
        return Err(LineError::usage("--set option requires 3 timeout values"));
    };
    let [tcp_seconds, tcp_fin_seconds, udp_seconds] = [timeout(tcp)?, timeout(tcp_fin)?, timeout(udp)?];
    Ok((Timeouts { tcp_seconds, tcp_fin_seconds, udp_seconds }, rest))
}

fn timeout(text: &str) -> Result<u32, LineError> {
    number(text, 0..=Timeouts::MAX_SECONDS).ok_or_else(|| invalid("timeout value", text))
}

pub(super) fn ranged(text: &str, range: RangeInclusive<u32>, name: &str) -> Result<u32, LineError> {
    number(text, range).ok_or_else(|| LineError::usage(format!("illegal {name} specified")))
}

pub(super) fn invalid(what: &str, text: &str) -> LineError {
    LineError::usage(format!("invalid {what} `{text}' specified"))
}

#[cfg(test)]
mod tests {
    use crate::resolver::FixedNames;
    use crate::values::*;

    #[test]
    fn numbers_are_parsed_as_strtol_parses_them_and_nothing_may_follow() {
        for (text, value) in [(" 5", 5), ("+5", 5), ("05", 5), ("0", 0), ("-0", 0), ("\t7", 7)] {
            assert_eq!(number(text, 0..=10), Some(value), "{text:?}");
        }
        for text in ["", "-", "+", "5 ", "5x", "0x5", "-1", "11", "99999999999999999999", "1.5", "+-1"] {
            assert_eq!(number(text, 0..=10), None, "{text:?}");
        }
    }

    #[test]
    fn addresses_are_parsed_as_inet_aton_parses_them() {
        for (text, address) in [
            ("192.0.2.1", [192, 0, 2, 1]),
            ("192.0.513", [192, 0, 2, 1]),
            ("0xc0000201", [192, 0, 2, 1]),
            ("012.1.0.100", [10, 1, 0, 100]),
            ("24", [0, 0, 0, 24]),
            ("192.0.2.1 rest", [192, 0, 2, 1]),
        ] {
            assert_eq!(inet_aton(text), Some(address.into()), "{text}");
        }
        for text in ["", "1.2.3.4.5", "1.2.3.256", "256.1.1.1", "1.2.65536", "1..2", "08", "+1", " 1", "0x"] {
            assert_eq!(inet_aton(text), None, "{text}");
        }
    }

    #[test]
    fn endpoints_have_ports_or_service_names_and_the_port_of_a_bracketed_ipv4_address_is_ignored() {
        let names =
            FixedNames::default().service("http", 80, Protocol::TCP).host("rs.example", [192, 0, 2, 1]);
        let read = |text, protocol| endpoint(text, protocol, &names);
        let v4 = |port| Some(Given { addr: [192, 0, 2, 1].into(), port });
        let v6 = |port| Some(Given { addr: "2001:db8::1".parse().unwrap(), port });
        assert_eq!(read("192.0.2.1", None), v4(None));
        assert_eq!(read("192.0.2.1: 80", None), v4(Some(80)));
        assert_eq!(read("rs.example:http", Some(Protocol::TCP)), v4(Some(80)));
        assert_eq!(read("rs.example:http", Some(Protocol::UDP)), None);
        assert_eq!(read("rs.example:http", None), None);
        assert_eq!(read("[2001:db8::1]:80", None), v6(Some(80)));
        assert_eq!(read("2001:db8::1", None), v6(None));
        assert_eq!(read("[192.0.2.1]:80", None), v4(None));
        for text in
            ["80", "", "192.0.2.1:", "192.0.2.1:65536", "[2001:db8::1]", "[2001:db8::1]80", "[2001:db8::1"]
        {
            assert_eq!(read(text, Some(Protocol::TCP)), None, "{text}");
        }
    }
}
