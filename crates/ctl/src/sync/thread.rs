//! The thread of a daemon: it runs until it is dropped, and whoever holds it sees a fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// A daemon's running thread. It ends when this is dropped.
pub(crate) struct DaemonThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DaemonThread {
    /// Starts a thread, which is to end soon after its flag is set. Relaxed: the flag orders nothing.
    ///
    /// # Errors
    /// The machine allows no more threads.
    pub(super) fn start(name: &str, run: impl FnOnce(&AtomicBool) + Send + 'static) -> Result<Self, String> {
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::Builder::new().name(name.to_owned()).spawn({
            let stop = stop.clone();
            move || run(&stop)
        });
        let thread = thread.map_err(|error| format!("its thread cannot be started: {error}"))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Whether it has ended by a fault.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for DaemonThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
