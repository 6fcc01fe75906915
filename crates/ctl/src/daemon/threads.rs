//! Threads whose end is noticed.
//!
//! A worker or the control thread ends only when it is told to. One that panics would leave a director that takes
//! packets and does nothing with them, so each thread's end, however it comes, is told to whoever waits for it.

use std::thread::JoinHandle;
use std::{io, thread};

use crossbeam::channel::Sender;

/// Tells that a thread has ended: moved into it, dropped with it.
pub(crate) struct EndNotice {
    thread: String,
    to: Sender<String>,
}

impl EndNotice {
    /// Of the thread of this name.
    pub(crate) fn new(thread: &str, to: &Sender<String>) -> Self {
        Self { thread: thread.to_owned(), to: to.clone() }
    }
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        // When the daemon ends in order, nobody waits for this any more.
        let _ = self.to.send(std::mem::take(&mut self.thread));
    }
}

/// Starts a thread whose end is told by its name.
///
/// # Errors
/// The system has no room for another thread.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    ended: &Sender<String>,
    run: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let notice = EndNotice::new(name, ended);
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _notice = notice;
        run()
    })
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::unbounded;

    use crate::daemon::threads::*;

    #[test]
    fn the_end_of_a_thread_is_told_by_its_name_also_when_it_panics() {
        let (ended, told) = unbounded();
        let panicking = spawn("xvs-worker-7", &ended, || panic!("a fault of this test")).unwrap();
        assert_eq!(told.recv().unwrap(), "xvs-worker-7");
        let _: Result<(), _> = panicking.join();
        let ending = spawn("xvs-control", &ended, || 5).unwrap();
        assert_eq!(told.recv().unwrap(), "xvs-control");
        assert_eq!(ending.join().unwrap(), 5);
    }
}
