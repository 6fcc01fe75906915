//! Text forms shared by subcommands: a label with its text, a number with its noun, a duration.

pub(crate) use xvs_ipvsadm::text::{aligned, print, print_json, widths};

/// A label and a text, wrapped to the width of a terminal.
pub(crate) fn line(label: &str, text: &str) -> String {
    wrapped(&format!("{label:<LABEL$} "), text, LABEL + 1, WIDTH)
}

/// A text followed by words, in lines of at most `width` columns with an indent. A word that is too long gets a line to
/// itself and is not cut.
pub(crate) fn wrapped(before: &str, words: &str, indent: usize, width: usize) -> String {
    let mut text = before.to_owned();
    let mut column = text.chars().count();
    for (index, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            text.truncate(text.trim_end_matches(' ').len());
            text += &format!("\n{:indent$}", "");
            column = indent;
        } else if index > 0 {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += length;
    }
    text.truncate(text.trim_end_matches(' ').len());
    text + "\n"
}

/// A number with its noun.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// The seconds of a duration: `90`, `60s`, `5m`, `1h`.
pub(crate) fn seconds(text: &str) -> Result<u32, &'static str> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, &text[number.len()..]),
        None => (text, "s"),
    };
    let factor = match unit {
        "h" => 3600,
        "m" => 60,
        _ => 1,
    };
    number
        .parse()
        .ok()
        .and_then(|number: u32| number.checked_mul(factor))
        .filter(|seconds| (1..=MONTH_SECONDS).contains(seconds))
        .ok_or("a time is like 60s, 5m or 1h, and at most 31 days")
}

/// Columns of the label.
const LABEL: usize = 10;
/// Columns of a terminal.
pub(crate) const WIDTH: usize = 80;

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
        for (text, expected) in [("90", 90), ("60s", 60), ("5m", 300), ("1h", 3600), ("744h", 2_678_400)] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "0", "0m", "5d", "-1", "1.5m", "745h", "9999999999"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
