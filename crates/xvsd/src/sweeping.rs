//! The thread of the sweeper.
//!
//! `sweep.rs` in `ctl` decides which connections the sweeper ends.

use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};
use xvs_ctl::sweep::Sweeper;
use xvs_dataplane::clock::Clock;

use crate::threads;

/// The sweeper's thread; dropping this ends it.
pub(crate) struct Sweeping {
    /// Each message wakes it.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Sweeping {
    /// Starts the thread.
    ///
    /// # Errors
    /// The OS error if the thread cannot be created.
    pub(crate) fn start(
        mut sweeper: Sweeper,
        clock: Arc<Clock>,
        notices: &Sender<String>,
    ) -> std::io::Result<Self> {
        let (wake, woken) = bounded(1);
        let thread = threads::spawn("xvs-sweep", notices, move || {
            let mut next = sweeper.run(clock.now());
            while woken.recv_timeout(clock.now().until(next)) != Err(RecvTimeoutError::Disconnected) {
                next = sweeper.run(clock.now());
            }
        })?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }

    /// Makes it read the published snapshot now.
    pub(crate) fn wake(&self) {
        // A message that waits does the same.
        self.wake.iter().for_each(|wake| _ = wake.try_send(()));
    }
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        drop(self.wake.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the sweeper had panicked");
        }
    }
}
