//! Text on a screen: labelled lines, counts, durations.

use std::time::Duration;

use serde_json::Value;

/// A time as people write it, in whole seconds: `90`, `60s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let seconds = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    let whole = number.parse().ok().and_then(|number: u32| number.checked_mul(seconds));
    let whole = whole.filter(|seconds| (1..=MONTH_SECONDS).contains(seconds));
    whole
        .map(|seconds| Duration::from_secs(seconds.into()))
        .ok_or("a time is like 60s, 5m or 1h, and at most 31 days")
}

/// As long as anybody waits.
pub(crate) const MONTH_SECONDS: u32 = 31 * 24 * 3600;

/// A line as long as a terminal is wide, and as many more as the rest needs, below it.
pub(crate) fn line(label: &str, told: &str) -> String {
    let mut lines = vec![format!("{label:<LABEL$}")];
    let mut width = LABEL;
    for word in told.split(' ') {
        let more = 1 + word.chars().count();
        if width > LABEL && width + more > WIDTH {
            lines.push(" ".repeat(LABEL));
            width = LABEL;
        }
        let line = lines.last_mut().expect("there is a first one");
        *line += " ";
        *line += word;
        width += more;
    }
    lines.join("\n") + "\n"
}

/// Columns of what stands before each line.
pub(crate) const LABEL: usize = 10;

pub(crate) const WIDTH: usize = 80;

pub(crate) fn counted(number: &Value, one: &str, many: &str) -> String {
    format!("{number} {}", if *number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use crate::text::*;

    #[test]
    fn times_have_a_unit_or_are_seconds_and_are_never_nothing() {
        for (text, seconds) in [("90", 90), ("60s", 60), ("5m", 300), ("1h", 3600), ("744h", 2_678_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "0", "0m", "5d", "-1", "1.5m", "745h", "9999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
