//! The lexer for one line of keepalived.conf: comments, braces, words.
//!
//! Runs for each line of a file; pure. Source: the grammar of keepalived 2.2.7, keepalived-behaviour, section 1.

use std::iter::Peekable;
use std::str::Chars;

/// A quoted string that does not end on its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unterminated;

/// The separators of words.
pub const BLANKS: [char; 2] = [' ', '\t'];

/// The line without its comment and without surrounding blanks.
///
/// `#` and `!` start a comment, except in double quotes or after a backslash. That backslash is removed; any other
/// backslash and the character after it stay. A backslash at the end, also at the end of a comment, stays after the
/// text without blanks between them, because it continues a definition.
pub fn uncommented(line: &str) -> (String, Result<(), Unterminated>) {
    let mut kept = String::with_capacity(line.len());
    let mut quoted = false;
    let mut goes_on = false;
    let mut chars = line.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' if chars.as_str().trim_start_matches(BLANKS).is_empty() => {
                goes_on = true;
                break;
            }
            '\\' => match chars.next() {
                Some(next @ ('#' | '!')) if !quoted => kept.push(next),
                next => kept.extend(std::iter::once(char).chain(next)),
            },
            '#' | '!' if !quoted => {
                goes_on = ends_with_a_backslash(chars.as_str()) || ends_with_a_backslash(kept.trim_end());
                break;
            }
            _ => {
                quoted ^= char == '"';
                kept.push(char);
            }
        }
    }
    let ended = if quoted { Err(Unterminated) } else { Ok(()) };
    let mut text = kept.trim_matches(BLANKS);
    if goes_on {
        if ends_with_a_backslash(text) {
            text = text[..text.len() - 1].trim_end_matches(BLANKS);
        }
        return (format!("{text}\\"), ended);
    }
    (text.to_owned(), ended)
}

/// Whether the last character is a backslash that does not form a pair with another one before it.
fn ends_with_a_backslash(text: &str) -> bool {
    (text.len() - text.trim_end_matches('\\').len()) % 2 == 1
}

/// The kind of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind {
    /// A keyword and its arguments; never empty.
    Statement(String),
    /// `{`
    Open,
    /// `}`
    Close,
}

/// Splits a line at its braces; braces in double quotes do not count.
pub fn parts(line: &str) -> Vec<TokenKind> {
    let mut parts = Vec::new();
    let mut quoted = false;
    let mut begin = 0;
    for (at, char) in line.char_indices() {
        quoted ^= char == '"';
        let brace = match char {
            '{' if !quoted => TokenKind::Open,
            '}' if !quoted => TokenKind::Close,
            _ => continue,
        };
        parts.extend([statement(&line[begin..at]), brace]);
        begin = at + 1;
    }
    parts.push(statement(&line[begin..]));
    parts.retain(|part| *part != statement(""));
    parts
}

fn statement(text: &str) -> TokenKind {
    TokenKind::Statement(text.trim_matches(BLANKS).to_owned())
}

/// The words of a text, separated by blanks. A string in double quotes is one word without its quotes, wherever it
/// starts.
///
/// ```
/// use xvs_keepalived::lexer::words;
///
/// assert_eq!(words("real_server 192.0.2.11\t8080"), ["real_server", "192.0.2.11", "8080"]);
/// assert_eq!(words("notify_up \"/bin/up now\""), ["notify_up", "/bin/up now"]);
/// ```
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start_matches(BLANKS);
    while !rest.is_empty() {
        let (word, behind) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_at(rest.find([' ', '\t', '"']).unwrap_or(rest.len())),
        };
        words.push(word.to_owned());
        rest = behind.trim_start_matches(BLANKS);
    }
    words
}

