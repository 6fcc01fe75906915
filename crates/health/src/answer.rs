//! The answer to one attempt of a check.

/// What came of asking once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It is well. What it adds to the server's weight, which is not 0 only for scripts and files that say so.
    Well(i64),
    /// It is not, in words: what was seen and what was wanted.
    Unwell(String),
    /// It could not be asked, for a reason that lies here and says nothing of the server, in words.
    Unasked(String),
}
