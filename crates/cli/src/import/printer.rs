//! Printer for keepalived.conf: lines, blocks, comments for lines that are left out, quoted values.
//!
//! Pure. A value that cannot be quoted is refused, so that the printed file means what it says. Source: the lexer of
//! `xvs_keepalived`.

use std::fmt::Display;

use xvs_model::foreign_text::escape_control;

/// A line of the imported file that is left out, wholly or in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The number of the line, from 1.
    pub(super) line: usize,
    /// The fault and the next step.
    pub(super) why: String,
}

impl LeftOut {
    pub(super) fn new(line: usize, why: impl Into<String>) -> Self {
        Self { line, why: why.into() }
    }
}

/// The text printed so far, and the lines that it leaves out.
#[derive(Debug, Clone)]
pub(super) struct Page {
    /// The name of the imported file, for comments.
    name: String,
    pub(super) text: String,
    /// The number of open blocks.
    depth: usize,
    pub(super) left_out: Vec<LeftOut>,
}

/// The number of characters of a comment; keepalived reads at most 1,023 bytes of a line.
const COMMENT_MAX: usize = 200;
/// The number of characters of a file's name in a comment.
const NAME_MAX: usize = 40;
/// The number of bytes of a quoted value.
const VALUE_MAX: usize = 900;

impl Page {
    pub(super) fn new(name: &str) -> Self {
        let name = escape_control(name).chars().take(NAME_MAX).collect();
        Self { name, text: String::new(), depth: 0, left_out: Vec::new() }
    }

    pub(super) fn line(&mut self, text: impl Display) {
        self.text += &format!("{:indent$}{text}\n", "", indent = 4 * self.depth);
    }

    pub(super) fn open(&mut self, head: impl Display) {
        self.line(format!("{head} {{"));
        self.depth += 1;
    }

    pub(super) fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }

    pub(super) fn comment(&mut self, text: &str) {
        let text: String = escape_control(text).chars().take(COMMENT_MAX).collect();
        // With one at its end, keepalived would read the comment as a line that goes on.
        self.line(format!("# {}", text.trim_end_matches('\\')));
    }

    /// Names a line that is left out, in a comment here; once for each reason.
    pub(super) fn leave_out(&mut self, line: usize, why: impl Into<String>) {
        let left_out = LeftOut::new(line, why);
        if !self.left_out.contains(&left_out) {
            self.comment(&format!("{}:{line}: {}", self.name, left_out.why));
            self.left_out.push(left_out);
        }
    }

    /// The value of a result; an error is named as the reason why its line is left out.
    pub(super) fn accept<T>(&mut self, line: usize, read: Result<T, impl Into<String>>) -> Option<T> {
        read.map_err(|why| self.leave_out(line, why)).ok()
    }

    /// Removes all text that was printed since the page was `before`, except for lines that are left out.
    pub(super) fn return_to(&mut self, before: Self) {
        for LeftOut { line, why } in std::mem::replace(self, before).left_out {
            self.leave_out(line, why);
        }
    }
}

/// A path in quotes. Characters that end a quoted string or start a parameter are percent-encoded.
pub(super) fn quoted_path(path: &str) -> Result<String, String> {
    quoted(&path.replace('"', "%22").replace('\\', "%5C").replace('$', "%24"))
}

/// A regular expression in quotes. keepalived resolves escapes in it first.
pub(super) fn quoted_pattern(pattern: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut chars = pattern.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\\' => text += r"\\",
            '"' => text += r"\x22",
            // It would start a parameter.
            '$' if chars.peek().is_some_and(|next| is_name(*next)) => text += r"\x24",
            _ => text.push(char),
        }
    }
    quoted(&text)
}

/// A command in quotes, which keepalived splits into arguments as a shell does.
pub(super) fn quoted_command(command: &str) -> Result<String, String> {
    if command.contains(['"', '\'', '\\', '$']) {
        return Err(
            "keepalived.conf cannot carry its quotes, backslashes and dollar signs; put the command into a \
                    script without arguments"
                .to_owned(),
        );
    }
    quoted(command)
}

/// A host name or address that needs no quotes.
pub(super) fn host(text: &str) -> Result<&str, String> {
    match !text.is_empty() && text.len() <= VALUE_MAX && text.chars().all(is_of_host) {
        true => Ok(text),
        false => Err(format!("`{text}` is not a host name; correct it")),
    }
}

fn is_of_host(char: char) -> bool {
    char.is_ascii_alphanumeric() || ".-_:[]".contains(char)
}

fn is_name(char: char) -> bool {
    char.is_ascii_alphabetic() || char == '_' || char == '{'
}

fn quoted(text: &str) -> Result<String, String> {
    if text.chars().any(char::is_control) {
        return Err("it has a control character; remove it".to_owned());
    }
    match text.len() > VALUE_MAX {
        true => Err(format!("it is longer than {VALUE_MAX} bytes; shorten it")),
        false => Ok(format!("\"{text}\"")),
    }
}
