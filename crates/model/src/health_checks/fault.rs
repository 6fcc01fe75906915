//! Faults in a configuration file, each with its position.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use xvs_sched::ServiceKey;

/// A line of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file's path as it was given.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl Default for Place {
    fn default() -> Self {
        Self { file: Path::new("").into(), line: 0 }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// The severity of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The rest of the file keeps its meaning.
    Warning,
    /// The meaning of the file is uncertain: the file is not used.
    Error,
}

/// A fault of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The position in the file.
    pub place: Place,
    /// The severity.
    pub severity: Severity,
    /// The fault, and how it is treated.
    pub text: String,
}

/// A section of a file that is left out because of a fault, with the services that this costs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// The fault.
    pub fault: Fault,
    /// The services; none if the fault hides which they are.
    pub services: Vec<ServiceKey>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        write!(f, "{}: {severity}: {}", self.place, self.text)
    }
}
