//! `xvs explain`: the fate of a packet in the director, and the reasons.
//!
//! Runs on the thread of the client, not on the control thread or a worker, and changes nothing. The question is turned
//! into a frame ([`question`]). The data plane explains the frame's fate (`xvs_dataplane::explain`). The explanation
//! becomes the report for programs, which `explain.rs` in `xvs` prints ([`report`]).

pub mod question;
pub mod report;
mod rule;

use xvs_dataplane::explain::{Live, explain};
use xvs_model::config::refusal::CommandError;

pub use xvs_model::report::explain::Question;
pub use xvs_model::report::explain::Report;

use crate::unattached::Attachment;

/// Answers a question about the director in its current state, on a machine with these interfaces.
///
/// # Errors
///
/// The reason why the question is refused; or no memory is left.
pub fn answer(
    question: &Question,
    live: &Live<'_>,
    attachment: &Attachment<'_>,
) -> Result<Report, CommandError> {
    let (link, frame) = question::frame(question, &live.snapshot.egress)?;
    let explanation = explain(live, link, &frame)
        .map_err(|error| CommandError::Failed { why: format!("xvs explain: {error}") })?;
    let report = report::report(&explanation, live, attachment);
    // Without a frame the payload is made up.
    Ok(Report { quic: report.quic.filter(|_| question.frame.is_some()), ..report })
}
