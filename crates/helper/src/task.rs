//! Tasks: work that needs more rights than xvsd has with `user`.
//!
//! The crate that knows a task's meaning has the function that carries it out: in this process, as without `user`, or
//! in the helper process. The helper gets only a task's value and its descriptors, and trusts neither. Cost with a
//! helper: two messages and a thread.

use std::io;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client;
pub use crate::message::Answer;
use crate::server::Known;

/// Work that needs more rights than xvsd has with `user`.
pub trait Task: Serialize + DeserializeOwned {
    /// The name of the task in a request.
    const NAME: &'static str;
    /// The answer, beside descriptors.
    type Done: Serialize + DeserializeOwned;

    /// Carries the task out with the rights of this process.
    ///
    /// # Errors
    ///
    /// The kernel's, or the descriptors are not those that the task needs.
    fn carry_out(&self, given: &[BorrowedFd<'_>]) -> io::Result<Answer<Self::Done>>;

    /// Runs the task: after [`client::use_for_tasks`] in the helper process, for which it waits, otherwise in this
    /// process.
    ///
    /// # Errors
    ///
    /// Same as [`Self::carry_out`], or there is no helper process any more.
    fn run(&self, given: &[BorrowedFd<'_>]) -> io::Result<Answer<Self::Done>> {
        if !client::is_used_for_tasks() {
            return self.carry_out(given);
        }
        let (done, descriptors) = client::task(Self::NAME, serde_json::to_value(self)?, given)?;
        Ok((serde_json::from_value(done)?, descriptors))
    }
}

/// The descriptor at an index among those that a task was given.
///
/// # Errors
///
/// There are fewer descriptors.
pub fn given<'a>(all: &[BorrowedFd<'a>], place: usize) -> io::Result<BorrowedFd<'a>> {
    all.get(place).copied().ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// The only descriptor in an answer.
///
/// # Errors
///
/// There is none.
pub fn only<T>((done, mut descriptors): Answer<T>) -> io::Result<(T, OwnedFd)> {
    descriptors.pop().map(|one| (done, one)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// This task, for the rules of a helper.
pub const fn known<T: Task>() -> Known {
    Known { name: T::NAME, carry_out: carry_out::<T> }
}

fn carry_out<T: Task>(value: &Value, given: &[OwnedFd]) -> io::Result<Answer<Value>> {
    let given: Vec<_> = given.iter().map(AsFd::as_fd).collect();
    let (done, descriptors) = T::deserialize(value)?.carry_out(&given)?;
    Ok((serde_json::to_value(done)?, descriptors))
}
