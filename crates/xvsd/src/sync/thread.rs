//! The threads of a daemon. They run until the daemon is dropped; its owner can see whether one has failed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::error::SyncError;
use crate::rights::seccomp::{Kind, limit_thread};
use crate::threads::spawn_stoppable;

/// A running daemon. Its threads end when this is dropped.
#[derive(Default)]
pub(crate) struct Daemon {
    /// Relaxed: the flag orders nothing.
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Starts a thread, which is to end soon after its flag is set.
    ///
    /// # Errors
    /// The machine allows no more threads.
    pub(super) fn start(
        &mut self,
        name: &str,
        run: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> Result<(), SyncError> {
        let stop = self.stop.clone();
        let thread = spawn_stoppable(name, move || {
            limit_thread(Kind::Reader);
            run(&stop);
        })
        .map_err(SyncError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Whether a thread has ended by a fault.
    pub(crate) fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
