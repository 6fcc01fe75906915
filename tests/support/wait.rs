//! Waiting for a condition that another process or the kernel brings about.
//!
//! Used where no call blocks until then. Returns at most one pause after the condition holds, or fails the test with
//! the condition's name at the deadline. No test asserts a duration. Not here: waits that a socket's own timeout ends.

use std::thread;
use std::time::{Duration, Instant};

/// Time limit of every wait in a namespace test: far above what a loaded machine with two cores needs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Pause between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns the first value of `look`.
///
/// # Panics
///
/// At the deadline, with `what`, the name of the condition.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited {DEADLINE:?} in vain: {what}");
        thread::sleep(PAUSE);
    }
}
