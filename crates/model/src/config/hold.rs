//! The hold: the time for which packets of services are kept from the kernel after the last worker has ended.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The length of the hold; zero if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HoldTime(Duration);

impl HoldTime {
    /// The length of the hold.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl Default for HoldTime {
    /// Longer than a restart takes, shorter than clients wait.
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

impl FromStr for HoldTime {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "0" {
            return Ok(Self(Duration::ZERO));
        }
        let hold = humantime::parse_duration(text).ok();
        hold.filter(|hold| hold.is_zero() || (SHORTEST..=LONGEST).contains(hold))
            .map(Self)
            .ok_or("a time from 100ms to 1h, such as 10s, or 0 for no hold")
    }
}

impl TryFrom<String> for HoldTime {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<HoldTime> for String {
    fn from(hold: HoldTime) -> Self {
        hold.to_string()
    }
}

impl fmt::Display for HoldTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A worker beats several times in it and sleeps between.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_has_a_unit_and_is_printed_as_it_is_typed() {
        for (text, millis) in [("10s", 10_000), ("500ms", 500), ("0s", 0), ("1h", 3_600_000), ("2s", 2000)] {
            let hold: HoldTime = text.parse().unwrap();
            assert_eq!((hold.duration(), hold.to_string()), (Duration::from_millis(millis), text.to_owned()));
        }
        assert_eq!("0".parse::<HoldTime>().unwrap().duration(), Duration::ZERO);
        for text in ["", "10", "-1s", "99ms", "61m", "10 bananas"] {
            assert!(text.parse::<HoldTime>().is_err(), "{text}");
        }
    }
}
