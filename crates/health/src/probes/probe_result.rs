//! The result of one probe.

use crate::agent::Answer;

/// The result of one probe of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeResult {
    /// The real server passed. The number is added to its weight; only scripts and files return anything other than 0.
    Passed(i64),
    /// An agent has answered.
    Agent(Answer),
    /// The real server failed. The text describes the observed and the expected behaviour.
    Failed(String),
    /// The probe could not run, for a reason on this machine, which the text names. No result for the real server,
    /// which is unchecked while this lasts.
    NotRun(String),
    /// The probe ran without a result for the real server, for the reason in the text: its agent did not reply, or xvsd
    /// itself was late.
    Inconclusive(String),
}

impl ProbeResult {
    /// Whether the real server is down according to this result.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::Failed(_) => true,
            Self::Agent(answer) => answer.is_up == Some(false),
            Self::Passed(_) | Self::NotRun(_) | Self::Inconclusive(_) => false,
        }
    }

    /// The fault of the real server or of the probe, as text.
    pub(crate) fn error(self) -> Option<String> {
        match self {
            Self::Passed(_) => None,
            Self::Failed(what) | Self::NotRun(what) | Self::Inconclusive(what) => Some(what),
            Self::Agent(Answer { is_up: Some(false), text, .. }) => Some(format!("the agent says `{text}`")),
            Self::Agent(Answer { unknown, .. }) => unknown
                .map(|word| format!("the agent's word `{word}` has no meaning in HAProxy's agent-check")),
        }
    }
}
