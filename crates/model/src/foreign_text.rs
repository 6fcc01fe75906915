//! Text that neither xvs nor the operator of this machine chose: it comes from clients, servers and other directors.
//!
//! On a terminal such text could move the cursor, hide lines or begin new ones, and in a log it could forge a line. So
//! it is always stored in this type, which prints control characters as escapes. In JSON it is the text itself.

use std::fmt::{self, Debug, Display};

use serde::{Deserialize, Serialize};

/// A text of another machine or program. Its `Display` is safe on a terminal and in a log; all else is as with a
/// [`String`].
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(inline))]
#[serde(transparent)]
pub struct ForeignText(String);

impl ForeignText {
    /// The text as it came, to compare it or to pass it on to a program.
    pub fn raw(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for ForeignText {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Display for ForeignText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&escape_control(&self.0))
    }
}

impl Debug for ForeignText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(&self.0, f)
    }
}

/// The text with its control characters as escapes, and with those that change the direction of writing or end a line,
/// so that it stays on one line of a terminal or a log, in the order in which it is.
pub fn escape_control(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            // Unicode's bidirectional formatting characters (UAX #9 §2), and the line and paragraph separators.
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                visible.extend(char.escape_default());
            }
            char if char.is_control() => visible.extend(char.escape_default()),
            char => visible.push(char),
        }
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_foreign_text_are_printed_as_escapes_and_others_as_they_are() {
        for (text, printed) in [
            ("a84b4c76e66710@pc33.atlanta.com", "a84b4c76e66710@pc33.atlanta.com"),
            ("größer \\ \"1\"", "größer \\ \"1\""),
            ("\x1b[2J\x1b[1;1H", "\\u{1b}[2J\\u{1b}[1;1H"),
            ("554 no\r\n\x0b\tWARN", "554 no\\r\\n\\u{b}\\tWARN"),
            // CSI as one C1 character, DEL, a line separator, and a right-to-left override.
            ("\u{9b}2J \x7f \u{2028} \u{202e}", "\\u{9b}2J \\u{7f} \\u{2028} \\u{202e}"),
        ] {
            let foreign = ForeignText::from(text);
            assert_eq!((foreign.to_string().as_str(), foreign.raw()), (printed, text));
            assert_eq!(serde_json::to_value(&foreign).unwrap(), serde_json::Value::from(text));
        }
        assert_eq!(
            format!("{:<6}|{:>6}", ForeignText::from("a\n"), ForeignText::from("b")),
            "a\\n   |     b"
        );
    }
}
