//! FTP commands and replies that name the endpoint of a data connection.
//!
//! Runs for each segment with data on a control connection. A line counts only if it begins at the start of the segment
//! or after another line in the segment; a line split across segments is ignored. Never reads beyond the given bytes,
//! whatever the input. Cost: one pass over the segment.
//!
//! Source: RFC 959 §4.1.2 and §5.3 (`PORT`, `PASV`), RFC 1123 §4.1.2.6 (the numbers in reply 227), RFC 2428 (`EPRT`,
//! `EPSV`).
//!
//! ```
//! use xvs_proto::Endpoint;
//! use xvs_proto::ftp::{Command, Reply, commands, passive_reply};
//!
//! assert!(commands(b"TYPE I\r\nPASV\r\n").eq([Command::Passive]));
//! let reply = passive_reply(b"227 Entering Passive Mode (192,0,2,1,195,80)\r\n");
//! let Some(Reply::Passive(endpoint, address)) = reply else { panic!("no passive reply") };
//! assert_eq!(endpoint, Endpoint::new([192, 0, 2, 1], 50000));
//! assert_eq!(address, 27..36, "the position of 192,0,2,1");
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::str::FromStr;

use crate::Endpoint;

/// The port of control connections.
pub const CONTROL_PORT: u16 = 21;
/// The port from which servers open active data connections.
pub const DATA_PORT: u16 = 20;
/// The lowest port of passive data connections (RFC 2577 §3).
pub const FIRST_UNPRIVILEGED: u16 = 1024;

/// A client's command about data connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `PORT` or `EPRT`: asks the server to connect to this endpoint. `None` if the argument is not an endpoint.
    Active(Option<Endpoint>),
    /// `PASV`: asks the server for an IPv4 endpoint, in reply 227.
    Passive,
    /// `EPSV`: asks the server for a port, in reply 229.
    ExtendedPassive,
}

/// A server's reply to a command for a passive data connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// 227: the endpoint, and the position of its address in the segment: four numbers separated by commas.
    Passive(Endpoint, Range<usize>),
    /// 229: the port; the address is that of the control connection.
    ExtendedPassive(u16),
}

/// The commands in a segment that concern data connections, in order.
pub fn commands(data: &[u8]) -> impl Iterator<Item = Command> {
    lines(data).filter_map(|line| {
        let (word, argument) = data[line].split_first_chunk::<4>()?;
        match (&word.map(|byte| byte.to_ascii_uppercase()), argument) {
            (b"PASV", [] | [b' ', ..]) => Some(Command::Passive),
            (b"EPSV", [] | [b' ', ..]) => Some(Command::ExtendedPassive),
            (b"PORT", [b' ', argument @ ..]) => Some(Command::Active(port(argument.trim_ascii()))),
            (b"EPRT", [b' ', argument @ ..]) => Some(Command::Active(eprt(argument.trim_ascii()))),
            _ => None,
        }
    })
}

/// The first reply in a segment that names the endpoint of a passive data connection. The line may be cut off after the
/// endpoint.
pub fn passive_reply(data: &[u8]) -> Option<Reply> {
    let mut end = 0;
    data.split_inclusive(|byte| *byte == b'\n').find_map(|line| {
        let start = end;
        end += line.len();
        let (code, text) = line.split_at_checked(4)?;
        match code {
            b"227 " => {
                let first = text.iter().position(u8::is_ascii_digit)?;
                let (endpoint, address_len, rest) = six_numbers(&text[first..])?;
                let start = start + code.len() + first;
                (!rest.is_empty()).then_some(Reply::Passive(endpoint, start..start + address_len))
            }
            b"229 " => {
                let open = text.iter().position(|byte| *byte == b'(')?;
                let (delimiter, text) = text[open + 1..].split_first()?;
                let (port, rest) = number::<u16>(text.strip_prefix(&[*delimiter, *delimiter])?, 5)?;
                rest.starts_with(&[*delimiter, b')']).then_some(Reply::ExtendedPassive(port))
            }
            _ => None,
        }
    })
}

