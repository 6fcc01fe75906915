//! The result of one probe.

/// The result of one probe of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// The real server passed. The number is added to its weight; only scripts and files give another one than 0.
    Passed(i64),
    /// The real server failed. The text says what was seen and what was expected.
    Failed(String),
    /// The probe could not run, for a reason on this machine, which the text names. Says nothing about the real server.
    NotRun(String),
}
