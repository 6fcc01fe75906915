//! Waiting for something that another process or the kernel will do.
//!
//! Used where no call would block until then. Promises to return as soon as the condition holds, give or
//! take a pause between two looks, and to end the test with the condition's name at the deadline. No test
//! asserts how long anything took. Not here: waits that a socket's own time limit ends.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything in a namespace test may take before it counts as never: far above what a loaded
/// machine with two cores needs.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Returns what `look` finds, as soon as it finds something.
///
/// # Panics
///
/// At the deadline, naming `what` was waited for.
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
