//! A sentence for the operator, with its object.

use std::fmt::{self, Display};

/// A sentence for the operator. Two of one source have different objects, unless they are the same sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What it is about: a rule, a route, a program, a file.
    pub object: String,
    /// The sentence.
    pub text: String,
}

impl Notice {
    /// A sentence about this object.
    pub(crate) fn new(object: impl Display, text: String) -> Self {
        Self { object: object.to_string(), text }
    }
}

impl Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
