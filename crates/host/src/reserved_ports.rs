//! Ports that the kernel is kept off while the director takes them (`ip_local_reserved_ports`).
//!
//! The kernel gives its own connections no port that is reserved; what a program asks for by number it still gets.
//! Set when FULLNAT's local addresses change, and put back when the daemon ends; one that is killed leaves its
//! reservation behind, which the next one takes for the operator's. What would leave the kernel too few ports of its
//! own is not reserved, and told.

use std::fs;
use std::io;

/// Reserves ports for as long as it lives.
#[derive(Debug, Default)]
pub struct ReservedPorts {
    /// What was reserved before, once it was asked for.
    before: Option<String>,
    ours: Vec<(u16, u16)>,
}

impl ReservedPorts {
    /// Reserves these ranges of ports, first and last, and none of those before.
    ///
    /// # Errors
    /// A sentence for the operator; then they are not reserved.
    pub fn set(&mut self, mut ours: Vec<(u16, u16)>) -> Result<(), String> {
        ours.sort_unstable();
        if ours == self.ours {
            return Ok(());
        }
        let failed = |error: io::Error| format!("local ports cannot be reserved: {RESERVED}: {error}");
        let before = match &self.before {
            Some(before) => before.clone(),
            None => fs::read_to_string(RESERVED).map_err(failed)?.trim().to_owned(),
        };
        let own = fs::read_to_string(OWN).map_err(|error| format!("{OWN}: {error}"))?;
        let own = pair(&own, char::is_whitespace).ok_or_else(|| format!("{OWN} says {own:?}"))?;
        let all: Vec<_> = ranges(&before).into_iter().chain(ours.iter().copied()).collect();
        if free(own, &all) < KERNEL_KEEPS.min(free(own, &ranges(&before))) {
            return Err(format!(
                "the local ports of FULLNAT leave the kernel fewer than {KERNEL_KEEPS} of its own ({}-{}), so they are \
                 not reserved; take others by `xvs laddr add ADDRESS --ports LOW-HIGH`",
                own.0, own.1
            ));
        }
        let text = all.iter().map(|(first, last)| format!("{first}-{last}")).collect::<Vec<_>>().join(",");
        // An empty line reserves nothing.
        fs::write(RESERVED, text + "\n").map_err(failed)?;
        (self.before, self.ours) = (Some(before), ours);
        Ok(())
    }
}

impl Drop for ReservedPorts {
    fn drop(&mut self) {
        if let Some(before) = self.before.take().filter(|_| !self.ours.is_empty())
            && let Err(error) = fs::write(RESERVED, before + "\n")
        {
            tracing::warn!("local ports stay reserved: {RESERVED}: {error}");
        }
    }
}

/// How many of the ports from `own.0` to `own.1` are in none of these ranges.
fn free(own: (u16, u16), reserved: &[(u16, u16)]) -> usize {
    (own.0..=own.1)
        .filter(|port| !reserved.iter().any(|(first, last)| (first..=last).contains(&port)))
        .count()
}

/// `80,8000-8010` as the kernel prints it.
pub fn ranges(text: &str) -> Vec<(u16, u16)> {
    let one = |range: &str| pair(range, |c| c == '-').or_else(|| range.parse().ok().map(|port| (port, port)));
    text.trim().split(',').filter_map(one).collect()
}

/// The two ports on either side of a separator.
pub fn pair(text: &str, between: impl Fn(char) -> bool) -> Option<(u16, u16)> {
    let (first, last) = text.trim().split_once(between)?;
    Some((first.parse().ok()?, last.trim().parse().ok()?))
}

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
const OWN: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// How many ports the kernel needs for connections of this machine.
const KERNEL_KEEPS: usize = 1024;

#[cfg(test)]
mod tests {
    use crate::reserved_ports::*;

    #[test]
    fn what_the_kernel_prints_is_read() {
        assert_eq!(ranges("80,8000-8010,65535\n"), [(80, 80), (8000, 8010), (65535, 65535)]);
        assert_eq!(ranges("\n"), []);
        assert_eq!(pair("32768\t60999\n", char::is_whitespace), Some((32768, 60999)));
    }

    #[test]
    fn ports_that_several_ranges_reserve_count_once() {
        assert_eq!(free((100, 199), &[(150, 300), (1, 109), (105, 109)]), 40);
        assert_eq!(free((1, 65535), &[]), 65535);
    }
}
