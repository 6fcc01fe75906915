//! Why a packet goes where it goes: the answer to `xvs explain`.
//!
//! Runs on the thread of the client who asks, off the control thread and off the workers, and changes nothing. The data
//! plane says what would happen (`xvs_dataplane::explain`); here the question becomes a frame ([`question`]) and what was
//! found becomes a document that programs read and `cli/explain.rs` prints ([`report`]).

mod interface;
pub mod question;
pub mod report;
mod rule;

use xvs_dataplane::explain::{Live, explain};
use xvs_model::command::CommandError;

pub use xvs_model::explain::Question;
pub use xvs_model::explain::Report;
/// Answers a question about the director as it is.
///
/// # Errors
/// What is wrong with the question; or that there is no memory.
pub fn answer(question: &Question, live: &Live<'_>) -> Result<Report, CommandError> {
    let (link, frame) = question::frame(question, &live.snapshot.egress)?;
    let explanation = explain(live, link, &frame)
        .map_err(|error| CommandError::Failed { why: format!("xvs explain: {error}") })?;
    Ok(report::report(&explanation, live))
}
