//! Reserves FULLNAT's local ports, so that the kernel does not use them (`ip_local_reserved_ports`).
//!
//! The kernel does not choose a reserved port for a connection of this machine; a program can still bind to one by its
//! number (kernel `Documentation/networking/ip-sysctl.rst`). Ports are reserved when FULLNAT's local addresses change,
//! and released when the daemon ends. A killed daemon leaves its reservation; the next daemon keeps it like the
//! operator's. A reservation that leaves the kernel too few ports is refused with an error message.

use std::fs;
use std::io;

use rustix::fd::BorrowedFd;
use serde::{Deserialize, Serialize};
use xvs_helper::task::{Answer, Task};

/// A reservation of ports; dropping it restores the previous one.
#[derive(Debug, Default)]
pub struct ReservedPorts {
    /// The kernel's ranges before the first reservation; `None` until then.
    before: Option<Vec<(u16, u16)>>,
    ports: Vec<(u16, u16)>,
}

impl ReservedPorts {
    /// Reserves these ranges of ports (first, last), replacing the ranges of the last call.
    ///
    /// # Errors
    ///
    /// A message for the operator; the reservation has not changed.
    pub fn set(&mut self, mut ports: Vec<(u16, u16)>) -> io::Result<()> {
        ports.sort_unstable();
        if ports == self.ports {
            return Ok(());
        }
        let before = match &self.before {
            Some(before) => before.clone(),
            None => ranges(&fs::read_to_string(RESERVED).map_err(failed)?),
        };
        let own = own_ports().map_err(|error| io::Error::other(format!("{OWN}: {error}")))?;
        let all = [&*before, &*ports].concat();
        if free(own, &all) < KERNEL_KEEPS.min(free(own, &before)) {
            return Err(io::Error::other(format!(
                "the local ports of FULLNAT are not reserved: the kernel would have fewer than {KERNEL_KEEPS} of its \
                 own ports ({}-{}); choose others by `xvs laddr add ADDRESS --ports LOW-HIGH`",
                own.0, own.1
            )));
        }
        ReservePorts(all).run(&[]).map_err(failed)?;
        self.before = Some(before);
        self.ports = ports;
        Ok(())
    }
}

fn failed(error: io::Error) -> io::Error {
    io::Error::other(format!("local ports cannot be reserved: {RESERVED}: {error}"))
}

impl Drop for ReservedPorts {
    fn drop(&mut self) {
        if let Some(before) = self.before.take().filter(|_| !self.ports.is_empty())
            && let Err(error) = ReservePorts(before).run(&[])
        {
            tracing::warn!("local ports stay reserved: {RESERVED}: {error}");
        }
    }
}

/// Sets these ranges (first, last) as the only reserved ones.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReservePorts(Vec<(u16, u16)>);

impl Task for ReservePorts {
    const NAME: &'static str = "reserve-ports";
    type Done = ();

    fn carry_out(&self, _: &[BorrowedFd<'_>]) -> io::Result<Answer<()>> {
        // An attacker may control the requester: the kernel keeps enough ports whatever the request.
        let own = own_ports()?;
        let now = ranges(&fs::read_to_string(RESERVED)?);
        if free(own, &self.0) < KERNEL_KEEPS.min(free(own, &now)) {
            return Err(io::Error::other(format!("the kernel would have fewer than {KERNEL_KEEPS} ports")));
        }
        let ranges: Vec<_> = self.0.iter().map(|(first, last)| format!("{first}-{last}")).collect();
        // An empty line reserves nothing.
        fs::write(RESERVED, ranges.join(",") + "\n")?;
        Ok(((), Vec::new()))
    }
}

/// The first and the last port of the kernel's own range.
fn own_ports() -> io::Result<(u16, u16)> {
    let text = fs::read_to_string(OWN)?;
    pair(&text, char::is_whitespace).ok_or_else(|| io::Error::other(format!("{text:?} instead of two ports")))
}

/// The number of ports from `own.0` to `own.1` that are in none of these ranges.
fn free(own: (u16, u16), reserved: &[(u16, u16)]) -> usize {
    (own.0..=own.1)
        .filter(|port| !reserved.iter().any(|(first, last)| (first..=last).contains(&port)))
        .count()
}

/// Parses a list of ports and ranges in the kernel's format, `80,8000-8010`.
pub fn ranges(text: &str) -> Vec<(u16, u16)> {
    text.trim()
        .split(',')
        .filter_map(|range| pair(range, |c| c == '-').or_else(|| range.parse().ok().map(|port| (port, port))))
        .collect()
}

/// Parses two ports with a separator between them.
pub fn pair(text: &str, between: impl Fn(char) -> bool) -> Option<(u16, u16)> {
    let (first, last) = text.trim().split_once(between)?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const OWN: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Minimum number of ports that remain for connections of this machine.
const KERNEL_KEEPS: usize = 1024;

#[cfg(test)]
mod tests {
    use crate::reserved_ports::*;

    #[test]
    fn the_kernels_ports_and_ranges_are_parsed() {
        assert_eq!(ranges("80,8000-8010,65535\n"), [(80, 80), (8000, 8010), (65535, 65535)]);
        assert_eq!(ranges("\n"), []);
        assert_eq!(pair("32768\t60999\n", char::is_whitespace), Some((32768, 60999)));
    }

    #[test]
    fn a_request_that_takes_the_kernels_last_ports_is_refused_whoever_sends_it() {
        let refused = ReservePorts(vec![(1, u16::MAX)]).carry_out(&[]).unwrap_err().to_string();
        assert!(refused.contains("fewer than 1024 ports"), "{refused}");
    }

    #[test]
    fn ports_that_several_ranges_reserve_count_once() {
        assert_eq!(free((100, 199), &[(150, 300), (1, 109), (105, 109)]), 40);
        assert_eq!(free((1, 65535), &[]), 65535);
    }
}
