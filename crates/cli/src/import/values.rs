//! The values in ldirectord.cf: hosts with ports, arguments, quoted strings, forwarding methods.
//!
//! Pure. Source: the manual ldirectord(8) 4.12.

use xvs_keepalived::globals::is_mail_address;

/// `HOST:PORT` or `HOST`; an IPv6 address is in brackets.
pub(super) struct HostAndPort<'a> {
    pub(super) host: &'a str,
    pub(super) port: Option<&'a str>,
}

impl<'a> HostAndPort<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        if let Some((host, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or(rest)) };
            return Self { host, port };
        }
        match text.split_once(':') {
            Some((host, port)) => Self { host, port: Some(port) },
            None => Self { host: text, port: None },
        }
    }
}

/// An argument of a line `real = …`.
pub(super) struct Word {
    pub(super) text: String,
    pub(super) is_quoted: bool,
}

/// The arguments in a value, separated by blanks and commas. A string in double quotes is one argument; `\"` in it is a
/// quote.
pub(super) fn words(value: &str) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = value.trim_start_matches(SEPARATORS);
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            None => {
                let (text, after) = rest.split_at(rest.find([' ', '\t', ',', '"']).unwrap_or(rest.len()));
                (Word { text: text.to_owned(), is_quoted: false }, after)
            }
            Some(quoted) => {
                let end = end_of_quoted(quoted).ok_or("a quoted string does not end; add a `\"`")?;
                (Word { text: quoted[..end].replace("\\\"", "\""), is_quoted: true }, &quoted[end + 1..])
            }
        };
        words.push(word);
        rest = after.trim_start_matches(SEPARATORS);
    }
    Ok(words)
}

/// The position of the first quote that has no backslash before it.
fn end_of_quoted(text: &str) -> Option<usize> {
    text.match_indices('"').map(|(at, _)| at).find(|at| !text[..*at].ends_with('\\'))
}

/// A value without its double quotes.
pub(super) fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) => inner.replace("\\\"", "\""),
        None => value.to_owned(),
    }
}

/// A forwarding method in keepalived's terms.
pub(super) fn method(word: &str) -> Result<&'static str, String> {
    match word {
        "gate" => Ok("DR"),
        "masq" => Ok("NAT"),
        "ipip" => Ok("TUN"),
        _ => Err(format!("`{word}` is no forwarding method; write gate, masq or ipip")),
    }
}

/// A mail address that needs no quotes.
pub(super) fn mail_address(text: &str) -> Result<&str, String> {
    let needs_none = text.chars().all(|char| char.is_ascii_alphanumeric() || "._-+@".contains(char));
    match needs_none && is_mail_address(text) {
        true => Ok(text),
        false => Err(format!("`{text}` is not a mail address, such as ops@example.org; correct it")),
    }
}

/// The characters between arguments.
const SEPARATORS: [char; 3] = [' ', '\t', ','];
