//! Lines of text that several subcommands print: a label and what it says, a number with its noun.

/// A label and a text, wrapped to the width of a terminal.
pub(super) fn line(label: &str, text: &str) -> String {
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
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Columns of the label.
const LABEL: usize = 10;
const WIDTH: usize = 80;

#[cfg(test)]
mod tests {
    use crate::text::*;

    #[test]
    fn a_word_that_is_longer_than_a_line_has_one_for_itself_and_keeps_all_its_letters() {
        let word = "x".repeat(90);
        let text = line("warning", &format!("{word} and {word}"));
        assert_eq!(text, format!("warning    {word}\n{0:11}and\n{0:11}{word}\n", ""));
    }
}
