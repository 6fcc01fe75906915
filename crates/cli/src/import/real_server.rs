//! The real servers in ldirectord.cf: lines `real = …`, which may name a range of addresses.
//!
//! Pure, except for look-ups of names. Source: the manual ldirectord(8) 4.12.

use std::net::IpAddr;

use xvs_proto::{Endpoint, Family};

use crate::import::lines::Setting;
use crate::import::values::{HostAndPort, Word, method, words};
use crate::import::virtual_server::VirtualServer;

/// A real server.
#[derive(Clone)]
pub(super) struct RealServer {
    pub(super) line: usize,
    /// The endpoint in keepalived.conf; port 0 if there is none.
    pub(super) endpoint: Endpoint,
    /// The default port of checks, without `checkport`; 0 if there is none.
    pub(super) check_port: u16,
    /// The method in keepalived's terms.
    pub(super) method: &'static str,
    pub(super) weight: u32,
    pub(super) request: Option<String>,
    pub(super) receive: Option<String>,
    pub(super) lower_threshold: Option<u32>,
    pub(super) upper_threshold: Option<u32>,
}

impl RealServer {
    /// Reads a line `real = …`, which may name a range of addresses.
    pub(super) fn read(server: &VirtualServer<'_>, setting: &Setting) -> Result<Vec<Self>, String> {
        let wanted = if server.key.family() == Family::V6 { "real6" } else { "real" };
        if setting.key != wanted {
            return Err(format!("in this virtual server it is `{wanted}`; correct it"));
        }
        let mut words = words(&setting.value)?.into_iter();
        let target = words.next().map(|word| word.text).unwrap_or_default();
        let (first, last) = match target.split_once("->") {
            Some((first, last)) => (Some(first), HostAndPort::of(last)),
            None => (None, HostAndPort::of(&target)),
        };
        let addrs = match first {
            Some(first) => range(server.address(first)?, server.address(last.host)?)?,
            None => vec![server.address(last.host)?],
        };
        let written_port = match last.port {
            None | Some("0") => 0,
            Some(port) => server.port(port)?,
        };
        let method = method(&words.next().map(|word| word.text).unwrap_or_default())?;
        let endpoint = server.endpoint(addrs[0], written_port, method);
        let mut options = Self {
            line: setting.line,
            endpoint,
            check_port: if endpoint.port == 0 { written_port } else { endpoint.port },
            method,
            weight: 1,
            request: None,
            receive: None,
            lower_threshold: None,
            upper_threshold: None,
        };
        for (at, word) in words.enumerate() {
            options.apply(word, at)?;
        }
        if options.request.is_some() != options.receive.is_some() {
            return Err("it has a request without a text to receive; add it".to_owned());
        }
        if options.lower_threshold > options.upper_threshold {
            return Err(
                "its lower threshold needs an upper threshold that is not below it; correct one".to_owned()
            );
        }
        Ok(addrs
            .into_iter()
            .map(|addr| Self { endpoint: Endpoint { addr, ..endpoint }, ..options.clone() })
            .collect())
    }

    /// Applies an argument after the method.
    fn apply(&mut self, word: Word, at: usize) -> Result<(), String> {
        let bare = word.text.trim_start_matches('<').trim_end_matches('>');
        for (start, threshold) in [("l:", &mut self.lower_threshold), ("u:", &mut self.upper_threshold)] {
            if let Some(number) = bare.strip_prefix(start).and_then(|digits| digits.parse().ok()) {
                *threshold = Some(number);
                return Ok(());
            }
        }
        match word.text.parse().ok().filter(|weight| *weight <= i32::MAX as u32) {
            Some(weight) if at == 0 && !word.is_quoted => self.weight = weight,
            _ if word.is_quoted && self.request.is_none() => self.request = Some(word.text),
            _ if word.is_quoted && self.receive.is_none() => self.receive = Some(word.text),
            _ => {
                return Err(format!(
                    "`{}` is unexpected after the method; write a weight, \"request\", \"receive\", l:NUMBER \
                     and u:NUMBER",
                    word.text
                ));
            }
        }
        Ok(())
    }
}

/// Maximum number of addresses in a range.
const RANGE_MAX: u32 = 4096;

/// The addresses of a range.
fn range(first: IpAddr, last: IpAddr) -> Result<Vec<IpAddr>, String> {
    let (IpAddr::V4(first), IpAddr::V4(last)) = (first, last) else {
        return Err("a range has IPv4 addresses; write a line for each server".to_owned());
    };
    match u32::from(last).checked_sub(u32::from(first)) {
        None => Err("the range ends before it begins; exchange its addresses".to_owned()),
        Some(more) if more >= RANGE_MAX => {
            Err(format!("a range has at most {RANGE_MAX} addresses; split it"))
        }
        Some(_) => Ok((first.into()..=last.into()).map(|addr: u32| IpAddr::V4(addr.into())).collect()),
    }
}
