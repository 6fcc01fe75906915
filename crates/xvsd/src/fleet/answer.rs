//! The form of etcd's responses: only the fields that are used, and lists of limited length.
//!
//! etcd runs on another machine, possibly under another administration. An arbitrary document would take a hundred
//! times its bytes as a tree of values; therefore a field that is not used is skipped, and a list that is longer than
//! its limit refuses the response. `connection.rs` limits the number of bytes.

use std::fmt;
use std::marker::PhantomData;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// An answer to any request. Fields that it does not have are zero or empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) header: Header,
    /// For a transaction.
    pub(super) succeeded: bool,
    /// To the operations of a transaction.
    pub(super) responses: List<Response, 3>,
    /// For a range of one key.
    pub(super) kvs: List<KeyValue, 1>,
    /// For a lease.
    #[serde(rename = "ID", deserialize_with = "number")]
    pub(super) id: u64,
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: u64,
    /// In a stream.
    pub(super) result: Kept,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Header {
    #[serde(deserialize_with = "number")]
    pub(super) cluster_id: u64,
    #[serde(deserialize_with = "number")]
    pub(super) revision: u64,
}

/// A lease that was kept alive.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub(super) ttl: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Response {
    pub(super) response_range: Range,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) kvs: List<KeyValue, DIRECTORS_MAX>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    #[serde(deserialize_with = "bytes")]
    pub(super) key: Vec<u8>,
    #[serde(deserialize_with = "bytes")]
    pub(super) value: Vec<u8>,
    #[serde(deserialize_with = "number")]
    pub(super) mod_revision: u64,
    #[serde(deserialize_with = "number")]
    pub(super) lease: u64,
}

/// Maximum number of directors in a fleet.
const DIRECTORS_MAX: usize = 256;

/// A key of a director.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The part of the key after `directors/`.
    pub(super) name: String,
    pub(super) revision: u64,
    pub(super) value: Vec<u8>,
}

impl Entry {
    /// The entry of a key that begins with `directors`.
    pub(super) fn of(found: KeyValue, directors: &str) -> Option<Self> {
        let name = String::from_utf8(found.key).ok()?.strip_prefix(directors)?.to_owned();
        Some(Self { name, revision: found.mod_revision, value: found.value })
    }
}

/// The message in an error response; `None` if it is not one.
pub(super) fn refusal(body: &[u8]) -> Option<String> {
    // For a stream.
    #[derive(Deserialize)]
    struct OfStream {
        error: Message,
    }
    #[derive(Deserialize)]
    struct Message {
        message: String,
    }
    // The gateway of newer versions has only `message`.
    #[derive(Deserialize)]
    struct Plain {
        error: Option<String>,
        message: Option<String>,
    }
    let body = Some(body).filter(|body| body.len() <= REFUSAL_MAX)?;
    let message = match serde_json::from_slice::<OfStream>(body) {
        Ok(of_stream) => Some(of_stream.error.message),
        Err(_) => serde_json::from_slice::<Plain>(body).ok().and_then(|plain| plain.error.or(plain.message)),
    };
    message.map(cut)
}

/// The longest answer, in bytes, that is looked at as an error.
const REFUSAL_MAX: usize = 64 << 10;

/// The begin of a text that may be long.
pub(super) fn cut(text: String) -> String {
    match text.char_indices().nth(TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The longest text that is shown or written.
const TEXT_CHARS: usize = 500;

/// A list of at most `MAX` elements.
#[derive(Debug)]
pub(super) struct List<T, const MAX: usize>(pub(super) Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for List<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = elements.next_element()? {
                    if list.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    list.push(element);
                }
                Ok(list)
            }
        }

        deserializer.deserialize_seq(Elements::<T, MAX>(PhantomData)).map(Self)
    }
}

/// A number, which is a text in JSON; 0 if it is not a number, like the -1 of a lease that has ended.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Ok(String::deserialize(deserializer)?.parse().unwrap_or(0))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    BASE64_STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        assert_eq!(cut("ü".repeat(TEXT_CHARS)).chars().count(), TEXT_CHARS);
        assert_eq!(cut("ü".repeat(TEXT_CHARS + 1)).chars().count(), TEXT_CHARS + 1);
    }
}