/// Writes an IPv4 address as reply 227 contains it. Returns its length in `text`.
pub fn write_address(addr: Ipv4Addr, text: &mut [u8; ADDRESS_MAX]) -> usize {
    let mut len = 0;
    for (index, octet) in addr.octets().into_iter().enumerate() {
        if index > 0 {
            text[len] = b',';
            len += 1;
        }
        for (unit, digit) in [(100, octet / 100), (10, octet / 10 % 10), (1, octet % 10)] {
            if octet >= unit || unit == 1 {
                text[len] = b'0' + digit;
                len += 1;
            }
        }
    }
    len
}

/// Length of the longest address in that format, in bytes.
pub const ADDRESS_MAX: usize = "255,255,255,255".len();

/// The positions of the complete lines in a segment, without their line endings.
fn lines(data: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let len = data[start..].iter().position(|byte| *byte == b'\n')?;
        let line = start..start + len;
        start += len + 1;
        Some(line.start..line.end - usize::from(data[line].ends_with(b"\r")))
    })
}

/// The argument of `PORT`.
fn port(argument: &[u8]) -> Option<Endpoint> {
    let (endpoint, _, rest) = six_numbers(argument)?;
    rest.is_empty().then_some(endpoint)
}

/// The argument of `EPRT`: family, address and port between delimiters.
fn eprt(argument: &[u8]) -> Option<Endpoint> {
    let (delimiter, fields) = argument.split_first()?;
    let mut fields = fields.split(|byte| byte == delimiter).map(|field| std::str::from_utf8(field).ok());
    let family = fields.next()??;
    let addr: IpAddr = fields.next()??.parse().ok()?;
    let port = fields.next()??.parse().ok()?;
    let is_whole = fields.next().flatten() == Some("") && fields.next().flatten().is_none();
    let is_family = family == if addr.is_ipv4() { "1" } else { "2" };
    (is_whole && is_family).then_some(Endpoint { addr, port })
}

/// The endpoint at the start of `text`: four numbers for an IPv4 address and two for a port, separated by commas. Also
/// returns the length of the address and the rest of the text.
fn six_numbers(text: &[u8]) -> Option<(Endpoint, usize, &[u8])> {
    let mut numbers = [0; 6];
    let mut rest = text;
    let mut address_len = 0;
    for (index, value) in numbers.iter_mut().enumerate() {
        if index > 0 {
            rest = rest.strip_prefix(b",")?;
        }
        (*value, rest) = number::<u8>(rest, 3)?;
        if index == 3 {
            address_len = text.len() - rest.len();
        }
    }
    let [a, b, c, d, high, low] = numbers;
    Some((Endpoint::new([a, b, c, d], u16::from_be_bytes([high, low])), address_len, rest))
}

