//! Cores of this machine.

use std::thread;

/// How many cores this process may use.
pub fn cores_available() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
