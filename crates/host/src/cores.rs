//! Cores of this machine.

use std::thread;

/// The number of cores that this process may use; 1 if it is unknown.
pub fn cores_available() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}
