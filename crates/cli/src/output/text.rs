//! Text forms shared by subcommands: a label with its text, a number with its noun, a duration, JSON.

use std::io;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;

/// A label and a text, wrapped to the width of a terminal.
pub(crate) fn line(label: &str, text: &str) -> String {
    let mut lines = vec![format!("{label:<LABEL$}")];
    let mut width = LABEL;
    for word in text.split(' ') {
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

/// A number with its noun.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Prints a document as JSON, or as the text that `screen` makes of it.
pub(crate) fn print<T: Serialize>(
    document: &T,
    json: bool,
    screen: impl FnOnce(&T) -> String,
    out: &mut dyn Write,
) -> io::Result<()> {
    match json {
        true => print_json(document, out),
        false => out.write_all(screen(document).as_bytes()),
    }
}

/// Prints the document of `--json`, indented, with a newline at the end.
pub(crate) fn print_json(document: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", serde_json::to_string_pretty(document)?)
}

/// A duration in whole seconds: `90`, `60s`, `5m`, `1h`.
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

/// Columns of the label.
const LABEL: usize = 10;
const WIDTH: usize = 80;

/// The longest time that a subcommand waits.
const MONTH_SECONDS: u32 = 31 * 24 * 3600;

#[cfg(test)]
mod tests {
    use crate::output::text::*;

    #[test]
    fn a_word_longer_than_a_line_has_a_line_of_its_own_and_is_not_cut() {
        let word = "x".repeat(90);
        let text = line("warning", &format!("{word} and {word}"));
        assert_eq!(text, format!("warning    {word}\n{0:11}and\n{0:11}{word}\n", ""));
    }

    #[test]
    fn times_have_a_unit_or_are_in_seconds_and_zero_is_refused() {
        for (text, seconds) in [("90", 90), ("60s", 60), ("5m", 300), ("1h", 3600), ("744h", 2_678_400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "0", "0m", "5d", "-1", "1.5m", "745h", "9999999999"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
