//! The Call-ID of a SIP message.
//!
//! Runs for each datagram that begins a connection to a service with `--pe sip`. Never reads beyond the given bytes,
//! whatever the input. Cost: one pass over the message's lines up to the Call-ID header.
//!
//! Source: RFC 3261 §7.3.1 (header fields, their case and compact forms), §20.8, §25.1 (`callid`).

/// The Call-ID of a message: the value of its first Call-ID header field, 1 to [`CALL_ID_MAX`] bytes.
///
/// `None` if there is no such field, or if its value is too long, contains a character that is not allowed in a
/// Call-ID, or is not ended by a line ending: a truncated identity identifies nothing.
///
/// ```
/// use xvs_proto::sip::call_id;
///
/// let message = b"INVITE sip:bob@example.org SIP/2.0\r\ni: a84b4c76e66710@192.0.2.1\r\n\r\n";
/// assert_eq!(call_id(message), Some(&b"a84b4c76e66710@192.0.2.1"[..]));
/// assert_eq!(call_id(b"INVITE sip:bob@example.org SIP/2.0\r\ni: a84b4c"), None, "truncated");
/// ```
pub fn call_id(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message;
    // The first line is the request or status.
    while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
        rest = &rest[end + 1..];
        if let Some(value) = field(rest) {
            let id = &value[..identity_len(value)];
            let ended = matches!(value.get(id.len()), Some(b'\r' | b'\n'));
            return (ended && (1..=CALL_ID_MAX).contains(&id.len())).then_some(id);
        }
    }
    None
}

/// Whether `text` is a Call-ID of 1 to [`CALL_ID_MAX`] bytes.
pub fn is_call_id(text: &[u8]) -> bool {
    (1..=CALL_ID_MAX).contains(&text.len()) && identity_len(text) == text.len()
}

/// The value in a Call-ID line, after the colon and white space.
fn field(line: &[u8]) -> Option<&[u8]> {
    let after = NAMES.iter().find_map(|name| {
        let (start, after) = line.split_at_checked(name.len())?;
        start.eq_ignore_ascii_case(name).then_some(after)
    })?;
    unindented(after).strip_prefix(b":").map(begun)
}

/// The value without leading white space, which may include one line ending (§25.1, `SWS`).
fn begun(value: &[u8]) -> &[u8] {
    let value = unindented(value);
    [&b"\r\n"[..], b"\r", b"\n"]
        .iter()
        .find_map(|end| value.strip_prefix(*end))
        .filter(|line| unindented(line).len() < line.len())
        .map_or(value, unindented)
}

/// The number of bytes of a value that form a Call-ID: a word, or two words joined by `@`.
fn identity_len(value: &[u8]) -> usize {
    let word = word_len(value);
    match value.get(word) {
        Some(b'@') if word > 0 && word_len(&value[word + 1..]) > 0 => word + 1 + word_len(&value[word + 1..]),
        _ => word,
    }
}

fn word_len(text: &[u8]) -> usize {
    text.iter().position(|byte| !is_in_word(*byte)).unwrap_or(text.len())
}

fn is_in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~()<>:\\\"/[]?{}".contains(&byte)
}

/// A line without the blanks at its start.
fn unindented(line: &[u8]) -> &[u8] {
    let blanks = line.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &line[blanks..]
}

/// Maximum length of an accepted Call-ID in bytes, as in IPVS.
pub const CALL_ID_MAX: usize = 255;
/// The field name and its compact form, in lower case.
const NAMES: [&[u8]; 2] = [b"call-id", b"i"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_id_is_found_by_its_long_or_compact_name_in_any_case() {
        for line in
            ["Call-ID: a1@h.example", "call-id:a1@h.example", "i:\t a1@h.example", "CALL-ID  : a1@h.example"]
        {
            for end in ["\r\n", "\n", "\r"] {
                let folded = line.replace("a1@", &format!("{end} \ta1@"));
                let message = format!("INVITE sip:b SIP/2.0{end}Via: x{end} ;y{end}{folded}{end}{end}body");
                assert_eq!(call_id(message.as_bytes()), Some(&b"a1@h.example"[..]), "{message:?}");
                let message = format!("INVITE sip:b SIP/2.0{end}Via: x{end}{line}{end}{end}body");
                assert_eq!(call_id(message.as_bytes()), Some(&b"a1@h.example"[..]), "{message:?}");
            }
        }
    }

    #[test]
    fn an_incomplete_call_id_is_none() {
        let long = format!("x\r\nCall-ID: {}\r\n", "a".repeat(CALL_ID_MAX + 1));
        let ends = "x\r\nCall-ID: abc";
        let first = "Call-ID: abc\r\n";
        for message in [
            "",
            "hello",
            first,
            ends,
            &long,
            "x\r\nCall-ID: \r\n",
            "x\r\nCall-ID: a b\r\n",
            "x\r\nInfo: a\r\n",
            "x\r\nCall-ID:\r\nabc\r\n",
            "x\r\nCall-ID:\r\n \r\n abc\r\n",
            "x\r\nVia: y\r\n Call-ID: abc\r\n",
        ] {
            assert_eq!(call_id(message.as_bytes()), None, "{message:?}");
        }
        assert_eq!(call_id(long.replacen("aa", "a", 1).as_bytes()).map(<[u8]>::len), Some(CALL_ID_MAX));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_have_a_call_id_within_them_or_none(message: Vec<u8>) {
            let id = call_id(&message);
            assert!(id.is_none_or(|id| message.windows(id.len()).any(|part| part == id)));
        }
    }
}
