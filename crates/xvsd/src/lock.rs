//! Locks of data that no panic leaves inconsistent: each change of it is one call or one assignment.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits for the lock, and takes it even if its last holder has panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