/// The decimal number of at most `digits` digits at the start of `text`, and the rest of the text.
fn number<T: FromStr>(text: &[u8], digits: usize) -> Option<(T, &[u8])> {
    let len = text.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(len);
    let value = std::str::from_utf8(number).ok()?.parse().ok()?;
    (len <= digits).then_some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(data: &str) -> Vec<Command> {
        commands(data.as_bytes()).collect()
    }

    #[test]
    fn port_and_eprt_name_the_clients_endpoint_as_in_the_examples_of_the_rfcs() {
        let v4 = |port| Command::Active(Some(Endpoint::new([132, 235, 1, 2], port)));
        assert_eq!(all("PORT 132,235,1,2,24,131\r\n"), [v4(6275)]);
        assert_eq!(all("EPRT |1|132.235.1.2|6275|\r\n"), [v4(6275)]);
        let v6 = "1080::8:800:200c:417a".parse().unwrap();
        assert_eq!(
            all("EPRT |2|1080::8:800:200C:417A|5282|\r\n"),
            [Command::Active(Some(Endpoint { addr: v6, port: 5282 }))]
        );
        assert_eq!(
            all("port 132,235,1,2,24,131 \n"),
            [v4(6275)],
            "case, blanks and a missing CR do not matter"
        );
    }

    #[test]
    fn the_commands_of_one_segment_are_found_in_order_and_others_are_left_out() {
        assert_eq!(
            all("USER a\r\nPASV\r\nRETR PORT 1,2,3,4,5,6\r\nEPSV\r\nepsv 2\r\nEPSV ALL\r\nPASVX\r\nPAS\r\n"),
            [Command::Passive, Command::ExtendedPassive, Command::ExtendedPassive, Command::ExtendedPassive]
        );
    }

    #[test]
    fn an_argument_that_is_no_endpoint_is_none() {
        for argument in [
            "1,2,3,4,5",
            "1,2,3,4,5,",
            "1,2,3,4,5,256",
            "1,2,3,4,5,6,7",
            "1,2,3,4,5,6x",
            "1.2.3.4,5,6",
            "",
            ",,,,,",
            "1,2,3,4,5,-6",
            "0001,2,3,4,5,6",
            "1,2,3,4,5,99999999999999999999",
        ] {
            assert_eq!(all(&format!("PORT {argument}\r\n")), [Command::Active(None)], "{argument}");
        }
        for argument in [
            "|1|1.2.3.4|5",
            "|2|1.2.3.4|5|",
            "|1|::1|5|",
            "|1|1.2.3.4|65536|",
            "|1|1.2.3.4|5|6|",
            "",
            "|",
            "||||",
            "|3|1.2.3.4|5|",
            "|1|1.2.3.4|5|x",
        ] {
            assert_eq!(all(&format!("EPRT {argument}\r\n")), [Command::Active(None)], "{argument}");
        }
        assert_eq!(all("PORT\r\n"), []);
    }

    #[test]
    fn what_may_go_on_in_the_next_segment_is_not_read() {
        for data in ["PASV", "PORT 1,2,3,4,5,6", "PASV\r"] {
            assert_eq!(all(data), [], "{data:?}");
        }
        for data in ["227 so (1,2,3,4,5,6", "227 so (1,2,3,4,5", "229 so (|||5", "229 so (|||5|", "227"] {
            assert_eq!(passive_reply(data.as_bytes()), None, "{data:?}");
        }
        assert!(
            passive_reply(b"227 so (1,2,3,4,5,6)").is_some() && passive_reply(b"229 so (|||5|)").is_some()
        );
    }

    #[test]
    fn reply_227_names_an_endpoint_with_or_without_parentheses() {
        for (text, at) in [
            ("227 Entering Passive Mode (10,2,0,11,200,10).\r\n", 27),
            ("227 Entering Passive Mode 10,2,0,11,200,10\r\n", 26),
            ("227 =10,2,0,11,200,10\n", 5),
            ("150 first\r\n227 (10,2,0,11,200,10)\r\n", 16),
        ] {
            let Some(Reply::Passive(endpoint, place)) = passive_reply(text.as_bytes()) else {
                panic!("{text:?}")
            };
            assert_eq!(endpoint, Endpoint::new([10, 2, 0, 11], 51210));
            assert_eq!((place.start, &text[place]), (at, "10,2,0,11"));
        }
    }

    #[test]
    fn reply_229_names_a_port_between_delimiters() {
        let reply =
            |text: &str| passive_reply(format!("229 Entering Extended Passive Mode {text}\r\n").as_bytes());
        assert_eq!(reply("(|||6446|)"), Some(Reply::ExtendedPassive(6446)));
        assert_eq!(reply("(!!!6446!)."), Some(Reply::ExtendedPassive(6446)));
        for text in ["(|||6446)", "(||6446|)", "(|1||6446|)", "(|||65536|)", "(||||)", "|||6446|", "(", "(|"]
        {
            assert_eq!(reply(text), None, "{text}");
        }
    }

    #[test]
    fn a_reply_with_another_code_names_no_endpoint() {
        for text in [
            "228 (1,2,3,4,5,6)",
            "2277(1,2,3,4,5,6)",
            "227-(1,2,3,4,5,6)",
            "500 '227 (1,2,3,4,5,6)'",
            "227 no",
        ] {
            assert_eq!(passive_reply(format!("{text}\r\n").as_bytes()), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_address_is_written_as_it_is_read(addr: Ipv4Addr) {
            let mut text = [0; ADDRESS_MAX];
            let len = write_address(addr, &mut text);
            let expected = addr.to_string().replace('.', ",");
            proptest::prop_assert_eq!(std::str::from_utf8(&text[..len]).unwrap(), expected);
        }

        #[test]
        fn any_bytes_are_read_within_their_bounds(data in "(PORT |EPRT |PASV|EPSV|227 |229 |[(|,1-9\r\n]|.){0,60}") {
            let _ = commands(data.as_bytes()).count();
            if let Some(Reply::Passive(_, place)) = passive_reply(data.as_bytes()) {
                proptest::prop_assert!(place.end <= data.len());
            }
        }
    }
}
