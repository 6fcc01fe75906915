//! Bytes as hexadecimal text, two digits each; also for fields of messages, with `serde(with = …)`.

use std::borrow::Cow;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

/// The hexadecimal digits of these bytes, in lower case.
pub fn encode(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|value| char::from_digit(value.into(), 16).expect("a value below 16 is a hexadecimal digit"))
        .collect()
}

/// Decodes hexadecimal digits; `None` if their number is odd or a character is not a digit.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<_> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    (digits.len() % 2 == 0).then(|| digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect())
}

/// Serializes a field.
pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&encode(bytes))
}

/// Deserializes a field.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    decode(&text).ok_or_else(|| D::Error::custom("bytes are two hexadecimal digits each"))
}
