//! The thread that follows the kernel's network or its mark rules, and the end of that thread.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fd::OwnedFd;

/// Ends a follower's current wait and all later ones from another thread. Clones end the same follower.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<OwnedFd>);

impl Stopper {
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the current wait and every later one.
    pub fn stop(&self) {
        // The write fails only if the event counter is at its maximum; then the wait ends as well.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Readable from the stop on.
    pub(crate) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(&*self.0, PollFlags::IN)
    }
}

/// The thread of a follower; dropping it stops the thread and waits for its end.
#[derive(Debug)]
pub struct FollowerThread {
    stopper: Stopper,
    /// For messages: `the kernel's network`.
    followed: &'static str,
    thread: Option<JoinHandle<()>>,
}

impl FollowerThread {
    /// Starts a thread with this name that runs until `stopper` stops it.
    pub(crate) fn start(
        name: &str,
        followed: &'static str,
        stopper: Stopper,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let thread = Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { stopper, followed, thread: Some(thread) })
    }
}

impl Drop for FollowerThread {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that follows {} panicked", self.followed);
        }
    }
}