/// The words of a command or pattern, split as a shell does: both kinds of quotes, adjacent pieces form one word, and
/// backslash escapes (`\n`, `\ooo`, `\xHH`, `\cC`, …) apply everywhere.
pub fn shell_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match (char, quote) {
            (' ' | '\t', None) => words.extend(word.take()),
            ('\'' | '"', None) => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (_, Some(open)) if char == open => quote = None,
            ('\\', _) => word.get_or_insert_default().extend(escaped(&mut chars)),
            _ => word.get_or_insert_default().extend(char.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    words.extend(word);
    words.into_iter().map(|word| String::from_utf8_lossy(&word).into_owned()).collect()
}

/// The bytes of an escape sequence, given without its backslash.
fn escaped(chars: &mut Peekable<Chars<'_>>) -> Vec<u8> {
    let Some(char) = chars.next() else { return vec![b'\\'] };
    match char {
        'a' => vec![0x07],
        'b' => vec![0x08],
        'E' => vec![0x1b],
        'f' => vec![0x0c],
        'n' => vec![b'\n'],
        'r' => vec![b'\r'],
        't' => vec![b'\t'],
        'v' => vec![0x0b],
        'x' => vec![number(chars, 16, 0)],
        '0'..='7' => vec![number(chars, 8, char as u32 - '0' as u32)],
        'c' => chars.next().map_or(Vec::new(), |control| vec![control as u8 & 0x1f]),
        other => other.encode_utf8(&mut [0; 4]).bytes().collect(),
    }
}

/// The byte whose digits are those of `value` and at most two more.
fn number(chars: &mut Peekable<Chars<'_>>, radix: u32, mut value: u32) -> u8 {
    for _ in 0..2 {
        let Some(digit) = chars.peek().and_then(|char| char.to_digit(radix)) else { break };
        value = value * radix + digit;
        chars.next();
    }
    value as u8
}

#[cfg(test)]
mod tests {
    use crate::lexer::*;

    #[test]
    fn a_comment_starts_at_either_sign_outside_double_quotes() {
        for (line, kept) in [
            ("  weight 1 # one", "weight 1"),
            ("! all of it", ""),
            ("path \"/a#b!c\" ! two", "path \"/a#b!c\""),
            ("path '/a#b'", "path '/a"),
            (r"path /a\#b\!c", "path /a#b!c"),
            (r#"path "/a\#b""#, r#"path "/a\#b""#),
            (r"a \b \\ # c", r"a \b \\"),
        ] {
            assert_eq!(uncommented(line), (kept.to_owned(), Ok(())), "{line}");
        }
    }

    #[test]
    fn a_backslash_at_the_end_of_a_line_stays_behind_a_comment_too() {
        for (line, kept) in [
            (r"$X= \", r"$X=\"),
            ("weight 3 \\ \t", r"weight 3\"),
            (r"weight 3  # note \", r"weight 3\"),
            (r"weight 3#\", r"weight 3\"),
            (r"#  inhibit_on_failure \", r"\"),
            (r"weight 3 # a \\\", r"weight 3\"),
            (r"weight 3 # a \\", "weight 3"),
            ("weight 3 # a \\ ", "weight 3"),
            (r"$X= \  # continued", r"$X=\"),
        ] {
            assert_eq!(uncommented(line), (kept.to_owned(), Ok(())), "{line}");
        }
    }

    #[test]
    fn an_unterminated_string_is_reported_and_the_line_kept() {
        assert_eq!(uncommented("path \"/a # b"), ("path \"/a # b".to_owned(), Err(Unterminated)));
        assert_eq!(words("path \"/a  b"), ["path", "/a  b"]);
    }

    #[test]
    fn braces_split_a_line_except_in_double_quotes() {
        use TokenKind::{Close, Open};
        assert_eq!(
            parts("real_server 10.1.0.1 80{TCP_CHECK { } }"),
            [statement("real_server 10.1.0.1 80"), Open, statement("TCP_CHECK"), Open, Close, Close]
        );
        assert_eq!(parts("path \"/{a}\" x"), [statement("path \"/{a}\" x")]);
        assert_eq!(parts("{"), [Open]);
        assert_eq!(parts(""), []);
    }

    #[test]
    fn words_are_separated_by_blanks_and_a_quoted_string_is_one_word() {
        assert_eq!(words(" weight\t 1 "), ["weight", "1"]);
        assert_eq!(words(r#"a"b c"d"#), ["a", "b c", "d"]);
        assert_eq!(words(r#"helo_name """#), ["helo_name", ""]);
        assert_eq!(words(r"path '/a b'"), ["path", "'/a", "b'"]);
        assert_eq!(words(r"a\ b"), [r"a\", "b"]);
    }

    #[test]
    fn commands_are_split_as_by_a_shell() {
        assert_eq!(shell_words(r#"quorum_up "/x/s.sh a b" root"#), ["quorum_up", "/x/s.sh a b", "root"]);
        assert_eq!(shell_words(r#"x ab" c"d"#), ["x", "ab cd"]);
        assert_eq!(shell_words(r#"x "/bin/true 'a b'""#), ["x", "/bin/true 'a b'"]);
        assert_eq!(shell_words(r"regex ^\\d\t\101\x41\cA\q$"), ["regex", "^\\d\tAA\u{1}q$"]);
        assert_eq!(shell_words("x ''"), ["x", ""]);
        assert_eq!(shell_words("x a\\"), ["x", "a\\"]);
    }
}
