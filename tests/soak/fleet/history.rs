//! What was seen in a run of the suite `fleet`: observations with their times, as values and as lines of text.
//!
//! A line is `SECONDS EVENT`, as [`Event`] describes it; seconds since the start, with three decimals. The rig writes
//! the lines to a file while it runs. Not here: what may follow what (`checker.rs`).

use std::fmt;
use std::str::FromStr;

/// A director, by its number from 1.
pub(crate) type Director = u8;

/// An observation and its time, in seconds since the start.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) at: f64,
    pub(crate) event: Event,
}

/// An observation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// `begins FAULT`, `ends FAULT`: a fault, whose name has no spaces.
    Begins(String),
    Ends(String),
    /// `applies DIGEST`: an operator begins to apply rules, which their digest identifies.
    Applies(String),
    /// `written DIGEST REVISION`: they are in etcd.
    Written(String, u64),
    /// `refused DIGEST`: they are not, and the operator knows it.
    Refused(String),
    /// `serves DIRECTOR DIGEST`: its services and real servers.
    Serves(Director, String),
    /// `runs DIRECTOR REVISION WARNINGS`: the rules that it says it runs, and how many refusals and rollbacks of etcd
    /// it reports.
    Runs(Director, u64, usize),
    /// `able DIRECTOR`, `unable DIRECTOR CAUSE`: whether it can serve, known by what the rig has done to it.
    Able(Director),
    Unable(Director, String),
    /// `announces DIRECTOR`, `withdraws DIRECTOR`: the interface whose addresses its BIRD announces is up, or down.
    Announces(Director),
    Withdraws(Director),
    /// `hops DIRECTOR...`: those that the router sends packets to.
    Hops(Vec<Director>),
    /// `path PORT DIRECTOR`: the director to which the router's hash sends the packets of a client's port.
    Path(u16, Director),
    /// `knows DIRECTOR PORT...`, `forgets DIRECTOR PORT...`: lasting connections in its table, since the last look.
    Knows(Director, Vec<u16>),
    Forgets(Director, Vec<u16>),
    /// `lost PORT PROGRESS`: a lasting connection, and the time of its last progress.
    Lost(u16, f64),
    /// `unaccounted DIRECTOR FRAMES`: received frames that its counters do not explain.
    Unaccounted(Director, i64),
    /// `stalled SECONDS`: the machine is busy, and the rig waited for so long.
    Stalled(f64),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ", self.at)?;
        match &self.event {
            Event::Begins(fault) => write!(f, "begins {fault}"),
            Event::Ends(fault) => write!(f, "ends {fault}"),
            Event::Applies(rules) => write!(f, "applies {rules}"),
            Event::Written(rules, revision) => write!(f, "written {rules} {revision}"),
            Event::Refused(rules) => write!(f, "refused {rules}"),
            Event::Serves(director, rules) => write!(f, "serves {director} {rules}"),
            Event::Runs(director, revision, warnings) => write!(f, "runs {director} {revision} {warnings}"),
            Event::Able(director) => write!(f, "able {director}"),
            Event::Unable(director, cause) => write!(f, "unable {director} {cause}"),
            Event::Announces(director) => write!(f, "announces {director}"),
            Event::Withdraws(director) => write!(f, "withdraws {director}"),
            Event::Hops(directors) => write!(f, "hops{}", list(directors)),
            Event::Path(port, director) => write!(f, "path {port} {director}"),
            Event::Knows(director, ports) => write!(f, "knows {director}{}", list(ports)),
            Event::Forgets(director, ports) => write!(f, "forgets {director}{}", list(ports)),
            Event::Lost(port, progress) => write!(f, "lost {port} {progress:.3}"),
            Event::Unaccounted(director, frames) => write!(f, "unaccounted {director} {frames}"),
            Event::Stalled(seconds) => write!(f, "stalled {seconds:.3}"),
        }
    }
}

/// The items, each behind a space.
fn list(items: &[impl fmt::Display]) -> String {
    items.iter().map(|item| format!(" {item}")).collect()
}

impl FromStr for Entry {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        parsed(&mut words)
            .filter(|_| words.next().is_none())
            .ok_or_else(|| format!("no line of a history: {line}"))
    }
}

fn parsed<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Entry> {
    fn one<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<T> {
        words.next()?.parse().ok()
    }
    fn rest<'a, T: FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<Vec<T>> {
        words.map(|word| word.parse().ok()).collect()
    }
    let at = one(words)?;
    let event = match words.next()? {
        "begins" => Event::Begins(one(words)?),
        "ends" => Event::Ends(one(words)?),
        "applies" => Event::Applies(one(words)?),
        "written" => Event::Written(one(words)?, one(words)?),
        "refused" => Event::Refused(one(words)?),
        "serves" => Event::Serves(one(words)?, one(words)?),
        "runs" => Event::Runs(one(words)?, one(words)?, one(words)?),
        "able" => Event::Able(one(words)?),
        "unable" => Event::Unable(one(words)?, one(words)?),
        "announces" => Event::Announces(one(words)?),
        "withdraws" => Event::Withdraws(one(words)?),
        "hops" => Event::Hops(rest(words)?),
        "path" => Event::Path(one(words)?, one(words)?),
        "knows" => Event::Knows(one(words)?, rest(words)?),
        "forgets" => Event::Forgets(one(words)?, rest(words)?),
        "lost" => Event::Lost(one(words)?, one(words)?),
        "unaccounted" => Event::Unaccounted(one(words)?, one(words)?),
        "stalled" => Event::Stalled(one(words)?),
        _ => return None,
    };
    Some(Entry { at, event })
}

/// The entries of lines.
///
/// # Errors
/// The first wrong line.
pub(crate) fn read(text: &str) -> Result<Vec<Entry>, String> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_reads_as_the_entry_that_it_was_written_for() {
        let lines = "0.000 begins kill-2\n1.000 ends kill-2\n1.500 applies a1\n2.000 written a1 7\n2.000 refused b2\n\
            3.000 serves 1 a1\n3.000 runs 1 7 0\n3.000 able 2\n3.000 unable 2 killed\n3.000 announces 2\n\
            3.000 withdraws 2\n3.000 hops 1 3\n3.000 hops\n3.000 path 40000 2\n3.000 knows 2 40000 40002\n\
            3.000 forgets 2 40000\n3.000 lost 40000 1.250\n3.000 unaccounted 2 -1\n3.000 stalled 0.500\n";
        let written: String =
            read(lines).expect("a history").iter().map(|entry| format!("{entry}\n")).collect();
        assert_eq!(written, lines);
        for wrong in ["begins x", "1 begins", "1 serves x a", "1 able 1 2", "1 jumps 1", "1 hops x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
